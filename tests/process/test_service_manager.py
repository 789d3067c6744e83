"""What the service manager hears: who is ready, how busy it is, how long it will take, and why it does not start."""

from __future__ import annotations

import errno
import os
import signal
import socket

LIFESPAN = """
from support.stage import stay
from support.testapp import app as plain

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await stay("starting")
    await plain(scope, receive, send)
"""


GROWS = """
import support.testapp

hoard = []

async def app(scope, receive, send):
    if scope.get("path") == "/grow":
        hoard.append(b"x" * (200 << 20))
    await support.testapp.app(scope, receive, send)
"""


def extends(message):
    return int(message.fields.get("EXTEND_TIMEOUT_USEC", 0)) / 1e6


def test_a_slow_start_asks_for_time_and_is_ready_but_once(launch, write_app, tmp_path):
    daemon = launch("--app-dir", str(tmp_path), "--timeout-boot", "7", app=write_app(LIFESPAN))
    daemon.probe.wait("starting")
    for _ in range(2):
        asked = daemon.wait(extends, "EXTEND_TIMEOUT_USEC")
        assert 0 < extends(asked) <= 10
    daemon.signal(signal.SIGHUP)
    second = daemon.probe.wait("starting")
    said = daemon.notify.messages
    assert not any({"READY", "RELOADING"} & each.fields.keys() for each in said), "it does not serve yet"
    second.release()
    ready = daemon.wait(lambda message: message.fields.get("READY") == "1", "READY=1")
    assert ready.fields["MAINPID"] == str(daemon.pid)


def test_a_drain_asks_for_its_time_and_no_more(serve):
    daemon = serve("--graceful-timeout", "8")
    connection = daemon.connect()
    connection.request("GET", "/stay")
    visit = daemon.probe.wait("running")
    daemon.signal(signal.SIGTERM)
    daemon.wait(lambda message: "STOPPING" in message.fields, "STOPPING=1")
    for _ in range(2):
        daemon.wait(extends, "EXTEND_TIMEOUT_USEC")
    visit.release()
    assert connection.answer()[0].status == 200
    assert daemon.join() == 0


def test_once_it_serves_it_asks_for_no_time(serve):
    daemon = serve()
    daemon.notify.skip()
    daemon.status("1/1 workers ready, generation 1$")
    daemon.status("1/1 workers ready, generation 1$")
    late = daemon.notify.messages[-3:]
    assert not any(extends(each) for each in late)


def test_the_status_says_how_many_requests_are_answered(serve):
    daemon = serve()
    for _ in range(20):
        daemon.get()
    daemon.status(r"1/1 workers ready, generation 1, [0-9.]+ req/s")


def test_an_address_in_use_is_told_with_its_errno(launch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        daemon = launch(bind=f"127.0.0.1:{port}")
        told = daemon.wait(lambda message: "ERRNO" in message.fields, "ERRNO")
        assert daemon.join() == 71
    assert told.fields["ERRNO"] == str(errno.EADDRINUSE)
    assert f"cannot start: cannot bind 127.0.0.1:{port}" in told.status


def test_a_mistake_in_the_configuration_is_told(launch):
    daemon = launch("--workers", "0")
    daemon.status("cannot start: .*workers")
    assert daemon.join() == 2
    assert "ERRNO" not in daemon.notify.messages[-1].fields, "the operating system has nothing to do with it"


def test_the_reason_of_giving_up_is_told(launch, write_app, tmp_path):
    app = write_app("raise LookupError('no such table')\n")
    daemon = launch("--boot-attempts", "1", "--app-dir", str(tmp_path), app=app)
    daemon.status("giving up after 1 failed boot: .*no such table")
    assert daemon.join() == 3


def test_the_reason_of_a_failed_reload_stays_in_the_status(serve, write_app, tmp_path):
    app = write_app("from support.testapp import app\n")
    daemon = serve("--app-dir", str(tmp_path), app=app)
    write_app("raise LookupError('no such table')\n")
    daemon.try_reload()
    daemon.notify.skip()
    daemon.status("rolled back, generation 1 serves on; reload failed: .*no such table")
    write_app("from support.testapp import app\n")
    daemon.reload()
    daemon.notify.skip()
    assert "failed" not in daemon.status("1/1 workers ready")


def test_memory_pressure_replaces_the_worker_that_has_grown(serve, write_app, tmp_path):
    fifo = tmp_path / "pressure"
    os.mkfifo(fifo)
    app = write_app(GROWS)
    env = {"MEMORY_PRESSURE_WATCH": str(fifo)}
    daemon = serve("-w", "2", "--app-dir", str(tmp_path), app=app, env=env)
    before = set(daemon.workers())
    grown = daemon.get("/grow")["pid"]
    end = os.open(fifo, os.O_RDWR)
    os.write(end, b"!")
    os.close(end)
    daemon.logged(rf"pid {grown}\) will be replaced: memory is short and it uses the most")
    daemon.until(lambda: grown not in daemon.workers(), "it is replaced")
    daemon.status("2/2 workers ready")
    assert before - set(daemon.workers()) == {grown}
