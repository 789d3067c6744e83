"""Fields through httptools (llhttp).

A parser reads one head after the other as long as it takes each for a whole message. It does not if there is a body,
which is none of its business (`bodies`), if the next protocol is asked for (RFC 9110 section 7.8), and after a message
that it takes for the last one of the connection, for which it also counts `Proxy-Connection`: then a new parser reads
the next head.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Final

import httptools

from procmgr.worker.protocols.framing import Headers, Refused, Request, check_fields

_CRLF: Final = b"\r\n"


class HttptoolsCodec:
    """One parser as long as it can go on."""

    __slots__ = ("_headers", "_parser", "_spent")

    def __init__(self) -> None:
        self._headers: Headers = []
        self._parser = httptools.HttpRequestParser(self)
        self._spent = False

    def read_head(self, request: Request) -> Headers:
        """Return the fields of a complete head, names in lower case. Raises `Refused`."""
        head = request.head
        try:
            return self._parse(head)
        except httptools.HttpParserInvalidMethodError:
            raise Refused(501, "method not implemented") from None
        except httptools.HttpParserError as error:
            reason = f"malformed head: {error}"
        # Of some fields llhttp takes no tab after the value (RFC 9112 section 5.1). Without it a folded line would be
        # the empty one that ends the head, so there must not be any.
        check_fields(head, head.find(_CRLF) + 2)
        stripped = _CRLF.join(line.rstrip(b"\t ") for line in head.split(_CRLF))
        if stripped != head:
            with suppress(httptools.HttpParserError):
                return self._parse(stripped)
        raise Refused(400, reason)

    def _parse(self, head: bytes) -> Headers:
        if self._spent:
            self._parser = httptools.HttpRequestParser(self)
        self._spent = True  # until the message is complete
        headers: Headers = []
        self._headers = headers
        try:
            self._parser.feed_data(head)
        except httptools.HttpParserUpgrade:
            self._spent = True
        return headers

    # -- llhttp's side -------------------------------------------------------------------------------------------

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take one field."""
        # RFC 9112 section 5.1: white space after a value is no part of it; llhttp takes off only what is before.
        self._headers.append((name.lower(), value.rstrip()))

    def on_message_complete(self) -> None:
        """Note that the parser can read a further head."""
        self._spent = not self._parser.should_keep_alive()
