"""The application's side on real sockets: what it gets, what it may do, and every way to get it wrong."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from support.wire import read_body, responding, run, serving

from procmgr import scoreboard
from procmgr.errors import ClientDisconnected

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
START = {"type": "http.response.start", "status": 200, "headers": []}


@pytest.fixture(params=["httptools", "h11"])
def codec(request):
    return request.param


def start(*headers, status=200):
    return {"type": "http.response.start", "status": status, "headers": list(headers)}


def body(data=b"", *, more=False):
    return {"type": "http.response.body", "body": data, "more_body": more}


def sending(*messages, then=None, returning=None):
    async def app(scope, receive, send):
        for message in messages:
            await send(message)
        if then is not None:
            raise then
        return returning

    return app


LONG = (b"content-length", b"10")
BEFORE = {
    "raises at once": (sending(then=ValueError("boom")), "raised"),
    "raises after start": (sending(START, then=ValueError("boom")), "raised"),
    "raises SystemExit": (sending(then=SystemExit(3)), "raised"),
    "raises KeyboardInterrupt": (sending(START, then=KeyboardInterrupt()), "raised"),
    "raises CancelledError": (sending(then=asyncio.CancelledError()), "raised"),
    "raises GeneratorExit": (sending(then=GeneratorExit()), "raised"),
    "returns without a response": (sending(), "returned without a response"),
    "returns without a body": (sending(START), "returned without a body"),
    "sends body first": (sending(body(b"x")), "raised"),
    "starts twice": (sending(START, START), "raised"),
    "sends an unknown type": (sending({"type": "http.response.nonsense"}), "raised"),
    "sends no type": (sending({}), "raised"),
    "sends a WebSocket message": (sending({"type": "websocket.accept"}), "raised"),
    "header as str": (sending(start(("a", "b")), body()), "raised"),
    "header value as str": (sending(start((b"a", "b")), body()), "raised"),
    "header value as int": (sending(start((b"content-length", 3)), body(b"abc")), "raised"),
    "header as bytearray": (sending(start((bytearray(b"a"), b"b")), body()), "raised"),
    "headers that are no pairs": (sending({**START, "headers": [b"abc"]}), "raised"),
    "CR LF in a value": (sending(start((b"a", b"b\r\nc: d")), body()), "raised"),
    "NUL in a value": (sending(start((b"a", b"b\0")), body()), "raised"),
    "space in a name": (sending(start((b"a b", b"c")), body()), "raised"),
    "empty name": (sending(start((b"", b"c")), body()), "raised"),
    "content-length that is no number": (sending(start((b"content-length", b"x")), body()), "raised"),
    "content-length twice": (sending(start(LONG, LONG), body(b"x" * 10)), "raised"),
    "status as str": (sending({**START, "status": "200"}, body()), "raised"),
    "status 99": (sending({**START, "status": 99}, body()), "raised"),
    "status 100": (sending({**START, "status": 100}, body()), "raised"),
    "status 600": (sending({**START, "status": 600}, body()), "raised"),
    "no status": (sending({"type": "http.response.start"}, body()), "raised"),
    "body as str": (sending(START, body("x")), "raised"),
    "more body than it said": (sending(start(LONG), body(b"x" * 11)), "raised"),
    "less body than it said": (sending(start(LONG), body(b"x" * 9)), "raised"),
}


@pytest.mark.parametrize("name", BEFORE)
def test_what_goes_wrong_before_a_byte_is_sent_is_a_500_and_one_record(name, codec):
    app, problem = BEFORE[name]

    async def main():
        async with serving(app, codec) as server:
            client = await server.connect()
            client.send(GET)
            reply = await client.reply()
            assert (reply.status, reply.header("connection")) == (500, "close")
            assert reply.body == b"500 Internal Server Error\n"
            assert await client.rest() == b""
            (record,) = server.records.records
            assert "GET / from 127.0.0.1:" in record.getMessage()
            assert problem in record.getMessage()
            assert bool(record.exc_info) == (problem == "raised")
            row = server.context.row
            assert (row[scoreboard.APP_ERRORS], row[scoreboard.STATUS_5XX], row[scoreboard.ACTIVE]) == (1, 1, 0)

    run(main())


AFTER = {
    "raises": sending(START, body(b"x", more=True), then=ValueError("boom")),
    "returns": sending(START, body(b"x", more=True)),
    "starts again": sending(START, body(b"x", more=True), START),
    "sends too much": sending(start((b"content-length", b"2")), body(b"x", more=True), body(b"xx")),
    "sends too little": sending(start((b"content-length", b"3")), body(b"x", more=True), body(b"x")),
    "sends a str": sending(START, body(b"x", more=True), body("x")),
}


@pytest.mark.parametrize("name", AFTER)
def test_what_goes_wrong_after_that_closes_the_connection_short_of_its_end(name, codec):
    async def main():
        async with serving(AFTER[name], codec) as server:
            client = await server.connect()
            client.send(GET)
            reply = await client.reply()
            assert (reply.status, reply.body, reply.complete) == (200, b"x", False)
            assert len(server.records.records) == 1

    run(main())


def test_a_result_other_than_none_is_logged_and_harms_no_response(codec):
    async def main():
        async with serving(sending(START, body(b"x"), returning=1), codec) as server:
            client = await server.connect()
            for _ in range(2):
                client.send(GET)
                assert (await client.reply()).body == b"x"
            assert ["returned 1 instead of None" in line for line in server.records.lines] == [True, True]

    run(main())


def test_messages_after_the_end_are_ignored_and_logged_once(codec):
    async def main():
        async with serving(sending(START, body(b"x"), body(b"y"), body(b"z")), codec) as server:
            client = await server.connect()
            client.send(GET)
            assert (await client.reply()).body == b"x"
            client.send(GET)
            assert (await client.reply()).body == b"x"
            assert len(server.records.lines) == 2

    run(main())


def test_the_scope_is_what_the_specification_says(codec):
    scopes = []
    state = {"pool": object()}

    async def app(scope, receive, send):
        scopes.append(scope)
        scope["state"]["mine"] = 1
        await responding()(scope, receive, send)

    async def main():
        async with serving(app, codec, state=state, root_path="/root") as server:
            client = await server.connect()
            for _ in range(2):
                client.send(
                    b"POST /a%20b%2F%ff?c=%20d HTTP/1.1\r\nHOST: h\r\nX-A:  1 \r\nx-a: 2\r\ncontent-length: 0\r\n\r\n"
                )
                assert (await client.reply()).status == 200
            port = client.writer.get_extra_info("sockname")[1]
            scope = dict(scopes[0])
            assert scope.pop("state") == {**state, "mine": 1}
            assert "mine" not in server.context.state
            assert scope.pop("extensions")["procmgr"].keys() == {"draining"}
            assert scopes[1]["asgi"] is not scope["asgi"]
            headers = [tuple(pair) for pair in scope.pop("headers")]
            assert headers == [(b"host", b"h"), (b"x-a", b"1"), (b"x-a", b"2"), (b"content-length", b"0")]
            assert scope == {
                "type": "http",
                "asgi": {"version": "3.0", "spec_version": "2.5"},
                "http_version": "1.1",
                "server": server.path,
                "client": ("127.0.0.1", port),
                "scheme": "http",
                "method": "POST",
                "root_path": "/root",
                "path": "/root/a b/\ufffd",
                "raw_path": b"/root/a%20b%2F%ff",
                "query_string": b"c=%20d",
            }

    run(main())


def test_a_unix_socket_has_a_path_and_no_client(codec, tmp_path):
    scopes = []

    async def app(scope, receive, send):
        scopes.append(scope)
        await responding()(scope, receive, send)

    async def main():
        path = str(tmp_path / "s")
        async with serving(app, codec, unix=path) as server:
            client = await server.connect()
            client.send(b"GET http://other:1/x HTTP/1.0\r\n\r\n")
            assert (await client.reply()).status == 200
            (scope,) = scopes
            assert (scope["server"], scope["client"], scope["http_version"]) == ((path, None), None, "1.0")
            assert (scope["headers"], scope["path"]) == ([(b"host", b"other:1")], "/x")
            assert "state" not in scope

    run(main())


def test_a_body_arrives_in_parts_and_then_the_disconnect(codec):
    messages = []

    async def app(scope, receive, send):
        for _ in range(4):
            messages.append(await receive())

    async def main():
        async with serving(app, codec) as server:
            client = await server.connect()
            client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n")
            for part in (b"ab", b"c", b"d"):
                count = len(messages)
                client.send(part)
                await server.until(lambda: len(messages) > count)  # noqa: B023 - awaited here
            client.shut()
            await server.until(lambda: len(messages) == 4)
            assert [(m.get("body"), m.get("more_body")) for m in messages] == [
                (b"ab", True), (b"c", True), (b"d", False), (None, None)]  # fmt: skip
            assert messages[-1] == {"type": "http.disconnect"}
            assert await client.rest() == b"HTTP/1.1 500" or not server.records.lines

    run(main())


def test_a_client_that_shut_its_side_still_gets_the_response(codec):
    async def app(scope, receive, send):
        await read_body(receive)
        assert (await receive())["type"] == "http.disconnect"
        await send(START)
        await send(body(b"late"))

    async def main():
        async with serving(app, codec) as server:
            client = await server.connect()
            client.send(GET)
            client.shut()
            assert (await client.reply()).body == b"late"
            assert await client.rest() == b""
            assert server.records.lines == []

    run(main())


def test_pipelined_requests_before_an_end_of_file_are_all_answered(codec):
    async def main():
        async with serving(responding(), codec) as server:
            client = await server.connect()
            client.send(GET * 5)
            client.shut()
            for _ in range(5):
                assert (await client.reply()).body == b"ok"
            assert await client.rest() == b""

    run(main())


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_send_raises_once_the_client_is_gone_and_nothing_is_logged(codec, loop):
    ended = []

    async def app(scope, receive, send):
        await read_body(receive)
        assert (await receive())["type"] == "http.disconnect"
        try:
            await send(START)
            while True:
                await send(body(b"x" * 1000, more=True))
                await asyncio.sleep(0)
        except OSError as error:
            ended.append(type(error))
            raise ValueError("wrapped") from error

    async def main():
        async with serving(app, codec) as server:
            client = await server.connect()
            client.send(GET)
            await server.until(lambda: server.context.active == 1)
            client.vanish()
            await server.until(lambda: ended and not server.context.active)
            assert ended == [ClientDisconnected]
            assert server.records.lines == []

    run(main(), loop)


def test_a_sender_that_waits_for_the_client_is_told_that_it_is_gone(codec):
    waiting, ended = [], []

    async def app(scope, receive, send):
        await send(START)
        try:
            while True:
                waiting.append(None)
                await send(body(b"x" * 65536, more=True))
        except ClientDisconnected as error:
            ended.append(error)
            raise

    async def main():
        async with serving(app, codec) as server:
            client = await server.connect()
            client.send(GET)
            connection = await server.connection()
            await server.until(lambda: connection.write_paused)
            await asyncio.sleep(0)
            count = len(waiting)
            assert connection.transport.get_write_buffer_size() < 65536 * 4, "memory for a client that does not read"
            client.vanish()
            await server.until(lambda: ended)
            assert len(waiting) == count
            assert server.records.lines == []

    run(main())


def test_a_slow_reader_gets_all_of_it(codec):
    async def app(scope, receive, send):
        await send(START)
        for number in range(60):
            await send(body(b"%05d" % number * 40_000, more=True))
        await send(body())

    async def main():
        async with serving(app, codec) as server:
            client = await server.connect()
            client.send(GET)
            connection = await server.connection()
            await server.until(lambda: connection.write_paused)
            assert (await client.reply()).body == b"".join(b"%05d" % number * 40_000 for number in range(60))

    run(main())


def test_a_body_nobody_takes_stops_the_reading(codec):
    go = asyncio.Event()

    async def app(scope, receive, send):
        await go.wait()
        await responding()(scope, receive, send)

    async def main():
        async with serving(app, codec) as server:
            client = await server.connect()
            client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4000000\r\n\r\n" + b"x" * 15_000_000)
            connection = await server.connection()
            await server.until(lambda: not connection.reading)
            assert connection.cycle.buffered < 400_000
            go.set()
            assert (await client.reply()).status == 200

    run(main())


def test_pipelined_requests_beyond_the_bound_stop_the_reading(codec):
    go = asyncio.Event()

    async def app(scope, receive, send):
        await go.wait()
        await responding()(scope, receive, send)

    async def main():
        async with serving(app, codec) as server:
            client = await server.connect()
            client.send(GET * 15_000)
            connection = await server.connection()
            await server.until(lambda: not connection.reading)
            assert len(connection._pending) < 400_000
            assert server.context.active == 1
            go.set()
            for _ in range(15_000):
                assert (await client.reply()).body == b"ok"

    run(main())


def test_pipelining_faster_than_an_application_that_never_waits_stops_the_reading(codec):
    async def main():
        async with serving(responding(), codec) as server:
            client = await server.connect()
            connection = await server.connection()
            connection.data_received(GET * 4_000)
            assert not connection.reading
            for _ in range(4_000):
                assert (await client.reply()).body == b"ok"
            await server.until(lambda: connection.reading)

    run(main())


def test_pipelined_responses_come_in_order(codec):
    async def app(scope, receive, send):
        if scope["path"] == "/0":
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        await responding(scope["path"].encode())(scope, receive, send)

    async def main():
        async with serving(app, codec) as server:
            client = await server.connect()
            client.send(b"".join(GET.replace(b"/ ", b"/%d " % number) for number in range(9)))
            assert [(await client.reply()).body for _ in range(9)] == [b"/%d" % number for number in range(9)]

    run(main())


def test_the_application_has_its_task_and_a_context_of_its_own(codec):
    tasks = []

    async def app(scope, receive, send):
        tasks.append(asyncio.current_task())
        await responding()(scope, receive, send)
        with contextlib.suppress(ValueError):
            tasks.append(asyncio.current_task())

    async def main():
        async with serving(app, codec) as server:
            client = await server.connect()
            client.send(GET * 2)
            await client.reply()
            await client.reply()
            await server.until(lambda: not server.context.active)
            assert None not in tasks
            assert tasks[0] is tasks[1]
            assert tasks[2] is tasks[3]
            assert tasks[0] is not tasks[2]
            assert asyncio.current_task() not in tasks

    run(main())


def test_a_request_cancelled_at_the_drains_end_is_503_and_no_application_error(codec):
    async def app(scope, receive, send):
        await asyncio.Event().wait()

    async def main():
        async with serving(app, codec) as server:
            client = await server.connect()
            client.send(GET)
            await server.until(lambda: server.context.active == 1)
            server.context.abort_requests()
            assert (await client.reply()).status == 503
            assert server.context.row[scoreboard.APP_ERRORS] == 0
            assert "cancelled" in server.records.lines[0]

    run(main())
