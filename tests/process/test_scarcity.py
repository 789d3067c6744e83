"""An arbiter that may open nothing more: it says what it cannot do, goes on, and makes up for it later."""

from __future__ import annotations

import os
import re
import resource
import signal
import socket
from contextlib import contextmanager, suppress

import pytest
from support import proc
from support.ctl import Raw

EMFILE = "Too many open files"
STANDARD = 3


@pytest.fixture
def at(tmp_path):
    """The control socket's path."""
    return tmp_path / "control.sock"


@contextmanager
def nothing_to_open(daemon):
    """Leave the arbiter not one descriptor to open meanwhile (getrlimit(2), RLIMIT_NOFILE)."""
    before = resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (STANDARD, before[1]))
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, before)


def guard_of(daemon):
    return next((each.pid for each in proc.children(daemon.pid) if each.comm == "procmgr: guard"), None)


def test_a_worker_that_dies_meanwhile_is_replaced_afterwards(serve):
    daemon = serve("-w", "2")
    victim = daemon.workers()[0]
    with nothing_to_open(daemon):
        os.kill(victim, signal.SIGKILL)
        daemon.logged(rf"cannot start worker \d+ \(slot \d\): .*{EMFILE}")
        assert daemon.get()["pid"] in daemon.workers()
    daemon.status("2/2 workers ready")
    assert "Traceback" not in daemon.log


def test_a_guard_that_dies_meanwhile_is_replaced_afterwards_and_knows_every_worker(serve):
    daemon = serve("-w", "2", "--graceful-timeout", "1")
    with nothing_to_open(daemon):
        os.kill(guard_of(daemon), signal.SIGKILL)
        daemon.logged(rf"cannot fork another guard: {EMFILE}")
        assert daemon.get()["pid"] in daemon.workers()
    daemon.until(lambda: guard_of(daemon), "there is a guard again")
    stopped = daemon.workers()
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    daemon.signal(signal.SIGKILL)
    daemon.join()
    assert proc.wait_dead(stopped, 60) == []


@pytest.mark.parametrize("to_a_file", [False, True])
def test_logs_that_cannot_be_opened_anew_meanwhile_stay_as_they_are(serve, tmp_path, to_a_file):
    log_file = tmp_path / "error.log"
    daemon = serve("--log-file", str(log_file)) if to_a_file else serve()

    def log():
        return log_file.read_text() if to_a_file else daemon.log

    with nothing_to_open(daemon):
        daemon.signal(signal.SIGUSR1)
        daemon.until(lambda: re.search(rf"the log files stay as they are: .*{EMFILE}", log()), "it says so")
    daemon.signal(signal.SIGUSR1)
    daemon.until(lambda: "log files reopened" in log(), "they are opened anew")


@pytest.mark.parametrize("preload", [False, True])
def test_reloads_and_upgrades_meanwhile_change_nothing(serve, at, preload):
    daemon = serve("-w", "2", "--control", str(at), *(["--preload"] if preload else []))
    old = daemon.workers()
    with nothing_to_open(daemon):
        daemon.try_reload()
        daemon.notify.skip()
        daemon.signal(signal.SIGUSR2)
        daemon.status("upgrade refused")
        assert daemon.workers() == old
        assert daemon.get()["pid"] in old
    daemon.reload()
    assert proc.wait_dead(old, 20) == []
    daemon.upgrade()
    assert "Traceback" not in daemon.log


def test_hooks_dumps_and_scaling_meanwhile_end_nothing(serve, at, tmp_path):
    (tmp_path / "hooks.py").write_text("def told(event):\n    pass\n")
    options = ("--on-reload", "hooks:told", "--worker-exit", "hooks:told", "--app-dir", str(tmp_path))
    daemon = serve("-w", "2", "--slow-loop", "0.5", "--control", str(at), "--max-memory", "1G", *options)
    raw = Raw(at)
    raw.ask(op="version")
    with nothing_to_open(daemon):
        daemon.connect().request("GET", "/block")
        visit = daemon.probe.wait("blocked")
        daemon.logged("its event loop is late by")
        assert raw.ask(op="stacks")["exit"] == 0
        assert raw.ask(op="status")["exit"] == 0
        daemon.signal(signal.SIGTTIN)
        daemon.logged(rf"cannot start worker .*{EMFILE}")
        daemon.try_reload()
        visit.release()
    raw.close()
    daemon.status("3/3 workers ready")
    assert "Traceback" not in daemon.log


def test_the_watchdog_is_fed_meanwhile(serve):
    daemon = serve(env={"WATCHDOG_USEC": "400000"})
    with nothing_to_open(daemon):
        daemon.notify.skip()
        for _ in range(3):
            daemon.wait(lambda message: message.fields.get("WATCHDOG") == "1", "WATCHDOG=1")


def test_a_stop_meanwhile_ends_in_order(serve):
    daemon = serve("-w", "2", "--admin-bind", "127.0.0.1:0")
    with nothing_to_open(daemon):
        assert daemon.stop() == 0
    assert "Traceback" not in daemon.log


def test_visitors_and_control_clients_leave_descriptors_for_workers(serve, at, tmp_path):
    admin = tmp_path / "admin.sock"
    few = ["/bin/sh", "-c", 'ulimit -n 64; exec "$@"', "sh"]
    daemon = serve("-w", "2", "--control", str(at), "--admin-bind", f"unix:{admin}", wrapper=few)
    crowd = []
    for _ in range(40):
        for path in (admin, at):
            sock = socket.socket(socket.AF_UNIX)
            sock.connect(str(path))
            crowd.append(sock)
    victims = set(daemon.workers())
    for victim in victims:
        os.kill(victim, signal.SIGKILL)
    daemon.until(lambda: len(set(daemon.workers()) - victims) == 2, "they are replaced")
    daemon.reload()
    assert EMFILE not in daemon.log
    for sock in crowd:
        sock.close()
