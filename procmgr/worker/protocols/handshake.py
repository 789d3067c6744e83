"""The WebSocket opening handshake (RFC 6455 section 4.2), out of a request that is parsed and checked already.

The limits on its head are those of every request: the library's own parser, which has others, sees none of it.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from websockets.datastructures import Headers
from websockets.extensions.permessage_deflate import PerMessageDeflate, ServerPerMessageDeflateFactory
from websockets.headers import parse_subprotocol
from websockets.http11 import Request as HandshakeRequest
from websockets.server import ServerProtocol

from procmgr.worker.protocols.framing import Refused

if TYPE_CHECKING:
    from procmgr.worker.protocols.framing import Request

_FIELDS: Final = b"sec-websocket-"
_EXCERPT: Final = 120
_WINDOW_BITS: Final = 12
"""Compression with 4 KiB windows and this `memLevel` costs about 64 KiB a connection; zlib's defaults cost 300 KiB."""
_MEM_LEVEL: Final = 5
SILENT: Final = logging.Logger("procmgr.websockets", logging.CRITICAL)  # noqa: LOG001 - see below
"""For the library's objects, which would log every connection's end. What fails is reported by who uses them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Handshake:
    """What the client asked for and gets: the lines of the 101 response, the subprotocols it offers, compression."""

    lines: bytes
    subprotocols: tuple[str, ...]
    deflate: PerMessageDeflate | None


def asks_for_websocket(request: Request) -> bool:
    """Tell whether a request is to become a WebSocket (RFC 9110 section 7.8); in HTTP/1.0 none is."""
    return (
        request.version == b"1.1"
        and b"websocket" in _options(request, b"upgrade")
        and b"upgrade" in _options(request, b"connection")
    )


def _options(request: Request, field: bytes) -> set[bytes]:
    values = b",".join(value for name, value in request.headers if name == field)
    return {option.strip(b" \t") for option in values.lower().split(b",")}


def negotiate(request: Request, *, deflate: bool) -> Handshake:
    """Return what the handshake in `request` agrees on. Raises `Refused`."""
    if request.method != b"GET":
        raise Refused(405, "a WebSocket handshake is a GET", b"allow: GET\r\n")
    if request.chunked or request.content_length:
        raise Refused(400, "a WebSocket handshake has no body")
    fields = [(name.decode(), value.decode("latin-1")) for name, value in request.headers if name.startswith(_FIELDS)]
    if [value for name, value in fields if name == "sec-websocket-version"] != ["13"]:  # section 4.4
        required = b"upgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-version: 13\r\n"
        raise Refused(426, "the WebSocket version must be 13", required)
    headers = Headers([("Upgrade", "websocket"), ("Connection", "Upgrade"), *fields])
    protocol = ServerProtocol(extensions=_EXTENSIONS if deflate else None, logger=SILENT)
    response = protocol.accept(HandshakeRequest(path=request.target.decode(), headers=headers))
    if response.status_code != 101:
        raise Refused(400, f"bad WebSocket handshake: {protocol.handshake_exc}"[:_EXCERPT])
    offers = [offer for value in headers.get_all("Sec-WebSocket-Protocol") for offer in parse_subprotocol(value)]
    agreed = [extension for extension in protocol.extensions if isinstance(extension, PerMessageDeflate)]
    return Handshake(
        lines=b"".join(
            f"{name.lower()}: {value}\r\n".encode() for name, value in response.headers.raw_items() if name != "Date"
        ),
        subprotocols=tuple(offers),
        deflate=agreed[0] if agreed else None,
    )


_EXTENSIONS: Final = (
    ServerPerMessageDeflateFactory(
        server_max_window_bits=_WINDOW_BITS,
        client_max_window_bits=_WINDOW_BITS,
        compress_settings={"memLevel": _MEM_LEVEL},
    ),
)
