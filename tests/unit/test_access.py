"""The access line is uvicorn's, and nothing a client sends can tear it."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest

from procmgr.worker.access import LineAccessLog, RecordAccessLog, client_text, quoted_target
from procmgr.worker.protocols.framing import read_line


class Writer:
    def __init__(self):
        self.data = b""
        self.writes = 0

    def write(self, data):
        self.data += data
        self.writes += 1

    def flush(self):
        return True


class Loop:
    def __init__(self):
        self.calls = []

    def call_soon(self, callback):
        self.calls.append(callback)


def request(target=b"/", method=b"GET", version=b"1.1"):
    return read_line(b"%b %b HTTP/%b\r\n" % (method, target, version), 1 << 16)


def ended(one, status=200):
    return SimpleNamespace(request=one, status=status)


def line(one, *, root="", status=200, colors=False, client=("127.0.0.1", 54321)):
    writer, loop = Writer(), Loop()
    log = LineAccessLog(writer=writer, loop=loop, colors=colors)
    log.record(log.prefix(client), ended(one, status), root)
    loop.calls.pop()()
    return writer.data.decode()


def test_a_line_is_uvicorns():
    assert line(request(b"/path?query")) == 'INFO:     127.0.0.1:54321 - "GET /path?query HTTP/1.1" 200 OK\n'
    assert line(request(version=b"1.0"), status=404) == 'INFO:     127.0.0.1:54321 - "GET / HTTP/1.0" 404 Not Found\n'
    assert line(request(), client=None) == 'INFO:      - "GET / HTTP/1.1" 200 OK\n'


def test_a_status_without_a_phrase_keeps_its_space():
    assert line(request(), status=299).endswith('" 299 \n')


def test_colours_are_uvicorns():
    expected = '\x1b[32mINFO\x1b[0m:     127.0.0.1:54321 - "\x1b[1mGET / HTTP/1.1\x1b[0m" \x1b[32m200 OK\x1b[0m\n'
    assert line(request(), colors=True) == expected


@pytest.mark.parametrize(
    ("target", "shown"),
    [
        (b"/a%20b", "/a%20b"),
        (b"/%41", "/A"),
        (b"/%0a%1b[31m", "/%0A%1B%5B31m"),
        (b"/a'b", "/a%27b"),
        (b"/~a.b-c_d", "/~a.b-c_d"),
        (b"/?a=%0a&b", "/?a=%0a&b"),
        (b"http://h/x", "/x"),
    ],
)
def test_a_path_is_quoted_as_uvicorn_quotes_it(target, shown):
    assert f'"GET {shown} HTTP/1.1"' in line(request(target))


def test_the_root_path_is_part_of_it():
    assert '"GET /root/x HTTP/1.1"' in line(request(b"/x"), root="/root")


def test_a_long_target_is_cut_so_that_the_line_fits_a_pipe_write():
    text = line(request(b"/" + b"a" * 9000 + b"?" + b"b" * 9000))
    assert "..." in text
    assert len(text) < 2200
    assert len(line(request(b"/" + b"%ff" * 5000))) < 2200


def test_the_lines_of_a_turn_of_the_loop_are_one_write():
    writer, loop = Writer(), Loop()
    log = LineAccessLog(writer=writer, loop=loop, colors=False)
    for number in range(5):
        log.record(b"> ", ended(request(b"/%d" % number)), "")
    assert (len(loop.calls), writer.writes) == (1, 0)
    loop.calls.pop()()
    assert (writer.writes, writer.data.count(b"\n")) == (1, 5)
    log.record(b"> ", ended(request()), "")
    assert len(loop.calls) == 1


def test_a_record_has_uvicorns_arguments():
    records = []
    logger = logging.Logger("procmgr.access")  # noqa: LOG001 - of this test alone
    logger.addFilter(records.append)
    log = RecordAccessLog(logger=logger)
    log.record(log.prefix(("h", 1)), ended(request(b"/a?b"), 201), "")
    (record,) = records
    assert record.args == ("h:1", "GET", "/a?b", "1.1", 201)
    assert record.getMessage() == 'h:1 - "GET /a?b HTTP/1.1" 201'


def test_names_of_peers():
    assert client_text(("::1", 5)) == "::1:5"
    assert client_text(None) == ""
    assert quoted_target(request(b"/%c3%a4"), "") == "/%C3%A4"
