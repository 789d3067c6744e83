"""A worker's health: late loops, memory, lifetime, a debugger; a drain the application hears of, and mixed code."""

from __future__ import annotations

import os
import pty
import re
import signal
import time

import pytest
from support import proc
from support.ctl import ctl
from support.load import Load


def seconds_pass(daemon, seconds):
    """Wait by the daemon's own clock: it says its status about once a second."""
    since = time.monotonic()
    daemon.wait(lambda message: message.at > since + seconds, f"anything {seconds} s later")


def lateness(daemon):
    return re.findall(r"its event loop is late by .*", daemon.log)


def test_a_blocked_loop_is_dumped_once_for_each_time_with_its_stack_and_its_requests(serve):
    daemon = serve("-w", "2", "-t", "60")
    for times in (1, 2):
        connection = daemon.connect()
        connection.request("GET", f"/block?secret={times}")
        visit = daemon.probe.wait("blocked")
        daemon.logged(rf"(?s)pid {visit.pid}\): its event loop is late by .* its stacks:\n.* in hold")
        seconds_pass(daemon, 3)
        assert len(lateness(daemon)) == times
        visit.release()
        assert connection.answer()[0].status == 200
        seconds_pass(daemon, 1)
    assert re.search(r"; in flight: GET /block for \d+\.\d s; its stacks:$", lateness(daemon)[0])
    assert "secret" not in daemon.log
    assert len(daemon.workers()) == 2


def test_an_idle_and_a_busy_worker_are_never_called_late(serve):
    daemon = serve("-w", "2")
    with Load(daemon.port) as load:
        seconds_pass(daemon, 4)
        load.wait_answers(10)
    assert lateness(daemon) == []


def test_slow_loop_zero_dumps_nothing(serve):
    daemon = serve("--slow-loop", "0", "-t", "60")
    daemon.connect().request("GET", "/block")
    visit = daemon.probe.wait("blocked")
    seconds_pass(daemon, 4)
    assert lateness(daemon) == []
    visit.release()


SPINS = """
import re
from support.stage import tell
from support.testapp import app as plain

async def app(scope, receive, send):
    if scope.get("path") == "/spin":
        spin_in_c()
    await plain(scope, receive, send)

def spin_in_c():
    tell("spinning")
    re.match("(a|a)+$", "a" * 60 + "b")
"""


def test_a_loop_that_spins_in_c_with_the_gil_held_is_dumped_then_killed_with_its_request_named(
    serve, write_app, tmp_path
):
    daemon = serve("--slow-loop", "0.5", "-t", "4", "--app-dir", str(tmp_path), app=write_app(SPINS))
    daemon.connect().request("GET", "/spin")
    visit = daemon.probe.wait("spinning")
    daemon.logged(rf"(?s)pid {visit.pid}\): its event loop is late by .* in spin_in_c")
    daemon.logged(rf"pid {visit.pid}\) was killed by procmgr because its event loop was blocked after .*GET /spin for ")
    assert daemon.log.count("in spin_in_c") == 2, "one dump for the lateness, one for the time-out"
    assert "procmgr/arbiter/" not in daemon.log, "what forked the worker is no part of its stack"
    assert daemon.get()["pid"] != visit.pid


DEADLOCKS = """
import ctypes
from support.stage import tell
from support.testapp import app as plain

async def app(scope, receive, send):
    if scope.get("path") == "/deadlock":
        wait_for_itself()
    await plain(scope, receive, send)

def wait_for_itself():
    tell("waiting")
    mutex = ctypes.create_string_buffer(64)  # all nought, as PTHREAD_MUTEX_INITIALIZER is
    lock = ctypes.PyDLL(None).pthread_mutex_lock  # by PyDLL the GIL is kept
    lock(mutex)
    lock(mutex)
"""


def test_a_loop_that_deadlocks_in_c_with_the_gil_held_is_dumped_then_killed_and_replaced(serve, write_app, tmp_path):
    daemon = serve("--slow-loop", "0.5", "-t", "4", "--app-dir", str(tmp_path), app=write_app(DEADLOCKS))
    daemon.connect().request("GET", "/deadlock")
    visit = daemon.probe.wait("waiting")
    daemon.logged(rf"(?s)pid {visit.pid}\): its event loop is late by .* in wait_for_itself")
    daemon.logged(rf"pid {visit.pid}\) was killed by procmgr because its event loop was blocked after .*GET /deadlock ")
    assert daemon.get()["pid"] != visit.pid


BLOCKS_LATE = """
from support.stage import hold, stay
from support.testapp import app as plain

async def app(scope, receive, send):
    if scope.get("path") == "/late":
        await stay("running")
        hold("blocked")
    await plain(scope, receive, send)
"""


def test_a_loop_that_blocks_in_a_drain_is_found_long_before_the_drains_deadline(serve, write_app, tmp_path):
    options = ("-t", "3", "--graceful-timeout", "600", "--app-dir", str(tmp_path))
    daemon = serve(*options, app=write_app(BLOCKS_LATE))
    daemon.connect().request("GET", "/late")
    visit = daemon.probe.wait("running")
    daemon.reload()
    visit.release()
    daemon.probe.wait("blocked")
    daemon.logged(rf"pid {visit.pid}\) was killed by procmgr because its event loop was blocked")
    assert proc.wait_dead([visit.pid], 20) == []


def test_of_workers_that_are_due_at_once_one_is_replaced_at_a_time(serve, write_app, tmp_path):
    app = write_app("from support.testapp import app\n")
    daemon = serve("-w", "3", "--max-requests", "1", "--app-dir", str(tmp_path), app=app)
    old = set(daemon.workers())
    write_app("from support.stage import hold\nhold('importing')\nfrom support.testapp import app\n")
    served = set()
    while served != old:
        served.add(daemon.get()["pid"])
    for _ in old:
        visit = daemon.probe.wait("importing")
        seconds_pass(daemon, 1)
        assert not daemon.probe.take("importing"), "the others wait for their turn"
        visit.release()
    assert proc.wait_dead(sorted(old), 20) == []
    daemon.status("3/3 workers ready")


def test_a_stopped_worker_is_told_from_a_blocked_one_and_not_signalled(serve):
    daemon = serve("-t", "4")
    victim = daemon.probe.wait("startup").pid
    os.kill(victim, signal.SIGSTOP)
    daemon.logged(rf"pid {victim}\): its event loop is late by .*; it is stopped: no stack is available")
    daemon.logged(rf"pid {victim}\) was killed by procmgr because it was stopped")


def test_a_slow_import_is_no_hang_and_no_lateness(launch, write_app, tmp_path):
    app = write_app("from support.stage import hold\nhold('importing')\nfrom support.testapp import app\n")
    daemon = launch("-t", "2", "--slow-loop", "0.2", "--app-dir", str(tmp_path), app=app)
    visit = daemon.probe.wait("importing")
    seconds_pass(daemon, 4)
    visit.release()
    daemon.ready()
    assert daemon.get()["pid"] == visit.pid
    assert not re.search("WARNING|ERROR", daemon.log)


ABORTED = """
import faulthandler
import os
import resource
from pathlib import Path
from support.testapp import app as plain

faulthandler.enable(open(os.environ["WHERE"], "a"))  # which hears of ABRT, and lets it have its effect

async def app(scope, receive, send):
    if scope["type"] == "http":
        Path(os.environ["WHERE"]).with_suffix(".limit").write_text(str(resource.getrlimit(resource.RLIMIT_CORE)[0]))
    await plain(scope, receive, send)
"""


def test_with_core_on_hang_a_hung_worker_dies_of_abrt(serve, write_app, tmp_path):
    where = tmp_path / "aborted"
    limited = ["/bin/sh", "-c", 'ulimit -S -c 0; ulimit -H -c 64; exec "$@"', "sh"]
    options = ("--core-on-hang", "-t", "3", "--slow-loop", "0", "--chdir", str(tmp_path), "--app-dir", str(tmp_path))
    daemon = serve(*options, app=write_app(ABORTED), env={"WHERE": str(where)}, wrapper=limited)
    daemon.connect().request("GET", "/block")
    visit = daemon.probe.wait("blocked")
    daemon.logged(rf"pid {visit.pid}\) was killed by procmgr because its event loop was blocked.*GET /block")
    assert "in hold" in where.read_text(), "it had ABRT, and no KILL before"
    limit = int(where.with_suffix(".limit").read_text())
    assert limit == int(proc.limit(daemon.pid, "Max core file size")[1])


GROWS = """
from support.testapp import app as plain
from support.stage import tell

kept = []

async def app(scope, receive, send):
    if scope.get("path") == "/grow":
        kept.append(bytearray(b"x") * (256 << 20))
        tell("grown")
    await plain(scope, receive, send)
"""


def grown(serve, write_app, tmp_path, *options):
    daemon = serve("-w", "2", *options, "--app-dir", str(tmp_path), app=write_app(GROWS))
    daemon.probe.take("startup")
    stays = daemon.connect()
    stays.request("GET", "/grow")
    assert stays.answer()[0].status == 200
    return daemon, daemon.probe.wait("grown").pid


@pytest.mark.parametrize("measure", ["rss", "pss"])
def test_a_worker_above_max_memory_is_replaced_first_and_then_retired(serve, write_app, tmp_path, measure):
    daemon, victim = grown(serve, write_app, tmp_path, "--max-memory", "192M", "--memory-measure", measure)
    heir = daemon.probe.wait("startup")
    assert proc.wait_dead([victim], 20) == []
    daemon.logged(rf"pid {victim}\) will be replaced: it uses \d+\.\d MiB, max_memory is 192\.0 MiB")
    daemon.logged(rf"pid {victim}\) ended after")
    assert heir.pid in daemon.workers()
    assert "ERROR" not in daemon.log


@pytest.mark.parametrize("measure", ["rss", "pss"])
def test_a_worker_above_max_memory_hard_is_killed_and_replaced(serve, write_app, tmp_path, measure):
    options = ("--max-memory-hard", "192M", "--memory-measure", measure)
    daemon, victim = grown(serve, write_app, tmp_path, *options)
    heir = daemon.probe.wait("startup")
    assert proc.wait_dead([victim], 20) == []
    daemon.logged(rf"pid {victim}\) was killed by procmgr because it used more memory than max_memory_hard \(\d")
    assert heir.pid in daemon.workers()


def test_a_max_memory_below_a_fresh_worker_is_said_once_and_replaces_nobody(serve):
    daemon = serve("-w", "2", "--max-memory", "1M")
    workers = daemon.workers()
    seconds_pass(daemon, 7)
    assert daemon.log.count("max_memory, 1.0 MiB, is too low to have any effect") == 1
    assert daemon.workers() == workers


def test_workers_past_their_lifetime_are_replaced_and_no_request_fails(serve):
    daemon = serve("-w", "2", "--max-lifetime", "1.5", "--max-lifetime-jitter", "0.5")
    daemon.probe.take("startup")
    with Load(daemon.port) as load:
        heirs = [daemon.probe.wait("startup") for _ in range(4)]
        load.wait_answers(20)
    assert load.result.failures == []
    assert {heir.told["slot"] for heir in heirs} == {"0", "1"}
    assert "will be replaced: it served for 1.5 s or more" in daemon.log
    assert not re.search("ERROR|WARNING", daemon.log)


BREAKS = """
from support.stage import tell
from support.testapp import app as plain

async def app(scope, receive, send):
    if scope.get("path") == "/break":
        await stop_here()
    await plain(scope, receive, send)

async def stop_here():
    tell("breaking")
    {breakpoint}
    tell("broke")
"""


@pytest.mark.parametrize("call", ["breakpoint()", "import pdb; pdb.set_trace()"])
def test_a_debugged_worker_on_a_terminal_is_neither_dumped_nor_killed(serve, write_app, tmp_path, call):
    ours, theirs = pty.openpty()
    at = tmp_path / "control.sock"
    try:
        app = write_app(BREAKS.replace("{breakpoint}", call))
        options = ("-t", "2", "--slow-loop", "0.2", "--app-dir", str(tmp_path), "--control", str(at))
        daemon = serve(*options, app=app, stdin=theirs)
        connection = daemon.connect()
        connection.request("GET", "/break")
        visit = daemon.probe.wait("breaking")
        seconds_pass(daemon, 5)
        assert re.search(r" debugged (?s:.*) GET /break\n", ctl("-s", str(at), "status").stdout)
        os.write(ours, b"c\n")
        assert daemon.probe.wait("broke").pid == visit.pid
        assert connection.answer()[0].status == 200
        assert "(Pdb)" in daemon.output
        assert "stop_here()" in daemon.output, "the debugger stops in the frame of the application"
        assert "a debugger was entered" in daemon.log
        assert not re.search("is late|killed", daemon.log)
    finally:
        os.close(ours)
        os.close(theirs)


def test_without_a_terminal_a_breakpoint_is_watched_like_anything_else(serve, write_app, tmp_path):
    source = BREAKS.replace("{breakpoint}", "import pdb; pdb.Pdb()\n    from support.stage import hold; hold('held')")
    daemon = serve("-t", "3", "--app-dir", str(tmp_path), app=write_app(source))
    daemon.connect().request("GET", "/break")
    daemon.probe.wait("held")
    daemon.logged("was killed by procmgr because its event loop was blocked")


WAITS_FOR_DRAIN = """
from support.stage import tell
from support.testapp import app as plain

async def app(scope, receive, send):
    if scope.get("path") == "/stream":
        draining = scope["extensions"]["procmgr"]["draining"]
        assert not draining.is_set()
        tell("streaming")
        await draining.wait()
    await plain(scope, receive, send)
"""


def test_an_application_hears_that_its_worker_drains(serve, write_app, tmp_path):
    daemon = serve("--app-dir", str(tmp_path), app=write_app(WAITS_FOR_DRAIN))
    connection = daemon.connect()
    connection.request("GET", "/stream")
    visit = daemon.probe.wait("streaming")
    daemon.reload()
    assert connection.answer()[0].status == 200
    assert proc.wait_dead([visit.pid], 20) == []


def test_code_that_is_newer_than_its_generation_is_said_until_a_reload(serve, write_app, tmp_path):
    app = write_app("from support.testapp import app\n")
    daemon = serve("-w", "2", "--app-dir", str(tmp_path), app=app)
    write_app("from support.testapp import app  # deployed, and not reloaded\n")
    os.kill(daemon.workers()[0], signal.SIGKILL)
    daemon.status(r"2/2 workers ready, generation 1, some with newer code: reload")
    assert re.search(rf"runs newer code than generation 1: {tmp_path}/site_app\.py changed since", daemon.log)
    daemon.reload()
    assert "newer" not in daemon.status(r"2/2 workers ready")
    assert daemon.log.count("newer code") == 1
