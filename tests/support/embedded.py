"""A server in the test's own loop, and bare clients for what httpx would hide."""

from __future__ import annotations

import asyncio
import contextlib
from urllib.parse import urlsplit

from procmgr import Config, Server

PATIENCE = 20.0


@contextlib.asynccontextmanager
async def serving(app, **keywords):
    """Serve `app` on a free port of the loopback and stop at the end; yields the server, which has started."""
    server = Server(Config(app, **{"port": 0, "access_log": False, **keywords}))
    async with asyncio.timeout(PATIENCE):
        task = asyncio.create_task(server.serve())
        while not server.started and not task.done():
            await asyncio.sleep(0)
        if task.done():
            task.result()
        try:
            yield server
        finally:
            server.should_exit = True
            await task


def port(server):
    return urlsplit(server.urls[0]).port


class Client:
    """One connection, byte by byte."""

    @classmethod
    async def connect(cls, server):
        client = cls()
        client.reader, client.writer = await asyncio.open_connection("127.0.0.1", port(server))
        return client

    def send(self, path="/", method="GET", extra=""):
        self.writer.write(f"{method} {path} HTTP/1.1\r\nHost: test\r\n{extra}\r\n".encode())

    async def answer(self):
        """Return the next response's head, as text in lower case, and its body (Content-Length only)."""
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        lengths = [line.split(":")[1] for line in head.split("\r\n") if line.startswith("content-length:")]
        return head, await self.reader.readexactly(int(lengths[0])) if lengths else b""

    async def rest(self):
        """Return what comes until the server closes."""
        return await self.reader.read()

    async def close(self):
        self.writer.close()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()
