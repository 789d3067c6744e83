"""The application's headers: checked before they are sent, remembered without being kept for ever."""

from __future__ import annotations

import pytest

from procmgr.worker.protocols.response import LACKS_DATE, LACKS_SERVER, encode_fields, error_response


def test_fields_are_rendered_as_given_and_in_order():
    fields = encode_fields([(b"b", b"2"), [b"A", b"1"], (b"b", b"3\x80\t")], {})
    assert fields[0] == b"b: 2\r\nA: 1\r\nb: 3\x80\t\r\n"
    assert (fields[1], fields[3], fields[4]) == (-1, 0, False)


def test_content_length_is_kept_apart_and_framing_is_dropped():
    fields = encode_fields(
        [(b"Content-Length", b"12"), (b"transfer-encoding", b"chunked"), (b"connection", b"Close")], {}
    )
    assert fields[:3] == (b"", 12, b"Content-Length: 12\r\n")
    assert fields[4]


def test_own_date_and_server_are_noticed():
    fields = encode_fields([(b"Date", b"d"), (b"SERVER", b"s")], {})
    assert (fields[0], fields[3]) == (b"Date: d\r\nSERVER: s\r\n", LACKS_DATE | LACKS_SERVER)


@pytest.mark.parametrize(
    "header",
    [("a", b"b"), (b"a", "b"), (b"a", None), (b"", b"b"), (b"a:", b"b"), (b"a", b"\r\n"), (b"a", b"\n"), (b"a", b"\0"),
     (b"a\n", b"b"), (b"content-length", b"-1"), (b"content-length", b"9" * 19), ([], []), (b"a", bytearray(b"b"))],
)  # fmt: skip
def test_what_would_break_the_head_is_refused_every_time(header):
    memo = {}
    for _ in range(2):
        with pytest.raises((TypeError, ValueError)):
            encode_fields([header], memo)


def test_the_memory_of_pairs_is_bounded_and_holds_no_cookie():
    memo = {}
    for number in range(5000):
        encode_fields([(b"x-id", b"%d" % number), (b"x-long", b"v" * 65), (b"set-cookie", b"secret")], memo)
    assert len(memo) <= 1024
    assert not any(value in {b"secret", b"v" * 65} for _, value in memo)


def test_an_error_response_is_small_text_that_closes():
    data = error_response(b"server: x\r\n", 400, "no \u00e4", b"retry-after: 1\r\n")
    head, _, body = data.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 Bad Request\r\nserver: x\r\n")
    assert b"connection: close\r\n" in head
    assert body == b"400 Bad Request: no \\xe4\n"
    assert b"content-length: %d" % len(body) in head
    assert error_response(b"", 500, "", head_only=True).endswith(b"\r\n\r\n")
