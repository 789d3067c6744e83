"""The application's headers: checked before they are sent, remembered without being kept for ever."""

from __future__ import annotations

import pytest

from procmgr.worker.protocols.framing import FORBIDDEN_TRAILERS
from procmgr.worker.protocols.response import (
    FORBIDDEN_IN_TRAILERS,
    LACKS_DATE,
    LACKS_SERVER,
    FieldEncoder,
    error_response,
)


def test_fields_are_rendered_as_given_and_in_order():
    fields = FieldEncoder().encode([(b"b", b"2"), [b"A", b"1"], (b"b", b"3\x80\t")])
    assert fields[0] == b"b: 2\r\nA: 1\r\nb: 3\x80\t\r\n"
    assert (fields[1], fields[3], fields[4]) == (-1, 0, False)


def test_content_length_is_kept_apart_and_framing_is_dropped():
    fields = FieldEncoder().encode(
        [(b"Content-Length", b"12"), (b"transfer-encoding", b"chunked"), (b"connection", b"Close")]
    )
    assert fields[:3] == (b"", 12, b"Content-Length: 12\r\n")
    assert fields[4]


def test_own_date_and_server_are_noticed():
    fields = FieldEncoder().encode([(b"Date", b"d"), (b"SERVER", b"s")])
    assert (fields[0], fields[3]) == (b"Date: d\r\nSERVER: s\r\n", LACKS_DATE | LACKS_SERVER)


@pytest.mark.parametrize(
    "header",
    [("a", b"b"), (b"a", "b"), (b"a", None), (b"", b"b"), (b"a:", b"b"), (b"a", b"\r\n"), (b"a", b"\n"), (b"a", b"\0"),
     (b"a\n", b"b"), (b"content-length", b"-1"), (b"content-length", b"9" * 19), ([], []), (b"a", bytearray(b"b"))],
)  # fmt: skip
def test_what_would_break_the_head_is_refused_every_time(header):
    encoder = FieldEncoder()
    for _ in range(3):
        with pytest.raises((TypeError, ValueError)):
            encoder.encode([header])


def test_what_is_remembered_is_bounded_and_holds_no_cookie():
    encoder = FieldEncoder()
    secret = [(b"x-long", b"v" * 65), (b"set-cookie", b"secret")]
    for number in range(5000):
        for _ in range(3):
            encoder.encode([(b"x-id", b"%d" % number)])
            encoder.encode([(b"x-id", b"%d" % number), *secret])
    assert 0 < len(encoder._pairs) <= 1024
    assert 0 < len(encoder._lists) <= 256
    assert not any(value in {b"secret", b"v" * 65} for _, value in encoder._pairs)
    assert not any(len(pairs) > 1 for pairs in encoder._lists)


def test_a_list_that_was_sent_before_is_rendered_as_the_first_time():
    encoder = FieldEncoder()
    lists = [
        [],
        [(b"a", b"1")],
        [(b"a", b"1"), (b"b", b"2")],
        [(b"b", b"2"), (b"a", b"1")],
        [[b"a", b"1"], (b"b", b"2")],
        [(b"ab", b"cd")],
        [(b"connection", b"close"), (b"content-length", b"5")],
    ]
    first = [encoder.encode(headers) for headers in lists]
    assert len(set(first)) == len(lists) - 1  # a list and a tuple of the same pair say the same
    for _ in range(3):
        assert [encoder.encode(iter(headers)) for headers in lists] == first
        with pytest.raises(TypeError):
            encoder.encode([b"ab", b"cd"])  # equal to a known pair, but two headers that are none


def test_an_error_response_is_small_text_that_closes():
    data = error_response(b"server: x\r\n", 400, "no \u00e4", b"retry-after: 1\r\n")
    head, _, body = data.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 Bad Request\r\nserver: x\r\n")
    assert b"connection: close\r\n" in head
    assert body == b"400 Bad Request: no \\xe4\n"
    assert b"content-length: %d" % len(body) in head
    assert error_response(b"", 500, "", head_only=True).endswith(b"\r\n\r\n")


def test_lines_are_checked_as_fields_are_and_not_remembered():
    encoder = FieldEncoder()
    assert encoder.lines([(b"link", b"</a>"), [b"X", b"1"]]) == b"link: </a>\r\nX: 1\r\n"
    assert encoder.lines(()) == b""
    assert not encoder._pairs
    for wrong in ((b"a b", b"c"), (b"a", b"\n"), ("a", b"b"), (b"a", "b"), ()):
        with pytest.raises((TypeError, ValueError)):
            encoder.lines([(b"fine", b"1"), wrong])


@pytest.mark.parametrize("name", sorted(FORBIDDEN_IN_TRAILERS))
def test_what_has_to_be_known_before_the_body_is_no_trailer(name):
    with pytest.raises(ValueError, match="not for trailers"):
        FieldEncoder().lines([(name.title(), b"1")], FORBIDDEN_IN_TRAILERS)
    assert FORBIDDEN_TRAILERS < FORBIDDEN_IN_TRAILERS
