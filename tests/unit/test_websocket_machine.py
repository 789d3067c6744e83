"""The WebSocket machine without a wire: what an application may send when, what it is told, and how it can fail."""

from __future__ import annotations

import asyncio
import logging
from types import SimpleNamespace

import pytest

from procmgr.errors import ClientDisconnected
from procmgr.scoreboard import APP_ERRORS, detached_row
from procmgr.worker.protocols.framing import Request
from procmgr.worker.protocols.handshake import Handshake
from procmgr.worker.protocols.response import FieldEncoder
from procmgr.worker.protocols.websocket import QUEUE_BYTES, WebSocketCycle

ACCEPT = {"type": "websocket.accept"}
CLOSE = {"type": "websocket.close"}
DISCONNECTED = {"type": "websocket.disconnect", "code": 1006, "reason": ""}


class Bench:
    """A cycle between an application and a wire that only takes notes."""

    def __init__(self, *, max_queue=2):
        self.notes = []
        self.lines = []
        log = logging.Logger("test")  # noqa: LOG001 - of no other test's concern
        log.addHandler(handler := logging.Handler())
        handler.emit = lambda record: self.lines.append(record.getMessage())
        self.context = SimpleNamespace(
            loop=asyncio.get_running_loop(),
            row=detached_row(),
            error_log=log,
            aborting=False,
            head=(b"date: now\r\n",) * 4,
            ended=lambda task, record: self.notes.append("over"),
        )
        self.fields = FieldEncoder()
        self.write_paused = False
        self.writable = asyncio.Event()
        request = Request()
        request.method, request.target, request.expect = b"GET", b"/", False
        handshake = Handshake(lines=b"upgrade: websocket\r\n", subprotocols=("a", "b"), deflate=None)
        self.cycle = WebSocketCycle(self, request, handshake=handshake, max_queue=max_queue, accept=self.accept)
        self.cycle.record = -1

    async def run(self, app):
        scope = {"type": "http", "method": "GET", "scheme": "http", "client": ("a", 1)}
        scope["extensions"] = {"http.response.x": {}, "procmgr": 1}
        await self.cycle.run(app, scope)
        return self.notes

    # the wire

    def respond(self, cycle, body, more):
        self.notes.append((cycle.status, body, more))

    def write_body(self, body, *, more):
        self.notes.append((body, more))

    def completed(self, cycle):
        self.notes.append("completed")

    def failed(self, cycle, *, answer):
        self.notes.append(("failed", cycle.status, answer))

    def describe(self, request):
        return "GET / from a test"

    # the socket

    def accept(self, cycle, lines):
        self.notes.append(lines)
        return self

    def send_text(self, text):
        self.notes.append(text)

    def send_binary(self, data):
        self.notes.append(data)

    def shut(self, code, reason):
        self.notes.append(("shut", code, reason))

    def taken(self):
        self.notes.append("taken")

    async def drain_writes(self):
        await self.writable.wait()


def with_bench(test, **options):
    async def main():
        async with asyncio.timeout(10):
            return await test(Bench(**options))

    return asyncio.run(main())


def ran(app):
    """Return what an application left on the wire, and in the log."""

    async def test(bench):
        return await bench.run(app), bench.lines

    return with_bench(test)


def sending(*messages):
    async def app(scope, receive, send):
        for message in messages:
            await send(message)

    return app


ACCEPTED = b"upgrade: websocket\r\ndate: now\r\n"


def test_the_scope_is_a_websockets():
    async def app(scope, receive, send):
        assert (scope["type"], scope["scheme"], scope["subprotocols"]) == ("websocket", "ws", ["a", "b"])
        assert scope["extensions"] == {"procmgr": 1, "websocket.http.response": {}}
        assert "method" not in scope
        await send(CLOSE)

    assert ran(app) == ([(403, b"", False), "completed", "over"], [])


def test_messages_go_out_in_order_and_a_return_closes_with_1000():
    app = sending(ACCEPT, *({"type": "websocket.send", **each} for each in (
        {"text": "a"}, {"bytes": b"b"}, {"bytes": None, "text": "c"}, {"bytes": memoryview(b"d"), "text": None}
    )))  # fmt: skip
    assert ran(app) == ([ACCEPTED, "a", b"b", "c", b"d", ("shut", 1000, ""), "over"], [])


def test_the_subprotocol_and_headers_of_the_application_are_sent():
    app = sending({**ACCEPT, "subprotocol": "b", "headers": [[b"x-a", b"1"], (b"content-length", b"3")]})
    lines = b"upgrade: websocket\r\nsec-websocket-protocol: b\r\ndate: now\r\nx-a: 1\r\n"
    assert ran(app) == ([lines, ("shut", 1000, ""), "over"], [])


@pytest.mark.parametrize(
    "wrong",
    [
        {"subprotocol": "c"},
        {"subprotocol": "a\r\nx: y"},
        {"headers": [(b"Sec-WebSocket-Protocol", b"a")]},
        {"headers": [(b"sec-websocket-accept", b"a")]},
        {"headers": [(b"Upgrade", b"h2c")]},
        {"headers": [("x", b"a")]},
        {"headers": [(b"x", b"a\r\nb: c")]},
    ],
)
def test_a_wrong_accept_is_a_500(wrong):
    notes, lines = ran(sending({**ACCEPT, **wrong}))
    assert notes == [("failed", 500, True), "over"]
    assert lines == ["GET / from a test: the application raised"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"type": "websocket.send"},
        {"type": "websocket.send", "text": b"a"},
        {"type": "websocket.send", "bytes": "a"},
        {"type": "websocket.accept"},
        {"type": "websocket.http.response.start", "status": 403},
        {"type": "http.response.start", "status": 200},
        {"type": "websocket.close", "code": 1005},
        {"type": "websocket.close", "code": 1006},
        {"type": "websocket.close", "code": 999},
        {"type": "websocket.close", "code": 2000},
        {"type": "websocket.close", "code": 5000},
        {"type": "websocket.close", "code": "1000"},
        {"type": "websocket.close", "reason": b"a"},
        {"text": "a"},
    ],
)
def test_a_wrong_message_on_an_open_websocket_closes_it_with_1011(wrong):
    notes, lines = ran(sending(ACCEPT, wrong))
    assert notes == [ACCEPTED, ("shut", 1011, ""), "over"]
    assert lines == ["GET / from a test: the application raised"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"type": "websocket.send", "text": "a"},
        {"type": "websocket.http.response.body"},
        {"type": "http.response.start", "status": 200},
        {"type": "websocket.http.response.start", "status": 101},
        {"type": 1},
    ],
)
def test_a_wrong_message_before_the_accept_is_a_500(wrong):
    notes, lines = ran(sending(wrong))
    assert notes == [("failed", 500, True), "over"]
    assert lines == ["GET / from a test: the application raised"]


def test_a_denial_is_a_response_of_the_applications():
    app = sending(
        {"type": "websocket.http.response.start", "status": 401, "headers": [(b"x", b"y")]},
        {"type": "websocket.http.response.body", "body": b"a", "more_body": True},
        {"type": "websocket.http.response.body", "body": b"b"},
    )
    assert ran(app) == ([(401, b"a", True), (b"b", False), "completed", "over"], [])


def test_an_accept_after_a_denial_began_is_a_mistake():
    start = {"type": "websocket.http.response.start", "status": 401}
    notes, lines = ran(sending(start, ACCEPT))
    assert (notes, len(lines)) == ([("failed", 500, True), "over"], 1)


def test_what_comes_after_a_denial_is_ignored_and_logged_once():
    notes, lines = ran(sending(CLOSE, ACCEPT, CLOSE))
    assert notes == [(403, b"", False), "completed", "over"]
    assert lines == ["GET / from a test: 'websocket.accept' after the response was complete, ignored"]


def test_a_return_before_the_accept_is_a_500():
    assert ran(sending()) == (
        [("failed", 500, True), "over"],
        ["GET / from a test: the application returned without a response"],
    )


def test_a_result_is_a_mistake():
    async def app(scope, receive, send):
        await send(ACCEPT)
        return 1

    notes, lines = ran(app)
    assert notes == [ACCEPTED, ("shut", 1011, ""), "over"]
    assert lines == ["GET / from a test: the application returned 1 instead of None"]


@pytest.mark.parametrize("error", [ValueError, SystemExit, KeyboardInterrupt, asyncio.CancelledError, GeneratorExit])
def test_whatever_the_application_raises_closes_with_1011_and_is_counted(error):
    async def app(scope, receive, send):
        await send(ACCEPT)
        raise error

    async def test(bench):
        assert await bench.run(app) == [ACCEPTED, ("shut", 1011, ""), "over"]
        assert bench.context.row[APP_ERRORS] == 1

    with_bench(test)


def test_one_that_is_cancelled_because_the_worker_ends_closes_with_1012():
    async def app(scope, receive, send):
        await send(ACCEPT)
        raise asyncio.CancelledError

    async def test(bench):
        bench.context.aborting = True
        assert await bench.run(app) == [ACCEPTED, ("shut", 1012, ""), "over"]
        assert bench.context.row[APP_ERRORS] == 0

    with_bench(test)


def test_one_that_swallows_its_cancellation_closes_with_1012_too():
    async def test(bench):
        bench.context.aborting = True
        assert await bench.run(sending(ACCEPT)) == [ACCEPTED, ("shut", 1012, ""), "over"]

    with_bench(test)


def test_connect_comes_once_then_messages_then_the_disconnect_for_ever():
    async def test(bench):
        async def app(scope, receive, send):
            assert await receive() == {"type": "websocket.connect"}
            await send(ACCEPT)
            bench.cycle.deliver("a")
            bench.cycle.deliver(b"b")
            bench.cycle.closed(3000, "bye")
            assert await receive() == {"type": "websocket.receive", "text": "a"}
            assert await receive() == {"type": "websocket.receive", "bytes": b"b"}
            for _ in range(2):
                assert await receive() == {"type": "websocket.disconnect", "code": 3000, "reason": "bye"}

        assert await bench.run(app) == [ACCEPTED, "taken", "taken", "over"]
        assert bench.lines == []

    with_bench(test)


def test_receive_waits_for_a_message():
    async def test(bench):
        async def app(scope, receive, send):
            await receive()
            await send(ACCEPT)
            task = asyncio.create_task(receive())
            await asyncio.sleep(0)
            assert not task.done()
            bench.cycle.deliver("a")
            assert (await task)["text"] == "a"

        await bench.run(app)
        assert bench.lines == []

    with_bench(test)


def test_send_after_the_end_raises_whichever_side_closed():
    async def test(bench):
        async def app(scope, receive, send):
            await send(ACCEPT)
            await send({**CLOSE, "code": 4000, "reason": "enough"})
            for message in ({"type": "websocket.send", "text": "a"}, CLOSE):
                with pytest.raises(ClientDisconnected):
                    await send(message)
            await receive()
            assert await receive() == {"type": "websocket.disconnect", "code": 4000, "reason": "enough"}
            await send(CLOSE)

        assert await bench.run(app) == [ACCEPTED, ("shut", 4000, "enough"), "over"]
        assert bench.lines == []  # which raised is no error of the application

    with_bench(test)


def test_a_send_that_waited_for_the_peer_raises_when_it_went_meanwhile():
    async def test(bench):
        async def app(scope, receive, send):
            await send(ACCEPT)
            bench.write_paused = True
            task = asyncio.create_task(send({"type": "websocket.send", "text": "a"}))
            await asyncio.sleep(0)
            assert not task.done()
            bench.cycle.closed(1006, "")
            bench.writable.set()
            with pytest.raises(ClientDisconnected):
                await task

        assert await bench.run(app) == [ACCEPTED, "over"]

    with_bench(test)


def test_a_client_that_goes_before_the_accept_is_a_disconnect_and_no_error():
    async def test(bench):
        async def app(scope, receive, send):
            assert await receive() == {"type": "websocket.connect"}
            bench.cycle.client_lost()
            assert await receive() == DISCONNECTED
            await send(ACCEPT)

        assert await bench.run(app) == [("failed", 499, False), "over"]
        assert bench.lines == []

    with_bench(test)


def test_after_its_own_close_the_application_gets_no_more_messages():
    async def test(bench):
        async def app(scope, receive, send):
            await receive()
            await send(ACCEPT)
            bench.cycle.deliver("late")
            await send(CLOSE)
            assert (await receive())["type"] == "websocket.disconnect"

        await bench.run(app)
        assert bench.lines == []

    with_bench(test)


def test_the_queue_is_full_by_messages_and_by_bytes_and_empties_by_taking():
    async def test(bench):
        async def app(scope, receive, send):
            await receive()
            await send(ACCEPT)
            cycle = bench.cycle
            cycle.deliver("a")
            assert not cycle.full
            cycle.deliver("b")
            assert cycle.full
            await receive()
            assert not cycle.full
            await receive()
            cycle.deliver(bytes(QUEUE_BYTES))
            assert cycle.full
            await receive()
            assert not cycle.full
            cycle.deliver("\U0001f600" * (QUEUE_BYTES // 4))  # counted as the memory it takes
            assert cycle.full

        await bench.run(app)
        assert bench.lines == []

    with_bench(test)
