"""Limits that are off unless asked for: connections of a worker, the time of a request, names with underscores."""

from __future__ import annotations

import asyncio
import logging
import socket
from contextlib import ExitStack

import pytest
from support.wire import read_body, responding, run, serving

from procmgr.sockets import TCP, Listener, bind
from procmgr.worker.acceptor import Acceptor, Room
from procmgr.worker.protocols.base import http_factory
from procmgr.worker.protocols.context import Context, Limits

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
START = {"type": "http.response.start", "status": 200}


@pytest.fixture(params=["httptools", "h11"])
def codec(request):
    return request.param


# -- connections -----------------------------------------------------------------------------------------------------


async def turns(loop, count=50):
    for _ in range(count):
        await asyncio.sleep(0)


@pytest.mark.parametrize("alone", [True, False])
def test_no_more_connections_than_the_limit_and_each_that_goes_makes_room_for_one(alone):
    async def main():
        from procmgr.scoreboard import detached_row

        loop = asyncio.get_running_loop()
        limits, log = Limits(connections=2), logging.getLogger("procmgr.error")
        context = Context(app=responding(), loop=loop, row=detached_row(), error_log=log, limits=limits)
        listener = bind(TCP("127.0.0.1", 0), backlog=16)
        held = Listener(sock=listener.sock.dup(), address=listener.address, requested=None, origin=listener.origin)
        factory = http_factory(context, "httptools")
        acceptor = Acceptor(loop=loop, listener=held, factory=factory, log=log, alone=alone, room=Room(context))
        acceptor.start()
        with ExitStack() as stack:
            clients = [
                stack.enter_context(socket.create_connection(("127.0.0.1", listener.address.port))) for _ in range(5)
            ]
            for client in clients:
                client.setblocking(False)
                client.send(GET)
            async with asyncio.timeout(10):
                answered = set()
                while clients:
                    while len(answered) < min(2, len(clients)):
                        for client in clients:
                            try:
                                if client.recv(1000).startswith(b"HTTP/1.1 200"):
                                    answered.add(client)
                            except BlockingIOError:
                                pass
                        await asyncio.sleep(0)
                    await turns(loop)
                    assert len(context.connections) <= 2
                    gone = answered.pop()
                    clients.remove(gone)
                    gone.close()
        acceptor.close()
        listener.sock.close()
        context.abort_connections()
        await turns(loop)

    run(main())


# -- the time of a request -------------------------------------------------------------------------------------------


async def late(app, codec, request, time=5.0):
    """Return the reply to `request`, how the application ended, and what was logged, when its time is over."""
    entered, ended = [], []

    async def watched(scope, receive, send):
        entered.append(True)
        try:
            await app(scope, receive, send)
        except BaseException as error:
            ended.append(type(error).__name__)
            raise

    async with serving(watched, codec, limits=Limits(request_time=time)) as server:
        client = await server.connect()
        client.send(request)
        await server.until(lambda: entered)
        server.context.sweep(server.context.now + time - 1)
        assert server.context.active == 1
        server.context.sweep(server.context.now + 2.5)
        data = await client.rest()
        await server.until(lambda: not server.context.active)
        return data, ended, server.records.lines


def test_an_application_that_takes_too_long_is_cancelled_and_answered_for_with_503(codec):
    async def app(scope, receive, send):
        await asyncio.Event().wait()

    data, ended, lines = run(late(app, codec, GET))
    assert data.startswith(b"HTTP/1.1 503 ")
    assert b"the response took too long" in data
    assert ended == ["CancelledError"]
    assert len(lines) == 1


def test_a_body_that_takes_too_long_is_a_408(codec):
    async def app(scope, receive, send):
        await read_body(receive)

    request = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nx"
    data, _, _ = run(late(app, codec, request))
    assert data.startswith(b"HTTP/1.1 408 ")


def test_a_response_that_has_begun_is_cut(codec):
    async def app(scope, receive, send):
        await send(START)
        await send({"type": "http.response.body", "body": b"abc", "more_body": True})
        await asyncio.Event().wait()

    data, ended, lines = run(late(app, codec, GET))
    assert data.startswith(b"HTTP/1.1 200 ")
    assert data.endswith(b"3\r\nabc\r\n")
    assert ended == ["CancelledError"]
    assert [line.partition(": ")[2] for line in lines] == ["cut, the response took too long: 'GET / HTTP/1.1'"]


def test_the_time_counts_for_each_request_anew_and_not_between_them(codec):
    async def main():
        async with serving(responding(), codec, limits=Limits(request_time=5.0), keep_alive=60.0) as server:
            client = await server.connect()
            for _ in range(3):
                client.send(GET)
                assert (await client.reply()).status == 200
                server.context.sweep(server.context.now + 4)

    run(main())


# -- underscores -----------------------------------------------------------------------------------------------------

UNDERSCORED = (
    b"GET / HTTP/1.1\r\nHost: a\r\nX_Forwarded_For: 1\r\nCONTENT_LENGTH: 5\r\nTransfer_Encoding: chunked\r\n"
    b"my_field: 1\r\nMy-Field: 2\r\nCookie: a_b=c\r\n\r\n"
)


KEPT = {True: [b"host", b"my_field", b"my-field", b"cookie"], False: [b"host", b"my-field", b"cookie"]}


@pytest.mark.parametrize("underscores", [True, False])
def test_names_with_underscores_pass_unless_they_could_be_taken_for_one_that_is_believed(codec, underscores):
    seen = []

    async def app(scope, receive, send):
        seen.append([name for name, _ in scope["headers"]])
        await responding()(scope, receive, send)

    async def main():
        async with serving(app, codec, limits=Limits(underscores=underscores)) as server:
            client = await server.connect()
            for _ in range(2):  # the second is known by its bytes
                client.send(UNDERSCORED)
                assert (await client.reply()).status == 200

    run(main())
    assert seen == [KEPT[underscores]] * 2
