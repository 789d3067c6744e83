"""Fields and bodies through h11, a fresh `h11.Connection` per request.

h11 hides bare LF, obsolete line folding, control characters in values and repeated Content-Lengths, so the raw head is
matched as strictly as llhttp would before h11 sees it. In chunk framing h11 would also let a bare LF end the trailers,
where others read on, so the end is looked at again. The differences that remain do not move it: h11 takes white space
after a chunk size, sizes of up to 20 digits, a bare CR in a chunk extension, and folded trailers.
"""

from __future__ import annotations

import re
from typing import Final

import h11

from procmgr.worker.protocols.framing import (
    CHUNK_CREDIT,
    END,
    FORBIDDEN_TRAILERS,
    Headers,
    Refused,
    Request,
    check_fields,
)

_DATA: Final = re.compile(r":? (?:bytearray\()?b['\"]")
_LENGTHS: Final = re.compile(rb"\r\ncontent-length:([^\r]*)", re.IGNORECASE)


class H11Codec:
    """One parser per request."""

    __slots__ = ("_chunked", "_connection", "_max_overhead", "_overhead", "_tail")

    def __init__(self, max_overhead: int) -> None:
        self._max_overhead = max_overhead
        self._overhead = 0
        self._chunked = False
        self._tail = b""
        self._connection: h11.Connection

    def read_head(self, request: Request) -> Headers:
        """Return the fields of a complete head, names in lower case. Raises `Refused`."""
        head = request.head
        check_fields(head, head.find(b"\r\n") + 2)
        lengths = _LENGTHS.findall(head)
        if len(lengths) > 1 or (lengths and not lengths[0].strip(b" \t").isdigit()):
            raise Refused(400, "malformed Content-Length field")
        self._connection = h11.Connection(h11.SERVER, max_incomplete_event_size=max(len(head), self._max_overhead))
        try:
            self._connection.receive_data(head)
            event = self._connection.next_event()
        except h11.RemoteProtocolError as error:
            raise Refused(error.error_status_hint, f"malformed head: {_without_data(error)}") from None
        if not isinstance(event, h11.Request):
            raise Refused(400, "malformed head")
        return list(event.headers)

    def begin_body(self, request: Request) -> None:
        """Prepare for the body of `request`; h11 knows its framing from the head."""
        self._overhead = 0
        self._chunked = request.chunked
        self._tail = b""

    def read_body(self, data: bytes) -> tuple[bytes, bytes, bool]:
        """Return the body in `data`, the bytes that follow the message, and whether it ended. Raises `Refused`."""
        parts: list[bytes] = []
        rest = b""
        ended = False
        try:
            self._connection.receive_data(data)
            while isinstance(event := self._connection.next_event(), h11.Data):
                parts.append(bytes(event.data))
        except h11.RemoteProtocolError as error:
            raise Refused(400, f"malformed chunked body: {_without_data(error)}") from None
        if isinstance(event, h11.EndOfMessage):
            if any(name in FORBIDDEN_TRAILERS for name, _ in event.headers):
                raise Refused(400, "forbidden trailer field")
            rest, ended = self._connection.trailing_data[0], True
        if self._chunked:
            self._tail = (self._tail + data[: len(data) - len(rest)])[-len(END) :]
            if ended and self._tail != END:
                raise Refused(400, "bare LF in the trailers")
        body = b"".join(parts)
        self._overhead = max(0, self._overhead + len(data) - len(rest) - len(body) - CHUNK_CREDIT * len(parts))
        if self._overhead > self._max_overhead:
            raise Refused(400, "too many bytes of chunk framing")
        return body, rest, ended


def _without_data(error: h11.RemoteProtocolError) -> str:
    """Return what h11 says, without the bytes that it says it of: they may have secrets."""
    return _DATA.split(str(error), maxsplit=1)[0]
