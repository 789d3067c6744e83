"""TLS over real sockets on both loops: nothing that was written is lost, nobody is waited for without end."""

from __future__ import annotations

import asyncio
import socket
import ssl

import pytest
import uvloop
from support.tls import Authority

from procmgr.config.resolve import build
from procmgr.logs import LineWriter, LogSetup
from procmgr.scoreboard import TLS_FAILED, detached_row
from procmgr.sockets import TCP, bind
from procmgr.tls import Contexts, Material, Options, Pair
from procmgr.worker import drain
from procmgr.worker.protocols import base, secure
from procmgr.worker.server import Server

PATIENCE = 30.0
BIG = bytes(range(256)) * 40_000  # more than any buffer on the way


@pytest.fixture(params=["uvloop", "asyncio"])
def runner(request):
    """Run a coroutine; whatever reaches the loop's exception handler fails the test."""
    factory = uvloop.new_event_loop if request.param == "uvloop" else asyncio.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        seen = []
        runner.get_loop().set_exception_handler(lambda _, context: seen.append(context))
        yield lambda coroutine: runner.run(asyncio.wait_for(coroutine, PATIENCE))
        assert seen == []


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def front(authority):
    files = authority.write("site", authority.issue("a.test"))
    options = Options(pairs=(Pair(files.certificate, files.key),))
    material = Material.read(options.pairs, None)
    contexts = Contexts(options, material)
    material.close()
    return contexts.front


class Worker:
    """A worker's server without its process, over TLS."""

    def __init__(self, app, front, **values):
        self.listener = bind(TCP("127.0.0.1", 0), backlog=128)
        self.port = self.listener.address.port
        self.row = detached_row()
        self.server = Server(
            app=app,
            settings=build({"app": "test:app", "lifespan": "off", **values}),
            listeners=[self.listener],
            row=self.row,
            logs=LogSetup(access=None, access_via_logging=False, access_colors=False, error_writer=LineWriter(2)),
            on_request_limit=print,
            tls=front,
        )

    async def __aenter__(self):
        await self.server.start()
        self.life = asyncio.create_task(self.server.serve_until_drained())
        return self

    async def __aexit__(self, *_):
        self.stop()
        await self.life

    def stop(self, mode="quick", seconds=5.0):
        loop = asyncio.get_running_loop()
        self.server.request_drain(mode, loop.time() + seconds)

    async def connect(self, authority, version=None):
        client = authority.client(version=version)
        return await asyncio.open_connection("127.0.0.1", self.port, ssl=client, server_hostname="a.test")


class Mute:
    """A client that does the handshake, sends a request, reads when told and never answers a close."""

    def __init__(self, port, authority):
        self.sock = socket.create_connection(("127.0.0.1", port))
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * 1024)
        self.sock.setblocking(False)
        self.read, self.write = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = authority.client().wrap_bio(self.read, self.write, server_hostname="a.test")

    async def pump(self):
        """Read what there is from the socket; False at its end."""
        data = await asyncio.get_running_loop().sock_recv(self.sock, 65536)
        self.read.write(data)
        return bool(data)

    async def flush(self):
        await asyncio.get_running_loop().sock_sendall(self.sock, self.write.read())

    async def handshake(self):
        while True:
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                await self.flush()
                await self.pump()
            else:
                await self.flush()
                return

    async def send(self, data):
        self.tls.write(data)
        await self.flush()

    async def rest(self):
        """Return everything up to the server's close_notify."""
        found = bytearray()
        while True:
            try:
                if not (data := self.tls.read(65536)):
                    return bytes(found)
                found += data
            except ssl.SSLWantReadError:
                assert await self.pump(), "the connection ended without close_notify"
            except ssl.SSLZeroReturnError:
                return bytes(found)

    def close(self):
        self.sock.close()


def answering(body=b"ok", *, headers=None, read=False):
    async def app(scope, receive, send):
        if read:
            seen = b""
            while (message := await receive())["type"] == "http.request":
                seen += message["body"]
                if not message["more_body"]:
                    break
        fields = [(b"content-length", str(len(body)).encode())] if headers is None else headers
        await send({"type": "http.response.start", "status": 200, "headers": fields})
        await send({"type": "http.response.body", "body": seen if body is None else body})

    return app


def request(*, length=0, more=b"", version=b"1.1"):
    return b"POST / HTTP/%b\r\nHost: a.test\r\n%bContent-Length: %d\r\n\r\n" % (version, more, length)


@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
def test_a_client_that_still_sends_gets_the_whole_response(runner, authority, front, version):
    """The application answers without reading; its client notices only when it has sent all it has."""

    async def main():
        async with Worker(answering(BIG), front) as worker:
            reader, writer = await worker.connect(authority, version)
            writer.write(request(length=4_000_000) + bytes(1_000_000))
            head = await reader.readuntil(b"\r\n\r\n")
            assert b"connection: close" in head
            for _ in range(10):
                writer.write(bytes(100_000))
                await asyncio.sleep(0.01)
            assert await reader.readexactly(len(BIG)) == BIG
            writer.close()

    runner(main())


def test_what_ends_with_the_connection_ends_with_close_notify(runner, authority, front):
    async def main():
        async with Worker(answering(BIG, headers=[]), front) as worker:
            client = Mute(worker.port, authority)
            await client.handshake()
            await client.send(b"GET / HTTP/1.0\r\nHost: a.test\r\n\r\n")
            assert (await client.rest()).endswith(BIG)
            client.close()

    runner(main())


def test_a_slow_reader_gets_all_of_a_response_that_closes(runner, authority, front, monkeypatch):
    monkeypatch.setattr(base, "LINGER", 0.02)
    monkeypatch.setattr(secure, "LINGER", 0.02)

    async def main():
        async with Worker(answering(BIG, headers=[]), front) as worker:
            client = Mute(worker.port, authority)
            await client.handshake()
            await client.send(request(more=b"Connection: close\r\n"))
            for _ in range(10):
                await asyncio.sleep(0.05)
                await client.pump()
            assert BIG[-1000:] in await client.rest()
            client.close()

    runner(main())


def test_a_peer_that_does_not_answer_a_close_is_let_go_of(runner, authority, front, monkeypatch):
    monkeypatch.setattr(base, "LINGER", 0.05)
    monkeypatch.setattr(secure, "LINGER", 0.05)

    async def main():
        async with Worker(answering(), front) as worker:
            client = Mute(worker.port, authority)
            await client.handshake()
            await client.send(request(more=b"Connection: close\r\n"))
            assert (await client.rest()).endswith(b"ok")
            assert not await client.pump(), "the server closes, although no close_notify came back"
            client.close()

    runner(main())


def test_idle_connections_whose_clients_sleep_do_not_hold_a_stop_up(runner, authority, front):
    async def main():
        async with Worker(answering(), front) as worker:
            client = Mute(worker.port, authority)
            await client.handshake()
            await client.send(request())
            await client.pump()
            worker.stop("stop", 1000.0)
            await worker.life
            client.close()

    runner(main())


def test_a_stop_gives_handshakes_a_moment_and_no_more(runner, authority, front, monkeypatch):
    monkeypatch.setattr(drain, "HANDSHAKES", 0.05)

    async def main():
        async with Worker(answering(), front, ssl_handshake_timeout=1000.0) as worker:
            silent = socket.create_connection(("127.0.0.1", worker.port))
            reader, writer = await worker.connect(authority)
            worker.stop("stop", 1000.0)
            await worker.life
            silent.close()
            writer.close()
            await reader.read()

    runner(main())


def test_a_connection_accepted_before_a_stop_gets_through_its_handshake_and_is_answered(runner, authority, front):
    async def main():
        async with Worker(answering(), front) as worker:
            client = Mute(worker.port, authority)
            worker.stop("stop", 20.0)  # it is in the queue, or in its handshake
            await client.handshake()
            await client.send(request())
            assert (await client.rest()).endswith(b"ok")
            client.close()

    runner(main())


def test_handshakes_that_fail_are_counted_and_end_there(runner, authority, front):
    async def main():
        async with Worker(answering(), front, ssl_handshake_timeout=0.1) as worker:
            reader, writer = await asyncio.open_connection("127.0.0.1", worker.port)
            writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            await reader.read()
            writer.close()
            reader, writer = await asyncio.open_connection("127.0.0.1", worker.port)
            assert await reader.read() == b"", "the time-out"
            writer.close()
            with pytest.raises((ssl.SSLError, ConnectionError)):
                await asyncio.open_connection("127.0.0.1", worker.port, ssl=ssl.create_default_context())
            while worker.row[TLS_FAILED] < 3:
                await asyncio.sleep(0.01)
            reader, writer = await worker.connect(authority)
            writer.write(request())
            assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200")
            writer.close()

    runner(main())


def test_connections_that_share_a_buffer_do_not_mix_what_they_get(runner, authority, front):
    async def one(worker, number):
        body = bytes([number]) * 300_000
        reader, writer = await worker.connect(authority)
        writer.write(request(length=len(body)))
        for place in range(0, len(body), 10_000):
            writer.write(body[place : place + 10_000])
            await asyncio.sleep(0)
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200")
        assert await reader.readexactly(len(body)) == body
        writer.close()

    async def main():
        async with Worker(answering(None, headers=[(b"content-length", b"300000")], read=True), front) as worker:
            await asyncio.gather(*(one(worker, number) for number in range(8)))

    runner(main())


def test_a_client_that_closes_while_its_request_runs_is_noticed(runner, authority, front):
    left = asyncio.Event()

    async def app(scope, receive, send):
        await receive()
        assert (await receive())["type"] == "http.disconnect"
        left.set()

    async def main():
        async with Worker(app, front) as worker:
            _, writer = await worker.connect(authority)
            writer.write(request())
            await writer.drain()
            writer.close()
            await left.wait()

    runner(main())


@pytest.mark.parametrize("close", ["client", "application"])
def test_websockets_are_spoken_over_tls_and_know_of_it(runner, authority, front, close):
    import websockets.asyncio.client as websockets

    async def app(scope, receive, send):
        assert (scope["type"], scope["scheme"]) == ("websocket", "wss")
        assert scope["extensions"]["tls"]["tls_version"] == 0x0304
        await receive()
        await send({"type": "websocket.accept"})
        message = await receive()
        await send({"type": "websocket.send", "bytes": message["bytes"]})
        if close == "client":
            assert (await receive())["code"] == 1000

    async def main():
        async with Worker(app, front) as worker:
            url = f"wss://a.test:{worker.port}/"
            client = websockets.connect(url, host="127.0.0.1", ssl=authority.client(), max_size=None, proxy=None)
            async with client as connection:
                await connection.send(BIG)
                assert await connection.recv() == BIG
                if close == "application":
                    await connection.wait_closed()
            assert connection.close_code == 1000

    runner(main())
