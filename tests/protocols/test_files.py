"""Files as bodies, plain and over TLS, on both loops: whole, in place, within bounds, never half unnoticed."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import io
import os
import socket
import threading
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.tls import Authority
from support.wire import run, serving

from procmgr.errors import ClientDisconnected
from procmgr.tls import Contexts, Material, Options, Pair
from procmgr.worker.cycle import TimedCycle
from procmgr.worker.protocols import files, outflow
from procmgr.worker.protocols.context import DrainMode, Limits

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
TAKES = b"GET / HTTP/1.1\r\nHost: a\r\nTE: trailers\r\n\r\n"
GET10 = b"GET / HTTP/1.0\r\n\r\n"
HEAD = b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n"
START = {"type": "http.response.start", "status": 200}
BIG = 3_000_000
"""More than a turn of the loop moves."""
KERNEL = 64 * 1024
"""Bytes that the kernel is asked to buffer where a file is to be half sent."""
SIZES = {"empty": 0, "tiny": 3, "small": files.SMALL, "large": files.SMALL + 1, "big": BIG}


@pytest.fixture(params=["httptools", "h11"])
def codec(request):
    return request.param


@pytest.fixture(params=["uvloop", "asyncio"])
def loop(request):
    return request.param


@pytest.fixture(scope="module")
def contexts(tmp_path_factory):
    authority = Authority(tmp_path_factory.mktemp("certificates"))
    pair = authority.write("site", authority.issue("a.test"))
    options = Options(pairs=(Pair(pair.certificate, pair.key),))
    material = Material.read(options.pairs, None)
    front = Contexts(options, material).front
    material.close()
    return front, authority.client(), "a.test"


@pytest.fixture(params=["plain", "tls"])
def tls(request, contexts):
    return contexts if request.param == "tls" else None


@pytest.fixture(autouse=True)
def descriptors():
    """What is opened is closed, whatever happens."""
    before = open_now()
    yield
    assert not open_now() - before


def open_now():
    """Return what is open of files made here and of sockets."""
    found = set()
    for each in list(Path("/proc/self/fd").iterdir()):
        with contextlib.suppress(FileNotFoundError):
            found.add((each.name, str(each.readlink())))
    return {(fd, name) for fd, name in found if name.startswith("socket") or "/file" in name}


def content(size):
    return (b"%08d" * 1 % 7 + bytes(range(251))) * (size // 259 + 1)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    directory = tmp_path_factory.mktemp("made")
    paths = {}
    for name, size in SIZES.items():
        paths[name] = directory / f"file-{name}"
        paths[name].write_bytes(content(size)[:size])
    return paths


def body(data=b"", *, more=False):
    return {"type": "http.response.body", "body": data, "more_body": more}


def path_of(path):
    return {"type": "http.response.pathsend", "path": str(path)}


def part_of(file, *, more=False, **where):
    return {"type": "http.response.zerocopysend", "file": file, "more_body": more, **where}


def length(value, **start):
    return {**START, "headers": [(b"content-length", b"%d" % value)], **start}


def sending(*messages):
    async def app(scope, receive, send):
        for message in messages:
            await send(message)

    return app


@asynccontextmanager
async def asking(app, codec, raw, **options):
    async with serving(app, codec, **options) as server:
        client = await server.connect()
        client.send(raw)
        yield server, client


def exchange(app, raw, codec, methods=("GET",), *, loop="uvloop", **options):
    """Return the replies to `raw` and the records; nothing may follow the replies, nor reach the loop's handler."""

    async def main():
        seen = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: seen.append(context))
        async with asking(app, codec, raw, **options) as (server, client):
            replies = [await client.reply(method=method) for method in methods]
            if options.get("tls") is None:
                client.shut()
                assert await client.rest() == b""
            assert seen == []
            return replies, server.records.lines

    return run(main(), loop)


# -- whole -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("said", [True, False])
def test_a_file_is_sent_whole_with_its_length_and_the_connection_goes_on(codec, loop, tls, made, size, said):
    start = length(SIZES[size]) if said else START
    replies, lines = exchange(sending(start, path_of(made[size])), GET * 3, codec, ["GET"] * 3, loop=loop, tls=tls)
    for reply in replies:
        assert reply.header("content-length") == str(SIZES[size])
        assert reply.body == made[size].read_bytes()
    assert lines == []


@pytest.mark.parametrize("size", ["tiny", "big"])
def test_head_and_304_send_no_body(codec, tls, made, size):
    for status, raw, method in ((200, HEAD, "HEAD"), (304, GET, "GET")):
        app = sending({**START, "status": status}, path_of(made[size]))
        replies, lines = exchange(app, raw + raw, codec, (method, method), tls=tls)
        assert [reply.header("content-length") for reply in replies] == [str(SIZES[size])] * 2
        assert lines == []


def test_http_1_0_is_told_the_length_of_a_file(codec, made):
    (reply,), lines = exchange(sending(START, path_of(made["big"])), GET10, codec)
    assert (reply.header("content-length"), reply.header("connection")) == (str(BIG), "close")
    assert (reply.body == made["big"].read_bytes(), lines) == (True, [])


@pytest.mark.parametrize("raw", [GET, GET10])
def test_parts_of_files_are_mixed_with_bytes(codec, loop, tls, made, raw):
    with made["big"].open("rb") as big, made["tiny"].open("rb") as tiny:
        app = sending(
            START,
            part_of(tiny, more=True),
            body(b"<", more=True),
            part_of(big.fileno(), offset=5, count=2_000_000, more=True),
            body(b"|", more=True),
            part_of(big, offset=BIG - 100_000, more=True),
            part_of(big, offset=BIG, more=True),
            part_of(big, offset=7, count=0, more=True),
            part_of(tiny, offset=1, count=1, more=True),
            part_of(big, offset=0, count=200_000),
        )
        (reply,), lines = exchange(app, raw, codec, loop=loop, tls=tls)
    data, few = made["big"].read_bytes(), made["tiny"].read_bytes()
    whole = few + b"<" + data[5:2_000_005] + b"|" + data[-100_000:] + few[1:2] + data[:200_000]
    assert (reply.body == whole, reply.complete, lines) == (True, True, [])
    assert reply.header("transfer-encoding") == ("chunked" if raw is GET else None)


def test_a_part_without_an_offset_begins_where_the_file_is_and_moves_it(codec, made):
    with made["big"].open("rb") as file:
        file.read(10)  # by which a buffered file's descriptor is far ahead
        fd = os.open(made["big"], os.O_RDONLY)
        os.lseek(fd, 10, os.SEEK_SET)
        parts = [part_of(each, count=count, more=True) for each in (file, fd) for count in (20, 100_000)]
        (reply,), lines = exchange(sending(START, *parts, body()), GET, codec)
        assert (file.tell(), os.lseek(fd, 0, os.SEEK_CUR)) == (100_030, 100_030)
        os.close(fd)
    data = made["big"].read_bytes()[10:100_030]
    assert (reply.body == data + data, lines) == (True, [])


def test_the_only_part_has_its_length(codec, made):
    with made["big"].open("rb") as file:
        (reply,), _ = exchange(sending(START, part_of(file, offset=1)), GET, codec)
    assert (reply.header("content-length"), reply.body == made["big"].read_bytes()[1:]) == (str(BIG - 1), True)


@pytest.mark.parametrize("size", ["tiny", "large"])
@pytest.mark.parametrize("start", [START, length(0)])
def test_trailers_follow_a_file(codec, tls, made, size, start):
    start = {**start, "trailers": True}
    if start.get("headers"):
        start["headers"] = length(SIZES[size])["headers"]
    app = sending(start, path_of(made[size]), {"type": "http.response.trailers", "headers": [(b"x", b"y")]})

    async def main():
        async with asking(app, codec, TAKES, tls=tls) as (server, client):
            head = await client.reader.readuntil(b"\r\n\r\n")
            data = made[size].read_bytes()
            rest = b"%x\r\n%b\r\n0\r\nx: y\r\n\r\n" % (len(data), data)
            assert await client.reader.readexactly(len(rest)) == rest
            assert (b"chunked" in head, b"content-length" in head) == (True, False)
            assert server.records.lines == []

    run(main())


@pytest.mark.parametrize("error", [22, 38, 95])
def test_where_the_kernel_cannot_send_a_file_it_is_read(codec, loop, made, monkeypatch, error):
    asked = []

    def unable(*_):
        asked.append(1)
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(outflow.os, "sendfile", unable)
    (reply,), lines = exchange(sending(START, path_of(made["big"])), GET, codec, loop=loop)
    assert (reply.body == made["big"].read_bytes(), lines, asked) == (True, [], [1])


def test_where_no_descriptor_is_left_for_the_kernel_a_file_is_read(codec, loop, made, monkeypatch):
    """Its head has been sent when the socket is duplicated."""

    def full(_):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(outflow.os, "dup", full)
    (reply,), lines = exchange(sending(START, path_of(made["big"])), GET, codec, loop=loop)
    assert (reply.body == made["big"].read_bytes(), lines) == (True, [])


@pytest.mark.parametrize("size", ["tiny", "big"])
def test_a_file_goes_over_a_unix_socket(codec, loop, made, size, tmp_path):
    app = sending(START, path_of(made[size]))
    (reply,), lines = exchange(app, GET, codec, loop=loop, unix=str(tmp_path / "s"))
    assert (reply.body == made[size].read_bytes(), lines) == (True, [])


@pytest.mark.parametrize("size", ["tiny", "big"])
def test_a_file_before_an_unread_body_ends_the_connection_and_says_so(codec, made, size):
    post = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\nx"
    (reply,), _ = exchange(sending(START, path_of(made[size])), post, codec)
    assert (reply.header("connection"), reply.body == made[size].read_bytes()) == ("close", True)


# -- what is wrong ---------------------------------------------------------------------------------------------------


@pytest.fixture
def scene(made, tmp_path):
    """What there is to be sent: `tiny` and `big` by path, `file` and `pipe` opened, and a directory with a FIFO."""
    os.mkfifo(tmp_path / "fifo")
    pipe = os.pipe()
    unreadable = [os.open(made["big"], flags) for flags in (os.O_WRONLY, os.O_PATH)]
    with made["tiny"].open("rb") as file, made["tiny"].open() as text, made["big"].open("rb") as opened:
        yield SimpleNamespace(
            tiny=made["tiny"],
            big=made["big"],
            there=tmp_path,
            pipe=pipe[0],
            file=file,
            text=text,
            opened=opened,
            unreadable=unreadable,
        )
    for each in (*pipe, *unreadable):
        os.close(each)


WRONG = {
    "no such file": lambda at: (START, path_of(at.there / "missing")),
    "a directory": lambda at: (START, path_of(at.there)),
    "a FIFO": lambda at: (START, path_of(at.there / "fifo")),
    "a device": lambda at: (START, path_of("/dev/zero")),
    "NUL in the path": lambda at: (START, path_of("/a\0b")),
    "bytes as path": lambda at: (START, {**path_of(""), "path": b"/etc/hosts"}),
    "no path": lambda at: (START, {"type": "http.response.pathsend"}),
    "a file before the start": lambda at: (path_of(at.tiny),),
    "a part before the start": lambda at: (part_of(at.file),),
    "shorter than its length": lambda at: (length(4), path_of(at.tiny)),
    "longer than its length": lambda at: (length(2), path_of(at.tiny)),
    "far shorter than its length": lambda at: (length(BIG + 1), path_of(at.big)),
    "far longer than its length": lambda at: (length(BIG - 1), path_of(at.big)),
    "a part longer than the length": lambda at: (length(2), part_of(at.file, more=True)),
    "no file": lambda at: (START, {"type": "http.response.zerocopysend"}),
    "no file at all": lambda at: (START, part_of(None)),
    "a closed file": lambda at: (START, part_of(1 << 20)),
    "bytes in memory": lambda at: (START, part_of(io.BytesIO(b"abc"))),
    "a pipe": lambda at: (START, part_of(at.pipe)),
    "a text file": lambda at: (START, part_of(at.text)),
    "a count beyond the end": lambda at: (START, part_of(at.file, count=4)),
    "an offset beyond the end": lambda at: (START, part_of(at.file, offset=4, count=1)),
    "a negative offset": lambda at: (START, part_of(at.file, offset=-1)),
    "a negative count": lambda at: (START, part_of(at.file, count=-1)),
    "a descriptor for writing": lambda at: (START, part_of(at.unreadable[0], offset=0)),
    "a descriptor of a path": lambda at: (START, part_of(at.unreadable[1], offset=0)),
    "an offset that is no integer": lambda at: (START, part_of(at.opened, offset=0.0)),
    "a count that is no integer": lambda at: (START, part_of(at.opened, offset=0, count=100_000.0)),
    "an offset that is no number": lambda at: (START, part_of(at.file, offset="1")),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_with_a_file_before_it_is_sent_is_a_500(codec, scene, name):
    (reply,), lines = exchange(sending(*WRONG[name](scene)), GET, codec)
    assert (reply.status, reply.header("connection")) == (500, "close")
    assert [line.endswith("the application raised") for line in lines] == [True]


@pytest.mark.parametrize("message", [path_of("/etc/hostname"), START])
def test_a_path_in_the_middle_of_a_body_leaves_it_without_its_end(codec, message):
    (reply,), lines = exchange(sending(START, body(b"x", more=True), message), GET, codec)
    assert (reply.body, reply.complete, len(lines)) == (b"x", False, 1)


def test_a_file_after_the_response_is_ignored_and_said(codec, made):
    (reply,), lines = exchange(sending(START, body(b"x"), path_of(made["tiny"])), GET, codec)
    assert (reply.body, len(lines)) == (b"x", 1)
    assert "'http.response.pathsend' after the response was complete" in lines[0]


# -- half way --------------------------------------------------------------------------------------------------------


class Half:
    """An application that sends a file, and what it was told; a client that reads nothing meanwhile."""

    def __init__(self, path, start=START, *, then=()):
        self.path, self.start, self.then = path, start, then
        self.raised = None
        self.ended = False

    async def __call__(self, scope, receive, send):
        try:
            await send(self.start)
            await send(path_of(self.path))
            for message in self.then:
                await send(message)
        except BaseException as error:
            self.raised = error
            raise
        finally:
            self.ended = True


async def stuck(server):
    """Wait until a file is being sent and the client takes no more."""
    connection = await server.connection()
    await server.until(
        lambda: connection.outflow is not None and (connection.outflow.blocked or connection.outflow.paused)
    )
    seen = -1
    while seen != connection.handed:
        seen = connection.handed
        for _ in range(100):
            await asyncio.sleep(0)


@asynccontextmanager
async def half_sent(app, codec, raw=GET, **options):
    async with serving(app, codec, **options) as server:
        client = await server.connect()
        connection = await server.connection()
        client.writer.transport.pause_reading()
        client.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, KERNEL)
        connection.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, KERNEL)
        client.send(raw)
        await stuck(server)
        yield server, client, connection


def test_a_file_waits_for_a_client_that_does_not_read_and_is_not_in_memory(codec, loop, tls, made):
    async def main():
        app = Half(made["big"])
        async with half_sent(app, codec, GET + GET, tls=tls) as (_, client, connection):
            # A TLS transport takes 512 KiB before it says that it is too much.
            assert connection.transport.get_write_buffer_size() <= 512 * 1024 + outflow.SLICE
            assert connection.unsent() > 0
            assert not app.ended
            client.writer.transport.resume_reading()
            assert (await client.reply()).body == made["big"].read_bytes()
            assert (await client.reply()).body == made["big"].read_bytes()

    run(main(), loop)


@pytest.mark.parametrize("pipelined", [0, 3000])
def test_a_client_that_goes_away_ends_the_file_and_the_application(codec, loop, tls, made, pipelined):
    async def main():
        app = Half(made["big"])
        async with half_sent(app, codec, GET + GET * pipelined, tls=tls) as (server, client, connection):
            assert connection.reading == (not pipelined)
            client.vanish()
            now = server.context.now
            for second in range(1, 7):  # over TLS nobody watches a socket that is neither read nor written
                server.context.sweep(now + second)
                await asyncio.sleep(0)
            await server.until(lambda: app.ended and not server.context.connections)
            assert isinstance(app.raised, ClientDisconnected)
            assert server.records.lines == []

    run(main(), loop)


def test_whatever_is_sent_after_a_file_whose_client_went_away_is_told_so(codec, loop, tls, made):
    """As after bytes: an application that is told nothing would send for ever."""
    raised = []

    async def app(scope, receive, send):
        await send(START)
        with made["big"].open("rb") as file:
            sends = [send(part_of(file, offset=0, more=True)) for _ in range(3)]
            raised.extend(await asyncio.gather(*sends, return_exceptions=True))
        for message in (body(b"x", more=True), body()):
            raised.extend(await asyncio.gather(send(message), return_exceptions=True))

    async def main():
        async with half_sent(app, codec, tls=tls) as (server, client, _):
            client.vanish()
            now = server.context.now
            for second in range(1, 7):
                server.context.sweep(now + second)
                await asyncio.sleep(0)
            await server.until(lambda: not server.context.tasks and not server.context.connections)
            assert [type(each) for each in raised] == [ClientDisconnected] * 5
            assert server.records.lines == []
            assert server.context.served == 1

    run(main(), loop)


def test_a_client_that_takes_too_little_is_cut_off(codec, loop, tls, made):
    async def main():
        app = Half(made["big"])
        async with half_sent(app, codec, tls=tls) as (server, _, _):
            now = server.context.now
            for second in range(1, 60):
                server.context.sweep(now + second)
            await server.until(lambda: app.ended and not server.context.connections)
            assert isinstance(app.raised, ClientDisconnected)

    run(main(), loop)


def test_a_client_that_takes_enough_is_not(codec, made):
    async def main():
        app = Half(made["big"])
        async with half_sent(app, codec) as (server, client, connection):
            left = BIG
            client.writer.transport.resume_reading()
            await client.reader.readuntil(b"\r\n\r\n")
            for _ in range(90):
                server.context.sweep(server.context.now + 1)
                left -= len(await client.reader.readexactly(20_000))
                client.writer.transport.pause_reading()
                assert connection.is_open()
                assert not app.ended
                client.writer.transport.resume_reading()
            client.writer.transport.resume_reading()
            await client.reader.readexactly(left)
            await server.until(lambda: app.ended)
            assert app.raised is None

    run(main())


@pytest.mark.parametrize("start", [length(BIG), START])
def test_a_file_that_is_cut_while_it_is_sent_ends_the_connection(codec, loop, tls, tmp_path, start):
    async def main():
        path = tmp_path / "file"
        path.write_bytes(content(BIG)[:BIG])
        app = Half(path, start, then=[body(b"more")])
        async with half_sent(app, codec, tls=tls) as (server, client, _):
            os.truncate(path, 1000)
            client.writer.transport.resume_reading()
            reply = await client.reply()
            assert (reply.header("content-length"), reply.complete) == (str(BIG), False)
            await server.until(lambda: app.ended)
            assert isinstance(app.raised, files.FileCutError)
            assert await client.rest() == b""
            assert len(server.records.lines) == 1

    run(main(), loop)


def test_a_file_that_grows_or_is_replaced_while_it_is_sent_is_sent_as_it_was(codec, tmp_path):
    async def main():
        path = tmp_path / "file"
        path.write_bytes(content(BIG)[:BIG])
        app = Half(path)
        async with half_sent(app, codec, GET + GET) as (_, client, _):
            with path.open("ab") as file:
                file.write(b"grown")
            path.rename(tmp_path / "old")
            path.write_bytes(b"new")
            client.writer.transport.resume_reading()
            assert (await client.reply()).body == content(BIG)[:BIG]
            assert (await client.reply()).body == b"new"

    run(main())


def test_what_else_the_application_sends_waits_for_the_file(codec, loop, tls, made):
    async def app(scope, receive, send):
        await send(START)
        with made["big"].open("rb") as file:
            parts = [part_of(file, offset=0, more=True), body(b"1", more=True), part_of(file, offset=9, more=True)]
            first = [asyncio.ensure_future(send(each)) for each in parts]
            await asyncio.gather(*first)
        await send(body(b"2"))

    async def main():
        async with half_sent(app, codec, tls=tls) as (_, client, _):
            client.writer.transport.resume_reading()
            data = made["big"].read_bytes()
            assert (await client.reply()).body == data + b"1" + data[9:] + b"2"

    run(main(), loop)


def test_a_quick_stop_cancels_a_file_at_its_deadline_and_closes(codec, loop, tls, made):
    async def main():
        app = Half(made["big"])
        async with half_sent(app, codec, tls=tls) as (server, client, _):
            server.context.begin_drain(DrainMode.QUICK)
            await asyncio.sleep(0)
            assert not app.ended
            server.context.abort_requests()
            await server.until(lambda: app.ended)
            assert isinstance(app.raised, asyncio.CancelledError)
            client.writer.transport.resume_reading()
            assert not (await client.reply()).complete
            assert len(server.records.lines) == 1

    run(main(), loop)


@pytest.mark.parametrize("error", [errno.EPIPE, errno.ECONNRESET, errno.EIO])
@pytest.mark.parametrize("at_once", [True, False])
def test_an_error_of_the_socket_is_a_client_that_is_gone_and_one_of_the_file_is_said(
    codec, loop, made, monkeypatch, error, at_once
):
    original, calls = os.sendfile, []

    def failing(*arguments):
        calls.append(1)
        if at_once or len(calls) > 3:
            raise OSError(error, os.strerror(error))
        return original(*arguments)

    async def main():
        seen = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: seen.append(context))
        monkeypatch.setattr(outflow.os, "sendfile", failing)
        app = Half(made["big"])
        async with asking(app, codec, GET) as (server, client):
            reply = await client.reply()
            assert not reply.complete
            await client.rest()
            await server.until(lambda: app.ended)
            of_file = error == errno.EIO
            assert isinstance(app.raised, OSError if of_file else ClientDisconnected)
            assert len(server.records.lines) == of_file
            client.shut()
            await server.until(lambda: not server.context.connections)
        assert seen == []

    run(main(), loop)


def test_a_request_that_takes_too_long_ends_with_its_file(codec, loop, made):
    async def main():
        app = Half(made["big"])
        async with half_sent(app, codec, limits=Limits(request_time=20.0)) as (server, client, _):
            now = server.context.now
            for second in range(1, 25):
                server.context.sweep(now + second)
            await server.until(lambda: app.ended)
            assert isinstance(app.raised, ClientDisconnected | asyncio.CancelledError)
            client.writer.transport.resume_reading()
            assert not (await client.reply()).complete

    run(main(), loop)


def test_a_drain_lets_a_file_end_and_closes(codec, made):
    async def main():
        app = Half(made["big"])
        async with half_sent(app, codec) as (server, client, _):
            server.context.begin_drain(DrainMode.RETIRE)
            client.writer.transport.resume_reading()
            assert (await client.reply()).body == made["big"].read_bytes()
            client.shut()
            assert await client.rest() == b""
            assert app.raised is None

    run(main())


def test_an_application_that_gives_up_on_a_file_ends_the_connection(codec, loop, tls, made):
    async def app(scope, receive, send):
        await send(START)
        sending = asyncio.ensure_future(send(path_of(made["big"])))
        await receive()
        receiving = asyncio.ensure_future(receive())
        while not begun.is_set():
            await asyncio.sleep(0)
        sending.cancel()
        await asyncio.wait([sending])
        receiving.cancel()
        await send(body(b"ignored"))

    begun = asyncio.Event()

    async def main():
        async with half_sent(app, codec, tls=tls) as (server, client, _):
            begun.set()
            await server.until(lambda: not server.context.tasks)
            client.writer.transport.resume_reading()
            reply = await client.reply()
            assert (reply.header("content-length"), reply.complete) == (str(BIG), False)
            assert await client.rest() == b""
            assert ["ignored" in line for line in server.records.lines] == [True]

    run(main(), loop)


def test_an_application_that_returns_while_its_file_is_sent_ends_the_connection(codec, loop, made):
    sends = []

    async def app(scope, receive, send):
        await send(START)
        sends.append(asyncio.ensure_future(send(path_of(made["big"]))))
        while not begun.is_set():
            await asyncio.sleep(0)

    begun = asyncio.Event()

    async def main():
        async with half_sent(app, codec) as (server, client, _):
            begun.set()
            await asyncio.wait(sends)
            assert isinstance(sends[0].exception(), ClientDisconnected)
            client.writer.transport.resume_reading()
            assert not (await client.reply()).complete
            assert ["returned in the middle" in line for line in server.records.lines] == [True]

    run(main(), loop)


def test_a_body_that_is_refused_while_a_file_is_sent_ends_both(codec, loop, made):
    post = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"

    async def main():
        app = Half(made["big"])
        async with half_sent(app, codec, post) as (server, client, _):
            client.send(b"nonsense\r\n")
            await server.until(lambda: app.ended)
            assert isinstance(app.raised, ClientDisconnected)
            client.writer.transport.resume_reading()
            assert not (await client.reply()).complete

    run(main(), loop)


@pytest.mark.parametrize("when", ["opened", "read"])
@pytest.mark.parametrize("how", ["cancelled", "gone"])
def test_a_thread_that_is_late_with_a_file_leaves_nothing_open(codec, loop, made, monkeypatch, when, how):
    entered, go_on = threading.Event(), threading.Event()
    function = "open" if when == "opened" else "pread"
    original = getattr(os, function)

    def late(*arguments):
        if function == "pread" or str(made["large"]) in map(str, arguments):
            entered.set()
            go_on.wait(10)
        return original(*arguments)

    async def main():
        name = "large" if when == "opened" else "small"
        app = Half(made[name])
        if when == "read":
            file = made["small"].open("rb")
            app = Half(made["small"])

            async def part(scope, receive, send, app=app):
                try:
                    await send(START)
                    await send(part_of(file))
                except BaseException as error:
                    app.raised = error
                    raise
                finally:
                    file.close()
                    app.ended = True

            served = part
        else:
            served = app
        async with serving(served, codec) as server:
            monkeypatch.setattr(files.os, function, late)
            client = await server.connect()
            client.send(GET)
            await server.until(entered.is_set)
            if how == "cancelled":
                server.context.abort_requests()
            else:
                client.vanish()
                await server.until(lambda: not server.context.connections)
                go_on.set()
            await server.until(lambda: app.ended)
            go_on.set()
            expected = asyncio.CancelledError if how == "cancelled" else ClientDisconnected
            assert isinstance(app.raised, expected)
        await asyncio.get_running_loop().shutdown_default_executor()
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    run(main(), loop)


# -- accounts --------------------------------------------------------------------------------------------------------


class Sizes:
    """An access log that keeps the sizes of responses."""

    cycle = TimedCycle

    def __init__(self):
        self.sizes = []

    def prefix(self, client):
        return b"-"

    def record(self, prefix, cycle, root_path):
        self.sizes.append(cycle.sent)


@pytest.mark.parametrize(("raw", "method", "size"), [(GET, "GET", BIG), (HEAD, "HEAD", 0), (TAKES, "GET", BIG)])
def test_the_size_of_a_file_is_the_size_of_the_response(codec, made, raw, method, size):
    log = Sizes()
    exchange(sending(START, path_of(made["big"])), raw, codec, [method], access=log)
    assert log.sizes == [size]


def test_of_a_file_that_was_not_sent_to_its_end_what_was_sent_is_logged(codec, made):
    async def main():
        log = Sizes()
        app = Half(made["big"])
        async with half_sent(app, codec, access=log) as (server, client, connection):
            sent = connection.handed
            client.vanish()
            await server.until(lambda: app.ended and not server.context.connections)
            assert len(log.sizes) == 1
            assert 0 < sent - log.sizes[0] < 1000  # which was the head

    run(main())
