"""Bodies of requests, of known length and in chunks (RFC 9112 section 6.3 and 7.1), read here for both parsers.

On chunks they agree on no more than the ordinary: one takes white space after a size, bare CR and control characters in
an extension and folded trailers, the other more zeros before a size, and neither bounds an extension or the trailers.
So neither sees a body. Rules for chunks:

* a size is at most 16 hexadecimal digits, and nothing stands between it and `;` or CRLF; every line ends with CRLF;
* extensions are well-formed and ignored (section 7.1.1). Sizes, extensions and line ends may take so many bytes, and
  `CREDIT` more for every chunk;
* trailers are fields as strict as those of a head, and discarded (section 7.1.2). They have a bound of their own.

What is refused, and with which status, depends on the bytes alone and not on how they were cut into segments: a line
that is not complete is held, after its new bytes were looked at once.
"""

from __future__ import annotations

import re
from typing import Final, Protocol

from procmgr.worker.protocols.framing import END, FORBIDDEN_TRAILERS, Refused, check_fields

CREDIT: Final = 32
"""Bytes of framing that a chunk may have before they count as overhead."""

_TOKEN: Final = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]++"
_QUOTED: Final = rb'"(?:[\t \x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t -~\x80-\xff])*+"'  # RFC 9110 section 5.6.4
_EXTENSION: Final = rb";[\t ]*+" + _TOKEN + rb"(?:[\t ]*+=[\t ]*+(?:" + _TOKEN + rb"|" + _QUOTED + rb"))?+"
_SIZE: Final = rb"([0-9A-Fa-f]{1,16}+)(?:" + _EXTENSION + rb"(?:[\t ]*+" + _EXTENSION + rb")*+)?+\r\n"
_FIRST: Final = re.compile(_SIZE)
_NEXT: Final = re.compile(rb"\r\n" + _SIZE)
_BEGIN: Final = re.compile(rb"[0-9A-Fa-f]{1,16}+(?:;|\r?\Z)|\Z")
_TEXT: Final = re.compile(rb"[\t -~\x80-\xff]*+\r?")
_FORBIDDEN: Final = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|(?<!\r)\n|\r(?!\n|\Z)")


class Body(Protocol):
    """What reads one body."""

    def read(self, data: bytes) -> tuple[bytes, bytes, bool]:
        """Return the body in `data`, the bytes that follow the message, and whether it ended. Raises `Refused`."""


class SizedBody:
    """A body of known length, at least one byte."""

    __slots__ = ("_left",)

    def __init__(self, length: int) -> None:
        self._left = length

    def read(self, data: bytes) -> tuple[bytes, bytes, bool]:
        """Return the body in `data`, the bytes that follow the message, and whether it ended."""
        left = self._left
        if len(data) < left:
            self._left = left - len(data)
            return data, b"", False
        return data[:left], data[left:], True


class ChunkedBody:
    """A body in chunks. All bounds are bytes; `max_body` 0 is none."""

    __slots__ = (
        "_announced",
        "_ended",
        "_framing",
        "_held",
        "_left",
        "_max_body",
        "_max_framing",
        "_max_trailers",
        "_scanned",
        "_trailing",
    )

    def __init__(self, *, max_framing: int, max_trailers: int, max_body: int = 0) -> None:
        self._max_framing, self._max_trailers, self._max_body = max_framing, max_trailers, max_body
        self._framing = self._announced = self._left = self._scanned = 0
        self._trailing = self._ended = False
        self._held = b""

    def read(self, data: bytes) -> tuple[bytes, bytes, bool]:
        """Return the body in `data`, the bytes that follow the message, and whether it ended. Raises `Refused`."""
        if self._held:
            data = self._held + data
            self._held = b""
        parts: list[bytes] = []
        position = 0
        while not self._ended:
            if self._left:
                part = data[position : position + self._left]
                parts.append(part)
                position += len(part)
                self._left -= len(part)
                if self._left:
                    break
            end = self._end_of_trailers(data, position) if self._trailing else self._end_of_line(data, position)
            if end < 0:
                self._held = data[position:]
                self._scanned = len(self._held)
                break
            position = end
            self._scanned = 0
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        return body, data[position:] if self._ended else b"", self._ended

    def _end_of_line(self, data: bytes, start: int) -> int:
        """Read the line with the next chunk's size; return where it ends, -1 if it is not complete."""
        pattern, begin = (_NEXT, min(start + 2, len(data))) if self._announced else (_FIRST, start)
        # A line that grows byte by byte is not matched anew for each.
        complete = data.find(b"\n", max(begin, start + self._scanned)) >= 0
        match = pattern.match(data, start) if complete else None
        if match is None:
            self._judge_line(data, start, begin)
            return -1
        self._framing = max(0, self._framing + match.end() - start - CREDIT)
        if self._framing > self._max_framing:
            raise Refused(413, "too many bytes of chunk framing")
        self._left = int(match[1], 16)
        self._announced += self._left
        if self._announced > self._max_body > 0:
            raise Refused(413, "body too large")
        self._trailing = not self._left
        return match.end()

    def _judge_line(self, data: bytes, start: int, begin: int) -> None:
        """Refuse a line that no further byte can mend, for what is wrong within its bound if anything is."""
        if not b"\r\n".startswith(data[start:begin]):
            raise Refused(400, "chunk longer than its size")
        bound = min(len(data), start + self._max_framing - self._framing + CREDIT)
        fresh = max(begin, start + self._scanned - 1)
        if not _BEGIN.match(data, begin) or not _TEXT.fullmatch(data, fresh, bound):
            raise Refused(400, "malformed chunk size or extension")
        if len(data) > bound:
            raise Refused(413, "too many bytes of chunk framing")

    def _end_of_trailers(self, data: bytes, start: int) -> int:
        """Read the trailers if they are all there; return where the message ends, -1 if they are not."""
        if data.startswith(b"\r\n", start):
            self._ended = True
            return start + 2
        bound = min(len(data), start + self._max_trailers)
        found = data.find(END, max(start, start + self._scanned - 3), bound)
        if found >= 0:
            section = data[start : found + 4]
            check_fields(section, 0)
            if any(line.partition(b":")[0].lower() in FORBIDDEN_TRAILERS for line in section.split(b"\r\n")):
                raise Refused(400, "forbidden trailer field")
            self._ended = True
            return found + 4
        if _FORBIDDEN.search(data, max(start, start + self._scanned - 1), bound):
            raise Refused(400, "control character, bare CR or bare LF in the trailers")
        if len(data) > bound:
            raise Refused(431, "trailers too large")
        return -1
