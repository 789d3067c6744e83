"""The admin pages and the agent check of the real daemon."""

from __future__ import annotations

import json
import os
import signal
import socket
from contextlib import closing, suppress

import pytest
from support.ctl import Raw, ctl
from support.daemon import PATIENCE, run

HANGS = "import time\nfrom support.testapp import app\n"


@pytest.fixture
def at(tmp_path):
    """The Unix socket of the pages."""
    return tmp_path / "admin.sock"


@pytest.fixture
def watched(serve, at):
    """A function that starts a daemon with admin pages and an agent check and waits until it is ready."""
    agent = at.with_name("agent.sock")
    return lambda *more, **other: serve(
        "--admin-bind", f"unix:{at},mode=0600", "--agent-bind", f"unix:{agent}", *more, **other
    )


def connect(at):
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(str(at))  # which would not wait for a place in the queue if it had a time-out
    sock.settimeout(PATIENCE)
    return sock


def everything(sock):
    return b"".join(iter(lambda: sock.recv(65536), b""))


def fetch(at, request="/readyz", *, raw=None):
    """Return the status and the body of an answer, head excluded."""
    with closing(connect(at)) as sock:
        sock.sendall(raw if raw is not None else f"GET {request} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        head, _, body = everything(sock).partition(b"\r\n\r\n")
    return int(head.split(b" ")[1]), body.decode()


def said(at):
    with closing(connect(at.with_name("agent.sock"))) as sock:
        return everything(sock).decode()


def test_probes_status_metrics_and_the_page_are_answered(watched, at):
    daemon = watched("-w", "2")
    assert daemon.get()
    assert fetch(at, "/livez") == (200, "ok\n")
    assert fetch(at) == (200, "ok: 2/2 workers ready, generation 1\n")
    status, text = fetch(at, "/status.json")
    assert status == 200
    assert [worker["state"] for worker in json.loads(text)["workers"]] == ["ready", "ready"]
    daemon.until(lambda: "\nprocmgr_requests_total 1\n" in fetch(at, "/metrics")[1], "the request is counted")
    assert fetch(at, "/")[1].startswith("<!doctype html>")
    assert fetch(at, "/nonsense")[0] == 404
    assert said(at).startswith("up ready ")
    assert at.stat().st_mode & 0o777 == 0o600


def test_a_head_request_has_no_body_and_others_are_refused(watched, at):
    watched()
    assert fetch(at, raw=b"HEAD /readyz HTTP/1.1\r\nHost: a\r\n\r\n") == (200, "")
    assert fetch(at, raw=b"POST /readyz HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx")[0] == 405
    assert fetch(at, raw=b"nonsense\r\n\r\n")[0] == 400
    assert fetch(at, raw=b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 20000)[0] == 431
    assert fetch(at)[0] == 200


def test_pages_are_answered_while_every_worker_is_stopped(watched, at):
    daemon = watched("--timeout", "0")
    (worker,) = daemon.workers()
    os.kill(worker, signal.SIGSTOP)
    try:
        assert fetch(at, "/livez") == (200, "ok\n")
        assert fetch(at, "/metrics")[0] == 200
    finally:
        os.kill(worker, signal.SIGCONT)


def test_visitors_who_say_nothing_do_not_keep_others_out(watched, at):
    watched()
    silent = [connect(at) for _ in range(70)]
    try:
        assert fetch(at)[0] == 200
        assert silent[0].recv(1) == b""  # the one that was there for longest made room
    finally:
        for sock in silent:
            sock.close()


def test_before_a_stop_the_pool_serves_on_for_the_delay_and_is_not_ready_any_more(watched, at):
    daemon = watched("--shutdown-delay", "600")
    daemon.signal(signal.SIGTERM)
    daemon.until(lambda: fetch(at)[0] == 503, "readiness fails")
    assert fetch(at) == (503, "leaving: 1/1 workers ready, leaving\n")
    pool = json.loads(fetch(at, "/status.json")[1])["pool"]
    assert (pool["leaving"], pool["stopping"]) == (True, None)
    assert said(at) == "drain\n"
    assert daemon.get()
    daemon.status("leaving")
    daemon.signal(signal.SIGINT)
    assert daemon.join() == 0


def test_before_a_stop_connections_end_with_their_next_response_also_those_to_workers_born_then(watched, at):
    daemon = watched("--shutdown-delay", "600")
    (worker,) = daemon.workers()
    kept = daemon.connect()
    assert kept.get()[0].getheader("connection") is None
    daemon.signal(signal.SIGTERM)
    daemon.until(lambda: ends(daemon), "the worker has heard of it")
    assert kept.get()[0].getheader("connection") == "close"
    os.kill(worker, signal.SIGKILL)
    daemon.until(lambda: daemon.workers() not in ([], [worker]) and ends(daemon), "its successor has heard of it")
    daemon.signal(signal.SIGINT)
    assert daemon.join() == 0


def ends(daemon):
    connection = daemon.connect()
    return connection.get()[0].getheader("connection") == "close"


def test_the_stop_begins_when_the_delay_is_over(watched):
    daemon = watched("--shutdown-delay", "0.2")
    daemon.signal(signal.SIGTERM)
    assert daemon.join() == 0
    assert daemon.log.index("leaving") < daemon.log.index("stopping")


def test_pages_and_counts_outlive_an_upgrade(watched, at, tmp_path):
    control = tmp_path / "control.sock"
    daemon = watched("--control", str(control))
    os.kill(daemon.workers()[0], signal.SIGKILL)
    daemon.until(lambda: 'deaths_total{cause="signal"} 1' in fetch(at, "/metrics")[1], "the death is counted")
    assert ctl("-s", str(control), "upgrade").returncode == 0
    daemon.until(lambda: fetch(at)[0] == 200, "the next program answers")
    assert 'deaths_total{cause="signal"} 1' in fetch(at, "/metrics")[1]
    assert said(at).startswith("up ready ")


def test_a_loopback_listener_answers_to_its_own_names_only(serve):
    daemon = serve("--admin-bind", "127.0.0.1:0")
    where = daemon.log.partition("admin pages on http://127.0.0.1:")[2].partition("\n")[0]

    def ask(host):
        with closing(socket.create_connection(("127.0.0.1", int(where)), PATIENCE)) as sock:
            sock.sendall(f"GET /readyz HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
            return int(everything(sock).split(b" ")[1])

    assert ask("localhost") == 200
    assert ask("rebound.example") == 421


def test_sockets_are_gone_at_the_end(watched, at):
    daemon = watched()
    daemon.signal(signal.SIGTERM)
    assert daemon.join() == 0
    assert not at.exists()
    assert not at.with_name("agent.sock").exists()


def test_an_address_that_is_taken_stops_the_start_in_one_line(tmp_path):
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        done = run("--admin-bind", f"127.0.0.1:{port}", "--port", "0", "support.testapp:app")
    assert done.returncode == 71
    assert done.stderr.count("\n") == 1
    assert f"127.0.0.1:{port}" in done.stderr


def test_an_address_of_somebody_elses_making_is_refused():
    done = run("--admin-bind", "fd://3", "support.testapp:app")
    assert done.returncode == 2
    assert "which procmgr binds itself" in done.stderr


def test_changing_it_needs_a_restart(serve, tmp_path):
    config, control = tmp_path / "site.toml", tmp_path / "control.sock"
    config.write_text("")
    serve("-c", str(config), "--control", str(control))
    config.write_text('admin_bind = "127.0.0.1:0"\n')
    done = ctl("-s", str(control), "reload")
    assert done.returncode == 78
    assert "admin_bind" in done.stdout + done.stderr
    with suppress(OSError), closing(Raw(control)) as raw:
        assert raw.ask(op="status")["pool"]["ready"] == 1
