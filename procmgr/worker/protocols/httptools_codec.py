"""Fields through httptools (llhttp).

A parser reads one head after the other as long as it takes each for a whole message. It does not if there is a body,
which is none of its business (`chunks`), if the next protocol is asked for (RFC 9110 section 7.8), and after a message
that it takes for the last one of the connection, for which it also counts `Proxy-Connection`: then a new parser reads
the next head.
"""

from __future__ import annotations

import httptools

from procmgr.worker.protocols.framing import Headers, Refused, Request


class HttptoolsCodec:
    """One parser as long as it can go on."""

    __slots__ = ("_headers", "_parser", "_spent")

    def __init__(self) -> None:
        self._headers: Headers = []
        self._parser = httptools.HttpRequestParser(self)
        self._spent = False

    def read_head(self, request: Request) -> Headers:
        """Return the fields of a complete head, names in lower case. Raises `Refused`."""
        if self._spent:
            self._parser = httptools.HttpRequestParser(self)
        self._spent = True  # until the message is complete
        headers: Headers = []
        self._headers = headers
        try:
            self._parser.feed_data(request.head)
        except httptools.HttpParserUpgrade:
            self._spent = True
        except httptools.HttpParserInvalidMethodError:
            raise Refused(501, "method not implemented") from None
        except httptools.HttpParserError as error:
            raise Refused(400, f"malformed head: {error}") from None
        return headers

    # -- llhttp's side -------------------------------------------------------------------------------------------

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take one field."""
        # RFC 9112 section 5.1: white space after a value is no part of it; llhttp takes off only what is before.
        self._headers.append((name.lower(), value.rstrip()))

    def on_message_complete(self) -> None:
        """Note that the parser can read a further head."""
        self._spent = not self._parser.should_keep_alive()
