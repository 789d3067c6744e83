"""Workers that die, hang or never start: what is replaced, what is lost with them, and how the daemon ends."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
from contextlib import suppress

import pytest
from support import proc
from support.load import Load


def test_eight_workers_serve_and_each_has_its_slot(serve):
    daemon = serve("-w", "8")
    assert len(daemon.workers()) == 8
    told = daemon.probe.take("startup")
    assert sorted(visit.told["slot"] for visit in told) == [str(slot) for slot in range(8)]
    assert len({visit.told["worker_id"] for visit in told}) == 8
    with Load(daemon.port) as load:
        load.wait_answers(200)
    assert load.result.failures == []
    assert load.answering() <= set(daemon.workers())


def test_a_worker_killed_under_load_is_replaced_and_only_its_running_requests_fail(serve):
    daemon = serve("-w", "4")
    daemon.probe.take("startup")
    with Load(daemon.port, keep_alive=16) as load:
        victim = max(load.result.pids, key=lambda pid: load.result.pids[pid])
        os.kill(victim, signal.SIGKILL)
        new = daemon.probe.wait("startup").pid
        daemon.status("4/4 workers ready")
        load.wait_answers(200)
    assert {failure.pid for failure in load.result.failures} <= {victim, None}
    assert len(load.result.failures) <= 20, "no client fails twice"
    assert not any("refused" in failure.reason for failure in load.result.failures)
    assert victim not in daemon.workers()
    assert new in daemon.workers()
    assert re.search(rf"pid {victim}\) died of SIGKILL, sender unknown", daemon.log)


def test_a_killed_worker_is_replaced_in_its_slot(serve):
    daemon = serve("-w", "3")
    victim = daemon.probe.take("startup")[1]
    os.kill(victim.pid, signal.SIGKILL)
    heir = daemon.probe.wait("startup")
    assert heir.told["slot"] == victim.told["slot"]
    assert heir.told["worker_id"] not in {"", victim.told["worker_id"]}


ENDS = """
import os, signal
from support.testapp import app as plain

async def app(scope, receive, send):
    match scope.get("path"):
        case "/exit":
            os._exit(7)
        case "/fault":
            os.kill(os.getpid(), signal.SIGSEGV)
    await plain(scope, receive, send)
"""


@pytest.mark.parametrize(("path", "cause"), [("/exit", "exited with status 7"), ("/fault", "died of SIGSEGV")])
def test_each_death_is_one_line_with_its_cause_age_and_requests(serve, write_app, tmp_path, path, cause):
    daemon = serve("--app-dir", str(tmp_path), app=write_app(ENDS))
    victim = daemon.get()["pid"]
    daemon.connect().request("GET", path)
    assert proc.wait_dead([victim], 20) == []
    daemon.status("1/1 workers ready")
    lines = [line for line in daemon.log.splitlines() if f"pid {victim}) " in line and " ready in " not in line]
    assert len(lines) == 1
    core = "(, core dumped)?"
    assert re.search(
        rf"ERROR.* worker 1 \(slot 0, pid {victim}\) {cause}{core} after \d+\.\d s, "
        rf"[01] requests? served; in flight: GET {path} for \d+\.\d s$",
        lines[0],
    )


def test_a_kill_for_want_of_memory_is_told_from_any_other(launch, tmp_path):
    """The kernel's counters are replaced by the test's, in a mount namespace of the daemon's own (cgroups(7))."""
    groups = tmp_path / "cgroup"
    (groups / "memory").mkdir(parents=True)
    counters = [groups / "memory.events", groups / "memory/memory.oom_control"]  # of version 2, and of version 1

    def killed(count):
        for counter in counters:
            counter.write_text(f"oom_kill {count}\n")

    mount = 'mount --bind "$0" /sys/fs/cgroup && exec "$@"'
    within = ["unshare", "--mount", "--propagation", "private", "/bin/sh", "-c", mount, str(groups)]
    if subprocess.run([*within, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("no mount namespace may be made here")
    killed(1)
    daemon = launch("-w", "2", wrapper=within).ready()
    one, other = daemon.workers()
    os.kill(one, signal.SIGKILL)
    daemon.logged(rf"pid {one}\) died of SIGKILL, sender unknown after")
    killed(2)
    os.kill(other, signal.SIGKILL)
    daemon.logged(rf"pid {other}\) died of SIGKILL, probably out of memory after")


REFUSES = """
async def app(scope, receive, send):
    await receive()
    await send({"type": "lifespan.startup.failed", "message": "no database today"})
"""
QUICK_TO_GIVE_UP = ("-w", "2", "--boot-attempts", "1")
BOOT_FAILURES = {
    "an exception at import": ("raise RuntimeError('no database today')\n", 3, "no database today"),
    "a missing dependency": ("import no_such_dependency\n", 4, "no_such_dependency"),
    "a syntax error": ("def app(:\n", 4, "SyntaxError"),
    "a missing attribute": ("application = None\n", 4, "app"),
    "a lifespan that refuses": (REFUSES, 3, "no database today"),
}


@pytest.mark.parametrize("case", BOOT_FAILURES)
def test_when_nothing_was_ever_ready_the_exit_code_says_why(launch, write_app, tmp_path, case):
    source, code, reason = BOOT_FAILURES[case]
    daemon = launch(*QUICK_TO_GIVE_UP, "--app-dir", str(tmp_path), app=write_app(source))
    assert daemon.join() == code
    assert reason in daemon.log
    assert "giving up" in daemon.log
    assert daemon.log.count("Traceback") <= 1, "the same traceback is logged once"
    assert not any(message.fields.get("READY") for message in daemon.notify.messages)


def test_the_traceback_of_an_application_that_raises_is_its_own_and_logged_once(launch, write_app, tmp_path):
    app = write_app("def connect():\n    raise RuntimeError('no database today')\n\nconnect()\n")
    daemon = launch("-w", "4", "--app-dir", str(tmp_path), app=app)
    assert daemon.join() == 3
    assert daemon.log.count("Traceback") == 1
    assert re.search(r'site_app\.py", line 2, in connect', daemon.log)
    assert "procmgr/arbiter" not in daemon.log, "no frame of the arbiter is shown"


def test_a_missing_module_is_named_with_where_it_was_looked_for(launch, tmp_path):
    daemon = launch(*QUICK_TO_GIVE_UP, "--app-dir", str(tmp_path), app="no_such_module:app")
    assert daemon.join() == 4
    assert "no_such_module" in daemon.log
    assert str(tmp_path) in daemon.log
    assert "Traceback" not in daemon.log


def test_a_worker_that_exits_in_its_boot_is_retried_with_a_growing_wait(launch, write_app, tmp_path):
    daemon = launch("--app-dir", str(tmp_path), app=write_app("import os\nos._exit(9)\n"))
    assert daemon.join() == 3
    waits = [float(wait) for wait in re.findall(r"next attempt in ([\d.]+) s", daemon.log)]
    assert waits == sorted(waits)
    assert len(waits) >= 2
    assert "exited with status 9" in daemon.log


def test_a_pool_that_served_never_gives_up(serve, write_app, tmp_path):
    app = write_app("from support.testapp import app\n")
    daemon = serve("--app-dir", str(tmp_path), app=app)
    write_app("raise RuntimeError('broken between deploy and reload')\n")
    os.kill(daemon.workers()[0], signal.SIGKILL)
    daemon.status(r"backing off .* after 2 early deaths")
    daemon.logged("after 3 early deaths in a row")
    write_app("from support.testapp import app\n")
    daemon.status("1/1 workers ready")
    assert daemon.get()["pid"] in daemon.workers()


def test_a_blocked_loop_is_killed_after_the_timeout_with_its_stack_and_replaced(serve):
    daemon = serve("-t", "3")
    daemon.probe.take("startup")
    daemon.connect().request("GET", "/block")
    visit = daemon.probe.wait("blocked")
    heir = daemon.probe.wait("startup")
    assert visit.left()
    assert heir.pid != visit.pid
    daemon.logged(rf"pid {visit.pid}\) was killed by procmgr because its event loop was blocked")
    assert re.search(r'stage\.py", line \d+ in hold', daemon.log), "the stack says where it was blocked"
    assert daemon.get()["pid"] == heir.pid


def test_a_stopped_worker_is_killed_after_the_timeout_and_replaced(serve):
    daemon = serve("-t", "3")
    victim = daemon.probe.wait("startup").pid
    os.kill(victim, signal.SIGSTOP)
    heir = daemon.probe.wait("startup")
    assert proc.wait_dead([victim], 20) == []
    daemon.logged(rf"pid {victim}\) was killed by procmgr because it was stopped")
    assert daemon.get()["pid"] == heir.pid


def test_a_boot_that_hangs_is_ended_after_its_own_timeout(launch, write_app, tmp_path):
    app = write_app("from support.stage import hold\nhold('importing')\n")
    daemon = launch(*QUICK_TO_GIVE_UP, "--timeout-boot", "1", "--app-dir", str(tmp_path), app=app)
    assert daemon.join() == 3
    assert "was killed by procmgr because it was not ready in time" in daemon.log
    assert re.search(r'stage\.py", line \d+ in hold', daemon.log), "the stack says where the boot hung"


def test_term_to_one_worker_drains_it_and_it_is_replaced_without_a_crash_in_the_log(serve):
    daemon = serve("-w", "2")
    daemon.probe.take("startup")
    connection = daemon.connect()
    connection.request("GET", "/stay")
    visit = daemon.probe.wait("running")
    os.kill(visit.pid, signal.SIGTERM)
    heir = daemon.probe.wait("startup")
    assert heir.pid != visit.pid
    visit.release()
    assert connection.answer()[0].status == 200
    assert proc.wait_dead([visit.pid], 20) == []
    daemon.status("2/2 workers ready")
    assert not re.search(r"ERROR|died of|crash", daemon.log)


def test_workers_that_reached_their_number_of_requests_are_replaced_and_no_request_fails(serve):
    daemon = serve("-w", "2", "--max-requests", "40", "--max-requests-jitter", "10")
    daemon.probe.take("startup")
    with Load(daemon.port) as load:
        recycled = [daemon.probe.wait("startup") for _ in range(6)]
        load.wait_answers(20)
    assert load.result.failures == []
    assert {visit.told["slot"] for visit in recycled} == {"0", "1"}
    assert not re.search(r"ERROR|WARNING", daemon.log)


def test_connections_wait_while_a_worker_is_out_of_descriptors(serve):
    limited = ["/bin/sh", "-c", 'ulimit -n 64; exec "$@"', "sh"]
    daemon = serve("--keep-alive", "60", wrapper=limited)
    many = [daemon.connect() for _ in range(100)]
    for connection in many:
        connection.request("GET", "/")
    daemon.logged("cannot accept")
    for connection in many:
        assert connection.answer()[0].status == 200
        connection.close()
    assert daemon.log.count("cannot accept") == 1


def test_the_process_pool_of_a_killed_worker_holds_no_port_and_ends_with_the_daemon(serve):
    daemon = serve()
    children = daemon.get("/pool")
    listeners = proc.sockets_of(daemon.pid) & proc.listening(daemon.port)
    assert len(children) >= 1
    assert listeners
    assert not any(proc.sockets_of(child) & listeners for child in children)
    victim = daemon.workers()[0]
    daemon.probe.take("startup")
    os.kill(victim, signal.SIGKILL)
    daemon.probe.wait("startup")
    daemon.status("1/1 workers ready")
    assert daemon.stop() == 0
    assert proc.wait_dead(children, 20) == []


ORPHAN = """
import os
from support.stage import hold
from support.testapp import app as plain

async def app(scope, receive, send):
    if scope["type"] == "http":
        leave_an_orphan()
    await plain(scope, receive, send)

def leave_an_orphan():
    middle = os.fork()
    if middle == 0:
        if os.fork() == 0:
            hold("orphan")
        os._exit(0)
    os.waitpid(middle, 0)
"""


def test_an_orphan_that_a_worker_left_behind_is_adopted_and_buried(serve, write_app, tmp_path):
    daemon = serve("--app-dir", str(tmp_path), app=write_app(ORPHAN))
    daemon.get()
    orphan = daemon.probe.wait("orphan")
    assert orphan.pid in {each.pid for each in proc.children(daemon.pid)}
    orphan.release()
    assert orphan.left()
    daemon.until(lambda: not proc.zombies_of(daemon.pid), "no zombie is left")


QUITTER = """
import asyncio, os, sys
from support.testapp import app as inner

async def quit():
    sys.exit(7)

async def app(scope, receive, send):
    if scope["type"] == "http" and scope["path"] == "/quit":
        asyncio.get_running_loop().create_task(quit())
    await inner({**scope, "path": "/"} if scope["type"] == "http" else scope, receive, send)
"""


def test_a_task_of_the_application_that_exits_does_not_end_the_worker(serve, write_app, tmp_path):
    daemon = serve("--app-dir", str(tmp_path), app=write_app(QUITTER))
    before = daemon.workers()
    assert daemon.connect().get("/quit")[0].status == 200
    daemon.logged("a task of the application raised SystemExit; the worker goes on")
    assert daemon.connect().get()[0].status == 200
    assert daemon.workers() == before
    assert daemon.stop() == 0


@pytest.mark.parametrize("seed", [1, 2])
def test_in_a_storm_of_signals_no_request_fails_but_those_in_killed_workers(serve, seed):
    chance = random.Random(seed)
    daemon = serve("-w", "3")
    killed = set()
    with Load(daemon.port, keep_alive=6, fresh=3) as load:
        for _ in range(40):
            workers = daemon.workers()
            act = chance.choice(
                ["HUP", "HUP", "TTIN", "TTOU", "USR1", "TERM to a worker", "KILL to a worker", "nothing"]
            )
            with suppress(ProcessLookupError):  # it left by itself in this moment
                match act:
                    case "KILL to a worker" if len(workers) > 2:
                        killed.add(victim := chance.choice(workers))
                        os.kill(victim, signal.SIGKILL)
                    case "TERM to a worker" if len(workers) > 2:
                        os.kill(chance.choice(workers), signal.SIGTERM)
                    case "HUP" | "TTOU" | "USR1" | "TTIN" if len(workers) < 6:
                        daemon.signal(signal.Signals[f"SIG{act}"])
                    case _:
                        pass
            load.wait_answers(chance.choice([1, 5, 20, 40]))
    failures = load.result.failures
    assert [each for each in failures if each.pid not in {None, *killed}] == []
    fresh = [each.reason for each in failures if each.pid is None]  # nothing had told them who was to answer
    assert len(fresh) <= 3 * len(killed)
    assert not any("refused" in reason for reason in fresh)
    assert daemon.stop() == 0
    assert "Traceback" not in daemon.log
