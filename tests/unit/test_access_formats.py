"""Access lines in formats of one's own: what each part says, and that nothing a client sends can break one."""

from __future__ import annotations

import json
import logging
import os
import re
from logging.handlers import QueueHandler
from queue import SimpleQueue
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from procmgr.config.kind import BadValue
from procmgr.config.settings import TABLE
from procmgr.logs import ATOMS, COMBINED, Atom, access_format, read_template
from procmgr.worker.access import ExcludingAccessLog
from procmgr.worker.access_formats import Entry, FormattedAccessLog, _compile, render_json, trace_id
from procmgr.worker.cycle import TimedCycle
from procmgr.worker.protocols.framing import read_line

APACHE = re.compile(
    r'(?P<host>\S+) - (?P<user>\S+) \[\d\d/[A-Z][a-z]{2}/\d{4}:\d\d:\d\d:\d\d [+-]\d{4}\] "(?P<line>(?:[^"\\]|\\.)*)" '
    r'(?P<status>\d{3}) (?P<bytes>\d+|-) "(?P<referer>(?:[^"\\]|\\.)*)" "(?P<agent>(?:[^"\\]|\\.)*)"'
)


def request(target=b"/", headers=(), method=b"GET"):
    one = read_line(b"%b %b HTTP/1.1\r\n" % (method, target), 1 << 16)
    one.headers, one.expect = [*headers], False
    return one


def entry(one=None, **changes):
    given = {"client": "192.0.2.1:5000", "root_path": "", "status": 200, "seconds": 1.234567, "sent": 14}
    return Entry(**{**given, "request": one or request(), **changes})


def shown(template, one=None, **changes):
    return _compile(template)(entry(one, **changes))


@pytest.mark.parametrize(
    ("atom", "text"),
    [
        ("h", "192.0.2.1"),
        ("l", "-"),
        ("u", "-"),
        ("r", "GET /a%20b?c=d HTTP/1.1"),
        ("m", "GET"),
        ("U", "/a%20b"),
        ("q", "c=d"),
        ("H", "HTTP/1.1"),
        ("s", "200"),
        ("B", "14"),
        ("b", "14"),
        ("f", "http://r/"),
        ("a", "agent"),
        ("T", "1"),
        ("M", "1234"),
        ("D", "1234567"),
        ("L", "1.234567"),
    ],
)
def test_an_atom_says_what_gunicorns_says(atom, text):
    one = request(b"/a%20b?c=d", [(b"referer", b"http://r/"), (b"user-agent", b"agent")])
    assert shown(f"[%({atom})s]", one) == f"[{text}]"


def test_p_is_the_process():
    assert shown("%(p)s") == f"<{os.getpid()}>"


def test_every_atom_that_is_named_has_a_text():
    for atom in ATOMS:
        assert isinstance(shown(f"%({atom})s"), str)


def test_fields_of_request_and_response_can_be_named_in_any_case():
    one = request(headers=[(b"x-one", b"1"), (b"x-one", b"2")])
    lines = b"X-Two: 3\r\ncontent-length: 14\r\n"
    template = "%({X-One}i)s %({x-two}o)s %({content-length}o)s %({none}i)s"
    assert shown(template, one, lines=lines) == "1 3 14 -"


def test_an_empty_body_is_a_dash_for_b_and_nought_for_the_great_b():
    assert shown("%(b)s %(B)s", sent=0) == "- 0"


def test_the_user_is_named_without_the_password():
    for credentials, user in (
        (b"Basic dXNlcjpzZWNyZXQ=", "user"),
        (b"basic !!", "-"),
        (b"Bearer dXNlcjpzZWNyZXQ=", "-"),
    ):
        assert shown("%(u)s", request(headers=[(b"authorization", credentials)])) == user


def test_a_unix_peer_is_a_dash():
    assert shown("%(h)s", client="-") == "-"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("%(x)s", "no atom %(x)s; there are h l u"),
        ("%h", "'%h' is no atom such as"),
        ("%(h)", "'%(h)' is no atom"),
        ("%(h)s\n", "printable"),
        ("%({a}e)s", "is no atom"),
        ("constant", "expected uvicorn, combined, json or a template"),
        ("", "expected uvicorn"),
    ],
)
def test_what_is_no_format_is_refused_with_the_reason(text, reason):
    with pytest.raises(BadValue, match=re.escape(reason)):
        TABLE["access_log_format"].setting.kind.parse(text)


def test_words_are_taken_in_any_case_and_percent_signs_doubled():
    assert access_format("JSON") == "json"
    assert read_template("100%% %(h)s") == ["100% ", Atom("h")]


FIELDS = st.lists(
    st.tuples(
        st.sampled_from([b"referer", b"user-agent", b"authorization", b"x-request-id", b"traceparent"]),
        st.binary(max_size=400).filter(lambda value: not re.search(rb"[\x00-\x08\x0a-\x1f\x7f]", value)),
    )
)
TARGETS = st.binary(min_size=0, max_size=3000).map(
    lambda rest: b"/" + bytes(33 + byte % 94 for byte in rest).replace(b"#", b"%")
)


@given(target=TARGETS, headers=FIELDS)
def test_combined_can_be_taken_apart_whatever_came(target, headers):
    line = shown("combined", request(target, headers))
    match = APACHE.fullmatch(line)
    assert match is not None
    assert match["status"] == "200"
    assert line.isascii()


@given(target=TARGETS, headers=FIELDS)
def test_json_is_one_line_that_parses_whatever_came(target, headers):
    text = render_json(entry(request(target, headers)))
    assert "\n" not in text
    assert len(text) < 4096
    found = json.loads(text)
    assert (found["status"], found["response_bytes"], found["duration_seconds"]) == (200, 14, 1.234567)


def test_json_that_would_be_cut_by_a_pipe_has_its_longest_values_shortened():
    target = b"/?" + b'"' * 3000
    text = render_json(entry(request(target, [(b"user-agent", b"\xff" * 400), (b"referer", b"r")])))
    assert len(text) < 4096
    found = json.loads(text)
    assert found["target"].startswith('/?"""')
    assert found["target"].endswith("...")
    assert set(found["user_agent"]) == {"\xff"}
    assert found["referer"] == "r"


def test_json_tells_ids_agent_and_referer_where_there_are_any():
    trace = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    headers = [(b"x-request-id", b"r1"), (b"traceparent", trace), (b"user-agent", b"a"), (b"referer", b"b")]
    found = json.loads(render_json(entry(request(headers=headers))))
    assert found["trace_id"] == "4bf92f3577b34da6a3ce929d0e0e4736"
    assert (found["request_id"], found["user_agent"], found["referer"]) == ("r1", "a", "b")
    assert json.loads(render_json(entry())).keys() & {"trace_id", "request_id", "user_agent", "referer"} == set()


@pytest.mark.parametrize(
    "traceparent",
    [
        b"",
        b"00-00000000000000000000000000000000-00f067aa0ba902b7-01",
        b"ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        b"00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
        b"00-4bf92f3577b34da6a3ce929d0e0e4736",
    ],
)
def test_a_traceparent_that_is_not_valid_is_not_told(traceparent):
    assert trace_id(traceparent) == ""


def test_json_tells_of_a_websocket_its_code_and_messages():
    found = json.loads(render_json(entry(status=101, code=1000, received=2, sent=3)))
    assert found["websocket"] == {"code": 1000, "received": 2, "sent": 3}
    assert "response_bytes" not in found


class Writer:
    def __init__(self):
        self.data = b""

    def write(self, data):
        self.data += data

    def flush(self):
        return True


class Loop:
    def __init__(self):
        self.calls = []

    def call_soon(self, callback):
        self.calls.append(callback)


def timed(target=b"/", headers=()):
    cycle = TimedCycle(SimpleNamespace(), request(target, headers))
    cycle.status = 200
    return cycle


def test_lines_of_one_turn_leave_together_and_none_is_longer_than_a_pipe_takes_whole():
    writer, loop = Writer(), Loop()
    log = FormattedAccessLog("%(r)s" * 4, writer=writer, loop=loop)
    log.record(b"h:1", timed(), "")
    log.record(b"h:1", timed(b"/" + b"x" * 3000), "")
    assert len(loop.calls) == 1
    loop.calls.pop()()
    short, long = writer.data.splitlines(keepends=True)
    assert short == b"GET / HTTP/1.1" * 4 + b"\n"
    assert len(long) == 4096


def test_without_a_writer_a_line_is_a_record(monkeypatch):
    logger, queue = logging.getLogger("procmgr.access"), SimpleQueue()
    # Whatever tests before it have configured: handlers stay on a logger.
    for name, value in {"handlers": [QueueHandler(queue)], "propagate": False, "disabled": False}.items():
        monkeypatch.setattr(logger, name, value)
    logger.setLevel(logging.INFO)
    FormattedAccessLog("%(m)s %%s", writer=None, loop=Loop()).record(b"h:1", timed(), "")
    assert queue.get_nowait().getMessage() == "GET %s"
    assert queue.empty()


def test_excluded_paths_are_left_out_exactly_or_by_their_beginning():
    inner = SimpleNamespace(cycle=TimedCycle, prefix=None, flush=None, seen=[])
    inner.record = lambda prefix, cycle, root_path: inner.seen.append(cycle.request.target)
    inner.websocket = lambda prefix, request, root_path, **rest: inner.seen.append(request.target)
    log = ExcludingAccessLog(inner, ("/healthz", "/internal/*"))
    for target in (b"/healthz", b"/healthz?full", b"/healthz/", b"/internal/a", b"/internal", b"/"):
        log.record(b"", timed(target), "")
        log.websocket(b"", request(target), "", code=1000, seconds=0.0, received=0, sent=0)
    assert inner.seen == [b"/healthz/", b"/healthz/", b"/internal", b"/internal", b"/", b"/"]


def test_combined_is_what_apache_calls_so():
    assert COMBINED == '%(h)s %(l)s %(u)s %(t)s "%(r)s" %(s)s %(b)s "%(f)s" "%(a)s"'
