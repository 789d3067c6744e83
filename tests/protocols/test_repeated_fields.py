"""A connection that knows the fields of its last request answers the next one as if it knew nothing."""

from __future__ import annotations

import pytest
from support.wire import read_body, run, serving

from procmgr.worker.protocols.base import Limits

LINES = [
    b"GET /a HTTP/1.1",
    b"GET /b?c=d%20e HTTP/1.1",
    b"GET /%C3%A4/?? HTTP/1.1",
    b"HEAD /a HTTP/1.1",
    b"DELETE /a HTTP/1.1",
    b"GET /a HTTP/1.0",
    b"GET /a HTTP/1.9",
    b"OPTIONS * HTTP/1.1",
    b"GET http://other/a HTTP/1.1",
    b"GET http://user@other/a HTTP/1.1",
    b"CONNECT a:1 HTTP/1.1",
    b"BREW /a HTTP/1.1",
    b"get /a HTTP/1.1",
    b"GET /a HTTP/2.0",
    b"GET /a",
    b"GET  /a HTTP/1.1",
    b"GET /a  HTTP/1.1",
    b"GET /a b HTTP/1.1",
    b" GET /a HTTP/1.1",
    b"GET /a#b HTTP/1.1",
    b"GET /a\x7f HTTP/1.1",
    b"GET /\xc3\xa4 HTTP/1.1",
    b"GET /a\nHost: b HTTP/1.1",
    b"GET /" + b"a" * 20_000 + b" HTTP/1.1",
    b"\r\nGET /a HTTP/1.1",
    b"GET /a HTTP/1.1\r\nX: y",
    b"GET /a HTTP/1.1\r\nHost: b",
    b"GET /a HTTP/1.1\r\nContent-Length: 0",
    b"GET /a HTTP/1.1\r\nConnection: close",
    b"GET /a HTTP/1.1\r\nHost: a\r\n\r\nGET /b HTTP/1.1",
]
"""What may come before the fields of the request before."""

FIELDS = [
    b"Host: a\r\n\r\n",
    b"Host: b\r\n\r\n",
    b"host: a\r\n\r\n",
    b"Host: a\r\nCookie: c\r\n\r\n",
    b"Host: b\r\nCookie: c\r\n\r\n",
    b"Host: a\r\nConnection: keep-alive\r\nUser-Agent: u\r\n\r\n",
    b"Host: a\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
    b"Host: a\r\nContent-Length: 0\r\n\r\n",
    b"Host: a\r\nContent-Length: 3\r\n\r\nabc",
    b"Host: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    b"Host: a\r\nExpect: 100-continue\r\n\r\n",
    b"Host: a\r\nX-Long: " + b"x" * 3000 + b"\r\n\r\n",
    b"Connection: keep-alive\r\n\r\n",
    b"Host: a\r\nHost: a\r\n\r\n",
    b"Host: a\nCookie: c\r\n\r\n",
    b"Host: a\r\nConnection: close\r\n\r\n",
]
FIRST = b"GET /first HTTP/1.1\r\n"
LASTING = FIELDS[:12]


@pytest.fixture(params=["httptools", "h11"])
def codec(request):
    return request.param


def recording(seen):
    """Return an application that notes what it was asked, and spoils its scope."""

    async def app(scope, receive, send):
        body = await read_body(receive)
        keys = ("method", "http_version", "path", "raw_path", "query_string", "headers", "root_path", "state")
        seen.append(({key: scope[key] for key in keys}, body))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ok"})

    return app


async def outcome(server, seen, data, *, before=b"", in_one_write=False):
    """Return all that comes back for `data` and what the application saw, after `before` was answered."""
    client = await server.connect()
    if before:
        client.send(before + (data if in_one_write else b""))
        assert (await client.reply()).status == 200
    if not in_one_write:
        client.send(data)
    if before:
        await server.until(lambda: seen)
        seen.pop(0)
    client.shut()
    back = await client.rest()
    what = list(seen)
    seen.clear()
    return [line for line in back.split(b"\r\n") if not line.startswith(b"date:")], what


def following():
    yield from ((known, line + b"\r\n" + known) for known in LASTING for line in LINES)
    yield from ((known, b"GET /a HTTP/1.1\r\n" + fields) for known in LASTING for fields in FIELDS)


@pytest.mark.parametrize("in_one_write", [False, True])
def test_no_head_is_taken_for_the_one_before(codec, in_one_write):
    seen = []

    async def main():
        async with serving(recording(seen), codec, state={}) as server:
            for known, data in following():
                fresh = await outcome(server, seen, data)
                after = await outcome(server, seen, data, before=FIRST + known, in_one_write=in_one_write)
                assert after == fresh, (known, data[:100])

    run(main())


class CountingCodec:
    """Counts the heads that reach the parser."""

    def __init__(self, codec):
        self.codec = codec
        self.heads = 0

    def read_head(self, request):
        self.heads += 1
        return self.codec.read_head(request)

    def __getattr__(self, name):
        return getattr(self.codec, name)


def heads_parsed(codec, first, rest):
    """Return how many heads of `rest` the parser saw on a connection that answered `first`."""

    async def main():
        async with serving(recording([]), codec, state={}) as server:
            client = await server.connect()
            client.send(first)
            await client.reply()
            connection = await server.connection()
            connection._heads._codec = counting = CountingCodec(connection._heads._codec)
            for data in rest:
                client.send(data)
                await client.reply()
            return counting.heads

    return run(main())


def test_known_fields_are_not_parsed_again(codec):
    fields = b" HTTP/1.1\r\nHost: a\r\nCookie: c\r\n\r\n"
    requests = [b"GET /%d%b" % (number, fields) for number in range(3)]
    assert heads_parsed(codec, requests[0], requests) == 0


def test_the_same_request_again_is_the_same_and_the_next_is_the_next(codec):
    seen = []
    asked = [b"/a?b", b"/a?b", b"/c", b"/c", b"/" + b"x" * 3000, b"/c", b"/a?b"]

    async def main():
        async with serving(recording(seen), codec, state={}) as server:
            client = await server.connect()
            for target in asked:
                client.send(b"GET %b HTTP/1.1\r\nHost: a\r\n\r\n" % target)
                assert (await client.reply()).status == 200

    run(main())
    assert [scope["raw_path"] for scope, _ in seen] == [target.partition(b"?")[0] for target in asked]
    assert [scope["query_string"] for scope, _ in seen] == [target.partition(b"?")[2] for target in asked]


@pytest.mark.parametrize("fields", FIELDS[6:12])
def test_fields_that_tell_of_more_than_a_head_are_parsed_every_time(codec, fields):
    if fields.startswith(b"Host: a\r\nExpect"):
        fields = b"Host: a\r\nExpect: nothing\r\n\r\n"
    requests = [b"GET /%d HTTP/1.1\r\n%b" % (number, fields) for number in range(3)]
    assert heads_parsed(codec, requests[0], requests) == 3


def test_an_application_that_changes_its_headers_changes_no_later_request(codec):
    seen = []

    async def app(scope, receive, send):
        seen.append(dict(scope, headers=list(scope["headers"]), asgi=dict(scope["asgi"]), state=dict(scope["state"])))
        for key in ("headers", "asgi", "state"):
            scope[key].clear()
        scope.clear()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ok"})

    async def main():
        async with serving(app, codec, state={"a": 1}) as server:
            client = await server.connect()
            for _ in range(3):
                client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
                await client.reply()

    run(main())
    assert seen[0] == seen[1] == seen[2]
    assert seen[0]["headers"] == [(b"host", b"a")]


def test_known_fields_do_not_carry_a_longer_line_past_the_limit_of_a_head(codec):
    fields = b"Host: a\r\n\r\n"

    async def main():
        async with serving(recording([]), codec, state={}, limits=Limits(head=200)) as server:
            client = await server.connect()
            client.send(b"GET / HTTP/1.1\r\n" + fields)
            assert (await client.reply()).status == 200
            client.send(b"GET /" + bytes(200).replace(b"\0", b"x") + b" HTTP/1.1\r\n" + fields)
            assert (await client.reply()).status == 431

    run(main())
