"""Fields and bodies through httptools (llhttp).

Rules: the parser cannot pause and turns an exception in a callback into a parser error, so it is fed one message at a
time: exactly one head, then body bytes of which none belongs to the next message. A chunked body ends with an empty
line, after the last chunk or after the trailers (RFC 9112 section 7.1), so its bytes are fed up to each empty line,
and the parser's message end is always an end of what it was fed.

With `Upgrade` and `Connection: upgrade` llhttp stops after the head and skips the body. We do not upgrade here, so the
body belongs to the request (RFC 9110 section 7.8): a new parser gets a head with the framing alone and reads on.

Which connection persists is the policy's to say. llhttp, which also counts `Proxy-Connection`, reads nothing after a
message that it takes for the last: a new parser reads the next one.
"""

from __future__ import annotations

from typing import Final

import httptools

from procmgr.worker.protocols.framing import CHUNK_CREDIT, END, FORBIDDEN_TRAILERS, Headers, Refused, Request

_CHUNKED: Final = b"Transfer-Encoding: chunked"


class HttptoolsCodec:
    """One parser for the life of a connection."""

    __slots__ = (
        "_ended",
        "_headers",
        "_left",
        "_max_overhead",
        "_overhead",
        "_parser",
        "_parts",
        "_spent",
        "_tail",
        "_trailer",
        "_upgraded",
    )

    def __init__(self, max_overhead: int) -> None:
        self._max_overhead = max_overhead
        self._headers: Headers | None = None
        self._parts: list[bytes] = []
        self._parser = httptools.HttpRequestParser(self)
        self._upgraded = self._spent = False
        self._ended = False
        self._left: int | None = None
        self._overhead = 0
        self._tail = self._trailer = b""

    def read_head(self, request: Request) -> Headers:
        """Return the fields of a complete head, names in lower case. Raises `Refused`."""
        if self._upgraded or self._spent:
            self._parser, self._upgraded = httptools.HttpRequestParser(self), False
        headers: Headers = []
        self._headers = headers
        try:
            self._parser.feed_data(request.head)
        except httptools.HttpParserUpgrade:
            self._upgraded = True
        except httptools.HttpParserInvalidMethodError:
            raise Refused(501, "method not implemented") from None
        except httptools.HttpParserError as error:
            raise Refused(400, f"malformed head: {error}") from None
        self._headers = None
        return headers

    def begin_body(self, request: Request) -> None:
        """Prepare for the body of `request`, if it has one."""
        if self._upgraded:
            self._parser, self._upgraded = httptools.HttpRequestParser(self), False
            framing = b"Content-Length: %d" % request.content_length if request.content_length else _CHUNKED
            self._headers = []
            self._parser.feed_data(b"POST / HTTP/1.1\r\n%b\r\n\r\n" % framing)
            self._headers = None
        self._ended = False
        self._left = request.content_length
        self._tail = b""
        self._overhead = 0
        self._trailer = b""

    def read_body(self, data: bytes) -> tuple[bytes, bytes, bool]:
        """Return the body in `data`, the bytes that follow the message, and whether it ended. Raises `Refused`."""
        position = 0
        try:
            while position < len(data) and not self._ended:
                end = self._boundary(data, position)
                self._parser.feed_data(data if end - position == len(data) else data[position:end])
                position = end
        except httptools.HttpParserError as error:
            raise Refused(400, f"malformed chunked body: {error}") from None
        body = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts.clear()
        if self._trailer:
            raise Refused(400, "forbidden trailer field")
        if self._overhead > self._max_overhead:
            raise Refused(400, "too many bytes of chunk framing")
        return body, data[position:], self._ended

    def _boundary(self, data: bytes, position: int) -> int:
        """Return where the message may end at the earliest."""
        if self._left is not None:
            end = min(len(data), position + self._left)
            self._left -= end - position
            return end
        seam = self._tail + data[position : position + 3]
        found = seam.find(END)
        if found >= 0:
            end = position + found + 4 - len(self._tail)
        else:
            found = data.find(END, position)
            end = found + 4 if found >= 0 else len(data)
        self._tail = (self._tail + data[position:end])[-3:] if end - position < 3 else data[end - 3 : end]
        self._overhead += end - position
        return end

    # -- llhttp's side -------------------------------------------------------------------------------------------

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take one field: of the head, else a trailer."""
        if self._headers is not None:
            # RFC 9112 section 5.1: white space after a value is no part of it; llhttp takes off only what is before.
            self._headers.append((name.lower(), value.rstrip()))
        elif name.lower() in FORBIDDEN_TRAILERS:
            self._trailer = name

    def on_body(self, body: bytes) -> None:
        """Take bytes of the body."""
        self._parts.append(body)
        self._overhead = max(0, self._overhead - len(body) - CHUNK_CREDIT)

    def on_message_complete(self) -> None:
        """Note the end of the message."""
        self._ended = True
        self._spent = not self._parser.should_keep_alive()
