"""Supervisor and Circus, the real ones, on the files in etc/."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from statistics import median

import pytest
from support import proc
from support.ctl import ctl
from support.load import Load
from support.managers import Circus, Supervisor

FILES = {
    "supervisord.conf": (Supervisor, 1, ["signal", "HUP", "web"]),
    "supervisord.fcgi.conf": (Supervisor, 4, ["signal", "HUP", "asgi:*"]),
    "circus.ini": (Circus, 1, ["reload", "web"]),
    "circus.many.ini": (Circus, 4, ["signal", "web", "hup"]),
}
# What procmgr warns of, and supervisord's KILLs; both managers warn of matters of their own.
TROUBLE = re.compile(r"^(?:WARNING|ERROR|CRITICAL): .*|.*with SIGKILL.*", re.MULTILINE)
ACCESS = re.compile(r"^INFO: {5}127\.0\.0\.1:\d+ - \"GET / HTTP/1\.1\" 200 OK$")


@pytest.fixture
def manage():
    """A function that starts a manager on a file in etc/ and waits until every procmgr is ready."""
    started = []

    def start(name, replace=None):
        kind, count, _ = FILES[name]
        manager = kind(name, replace)
        started.append(manager)
        manager.ready(count)
        return manager

    try:
        yield start
    finally:
        for manager in started:
            print(manager.story())
            manager.close()


def seconds(connection, path):
    """Return how long an answer takes."""
    began = time.perf_counter()
    assert connection.get(path)[0].status == 200
    return time.perf_counter() - began


def ratio(one, other, path):
    """Return by how much the median of `other` is that of `one`, of requests that take turns."""
    pairs = [(seconds(one, path), seconds(other, path)) for _ in range(40)]
    first, second = (median(column) for column in zip(*pairs, strict=True))
    return second / first


@pytest.mark.parametrize("name", FILES)
def test_four_workers_serve_quickly_and_hup_loses_nothing(manage, serve, name):
    manager = manage(name)
    _, count, hup = FILES[name]
    assert len(manager.arbiters()) == count
    assert len(manager.workers()) == 4
    # Those of one name have one default control socket: the first has it, which is no trouble to the others.
    assert ctl("-s", str(manager.room / "procmgr/app.sock"), "version").returncode == 0
    manager.until(lambda: manager.logs().count("no control socket") == count - 1, "the others say so")

    plain = serve("-w", "4", "--app-dir", str(manager.room), app="app:app")
    ours, theirs = plain.connect(), manager.connect()
    for path in ("/", "/parts"):  # "/parts" leaves in two writes, the second of which Nagle's algorithm would delay
        found = [ratio(ours, theirs, path)]
        while found[-1] > 2 and len(found) < 10:  # a busy machine disturbs a round; 40 ms for each request, all of them
            found.append(ratio(ours, theirs, path))
        assert found[-1] <= 2, f"{path}: the medians' ratios are {found}"

    old = manager.workers()
    with Load(manager.port, keep_alive=4, fresh=2, pause=0.04) as load:
        manager.reload(*hup, count=count)
        load.wait_answers(50)
    assert load.result.failures == []
    manager.until(lambda: not set(old) & set(manager.workers()), "every old worker is gone")

    manager.stop()
    assert manager.left() == []
    assert proc.port_is_free(manager.port)
    assert TROUBLE.findall(manager.logs()) == []


def restarted(manager, *command):
    """Run what restarts everything, and wait until all is ready again."""
    before = manager.arbiters()
    manager.notify.skip()
    manager.ctl(*command)
    manager.ready(len(before))
    manager.until(lambda: not set(before) & set(manager.arbiters()), "the old ones are gone")


def test_supervisorctl_restart_finishes_what_runs(manage):
    manager = manage("supervisord.conf")
    waiting = manager.connect()
    waiting.request("GET", "/stay")
    visit = manager.probe.wait("running")
    with ThreadPoolExecutor(1) as pool:
        restart = pool.submit(restarted, manager, "restart", "web")
        manager.until(lambda: "stopping: finishing" in manager.logs(), "it stops")
        visit.release()
        assert waiting.answer()[0].status == 200
        restart.result()
    assert manager.connect().get()[0].status == 200
    assert TROUBLE.findall(manager.logs()) == []


def test_supervisor_restarts_one_of_several_and_nothing_is_lost(manage):
    control = {"--fd 0": "--control %(here)s/%(process_num)d.sock --fd 0"}  # as the documentation has it
    manager = manage("supervisord.fcgi.conf", replace=control)
    with Load(manager.port, keep_alive=4, fresh=2, pause=0.04) as load:
        manager.notify.skip()
        manager.ctl("restart", "asgi:asgi-0")
        manager.ready()
        load.wait_answers(50)
    assert load.result.failures == []
    assert TROUBLE.findall(manager.logs()) == []
    found = [ctl("-s", str(manager.room / f"{number}.sock"), "version").returncode for number in range(4)]
    assert found == [0] * 4


@pytest.mark.parametrize(("name", "command"), [("circus.ini", "restart"), ("circus.many.ini", "reload")])
def test_connections_wait_while_circus_starts_anew_and_nothing_is_lost(manage, name, command):
    manager = manage(name)
    with Load(manager.port, keep_alive=4, fresh=2, pause=0.04) as load:
        restarted(manager, command, "web")
        load.wait_answers(50)
    assert load.result.failures == []
    assert TROUBLE.findall(manager.logs()) == []


@pytest.mark.parametrize(
    ("name", "more"), [("supervisord.conf", ["signal", "TTIN", "web"]), ("circus.ini", ["signal", "web", "ttin"])]
)
def test_signals_reach_the_arbiter_and_one_that_dies_is_started_again(manage, name, more):
    manager = manage(name)
    manager.ctl(*more)
    manager.until(lambda: len(manager.workers()) == 5, "there are five workers")
    (arbiter,), workers = manager.arbiters(), manager.workers()
    manager.notify.skip()
    os.kill(arbiter, signal.SIGKILL)
    manager.ready()
    assert proc.wait_dead(workers, 10.0) == []
    assert manager.connect().get()[0].status == 200


def test_what_would_fail_in_the_same_way_is_not_started_for_ever(manage, tmp_path):
    manager = manage("supervisord.conf")
    (manager.room / "app.py").write_text("import nothing_of_that_name\n")
    manager.ctl("stop", "web")
    manager.ctl("start", "web", check=False)
    let_go = (
        "exited: web (exit status 4; expected)",
        "gave up: web",
    )  # by how quickly it was; at once: three more times
    manager.until(lambda: any(each in manager.log for each in let_go), "it is let go")


@pytest.mark.parametrize("more", ["", "\nstopasgroup = true"])
def test_a_stop_of_the_whole_group_is_no_less_graceful(manage, more):
    manager = manage("supervisord.conf", replace={"killasgroup = true": f"killasgroup = true{more}"})
    waiting = manager.connect()
    waiting.request("GET", "/stay")
    visit = manager.probe.wait("running")
    with ThreadPoolExecutor(1) as pool:
        stop = pool.submit(manager.ctl, "stop", "web")
        manager.until(lambda: "stopping: finishing" in manager.logs(), "it stops")
        visit.release()
        assert waiting.answer()[0].status == 200
        stop.result()
    assert "stopped: web (exit status 0)" in manager.log
    assert manager.left() == []
    assert TROUBLE.findall(manager.logs()) == []


def test_procmgr_ends_what_hangs_before_supervisor_would_as_the_file_advises(manage):
    # 29 s less of --graceful-timeout and of stopwaitsecs than in the file.
    manager = manage(
        "supervisord.conf",
        replace={"procmgr --bind": "procmgr --graceful-timeout 1 --bind", "stopwaitsecs = 40": "stopwaitsecs = 11"},
    )
    hanging = manager.connect()
    hanging.request("GET", "/block")
    manager.probe.wait("blocked")
    manager.ctl("stop", "web")
    assert "stopped: web (exit status 0)" in manager.log
    assert "killing" not in manager.log
    assert manager.left() == []


def test_a_kill_by_supervisor_reaches_the_whole_group(manage):
    manager = manage("supervisord.conf", replace={"stopwaitsecs = 40": "stopwaitsecs = 1"})
    (arbiter,) = manager.arbiters()
    os.kill(arbiter, signal.SIGSTOP)
    manager.ctl("stop", "web")
    assert "stopped: web (terminated by SIGKILL)" in manager.log
    assert manager.left() == []


@pytest.mark.parametrize(
    ("name", "bound"),
    [
        ("supervisord.conf", {"stdout_logfile_maxbytes = 50MB": "stdout_logfile_maxbytes = 5KB"}),
        ("circus.ini", {"max_bytes = 52428800": "max_bytes = 5120"}),
    ],
)
def test_no_line_is_lost_where_the_manager_rotates_the_log(manage, name, bound):
    manager = manage(name, replace=bound)
    connection = manager.connect()
    for _ in range(250):
        assert connection.get()[0].status == 200
    manager.stop()
    parts = list(manager.room.glob("*.log.*"))
    assert parts, "the log was not rotated"
    assert sum(bool(ACCESS.match(line)) for line in manager.logs().splitlines()) == 250


def test_signals_that_whoever_started_it_left_blocked_are_heard(serve):
    blocked = (
        "import os, signal, sys; signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals());"
        "os.execv(sys.argv[1], sys.argv[1:])"
    )
    daemon = serve("-w", "2", wrapper=[sys.executable, "-c", blocked])
    daemon.reload()
    assert daemon.stop() == 0
