"""WebSockets on the wire, byte by byte: handshake, frames, limits, back-pressure, closing, deadlines, drain."""

from __future__ import annotations

import asyncio
import zlib

import pytest
from support.frames import (
    BINARY,
    CLOSE,
    CONT,
    DEFLATE,
    KEY,
    PING,
    PONG,
    TEXT,
    UPGRADE,
    VERSION,
    Peer,
    closing,
    deflated,
    frame,
    handshake,
    opened,
    serving_websocket,
)
from support.wire import read_body, run

from procmgr import scoreboard
from procmgr.errors import ClientDisconnected
from procmgr.worker.access import LineAccessLog, RecordAccessLog
from procmgr.worker.protocols.base import DrainMode, Limits
from procmgr.worker.protocols.websocket_connection import CLOSE as CLOSE_SECONDS

LIBRARIES = pytest.mark.parametrize("ws", ["websockets", "wsproto"])
PARSERS = pytest.mark.parametrize("http", ["httptools", "h11"])


async def echo(scope, receive, send):
    """Send back what comes, until it ends; serve HTTP too."""
    if scope["type"] == "http":
        await read_body(receive)
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": b"http"})
        return
    assert await receive() == {"type": "websocket.connect"}
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        await send({**message, "type": "websocket.send"})


class Noting:
    """Accepts, and notes every message; `resume` lets it take the first one."""

    def __init__(self, *, paused=False):
        self.messages = []
        self.resume = asyncio.Event()
        self.ended = asyncio.Event()
        if not paused:
            self.resume.set()

    async def __call__(self, scope, receive, send):
        await receive()
        await send({"type": "websocket.accept"})
        await self.resume.wait()
        while not self.messages or self.messages[-1]["type"] == "websocket.receive":
            self.messages.append(await receive())
        self.ended.set()

    @property
    def texts(self):
        return [message.get("text", message.get("bytes")) for message in self.messages[:-1]]

    async def disconnect(self):
        """Return the code that ended it."""
        async with asyncio.timeout(30):
            await self.ended.wait()
        return self.messages[-1]["code"]


def only(server):
    (connection,) = server.context.connections
    return connection


# -- the handshake ---------------------------------------------------------------------------------------------------


@PARSERS
def test_a_handshake_is_answered_as_the_rfc_shows_it(http):
    async def main():
        async with serving_websocket(echo, http=http, headers=[(b"x-all", b"1")]) as server:
            _, reply = await opened(server)
            assert reply.header("upgrade") == "websocket"
            assert reply.header("connection").lower() == "upgrade"
            assert reply.header("sec-websocket-accept") == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
            assert [reply.header(name) for name in ("server", "x-all")] == ["procmgr", "1"]
            assert reply.header("date")
            absent = ("content-length", "transfer-encoding", "sec-websocket-extensions", "sec-websocket-protocol")
            assert [reply.header(name) for name in absent] == [None] * 4

    run(main())


@PARSERS
def test_the_scope_says_what_was_asked_for(http):
    scopes = []

    async def app(scope, receive, send):
        scopes.append(scope)
        await send({"type": "websocket.accept", "subprotocol": "b", "headers": [(b"x-own", b"1")]})

    async def main():
        async with serving_websocket(app, http=http, root_path="/r", state={"s": 1}) as server:
            peer, reply = await opened(server, b"Sec-WebSocket-Protocol: a, b\r\nSec-WebSocket-Protocol: c\r\n")
            assert (reply.header("sec-websocket-protocol"), reply.header("x-own")) == ("b", "1")
            assert await peer.closed() == 1000

    run(main())
    (scope,) = scopes
    assert (scope["type"], scope["scheme"], scope["http_version"]) == ("websocket", "ws", "1.1")
    assert scope["asgi"] == {"version": "3.0", "spec_version": "2.5"}
    assert (scope["path"], scope["raw_path"], scope["query_string"]) == ("/r/chat", b"/r/chat", b"a=1")
    assert (scope["subprotocols"], scope["state"], scope["root_path"]) == (["a", "b", "c"], {"s": 1}, "/r")
    assert scope["extensions"]["websocket.http.response"] == {}
    assert not scope["extensions"]["procmgr"]["draining"].is_set()
    assert (b"upgrade", b"websocket") in scope["headers"]
    assert "method" not in scope


def answered(request, *, http="httptools", **more):
    """Return the reply to a handshake by `echo`, and what was logged."""

    async def main():
        async with serving_websocket(echo, http=http, **more) as server:
            client = await server.connect()
            client.send(request)
            return await client.reply(), server.records.lines

    return run(main())


@PARSERS
@pytest.mark.parametrize("fields", [b"Cookie: a=" + b"x" * 10_240 + b"\r\n", b"X-Many: 1\r\n" * 140])
def test_a_big_cookie_and_many_fields_are_no_hindrance(http, fields):
    assert answered(handshake(fields), http=http)[0].status == 101


@PARSERS
@pytest.mark.parametrize("fields", [b"Cookie: a=" + b"x" * 70_000 + b"\r\n", b"X-Many: 1\r\n" * 300])
def test_too_much_of_them_is_answered_with_431(http, fields):
    assert answered(handshake(fields), http=http)[0].status == 431


@PARSERS
@pytest.mark.parametrize(
    ("status", "request_"),
    [
        (405, handshake(line=b"POST / HTTP/1.1\r\n")),
        (405, handshake(b"Content-Length: 3\r\n", line=b"PUT / HTTP/1.1\r\n") + b"abc"),
        (400, handshake(b"Content-Length: 3\r\n") + b"abc"),
        (400, handshake(b"Transfer-Encoding: chunked\r\n") + b"0\r\n\r\n"),
        (426, handshake(upgrade=UPGRADE + KEY + b"Sec-WebSocket-Version: 8\r\n")),
        (426, handshake(upgrade=UPGRADE + KEY + b"Sec-WebSocket-Version: 13, 8\r\n")),
        (426, handshake(upgrade=UPGRADE + KEY)),
        (400, handshake(upgrade=UPGRADE + VERSION)),
        (400, handshake(KEY)),
        (400, handshake(upgrade=UPGRADE + VERSION + b"Sec-WebSocket-Key: short\r\n")),
        (400, handshake(b"Sec-WebSocket-Extensions: ;;=\r\n")),
        (400, handshake(b"Sec-WebSocket-Protocol: a b\r\n")),
    ],
)
def test_a_handshake_that_is_wrong_is_refused_with_a_reason(http, status, request_):
    reply, lines = answered(request_, http=http)
    assert (reply.status, reply.header("content-type")) == (status, "text/plain; charset=utf-8")
    assert "close" in [value for name, value in reply.headers if name == "connection"]
    assert len(lines) == 1
    assert str(status) in lines[0]
    if status == 426:
        assert (reply.header("sec-websocket-version"), reply.header("upgrade")) == ("13", "websocket")
    if status == 405:
        assert reply.header("allow") == "GET"


@PARSERS
@pytest.mark.parametrize(
    "request_",
    [
        handshake(line=b"GET / HTTP/1.0\r\n"),
        handshake(upgrade=b"Upgrade: websocket\r\n" + KEY + VERSION),
        handshake(upgrade=b"Connection: Upgrade\r\nUpgrade: h2c\r\n" + KEY + VERSION),
    ],
)
def test_what_asks_for_no_websocket_is_a_request(http, request_):
    assert answered(request_, http=http)[0].body == b"http"


@PARSERS
def test_without_websockets_a_handshake_is_a_request(http):
    async def main():
        async with serving_websocket(echo, "none", http=http) as server:
            client = await server.connect()
            for _ in range(2):  # and the connection goes on as HTTP
                client.send(handshake())
                assert (await client.reply()).body == b"http"

    run(main())


def test_websocket_may_be_one_of_several_protocols():
    upgrade = b"Connection: keep-alive, Upgrade\r\nUpgrade: h2c, WebSocket\r\n" + KEY + VERSION
    assert answered(handshake(upgrade=upgrade))[0].status == 101


def denying(*messages):
    async def app(scope, receive, send):
        if scope["type"] == "http":
            return await echo(scope, receive, send)
        for message in messages:
            await send(message)
        return None

    return app


@PARSERS
@pytest.mark.parametrize(
    ("messages", "status", "body"),
    [
        ([{"type": "websocket.close"}], 403, b""),
        (
            [
                {"type": "websocket.http.response.start", "status": 401, "headers": [(b"x-why", b"1")]},
                {"type": "websocket.http.response.body", "body": b"no ", "more_body": True},
                {"type": "websocket.http.response.body", "body": b"entry"},
            ],
            401,
            b"no entry",
        ),
    ],
)
def test_a_denied_handshake_is_an_http_response_and_the_connection_goes_on(http, messages, status, body):
    async def main():
        async with serving_websocket(denying(*messages), http=http) as server:
            client = await server.connect()
            for _ in range(2):
                client.send(handshake() + b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc")
                reply = await client.reply()
                assert (reply.status, reply.body) == (status, body)
                assert reply.header("x-why") == ("1" if body else None)
                assert (await client.reply()).body == b"http"
            assert server.records.lines == []

    run(main())


def test_an_application_that_fails_before_its_accept_is_a_500():
    async def main():
        async with serving_websocket(denying({"type": "websocket.send", "text": "a"})) as server:
            client = await server.connect()
            client.send(handshake())
            assert (await client.reply()).status == 500
            assert len(server.records.lines) == 1

    run(main())


@LIBRARIES
def test_frames_that_came_with_the_handshake_are_not_lost(ws):
    async def main():
        async with serving_websocket(echo, ws) as server:
            peer, _ = await opened(server, behind=frame(TEXT, "early") + frame(TEXT, "bird"))
            assert [await peer.frame(), await peer.frame()] == [(TEXT, b"early"), (TEXT, b"bird")]

    run(main())


def test_a_client_that_goes_before_the_accept_is_a_disconnect():
    told = []

    async def main():
        gone = asyncio.Event()

        async def app(scope, receive, send):
            await receive()
            told.append(await receive())
            with pytest.raises(ClientDisconnected):
                await send({"type": "websocket.accept"})
            gone.set()

        async with serving_websocket(app) as server:
            client = await server.connect()
            client.send(handshake())
            await server.until(lambda: server.context.active)
            client.vanish()
            async with asyncio.timeout(10):
                await gone.wait()
            await server.until(lambda: not server.context.connections)
            assert server.records.lines == []

    run(main())
    assert told == [{"type": "websocket.disconnect", "code": 1006, "reason": ""}]


# -- accounts --------------------------------------------------------------------------------------------------------


def test_an_open_websocket_is_a_request_that_runs_and_counts_at_its_end():
    async def main():
        row = scoreboard.detached_row()
        records = memoryview(bytearray(scoreboard.RECORDS_BYTES))
        limits = Limits(concurrency=1)
        inflight = scoreboard.InFlight(records)
        async with serving_websocket(echo, row=row, inflight=inflight, limits=limits) as server:
            peer, _ = await opened(server)
            assert (row[scoreboard.ACTIVE], row[scoreboard.CONNECTIONS], row[scoreboard.ACCEPTED]) == (1, 1, 1)
            assert [what for _, what in scoreboard.running(records)] == ["GET /chat"]
            assert row[scoreboard.REQUESTS] == 0
            second = await server.connect()
            second.send(handshake())
            assert (await second.reply()).status == 503
            peer.send(closing(1000))
            await peer.closed()
            await server.until(lambda: not row[scoreboard.ACTIVE])
            assert (row[scoreboard.REQUESTS], row[scoreboard.STATUS_1XX], row[scoreboard.APP_ERRORS]) == (2, 1, 0)
            assert scoreboard.running(records) == []

    run(main())


class Lines:
    def __init__(self):
        self.text = b""

    def write(self, data):
        self.text += data

    def flush(self):
        pass


def test_one_line_at_the_end_says_code_duration_and_messages():
    async def main():
        lines = Lines()
        access = LineAccessLog(writer=lines, loop=asyncio.get_running_loop(), colors=False)
        async with serving_websocket(echo, access=access) as server:
            peer, _ = await opened(server, behind=frame(TEXT, "a") * 3)
            for _ in range(3):
                await peer.frame()
            assert lines.text == b""
            peer.send(closing(4001))
            await peer.closed()
            await server.until(lambda: lines.text)
        return lines.text.decode()

    line = run(main())
    assert line.startswith("INFO:     127.0.0.1:")
    assert line.count("\n") == 1
    head, _, rest = line.partition(" after ")
    assert head.endswith(' - "WebSocket /chat?a=1" closed 4001')
    seconds, _, rest = rest.partition("s, ")
    assert 0 <= float(seconds) < 10
    assert rest == "3 in, 3 out\n"


def test_as_a_record_the_line_has_uvicorns_five_arguments(caplog):
    import logging

    async def main():
        access = RecordAccessLog(logger=logging.getLogger("access-test"))
        with caplog.at_level(logging.INFO, "access-test"):
            async with serving_websocket(echo, access=access) as server:
                peer, _ = await opened(server)
                peer.send(closing(1000))
                await peer.closed()
                await server.until(lambda: caplog.records)

    run(main())
    (record,) = caplog.records
    assert record.args[1:] == ("WebSocket", "/chat?a=1", "1.1", 101)
    assert '"WebSocket /chat?a=1 HTTP/1.1" 101 closed 1000 after ' in record.getMessage()


# -- messages --------------------------------------------------------------------------------------------------------


@LIBRARIES
@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_messages_of_every_size_come_back(ws, loop):
    async def main():
        async with serving_websocket(echo, ws) as server:
            peer, _ = await opened(server)
            for size in (0, 1, 125, 126, 127, 4095, 4096, 4097, 65_535, 65_536, 1_000_000):
                peer.send(frame(BINARY, b"\xff" * size))
                assert await peer.frame() == (BINARY, b"\xff" * size)
                peer.send(frame(TEXT, "\u20ac" * (size // 3)))
                assert await peer.frame() == (TEXT, "\u20ac".encode() * (size // 3))

    run(main(), loop)


@LIBRARIES
def test_bytes_one_at_a_time_are_the_same_messages(ws):
    async def main():
        async with serving_websocket(echo, ws) as server:
            peer, _ = await opened(server)
            sent = frame(TEXT, "h\u00e9") + frame(TEXT, "a", fin=False) + frame(PING, b"p") + frame(CONT, "\u20ac")
            for byte in sent:
                peer.send(bytes([byte]))
                await asyncio.sleep(0)
            assert [await peer.frame() for _ in range(3)] == [
                (TEXT, "h\u00e9".encode()),
                (PONG, b"p"),
                (TEXT, "a\u20ac".encode()),
            ]

    run(main())


@LIBRARIES
def test_fragments_are_one_message_even_if_a_character_is_cut(ws):
    async def main():
        app = Noting()
        async with serving_websocket(app, ws) as server:
            euro = "\u20ac".encode()
            peer, _ = await opened(server)
            peer.send(frame(TEXT, euro[:1], fin=False) + frame(CONT, euro[1:2], fin=False) + frame(CONT, euro[2:]))
            peer.send(frame(BINARY, b"a", fin=False) + frame(CONT, b"", fin=False) + frame(CONT, b"b"))
            peer.send(frame(TEXT, "", fin=False) + frame(CONT, "") + closing(1000))
            assert await app.disconnect() == 1000
            assert app.texts == ["\u20ac", b"ab", ""]

    run(main())


@LIBRARIES
def test_compression_is_used_where_it_is_offered_and_allowed(ws):
    async def main():
        for allowed in (True, False):
            async with serving_websocket(echo, ws, options={"ws_per_message_deflate": allowed}) as server:
                peer, reply = await opened(server, DEFLATE)
                extensions = reply.header("sec-websocket-extensions")
                if not allowed:
                    assert extensions is None
                    continue
                assert extensions.startswith("permessage-deflate")
                assert "client_max_window_bits=12" in extensions
                inflate = zlib.decompressobj(wbits=-15)
                compressor = zlib.compressobj(wbits=-12)
                for _ in range(3):
                    peer.send(frame(TEXT, deflated(b"abc" * 1000, compressor), rsv=4))
                    opcode, payload = await peer.frame()
                    assert opcode == TEXT | 0x40
                    assert inflate.decompress(payload + b"\0\0\xff\xff") == b"abc" * 1000

    run(main())


@LIBRARIES
def test_a_ping_between_compressed_fragments_does_not_harm_them(ws):
    async def main():
        app = Noting()
        async with serving_websocket(app, ws) as server:
            peer, _ = await opened(server, DEFLATE)
            whole = deflated(b"abc" * 1000)
            peer.send(frame(TEXT, whole[:5], rsv=4, fin=False) + frame(PING, b"p") + frame(CONT, whole[5:]))
            assert await peer.frame() == (PONG, b"p")
            peer.send(frame(TEXT, "plain") + closing(1000))
            assert await app.disconnect() == 1000
            assert app.texts == ["abc" * 1000, "plain"]

    run(main())


@LIBRARIES
@pytest.mark.parametrize(
    "offer",
    [
        "permessage-deflate",
        "permessage-deflate; client_no_context_takeover; server_no_context_takeover",
        "permessage-deflate; server_max_window_bits=9; client_max_window_bits=9",
        'permessage-deflate; client_max_window_bits="15"',
        "permessage-deflate; unknown=1, permessage-deflate",
    ],
)
def test_every_offer_of_compression_works(ws, offer):
    async def main():
        async with serving_websocket(echo, ws) as server:
            peer, reply = await opened(server, f"Sec-WebSocket-Extensions: {offer}\r\n".encode())
            agreed = reply.header("sec-websocket-extensions")
            bits = (
                15
                if "client_max_window_bits" not in agreed
                else int(agreed.split("client_max_window_bits=")[1][:2].strip(";"))
            )
            forget = "client_no_context_takeover" in agreed
            compressor = zlib.compressobj(wbits=-bits)
            inflate = zlib.decompressobj(wbits=-15)
            data = bytes(range(256)) * 100
            for _ in range(2):
                peer.send(
                    frame(
                        BINARY,
                        deflated(
                            data,
                            None if forget and bits > 12 else zlib.compressobj(wbits=-bits) if forget else compressor,
                        ),
                        rsv=4,
                    )
                )
                _, payload = await peer.frame()
                assert inflate.decompress(payload + b"\0\0\xff\xff") == data
                if "server_no_context_takeover" in agreed:
                    inflate = zlib.decompressobj(wbits=-15)

    run(main())


# -- violations and limits -------------------------------------------------------------------------------------------


@LIBRARIES
@pytest.mark.parametrize(
    ("code", "sent"),
    [
        (1002, frame(3, b"a")),
        (1002, frame(TEXT, b"a", rsv=4)),
        (1002, frame(TEXT, b"\xff", rsv=2)),
        (1002, frame(TEXT, b"a", mask=b"")),
        (1002, frame(CONT, b"a")),
        (1002, frame(TEXT, b"a", fin=False) + frame(TEXT, b"a")),
        (1002, frame(PING, b"a", fin=False)),
        (1002, frame(PING, b"a" * 126)),
        (1002, frame(CLOSE, b"a")),
        (1002, closing(1005)),
        (1002, closing(999)),
        (1007, frame(TEXT, b"\xff")),
        (1007, frame(TEXT, b"ok", fin=False) + frame(CONT, b"\xff", fin=False)),
        (1007, frame(TEXT, b"\xe2\x82")),
        (1007, frame(TEXT, b"\xe2\x82", fin=False) + frame(CONT, b"")),
        (1009, frame(BINARY, b"a" * 1001)),
        (1009, frame(TEXT, "\u20ac" * 334)),
        (1009, frame(BINARY, b"a" * 600, fin=False) + frame(CONT, b"a" * 401)),
    ],
)
def test_a_violation_is_answered_with_its_code_and_the_end(ws, code, sent):
    async def main():
        app = Noting()
        async with serving_websocket(app, ws, options={"ws_max_size": 1000}) as server:
            peer, _ = await opened(server)
            peer.send(sent + frame(TEXT, "after") + closing(1000))  # of which nothing counts any more
            assert await peer.closed() == code
            await peer.end()
            assert await app.disconnect() == code
            assert app.texts == []
            assert server.records.lines == []

    run(main())


@LIBRARIES
def test_a_message_of_just_the_limit_is_taken(ws):
    async def main():
        async with serving_websocket(echo, ws, options={"ws_max_size": 1000}) as server:
            peer, _ = await opened(server, DEFLATE)
            peer.send(frame(BINARY, b"a" * 1000))
            peer.send(frame(BINARY, deflated(b"a" * 1000), rsv=4))
            assert [(await peer.frame())[0] for _ in range(2)] == [BINARY | 0x40] * 2

    run(main())


@LIBRARIES
def test_what_inflates_to_more_than_the_limit_is_1009_before_it_is_inflated(ws):
    async def main():
        app = Noting()
        async with serving_websocket(app, ws, options={"ws_max_size": 1 << 20}) as server:
            peer, _ = await opened(server, DEFLATE)
            peer.send(frame(BINARY, deflated(bytes(64 << 20)), rsv=4))
            assert await peer.closed() == 1009
            assert await app.disconnect() == 1009

    run(main())


@LIBRARIES
def test_messages_before_a_violation_are_delivered(ws):
    async def main():
        app = Noting()
        async with serving_websocket(app, ws) as server:
            peer, _ = await opened(server)
            peer.send(frame(TEXT, "good") + frame(TEXT, b"\xff"))
            assert await peer.closed() == 1007
            assert await app.disconnect() == 1007
            assert app.texts == ["good"]

    run(main())


# -- back-pressure ---------------------------------------------------------------------------------------------------


@LIBRARIES
@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_a_flood_of_tiny_frames_is_not_read_further_than_the_queue_and_arrives_whole(ws, loop):
    async def main():
        app = Noting(paused=True)
        total = 10_000
        async with serving_websocket(app, ws, options={"ws_max_queue": 8}) as server:
            peer, _ = await opened(server)
            peer.send(b"".join(frame(BINARY, number.to_bytes(3)) for number in range(total)) + closing(1000))
            connection = only(server)
            await server.until(lambda: not connection.reading)
            slice_holds = 4096 // 9 + 1
            assert len(connection._cycle._queue) <= 8 + slice_holds
            app.resume.set()
            assert await app.disconnect() == 1000
            assert app.texts == [number.to_bytes(3) for number in range(total)]

    run(main(), loop)


@LIBRARIES
def test_the_queue_is_bounded_in_bytes_too(ws):
    async def main():
        app = Noting(paused=True)
        async with serving_websocket(app, ws, options={"ws_max_queue": 1000}) as server:
            peer, _ = await opened(server, DEFLATE)
            compressor = zlib.compressobj(wbits=-12)
            peer.send(b"".join(frame(BINARY, deflated(bytes(100_000), compressor), rsv=4) for _ in range(500)))
            connection = only(server)
            await server.until(lambda: not connection.reading)
            assert connection._cycle._queued < 6 << 20  # the bound, and what one slice inflates to at most
            peer.send(closing(1000))
            app.resume.set()
            assert await app.disconnect() == 1000
            assert len(app.texts) == 500

    run(main())


@LIBRARIES
def test_a_close_frame_behind_a_full_queue_comes_after_the_messages(ws):
    async def main():
        app = Noting(paused=True)
        async with serving_websocket(app, ws, options={"ws_max_queue": 1}) as server:
            peer, _ = await opened(server)
            peer.send(frame(TEXT, "a" * 5000) + frame(TEXT, "b" * 5000) + closing(3001))
            peer.client.shut()
            await server.until(lambda: not only(server).reading)
            app.resume.set()
            assert await app.disconnect() == 3001
            assert [text[0] for text in app.texts] == ["a", "b"]
            assert await peer.closed() == 3001

    run(main())


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_send_waits_for_a_peer_that_does_not_read_and_raises_when_it_goes(loop):
    async def main():
        outcome = []
        sent = []

        async def app(scope, receive, send):
            await send({"type": "websocket.accept"})
            try:
                while True:
                    await send({"type": "websocket.send", "bytes": bytes(65_536)})
                    sent.append(1)
            except OSError as error:
                outcome.append(type(error))
                raise

        async with serving_websocket(app) as server:
            client = await server.connect()
            client.writer.transport.pause_reading()
            client.send(handshake())
            await server.until(lambda: server.context.connections and only(server).write_paused)
            stuck = len(sent)
            for _ in range(10):
                await asyncio.sleep(0)
            assert len(sent) == stuck
            client.vanish()
            await server.until(lambda: outcome)
            assert outcome == [ClientDisconnected]
            assert server.records.lines == []

    run(main(), loop)


@LIBRARIES
def test_a_flood_of_pings_from_a_peer_that_does_not_read_is_not_answered_into_memory(ws):
    async def main():
        async with serving_websocket(echo, ws) as server:
            client = await server.connect()
            client.writer.transport.pause_reading()
            client.send(handshake())
            await server.until(lambda: server.context.connections and hasattr(only(server), "_cycle"))
            connection = only(server)
            flood = frame(PING, b"x" * 125) * 1000
            sent = 0
            while connection.reading and sent < 1000:
                client.send(flood)
                sent += 1
                await asyncio.sleep(0)
            await server.until(lambda: not connection.reading)
            assert connection.transport.get_write_buffer_size() < 256 * 1024
            client.writer.transport.resume_reading()
            assert (await client.reply()).status == 101
            async with asyncio.timeout(20):
                for _ in range(sent):  # and none is forgotten
                    assert await client.reader.readexactly(127_000) == frame(PONG, b"x" * 125, mask=b"") * 1000

    run(main())


# -- closing ---------------------------------------------------------------------------------------------------------


@LIBRARIES
@pytest.mark.parametrize(("sent", "code"), [(closing(1000, b"bye"), 1000), (closing(4999), 4999), (frame(CLOSE), 1005)])
def test_a_close_frame_is_echoed_and_the_connection_ends(ws, sent, code):
    async def main():
        app = Noting()
        async with serving_websocket(app, ws) as server:
            peer, _ = await opened(server)
            peer.send(sent)
            assert await peer.closed() == (None if code == 1005 else code)
            await peer.end()
            assert await app.disconnect() == code
            peer.client.writer.close()
            await server.until(lambda: not server.context.connections)

    run(main())


@LIBRARIES
def test_the_applications_close_waits_for_the_peers_and_then_ends_the_connection(ws):
    async def app(scope, receive, send):
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.close", "code": 4000, "reason": "\u20ac" * 100})

    async def main():
        async with serving_websocket(app, ws) as server:
            peer, _ = await opened(server)
            opcode, payload = await peer.frame()
            assert (opcode, payload[:2], payload[2:].decode()) == (CLOSE, b"\x0f\xa0", "\u20ac" * 41)
            peer.send(frame(TEXT, "too late"))
            peer.send(closing(4000))
            await peer.end()

    run(main())


def test_a_peer_that_does_not_answer_the_close_is_cut_in_time():
    async def app(scope, receive, send):
        await send({"type": "websocket.accept"})

    async def main():
        async with serving_websocket(app) as server:
            peer, _ = await opened(server)
            assert await peer.closed() == 1000
            context = server.context
            now = context.loop.time()
            context.sweep(now + CLOSE_SECONDS - 2)
            assert context.connections
            context.sweep(now + CLOSE_SECONDS + 2)
            await server.until(lambda: not context.connections)

    run(main())


@LIBRARIES
def test_an_application_that_raises_closes_with_1011(ws):
    async def app(scope, receive, send):
        await send({"type": "websocket.accept"})
        raise ValueError("on purpose")

    async def main():
        async with serving_websocket(app, ws) as server:
            peer, _ = await opened(server)
            assert await peer.closed() == 1011
            assert len(server.records.lines) == 1

    run(main())


@LIBRARIES
@pytest.mark.parametrize("how", ["vanish", "shut"])
def test_a_peer_that_goes_without_a_word_is_1006(ws, how):
    async def main():
        app = Noting()
        async with serving_websocket(app, ws) as server:
            peer, _ = await opened(server)
            peer.send(frame(TEXT, "last"))
            await server.until(lambda: app.messages)
            getattr(peer.client, how)()
            assert await app.disconnect() == 1006
            await server.until(lambda: not server.context.connections)

    run(main())


# -- keep-alive ------------------------------------------------------------------------------------------------------

PINGING = {"ws_ping_interval": 10.0, "ws_ping_timeout": 15.0}


@LIBRARIES
def test_an_idle_websocket_is_pinged_and_lives_as_long_as_it_answers(ws):
    async def main():
        async with serving_websocket(Noting(), ws, options=PINGING) as server:
            peer, _ = await opened(server)
            context, now = server.context, server.context.loop.time()
            seen = set()
            for _ in range(5):
                now += 12
                context.sweep(now)
                opcode, payload = await peer.frame()
                assert opcode == PING
                seen.add(payload)
                connection = only(server)
                peer.send(frame(PONG, payload))
                await server.until(lambda connection=connection: connection._ping is None)
            assert len(seen) == 5

    run(main())


@LIBRARIES
def test_a_peer_that_answers_no_ping_is_closed_with_1011(ws):
    async def main():
        app = Noting()
        async with serving_websocket(app, ws, options=PINGING) as server:
            peer, _ = await opened(server)
            context, now = server.context, server.context.loop.time()
            context.sweep(now + 12)
            assert (await peer.frame())[0] == PING
            peer.send(frame(PONG, b"to something else") + frame(TEXT, "alive"))
            await server.until(lambda: app.messages)
            context.sweep(now + 20)
            assert only(server)._close_by is None
            for later in (24, 29):
                context.sweep(now + later)
            assert await peer.closed() == 1011
            assert await app.disconnect() == 1011

    run(main())


def test_a_pong_that_we_do_not_read_is_not_missed():
    async def main():
        app = Noting(paused=True)
        async with serving_websocket(app, options={**PINGING, "ws_max_queue": 1}) as server:
            peer, _ = await opened(server)
            peer.send(frame(TEXT, "a" * 5000) + frame(TEXT, "b" * 5000))
            await server.until(lambda: not only(server).reading)
            context, now = server.context, server.context.loop.time()
            for _ in range(10):
                now += 12
                context.sweep(now)
            opcode, payload = await peer.frame()
            assert opcode == PING
            assert only(server)._close_by is None
            app.resume.set()
            peer.send(frame(PONG, payload) + closing(1000))
            assert await app.disconnect() == 1000

    run(main())


def test_a_ping_behind_what_a_slow_peer_still_takes_is_not_missed_until_it_takes_no_more():
    async def app(scope, receive, send):
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "bytes": bytes(3 << 20)})
        while (await receive())["type"] == "websocket.receive":
            pass

    async def main():
        async with serving_websocket(app, options={**PINGING, "ws_per_message_deflate": False}) as server:
            peer, _ = await opened(server)
            connection = only(server)
            await server.until(lambda: connection.handed > 3 << 20)
            context, now = server.context, server.context.loop.time()
            context.sweep(now + 12)
            for later in (30, 48):
                before = connection._untaken()
                await peer.exactly(700_000)
                await server.until(lambda before=before: connection._untaken() < before)
                context.sweep(now + later)
                assert connection._close_by is None
            context.sweep(now + 66)
            assert connection._close_by is not None or not connection.is_open()

    run(main())


@pytest.mark.parametrize("options", [{"ws_ping_interval": 0.0}, {"ws_ping_interval": 10.0, "ws_ping_timeout": 0.0}])
def test_zero_never_pings_or_never_times_out(options):
    async def main():
        async with serving_websocket(Noting(), options=options) as server:
            peer, _ = await opened(server)
            context, now = server.context, server.context.loop.time()
            for _ in range(10):
                now += 12
                context.sweep(now)
            peer.send(frame(PING, b"mine"))
            pings = 0
            while (received := await peer.frame())[0] == PING:
                pings += 1
            assert received == (PONG, b"mine")
            assert pings == (10 if options["ws_ping_interval"] else 0)

    run(main())


# -- the drain -------------------------------------------------------------------------------------------------------


@LIBRARIES
@pytest.mark.parametrize("mode", [DrainMode.STOP, DrainMode.QUICK])
def test_a_stop_closes_with_1012_at_once_and_the_application_is_told(ws, mode):
    async def main():
        app = Noting()
        async with serving_websocket(app, ws) as server:
            peer, _ = await opened(server)
            server.context.begin_drain(mode)
            assert await peer.closed() == 1012
            assert await app.disconnect() == 1012
            peer.send(closing(1012))
            await peer.end()
            peer.client.writer.close()
            async with asyncio.timeout(10):
                await asyncio.shield(server.context.drained())

    run(main())


def test_a_retirement_leaves_it_open_until_it_becomes_quick():
    async def main():
        async with serving_websocket(echo) as server:
            peer, _ = await opened(server)
            server.context.begin_drain(DrainMode.RETIRE)
            peer.send(frame(TEXT, "still here"))
            assert await peer.frame() == (TEXT, b"still here")
            server.context.begin_drain(DrainMode.QUICK)
            assert await peer.closed() == 1012

    run(main())


def test_one_that_is_accepted_while_the_service_stops_is_closed_at_once():
    async def main():
        go = asyncio.Event()

        async def app(scope, receive, send):
            await go.wait()
            await echo(scope, receive, send)

        async with serving_websocket(app) as server:
            client = await server.connect()
            client.send(handshake())
            await server.until(lambda: server.context.active)
            server.context.begin_drain(DrainMode.STOP)
            go.set()
            assert (await client.reply()).status == 101
            assert await Peer(client).closed() == 1012

    run(main())


def test_a_peer_that_does_not_answer_holds_no_stop_up():
    async def main():
        async with serving_websocket(echo) as server:
            peer, _ = await opened(server)
            server.context.begin_drain(DrainMode.STOP)
            async with asyncio.timeout(10):
                await asyncio.shield(server.context.drained())
            assert await peer.closed() == 1012

    run(main())


def test_a_pause_lets_it_be():
    async def main():
        async with serving_websocket(echo) as server:
            peer, _ = await opened(server)
            server.context.pause()
            server.context._window_over()
            peer.send(frame(TEXT, "here"))
            assert await peer.frame() == (TEXT, b"here")

    run(main())
