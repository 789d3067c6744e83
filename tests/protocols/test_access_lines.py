"""What access lines tell of real responses: their size and duration, and of those that did not come to their end."""

from __future__ import annotations

import asyncio
import json
from time import perf_counter

import pytest
from support.wire import read_body, run, serving

from procmgr.worker.access import LineAccessLog
from procmgr.worker.access_formats import FormattedAccessLog
from procmgr.worker.protocols.context import Limits

GET = b"GET /a?b HTTP/1.1\r\nHost: a\r\nX-Request-ID: one\r\n\r\n"
START = {"type": "http.response.start", "status": 200, "headers": [(b"x-answer", b"two")]}


@pytest.fixture(params=["httptools", "h11"])
def codec(request):
    return request.param


class Lines:
    def __init__(self):
        self.text = b""

    def write(self, data):
        self.text += data

    def flush(self):
        return True


async def told(app, codec, talk, *, template="json", **options):
    """Return the one line about what `talk` does with a client."""
    lines, loop = Lines(), asyncio.get_running_loop()
    if template == "uvicorn":
        access = LineAccessLog(writer=lines, loop=loop, colors=False)
    else:
        access = FormattedAccessLog(template, writer=lines, loop=loop)
    async with serving(app, codec, access=access, **options) as server:
        client = await server.connect()
        await talk(server, client)
        await server.until(lambda: lines.text)
    (line,) = lines.text.decode().splitlines()
    return json.loads(line) if template == "json" else line


async def ask(_, client, request=GET, method="GET"):
    client.send(request)
    await client.reply(method=method)


def parts(*bodies):
    async def app(scope, receive, send):
        await send(START)
        for part in bodies:
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body"})

    return app


def test_the_size_is_that_of_the_body_however_it_is_framed(codec):
    line = run(told(parts(b"abc", b"", b"defg"), codec, ask))
    assert (line["status"], line["response_bytes"], line["method"], line["target"]) == (200, 7, "GET", "/a?b")
    assert line["request_id"] == "one"
    assert line["client"].startswith("127.0.0.1:")


def test_a_body_that_is_not_sent_does_not_count(codec):
    async def head(_, client):
        await ask(_, client, GET.replace(b"GET", b"HEAD"), "HEAD")

    assert run(told(parts(b"abc"), codec, head))["response_bytes"] == 0


def test_the_duration_is_that_of_the_application(codec):
    async def app(scope, receive, send):
        begin = perf_counter()  # the loop's clock only counts whole milliseconds
        while perf_counter() < begin + 0.05:
            await asyncio.sleep(0.01)
        await parts()(scope, receive, send)

    assert run(told(app, codec, ask))["duration_seconds"] >= 0.05


def test_fields_of_the_response_can_be_told(codec):
    assert run(told(parts(b"abc"), codec, ask, template="%({x-answer}o)s %(s)s")) == "two 200"


def test_an_application_that_fails_is_a_500_with_the_bytes_of_its_page(codec):
    async def app(scope, receive, send):
        raise ValueError("boom")

    line = run(told(app, codec, ask))
    assert (line["status"], line["response_bytes"]) == (500, len("500 Internal Server Error\n"))


def test_a_response_cut_short_has_its_status_and_what_was_sent(codec):
    async def app(scope, receive, send):
        await send({**START, "headers": [(b"content-length", b"10")]})
        await send({"type": "http.response.body", "body": b"abc", "more_body": True})
        raise ValueError("boom")

    line = run(told(app, codec, ask))
    assert (line["status"], line["response_bytes"]) == (200, 3)


@pytest.mark.parametrize("template", ["uvicorn", "%(s)s"])
def test_a_client_that_goes_before_the_response_is_a_499(codec, template):
    async def app(scope, receive, send):
        await read_body(receive)
        assert (await receive())["type"] == "http.disconnect"

    async def go(server, client):
        client.send(GET)
        await server.until(lambda: server.context.active == 1)
        client.vanish()

    line = run(told(app, codec, go, template=template))
    assert "499" in line


def test_a_body_that_is_too_large_is_told_with_its_413(codec):
    async def app(scope, receive, send):
        await read_body(receive)
        await send(START)

    async def post(_, client):
        chunk = b"20\r\n" + b"x" * 32 + b"\r\n"
        client.send(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk)
        assert (await client.reply()).status == 413

    assert run(told(app, codec, post, limits=Limits(body_size=16)))["status"] == 413


def test_one_request_too_many_is_told_with_its_503(codec):
    lines = []

    async def main():
        held = asyncio.Event()

        async def app(scope, receive, send):
            await held.wait()
            await parts()(scope, receive, send)

        writer = Lines()
        access = FormattedAccessLog("%(s)s %(B)s", writer=writer, loop=asyncio.get_running_loop())
        async with serving(app, codec, access=access, limits=Limits(concurrency=1)) as server:
            first, second = await server.connect(), await server.connect()
            first.send(GET)
            await server.until(lambda: server.context.active == 1)
            second.send(GET)
            reply = await second.reply()
            held.set()
            await first.reply()
            await server.until(lambda: writer.text.count(b"\n") == 2)
            lines.extend(writer.text.decode().splitlines())
            assert lines == [f"503 {len(reply.body)}", "200 0"]

    run(main())
