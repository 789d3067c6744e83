"""HTTP/1.1 on the wire: how responses end, when connections persist, what is refused, how it all drains."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from support.wire import read_body, responding, run, serving

from procmgr import scoreboard
from procmgr.worker.cycle import SENT
from procmgr.worker.protocols.base import GATHERED, DrainMode, Limits

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
GET10 = b"GET / HTTP/1.0\r\n\r\n"
KEEP10 = b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"
HEAD = b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n"


@pytest.fixture(params=["httptools", "h11"])
def codec(request):
    return request.param


def streaming(*parts, headers=(), status=200):
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": status, "headers": list(headers)})
        for part in parts:
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body"})

    return app


def exchange(app, raw, codec, *, methods=("GET",), **options):
    """Return the replies to `raw`, what follows them until the server closes or `eof`, and the records."""

    async def main():
        async with serving(app, codec, **options) as server:
            client = await server.connect()
            client.send(raw)
            replies = [await client.reply(method=method) for method in methods]
            client.shut()
            return replies, await client.rest(), server.records.lines

    return run(main())


# -- how a response ends ---------------------------------------------------------------------------------------------


def test_a_body_in_one_piece_gets_its_length(codec):
    (reply,), rest, _ = exchange(responding(b"abc"), GET, codec)
    assert (reply.header("content-length"), reply.header("transfer-encoding"), reply.body) == ("3", None, b"abc")
    assert reply.header("connection") is None
    assert rest == b""


def test_a_stream_is_chunked_and_an_empty_part_does_not_end_it(codec):
    (reply,), rest, _ = exchange(streaming(b"", b"a", b"", b"bc"), GET, codec)
    assert (reply.header("transfer-encoding"), reply.body, rest) == ("chunked", b"abc", b"")


def test_a_stream_to_http_1_0_ends_with_the_connection(codec):
    (reply,), _, _ = exchange(streaming(b"a", b"bc"), KEEP10, codec)
    assert (reply.header("transfer-encoding"), reply.header("connection")) == (None, "close")
    assert reply.body == b"abc"


def test_http_1_0_keeps_the_connection_where_it_asks_and_is_told_so(codec):
    replies, rest, _ = exchange(responding(b"abc"), KEEP10 + KEEP10, codec, methods=("GET", "GET"))
    assert [reply.header("connection") for reply in replies] == ["keep-alive", "keep-alive"]
    assert rest == b""


def test_http_1_0_closes_by_default(codec):
    (reply,), _, _ = exchange(responding(b"abc"), GET10, codec)
    assert (reply.header("connection"), reply.body) == ("close", b"abc")


def test_a_stream_with_content_length_is_not_chunked(codec):
    app = streaming(b"ab", b"c", headers=[(b"Content-Length", b"3")])
    (reply,), _, _ = exchange(app, GET, codec)
    assert (reply.header("transfer-encoding"), reply.header("content-length"), reply.body) == (None, "3", b"abc")


@pytest.mark.parametrize("app", [responding(b"abc"), responding(b"abc", headers=[(b"content-length", b"3")])])
def test_head_has_the_length_and_no_body(codec, app):
    replies, rest, lines = exchange(app, HEAD + GET, codec, methods=("HEAD", "GET"))
    assert [reply.header("content-length") for reply in replies] == ["3", "3"]
    assert (replies[1].body, rest, lines) == (b"abc", b"", [])


def test_head_of_a_stream_has_no_body(codec):
    replies, rest, _ = exchange(streaming(b"abc"), HEAD + HEAD, codec, methods=("HEAD", "HEAD"))
    assert [reply.status for reply in replies] == [200, 200]
    assert rest == b""


@pytest.mark.parametrize(("status", "length"), [(204, None), (304, "3")])
def test_no_content_statuses_have_no_body(codec, status, length):
    app = responding(b"abc", status=status, headers=[(b"content-length", b"3")])
    replies, rest, lines = exchange(app, GET + GET, codec, methods=("GET", "GET"))
    assert [(reply.status, reply.header("content-length")) for reply in replies] == [(status, length)] * 2
    assert (rest, lines) == (b"", [])


def test_framing_and_persistence_are_ours(codec):
    headers = [(b"Transfer-Encoding", b"chunked"), (b"Connection", b"keep-alive"), (b"Keep-Alive", b"timeout=9")]
    (reply,), _, _ = exchange(responding(b"abc", headers=headers), GET, codec)
    assert [reply.header(name) for name in ("transfer-encoding", "connection", "keep-alive")] == [None, None, None]
    assert reply.body == b"abc"


def test_connection_close_from_the_application_closes(codec):
    (reply,), rest, _ = exchange(responding(headers=[(b"connection", b"close")]), GET + GET, codec)
    assert (reply.header("connection"), rest) == ("close", b"")


def test_date_and_server_are_sent_once_and_the_applications_win(codec):
    (reply,), _, _ = exchange(responding(), GET, codec, headers=[(b"x-more", b"1")])
    assert (reply.header("server"), reply.header("x-more")) == ("procmgr", "1")
    assert reply.header("date").endswith(" GMT")
    (reply,), _, _ = exchange(responding(headers=[(b"Server", b"s"), (b"date", b"d")]), GET, codec)
    assert (reply.header("server"), reply.header("date")) == ("s", "d")
    (reply,), _, _ = exchange(responding(), GET, codec, server_header=False, date_header=False)
    assert (reply.header("server"), reply.header("date")) == (None, None)


class Spy:
    """A transport that remembers what is written to it."""

    def __init__(self, real):
        self.real = real
        self.writes = []

    def write(self, data):
        self.writes.append(data)
        self.real.write(data)

    def writelines(self, parts):
        self.writes.append(b"".join(parts))
        self.real.writelines(parts)

    def __getattr__(self, name):
        return getattr(self.real, name)


def writes_of(app, codec, request):
    """Return what is written for one request, and its response."""

    async def main():
        async with serving(app, codec) as server:
            client = await server.connect()
            connection = await server.connection()
            connection.transport = spy = Spy(connection.transport)
            client.send(request)
            reply = await client.reply()
            connection.transport = spy.real
            return spy.writes, reply

    return run(main())


def test_head_and_first_body_leave_in_one_write(codec):
    writes, reply = writes_of(responding(b"abc"), codec, GET)
    assert (len(writes), reply.body) == (1, b"abc")


def test_parts_sent_without_waiting_leave_in_one_write_and_others_when_the_application_waits(codec):
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200})
        for part in (b"a", b"b"):
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await asyncio.sleep(0)
        await asyncio.sleep(0)  # by now the loop has turned, whichever way the request was started
        for part in (b"c", b"d"):
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body"})

    writes, reply = writes_of(app, codec, GET)
    assert reply.body == b"abcd"
    assert [b"a" in writes[0] and b"b" in writes[0], writes[1:]] == [True, [b"1\r\nc\r\n1\r\nd\r\n0\r\n\r\n"]]


def test_a_large_part_is_handed_over_at_once_so_that_the_transport_can_stop_the_application(codec):
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": bytes(GATHERED + 1), "more_body": True})
        written.append(len(spied[0].writes))
        await send({"type": "http.response.body"})

    written, spied = [], []

    async def main():
        async with serving(app, codec) as server:
            client = await server.connect()
            connection = await server.connection()
            spied.append(Spy(connection.transport))
            connection.transport = spied[0]
            client.send(GET)
            assert len((await client.reply()).body) == GATHERED + 1
            connection.transport = spied[0].real

    run(main())
    assert written == [1]


# -- the request body ------------------------------------------------------------------------------------------------


def expecting(length):
    return b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n" % length


def test_the_body_is_asked_for_when_the_application_wants_it(codec):
    async def main():
        async with serving(responding(), codec) as server:
            client = await server.connect()
            for _ in range(2):
                client.send(expecting(3))
                assert (await client.reply()).status == 100
                client.send(b"abc")
                assert (await client.reply()).status == 200

    run(main())


def test_a_body_nobody_asked_for_closes_the_connection(codec):
    (reply,), rest, _ = exchange(streaming(b"no", status=403), expecting(3), codec)
    assert (reply.status, rest) == (403, b"")


def test_an_unread_body_is_thrown_away_up_to_the_bound(codec):
    async def app(scope, receive, send):
        await responding(scope["method"].encode())({**scope}, ended, send)

    async def ended():
        return {"type": "http.request", "body": b"", "more_body": False}

    async def main(length):
        async with serving(app, codec) as server:
            client = await server.connect()
            client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % length)
            first = await client.reply()
            client.send(b"GET /x HTTP/1.1\r\n\r\n" * (length // 19) + b"x" * (length % 19) + GET)
            if first.header("connection") == "close":
                return first.body, b""
            return first.body, (await client.reply()).body

    assert run(main(60_000)) == (b"POST", b"GET")
    assert run(main(70_000)) == (b"POST", b"")


# -- limits ----------------------------------------------------------------------------------------------------------


def test_exactly_as_many_requests_run_as_may_and_the_next_is_503(codec):
    go = asyncio.Event()

    async def app(scope, receive, send):
        await go.wait()
        await responding()(scope, receive, send)

    async def main():
        async with serving(app, codec, limits=Limits(concurrency=2)) as server:
            clients = [await server.connect() for _ in range(3)]
            for count, client in enumerate(clients[:2], 1):
                client.send(GET)
                await server.until(lambda: server.context.row[scoreboard.ACTIVE] == count)  # noqa: B023 - awaited here
            clients[2].send(GET)
            reply = await clients[2].reply()
            assert (reply.status, reply.header("retry-after"), reply.header("connection")) == (503, "1", "close")
            go.set()
            assert [(await client.reply()).status for client in clients[:2]] == [200, 200]
            clients[0].send(GET)
            assert (await clients[0].reply()).status == 200

    run(main())


def test_the_request_limit_is_told_once(codec):
    calls = []
    (*_,), _, _ = exchange(
        responding(), GET * 5, codec, methods=("GET",) * 5, max_requests=3, on_request_limit=lambda: calls.append(1)
    )
    assert calls == [1]


def test_a_refusal_names_the_peer_the_reason_and_a_bounded_excerpt(codec):
    (reply,), _, (line,) = exchange(responding(), b"GET / HTTP/1.1\r\nA: \x1b[31m" + b"x" * 500 + b"\r\n\r\n", codec)
    assert (reply.status, reply.header("content-type")) == (400, "text/plain; charset=utf-8")
    assert line.startswith("127.0.0.1:")
    assert "400" in line
    assert len(line) < 400
    assert "\x1b" not in line


async def returning_nothing(scope, receive, send):
    """An application that does not answer."""


def test_no_message_has_the_query_the_fields_or_the_body_of_a_request(codec):
    fields = b"Host: h\r\nAuthorization: secret\r\nTransfer-Encoding: chunked\r\n\r\n"
    refused = {
        "no host": b"GET /path?secret HTTP/1.1\r\nAuthorization: secret\r\n\r\n",
        "a bare line feed": b"\r\nGET /path?secret HTTP/1.1\nAuthorization: secret\r\n\r\n",
        "a bad field": b"GET /path?secret HTTP/1.1\r\nHost: h\r\nA: \x01secret\r\nB secret: secret\r\n\r\n",
        "a bad length": b"POST /path?secret HTTP/1.1\r\nHost: h\r\nContent-Length: secret\r\n\r\n",
        "a bad size of a chunk": b"POST /path HTTP/1.1\r\n" + fields + b"secret\r\n",
        "a bad chunk": b"POST /path?secret HTTP/1.1\r\n" + fields + b"6\r\nsecret\r\nnonsense\r\n",
    }
    for what, data in refused.items():
        _, _, (line,) = exchange(responding(), data, codec)
        assert "/path" in line, what
        assert "secret" not in line, what
    _, _, (line,) = exchange(returning_nothing, GET.replace(b"GET /", b"GET /path?secret"), codec)
    assert "GET /path from 127.0.0.1:" in line
    assert "secret" not in line


# -- deadlines and drains --------------------------------------------------------------------------------------------


def test_an_idle_connection_is_closed_when_its_time_is_over_and_not_before(codec):
    async def main():
        async with serving(responding(), codec, keep_alive=5.0) as server:
            client = await server.connect()
            client.send(GET)
            await client.reply()
            connection = await server.connection()
            now = server.context.now
            for second in range(1, 5):
                server.context.sweep(now + second)
            assert connection.is_open()
            server.context.sweep(now + 6)
            server.context.sweep(now + 7)
            assert not connection.is_open()
            assert await client.rest() == b""

    run(main())


def test_without_keep_alive_every_response_says_that_it_is_the_last(codec):
    async def main():
        async with serving(responding(), codec, keep_alive=0.0) as server:
            for _ in range(2):  # the second is encoded from memory
                client = await server.connect()
                client.send(GET + GET)
                assert (await client.reply()).header("connection") == "close"
                assert await client.rest() == b""

    run(main())


def test_a_running_request_has_no_deadline(codec):
    go = asyncio.Event()

    async def app(scope, receive, send):
        await go.wait()
        await responding()(scope, receive, send)

    async def main():
        async with serving(app, codec, keep_alive=1.0) as server:
            client = await server.connect()
            client.send(GET)
            await server.until(lambda: server.context.active == 1)
            for second in range(1, 50):
                server.context.sweep(server.context.now + second)
            go.set()
            assert (await client.reply()).status == 200

    run(main())


def test_retiring_answers_one_last_request_of_an_idle_connection_with_close(codec):
    async def main():
        async with serving(responding(), codec) as server:
            client = await server.connect()
            client.send(GET)
            assert (await client.reply()).header("connection") is None
            server.context.begin_drain(DrainMode.RETIRE)
            drained = server.context.drained()
            assert not drained.done()
            client.send(GET)
            assert (await client.reply()).header("connection") == "close"
            assert await client.rest() == b""
            client.writer.close()
            await asyncio.wait_for(drained, 10)

    run(main())


def test_leaving_ends_connections_with_their_next_response_and_serves_on(codec):
    async def main():
        async with serving(responding(), codec) as server:
            idle, pipelining = await server.connect(), await server.connect()
            idle.send(GET)
            assert (await idle.reply()).header("connection") is None
            server.context.leave()
            pipelining.send(GET * 3)
            assert [(await pipelining.reply()).header("connection") for _ in range(3)] == [None, None, "close"]
            assert await pipelining.rest() == b""
            idle.send(GET)  # it was there before, and nobody has closed it
            assert (await idle.reply()).header("connection") == "close"
            server.context.pause()
            server.context.resume()
            late = await server.connect()
            late.send(GET)
            assert (await late.reply()).header("connection") == "close"

    run(main())


def test_retiring_lets_a_running_request_end_with_close_and_serves_a_new_connection(codec):
    go = asyncio.Event()

    async def app(scope, receive, send):
        await go.wait()
        await responding()(scope, receive, send)

    async def main():
        async with serving(app, codec) as server:
            client = await server.connect()
            client.send(GET)
            await server.until(lambda: server.context.active == 1)
            server.context.begin_drain(DrainMode.RETIRE)
            late = await server.connect()
            late.send(GET)
            go.set()
            for one in (client, late):
                assert (await one.reply()).header("connection") == "close"

    run(main())


def test_retiring_in_the_middle_of_a_response_still_takes_one_more_request(codec):
    go = asyncio.Event()

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"a", "more_body": True})
        await go.wait()
        await send({"type": "http.response.body", "body": b"b"})

    async def main():
        async with serving(app, codec) as server:
            client = await server.connect()
            client.send(GET)
            connection = await server.connection()
            await server.until(lambda: connection.cycle is not None and connection.cycle.state == SENT)
            server.context.begin_drain(DrainMode.RETIRE)
            go.set()
            first = await client.reply()
            assert (first.header("connection"), first.body) == (None, b"ab")
            client.send(GET)
            assert (await client.reply()).header("connection") == "close"

    run(main())


@pytest.mark.parametrize("mode", DrainMode)
def test_requests_that_had_arrived_before_a_drain_are_all_answered_and_later_ones_are_not_read(codec, mode):
    async def app(scope, receive, send):
        await go.wait()
        await responding(scope["raw_path"])(scope, receive, send)
        client.send(GET)  # a client that goes on as long as it is let to

    async def main():
        nonlocal client
        async with serving(app, codec) as server:
            client = await server.connect()
            connection = await server.connection()
            client.send(b"".join(GET.replace(b"/ ", b"/%d " % number) for number in range(3)))
            await server.until(lambda: connection._pending.count(b"\r\n\r\n") == 2)
            server.context.begin_drain(mode)
            go.set()
            replies = [await client.reply() for _ in range(3)]
            assert [reply.body for reply in replies] == [b"/0", b"/1", b"/2"]
            assert [reply.header("connection") for reply in replies] == [None, None, "close"]
            assert await client.rest() == b""

    client: Any = None
    go = asyncio.Event()
    run(main())


def test_empty_lines_that_had_arrived_before_a_drain_are_no_further_request(codec):
    go = asyncio.Event()

    async def app(scope, receive, send):
        await go.wait()
        await responding()(scope, receive, send)

    async def main():
        async with serving(app, codec) as server:
            client = await server.connect()
            connection = await server.connection()
            client.send(GET + b"\r\n\r\n")
            await server.until(lambda: connection._pending)
            server.context.begin_drain(DrainMode.RETIRE)
            go.set()
            assert (await client.reply()).header("connection") == "close"
            assert await client.rest() == b""

    run(main())


def test_a_retiring_connection_without_request_goes_after_the_keep_alive_time(codec):
    async def main():
        async with serving(responding(), codec, keep_alive=2.0) as server:
            client = await server.connect()
            connection = await server.connection()
            server.context.begin_drain(DrainMode.RETIRE)
            now = server.context.now
            server.context.sweep(now + 1)
            assert connection.is_open()
            for second in range(2, 6):
                server.context.sweep(now + second)
            assert not connection.is_open()
            assert await client.rest() == b""

    run(main())


@pytest.mark.parametrize("mode", [DrainMode.STOP, DrainMode.QUICK])
def test_a_stop_closes_idle_connections_after_their_window_by_itself(codec, mode):
    async def main():
        async with serving(responding(), codec) as server:
            clients = [await server.connect() for _ in range(3)]
            clients[0].send(GET)
            await clients[0].reply()
            await server.until(lambda: len(server.context.connections) == 3)
            server.context.begin_drain(mode)
            clients[1].send(GET)
            assert (await clients[1].reply()).header("connection") == "close"
            clients[1].shut()
            assert await clients[0].rest() == b""
            await asyncio.wait_for(server.context.drained(), 10)

    run(main())


def test_a_response_survives_the_bytes_that_came_after_it(codec):
    """Closing with unread bytes would reset the connection, which may destroy the response."""

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 413, "headers": [(b"connection", b"close")]})
        await send({"type": "http.response.body", "body": b"x" * 100_000})

    async def main():
        async with serving(app, codec) as server:
            client = await server.connect()
            client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5000000\r\n\r\n" + b"x" * 5_000_000)
            reply = await client.reply()
            assert (reply.status, len(reply.body), reply.complete) == (413, 100_000, True)

    run(main())


def test_the_scoreboard_counts(codec):
    async def main():
        async with serving(responding(status=404), codec) as server:
            row = server.context.row
            client = await server.connect()
            client.send(GET * 3 + b"garbage\r\n\r\n")
            for _ in range(4):
                await client.reply()
            assert [row[cell] for cell in (scoreboard.ACCEPTED, scoreboard.CONNECTIONS)] == [1, 1]
            assert [row[cell] for cell in (scoreboard.REQUESTS, scoreboard.STATUS_4XX)] == [3, 4]
            client.shut()
            await server.until(lambda: row[scoreboard.CONNECTIONS] == 0)
            assert row[scoreboard.ACTIVE] == 0

    run(main())


def test_chunked_upload_is_read_whole(codec):
    seen = []

    async def app(scope, receive, send):
        seen.append(await read_body(receive))
        await streaming(b"ok")(scope, receive, send)

    parts = [bytes([number % 256]) * number for number in range(1, 400)]
    raw = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
    exchange(
        app,
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + raw + GET,
        codec,
        methods=("GET",) * 2,
    )
    assert seen == [b"".join(parts), b""]
