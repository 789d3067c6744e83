"""Serve an application on real sockets inside the test's own loop, and read what it answers as bytes."""

from __future__ import annotations

import asyncio
import logging
import socket
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import uvloop

from procmgr.scoreboard import detached_row
from procmgr.worker.protocols.base import Context, http_factory
from procmgr.worker.protocols.secure import Secure

if TYPE_CHECKING:
    import ssl

PATIENCE = 10.0
"""Seconds after which a test that waits for the server has failed."""


@dataclass
class Reply:
    status: int
    headers: list[tuple[str, str]]
    body: bytes
    complete: bool = True

    def header(self, name: str) -> str | None:
        values = [value for key, value in self.headers if key == name]
        assert len(values) <= 1, f"{name} sent {len(values)} times"
        return values[0] if values else None


class Records(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    @property
    def lines(self) -> list[str]:
        return [record.getMessage() for record in self.records]


class Client:
    """A raw client: what is written is what is on the wire."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    def shut(self) -> None:
        self.writer.write_eof()

    async def reply(self, *, method: str = "GET") -> Reply:
        return await asyncio.wait_for(read_reply(self.reader, method), PATIENCE)

    async def rest(self) -> bytes:
        return await asyncio.wait_for(self.reader.read(-1), PATIENCE)

    def vanish(self) -> None:
        """Reset the connection."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        self.writer.transport.abort()


async def read_reply(reader: asyncio.StreamReader, method: str = "GET") -> Reply:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head[:-4].split("\r\n")
    version, status, _ = first.split(" ", 2)
    assert version == "HTTP/1.1"
    headers = [(name.lower(), value.strip()) for name, _, value in (line.partition(":") for line in lines)]
    reply = Reply(int(status), headers, b"")
    if int(status) < 200 or method == "HEAD" or int(status) in (204, 304):
        return reply
    parts: list[bytes] = []
    try:
        if reply.header("transfer-encoding") == "chunked":
            while size := int(await reader.readuntil(b"\r\n"), 16):
                parts.append((await reader.readexactly(size + 2))[:-2])
            assert await reader.readexactly(2) == b"\r\n"
            reply.body = b"".join(parts)
        elif (length := reply.header("content-length")) is not None:
            reply.body = await reader.readexactly(int(length))
        else:
            reply.body = await reader.read(-1)
    except asyncio.IncompleteReadError as error:
        reply.body = b"".join(parts) + error.partial
        reply.complete = False
    return reply


def split_replies(data: bytes, methods: list[str]) -> list[Reply]:
    async def read() -> list[Reply]:
        reader = asyncio.StreamReader()
        reader.feed_data(data)
        reader.feed_eof()
        replies: list[Reply] = []
        while not reader.at_eof():
            replies.append(await read_reply(reader, methods[len(replies)] if len(replies) < len(methods) else "GET"))
        return replies

    return asyncio.run(read())


@dataclass
class Serving:
    context: Context
    records: Records
    path: Any
    clients: list[Client] = field(default_factory=list)
    tls: dict[str, Any] = field(default_factory=dict)

    async def connect(self) -> Client:
        if isinstance(self.path, str):
            reader, writer = await asyncio.open_unix_connection(self.path)
        else:
            reader, writer = await asyncio.open_connection(*self.path, **self.tls)
        client = Client(reader, writer)
        self.clients.append(client)
        return client

    async def connection(self) -> Any:
        """Return the server's side of the only connection."""
        async with asyncio.timeout(PATIENCE):
            while not self.context.connections:
                await asyncio.sleep(0)
        (connection,) = self.context.connections
        return connection

    async def until(self, condition) -> None:
        """Turn the loop until the condition holds."""
        async with asyncio.timeout(PATIENCE):
            while not condition():
                await asyncio.sleep(0)


@asynccontextmanager
async def serving(
    app: Any,
    codec: str,
    *,
    unix: str | None = None,
    tls: tuple[ssl.SSLContext, ssl.SSLContext, str] | None = None,
    **options: Any,
):
    """Serve `app` on TCP, on the Unix socket `unix`, or over `tls`: the server's side, the client's, the name."""
    loop = asyncio.get_running_loop()
    records = Records()
    log = logging.Logger("procmgr.error")  # noqa: LOG001 - one per server, of no other test's concern
    log.addHandler(records)
    if tls is not None:
        options["secure"] = Secure.of(tls[0])
    context = Context(app=app, loop=loop, row=options.pop("row", None) or detached_row(), error_log=log, **options)
    factory = http_factory(context, codec)  # type: ignore[arg-type]
    if unix is None:
        server = await loop.create_server(factory, "127.0.0.1", 0, ssl=tls and tls[0])
        where: Any = server.sockets[0].getsockname()
    else:
        server = await loop.create_unix_server(factory, unix)
        where = unix
    result = Serving(context, records, where)
    if tls is not None:
        result.tls = {"ssl": tls[1], "server_hostname": tls[2]}
    try:
        yield result
    finally:
        server.close()
        for client in result.clients:
            client.writer.transport.abort()
        context.abort_requests()
        context.abort_connections()
        async with asyncio.timeout(PATIENCE):
            await asyncio.shield(context.drained())


def run(coroutine: Any, loop: str = "uvloop") -> Any:
    factory = uvloop.new_event_loop if loop == "uvloop" else asyncio.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(coroutine)


async def read_body(receive: Any) -> bytes:
    body = b""
    while True:
        message = await receive()
        assert message["type"] == "http.request", message
        body += message["body"]
        if not message["more_body"]:
            return body


def responding(body: bytes = b"ok", *, status: int = 200, headers: Any = ()):
    """Return an application that reads the body and answers."""

    async def app(scope, receive, send):
        await read_body(receive)
        await send({"type": "http.response.start", "status": status, "headers": list(headers)})
        await send({"type": "http.response.body", "body": body})

    return app
