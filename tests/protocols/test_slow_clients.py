"""A client that is slow on purpose is cut off in bounded time, and one that is slow by nature is served."""

from __future__ import annotations

import asyncio
import socket

import pytest
from support.wire import read_body, responding, run, serving

from procmgr.worker.protocols.base import Limits
from procmgr.worker.protocols.context import DrainMode

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n"


@pytest.fixture(params=["httptools", "h11"])
def codec(request):
    return request.param


async def echo(receive, send):
    body = await read_body(receive)
    await send({"type": "http.response.start", "status": 200})
    await send({"type": "http.response.body", "body": body})


def pass_time(server, seconds):
    """Let the worker's coarse clock go on second by second."""
    begin = server.context.now
    for second in range(1, seconds + 1):
        server.context.sweep(begin + second)


def test_a_connection_that_says_nothing_is_closed_without_a_word(codec):
    async def main():
        async with serving(responding(), codec) as server:
            client = await server.connect()
            connection = await server.connection()
            pass_time(server, 9)
            assert connection.is_open()
            pass_time(server, 3)
            assert await client.rest() == b""

    run(main())


def test_half_a_head_is_answered_with_408_however_it_trickles(codec):
    async def main():
        async with serving(responding(), codec) as server:
            client = await server.connect()
            connection = await server.connection()
            for byte in b"GET / HTTP":
                client.send(bytes([byte]))
                left = len(connection._pending)
                await server.until(lambda left=left: len(connection._pending) > left)
                pass_time(server, 1)
            pass_time(server, 2)
            reply = await client.reply()
            assert (reply.status, reply.header("connection")) == (408, "close")
            assert await client.rest() == b""

    run(main())


def test_the_next_head_has_its_own_time_from_its_first_byte(codec):
    async def main():
        async with serving(responding(), codec, keep_alive=100.0) as server:
            client = await server.connect()
            client.send(GET)
            await client.reply()
            connection = await server.connection()
            pass_time(server, 50)
            client.send(GET[:5])
            await server.until(lambda: len(connection._pending) == 5)
            pass_time(server, 9)
            assert connection.is_open()
            client.send(GET[5:])
            assert (await client.reply()).status == 200
            client.send(GET[:5])
            await server.until(lambda: len(connection._pending) == 5)
            pass_time(server, 12)
            assert (await client.reply()).status == 408

    run(main())


def test_a_body_that_trickles_is_408_once_the_application_waits_for_it(codec):
    lost = []

    async def app(scope, receive, send):
        while (message := await receive())["type"] == "http.request":
            pass
        lost.append(message["type"])

    async def main():
        async with serving(app, codec) as server:
            client = await server.connect()
            connection = await server.connection()
            client.send(POST % 1000)
            for number in range(25):
                client.send(b"x")
                await server.until(lambda number=number: connection._body_total == number + 1)
                if not connection.is_open():
                    break
                pass_time(server, 1)
                if not connection.is_open():
                    break
            assert (await client.reply()).status == 408
            await server.until(lambda: not server.context.active)
            assert lost == ["http.disconnect"]

    run(main())


def test_a_body_the_application_does_not_ask_for_may_take_its_time(codec):
    asked = asyncio.Event()

    async def app(scope, receive, send):
        await asked.wait()
        await echo(receive, send)

    async def main():
        async with serving(app, codec) as server:
            client = await server.connect()
            connection = await server.connection()
            client.send(POST % 3 + b"a")
            await server.until(lambda: connection._body_total == 1)
            pass_time(server, 60)
            client.send(b"bc")
            asked.set()
            assert (await client.reply()).body == b"abc"

    run(main())


def test_a_response_that_nobody_takes_ends_and_so_does_its_application(codec):
    ended = []

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200})
        try:
            while True:
                await send({"type": "http.response.body", "body": bytes(1 << 20), "more_body": True})
        except OSError:
            ended.append(True)

    async def main():
        async with serving(app, codec) as server:
            client = await server.connect()
            client.writer.transport.pause_reading()
            client.send(GET)
            connection = await server.connection()
            await server.until(lambda: connection.write_paused)
            pass_time(server, 45)
            await server.until(lambda: not server.context.active)
            assert ended

    run(main())


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_response_that_is_taken_steadily_goes_on_though_the_kernel_asks_for_more_in_lumps(codec, loop):
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200})
        while True:
            await send({"type": "http.response.body", "body": bytes(1 << 16), "more_body": True})

    async def main():
        async with serving(app, codec) as server:
            with socket.socket() as client:
                client.setblocking(False)
                running = asyncio.get_running_loop()
                await running.sock_connect(client, server.path)
                await running.sock_sendall(client, GET)
                connection = await server.connection()
                await server.until(lambda: connection.write_paused)
                for _ in range(12):
                    pass_time(server, 5)
                    assert connection.is_open()
                    assert not connection.transport.is_closing()
                    for _ in range(4):
                        assert await running.sock_recv(client, 1 << 14)

    run(main(), loop)


@pytest.mark.parametrize("rest", [b"", GET[:5]], ids=["idle", "half a head"])
def test_time_in_which_the_loop_was_blocked_does_not_count_against_who_could_not_be_read(codec, rest):
    async def main():
        async with serving(responding(), codec) as server:
            client = await server.connect()
            connection = await server.connection()
            client.send(GET)
            await client.reply()
            client.send(rest)
            await server.until(lambda: len(connection._pending) == len(rest))
            server.context.sweep(server.context.now + 60)
            client.send(GET[len(rest) :])
            assert (await client.reply()).status == 200
            pass_time(server, 12)
            assert not connection.is_open()
            assert await client.rest() == b""

    run(main())


@pytest.mark.parametrize("mode", [DrainMode.RETIRE, DrainMode.STOP])
def test_half_a_head_is_answered_with_408_during_a_drain_after_the_keep_alive_time(codec, mode):
    async def main():
        async with serving(responding(), codec, keep_alive=3.0) as server:
            client = await server.connect()
            connection = await server.connection()
            client.send(GET[:5])
            await server.until(lambda: len(connection._pending) == 5)
            server.context.begin_drain(mode)
            pass_time(server, 2)
            assert connection.is_open()
            pass_time(server, 4)
            reply = await client.reply()
            assert (reply.status, reply.header("connection")) == (408, "close")
            assert await client.rest() == b""

    run(main())


def test_without_limits_nothing_is_cut_off(codec):
    async def main():
        async with serving(responding(), codec, limits=Limits(head_time=0, rate=0)) as server:
            client = await server.connect()
            connection = await server.connection()
            client.send(GET[:5])
            await server.until(lambda: len(connection._pending) == 5)
            pass_time(server, 1000)
            client.send(GET[5:])
            assert (await client.reply()).status == 200

    run(main())


@pytest.mark.parametrize("framing", [b"Content-Length: 11", b"Transfer-Encoding: chunked"])
def test_a_body_over_the_limit_is_413(codec, framing):
    async def app(scope, receive, send):
        await echo(receive, send)

    async def main():
        async with serving(app, codec, limits=Limits(body_size=10)) as server:
            client = await server.connect()
            client.send(POST % 10 + b"0123456789")
            assert (await client.reply()).body == b"0123456789"
            client.send(b"POST / HTTP/1.1\r\nHost: a\r\n" + framing + b"\r\n\r\n")
            if b"chunked" in framing:
                client.send(b"6\r\nabcdef\r\n5\r\nabcde\r\n0\r\n\r\n")
            reply = await client.reply()
            assert (reply.status, reply.header("connection")) == (413, "close")

    run(main())
