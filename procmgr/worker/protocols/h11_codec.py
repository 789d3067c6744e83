"""Fields through h11, a fresh `h11.Connection` per request.

h11 hides bare LF, obsolete line folding, control characters in values and repeated Content-Lengths, so the raw head is
matched as strictly as llhttp would before h11 sees it.
"""

from __future__ import annotations

import re
from typing import Final

import h11

from procmgr.worker.protocols.framing import Headers, Refused, Request, check_fields

_DATA: Final = re.compile(r":? (?:bytearray\()?b['\"]")
_LENGTHS: Final = re.compile(rb"\r\ncontent-length:([^\r]*)", re.IGNORECASE)


class H11Codec:
    """One parser per request."""

    __slots__ = ()

    def read_head(self, request: Request) -> Headers:
        """Return the fields of a complete head, names in lower case. Raises `Refused`."""
        head = request.head
        check_fields(head, head.find(b"\r\n") + 2)
        lengths = _LENGTHS.findall(head)
        if len(lengths) > 1 or (lengths and not lengths[0].strip(b" \t").isdigit()):
            raise Refused(400, "malformed Content-Length field")
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=len(head))
        try:
            connection.receive_data(head)
            event = connection.next_event()
        except h11.RemoteProtocolError as error:
            raise Refused(error.error_status_hint, f"malformed head: {_without_data(error)}") from None
        if not isinstance(event, h11.Request):
            raise Refused(400, "malformed head")
        return list(event.headers)


def _without_data(error: h11.RemoteProtocolError) -> str:
    """Return what h11 says, without the bytes that it says it of: they may have secrets."""
    return _DATA.split(str(error), maxsplit=1)[0]
