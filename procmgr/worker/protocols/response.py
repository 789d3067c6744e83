"""The head of a response: status lines, and the application's fields, checked before anything is sent.

Rules: framing and persistence are the server's, so the application's `Transfer-Encoding` is dropped and its
`Connection` counts only for `close`; its `Content-Length` is held against its body; its `Date` and `Server` replace
ours. Pairs are checked and rendered once and remembered, and so are whole lists whose pairs all were known before:
applications send the same few over and over.
"""

from __future__ import annotations

import re
from contextlib import suppress
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from procmgr.worker.protocols.framing import FORBIDDEN_TRAILERS

if TYPE_CHECKING:
    from collections.abc import Iterable

LACKS_SERVER: Final = 1
LACKS_DATE: Final = 2
_NAME: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_BAD_VALUE: Final = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_EXCERPT: Final = 80
_MEMO_PAIRS: Final = 1024
_MEMO_VALUE: Final = 64
_MEMO_LISTS: Final = 256
_MEMO_LIST: Final = 16

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


FORBIDDEN_IN_TRAILERS: Final = FORBIDDEN_TRAILERS | frozenset(
    b"age cache-control connection date expires keep-alive location pragma proxy-authenticate proxy-connection range "
    b"retry-after upgrade vary warning www-authenticate".split()
)
"""Fields that frame, route, authenticate, date or tell how to read a body: not after it (RFC 9110 section 6.5.1)."""


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


class FieldEncoder:
    """Encodes what all connections of a worker send, and remembers it within bounds."""

    __slots__ = ("_close", "_lists", "_pairs")

    def __init__(self, *, close: bool = False) -> None:
        """With `close` every response ends its connection, whatever the application sends."""
        self._close = close
        self._pairs: dict[tuple[bytes, bytes], tuple[bytes, int]] = {}
        self._lists: dict[tuple[tuple[bytes, bytes], ...], Fields] = {}

    def encode(self, headers: Any) -> Fields:  # noqa: ANN401 - whatever the application sends is checked here
        """Return the fields for the wire. Raises `TypeError` or `ValueError` that names the offending one."""
        pairs = tuple(headers)
        try:
            known = self._lists.get(pairs)
        except TypeError:  # unhashable: pairs that are lists, or no bytes
            known = None
        return known or self._encode(pairs)

    def lines(self, pairs: Iterable[Any], forbidden: frozenset[bytes] = frozenset()) -> bytes:
        """Return fields as lines, for hints and trailers. Raises `TypeError` or `ValueError` that names a wrong one."""
        block = b""
        for name, value in pairs:
            block += _render(name, value)
            if name.lower() in forbidden:
                raise ValueError(f"not for trailers: {_excerpt(name)}")
        return block

    def _encode(self, pairs: tuple[Any, ...]) -> Fields:
        block = length_line = b""
        length = -1
        lacks = 0
        close = self._close
        all_known = len(pairs) <= _MEMO_LIST
        for name, value in pairs:
            try:
                known = self._pairs.get((name, value))
            except TypeError:  # unhashable, so not bytes
                known = None
            if known is None:
                known, all_known = self._encode_pair(name, value), False
            line, kind = known
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
        fields = block, length, length_line, lacks, close
        if all_known:
            self._remember(pairs, fields)
        return fields

    def _encode_pair(self, name: Any, value: Any) -> tuple[bytes, int]:  # noqa: ANN401 - `_render` checks it
        line = _render(name, value)
        kind = _KINDS.get(name.lower(), _PLAIN)
        if kind == _LENGTH and not (value.isdigit() and len(value) <= 18):
            raise ValueError(f"not a content-length: {_excerpt(value)}")
        entry = (line, kind)
        if len(value) <= _MEMO_VALUE and name.lower() != b"set-cookie":  # long values vary, and a cookie is a secret
            if len(self._pairs) >= _MEMO_PAIRS:
                self._pairs.clear()
            self._pairs[name, value] = entry
        return entry

    def _remember(self, pairs: tuple[Any, ...], fields: Fields) -> None:
        if len(self._lists) >= _MEMO_LISTS:
            self._lists.clear()
        with suppress(TypeError):  # pairs that are lists cannot be keys
            self._lists[pairs] = fields


def _render(name: object, value: object) -> bytes:
    if type(name) is not bytes or type(value) is not bytes:
        raise TypeError(f"header names and values must be bytes: {_excerpt(name)}: {_excerpt(value)}")
    if _NAME.fullmatch(name) is None:
        raise ValueError(f"not a header name: {_excerpt(name)}")
    if _BAD_VALUE.search(value):
        raise ValueError(f"control character in header {_excerpt(name)}: {_excerpt(value)}")
    return b"%b: %b\r\n" % (name, value)


def _excerpt(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= _EXCERPT else text[:_EXCERPT] + "..."


def chunk(body: bytes) -> bytes:
    """Return one chunk (RFC 9112 section 7.1)."""
    return b"%x\r\n%b\r\n" % (len(body), body)


def bodyless_length(line: bytes, status: int, body: bytes, *, more: bool) -> bytes:
    """Return what may be said of the length of a body that is not sent (RFC 9110 section 8.6)."""
    if status == 204:
        return b""
    return line or (b"content-length: %d\r\n" % len(body) if body and not more else b"")


def error_response(common: bytes, status: int, reason: str, extra: bytes = b"", *, head_only: bool = False) -> bytes:
    """Return a whole small text/plain response after which the connection closes."""
    text = f"{status} {phrase(status)}" + (f": {reason}" if reason else "") + "\n"
    body = text.encode("ascii", "backslashreplace")
    fields = b"content-type: text/plain; charset=utf-8\r\ncontent-length: %d\r\nconnection: close\r\n" % len(body)
    return b"".join((STATUS_LINES[status], common, fields, extra, b"\r\n", b"" if head_only else body))
