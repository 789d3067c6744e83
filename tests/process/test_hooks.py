"""Hooks in the real daemon: each is called when and where it should be, and none can take the service down."""

from __future__ import annotations

import json
import os
import pwd
import re
import signal
import stat
import time

import pytest
from support import proc
from support.daemon import PATIENCE, ROOT

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can change users")

HOOKS = """
import json, os, sys
from support.stage import tell

def told(event):
    notify = os.environ.get("NOTIFY_SOCKET", "")
    tell("hook", hook=event["hook"], told=json.dumps(event), notify=notify, uid=os.getuid())
"""
ALONE = ["on_start", "on_ready", "on_reload", "on_stop", "worker_exit"]
INSIDE = ["post_fork", "worker_ready"]


def everybody_may_read(path):
    return all(each.stat().st_mode & stat.S_IXOTH for each in path.parents) and path.stat().st_mode & stat.S_IROTH


@pytest.fixture
def hook(tmp_path):
    """Return a function that writes the module `hooks` and returns the options that name a function in it."""

    def write(source, *names, function="told"):
        (tmp_path / "hooks.py").write_text(source)
        options = [option for name in names for option in (f"--{name.replace('_', '-')}", f"hooks:{function}")]
        return ["--app-dir", str(tmp_path), *options]

    return write


def heard(daemon, name, **fields):
    """Return what the next call of that hook was told, and the pid it ran in."""
    visit = daemon.probe.wait("hook", hook=name, **fields)
    return json.loads(visit.told["told"]), visit


def test_each_hook_is_called_and_told_what_happened(launch, hook):
    daemon = launch("-w", "2", *hook(HOOKS, *ALONE, *INSIDE)).ready()
    start, visit = heard(daemon, "on_start")
    assert visit.pid not in {daemon.pid, *daemon.workers()}, "it has a process of its own"
    assert visit.told["notify"] == "", "and may not speak for the service"
    assert (start["name"], start["pid"], start["pool"]["desired"]) == ("support.testapp", daemon.pid, 2)

    ready, _ = heard(daemon, "on_ready")
    assert ready["pool"]["ready"] == 2
    assert sorted(worker["pid"] for worker in ready["workers"]) == daemon.workers()
    for name in INSIDE:
        pids = []
        for _ in range(2):
            event, visit = heard(daemon, name)
            pids.append(visit.pid)
            assert event["worker"]["pid"] == visit.pid
            assert event["worker"]["worker"] == int(visit.told["worker_id"])
        assert sorted(pids) == daemon.workers(), "it runs in the workers"

    victim = daemon.workers()[0]
    os.kill(victim, signal.SIGKILL)
    gone, _ = heard(daemon, "worker_exit")
    assert (gone["worker"]["pid"], gone["worker"]["signal"], gone["worker"]["expected"]) == (victim, 9, False)

    daemon.until(lambda: len(daemon.workers()) == 2, "it is replaced")
    daemon.reload()
    ended, _ = heard(daemon, "on_reload")
    assert ended["reload"] == {"generation": 2, "outcome": "done", "replaced": 2, "desired": 2, "failure": None}

    assert daemon.stop() == 0
    stop, _ = heard(daemon, "on_stop")
    assert stop["pool"]["stopping"] == "graceful"
    assert daemon.probe.take("hook")[-1].told["hook"] == "worker_exit", "the last workers' exits are told too"
    assert "failed" not in daemon.log


def test_with_preload_pre_fork_runs_in_the_zygote_before_each_fork_and_post_fork_in_the_worker(launch, hook):
    daemon = launch("-w", "2", "--preload", *hook(HOOKS, "pre_fork", "post_fork")).ready()
    zygote = next(each.pid for each in proc.children(daemon.pid) if each.comm == "procmgr: zygote")
    for _ in range(2):
        before, visit = heard(daemon, "pre_fork")
        assert (visit.pid, before["worker"]["pid"]) == (zygote, None)
        after, visit = heard(daemon, "post_fork", worker_id=before["worker"]["worker"])
        assert visit.pid in daemon.workers()
        assert after["worker"] == {**before["worker"], "pid": visit.pid}


def test_a_pre_fork_that_hangs_is_cut_short_once_and_the_workers_come(launch, hook):
    daemon = launch(
        "-w", "3", "--preload", *hook("import time\ndef told(event):\n    time.sleep(60)\n", "pre_fork")
    ).ready()
    assert daemon.log.count("took longer than 10 s and was cut short") == 1
    assert len(daemon.workers()) == 3


def test_post_fork_comes_before_the_application_is_imported(launch, hook, write_app):
    app = write_app("from support.stage import tell\ntell('imported')\nfrom support.testapp import app\n")
    daemon = launch(*hook(HOOKS, "post_fork"), app=app).ready()
    names = [visit.name for visit in daemon.probe.visits]
    assert names.index("hook") < names.index("imported")


@pytest.mark.parametrize("name", [*ALONE, *INSIDE, "pre_fork"])
def test_a_hook_that_raises_is_logged_with_its_traceback_and_the_service_goes_on(launch, hook, name):
    preload = ["--preload"] if name == "pre_fork" else []
    daemon = launch(*preload, *hook("def told(event):\n    raise ValueError('no ' + event['hook'])\n", name)).ready()
    if name == "on_reload":
        daemon.reload()
    if name == "worker_exit":
        os.kill(daemon.workers()[0], signal.SIGKILL)
    if name != "on_stop":
        daemon.logged(rf"hook {name} \(hooks:told\) failed: ValueError: no {name}")
        assert daemon.get()["path"] == "/"
    assert daemon.stop() == 0
    assert len(re.findall(rf"^ERROR: +hook {name} .*\n.*Traceback", daemon.log, re.MULTILINE)) >= 1
    assert 'hooks.py", line 2, in told' in daemon.log


@pytest.mark.parametrize("name", ["on_start", "post_fork", "worker_ready"])
def test_a_hook_that_cannot_be_found_is_logged_and_the_service_goes_on(launch, hook, name):
    daemon = launch(*hook(HOOKS, name, function="tolled")).ready()
    daemon.logged(rf"hook {name} \(hooks:tolled\) failed: no attribute 'tolled' for hook .*did you mean told")
    assert daemon.get()["path"] == "/"


def test_hooks_that_hang_hold_nothing_up_and_are_ended_after_their_time(launch, hook):
    source = (
        "import time\nfrom support.stage import tell\ndef told(event):\n    tell('hangs', hook=event['hook'])\n    "
    )
    names = ["on_start", "on_ready", "post_fork", "worker_ready"]
    begun = time.monotonic()
    daemon = launch(*hook(source + "time.sleep(3600)\n", *names)).ready()
    assert daemon.get()["path"] == "/"
    hanging = daemon.probe.wait("hangs", hook="on_ready").pid
    daemon.logged(r"hook on_start \(hooks:told\) was killed: it did not end in time")
    daemon.logged(r"hook post_fork \(hooks:told\) took longer than 10 s and was cut short")
    daemon.logged(r"hook worker_ready \(hooks:told\) still runs after 10 s")
    daemon.logged(r"hook on_ready \(hooks:told\) was killed")
    assert time.monotonic() - begun >= 10
    assert proc.process(hanging) is None
    assert daemon.get()["path"] == "/"


def test_hooks_that_hang_after_a_reload_and_after_a_death_hold_up_neither_nor_a_stop(launch, hook):
    source = "from support.stage import hold\ndef told(event):\n    hold('hangs', hook=event['hook'])\n"
    daemon = launch("-w", "2", *hook(source, "on_reload", "worker_exit")).ready()
    victim = daemon.workers()[0]
    os.kill(victim, signal.SIGKILL)
    hanging = daemon.probe.wait("hangs", hook="worker_exit")
    daemon.until(lambda: len(set(daemon.workers()) - {victim}) == 2, "it is replaced")
    daemon.reload()
    daemon.probe.wait("hangs", hook="on_reload")
    daemon.reload()
    assert daemon.get()["generation"] == "3"
    assert daemon.stop(signal.SIGINT) == 0
    assert hanging.left()
    assert "left behind" not in daemon.log


def test_on_stop_may_take_a_moment_and_the_stop_waits_for_it(launch, hook):
    source = "from support.stage import hold\ndef told(event):\n    hold('stopping')\n    print('farewell')\n"
    daemon = launch(*hook(source, "on_stop")).ready()
    daemon.signal(signal.SIGTERM)
    visit = daemon.probe.wait("stopping")
    daemon.until(lambda: daemon.workers() == [], "the workers are gone")
    assert daemon.process.poll() is None
    visit.release()
    assert daemon.join() == 0
    assert "hook on_stop (hooks:told) said:\nfarewell" in daemon.log


def test_on_stop_that_hangs_delays_a_quick_stop_no_longer_than_its_bounds_and_a_kill_not_at_all(launch, hook):
    source = "from support.stage import hold\ndef told(event):\n    hold('stopping')\n"
    daemon = launch(*hook(source, "on_stop")).ready()
    daemon.signal(signal.SIGINT)
    visit = daemon.probe.wait("stopping")
    sent = time.monotonic()
    daemon.wait(lambda message: message.at > sent + 0.6, "anything after the window in which a repetition counts once")
    daemon.signal(signal.SIGTERM)
    assert daemon.join() == 0
    assert time.monotonic() - sent < 5
    assert visit.left()
    assert "hook on_stop (hooks:told) was killed" in daemon.log


def test_on_stop_that_hangs_ends_with_a_quick_stop(launch, hook):
    source = "from support.stage import hold\ndef told(event):\n    hold('stopping')\n"
    daemon = launch(*hook(source, "on_stop"), "--graceful-timeout", str(3 * PATIENCE)).ready()
    assert daemon.stop(signal.SIGINT) == 0
    assert "hook on_stop (hooks:told) was killed" in daemon.log
    assert "left behind" not in daemon.log


def test_a_hook_that_prints_without_end_is_logged_in_part_and_the_service_goes_on(launch, hook):
    lines = "for number in range(200_000):\n        print(number, 'x' * 50)"
    source = f"def told(event):\n    print('first')\n    {lines}\n    print('last')\n"
    daemon = launch(*hook(source, "on_start")).ready()
    assert daemon.get()["path"] == "/"
    daemon.logged("^last$")
    event = daemon.log[daemon.log.index("hook on_start") :]
    assert event.startswith("hook on_start (hooks:told) said:\nfirst\n0 xxx")
    assert "bytes left out" in event
    assert len(daemon.log) < 20_000


def test_more_hooks_than_run_at_once_have_their_turn(launch, hook):
    daemon = launch("-w", "8", *hook(HOOKS, "worker_exit")).ready()
    assert daemon.stop() == 0
    daemon.until(lambda: len([visit for visit in daemon.probe.visits if visit.name == "hook"]) == 8, "all were called")


def test_a_hook_dies_with_the_arbiter(launch, hook):
    source = "from support.stage import hold\ndef told(event):\n    hold('running')\n"
    daemon = launch(*hook(source, "on_ready")).ready()
    visit = daemon.probe.wait("running")
    assert not proc.sockets_of(visit.pid) & proc.listening(daemon.port), "it does not hold the port"
    daemon.signal(signal.SIGKILL)
    daemon.join()
    assert visit.left()
    assert daemon.left() == []


def test_the_terminals_int_does_not_end_a_hook(launch, hook):
    source = "from support.stage import hold\ndef told(event):\n    hold('running')\n    print('finished')\n"
    daemon = launch(*hook(source, "on_ready")).ready()
    visit = daemon.probe.wait("running")
    os.killpg(daemon.pid, signal.SIGINT)
    daemon.wait(lambda message: message.fields.get("STOPPING") == "1", "STOPPING=1")
    visit.release()
    assert daemon.join() == 0
    assert "hook on_ready (hooks:told) said:\nfinished" in daemon.log


def test_the_arbiter_imports_no_hook(launch, hook, tmp_path):
    source = "import os\nwith open('imports', 'a') as file:\n    print(os.getpid(), file=file)\ndef told(event): ...\n"
    daemon = launch(*hook(source, *ALONE, *INSIDE), cwd=tmp_path).ready()
    assert daemon.stop() == 0
    assert str(daemon.pid) not in (tmp_path / "imports").read_text().split()


@as_root
@pytest.mark.skipif(not everybody_may_read(ROOT / "tests/support/rights.py"), reason="nobody cannot read the tests")
def test_a_hook_has_no_more_rights_than_the_workers(serve):
    daemon = serve("-u", "nobody", "--on-start", "support.rights:told", app="support.rights:app")
    visits = [daemon.probe.wait("rights") for _ in range(2)]
    assert {visit.told["uids"] for visit in visits} == {str([pwd.getpwnam("nobody").pw_uid] * 3)}
    assert len({visit.pid for visit in visits} - set(daemon.workers())) == 1
