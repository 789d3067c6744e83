"""procmgrctl and the control socket of the real daemon: each operation, each exit code, and clients that misbehave."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from contextlib import closing, suppress
from pathlib import Path

import pytest
from support import proc
from support.ctl import Raw, Running, ctl
from support.ctl import command as client_of
from support.daemon import PATIENCE, environment
from support.load import Load

VERSIONED = "from support import testapp\nfrom support.testapp import app\ntestapp.version = {!r}\n"
HANGS = "from support.stage import hold\nhold('importing')\n"


@pytest.fixture
def at(tmp_path):
    """The control socket's path."""
    return tmp_path / "control.sock"


@pytest.fixture
def controlled(serve, at):
    """A function that starts a daemon with a control socket and waits until it is ready."""
    return lambda *options, **more: serve("--control", str(at), *options, **more)


def status(at):
    with closing(Raw(at)) as raw:
        return raw.ask(op="status")


def descriptors(daemon):
    return list(Path(f"/proc/{daemon.pid}/fd").iterdir())


# status


def test_status_shows_the_pool_and_each_worker(controlled, at):
    daemon = controlled("-w", "3", "-n", "shop")
    shown = ctl("-s", str(at), "status")
    assert shown.returncode == 0, shown.stderr
    assert re.match(rf"shop: procmgr \S+, pid {daemon.pid}, up \d+s\n", shown.stdout)
    assert f"http://127.0.0.1:{daemon.port}" in shown.stdout
    assert "3/3 workers ready, generation 1" in shown.stdout
    rows = re.findall(r"^ +(\d) +\d+ +(\d+) +1  ready ", shown.stdout, re.MULTILINE)
    assert sorted(int(pid) for _, pid in rows) == daemon.workers()
    assert [slot for slot, _ in rows] == ["0", "1", "2"]


def test_status_as_json_has_every_measure_of_a_worker(controlled, at):
    daemon = controlled()
    assert daemon.get()["slot"] == "0"
    daemon.status("1/1 workers ready")
    (line,) = ctl("-s", str(at), "status", "--json").stdout.splitlines()
    (worker,) = json.loads(line)["workers"]
    assert (worker["slot"], worker["pid"], worker["state"], worker["requests"]) == (0, daemon.workers()[0], "ready", 1)
    assert worker["memory"] > 1 << 20
    for name in ("age", "cpu", "lag", "beat_ago", "connections", "active"):
        assert worker[name] is not None, name
    assert worker["predecessor"] is None


def test_status_tells_what_runs_in_a_worker_though_its_loop_is_blocked(controlled, at):
    daemon = controlled("-w", "2")
    connection = daemon.connect()
    connection.request("GET", "/block?secret=1")
    visit = daemon.probe.wait("blocked")
    (worker,) = [each for each in status(at)["workers"] if each["pid"] == visit.pid]
    assert worker["active"] == 1
    (request,) = worker["in_flight"]
    assert (request["method"], request["path"]) == ("GET", "/block")
    assert request["age"] >= 0
    shown = ctl("-s", str(at), "status").stdout
    assert re.search(rf"^ +{worker['slot']} +{visit.pid} +\d\S+  GET /block$", shown, re.MULTILINE)
    visit.release()
    assert connection.answer()[0].status == 200
    assert [each["in_flight"] for each in status(at)["workers"]] == [[], []]


def test_status_answers_while_every_worker_is_stopped(controlled, at):
    daemon = controlled("-w", "3")
    stopped = daemon.workers()
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    try:
        for _ in range(3):
            document = json.loads(ctl("-s", str(at), "status", "--json").stdout)
            assert sorted(worker["pid"] for worker in document["workers"]) == stopped
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)


def test_status_tells_why_a_predecessor_went(controlled, at):
    daemon = controlled("-w", "2")
    victim = daemon.workers()[0]
    os.kill(victim, signal.SIGKILL)
    proc.wait_dead([victim], 10)
    daemon.until(lambda: len(daemon.workers()) == 2 and victim not in daemon.workers(), "it is replaced")
    assert re.search(r"^0 +1 +\ds ago  died of SIGKILL", ctl("-s", str(at), "status").stdout, re.MULTILINE)


def test_status_shows_how_a_reload_by_signal_ended(controlled, at, write_app, tmp_path):
    app = write_app(VERSIONED.format("one"))
    daemon = controlled("--app-dir", str(tmp_path), app=app)
    write_app("def app(:\n")
    daemon.try_reload()
    last = status(at)["last_reload"]
    assert (last["generation"], last["outcome"], last["exit"]) == (2, "rolled back", 4)
    assert "SyntaxError" in last["text"]
    assert "site_app.py" in last["detail"]


# all of them

COMMANDS = (
    ["status"],
    ["version"],
    ["stacks"],
    ["stacks", "0"],
    ["reopen-logs"],
    ["scale", "+1"],
    ["restart", "1"],
    ["reload"],
    ["upgrade"],
    ["status"],
    ["stop", "--quick"],
)


@pytest.mark.parametrize("as_json", [False, True])
def test_every_command_is_carried_out_while_every_worker_hangs(controlled, at, as_json):
    daemon = controlled("-w", "2", "-t", "600", "--slow-loop", "0")
    visits = []
    for _ in range(2):
        daemon.connect().request("GET", "/block")
        visits.append(daemon.probe.wait("blocked"))
    assert sorted(visit.pid for visit in visits) == daemon.workers()
    for command in COMMANDS:
        done = ctl("-s", str(at), *command, *(["--json"] if as_json else []), NO_COLOR="1", FORCE_COLOR="1")
        assert (done.returncode, done.stderr) == (0, ""), command
        assert done.stdout.strip(), command
        assert "\x1b" not in done.stdout
        if as_json:
            assert all(isinstance(json.loads(line), dict) for line in done.stdout.splitlines()), command
    assert daemon.join() == 0


# reload


def test_reload_waits_until_the_new_code_serves(controlled, at, write_app, tmp_path):
    app = write_app(VERSIONED.format("one"))
    daemon = controlled("-w", "2", "--app-dir", str(tmp_path), app=app)
    write_app(VERSIONED.format("two"))
    done = ctl("-s", str(at), "reload")
    assert (done.returncode, done.stderr) == (0, "")
    assert {daemon.get()["version"] for _ in range(10)} == {"two"}
    lines = done.stdout.splitlines()
    assert lines[0] == "rolling 2 workers to generation 2"
    assert [line.rpartition(", ")[2] for line in lines[1:-1]] == ["1 of 2", "2 of 2"]
    assert lines[-1] == "generation 2 serves"


def test_reload_of_broken_code_prints_its_traceback_and_exits_with_4(controlled, at, write_app, tmp_path):
    app = write_app(VERSIONED.format("one"))
    daemon = controlled("--app-dir", str(tmp_path), app=app)
    before = daemon.workers()
    write_app("import nothere\n")
    failed = ctl("-s", str(at), "reload")
    assert failed.returncode == 4
    assert re.search(r'site_app\.py", line 1, in <module>\n', failed.stderr)
    *_, last = failed.stderr.splitlines()
    assert re.match(r"procmgrctl: error: generation 2 was rolled back, generation 1 serves on: .*nothere", last)
    assert daemon.workers() == before


def test_reload_with_a_failing_lifespan_exits_with_3(controlled, at, write_app, tmp_path):
    app = write_app(VERSIONED.format("one"))
    daemon = controlled("--app-dir", str(tmp_path), app=app)
    write_app(
        "async def app(scope, receive, send):\n"
        "    await receive()\n"
        "    await send({'type': 'lifespan.startup.failed', 'message': 'no database today'})\n"
    )
    failed = ctl("-s", str(at), "reload")
    assert failed.returncode == 3
    assert "no database today" in failed.stderr
    assert daemon.get()["version"] == "one"


def test_reload_that_does_not_boot_in_time_exits_with_75(controlled, at, write_app, tmp_path):
    app, config = write_app(VERSIONED.format("one")), tmp_path / "site.toml"
    config.touch()
    daemon = controlled("-c", str(config), "--app-dir", str(tmp_path), app=app)
    write_app(HANGS)
    config.write_text("timeout_boot = 1\n")  # for what hangs alone: what does not may take longer to boot
    failed = ctl("-s", str(at), "reload")
    assert failed.returncode == 75
    assert "not ready in time" in failed.stderr
    assert daemon.get()["version"] == "one"


def test_reload_that_does_not_boot_in_time_shows_where_it_hung(controlled, at, write_app, tmp_path):
    app, config = write_app(VERSIONED.format("one")), tmp_path / "site.toml"
    config.touch()
    controlled("-c", str(config), "--app-dir", str(tmp_path), app=app)
    write_app(HANGS)
    config.write_text("timeout_boot = 1\n")
    failed = ctl("-s", str(at), "reload")
    assert re.search(r'(?s)\Aworker 2 \(slot 0, pid \d+\): its stacks were:\n.*site_app\.py", line 2 in', failed.stderr)
    assert status(at)["last_reload"]["detail"] in failed.stderr, "who asks later is told too"


def test_restart_into_code_that_does_not_boot_in_time_shows_where_it_hung(controlled, at, write_app, tmp_path):
    app = write_app(VERSIONED.format("one"))
    controlled("--timeout-boot", "5", "--app-dir", str(tmp_path), app=app)
    write_app(HANGS)
    failed = ctl("-s", str(at), "restart", "0")
    write_app(VERSIONED.format("one"))
    assert failed.returncode == 75
    assert re.search(r'its stacks were:\n(?s:.*)site_app\.py", line 2 in', failed.stderr)


PRELOAD_FAILURES = {
    "no import": ("import nothere\n", 4, r'site_app\.py", line 1, in <module>\n(?s:.*)nothere'),
    "an exception": ("raise RuntimeError('no database today')\n", 3, r"Traceback(?s:.*)no database today"),
    "a death": ("import os\nos._exit(9)\n", 3, r"exited with status 9 before it had imported"),
    "a hang": (HANGS, 75, r'its stacks were:\n(?s:.*)site_app\.py", line 2 in'),
}


@pytest.mark.parametrize("case", PRELOAD_FAILURES)
def test_reload_tells_why_a_zygote_could_not_import(controlled, at, write_app, tmp_path, case):
    source, code, told = PRELOAD_FAILURES[case]
    app, config = write_app(VERSIONED.format("one")), tmp_path / "site.toml"
    config.touch()
    daemon = controlled("--preload", "-w", "2", "-c", str(config), "--app-dir", str(tmp_path), app=app)
    write_app(source)
    config.write_text("timeout_boot = 1\n" if source == HANGS else "")
    failed = ctl("-s", str(at), "reload")
    assert failed.returncode == code, failed.stderr
    assert re.search(told, failed.stderr)
    *_, last = failed.stderr.splitlines()
    assert last.startswith("procmgrctl: error: generation 2 was rolled back, generation 1 serves on: ")
    assert daemon.get()["version"] == "one"


def test_reload_with_a_broken_configuration_exits_with_78_and_changes_nothing(controlled, at, tmp_path):
    config = tmp_path / "site.toml"
    config.write_text("workers = 1\n")
    daemon = controlled("-c", str(config))
    before = daemon.workers()
    config.write_text("wrkers = 3\n")
    failed = ctl("-s", str(at), "reload")
    assert failed.returncode == 78
    assert re.match(r"procmgrctl: error: .*site\.toml.*wrkers", failed.stderr)
    assert daemon.workers() == before
    assert status(at)["last_reload"]["outcome"] == "refused"


def test_reload_without_waiting_returns_while_the_new_code_boots(controlled, at, write_app, tmp_path):
    app = write_app(VERSIONED.format("one"))
    daemon = controlled("--app-dir", str(tmp_path), app=app)
    write_app(HANGS + VERSIONED.format("two"))
    accepted = ctl("-s", str(at), "reload", "--no-wait")
    assert (accepted.returncode, accepted.stdout) == (0, "reload accepted: generation 2\n")
    visit = daemon.probe.wait("importing")
    assert daemon.get()["version"] == "one"
    daemon.notify.skip()
    visit.release()
    daemon.ready()
    assert daemon.get()["version"] == "two"


def test_an_interrupted_reload_goes_on(controlled, at, write_app, tmp_path):
    app = write_app(VERSIONED.format("one"))
    daemon = controlled("--app-dir", str(tmp_path), app=app)
    write_app(HANGS + VERSIONED.format("two"))
    client = Running("-s", str(at), "reload")
    client.until("rolling")
    visit = daemon.probe.wait("importing")
    client.process.send_signal(signal.SIGINT)
    assert client.join() == -signal.SIGINT
    assert "goes on" in client.said
    daemon.notify.skip()
    visit.release()
    daemon.ready()
    assert daemon.get()["version"] == "two"


def test_a_superseded_reload_follows_the_newest_generation(controlled, at, write_app, tmp_path):
    app = write_app(VERSIONED.format("one"))
    daemon = controlled("--app-dir", str(tmp_path), app=app)
    write_app(HANGS)
    first = Running("-s", str(at), "reload")
    first.until("rolling")
    daemon.probe.wait("importing")
    write_app(VERSIONED.format("three"))
    second = ctl("-s", str(at), "reload")
    assert second.returncode == 0, second.stderr
    assert first.join() == 0
    assert "gave way to a newer reload" in first.said
    assert first.said.endswith("generation 3 serves\n")
    assert daemon.get()["version"] == "three"


def test_a_reload_can_be_followed_on_another_connection_and_after_its_end(controlled, at, write_app, tmp_path):
    app = write_app(VERSIONED.format("one"))
    daemon = controlled("--app-dir", str(tmp_path), app=app)
    write_app(HANGS + VERSIONED.format("two"))
    with closing(Raw(at)) as first, closing(Raw(at)) as other:
        first.send(op="reload")
        operation = first.event()["operation"]
        visit = daemon.probe.wait("importing")
        other.send(op="follow", operation=operation)
        assert other.event() == {"v": 1, "event": "accepted", "operation": operation}
        assert other.event()["step"] == "rolling"
        visit.release()
        assert (first.end()["exit"], other.end()["exit"]) == (0, 0)
        assert first.ask(op="follow", operation=operation)["text"] == "generation 2 serves"
        assert first.ask(op="follow", operation="reload:9")["exit"] == 2


def test_reload_as_json_is_one_object_a_line(controlled, at):
    controlled()
    done = ctl("-s", str(at), "reload", "--json")
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [event["event"] for event in events] == ["accepted", "step", "step", "end"]
    assert (events[-1]["exit"], events[-1]["outcome"], done.returncode) == (0, "done", 0)


def test_a_stop_ends_a_reload_that_is_waited_for(controlled, at, write_app, tmp_path):
    app = write_app(VERSIONED.format("one"))
    daemon = controlled("--app-dir", str(tmp_path), app=app)
    write_app(HANGS)
    client = Running("-s", str(at), "reload")
    client.until("rolling")
    daemon.probe.wait("importing")
    daemon.signal(signal.SIGTERM)
    assert client.join() == 69
    assert daemon.join() == 0
    assert "cut short by a stop" in client.said


# scale, restart


def test_scale_takes_a_number_or_a_difference(controlled, at):
    daemon = controlled("-w", "2")
    for wish, wanted in (("+1", 3), ("-2", 1), ("2", 2)):
        done = ctl("-s", str(at), "scale", wish)
        assert done.returncode == 0, done.stderr
        daemon.until(lambda wanted=wanted: len(daemon.workers()) == wanted, f"{wanted} workers are left")


def test_scale_to_what_cannot_be_exits_with_2_and_changes_nothing(controlled, at):
    daemon = controlled("-w", "2")
    before = daemon.workers()
    for wish in ("0", "-2", "501", "many", "1.5", "+0"):
        refused = ctl("-s", str(at), "scale", wish)
        assert refused.returncode == 2, wish
        assert refused.stderr.startswith("procmgrctl: error: ")
        assert refused.stderr.count("\n") == 1
    assert daemon.workers() == before


def test_restart_replaces_the_worker_of_a_slot_without_losing_a_request(controlled, at):
    daemon = controlled("-w", "2")
    workers = {worker["slot"]: worker["pid"] for worker in status(at)["workers"]}
    with Load(daemon.port) as load:
        done = ctl("-s", str(at), "restart", "1")
        load.wait_answers(50)
    assert done.returncode == 0, done.stderr
    assert load.result.failures == []
    after = {worker["slot"]: worker["pid"] for worker in status(at)["workers"] if worker["state"] == "ready"}
    assert after[0] == workers[0]
    assert after[1] != workers[1]
    assert f"slot 1 is served by worker 3 (pid {after[1]})" in done.stdout


def test_restart_into_broken_code_keeps_the_worker_and_exits_with_4(controlled, at, write_app, tmp_path):
    app = write_app(VERSIONED.format("one"))
    daemon = controlled("--app-dir", str(tmp_path), app=app)
    before = daemon.workers()
    write_app("import nothere\n")
    failed = ctl("-s", str(at), "restart", "0")
    write_app(VERSIONED.format("one"))
    assert failed.returncode == 4
    assert "nothere" in failed.stderr
    assert "worker 1 serves on" in failed.stderr
    assert daemon.get()["pid"] == before[0]


def test_restart_of_a_slot_that_nobody_has_exits_with_2(controlled, at):
    controlled("-w", "2")
    refused = ctl("-s", str(at), "restart", "7")
    assert refused.returncode == 2
    assert "slot 7; the slots with one are 0, 1" in refused.stderr


# stop


def test_stop_waits_until_the_daemon_is_gone(controlled, at):
    daemon = controlled("-w", "2")
    done = ctl("-s", str(at), "stop")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "stopped"
    assert proc.eventually(lambda: daemon.process.poll() is not None, 1), "it is gone when that is said"
    assert daemon.join() == 0
    assert not at.exists()


def test_stop_lets_a_request_finish(controlled, at):
    daemon = controlled()
    connection = daemon.connect()
    connection.request("GET", "/stay")
    visit = daemon.probe.wait("running")
    client = Running("-s", str(at), "stop")
    client.until("stopping")
    visit.release()
    assert connection.answer()[0].status == 200
    assert client.join() == 0
    assert daemon.join() == 0


def test_a_quick_stop_does_not_wait_for_requests(controlled, at):
    daemon = controlled()
    connection = daemon.connect()
    connection.request("GET", "/stay")
    daemon.probe.wait("running")
    assert ctl("-s", str(at), "stop", "--quick").returncode == 0
    daemon.probe.wait("cancelled")
    assert daemon.join() == 0


def test_term_after_a_stop_that_hangs_is_the_next_level(controlled, at):
    daemon = controlled()
    connection = daemon.connect()
    connection.request("GET", "/stay")
    daemon.probe.wait("running")
    client = Running("-s", str(at), "stop")
    client.until("stopping")
    daemon.signal(signal.SIGTERM)
    assert client.join() == 0
    assert daemon.join() == 0
    assert "stopping quickly" in daemon.log


def test_what_changes_the_pool_is_refused_while_it_stops(controlled, at):
    daemon = controlled()
    connection = daemon.connect()
    connection.request("GET", "/stay")
    visit = daemon.probe.wait("running")
    daemon.signal(signal.SIGTERM)
    daemon.status("stopping")
    for args in (("reload",), ("scale", "2"), ("restart", "0")):
        assert ctl("-s", str(at), *args).returncode in {2, 69}
    assert ctl("-s", str(at), "status").returncode == 0
    visit.release()
    assert daemon.join() == 0


# reopen-logs, stacks, version


def test_reopen_logs_writes_to_a_new_file(controlled, at, tmp_path):
    written = tmp_path / "app.log"
    controlled("--log-file", str(written))
    written.rename(tmp_path / "app.log.1")
    done = ctl("-s", str(at), "reopen-logs")
    assert (done.returncode, done.stdout) == (0, "log files reopened\n")
    assert "log files reopened" in written.read_text()


def test_reopen_logs_that_cannot_be_says_so(controlled, at, tmp_path):
    room = tmp_path / "logs"
    room.mkdir()
    controlled("--log-file", str(room / "app.log"))
    room.rename(tmp_path / "gone")
    refused = ctl("-s", str(at), "reopen-logs")
    assert refused.returncode == 78
    assert "cannot open" in refused.stderr


@pytest.mark.parametrize("options", [(), ("--preload",)])
def test_stacks_show_where_a_worker_is_though_its_loop_is_blocked(controlled, at, options):
    daemon = controlled(*options)
    connection = daemon.connect()
    connection.request("GET", "/block")
    visit = daemon.probe.wait("blocked")
    for _ in range(3):
        shown = ctl("-s", str(at), "stacks", "0")
        assert shown.returncode == 0, shown.stderr
        assert shown.stdout.startswith(f"worker 1 (slot 0, pid {visit.pid})\n")
        assert len(re.findall(r'stage\.py", line \d+ in hold', shown.stdout)) == 1, "one dump, not those before"
        assert shown.stdout.endswith(" in until_end\n")
        assert "arbiter" not in shown.stdout, "what forked the worker is no part of its stack"
    visit.release()


def test_stacks_of_all_workers_say_which_is_stopped(controlled, at):
    daemon = controlled("-w", "2")
    stopped = daemon.workers()[1]
    os.kill(stopped, signal.SIGSTOP)
    try:
        shown = ctl("-s", str(at), "stacks")
    finally:
        os.kill(stopped, signal.SIGCONT)
    assert shown.returncode == 75
    assert re.search(rf"pid {stopped}\): it is stopped: no stack is available", shown.stdout)
    assert shown.stdout.count("Current thread") == 1


def test_stacks_of_a_worker_that_is_importing_are_shown(controlled, at, write_app, tmp_path):
    app = write_app(VERSIONED.format("one"))
    daemon = controlled("--app-dir", str(tmp_path), app=app)
    write_app(HANGS)
    with closing(Raw(at)) as raw:
        assert raw.ask(op="reload", wait=False)["exit"] == 0
        visit = daemon.probe.wait("importing")
        raw.send(op="stacks")
        told = {event["worker"]: event for event in (raw.event(), raw.event())}
        assert raw.end()["exit"] == 0
    assert "in hold" in told[2]["stacks"]
    assert "in hold" not in told[1]["stacks"]
    visit.release()


def test_version_is_the_daemons(controlled, at):
    controlled()
    shown = ctl("-s", str(at), "version")
    assert re.fullmatch(r"procmgr \S+ on Python 3\.\d+\.\d+\n", shown.stdout)
    assert shown.returncode == 0


# finding the instance


def test_nobody_there_exits_with_69(tmp_path):
    missing = ctl("-s", str(tmp_path / "none.sock"), "status")
    assert missing.returncode == 69
    assert re.fullmatch(r"procmgrctl: error: .*none\.sock: there is no such socket.*\n", missing.stderr)
    unnamed = ctl("-n", "surely-nobody", "status", XDG_RUNTIME_DIR=str(tmp_path))
    assert unnamed.returncode == 69
    assert "surely-nobody" in unnamed.stderr


def test_a_name_finds_its_instance_and_several_are_listed(serve, tmp_path):
    (tmp_path / "service").mkdir()
    env = {"XDG_RUNTIME_DIR": str(tmp_path)}
    one = serve("-n", "one", env=env)
    assert json.loads(ctl("status", "--json", **env).stdout)["pid"] == one.pid, "the only one needs no name"
    two = serve("-n", "two", env=env)
    assert (tmp_path / "procmgr").stat().st_mode & 0o777 == 0o700
    for daemon, name in ((one, "one"), (two, "two")):
        for args in (("-n", name, "status", "--json"), ("status", "-n", name, "--json")):
            assert json.loads(ctl(*args, **env).stdout)["pid"] == daemon.pid
    refused = ctl("status", **env)
    assert refused.returncode == 2
    for daemon, name in ((one, "one"), (two, "two")):
        assert re.search(rf"^{name} +{daemon.pid}  {tmp_path}/procmgr/{name}\.sock$", refused.stderr, re.MULTILINE)


@pytest.mark.parametrize(
    ("redirection", "told"), [(">/dev/full", (1, "No space left on device")), (">&-", (0, "")), (">&- 2>&-", (0, ""))]
)
def test_an_output_that_cannot_be_written_is_no_traceback(controlled, at, redirection, told):
    """And a command does what it is to do though nobody listens, ExecReload= of somebody's unit say."""
    daemon = controlled()
    line = ["/bin/sh", "-c", f'exec "$@" {redirection}', "sh", *client_of("-s", str(at), "reload")]
    done = subprocess.run(line, env=environment(), stderr=subprocess.PIPE, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == told[0]
    assert told[1] in done.stderr
    assert "Traceback" not in done.stderr
    assert proc.eventually(lambda: status(at)["pool"]["generation"] == 2)
    assert daemon.stop() == 0


def test_a_reader_that_has_seen_enough_is_no_error(controlled, at):
    controlled()
    client = Running("-s", str(at), "status")
    client.process.stdout.close()
    assert client.process.wait(PATIENCE) == 0


@pytest.mark.parametrize(
    "args", [(), ("bogus",), ("status", "x"), ("scale",), ("restart", "x"), ("-s", "a", "-n", "b", "status")]
)
def test_a_wrong_command_line_exits_with_2(args):
    assert ctl(*args).returncode == 2


# the socket


def test_the_control_socket_is_off_without_a_runtime_directory(serve):
    daemon = serve()
    assert "no control socket" in daemon.log


def test_a_live_instances_socket_is_not_stolen(controlled, at):
    first = controlled()
    second = controlled()
    assert "no control socket" in second.log
    assert second.get()["slot"] == "0", "it serves nevertheless"
    assert second.stop() == 0
    assert status(at)["pid"] == first.pid


def test_the_socket_of_a_dead_instance_is_replaced(controlled, at, daemons):
    first = controlled()
    first.process.kill()
    first.join()
    first.left()
    daemons.remove(first)
    assert at.is_socket()
    second = controlled()
    assert status(at)["pid"] == second.pid
    first._destroy()


def test_no_worker_and_no_child_of_one_holds_the_control_socket(controlled, at):
    daemon = controlled("-w", "2")
    with closing(Raw(at)) as raw:
        assert raw.ask(op="reload")["exit"] == 0
        assert raw.ask(op="scale", by=1)["exit"] == 0
        daemon.until(lambda: len(daemon.workers()) == 3, "a worker is born while a client is connected")
        rows = [row.split() for row in Path("/proc/net/unix").read_text().splitlines()]
        control = {int(row[6]) for row in rows if row[-1] == str(at)}
        assert len(control) >= 2, "the listener and a connection"
        assert control & proc.sockets_of(daemon.pid)
        for pid in (each.pid for each in proc.children(daemon.pid)):
            assert not control & proc.sockets_of(pid)


# clients that misbehave


def test_a_hundred_clients_at_once_are_answered(controlled, at):
    daemon = controlled("-w", "2")
    raws = [Raw(at) for _ in range(100)]
    for raw in raws:
        raw.send(op="status")
    assert {raw.end()["pid"] for raw in raws} == {daemon.pid}
    for raw in raws:
        raw.close()


def test_clients_that_never_read_or_send_garbage_keep_nobody_from_control_or_service(controlled, at):
    daemon = controlled("-w", "2")
    wedged = Raw(at)
    wedged.sock.settimeout(0.0)
    with suppress(OSError):  # let go, or its own buffer is full
        for _ in range(200_000):
            wedged.send(op="status")
    garbage = [Raw(at) for _ in range(20)]
    for number, raw in enumerate(garbage):
        raw.sock.sendall(os.urandom(50 * number) + b"\n")
    assert status(at)["pid"] == daemon.pid
    assert daemon.get()["slot"] in {"0", "1"}
    assert ctl("-s", str(at), "reload").returncode == 0
    for raw in (wedged, *garbage):
        raw.close()


def test_connections_leave_no_descriptor_behind(controlled, at):
    daemon = controlled()
    status(at)
    before = len(descriptors(daemon))
    for _ in range(50):
        status(at)
        raw = Raw(at)
        raw.send(op="reload", wait=False)
        raw.close()
    status(at)
    daemon.until(
        lambda: len(descriptors(daemon)) <= before and len(daemon.workers()) == 1,
        "it has as many descriptors as before",
    )
