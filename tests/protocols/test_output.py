"""Output that is gathered leaves, in order and within bounds, whatever becomes of another connection's."""

from __future__ import annotations

import pytest
from support.wire import responding, run, serving

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
LOOPS = pytest.mark.parametrize("loop", ["asyncio", "uvloop"])


@pytest.fixture(params=["httptools", "h11"])
def codec(request):
    return request.param


class Broken:
    """A connection whose output cannot be written."""

    aborted = False

    def flush(self):
        raise RuntimeError("no more")

    def abort(self):
        self.aborted = True


@LOOPS
def test_a_connection_whose_output_fails_costs_no_other_its_own(codec, loop):
    async def main():
        async with serving(responding(), codec) as server:
            broken = Broken()
            for _ in range(2):
                server.context.flush_soon(broken)
                client = await server.connect()
                client.send(GET)
                assert (await client.reply()).body == b"ok"
            assert broken.aborted
            assert server.context.unflushed == []
            assert "a connection's output cannot be written" in server.records.lines

    run(main(), loop)


@LOOPS
def test_a_response_in_large_pieces_waits_for_a_client_that_does_not_read(codec, loop):
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200})
        for _ in range(1000):
            await send({"type": "http.response.body", "body": bytes(40_000), "more_body": True})
            await send({"type": "http.response.body", "body": bytes(60_000), "more_body": True})
        await send({"type": "http.response.body"})

    async def main():
        async with serving(app, codec) as server:
            client = await server.connect()
            client.writer.transport.pause_reading()
            client.send(GET)
            connection = await server.connection()
            await server.until(lambda: connection.write_paused)
            assert connection.transport.get_write_buffer_size() < 1 << 20

    run(main(), loop)
