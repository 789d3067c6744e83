"""WebSocket frames as bytes: what a client sends and what it reads, without a library in between."""

from __future__ import annotations

import asyncio
import struct
import zlib
from contextlib import asynccontextmanager

from procmgr.config.websocket import WebSocketSettings
from procmgr.worker.protocols.upgrade import upgrade_for
from support.wire import PATIENCE, serving

CONT, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
KEY = b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
VERSION = b"Sec-WebSocket-Version: 13\r\n"
UPGRADE = b"Connection: Upgrade\r\nUpgrade: websocket\r\n"
DEFLATE = b"Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n"


def handshake(fields=b"", *, line=b"GET /chat?a=1 HTTP/1.1\r\n", upgrade=UPGRADE + KEY + VERSION):
    return line + b"Host: a\r\n" + upgrade + fields + b"\r\n"


def frame(opcode, payload=b"", *, fin=True, rsv=0, mask=b"\x01\x02\x03\x04"):
    if isinstance(payload, str):
        payload = payload.encode()
    head = bytes([fin << 7 | rsv << 4 | opcode])
    masked = 0x80 if mask else 0
    if len(payload) < 126:
        head += bytes([masked | len(payload)])
    elif len(payload) < 1 << 16:
        head += struct.pack("!BH", masked | 126, len(payload))
    else:
        head += struct.pack("!BQ", masked | 127, len(payload))
    if mask:
        whole = int.from_bytes(payload) ^ int.from_bytes((mask * (len(payload) // 4 + 1))[: len(payload)])
        payload = whole.to_bytes(len(payload))
    return head + mask + payload


def closing(code, reason=b""):
    return frame(CLOSE, struct.pack("!H", code) + reason)


def deflated(payload, compressor=None):
    compressor = compressor or zlib.compressobj(wbits=-12)
    return (compressor.compress(payload) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]


class Peer:
    """The client's end of an accepted WebSocket."""

    def __init__(self, client):
        self.client = client
        self.send = client.send

    async def exactly(self, count):
        return await asyncio.wait_for(self.client.reader.readexactly(count), PATIENCE)

    async def frame(self):
        """Return the next frame as (opcode, payload); RSV1 and a missing FIN are added to the opcode."""
        first, length = await self.exactly(2)
        assert length < 128, "a server does not mask"
        if length == 126:
            (length,) = struct.unpack("!H", await self.exactly(2))
        elif length == 127:
            (length,) = struct.unpack("!Q", await self.exactly(8))
        assert first & 0x80, "whole messages only"
        return first & 0x7F, await self.exactly(length)

    async def closed(self):
        """Return the code of the close frame that must come next, None for one without."""
        opcode, payload = await self.frame()
        assert opcode == CLOSE, (opcode, payload)
        return struct.unpack("!H", payload[:2])[0] if payload else None

    async def end(self):
        """Wait for the server's end of the connection; nothing may come before."""
        assert await self.client.rest() == b""


@asynccontextmanager
async def serving_websocket(app, ws="websockets", *, http="httptools", options=None, **more):
    settings = WebSocketSettings(ws=ws, **(options or {}))
    async with serving(app, http, upgrade=upgrade_for(settings), **more) as server:
        yield server


async def opened(server, fields=b"", behind=b""):
    """Return a peer whose handshake was accepted, and the head of the answer."""
    client = await server.connect()
    client.send(handshake(fields) + behind)
    reply = await client.reply()
    assert reply.status == 101, reply
    return Peer(client), reply
