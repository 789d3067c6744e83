"""Files sent by the real daemon: Starlette's, whole and in ranges, plain and over TLS, in little memory."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
from http.client import HTTPSConnection

import pytest
from support import proc
from support.daemon import PATIENCE
from support.tls import Authority

pytest.importorskip("starlette")

BIG = 64 * 1024 * 1024 + 1
MORE = 12 * 1024
"""KiB by which a worker may grow while it sends the big file: some slices of it, and the threads."""

APP = """
from starlette.applications import Starlette
from starlette.responses import FileResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

async def relative(request):
    return FileResponse("files/big.bin")

app = Starlette(routes=[Route("/relative", relative), Mount("/files", StaticFiles(directory="files"))])
"""


@pytest.fixture
def there(tmp_path, write_app):
    """A directory with an application and the files that it serves."""
    write_app(APP)
    files = tmp_path / "files"
    files.mkdir()
    (files / "small.txt").write_bytes(b"0123456789" * 100)
    with (files / "big.bin").open("wb") as big:
        for block in range(64):
            big.write(bytes([block]) * 1024 * 1024)
        big.write(b"!")
    return tmp_path


@pytest.fixture(params=["plain", "tls"])
def served(request, serve, there):
    """A daemon with one worker, and what opens a connection to it."""
    options, client = [], None
    if request.param == "tls":
        room = there / "certificates"
        room.mkdir()
        authority = Authority(room)
        options, client = authority.write("site", authority.issue("localhost")).options, authority.client()
    daemon = serve("--app-dir", str(there), *options, app="site_app:app", cwd=there)
    with contextlib.ExitStack() as opened:

        def connect():
            if client is None:
                return daemon.connect()
            return opened.enter_context(
                contextlib.closing(HTTPSConnection("localhost", daemon.port, context=client, timeout=PATIENCE))
            )

        yield daemon, connect


def ask(connection, path, method="GET", **headers):
    """Return status, headers and the digest and length of the body."""
    connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    response = connection.getresponse()
    digest, size = hashlib.sha256(), 0
    while piece := response.read(1 << 20):
        digest.update(piece)
        size += len(piece)
    return response.status, response.headers, (digest.hexdigest(), size)


def of(data):
    return hashlib.sha256(data).hexdigest(), len(data)


def test_starlette_serves_files_whole_and_in_ranges_in_little_memory(served, there):
    daemon, connect = served
    big = (there / "files" / "big.bin").read_bytes()
    (worker,) = daemon.workers()
    connection = connect()
    status, headers, body = ask(connection, "/files/small.txt")
    assert (status, headers["content-length"], body) == (200, "1000", of(b"0123456789" * 100))
    before = int(proc.status(worker)["VmHWM"][0])
    for path in ("/files/big.bin", "/relative", "/files/big.bin"):
        status, headers, body = ask(connection, path)
        assert (status, headers["content-length"], body) == (200, str(BIG), of(big))
    assert int(proc.status(worker)["VmHWM"][0]) - before < MORE
    assert ask(connection, "/files/big.bin", "HEAD")[2] == of(b"")
    status, headers, body = ask(connection, "/files/big.bin", Range=f"bytes=1048570-{BIG - 2}")
    assert (status, body) == (206, of(big[1048570 : BIG - 1]))
    status, headers, body = ask(connection, "/files/big.bin", Range="bytes=-1,0-9")
    assert (status, headers["content-type"].partition(";")[0]) == (206, "multipart/byteranges")
    etag = headers["etag"]
    assert ask(connection, "/files/big.bin", If_None_Match=etag)[::2] == (304, of(b""))
    assert ask(connection, "/files/none.txt")[0] == 404
    assert ask(connection, "/files/small.txt")[2] == of(b"0123456789" * 100)
    connection.close()
    assert daemon.stop() == 0
    assert "Traceback" not in daemon.log


def test_clients_that_leave_in_the_middle_cost_no_descriptor(served):
    daemon, connect = served
    (worker,) = daemon.workers()
    ask(connect(), "/files/small.txt")
    before = len(proc.files_of(worker))
    for _ in range(10):
        connection = connect()
        connection.request("GET", "/files/big.bin")
        connection.getresponse().read(100_000)
        connection.close()
    assert proc.eventually(lambda: len(proc.files_of(worker)) <= before)
    assert ask(connect(), "/files/big.bin")[2][1] == BIG
    assert daemon.stop() == 0
    assert "Traceback" not in daemon.log


def test_a_file_that_is_being_sent_is_sent_to_its_end_when_the_daemon_stops(served, there):
    daemon, connect = served
    connection = connect()
    connection.request("GET", "/files/big.bin")
    response = connection.getresponse()
    body = response.read(1)
    daemon.signal(signal.SIGTERM)
    daemon.logged("stopping")
    body += response.read()
    assert of(body) == of((there / "files" / "big.bin").read_bytes())
    connection.close()
    assert daemon.join() == 0


def test_a_file_that_shrinks_while_it_is_sent_ends_its_connection_and_no_other(served, there):
    daemon, connect = served
    connection, other = connect(), connect()
    ask(other, "/files/small.txt")
    connection.request("GET", "/files/big.bin")
    response = connection.getresponse()
    response.read(1)
    os.truncate(there / "files" / "big.bin", 1000)
    short = b""
    while piece := response.read(1 << 20):
        short += piece
    assert len(short) < BIG - 1
    daemon.logged("the file ends")
    assert ask(other, "/files/small.txt")[0] == 200
    connection.close()
    other.close()
    assert daemon.stop() == 0
