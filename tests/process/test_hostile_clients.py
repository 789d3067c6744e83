"""Attackers against the real daemon: what each may cost is bounded in memory and in time, and others are answered."""

from __future__ import annotations

import itertools
import json
import shutil
import socket
import subprocess
from contextlib import suppress

import pytest
from support import proc

APP = "support.apps.hostile_app:app"
MIB = 1024  # KiB, as /proc has it
MOST = 32 * MIB
"""What one attacking connection may cost, KiB."""
PATIENCE = 20.0
LOOPS = pytest.mark.parametrize("loop", ["uvloop", "asyncio"])


class Growth:
    """By how much the only worker of a daemon grew at its peak."""

    def __init__(self, daemon):
        daemon.get()  # what the first request loads is nobody's attack
        (self.worker,) = daemon.workers()
        self.daemon = daemon
        proc.forget_peak(self.worker)
        self.before, _ = proc.resident(self.worker)

    @property
    def peak(self):
        assert self.daemon.get()["pid"] == self.worker  # the loop is free, so it has done with what it read
        return proc.resident(self.worker)[1] - self.before


def send_all_that_is_taken(sock, data, times):
    """Send `data` so many times, or until nothing has been taken for a while; return how many bytes were."""
    sock.settimeout(0.5)
    sent = 0
    try:
        for _ in range(times):
            view = memoryview(data)
            while view:
                count = sock.send(view)
                sent += count
                view = view[count:]
    except TimeoutError:
        pass
    sock.settimeout(PATIENCE)
    return sent


@LOOPS
def test_an_endless_response_to_who_stopped_reading_takes_no_memory(serve, loop):
    daemon = serve("--loop", loop, app=APP)
    growth = Growth(daemon)
    clients = [daemon.connect().sock for _ in range(3)]
    for client in clients:
        client.sendall(b"GET /endless HTTP/1.1\r\nHost: a\r\n\r\n")
    taken = [int(daemon.probe.wait("stuck").told["taken"]) for _ in clients]
    assert growth.peak < MOST
    assert max(taken) < 64 << 20, "the application was held"
    for client in clients:
        client.close()
        daemon.probe.wait("over")


@LOOPS
@pytest.mark.parametrize("path", [b"/stay", b"/"], ids=["behind a slow one", "unread answers"])
def test_a_quarter_of_a_mebibyte_of_pipelined_requests_takes_no_memory_and_each_is_answered(serve, loop, path):
    daemon = serve("--loop", loop, app=APP)
    growth = Growth(daemon)
    sock = daemon.connect().sock
    # Both ends together hold less than all of it, so who sends has to wait for who reads.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16 * 1024)
    get = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
    count = (256 << 10) // len(get)
    sock.sendall(get.replace(b"/", path, 1))
    running = daemon.probe.wait("running") if path == b"/stay" else None
    requests = get * count
    sent = send_all_that_is_taken(sock, requests, 1)
    assert growth.peak < MOST
    if running:
        running.release()
    answers = b""
    sock.setblocking(False)
    rest = memoryview(requests)[sent:]

    def go_on():
        nonlocal answers, rest
        with suppress(BlockingIOError):
            if rest:
                rest = rest[sock.send(rest) :]
        with suppress(BlockingIOError):
            answers += sock.recv(1 << 20)
        return answers.count(b"HTTP/1.1 200 OK") == count + 1

    assert proc.eventually(go_on)
    assert growth.peak < MOST


@LOOPS
@pytest.mark.parametrize("framing", ["length", "chunks"])
def test_a_gibibyte_for_an_application_that_does_not_read_takes_no_memory(serve, loop, framing):
    daemon = serve("--loop", loop, app=APP)
    growth = Growth(daemon)
    sock = daemon.connect().sock
    fields = b"Content-Length: %d" % (1 << 30) if framing == "length" else b"Transfer-Encoding: chunked"
    sock.sendall(b"POST /unread HTTP/1.1\r\nHost: a\r\n" + fields + b"\r\n\r\n")
    running = daemon.probe.wait("unread")
    part = bytes(1 << 20) if framing == "length" else b"%x\r\n%b\r\n" % (1 << 20, bytes(1 << 20))
    assert send_all_that_is_taken(sock, part, 1024) < 64 << 20, "the server stopped reading"
    assert growth.peak < MOST
    running.release()
    answer = b""
    with suppress(ConnectionError):  # which a close with unread bytes may end in
        while data := sock.recv(65_536):
            answer += data
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.count(b"HTTP/1.1 ") == 1, "what is left of the body is no request"


# -- slow on purpose -------------------------------------------------------------------------------------------------

SLOWHTTPTEST = shutil.which("slowhttptest")
SLOW = {
    "head": (["--timeout-request-head", "2"], ["-H", "-i", "1"], "/"),
    "body": (["--timeout-request", "3"], ["-B", "-i", "1", "-s", "100000"], "/echo"),
    "body by its rate": (["--min-transfer-rate", "1000"], ["-B", "-i", "1", "-s", "100000"], "/echo"),
    "read": (["--timeout-request", "3"], ["-X", "-n", "1", "-z", "32", "-w", "512", "-y", "1024"], "/large"),
}


@pytest.mark.skipif(SLOWHTTPTEST is None, reason="slowhttptest is not installed (Debian's package of that name)")
@pytest.mark.parametrize("kind", SLOW)
def test_every_slow_connection_is_closed_within_its_limit_and_others_are_answered_meanwhile(serve, kind):
    options, attack, path = SLOW[kind]
    daemon = serve(*options, app=APP)
    url = f"http://127.0.0.1:{daemon.port}{path}"
    command = [SLOWHTTPTEST, "-c", "20", "-r", "100", "-x", "10", "-p", "5", "-l", "60", "-u", url, *attack]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL) as attacker:
        try:
            assert proc.eventually(lambda: proc.unfinished(daemon.port) >= 20)
            looks = itertools.count()

            def are_gone():
                if next(looks) % 20 == 0:
                    assert daemon.get()["path"] == "/"
                return proc.unfinished(daemon.port) == 0

            assert proc.eventually(are_gone, 40.0), "some outlived the limit"
        finally:
            attacker.kill()


def test_a_flood_of_connections_is_bounded_and_what_waits_is_served_in_the_end(serve):
    daemon = serve("--limit-connections", "20", "--keep-alive", "1", app=APP)
    socks = [socket.create_connection(("127.0.0.1", daemon.port)) for _ in range(60)]
    try:
        for sock in socks:
            sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        for sock in socks:
            sock.settimeout(PATIENCE)
            answer = sock.recv(65_536)
            assert answer.startswith(b"HTTP/1.1 200 ")
            assert json.loads(answer.partition(b"\r\n\r\n")[2])["path"] == "/"
            sock.close()
    finally:
        for sock in socks:
            sock.close()


def test_as_many_requests_run_as_may_and_more_are_told_when_to_come_again(serve):
    daemon = serve("--limit-concurrency", "3", app=APP)
    held = [daemon.connect() for _ in range(3)]
    for connection in held:
        connection.request("GET", "/stay")
    running = [daemon.probe.wait("running") for _ in held]
    for _ in range(2):
        response, _ = daemon.connect().get("/")
        assert (response.status, response.headers["retry-after"], response.headers["connection"]) == (503, "1", "close")
    idle = daemon.connect()
    running.pop().release()
    assert proc.eventually(lambda: daemon.connect().get("/")[0].status == 200)
    assert idle.get("/")[0].status == 200, "a connection that waits does not count"
    for visit in running:
        visit.release()
