"""Whom the worker believes about the client, and what."""

from __future__ import annotations

import pytest

from procmgr.worker.forwarded import Forwarding

X = ("x-forwarded-for", "x-forwarded-proto")
ALL = (*X, "x-forwarded-host", "x-forwarded-port", "x-forwarded-prefix")
PROXY = ("10.0.0.1", 4000)


def told(*pairs, trusted=("10.0.0.0/8", "2001:db8::/32"), fields=X, kind="http"):
    """Return the scope after what a trusted proxy told, the second time as the first."""
    forwarding = Forwarding(trusted=trusted, fields=fields)
    scopes = []
    for _ in range(2):
        headers = [(b"host", b"inside"), *((name.encode(), value.encode("latin-1")) for name, value in pairs)]
        scope = {
            "type": kind,
            "client": PROXY,
            "server": ("10.0.0.2", 8000),
            "scheme": "http",
            "root_path": "",
            "path": "/a",
            "raw_path": b"/a",
            "headers": headers,
        }
        assert forwarding.apply(scope, headers) == scope["client"]
        scopes.append(scope)
    assert scopes[0] == scopes[1]
    return scopes[0]


@pytest.mark.parametrize(
    ("trusted", "peer", "believed"),
    [
        ((), ("127.0.0.1", 1), False),
        (("127.0.0.1",), ("127.0.0.1", 1), True),
        (("127.0.0.1",), ("127.0.0.2", 1), False),
        (("10.0.0.0/8",), ("10.9.8.7", 1), True),
        (("10.0.0.0/8",), ("::ffff:10.9.8.7", 1), True),
        (("2001:db8::/32",), ("2001:db8::7", 1), True),
        (("10.0.0.0/8",), ("2001:db8::7", 1), False),
        (("*",), ("192.0.2.1", 1), True),
        (("*",), None, True),
        (("unix",), None, True),
        (("unix",), ("/run/peer.sock", None), True),
        (("unix",), ("192.0.2.1", 1), False),
        (("127.0.0.1", "10.0.0.0/8"), None, False),
        (("127.0.0.1",), ("no address", 1), False),
    ],
)
def test_a_peer_is_believed_by_address_network_or_word(trusted, peer, believed):
    assert Forwarding(trusted=trusted, fields=X).trusts(peer) is believed


@pytest.mark.parametrize(
    ("value", "client"),
    [
        ("192.0.2.1", ("192.0.2.1", 0)),
        ("192.0.2.1:4711", ("192.0.2.1", 4711)),
        ("2001:470::1", ("2001:470::1", 0)),
        ("[2001:470::1]:4711", ("2001:470::1", 4711)),
        ("::ffff:192.0.2.1", ("192.0.2.1", 0)),
        ("6.6.6.6, 192.0.2.1", ("192.0.2.1", 0)),  # what is left of the client is what it forged
        ("192.0.2.1, 10.1.1.1 ,10.2.2.2", ("192.0.2.1", 0)),
        ("10.3.3.3, 10.1.1.1", ("10.3.3.3", 0)),  # all are trusted: where it began
        ("192.0.2.1, unknown", PROXY),
        ("192.0.2.1, _hidden, 10.1.1.1", PROXY),
        ("192.0.2.1,", PROXY),
        ("", PROXY),
        ("192.0.2.1:99999", ("192.0.2.1", 0)),
        ("192.0.2.1\u00e9", PROXY),
        ('fe80::1%" 200 forged', PROXY),  # a zone (RFC 4007) means something on one machine only, and may be any text
        ("fe80::1%\x9b31m", PROXY),
    ],
)
def test_the_right_most_address_that_is_not_trusted_is_the_clients(value, client):
    assert told(("x-forwarded-for", value))["client"] == client


def test_several_lines_of_one_name_are_one_list():
    assert told(("x-forwarded-for", "192.0.2.1"), ("x-forwarded-for", "10.1.1.1"))["client"] == ("192.0.2.1", 0)


def test_everybody_is_trusted_back_to_the_first():
    assert told(("x-forwarded-for", "192.0.2.1, 192.0.2.2"), trusted=["*"])["client"] == ("192.0.2.1", 0)


def test_of_thousands_of_nodes_no_more_are_read_than_hops():
    nodes = ", ".join(f"192.0.{number // 250}.{number % 250}" for number in range(5000))
    assert told(("x-forwarded-for", nodes), trusted=["*"])["client"] == ("192.0.19.186", 0)
    elements = ",".join(f"for=192.0.{number // 250}.{number % 250}" for number in range(5000))
    assert told(("forwarded", elements), trusted=["*"], fields=["forwarded"])["client"] == ("192.0.19.186", 0)


@pytest.mark.parametrize(
    ("kind", "clients", "protos", "scheme"),
    [
        ("http", "192.0.2.1", "https", "https"),
        ("http", "192.0.2.1", "HTTPS", "https"),
        ("http", "192.0.2.1", "wss", "https"),
        ("websocket", "192.0.2.1", "https", "wss"),
        ("websocket", "192.0.2.1", "http", "ws"),
        ("http", "192.0.2.1", "gopher", "http"),
        ("http", "6.6.6.6, 192.0.2.1", "http, https", "https"),
        ("http", "192.0.2.1, 10.1.1.1", "https, http", "https"),  # each proxy said its own
        ("http", "192.0.2.1, 10.1.1.1", "https", "https"),
    ],
)
def test_the_scheme_is_that_of_the_clients_connection(kind, clients, protos, scheme):
    said = told(("x-forwarded-for", clients), ("x-forwarded-proto", protos), kind=kind)
    assert said["scheme"] == scheme


def test_fields_that_were_not_named_are_left_in_the_headers_and_not_believed():
    pairs = [
        ("x-forwarded-host", "evil"),
        ("x-forwarded-port", "1"),
        ("x-forwarded-prefix", "/x"),
        ("forwarded", "for=6.6.6.6"),
    ]
    scope = told(("x-forwarded-for", "192.0.2.1"), *pairs)
    assert (scope["client"], scope["server"], scope["path"]) == (("192.0.2.1", 0), ("10.0.0.2", 8000), "/a")
    assert {(name.encode(), value.encode()) for name, value in pairs} < set(scope["headers"])


@pytest.mark.parametrize(
    ("pairs", "host", "server"),
    [
        ([("x-forwarded-host", "example.org")], b"example.org", ("example.org", 80)),
        ([("x-forwarded-host", "example.org:81")], b"example.org:81", ("example.org", 81)),
        ([("x-forwarded-host", "example.org"), ("x-forwarded-proto", "https")], b"example.org", ("example.org", 443)),
        ([("x-forwarded-host", "a"), ("x-forwarded-port", "8443")], b"a", ("a", 8443)),
        ([("x-forwarded-host", "[2001:470::1]:81")], b"[2001:470::1]:81", ("2001:470::1", 81)),
        ([("x-forwarded-port", "8443")], b"inside", ("10.0.0.2", 8443)),
        ([("x-forwarded-port", "99999")], b"inside", ("10.0.0.2", 8000)),
        ([("x-forwarded-host", "a b")], b"inside", ("10.0.0.2", 8000)),
        ([("x-forwarded-host", "a/b")], b"inside", ("10.0.0.2", 8000)),
    ],
)
def test_the_host_and_port_that_the_client_asked_for(pairs, host, server):
    scope = told(*pairs, fields=ALL)
    assert dict(scope["headers"])[b"host"] == host
    assert scope["server"] == server


@pytest.mark.parametrize(
    ("prefix", "root"), [("/api", "/api"), ("/api/", "/api"), ("api", ""), ("/a b", ""), ("/", ""), ("", "")]
)
def test_a_prefix_goes_before_path_and_root_path(prefix, root):
    scope = told(("x-forwarded-prefix", prefix), fields=ALL)
    assert (scope["root_path"], scope["path"], scope["raw_path"]) == (root, root + "/a", root.encode() + b"/a")


@pytest.mark.parametrize(
    ("value", "client", "scheme", "host"),
    [
        ("for=192.0.2.1", ("192.0.2.1", 0), "http", b"inside"),
        ("For=192.0.2.1;Proto=https;Host=example.org", ("192.0.2.1", 0), "https", b"example.org"),
        ('for="[2001:470::1]:4711" ; proto=https', ("2001:470::1", 4711), "https", b"inside"),
        ('for="192.0.2.1:4711"', ("192.0.2.1", 4711), "http", b"inside"),
        ("for=6.6.6.6;host=evil, for=192.0.2.1;proto=https, for=10.1.1.1;proto=http", ("192.0.2.1", 0), "https", None),
        (r'for="192.0.2\.1"', ("192.0.2.1", 0), "http", None),
        ("for=unknown, for=10.1.1.1", PROXY, "http", b"inside"),
        ("for=_hidden;proto=https", PROXY, "https", b"inside"),
        ("for=192.0.2.1;for=192.0.2.2", PROXY, "http", b"inside"),
        ('for="192.0.2.1', PROXY, "http", b"inside"),
        ("for=192.0.2.1 proto=https", PROXY, "http", b"inside"),
        (",", PROXY, "http", b"inside"),
        ("", PROXY, "http", b"inside"),
    ],
)
def test_the_standard_field(value, client, scheme, host):
    scope = told(("forwarded", value), fields=["forwarded"])
    assert (scope["client"], scope["scheme"]) == (client, scheme)
    assert dict(scope["headers"])[b"host"] == (host or b"inside")


def test_what_is_remembered_is_bounded():
    forwarding = Forwarding(trusted=["*"], fields=X)
    for number in range(5000):
        headers = [(b"x-forwarded-for", b"192.0.2.%d:%d" % (number % 250, number))]
        scope = {"type": "http", "client": PROXY}
        assert forwarding.apply(scope, headers) == (f"192.0.2.{number % 250}", number)
    assert len(forwarding._known) <= 1024
