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


# -- each bound is exact, and has its own status ---------------------------------------------------------------------

H = b"Host: a\r\n"
BOUNDS = Limits(request_line=100, fields=5, head=1024, body_size=100, chunk_framing=50, trailers=64, pipelined=100)


def line_of(size):
    return b"GET /".ljust(size - 9, b"a") + b" HTTP/1.1\r\n" + H + b"\r\n"


def head_of(size):
    head = b"GET / HTTP/1.1\r\n" + H + b"A: \r\n\r\n"
    return head.replace(b"A: ", b"A: " + b"b" * (size - len(head)))


def chunks(data):
    return b"POST / HTTP/1.1\r\n" + H + b"Transfer-Encoding: chunked\r\n\r\n" + data


EXACT = {
    "request line": (line_of, 100, 414),
    "fields": (lambda count: b"GET / HTTP/1.1\r\n" + H + b"A: b\r\n" * (count - 1) + b"\r\n", 5, 431),
    "head": (head_of, 1024, 431),
    "body": (lambda size: b"POST / HTTP/1.1\r\n" + H + b"Content-Length: %d\r\n\r\n" % size + b"x" * size, 100, 413),
    "body in chunks": (lambda size: chunks(b"1\r\nx\r\n" * size + b"0\r\n\r\n"), 100, 413),
    "chunk framing": (lambda size: chunks(b"1;" + b"a" * (size - 4) + b"\r\nx\r\n0\r\n\r\n"), 50 + 32, 413),
    "chunk framing, summed": (lambda size: chunks((b"1;" + b"a" * 39 + b"\r\nx\r\n") * size + b"0\r\n\r\n"), 4, 413),
    "trailers": (lambda size: chunks(b"0\r\nA: " + b"b" * (size - 7) + b"\r\n\r\n"), 64, 431),
}


@pytest.mark.parametrize("what", EXACT)
def test_what_is_as_large_as_it_may_be_is_served_and_one_more_is_refused_with_its_status(codec, what):
    make, most, status = EXACT[what]

    async def main():
        async with serving(responding(), codec, limits=BOUNDS) as server:
            client = await server.connect()
            client.send(make(most))
            assert (await client.reply()).status == 200
            client.send(make(most + 1))
            reply = await client.reply()
            assert (reply.status, reply.header("connection")) == (status, "close")
            assert await client.rest() == b""

    run(main())


def test_a_body_left_unread_keeps_the_connection_up_to_the_bound(codec):
    async def app(scope, receive, send):
        await send(START)
        await send({"type": "http.response.body", "body": b""})

    async def main():
        async with serving(app, codec, limits=Limits(discard=10)) as server:
            client = await server.connect()
            for size, last in ((10, None), (11, "close")):
                client.send(b"POST / HTTP/1.1\r\n" + H + b"Content-Length: %d\r\n\r\n" % size)
                assert (await client.reply()).header("connection") == last
                client.send(b"x" * size)
            assert await client.rest() == b""

    run(main())


def test_chunks_left_unread_end_the_connection_beyond_the_bound_and_are_never_a_request(codec):
    async def app(scope, receive, send):
        await send(START)
        await send({"type": "http.response.body", "body": b""})

    async def main(size):
        async with serving(app, codec, limits=Limits(discard=1000)) as server:
            client = await server.connect()
            client.send(chunks(b""))
            assert (await client.reply()).status == 200
            inside = (GET * 50)[:size]
            client.send(b"%x\r\n%b\r\n0\r\n\r\n" % (size, inside) + GET)
            client.shut()
            return (await client.rest()).count(b"HTTP/1.1 200 ")

    assert (run(main(1000)), run(main(1001))) == (1, 0)


@pytest.mark.parametrize("bound", [0, 1, 100])
def test_pipelined_requests_are_all_answered_however_few_of_them_are_kept(codec, bound):
    async def main():
        async with serving(responding(), codec, limits=Limits(pipelined=bound)) as server:
            client = await server.connect()
            client.send(GET * 500)
            for _ in range(500):
                assert (await client.reply()).status == 200
            client.send(chunks(b"1\r\nx\r\n0\r\n\r\n") * 20)
            for _ in range(20):
                assert (await client.reply()).status == 200

    run(main())


def test_each_bound_is_a_setting():
    from procmgr.config.limits import LimitSettings
    from procmgr.config.settings import HTTPSettings
    from procmgr.worker.server import _limits

    names = {
        "limit_request_line": "request_line",
        "limit_request_fields": "fields",
        "limit_request_head": "head",
        "limit_request_body": "body_size",
        "limit_chunk_framing": "chunk_framing",
        "limit_request_trailers": "trailers",
        "limit_unread_body": "discard",
        "limit_pipelined": "pipelined",
        "limit_connections": "connections",
        "timeout_request_head": "head_time",
        "timeout_request": "request_time",
        "min_transfer_rate": "rate",
    }
    values = {name: 2000 + number for number, name in enumerate(names)}
    limits = _limits(HTTPSettings(limit_concurrency=7), LimitSettings(**values))
    assert {name: getattr(limits, field) for name, field in names.items()} == values
    assert limits.concurrency == 7
    defaults = _limits(HTTPSettings(), LimitSettings())
    assert defaults == Limits(), "what is the default of a setting is that of a worker"
