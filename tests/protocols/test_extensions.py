"""ASGI extensions on the wire: what is offered to whom, early hints, trailers, and the disconnect in a pipeline."""

from __future__ import annotations

import asyncio
import select

import pytest
from support.wire import read_body, responding, run, serving

from procmgr.worker.cycle import COMPLETE, TimedCycle
from procmgr.worker.protocols.kernel import polled

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
GET10 = b"GET / HTTP/1.0\r\nTE: trailers\r\nConnection: keep-alive\r\n\r\n"
TE = b"%b / HTTP/1.1\r\nHost: a\r\nTE: %b\r\n\r\n"
TAKES = TE % (b"GET", b"trailers")
START = {"type": "http.response.start", "status": 200}
PROMISE = {**START, "trailers": True}
ALWAYS = {"http.response.early_hint", "http.response.pathsend", "http.response.zerocopysend", "procmgr"}


@pytest.fixture(params=["httptools", "h11"])
def codec(request):
    return request.param


def body(data=b"", *, more=False):
    return {"type": "http.response.body", "body": data, "more_body": more}


def hint(*links):
    return {"type": "http.response.early_hint", "links": links}


def trailers(*headers, more=False):
    return {"type": "http.response.trailers", "headers": list(headers), "more_trailers": more}


def length(value, start=START):
    return {**start, "headers": [(b"content-length", b"%d" % value)]}


def sending(*messages):
    async def app(scope, receive, send):
        for message in messages:
            await send(message)

    return app


def exchange(app, raw, codec, **options):
    """Return all that is sent for `raw` until the server closes after the client's end of file, and the records."""

    async def main():
        async with serving(app, codec, **options) as server:
            client = await server.connect()
            client.send(raw)
            client.shut()
            return await client.rest(), server.records.lines

    return run(main())


# -- what is offered -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "offered"),
    [
        (GET, ALWAYS),
        (TAKES, ALWAYS | {"http.response.trailers"}),
        (TE % (b"HEAD", b"gzip;q=0.5 , Trailers"), ALWAYS | {"http.response.trailers"}),
        (TE % (b"GET", b"gzip\r\nTE: trailers"), ALWAYS | {"http.response.trailers"}),
        (TE % (b"GET", b"trailers;q=1, gzip"), ALWAYS),
        (GET10, ALWAYS - {"http.response.early_hint"}),
    ],
)
def test_what_is_offered_depends_on_what_the_client_takes(codec, raw, offered):
    seen = []

    async def app(scope, receive, send):
        seen.append(scope["extensions"])
        await responding()(scope, receive, send)

    exchange(app, raw + raw, codec)
    assert [extensions.keys() for extensions in seen] == [offered, offered]
    assert seen[0] is not seen[1]
    assert all(value == {} for name, value in seen[0].items() if name != "procmgr")


# -- early hints -----------------------------------------------------------------------------------------------------


def test_hints_come_before_the_head_that_is_held(codec):
    app = sending(hint(b"</a>"), START, hint(b"</b>; rel=preload", b"</c>"), hint(), body(b"ok"))
    sent, lines = exchange(app, GET + GET, codec)
    begin, *rest = sent.split(b"HTTP/1.1 ")
    assert (begin, lines) == (b"", [])
    assert rest[0] == rest[3] == b"103 Early Hints\r\nlink: </a>\r\n\r\n"
    assert rest[1] == rest[4] == b"103 Early Hints\r\nlink: </b>; rel=preload\r\nlink: </c>\r\n\r\n"
    for last in (rest[2], rest[5]):
        assert last.startswith(b"200 OK\r\n")
        assert last.endswith(b"\r\n\r\nok")


def test_a_hint_leaves_before_the_application_goes_on(codec):
    async def main():
        seen = asyncio.Event()

        async def app(scope, receive, send):
            await send(START)
            await send(hint(b"</a>"))
            await seen.wait()
            await send(body(b"ok"))

        async with serving(app, codec) as server:
            client = await server.connect()
            client.send(GET)
            first = await client.reply()
            assert (first.status, first.headers) == (103, [("link", "</a>")])
            seen.set()
            assert (await client.reply()).body == b"ok"

    run(main())


def test_a_hint_that_comes_too_late_is_dropped(codec):
    sent, lines = exchange(sending(START, body(b"a", more=True), hint(b"</a>"), body(b"b")), GET, codec)
    assert b"103" not in sent
    assert (sent.endswith(b"1\r\na\r\n1\r\nb\r\n0\r\n\r\n"), lines) == (True, [])


def test_http_1_0_is_sent_no_hint(codec):
    sent, lines = exchange(sending(START, hint(b"</a>"), body(b"ok")), GET10, codec)
    assert (sent.startswith(b"HTTP/1.1 200"), b"103" in sent, lines) == (True, False, [])


@pytest.mark.parametrize("link", ["</a>", b"</a>\r\nx: y", b"\0", None, 1])
@pytest.mark.parametrize("raw", [GET, GET10])
def test_a_hint_that_is_no_field_is_a_500(codec, raw, link):
    sent, lines = exchange(sending(START, hint(b"</fine>", link), body(b"ok")), raw, codec)
    assert sent.startswith(b"HTTP/1.1 500")
    assert [line.endswith("the application raised") for line in lines] == [True]


def test_a_hint_without_links_is_a_500(codec):
    sent, lines = exchange(sending(START, {"type": "http.response.early_hint"}), GET, codec)
    assert (sent[:12], len(lines)) == (b"HTTP/1.1 500", 1)


# -- trailers --------------------------------------------------------------------------------------------------------

SUM = (b"x-sum", b"1")


class Sizes:
    """An access log that keeps the sizes of responses."""

    cycle = TimedCycle

    def __init__(self):
        self.sizes = []

    def prefix(self, client):
        return b"-"

    def record(self, prefix, cycle, root_path):
        self.sizes.append(cycle.sent)


ENDS = {
    "one body": (sending(PROMISE, body(b"abc"), trailers(SUM)), b"3\r\nabc\r\n0\r\nx-sum: 1\r\n\r\n"),
    "a stream": (
        sending(PROMISE, body(b"ab", more=True), body(b"c", more=True), body(), trailers(SUM)),
        b"2\r\nab\r\n1\r\nc\r\n0\r\nx-sum: 1\r\n\r\n",
    ),
    "several messages": (
        sending(PROMISE, body(b"a"), trailers(SUM, more=True), trailers(more=True), trailers((b"B", b"2"))),
        b"1\r\na\r\n0\r\nx-sum: 1\r\nB: 2\r\n\r\n",
    ),
    "none after all": (sending(PROMISE, body(b"a"), trailers()), b"1\r\na\r\n0\r\n\r\n"),
    "an empty body": (sending(PROMISE, body(), trailers(SUM)), b"0\r\nx-sum: 1\r\n\r\n"),
    "a length that they replace": (
        sending(length(3, PROMISE), body(b"ab", more=True), body(b"c"), trailers(SUM)),
        b"2\r\nab\r\n1\r\nc\r\n0\r\nx-sum: 1\r\n\r\n",
    ),
}


@pytest.mark.parametrize("name", ENDS)
def test_trailers_end_the_chunked_body(codec, name):
    app, end = ENDS[name]
    sent, lines = exchange(app, TAKES + TAKES, codec)
    first, second = sent.split(b"HTTP/1.1 200 OK\r\n")[1:]
    assert first.endswith(b"\r\n\r\n" + end)
    assert second.partition(b"\r\n\r\n")[2] == end
    assert b"transfer-encoding: chunked\r\n" in first
    assert b"content-length" not in sent
    assert lines == []


@pytest.mark.parametrize(
    ("raw", "start", "end"),
    [
        (GET, PROMISE, b"content-length: 3\r\n\r\nabc"),
        (GET, length(3, PROMISE), b"content-length: 3\r\n\r\nabc"),
        (GET10, PROMISE, b"content-length: 3\r\nconnection: keep-alive\r\n\r\nabc"),
        (TE % (b"HEAD", b"trailers"), length(3, PROMISE), b"content-length: 3\r\n\r\n"),
        (TAKES, {**PROMISE, "status": 304}, b"\r\n\r\n"),
        (TAKES, {**PROMISE, "status": 204}, b"\r\n\r\n"),
    ],
)
def test_trailers_are_dropped_where_nobody_takes_them_or_there_is_no_body(codec, raw, start, end):
    sent, lines = exchange(sending(start, body(b"abc"), trailers(SUM, more=True), trailers(SUM)), raw + raw, codec)
    assert (sent.count(b"HTTP/1.1"), sent.endswith(end), b"x-sum" in sent, lines) == (2, True, False, [])


REFUSED = {
    "framing": trailers((b"Content-Length", b"1")),
    "coding": trailers((b"transfer-encoding", b"chunked")),
    "routing": trailers((b"host", b"a")),
    "authentication": trailers((b"WWW-Authenticate", b"Basic")),
    "a cookie": trailers((b"set-cookie", b"a=b")),
    "content": trailers((b"content-type", b"text/plain")),
    "control": trailers((b"cache-control", b"no-store")),
    "connection": trailers((b"connection", b"close")),
    "no name": trailers((b"a b", b"c")),
    "no value": trailers((b"a", b"b\r\nc: d")),
    "text": trailers(("a", "b")),
    "too late": body(b"more"),
    "a hint": hint(b"</a>"),
    "a file": {"type": "http.response.pathsend", "path": __file__},
    "a start": PROMISE,
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_wrong_after_the_body_leaves_the_response_without_its_end(codec, name):
    sent, lines = exchange(sending(PROMISE, body(b"abc"), REFUSED[name]), TAKES + TAKES, codec)
    assert sent.endswith(b"\r\n\r\n3\r\nabc\r\n")
    assert [line.endswith("the application raised") for line in lines] == [True]


def test_promised_trailers_that_do_not_come_leave_the_response_without_its_end(codec):
    sent, lines = exchange(sending(PROMISE, body(b"abc")), TAKES, codec)
    assert sent.endswith(b"\r\n\r\n3\r\nabc\r\n")
    assert ["returned in the middle of its response" in line for line in lines] == [True]


@pytest.mark.parametrize("messages", [(START, trailers(SUM)), (trailers(SUM),), (PROMISE, trailers(SUM))])
def test_trailers_before_the_body_are_a_500(codec, messages):
    for raw in (GET, TAKES):
        sent, lines = exchange(sending(*messages), raw, codec)
        assert (sent[:12], len(lines)) == (b"HTTP/1.1 500", 1)


def test_trailers_without_a_promise_are_ignored_and_logged(codec):
    sent, lines = exchange(sending(START, body(b"abc"), trailers(SUM)), TAKES, codec)
    assert sent.endswith(b"content-length: 3\r\n\r\nabc")
    assert ["'http.response.trailers' after the response was complete" in line for line in lines] == [True]


@pytest.mark.parametrize("data", [b"ab", b"abcd"])
def test_a_body_with_trailers_is_held_against_its_length(codec, data):
    sent, lines = exchange(sending(length(3, PROMISE), body(data), trailers(SUM)), TAKES, codec)
    assert (sent[:12], len(lines)) == (b"HTTP/1.1 500", 1)


def test_a_timed_response_has_the_size_of_its_body(codec):
    async def main():
        log = Sizes()
        app = sending(PROMISE, body(b"ab", more=True), body(b"c"), trailers(SUM))
        async with serving(app, codec, access=log) as server:
            client = await server.connect()
            client.send(TAKES)
            client.shut()
            await client.rest()
            assert log.sizes == [3]

    run(main())


# -- the disconnect --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["reset", "end of file"])
def test_the_disconnect_reaches_an_application_that_waits_though_requests_are_pipelined(codec, how):
    async def main():
        told = []

        async def app(scope, receive, send):
            await read_body(receive)
            told.append((scope["path"], (await receive())["type"]))

        async with serving(app, codec) as server:
            client = await server.connect()
            client.send(b"GET /first HTTP/1.1\r\nHost: a\r\n\r\n" + GET * 3)
            connection = await server.connection()
            await server.until(lambda: connection.cycle is not None and connection.cycle.waiting)
            assert connection.cycle.state != COMPLETE
            if how == "reset":
                client.vanish()
            else:
                client.shut()
            await server.until(lambda: told)
            assert told[0] == ("/first", "http.disconnect")
            await server.until(lambda: not server.context.tasks)
            assert server.context.active == 0
            if how == "reset":
                assert len(told) == 1

    run(main())


@pytest.mark.parametrize("how", ["reset", "end of file"])
def test_the_disconnect_reaches_an_application_whose_client_sent_more_than_is_kept(codec, how):
    """The socket is not read then, so the loop does not tell that the client is gone: it is looked at."""

    async def main():
        told = []

        async def app(scope, receive, send):
            await read_body(receive)
            if not told:
                told.append((await receive())["type"])
            await send(START)
            await send(body(b"ok"))

        async with serving(app, codec) as server:
            client = await server.connect()
            client.send(GET * 3000)
            connection = await server.connection()
            await server.until(lambda: not connection.reading)
            if how == "reset":
                client.vanish()
            else:
                client.shut()
            now = server.context.now
            await server.until(lambda: polled(connection.transport, select.POLLRDHUP))
            for second in range(1, 7):
                server.context.sweep(now + second)
            await server.until(lambda: told)
            assert told == ["http.disconnect"]
            if how == "reset":
                await server.until(lambda: not server.context.connections)
            else:
                assert (await client.rest()).count(b"HTTP/1.1 200") == 3000

    run(main())
