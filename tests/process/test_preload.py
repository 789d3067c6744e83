"""--preload: one import for each generation, in a zygote that the workers are forked from."""

from __future__ import annotations

import json
import os
import pwd
import re
import signal
import stat
from pathlib import Path

import pytest
from support import proc
from support.daemon import ROOT
from support.load import Load

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can change users")

VERSIONED = "from support import testapp\nfrom support.stage import hold, tell\ntell('imported')\n"
VERSIONED += "from support.testapp import app\ntestapp.version = {!r}\n"
ONE = VERSIONED.format("one")
BROKEN = "from support.stage import tell\ntell('imported')\ndef app(:\n"


@pytest.fixture
def preload(launch, write_app, tmp_path):
    """Return a function that starts a daemon which preloads `source`, ready unless told otherwise."""

    def start(*options, source=ONE, ready=True, **more):
        daemon = launch("--preload", "--app-dir", str(tmp_path), *options, app=write_app(source), **more)
        return daemon.ready() if ready else daemon

    return start


def descriptors(daemon):
    return len(list(Path(f"/proc/{daemon.pid}/fd").iterdir()))


def zygotes(daemon):
    return [each.pid for each in proc.children(daemon.pid) if each.comm == "procmgr: zygote"]


def kill(pid):
    os.kill(pid, signal.SIGKILL)


def heir_of(daemon, victim):
    """Kill a worker and return what its successor told at its startup."""
    daemon.probe.take("startup")
    kill(victim)
    return daemon.probe.wait("startup")


def test_the_application_is_imported_once_and_by_the_zygote(preload):
    daemon = preload("-w", "3")
    imported = daemon.probe.take("imported")
    assert [visit.pid for visit in imported] == zygotes(daemon)
    assert imported[0].told["slot"] == "", "what is imported once is of no slot"


def test_the_workers_are_children_of_the_arbiter_and_each_has_its_own_identity(preload):
    daemon = preload("-w", "3")
    told = daemon.probe.take("startup")
    assert sorted(visit.pid for visit in told) == daemon.workers()
    assert sorted(visit.told["slot"] for visit in told) == ["0", "1", "2"]
    assert sorted(visit.told["worker_id"] for visit in told) == ["1", "2", "3"]
    assert {visit.told["generation"] for visit in told} == {"1"}
    assert proc.zombies_of(zygotes(daemon)[0]) == []


def test_the_lifespan_runs_in_each_worker(preload):
    daemon = preload("-w", "3")
    serving = set(daemon.workers())
    assert {visit.pid for visit in daemon.probe.take("startup")} == serving
    assert daemon.stop() == 0
    assert {visit.pid for visit in daemon.probe.take("shutdown")} == serving


def test_a_worker_killed_under_load_is_back_in_its_slot_without_an_import(preload):
    daemon = preload("-w", "3")
    daemon.probe.take("imported")
    victim = daemon.probe.take("startup")[0]
    with Load(daemon.port) as load:
        heir = heir_of(daemon, victim.pid)
        load.wait_answers(200)
    assert heir.told["slot"] == victim.told["slot"]
    assert {failure.pid for failure in load.result.failures} <= {victim.pid, None}
    assert daemon.probe.take("imported") == []
    assert len(zygotes(daemon)) == 1


def test_the_zygote_holds_no_listener_and_no_channel_of_a_worker(preload):
    daemon = preload("-w", "3")
    zygote = proc.sockets_of(zygotes(daemon)[0])
    assert zygote & proc.listening(daemon.port) == set()
    assert len(zygote) == 1, "its own channel is all it has"
    assert all(zygote & proc.sockets_of(worker) == set() for worker in daemon.workers())


def test_twenty_reloads_under_load_import_once_each_and_fail_no_request(preload):
    daemon = preload("-w", "2")
    before = descriptors(daemon)
    daemon.probe.take("imported")
    with Load(daemon.port) as load:
        for _ in range(20):
            daemon.reload()
            load.wait_answers(20)
    assert load.result.failures == []
    assert len(daemon.probe.take("imported")) == 20
    daemon.until(lambda: len(zygotes(daemon)) == 1 and len(daemon.workers()) == 2, "only the newest generation is left")
    daemon.until(lambda: descriptors(daemon) <= before, "no descriptor is lost")


def test_hup_serves_the_new_code_from_a_zygote_of_its_own(preload, write_app):
    daemon = preload("-w", "2")
    old = zygotes(daemon)
    write_app(VERSIONED.format("two"))
    daemon.reload()
    assert {daemon.get()["version"] for _ in range(10)} == {"two"}
    assert proc.wait_dead(old, 20) == [], "the old zygote goes with its generation"
    daemon.until(lambda: len(daemon.workers()) == 2, "the old workers have drained")
    heir_of(daemon, daemon.workers()[0])
    daemon.until(lambda: len(daemon.workers()) == 2, "two workers serve")
    assert {daemon.get()["version"] for _ in range(10)} == {"two"}


def test_hup_with_broken_code_rolls_back_and_the_old_generation_is_forked_from_its_own_zygote(preload, write_app):
    daemon = preload("-w", "2")
    before, zygote = daemon.workers(), zygotes(daemon)
    write_app(BROKEN)
    daemon.try_reload()
    daemon.status("rolled back")
    assert (daemon.workers(), zygotes(daemon)) == (before, zygote)
    assert re.search(r'could not start: .*SyntaxError[\s\S]*File ".*site_app\.py", line 3', daemon.log)
    daemon.probe.take("imported")
    heir_of(daemon, before[0])
    daemon.until(lambda: len(daemon.workers()) == 2, "two workers serve")
    assert daemon.probe.take("imported") == []
    assert {daemon.get()["version"] for _ in range(10)} == {"one"}


def test_a_killed_zygote_is_rebuilt_by_a_reload_that_no_request_notices(preload):
    daemon = preload("-w", "2")
    before = set(daemon.workers())
    daemon.probe.take("imported")
    with Load(daemon.port) as load:
        kill(zygotes(daemon)[0])
        daemon.ready()
        load.wait_answers(50)
    assert load.result.failures == []
    assert len(daemon.probe.take("imported")) == 1
    daemon.until(lambda: not before & set(daemon.workers()), "the old workers have drained")
    assert re.search(r"zygote of generation 1 \(pid \d+\) died of SIGKILL", daemon.log)
    heir_of(daemon, daemon.workers()[0])
    assert daemon.probe.take("imported") == []


def test_ready_workers_stay_when_a_killed_zygote_cannot_be_rebuilt(preload, write_app):
    daemon = preload("-w", "2")
    before = daemon.workers()
    write_app(BROKEN)
    kill(zygotes(daemon)[0])
    daemon.status("rolled back")
    assert daemon.workers() == before
    write_app(VERSIONED.format("two"))
    heir_of(daemon, before[0])
    daemon.until(lambda: len(daemon.workers()) == 2, "a zygote is made anew for what is missing")
    assert len(zygotes(daemon)) == 1


def test_a_worker_and_its_zygote_killed_at_once_are_both_replaced(preload):
    daemon = preload("-w", "2")
    daemon.probe.take("startup")
    kill(zygotes(daemon)[0])
    kill(daemon.workers()[0])
    daemon.probe.wait("startup")
    daemon.until(lambda: len(daemon.workers()) == 2 and len(zygotes(daemon)) == 1, "both are back")
    assert daemon.get()["pid"] in daemon.workers()


def test_a_zygote_that_is_killed_while_it_imports_is_a_failed_boot(preload, write_app):
    daemon = preload("-w", "2")
    before = daemon.workers()
    write_app("from support.stage import hold\nhold('importing')\n" + VERSIONED.format("two"))
    daemon.signal(signal.SIGHUP)
    kill(daemon.probe.wait("importing").pid)
    daemon.status("rolled back")
    assert daemon.workers() == before
    assert "died of SIGKILL, sender unknown before it had imported" in daemon.log


FAILURES = {
    "an exception": (
        "def connect():\n    raise RuntimeError('no database today')\n\nconnect()\n",
        3,
        "line 2, in connect",
    ),
    "a missing dependency": ("import no_such_dependency\n", 4, "no_such_dependency"),
    "a syntax error": (BROKEN, 4, "SyntaxError"),
    "an exit": ("import os\nos._exit(9)\n", 3, "exited with status 9"),
}


@pytest.mark.parametrize("case", FAILURES)
def test_an_import_that_fails_ends_the_start_with_its_reason_once(preload, case):
    source, code, reason = FAILURES[case]
    daemon = preload("-w", "4", "--boot-attempts", "2", source=source, ready=False)
    assert daemon.join() == code
    assert reason in daemon.log
    assert daemon.log.count("Traceback") <= 1
    assert daemon.log.count("could not start") <= 2, "four workers that wait for one import are one failure"


def test_an_import_that_takes_too_long_is_ended_with_its_stack_and_rolled_back(preload, write_app, tmp_path):
    config = tmp_path / "site.toml"
    config.touch()
    daemon = preload("-w", "2", "-c", str(config))
    before = daemon.workers()
    write_app("from support.stage import hold\n\n\ndef connect():\n    hold('importing')\n\n\nconnect()\n")
    config.write_text("timeout_boot = 1\n")
    daemon.signal(signal.SIGHUP)
    daemon.probe.wait("importing")
    daemon.status("rolled back")
    assert daemon.workers() == before
    assert re.search(r"zygote of generation 2 .* was killed by procmgr because it did not import", daemon.log)
    assert re.search(r'site_app\.py", line 5 in connect', daemon.log)
    assert "arbiter/spawn.py" not in daemon.log, "what forked the zygote is no part of its stack"


def test_a_zygote_that_hangs_is_given_up_when_it_owes_a_worker_for_too_long(preload):
    daemon = preload("-w", "2", "--timeout-boot", "4")
    hanging = zygotes(daemon)[0]
    os.kill(hanging, signal.SIGSTOP)
    daemon.probe.take("startup")
    kill(daemon.workers()[0])
    daemon.probe.wait("startup")
    daemon.until(lambda: len(daemon.workers()) == 2, "two workers serve")
    assert hanging not in zygotes(daemon)
    assert "because it did not answer in time" in daemon.log


def test_term_during_the_import_ends_at_once(preload):
    daemon = preload(source="from support.stage import hold\nhold('importing')\n", ready=False)
    visit = daemon.probe.wait("importing")
    assert daemon.stop() == 0
    assert visit.left()


def test_signals_to_the_whole_group_leave_the_zygote_alone(preload):
    daemon = preload("-w", "2")
    zygote = zygotes(daemon)
    for signum in (signal.SIGUSR1, signal.SIGWINCH, signal.SIGTTOU, signal.SIGTTIN):
        os.killpg(daemon.pid, signum)
    daemon.logged("log files reopened")
    daemon.until(lambda: len(daemon.workers()) == 2, "two workers serve")
    assert zygotes(daemon) == zygote
    os.killpg(daemon.pid, signal.SIGINT)
    assert daemon.join() == 0
    # A worker that the scaling has just started is still importing, perhaps: INT ends it at once.
    assert not re.search(r"ERROR|WARNING|died of SIG(?!INT)", daemon.log)


@pytest.mark.parametrize("source", [ONE, "from support.stage import hold\nhold('importing')\n"])
def test_the_death_of_the_arbiter_leaves_nothing(preload, source):
    holds = "importing" in source
    daemon = preload("-w", "2", source=source, ready=not holds)
    if holds:
        daemon.probe.wait("importing")
    daemon.signal(signal.SIGKILL)
    daemon.join()
    assert daemon.left() == []
    assert proc.port_is_free(daemon.port)


def test_a_zygote_that_notices_nothing_is_killed_by_the_guard(preload):
    daemon = preload("--graceful-timeout", "1")
    os.kill(zygotes(daemon)[0], signal.SIGSTOP)
    daemon.signal(signal.SIGKILL)
    daemon.join()
    assert daemon.left() == []


def everybody_may_read(path):
    return all(each.stat().st_mode & stat.S_IXOTH for each in path.parents) and path.stat().st_mode & stat.S_IROTH


@as_root
@pytest.mark.skipif(not everybody_may_read(ROOT / "tests/support/rights.py"), reason="nobody cannot read the tests")
def test_every_right_is_dropped_before_the_zygote_imports(serve):
    nobody = pwd.getpwnam("nobody")
    daemon = serve("-w", "2", "--preload", "-u", "nobody", app="support.rights:app")
    told = daemon.probe.wait("rights").told
    assert int(told["pid"]) == zygotes(daemon)[0]
    assert told["uids"] == str([nobody.pw_uid] * 3)
    assert told["gids"] == str([nobody.pw_gid] * 3)
    for worker in daemon.workers():
        rights = proc.status(worker)
        assert (rights["Uid"], rights["CapEff"]) == ([str(nobody.pw_uid)] * 4, ["0" * 16])
    daemon.reload()
    assert daemon.connect().get()[0].status == 200
    daemon.signal(signal.SIGKILL)
    daemon.join()
    assert daemon.left() == []


LEAVES = """
import asyncio, threading
threading.Thread(target=threading.Event().wait, name="metrics", daemon=True).start()
loop = asyncio.new_event_loop()
"""


def test_threads_and_loops_that_the_import_left_are_said_once(preload):
    daemon = preload("-w", "2", source=LEAVES + ONE)
    warnings = re.findall(r"WARNING.*", daemon.log)
    assert len(warnings) == 1
    assert re.search(r"site_app:app left 1 thread \(metrics\) and 1 open event loop \(\w+\)", warnings[0])
    assert daemon.get()["pid"] in daemon.workers()


def test_an_import_that_leaves_nothing_is_not_warned_of(preload):
    assert "WARNING" not in preload("-w", "2").log


STATE = """
import gc, json, random, ssl, tempfile, uuid
from support import testapp
from support.stage import tell

random.random(), ssl.RAND_bytes(8), uuid.uuid1(), uuid.uuid4(), tempfile.mktemp()
{set_up}

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        drawn = [random.random(), ssl.RAND_bytes(8).hex(), str(uuid.uuid1()), str(uuid.uuid4()), tempfile.mktemp()]
        tell("state", drawn=json.dumps(drawn), thresholds=gc.get_threshold(), frozen=gc.get_freeze_count())
        tell("enabled", enabled=gc.isenabled())
    await testapp.app(scope, receive, send)
"""


def test_no_two_workers_draw_the_same_random_numbers(preload):
    daemon = preload("-w", "2", source=STATE.format(set_up=""))
    one, other = (json.loads(visit.told["drawn"]) for visit in daemon.probe.take("state"))
    assert len(one) == 5
    assert not set(one) & set(other)


def test_the_collector_runs_in_workers_and_leaves_what_was_imported_alone(preload):
    daemon = preload(source=STATE.format(set_up=""))
    state = daemon.probe.wait("state").told
    assert not state["thresholds"].startswith("(0,")
    assert int(state["frozen"]) > 1000
    assert daemon.probe.wait("enabled").told["enabled"] == "True"


def test_a_collector_that_the_application_switched_off_stays_off(preload):
    daemon = preload(source=STATE.format(set_up="gc.disable()"))
    assert daemon.probe.wait("enabled").told["enabled"] == "False"


def test_a_reload_switches_preload_on_and_off(serve, write_app, tmp_path):
    config = tmp_path / "site.toml"
    config.write_text("preload = false\n")
    daemon = serve("-w", "2", "-c", str(config), "--app-dir", str(tmp_path), app=write_app(ONE))
    assert len(daemon.probe.take("imported")) == 2
    config.write_text("preload = true\n")
    daemon.reload()
    assert len(daemon.probe.take("imported")) == 1
    config.write_text("preload = false\n")
    daemon.reload()
    assert len(daemon.probe.take("imported")) == 2
    daemon.until(lambda: zygotes(daemon) == [], "no zygote is left")


def test_a_worker_forked_after_the_logs_were_reopened_writes_to_the_new_file(preload, tmp_path):
    path = tmp_path / "access.log"
    daemon = preload("-w", "1", "--access-log-file", str(path))
    path.rename(tmp_path / "access.log.1")
    daemon.signal(signal.SIGUSR1)
    daemon.logged("log files reopened")
    heir_of(daemon, daemon.workers()[0])
    daemon.status("1/1 workers ready")
    assert daemon.connect().get("/after")[0].status == 200
    assert daemon.stop() == 0
    assert "/after" in path.read_text()


def test_scaling_forks_from_the_zygote(preload):
    daemon = preload("-w", "1")
    daemon.probe.take("imported")
    for wanted, signum in ((2, signal.SIGTTIN), (3, signal.SIGTTIN), (2, signal.SIGTTOU)):
        daemon.signal(signum)
        daemon.until(lambda wanted=wanted: len(daemon.workers()) == wanted, f"{wanted} workers serve")
    assert daemon.probe.take("imported") == []


HOLDS_ZYGOTE = """
from support.stage import hold
if "zygote" in open("/proc/self/comm").read():  # and not the check of the new program
    hold("importing")
"""


def upgrade(daemon):
    daemon.notify.skip()
    daemon.signal(signal.SIGUSR2)
    daemon.logged("upgraded from release")


def test_an_upgrade_keeps_the_zygote_and_forks_from_it(preload):
    daemon = preload("-w", "2")
    before, zygote = daemon.workers(), zygotes(daemon)
    upgrade(daemon)
    daemon.probe.take("imported")  # by the zygote, and by the check of the new program
    assert (daemon.workers(), zygotes(daemon)) == (before, zygote)
    heir_of(daemon, before[0])
    assert daemon.probe.take("imported") == []
    daemon.reload()
    assert len(daemon.probe.take("imported")) == 1
    assert proc.wait_dead(zygote, 20) == []


def test_an_upgrade_while_the_zygote_imports_loses_none_of_its_workers(preload, write_app):
    daemon = preload("-w", "2")
    write_app(HOLDS_ZYGOTE + VERSIONED.format("two"))
    daemon.signal(signal.SIGHUP)
    visit = daemon.probe.wait("importing")
    upgrade(daemon)
    visit.release()
    daemon.until(lambda: {daemon.get()["version"] for _ in range(10)} == {"two"}, "the new code serves")
    daemon.until(lambda: len(daemon.workers()) == 2 and len(zygotes(daemon)) == 1, "only the new generation is left")
