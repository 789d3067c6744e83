"""USR2: the arbiter becomes a new program, and neither clients, workers nor the service manager notice."""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import socket
import struct
from collections import Counter
from contextlib import closing

import pytest
from support import proc
from support.ctl import Raw, Running, ctl
from support.daemon import run
from support.load import Load
from support.releases import Releases

VERSIONED = "from support import testapp\nfrom support.testapp import app\ntestapp.version = {!r}\n"
HELD = "from support.stage import hold\nhold('importing')\n"
HELD_IN_WORKERS = "import os\nfrom support.stage import hold\nif 'PROCMGR_SLOT' in os.environ:\n    hold('importing')\n"
HELD_IN_PREFLIGHTS = HELD_IN_WORKERS.replace(" in os", " not in os")

# Edits of a release: it stops for the test while it adopts, with all signals blocked; or it fails to adopt, early or
# late, having closed what it was handed.
HOLD = {
    "handover.py": (
        "        self.role = role\n",
        "        self.role = role\n        role is Role.CHECK or __import__('support.stage').stage.hold('adopting')\n",
    )
}
FAILURES = {
    "it loses a listener": {
        "sockets/listener.py": (
            "        sock.settimeout(0)\n",
            "        sock.close()\n        raise RuntimeError('a bad release')\n",
        )
    },
    "it fails at the last part": {
        "arbiter/guard.py": ("        guard = cls.__new__(cls)\n", "        raise RuntimeError('a bad release')\n")
    },
    "it refuses in one line": {
        "arbiter/parts.py": (
            "    pool = estate.restore_pool()\n",
            "    from procmgr.errors import ProcmgrError\n    raise ProcmgrError('a bad release')\n",
        )
    },
}
BROKEN = {
    "a syntax error": ({"arbiter/arbiter.py": ("class Arbiter:", "class Arbiter(:")}, "SyntaxError"),
    "a missing module": ({"arbiter/loop.py": ("import heapq\n", "import no_such_module\n")}, "no_such_module"),
    "a later state": ({"arbiter/estate.py": ("VERSION: Final = 1", "VERSION: Final = 2")}, "version 1"),
    "other messages": ({"messages.py": ("PROTOCOL_VERSION: Final = 1", "PROTOCOL_VERSION: Final = 2")}, "messages"),
    "another scoreboard": ({"scoreboard.py": ("LAYOUT_VERSION: Final = 2", "LAYOUT_VERSION: Final = 3")}, "scoreboard"),
    "a program that knows no upgrades": (
        {"cli/main.py": ("    ticket = handover.claim(os.environ)\n", "    return 0\n")},
        "did not say why",
    ),
}


@pytest.fixture
def releases(tmp_path):
    """Releases 1.0 and whatever the test makes, 1.0 being the current one; outside of the daemon's directory."""
    room = tmp_path / "releases"
    room.mkdir()
    made = Releases(room)
    made.make("1.0")
    return made


@pytest.fixture
def deploy(serve, releases, tmp_path):
    """Return a function that starts the current release."""
    return lambda *options, **more: serve(*options, cwd=tmp_path, env=releases.env, **more)


def guards_of(daemon):
    return [each.pid for each in proc.children(daemon.pid) if each.comm == "procmgr: guard"]


def guard_of(daemon):
    return guards_of(daemon)[0]


def lasting_files(pid):
    """What a process has open, but for the datagram socket that it opens for each message to the service manager."""
    before = Counter(proc.files_of(pid))
    datagrams = proc.datagram_sockets()  # between the two: one that is gone by now is missing in the second
    both = before & Counter(proc.files_of(pid))
    return Counter({file: count for file, count in both.items() if file not in datagrams})


def serves(daemon, workers):
    """Whether exactly `workers` live, and answer."""
    return daemon.workers() == workers and {daemon.get()["pid"] for _ in range(10)} <= set(workers)


# What stays


def test_five_upgrades_under_load_fail_no_request_restart_nothing_and_leak_nothing(serve):
    daemon = serve("-w", "2")
    workers, guard = daemon.workers(), guard_of(daemon)
    with Load(daemon.port) as load:
        load.wait_answers(50)
        before = lasting_files(daemon.pid), lasting_files(guard)
        for _ in range(5):
            daemon.upgrade()
            load.wait_answers(20)
        after = lasting_files(daemon.pid), lasting_files(guard)
    assert load.result.failures == []
    assert load.answering() == set(workers)
    assert daemon.workers() == workers
    assert guard_of(daemon) == guard
    assert after == before, "the same descriptors, neither more nor fewer"
    assert daemon.log.count("upgraded from release") == 5


def test_a_request_that_runs_across_the_exec_is_answered(serve):
    daemon = serve()
    connection = daemon.connect()
    connection.request("GET", "/stay")
    visit = daemon.probe.wait("running")
    daemon.upgrade()
    assert daemon.get()["pid"] == visit.pid
    visit.release()
    response, body = connection.answer()
    assert (response.status, json.loads(body)["pid"]) == (200, visit.pid)


def test_the_service_manager_sees_a_new_status_and_the_same_main_process(serve):
    daemon = serve()
    said = len(daemon.notify.messages)
    daemon.upgrade()
    messages = daemon.notify.messages[said:]
    assert {name for message in messages for name in message.fields} <= {"STATUS", "WATCHDOG", "MAINPID"}
    assert {message.fields.get("MAINPID", str(daemon.pid)) for message in messages} == {str(daemon.pid)}
    daemon.status(r"^1/1 workers ready, generation 1; upgraded to ")


def test_the_new_release_is_in_charge(deploy, releases):
    daemon = deploy()
    releases.make("2.0")
    releases.switch("2.0")
    assert daemon.try_upgrade().endswith("; upgraded to 2.0")
    assert "upgraded from release 1.0 to 2.0" in daemon.log
    assert proc.process(daemon.pid).comm.startswith("procmgr: ")


def test_counters_go_on(serve):
    daemon = serve()
    for _ in range(3):
        daemon.get()
    daemon.upgrade()
    for _ in range(4):
        daemon.get()
    os.kill(daemon.workers()[0], signal.SIGKILL)
    daemon.logged("[67] requests served")  # the last may be answered and not yet counted


def test_the_pid_file_stays_locked_by_the_same_process_and_goes_with_it(serve, tmp_path):
    path = tmp_path / "daemon.pid"
    daemon = serve("-p", str(path))
    inode = path.stat().st_ino
    daemon.upgrade()
    daemon.upgrade()
    assert (path.stat().st_ino, int(path.read_text()), lock_holder(path)) == (inode, daemon.pid, daemon.pid)
    assert run("-p", str(path), "-b", "127.0.0.1:0", "support.testapp:app").returncode != 0
    assert lock_holder(path) == daemon.pid
    assert daemon.stop() == 0
    assert not path.exists()


def lock_holder(path):
    """Return who holds the POSIX lock of a file (fcntl(2), F_GETLK)."""
    layout = "hhqqi4x"
    with path.open("r+") as file:
        asked = struct.pack(layout, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        return struct.unpack(layout, fcntl.fcntl(file, fcntl.F_GETLK, asked))[4]


def test_a_unix_socket_stays_and_is_unlinked_at_the_end(serve, tmp_path):
    path = tmp_path / "a,b.sock"  # no --bind could spell it
    daemon = serve("--uds", str(path), bind=None)
    inode = path.stat().st_ino
    daemon.upgrade()
    assert path.stat().st_ino == inode
    assert daemon.connect(path).get()[0].status == 200
    daemon.reload()
    assert daemon.connect(path).get()[0].status == 200
    assert daemon.stop() == 0
    assert not path.exists()


def test_an_inherited_listener_stays_one(serve, tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.bind(str(tmp_path / "inherited.sock"))
        sock.listen(16)
        daemon = serve("--fd", str(sock.fileno()), bind=None, pass_fds=[sock.fileno()])
        daemon.upgrade()
        daemon.reload()
        assert daemon.connect(tmp_path / "inherited.sock").get()[0].status == 200
        assert daemon.stop() == 0
        assert (tmp_path / "inherited.sock").exists(), "what procmgr did not make is not unlinked"


def test_log_files_go_on_and_are_reopened(serve, tmp_path):
    access, error = tmp_path / "access.log", tmp_path / "error.log"
    daemon = serve("--access-log-file", str(access), "--log-file", str(error))
    daemon.upgrade()
    assert "upgraded from release" in error.read_text()
    access.rename(tmp_path / "access.log.1")
    error.rename(tmp_path / "error.log.1")
    daemon.signal(signal.SIGUSR1)
    daemon.until(lambda: error.exists() and "log files reopened" in error.read_text(), "the new error log is written")
    daemon.until(lambda: daemon.get() and '"GET' in access.read_text(), "the new access log is")
    daemon.upgrade()
    assert "upgraded from release" in error.read_text(), "in the new file"


def test_the_environment_of_the_application_is_that_of_the_start(deploy, releases, write_app, tmp_path):
    app = write_app(
        "import os\nfrom support.stage import tell\nfrom support.testapp import app\n"
        "tell('imported', **{'of ' + name: value for name, value in os.environ.items()})\n"
    )
    daemon = deploy("--app-dir", str(tmp_path), app=app)
    before = daemon.probe.wait("imported")
    releases.make("2.0", FAILURES["it fails at the last part"])
    releases.switch("2.0")
    assert "upgrade failed" in daemon.try_upgrade(), "the way back is the one that changes most"
    daemon.probe.take("imported")
    daemon.reload()
    after = daemon.probe.wait("imported")
    assert environment_of(after) == environment_of(before)
    assert {"NOTIFY_SOCKET", "PROCMGR_HANDOVER"}.isdisjoint(environment_of(after))


def environment_of(visit):
    identity = {"PROCMGR_WORKER_ID", "PROCMGR_GENERATION"}
    names = {name.removeprefix("of "): value for name, value in visit.told.items() if name.startswith("of ")}
    return {name: value for name, value in names.items() if name not in identity}


# What goes on


def test_a_reload_afterwards_rolls_the_workers_to_the_new_code(serve, write_app, tmp_path):
    app = write_app(VERSIONED.format("one"))
    daemon = serve("-w", "2", "--app-dir", str(tmp_path), app=app)
    write_app(VERSIONED.format("two"))
    daemon.upgrade()
    assert daemon.get()["version"] == "one"
    daemon.reload()
    assert {daemon.get()["version"] for _ in range(10)} == {"two"}
    assert "upgraded" not in daemon.notify.statuses()[-1], "the reload is the newer news"


def test_scaling_crashes_and_stops_are_answered_afterwards(serve):
    daemon = serve("-w", "2")
    daemon.upgrade()
    daemon.probe.take("startup")
    daemon.signal(signal.SIGTTIN)
    daemon.until(lambda: len(daemon.workers()) == 3, "three workers serve")
    daemon.upgrade()
    victim = daemon.workers()[0]
    os.kill(victim, signal.SIGKILL)
    daemon.until(lambda: len(daemon.workers()) == 3 and victim not in daemon.workers(), "it was replaced")
    daemon.signal(signal.SIGTTOU)
    daemon.until(lambda: len(daemon.workers()) == 2, "two workers serve")
    assert daemon.stop() == 0


def test_an_old_worker_hears_the_new_arbiter(serve):
    daemon = serve("--graceful-timeout", "60")
    connection = daemon.connect()
    connection.request("GET", "/stay")
    visit = daemon.probe.wait("running")
    daemon.upgrade()
    daemon.signal(signal.SIGTERM)
    daemon.status("stopping")
    visit.release()
    assert connection.answer()[0].status == 200
    assert daemon.join() == 0


def test_the_arbiter_may_be_killed_afterwards_and_the_guard_does_its_duty(serve):
    daemon = serve("-w", "2", "--graceful-timeout", "1")
    guard = guard_of(daemon)
    daemon.upgrade()
    daemon.connect().request("GET", "/block")
    daemon.probe.wait("blocked")
    assert guard_of(daemon) == guard
    daemon.signal(signal.SIGKILL)
    daemon.join()
    assert daemon.left() == []
    assert proc.port_is_free(daemon.port)


def test_a_guard_that_dies_afterwards_is_replaced(serve):
    daemon = serve()
    guard = guard_of(daemon)
    daemon.upgrade()
    os.kill(guard, signal.SIGKILL)
    daemon.logged(rf"the guard \(pid {guard}\) died")
    assert proc.eventually(lambda: [pid for pid in guards_of(daemon) if pid != guard]), "it is named once it runs"


# In the midst of something


def test_a_worker_that_boots_goes_on_booting(serve, write_app, tmp_path):
    app = write_app(VERSIONED.format("one"))
    daemon = serve("--app-dir", str(tmp_path), app=app)
    write_app(HELD_IN_WORKERS + VERSIONED.format("two"))
    daemon.notify.skip()
    daemon.signal(signal.SIGHUP)
    booting = daemon.probe.wait("importing")
    daemon.upgrade()
    assert daemon.get()["version"] == "one"
    booting.release()
    daemon.ready()
    daemon.until(lambda: daemon.get()["version"] == "two", "the reload ends in the new program")
    assert booting.pid in daemon.workers()


def test_the_first_boot_goes_on_and_ends_in_ready(launch, write_app, tmp_path):
    daemon = launch("--app-dir", str(tmp_path), app=write_app(HELD_IN_WORKERS + VERSIONED.format("one")))
    booting = daemon.probe.wait("importing")
    daemon.upgrade()
    booting.release()
    daemon.ready()
    assert serves(daemon, [booting.pid])


def test_a_reload_that_fails_after_the_exec_is_rolled_back(serve, write_app, tmp_path):
    app = write_app(VERSIONED.format("one"))
    daemon = serve("--app-dir", str(tmp_path), app=app)
    write_app(HELD_IN_WORKERS + "    raise RuntimeError('half deployed')\n" + VERSIONED.format("two"))
    before = daemon.workers()
    daemon.signal(signal.SIGHUP)
    booting = daemon.probe.wait("importing")
    daemon.upgrade()
    booting.release()
    daemon.status("rolled back")
    assert "half deployed" in daemon.log
    assert serves(daemon, before)


def test_a_worker_that_drains_goes_on_draining(serve):
    daemon = serve("--graceful-timeout", "60")
    connection = daemon.connect()
    connection.request("GET", "/stay")
    visit = daemon.probe.wait("running")
    daemon.reload()
    daemon.upgrade()
    assert visit.pid in daemon.workers()
    visit.release()
    assert connection.answer()[0].status == 200
    daemon.until(lambda: visit.pid not in daemon.workers(), "it ended")
    assert not re.search(rf"pid {visit.pid}\).*(killed|SIGKILL)", daemon.log)


@pytest.fixture
def adopting(deploy, releases):
    """A daemon that is held in the new program, between the exec and the moment from which signals are taken."""
    daemon = deploy("-w", "2")
    releases.make("2.0", HOLD)
    releases.switch("2.0")
    daemon.notify.skip()
    daemon.signal(signal.SIGUSR2)
    daemon.held = daemon.probe.wait("adopting")
    return daemon


def test_a_hup_at_the_moment_of_the_exec_is_not_lost(adopting):
    old = adopting.workers()
    adopting.signal(signal.SIGHUP)
    adopting.held.release()
    adopting.status("upgraded to 2.0")
    adopting.wait(lambda message: message.fields.get("RELOADING") == "1", "RELOADING=1")
    adopting.ready()
    adopting.until(lambda: not set(old) & set(adopting.workers()), "every worker is new")


def test_a_term_at_the_moment_of_the_exec_is_not_lost(adopting):
    adopting.signal(signal.SIGTERM)
    adopting.held.release()
    assert adopting.join() == 0
    assert adopting.left() == []


def test_a_worker_that_dies_at_the_moment_of_the_exec_is_reaped_and_replaced(adopting):
    victim, other = adopting.workers()
    os.kill(victim, signal.SIGKILL)
    adopting.held.release()
    adopting.logged(rf"pid {victim}\) died of SIGKILL")
    adopting.until(lambda: len(adopting.workers()) == 2, "it was replaced")
    assert other in adopting.workers()
    assert proc.zombies_of(adopting.pid) == []


def test_requests_are_answered_while_there_is_no_arbiter(adopting):
    with Load(adopting.port) as load:
        load.wait_answers(100)
        adopting.held.release()
        adopting.status("upgraded to 2.0")
        load.wait_answers(20)
    assert load.result.failures == []


def test_the_arbiter_may_be_killed_at_the_moment_of_the_exec(adopting):
    adopting.signal(signal.SIGKILL)
    adopting.join()
    assert adopting.left() == []
    assert proc.port_is_free(adopting.port)


# What is refused


@pytest.mark.parametrize("case", BROKEN)
def test_with_a_release_that_cannot_take_over_nothing_happens(deploy, releases, case):
    edits, reason = BROKEN[case]
    daemon = deploy("-w", "2")
    workers = daemon.workers()
    releases.make("2.0", edits)
    releases.switch("2.0")
    assert re.search(f"upgrade refused: .*{reason}", daemon.try_upgrade())
    assert reason in daemon.log
    assert serves(daemon, workers)
    daemon.status(f"upgrade refused: .*{reason}")  # and it goes on saying so


def test_an_application_that_cannot_be_imported_now_is_a_reason_to_refuse(serve, write_app, tmp_path):
    app = write_app(VERSIONED.format("one"))
    daemon = serve("--app-dir", str(tmp_path), app=app)
    write_app("def app(:\n")
    assert "upgrade refused" in daemon.try_upgrade()
    assert re.search(r'File ".*site_app\.py", line 1', daemon.log), "the traceback names the application's own line"
    assert daemon.get()["version"] == "one"


def test_a_broken_configuration_is_a_reason_to_refuse(serve, tmp_path):
    config = tmp_path / "site.toml"
    config.write_text("workers = 1\n")
    daemon = serve("-c", str(config))
    config.write_text("wrkers = 1\n")
    assert re.search("upgrade refused: .*wrkers.*workers", daemon.try_upgrade())
    assert daemon.get()


def test_a_broken_log_configuration_is_a_reason_to_refuse(serve, tmp_path):
    config = tmp_path / "logging.json"
    config.write_text('{"version": 1}')
    daemon = serve("--log-config", str(config))
    config.write_text('{"version": 7}')
    assert re.search("upgrade refused: .*logging.json", daemon.try_upgrade())
    assert daemon.get()


def test_a_preflight_has_a_deadline(serve, write_app, tmp_path):
    app = write_app(VERSIONED.format("one"))
    daemon = serve("--app-dir", str(tmp_path), "--timeout-boot", "3", app=app)
    write_app(HELD)
    assert daemon.try_upgrade().endswith("upgrade refused: the new program did not answer within 3 s")
    # Arbiter, guard and worker are left.
    assert proc.eventually(lambda: len(proc.in_session(daemon.pid)) == 3), "it was killed"
    assert daemon.get()["version"] == "one"


def test_the_arbiter_supervises_while_a_preflight_runs_and_a_second_usr2_is_ignored(serve, write_app, tmp_path):
    app = write_app(VERSIONED.format("one"))
    daemon = serve("-w", "2", "--app-dir", str(tmp_path), app=app)
    write_app(HELD_IN_PREFLIGHTS + VERSIONED.format("two"))
    daemon.signal(signal.SIGUSR2)
    checked = daemon.probe.wait("importing")
    daemon.signal(signal.SIGUSR2)
    daemon.logged("upgrade ignored: another one is under way")
    victim = daemon.workers()[0]
    os.kill(victim, signal.SIGKILL)
    daemon.until(lambda: len(daemon.workers()) == 2 and victim not in daemon.workers(), "it was replaced")
    daemon.reload()
    checked.release()
    daemon.status("upgraded to")
    assert daemon.get()["version"] == "two"


def test_term_overtakes_a_preflight(serve, write_app, tmp_path):
    app = write_app(VERSIONED.format("one"))
    daemon = serve("--app-dir", str(tmp_path), app=app)
    write_app(HELD)
    daemon.signal(signal.SIGUSR2)
    checked = daemon.probe.wait("importing")
    assert daemon.stop() == 0
    assert checked.left()
    assert daemon.left() == []
    assert "left behind" not in daemon.log


def test_the_preflight_dies_with_the_arbiter(serve, write_app, tmp_path):
    app = write_app(VERSIONED.format("one"))
    daemon = serve("--app-dir", str(tmp_path), app=app)
    write_app(HELD)
    daemon.signal(signal.SIGUSR2)
    checked = daemon.probe.wait("importing")
    daemon.signal(signal.SIGKILL)
    daemon.join()
    assert checked.left()
    assert daemon.left() == []


def test_there_is_no_upgrade_once_it_stops(serve):
    daemon = serve("--graceful-timeout", "60")
    connection = daemon.connect()
    connection.request("GET", "/stay")
    visit = daemon.probe.wait("running")
    daemon.signal(signal.SIGTERM)
    daemon.status("stopping")
    daemon.signal(signal.SIGUSR2)
    daemon.logged("upgrade ignored: the service is stopping")
    visit.release()
    assert daemon.join() == 0


@pytest.mark.skipif(os.getuid() != 0, reason="only root can drop privileges")
def test_the_preflight_drops_privileges_before_it_imports_the_application(serve):
    daemon = serve("-u", "nobody", app="support.rights:app")
    worker = daemon.probe.wait("rights")
    daemon.upgrade()
    checked = daemon.probe.wait("rights")
    assert checked.pid not in {worker.pid, daemon.pid}
    assert {key: checked.told[key] for key in ("uids", "gids", "groups")} == {
        key: worker.told[key] for key in ("uids", "gids", "groups")
    }
    assert proc.status(daemon.pid)["Uid"] == ["0"] * 4


# Through the control socket


@pytest.fixture
def at(tmp_path):
    """The control socket's path."""
    return tmp_path / "control.sock"


def test_procmgrctl_upgrade_waits_until_the_new_program_is_in_charge(deploy, releases, at):
    daemon = deploy("--control", str(at))
    inode = at.stat().st_ino
    releases.make("2.0")
    releases.switch("2.0")
    done = ctl("-s", str(at), "upgrade")
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "upgraded to 2.0"), done.stderr
    assert at.stat().st_ino == inode, "nobody could have found it missing"
    assert f"procmgr 2.0, pid {daemon.pid}" in ctl("-s", str(at), "status").stdout
    assert ctl("-s", str(at), "stop").returncode == 0
    assert not at.exists()


def test_procmgrctl_upgrade_exits_with_the_reason_of_a_refusal(serve, at, write_app, tmp_path):
    app = write_app(VERSIONED.format("one"))
    daemon = serve("--control", str(at), "--app-dir", str(tmp_path), app=app)
    write_app("def app(:\n")
    refused = ctl("-s", str(at), "upgrade")
    assert refused.returncode == 4
    assert re.search(r'File ".*site_app\.py", line 1', refused.stderr)
    assert "upgrade refused: " in refused.stderr
    with closing(Raw(at)) as raw:
        assert raw.ask(op="follow", operation="upgrade:1")["exit"] == 4, "it can be asked about afterwards"
        assert raw.ask(op="follow", operation="upgrade:2")["exit"] == 2
    assert daemon.get()["version"] == "one"


def test_procmgrctl_upgrade_during_another_is_refused_and_a_stop_ends_the_wait(serve, at, write_app, tmp_path):
    app = write_app(VERSIONED.format("one"))
    daemon = serve("--control", str(at), "--app-dir", str(tmp_path), app=app)
    write_app(HELD)
    client = Running("-s", str(at), "upgrade")
    daemon.probe.wait("importing")
    assert ctl("-s", str(at), "upgrade").returncode == 69
    assert daemon.stop() == 0
    assert client.join() == 69
    assert "stopping" in client.said


def test_who_waits_for_a_reload_is_told_its_end_by_the_new_program(serve, at, write_app, tmp_path):
    app = write_app(VERSIONED.format("one"))
    daemon = serve("--control", str(at), "--app-dir", str(tmp_path), app=app)
    write_app(HELD_IN_WORKERS + VERSIONED.format("two"))
    client = Running("-s", str(at), "reload")
    booting = daemon.probe.wait("importing")
    daemon.upgrade()
    booting.release()
    assert client.join() == 0
    assert client.said.endswith("generation 2 serves\n")


def test_a_request_that_nobody_has_read_yet_is_to_be_sent_again(serve, at):
    daemon = serve("--control", str(at))
    with closing(Raw(at)) as raw:
        daemon.upgrade()
        assert raw.event()["event"] == "exec"
        assert raw.event() == {}


def test_the_status_goes_on(serve, at):
    daemon = serve("--control", str(at))
    os.kill(daemon.workers()[0], signal.SIGKILL)
    daemon.status("1/1 workers ready")
    with closing(Raw(at)) as raw:
        before = raw.ask(op="status")
    daemon.upgrade()
    with closing(Raw(at)) as raw:
        after = raw.ask(op="status")
    assert after["uptime"] > before["uptime"]
    assert after["workers"][0]["age"] > before["workers"][0]["age"]
    assert after["workers"][0]["predecessor"]["reason"] == before["workers"][0]["predecessor"]["reason"]
    assert after["summary"].endswith("; upgraded to " + after["version"])


# What fails in spite of the preflight


@pytest.mark.parametrize("case", FAILURES)
def test_a_release_that_fails_to_adopt_gives_way_to_the_old_one(deploy, releases, case):
    daemon = deploy("-w", "2")
    workers, guard = daemon.workers(), guard_of(daemon)
    files = lasting_files(daemon.pid)
    releases.make("2.0", FAILURES[case])
    releases.switch("2.0")
    assert re.search("upgrade failed, the old program is back: .*a bad release", daemon.try_upgrade())
    assert "upgrade failed, release 1.0 is back" in daemon.log
    assert serves(daemon, workers)
    assert guard_of(daemon) == guard
    assert lasting_files(daemon.pid) == files
    releases.make("3.0")
    releases.switch("3.0")
    assert daemon.try_upgrade().endswith("upgraded to 3.0"), "a good one is tried all the same"
    daemon.reload()


def test_when_neither_program_can_go_on_it_says_so_and_nothing_is_left(deploy, releases):
    daemon = deploy("-w", "2")
    releases.make("2.0", FAILURES["it fails at the last part"])
    releases.switch("2.0")
    releases.remove("1.0")
    daemon.signal(signal.SIGUSR2)
    assert daemon.join() != 0
    assert daemon.left() == []
    assert "a bad release" in daemon.log
