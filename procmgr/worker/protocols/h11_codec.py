"""Fields and bodies through h11, a fresh `h11.Connection` per request.

h11 hides bare LF, obsolete line folding and control characters in values, so the raw head is matched as strictly as
llhttp would before h11 sees it, and the chunk framing it hides is bounded by h11's own buffer limit.
"""

from __future__ import annotations

import h11

from procmgr.worker.protocols.framing import FORBIDDEN_TRAILERS, Headers, Refused, Request, check_fields


class H11Codec:
    """One parser per request."""

    __slots__ = ("_connection", "_max_overhead")

    def __init__(self, max_overhead: int) -> None:
        self._max_overhead = max_overhead
        self._connection: h11.Connection

    def read_head(self, request: Request) -> Headers:
        """Return the fields of a complete head, names in lower case. Raises `Refused`."""
        head = request.head
        check_fields(head, head.find(b"\r\n") + 2)
        self._connection = h11.Connection(h11.SERVER, max_incomplete_event_size=max(len(head), self._max_overhead))
        try:
            self._connection.receive_data(head)
            event = self._connection.next_event()
        except h11.RemoteProtocolError as error:
            raise Refused(error.error_status_hint, f"malformed head: {error}") from None
        if not isinstance(event, h11.Request):
            raise Refused(400, "malformed head")
        return list(event.headers)

    def begin_body(self, request: Request) -> None:
        """Prepare for the body of `request`; h11 knows all from the head."""

    def read_body(self, data: bytes) -> tuple[bytes, bytes, bool]:
        """Return the body in `data`, the bytes that follow the message, and whether it ended. Raises `Refused`."""
        parts: list[bytes] = []
        try:
            self._connection.receive_data(data)
            while True:
                event = self._connection.next_event()
                if isinstance(event, h11.Data):
                    parts.append(bytes(event.data))
                elif isinstance(event, h11.EndOfMessage):
                    if any(name in FORBIDDEN_TRAILERS for name, _ in event.headers):
                        raise Refused(400, "forbidden trailer field")
                    return b"".join(parts), self._connection.trailing_data[0], True
                else:
                    return b"".join(parts), b"", False
        except h11.RemoteProtocolError as error:
            raise Refused(400, f"malformed chunked body: {error}") from None
