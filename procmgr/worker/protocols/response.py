"""The head of a response: status lines, and the application's fields, checked before anything is sent.

Rules: framing and persistence are the server's, so the application's `Transfer-Encoding` is dropped and its
`Connection` counts only for `close`; its `Content-Length` is held against its body; its `Date` and `Server` replace
ours. A pair is checked and rendered once and remembered; applications send the same few pairs over and over.
"""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import Any, Final

LACKS_SERVER: Final = 1
LACKS_DATE: Final = 2
_NAME: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_BAD_VALUE: Final = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_EXCERPT: Final = 80
_MEMO_PAIRS: Final = 1024
_MEMO_VALUE: Final = 64

_PLAIN: Final = 0
_LENGTH: Final = 1
_DROPPED: Final = 2
_CONNECTION: Final = 3
_SERVER: Final = 4
_DATE: Final = 5
_KINDS: Final = {
    b"content-length": _LENGTH,
    b"transfer-encoding": _DROPPED,
    b"connection": _CONNECTION,
    b"keep-alive": _DROPPED,
    b"server": _SERVER,
    b"date": _DATE,
}

Memo = dict[tuple[bytes, bytes], tuple[bytes, int]]


def phrase(status: int) -> str:
    """Return the reason phrase of `status`, "" for one without."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""


STATUS_LINES: Final = {status: f"HTTP/1.1 {status} {phrase(status)}\r\n".encode() for status in range(100, 600)}


Fields = tuple[bytes, int, bytes, int, bool]
"""The application's fields for the wire: the block of lines, the Content-Length (-1 without) and its line, which index
into `Context.head` goes with them, and whether the application closes the connection.
"""


def encode_fields(headers: Any, memo: Memo) -> Fields:  # noqa: ANN401 - whatever the application sends is checked here
    """Return the fields for the wire. Raises `TypeError` or `ValueError` that names the offending one."""
    block = length_line = b""
    length = -1
    lacks = 0
    close = False
    for name, value in headers:
        try:
            known = memo.get((name, value))
        except TypeError:  # unhashable, so not bytes
            known = None
        line, kind = known or _encode(name, value, memo)
        if kind == _PLAIN:
            block += line
        elif kind == _LENGTH:
            if length >= 0:
                raise ValueError("more than one content-length header")
            length, length_line = int(value), line
        elif kind == _CONNECTION:
            close = close or b"close" in value.lower()
        elif kind != _DROPPED:
            block += line
            lacks |= LACKS_SERVER if kind == _SERVER else LACKS_DATE
    return block, length, length_line, lacks, close


def _encode(name: object, value: object, memo: Memo) -> tuple[bytes, int]:
    if type(name) is not bytes or type(value) is not bytes:
        raise TypeError(f"header names and values must be bytes: {_excerpt(name)}: {_excerpt(value)}")
    if _NAME.fullmatch(name) is None:
        raise ValueError(f"not a header name: {_excerpt(name)}")
    if _BAD_VALUE.search(value):
        raise ValueError(f"control character in header {_excerpt(name)}: {_excerpt(value)}")
    kind = _KINDS.get(name.lower(), _PLAIN)
    if kind == _LENGTH and not (value.isdigit() and len(value) <= 18):
        raise ValueError(f"not a content-length: {_excerpt(value)}")
    entry = (b"%b: %b\r\n" % (name, value), kind)
    if len(value) <= _MEMO_VALUE and name.lower() != b"set-cookie":  # long values vary, and a cookie is a secret
        if len(memo) >= _MEMO_PAIRS:
            memo.clear()
        memo[name, value] = entry
    return entry


def _excerpt(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= _EXCERPT else text[:_EXCERPT] + "..."


def error_response(common: bytes, status: int, reason: str, extra: bytes = b"", *, head_only: bool = False) -> bytes:
    """Return a whole small text/plain response after which the connection closes."""
    text = f"{status} {phrase(status)}" + (f": {reason}" if reason else "") + "\n"
    body = text.encode("ascii", "backslashreplace")
    fields = b"content-type: text/plain; charset=utf-8\r\ncontent-length: %d\r\nconnection: close\r\n" % len(body)
    return b"".join((STATUS_LINES[status], common, fields, extra, b"\r\n", b"" if head_only else body))
