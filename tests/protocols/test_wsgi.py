"""WSGI applications on real sockets: what PEP 3333 asks of a server, and threads that clients cannot hold for ever."""

from __future__ import annotations

import asyncio
import io
import logging
import sys
import threading
from contextlib import asynccontextmanager
from wsgiref.validate import validator

import pytest
from support.wire import PATIENCE, run, serving

from procmgr.errors import ClientDisconnected
from procmgr.worker.wsgi import WSGI, _Call

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


@pytest.fixture(params=["httptools", "h11"])
def codec(request):
    return request.param


@asynccontextmanager
async def wsgi(app, codec="httptools", *, threads=4, **options):
    async with serving(WSGI(app, threads=threads), codec, **options) as server:
        yield server
        await server.until(lambda: not server.context.active)  # a thread ends a little after its response


async def ask(server, data, method="GET"):
    client = await server.connect()
    client.send(data)
    return await client.reply(method=method)


def answer(app, data=GET, codec="httptools", *, method="GET", **options):
    """Return the reply to one request, and what was logged."""

    async def test():
        async with wsgi(app, codec, **options) as server:
            reply = await ask(server, data, method)
        return reply, server.records.records

    return run(test())


def environ_of(data, codec, **options):
    """Return the environ that a request arrives as."""
    seen = []

    def app(environ, start_response):
        seen.append(environ)
        start_response("200 OK", [("Content-Length", "0")])
        return []

    assert answer(app, data, codec, **options)[0].status == 200
    return seen[0]


def failure(records):
    (record,) = records
    assert record.levelno == logging.ERROR
    return record.exc_info[1]


def test_the_reference_validator_finds_nothing_wrong(codec):
    def app(environ, start_response):
        body = environ["wsgi.input"].read(5)
        start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "5")])
        return [body[:2], body[2:]]

    post = b"POST /a%20b?x=1 HTTP/1.1\r\nHost: a\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n\r\nhello"
    reply, records = answer(validator(app), post, codec)
    assert (reply.status, reply.body, records) == (200, b"hello", [])


def test_the_environ_says_what_the_request_said(codec):
    environ = environ_of(
        b"POST /caf%C3%A9/%ff?a=%20b HTTP/1.1\r\nHost: shop\r\nX-One: 1\r\nX-Many: 1\r\nX-Many: 2\r\n"
        b"Content-Type: text/x\r\nContent-Length: 0\r\nCookie: a=1\r\nCookie: b=2\r\n\r\n",
        codec,
    )
    assert environ["REQUEST_METHOD"] == "POST"
    assert (environ["SCRIPT_NAME"], environ["PATH_INFO"]) == ("", "/caf\xc3\xa9/\xff"), "bytes as latin-1, not U+FFFD"
    assert (environ["QUERY_STRING"], environ["RAW_URI"]) == ("a=%20b", "/caf%C3%A9/%ff?a=%20b")
    assert (environ["CONTENT_TYPE"], environ["CONTENT_LENGTH"]) == ("text/x", "0")
    assert (environ["HTTP_X_ONE"], environ["HTTP_X_MANY"], environ["HTTP_COOKIE"]) == ("1", "1,2", "a=1; b=2")
    assert (environ["REMOTE_ADDR"], environ["SERVER_PROTOCOL"]) == ("127.0.0.1", "HTTP/1.1")
    assert environ["wsgi.errors"] is sys.stderr
    assert (environ["wsgi.multithread"], environ["wsgi.input_terminated"]) == (True, True)


def test_names_with_an_underscore_are_dropped_since_an_environ_cannot_tell_them_from_others(codec):
    environ = environ_of(b"GET / HTTP/1.1\r\nHost: a\r\nX_User: evil\r\nX-User: good\r\nX_Alone: 1\r\n\r\n", codec)
    assert environ["HTTP_X_USER"] == "good"
    assert "HTTP_X_ALONE" not in environ


def test_a_root_path_is_the_script_name():
    environ = environ_of(b"GET /x%ff HTTP/1.1\r\nHost: a\r\n\r\n", "httptools", root_path="/api")
    assert (environ["SCRIPT_NAME"], environ["PATH_INFO"]) == ("/api", "/x\xff")


READS = {
    "read": lambda file: [file.read()],
    "read in pieces": lambda file: list(iter(lambda: file.read(7), b"")),
    "readline": lambda file: list(iter(file.readline, b"")),
    "readline with a limit": lambda file: list(iter(lambda: file.readline(5), b"")),
    "readlines": lambda file: file.readlines(),
    "readlines with a hint": lambda file: list(iter(lambda: b"".join(file.readlines(4)), b"")),
    "iteration": list,
    "nothing": lambda file: [],
}
TEXT = b"one\ntwo and more\n\nno end"
SENT = {
    "length": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%b" % (len(TEXT), TEXT),
    "chunks": b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    + b"".join(b"1\r\n%c\r\n" % byte for byte in TEXT)
    + b"0\r\n\r\n",
}


@pytest.mark.parametrize("how", READS)
@pytest.mark.parametrize("sent", SENT)
def test_input_is_a_file(how, sent, codec):
    seen = []

    def app(environ, start_response):
        seen.extend(READS[how](environ["wsgi.input"]))
        start_response("200 OK", [])
        return [b"done"]

    assert answer(app, SENT[sent], codec)[0].body == b"done"
    if how != "nothing":
        assert b"".join(seen) == TEXT
        assert [len(part) for part in seen] == [len(part) for part in READS[how](io.BufferedReader(io.BytesIO(TEXT)))]


def test_a_body_is_read_as_the_application_asks_for_it_and_not_into_memory():
    """While the application holds still, the client cannot send on and on."""
    go_on, size = threading.Event(), 64 << 20

    def app(environ, start_response):
        read, body = environ["wsgi.input"], environ["wsgi.input"].read(1)
        go_on.wait(PATIENCE)
        total = len(body)
        while part := read.read(1 << 20):
            total += len(part)
        start_response("200 OK", [])
        return [b"%d" % total]

    async def test():
        async with wsgi(app) as server:
            client = await server.connect()
            client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size)
            client.send(bytes(size))
            connection = await server.connection()
            await server.until(lambda: connection.cycle is not None and not connection.reading)
            assert connection.cycle.buffered < 1 << 20
            go_on.set()
            assert (await client.reply()).body == b"%d" % size

    run(test())


def test_a_client_that_goes_in_the_middle_of_its_body_is_an_os_error_and_not_an_end():
    told = []

    def app(environ, start_response):
        try:
            environ["wsgi.input"].read()
        except OSError as error:
            told.append(error)
            raise

    async def test():
        async with wsgi(app) as server:
            client = await server.connect()
            client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhalf")
            await server.until(lambda: server.context.active)
            client.vanish()
            await server.until(lambda: not server.context.active)
        assert server.records.records == []

    run(test())
    assert isinstance(told[0], ClientDisconnected)


def test_100_continue_is_sent_when_the_application_reads(codec):
    def app(environ, start_response):
        start_response("200 OK", [])
        return [environ["wsgi.input"].read()]

    async def test():
        async with wsgi(app, codec) as server:
            client = await server.connect()
            client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")
            assert (await client.reply()).status == 100
            client.send(b"ok")
            assert (await client.reply()).body == b"ok"

    run(test())


def test_a_response_is_streamed_part_by_part(codec):
    release = threading.Event()

    def app(environ, start_response):
        start_response("200 OK", [("X-Early", "yes")])
        yield b"first"
        release.wait(PATIENCE)
        yield b""
        yield b"second"

    async def test():
        async with wsgi(app, codec) as server:
            client = await server.connect()
            client.send(GET)
            head = await client.reader.readuntil(b"first\r\n")
            assert b"x-early: yes" in head.lower()
            release.set()
            assert (await client.reader.readuntil(b"0\r\n\r\n")).endswith(b"6\r\nsecond\r\n0\r\n\r\n")

    run(test())


def test_head_has_the_fields_and_no_body(codec):
    def app(environ, start_response):
        start_response("200 OK", [("Content-Length", "5")])
        return [b"hello"]

    reply, _ = answer(app, GET.replace(b"GET", b"HEAD"), codec, method="HEAD")
    assert (reply.status, reply.header("content-length"), reply.body) == (200, "5", b"")


def test_write_is_there_for_old_applications():
    def app(environ, start_response):
        write = start_response("200 OK", [])
        write(b"one ")
        write(b"")
        return [b"two"]

    assert answer(app)[0].body == b"one two"


def test_a_file_is_sent_by_the_wrapper_in_big_blocks_and_closed():
    sizes = []

    class File(io.BytesIO):
        def read(self, size=-1):
            sizes.append(size)
            return super().read(size)

    file = File(bytes(200_000))

    def app(environ, start_response):
        start_response("200 OK", [("Content-Length", "200000")])
        return environ["wsgi.file_wrapper"](file, 4096)

    assert answer(app)[0].body == bytes(200_000)
    assert len(sizes) == 5
    assert file.closed


class Parts:
    """An iterable that tells when it is closed, and may raise at any point."""

    def __init__(self, *parts):
        self.parts = parts
        self.closed = threading.Event()

    def __iter__(self):
        for part in self.parts:
            if isinstance(part, BaseException):
                raise part
            yield part

    def close(self):
        self.closed.set()


def starting(parts, status="200 OK", headers=(("X-A", "b"),)):
    def app(environ, start_response):
        start_response(status, list(headers))
        return parts

    return app


def raising(error):
    def app(environ, start_response):
        raise error

    return app


def without_a_start(environ, start_response):
    return [b"body"]


def twice(environ, start_response):
    start_response("200 OK", [])
    start_response("200 OK", [])
    return [b"body"]


MISTAKES = {
    "raises before start_response": (raising(ValueError("boom")), ValueError),
    "raises before its body": (starting(Parts(ValueError("boom"))), ValueError),
    "raises SystemExit": (raising(SystemExit(3)), SystemExit),
    "raises KeyboardInterrupt": (raising(KeyboardInterrupt()), KeyboardInterrupt),
    "raises StopIteration": (raising(StopIteration()), RuntimeError),
    "does not call start_response": (without_a_start, RuntimeError),
    "does neither": (lambda environ, start_response: [], RuntimeError),
    "calls start_response twice": (twice, RuntimeError),
    "returns None": (starting(None), TypeError),
    "yields text": (starting(["text"]), TypeError),
    "has a status without a code": (starting([b"x"], status="OK"), ValueError),
    "has a status of another kind": (starting([b"x"], status=200), TypeError),
    "has a status out of range": (starting([b"x"], status="99 x"), ValueError),
    "has a bad header": (starting([b"x"], headers=[("X-A", "b\r\nc: d")]), ValueError),
    "has a header of another kind": (starting([b"x"], headers=[("X-A", 1)]), AttributeError),
    "has a header beyond latin-1": (starting([b"x"], headers=[("X-A", "\u20ac")]), UnicodeEncodeError),
    "gives too much body": (starting([b"xx"], headers=[("Content-Length", "1")]), RuntimeError),
}


@pytest.mark.parametrize("what", MISTAKES)
def test_a_mistake_before_the_head_is_sent_is_a_500_and_one_record(what, codec):
    app, kind = MISTAKES[what]
    reply, records = answer(app, GET, codec)
    assert (reply.status, reply.header("x-a")) == (500, None)
    assert isinstance(failure(records), kind)


@pytest.mark.parametrize("parts", [Parts(b"part", ValueError("boom")), Parts(b"part")])
def test_a_mistake_after_the_head_cuts_the_response_and_closes_the_iterable(parts, codec):
    reply, records = answer(starting(parts, headers=[("Content-Length", "9")]), GET, codec)
    assert (reply.status, reply.body, reply.complete) == (200, b"part", False)
    assert failure(records)
    assert parts.closed.is_set()


def test_the_iterable_is_closed_after_the_response():
    parts = Parts(b"one", b"two")
    assert answer(starting(parts))[0].body == b"onetwo"
    assert parts.closed.wait(PATIENCE)


def test_a_response_may_be_replaced_until_its_head_is_sent(codec):
    """As error pages are made (PEP 3333, exc_info)."""

    def app(environ, start_response):
        start_response("200 OK", [("X-Old", "1")])
        try:
            raise ValueError("boom")
        except ValueError:
            start_response("503 Sorry", [("X-New", "1")], sys.exc_info())
        return [b"sorry"]

    reply, records = answer(app, GET, codec)
    assert (reply.status, reply.body, records) == (503, b"sorry", [])
    assert (reply.header("x-old"), reply.header("x-new")) == (None, "1")


def test_a_replacement_that_comes_too_late_raises_the_first_error(codec):
    def app(environ, start_response):
        start_response("200 OK", [])
        yield b"part"
        try:
            raise ValueError("boom")
        except ValueError:
            start_response("500 Sorry", [], sys.exc_info())

    reply, records = answer(app, GET, codec)
    assert (reply.status, reply.complete) == (200, False)
    assert str(failure(records)) == "boom"


def test_a_client_that_goes_ends_an_endless_response_and_gives_the_thread_back(codec):
    """One thread: the second client is only served if it came back."""
    parts = Parts(b"")

    def endless():
        while True:
            yield bytes(10_000)

    def app(environ, start_response):
        start_response("200 OK", [])
        if environ["PATH_INFO"] != "/endless":
            return [b"served"]
        return _Closing(endless(), parts)

    async def test():
        async with wsgi(app, codec, threads=1) as server:
            for _ in range(3):
                parts.closed.clear()
                client = await server.connect()
                client.send(b"GET /endless HTTP/1.1\r\nHost: a\r\n\r\n")
                await client.reader.readexactly(100_000)
                client.vanish()
                assert (await ask(server, GET)).body == b"served"
                assert parts.closed.is_set()
        assert server.records.records == []

    run(test())


class _Closing:
    def __init__(self, parts, told):
        self._parts, self.close = parts, told.close

    def __iter__(self):
        return self._parts


def test_a_slow_reader_holds_the_application_back():
    made = []

    def app(environ, start_response):
        start_response("200 OK", [])
        for _ in range(1000):
            made.append(1)
            yield bytes(1 << 20)

    async def test():
        async with wsgi(app) as server:
            client = await server.connect()
            client.send(GET)
            for read in range(100):
                await client.reader.readexactly(1 << 20)
                assert len(made) - read < 50, "what is ahead of the reader is in memory"
            client.vanish()

    run(test())


def test_more_requests_than_threads_wait_and_it_is_said(caplog):
    release, lock, running = threading.Event(), threading.Lock(), []

    def app(environ, start_response):
        with lock:
            running.append(1)
        release.wait(PATIENCE)
        start_response("200 OK", [])
        return [environ["PATH_INFO"].encode()]

    async def test():
        async with wsgi(app, threads=2) as server:
            clients = [await server.connect() for _ in range(5)]
            for number, client in enumerate(clients):
                client.send(b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % number)
            await server.until(lambda: "busy" in caplog.text)
            assert len(running) == 2
            release.set()
            assert [(await client.reply()).body for client in clients] == [b"/%d" % number for number in range(5)]

    run(test())
    assert caplog.text.count("all 2 threads are busy") == 1


def test_a_cancelled_request_leaves_its_thread_behind_and_says_where_it_is(caplog):
    release, began, stuck = threading.Event(), threading.Event(), []

    def app(environ, start_response):
        start_response("200 OK", [])
        began.set()
        release.wait(PATIENCE)
        return [b"too late"]

    async def test():
        application = WSGI(app, threads=1)
        application.on_stuck = lambda: stuck.append(1)
        async with serving(application, "httptools") as server:
            client = await server.connect()
            client.send(GET)
            await server.until(began.is_set)
            server.context.abort_requests()
            assert (await client.reply()).status == 503
            await server.until(lambda: stuck == [1])
            release.set()
            await server.until(lambda: not application._running)
        assert len(server.records.records) == 1

    run(test())
    assert "the thread of GET / goes on" in caplog.text
    assert "release.wait(PATIENCE)" in caplog.text


@pytest.mark.parametrize("ended", [True, False])
def test_a_thread_that_waits_for_a_slow_client_is_not_left_behind(caplog, monkeypatch, ended):
    """It has ended, or is told at once: a worker is not replaced because clients were slow."""
    stuck, calls, begin = [], [], _Call.__init__

    def seen(call, *arguments):
        calls.append(call)
        begin(call, *arguments)

    monkeypatch.setattr(_Call, "__init__", seen)

    def app(environ, start_response):
        start_response("200 OK", [])
        for _ in range(1 if ended else 100):
            yield bytes(20_000_000 if ended else 100_000)

    async def test():
        application = WSGI(app, threads=1)
        application.on_stuck = lambda: stuck.append(1)
        async with serving(application, "httptools") as server:
            client = await server.connect()
            client.writer.transport.pause_reading()
            client.send(GET)
            connection = await server.connection()
            await server.until(lambda: connection._writable is not None and connection._writable.waiting)
            await server.until(lambda: calls[0].freed)
            server.context.abort_requests()
            await server.until(lambda: not application._running)
            assert application._left_behind == 0
            judged = asyncio.Event()
            asyncio.get_running_loop().call_later(1.1, judged.set)  # behind what waits for a second
            await judged.wait()

    run(test())
    assert stuck == []
    assert "goes on" not in caplog.text


def test_a_part_that_waits_for_the_client_when_its_request_is_cancelled_is_no_mistake(codec):
    gone = threading.Event()

    def app(environ, start_response):
        start_response("200 OK", [])
        try:
            while True:
                yield bytes(100_000)
        finally:
            gone.set()

    async def test():
        async with wsgi(app, codec) as server:
            client = await server.connect()
            client.writer.transport.pause_reading()
            client.send(GET)
            connection = await server.connection()
            # Two parts are on their way: one that the transport has, and one that waits for it.
            await server.until(lambda: connection.write_paused and connection._writable is not None)
            await server.until(lambda: connection._writable.waiting)
            server.context.abort_requests()
            await server.until(gone.is_set)
            await server.until(lambda: not server.context.active)
            return server.records.lines

    (line,) = run(test())
    assert line.endswith("cancelled, the worker ends")


def test_a_request_that_is_cancelled_while_it_waits_for_a_thread_never_runs():
    release, began, ran = threading.Event(), threading.Event(), []

    def app(environ, start_response):
        ran.append(environ["PATH_INFO"])
        began.set()
        release.wait(PATIENCE)
        start_response("200 OK", [])
        return []

    async def test():
        application = WSGI(app, threads=1)
        async with serving(application, "httptools") as server:
            for path in (b"/first", b"/second"):
                (await server.connect()).send(b"GET %b HTTP/1.1\r\nHost: a\r\n\r\n" % path)
                await server.until(began.is_set)
            await server.until(lambda: server.context.active == 2)
            server.context.abort_requests()
            await server.until(lambda: not server.context.tasks)
            release.set()
            await server.until(lambda: not application._running)

    run(test())
    assert ran == ["/first"]
