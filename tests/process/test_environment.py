"""What surrounds the daemon: its streams, variables, directories, users, pid file, and what it is told to print."""

from __future__ import annotations

import fcntl
import json
import os
import pwd
import re
import resource
import select
import signal
import stat
import subprocess
import time

import pytest
from support import proc
from support.daemon import ROOT, run

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can change users")

SHOW_ENVIRONMENT = """
import json, os
from support.stage import tell
from support.testapp import app
variables = {key: value for key, value in os.environ.items() if key.startswith("APP_")}
tell("environment", variables=json.dumps(variables), cwd=os.getcwd())
"""


def test_the_daemon_serves_with_its_standard_input_closed(serve):
    daemon = serve(wrapper=["/bin/sh", "-c", 'exec "$@" <&-', "sh"])
    assert daemon.get()["pid"] in daemon.workers()


def test_the_daemon_serves_with_every_standard_stream_closed(serve):
    daemon = serve("-w", "2", wrapper=["/bin/sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh"])
    assert daemon.get()["pid"] in daemon.workers()
    daemon.reload()
    assert daemon.get()["pid"] in daemon.workers()


def test_a_reader_of_the_access_log_that_stalls_never_blocks_service(serve):
    reader, writer = os.pipe()
    try:
        fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
        daemon = serve(stdout=writer)
        os.close(writer)
        connection = daemon.connect()
        path, count, rest = "/" + "x" * 1900, 0, b""
        while count < 800 or b"dropped" not in rest:  # which is said at the first line after there is room again
            assert connection.get(path)[0].status == 200
            count += 1
            while count >= 800 and select.select([reader], [], [], 0)[0]:
                rest += os.read(reader, 65_536)
        rest += _read_to_end_while(reader, daemon)
    finally:
        os.close(reader)
    lines = rest.decode().splitlines()
    dropped = [int(number) for number in re.findall(r"dropped (\d+) log lines", rest.decode())]
    kept = [line for line in lines if "x" * 1900 in line]
    assert dropped
    assert sum(dropped) + len(kept) == count, "every line is written or counted, and none is torn"


def _read_to_end_while(reader, daemon):
    """Stop the daemon and read what it still writes; returns it."""
    data = b""
    daemon.signal(signal.SIGTERM)
    while chunk := os.read(reader, 65_536):
        data += chunk
    assert daemon.join() == 0
    return data


def test_stdout_whose_reader_left_never_ends_the_daemon(serve):
    reader, writer = os.pipe()
    daemon = serve(stdout=writer)
    os.close(writer)
    os.close(reader)
    for _ in range(3):
        assert daemon.get()["pid"] in daemon.workers()


def test_usr1_opens_renamed_log_files_anew_and_loses_no_line(serve, tmp_path):
    log, access = tmp_path / "daemon.log", tmp_path / "access.log"
    daemon = serve("-w", "2", "--log-file", str(log), "--access-log-file", str(access))
    count = 20
    for _ in range(count):
        daemon.get("/before")
    assert proc.eventually(lambda: access.read_text().count("/before") == count)
    for path in (log, access):
        path.rename(path.with_suffix(".1"))
    daemon.signal(signal.SIGUSR1)
    assert proc.eventually(lambda: log.exists() and access.exists())
    while not access.read_text():
        daemon.get("/after")
        count += 1
    for _ in range(20):
        daemon.get("/after")
    count += 20

    def lines():
        return (access.with_suffix(".1").read_text() + access.read_text()).splitlines()

    assert proc.eventually(lambda: len(lines()) == count), "each request is one line, in the old file or in the new"
    assert daemon.stop() == 0
    assert "stopped" in log.read_text()
    assert "ready" in log.with_suffix(".1").read_text()
    assert daemon.log == "", "nothing is left for standard error"


def test_variables_come_from_the_start_then_the_file_then_the_options(serve, write_app, tmp_path):
    (tmp_path / "site.env").write_text("APP_START=file\nAPP_FILE=file\nAPP_OPTION=file\n")
    app = write_app(SHOW_ENVIRONMENT)
    daemon = serve(
        *("--env-file", str(tmp_path / "site.env"), "-e", "APP_OPTION=option", "--app-dir", str(tmp_path)),
        app=app,
        env={"APP_START": "start"},
    )
    shown = json.loads(daemon.probe.wait("environment").told["variables"])
    assert shown == {"APP_START": "start", "APP_FILE": "file", "APP_OPTION": "option"}


def test_a_changed_env_file_is_read_by_the_next_generation(serve, write_app, tmp_path):
    (tmp_path / "site.env").write_text("APP_ONE=1\nAPP_GONE=1\n")
    app = write_app(SHOW_ENVIRONMENT)
    daemon = serve("--env-file", str(tmp_path / "site.env"), "--app-dir", str(tmp_path), app=app)
    daemon.probe.wait("environment")
    (tmp_path / "site.env").write_text("APP_ONE=2\n")
    daemon.reload()
    assert json.loads(daemon.probe.wait("environment").told["variables"]) == {"APP_ONE": "2"}


def test_chdir_is_where_the_application_runs_and_is_imported_from(serve, write_app, tmp_path):
    daemon = serve("--chdir", str(tmp_path), app=write_app(SHOW_ENVIRONMENT))
    assert daemon.probe.wait("environment").told["cwd"] == str(tmp_path)


def everybody_may_read(path):
    return all(each.stat().st_mode & stat.S_IXOTH for each in path.parents) and path.stat().st_mode & stat.S_IROTH


@as_root
@pytest.mark.skipif(not everybody_may_read(ROOT / "tests/support/rights.py"), reason="nobody cannot read the tests")
def test_every_right_is_dropped_before_the_application_is_imported(serve):
    nobody = pwd.getpwnam("nobody")
    daemon = serve("-w", "2", "-u", "nobody", app="support.rights:app")
    told = daemon.probe.wait("rights").told
    assert told["uids"] == str([nobody.pw_uid] * 3)
    assert told["gids"] == str([nobody.pw_gid] * 3)
    assert told["groups"] == str(os.getgrouplist("nobody", nobody.pw_gid))
    rights = proc.status(daemon.workers()[0])
    assert (rights["Uid"], rights["CapEff"]) == ([str(nobody.pw_uid)] * 4, ["0" * 16])
    assert proc.status(daemon.pid)["Uid"] == ["0"] * 4, "the arbiter keeps its rights, to reload"
    assert daemon.connect().get()[0].status == 200
    daemon.reload()
    assert daemon.connect().get()[0].status == 200


@as_root
@pytest.mark.skipif(not everybody_may_read(ROOT / "tests/support/rights.py"), reason="nobody cannot read the tests")
def test_workers_without_rights_notice_the_death_of_the_arbiter_too(serve):
    daemon = serve("-w", "2", "-u", "nobody", app="support.rights:app")
    daemon.signal(signal.SIGKILL)
    daemon.join()
    assert daemon.left() == []


def test_an_unknown_user_is_refused_in_one_line():
    refused = run("-u", "no-such-user", "support.testapp:app")
    assert refused.returncode in {77, 78}
    assert "no-such-user" in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1


def test_the_pid_file_names_the_arbiter_and_goes_with_it(serve, tmp_path):
    path = tmp_path / "daemon.pid"
    daemon = serve("-p", str(path))
    assert int(path.read_text()) == daemon.pid
    daemon.reload()
    assert int(path.read_text()) == daemon.pid
    assert daemon.stop() == 0
    assert not path.exists()


def test_the_pid_file_of_a_live_instance_is_refused(serve, tmp_path):
    path = tmp_path / "daemon.pid"
    daemon = serve("-p", str(path))
    refused = run("-p", str(path), "-b", f"127.0.0.1:{proc.free_port()}", "support.testapp:app")
    assert refused.returncode != 0
    assert str(daemon.pid) in refused.stderr
    assert str(path) in refused.stderr
    assert int(path.read_text()) == daemon.pid


def test_a_start_that_cannot_bind_leaves_no_pid_file(serve, tmp_path):
    path, other = tmp_path / "daemon.pid", serve()
    refused = run("-p", str(path), "-b", f"127.0.0.1:{other.port}", "support.testapp:app")
    assert refused.returncode == 71
    assert list(tmp_path.iterdir()) == []


def test_a_left_over_pid_file_is_replaced_even_when_its_pid_lives(serve, tmp_path):
    path = tmp_path / "daemon.pid"
    path.write_text(f"{os.getpid()}\n")
    daemon = serve("-p", str(path))
    assert int(path.read_text()) == daemon.pid


def test_a_killed_daemon_leaves_a_pid_file_that_the_next_replaces(serve, tmp_path):
    path = tmp_path / "daemon.pid"
    first = serve("-p", str(path))
    first.signal(signal.SIGKILL)
    first.join()
    assert first.left() == []
    assert path.exists()
    second = serve("-p", str(path))
    assert int(path.read_text()) == second.pid


@pytest.mark.parametrize(("source", "code"), [("raise RuntimeError\n", 3), ("def app(:\n", 4)])
def test_a_daemon_that_gives_up_takes_its_pid_file_with_it(launch, write_app, tmp_path, source, code):
    path = tmp_path / "daemon.pid"
    daemon = launch("-p", str(path), "--boot-attempts", "1", "--app-dir", str(tmp_path), app=write_app(source))
    assert daemon.join() == code
    assert "giving up" in daemon.log
    assert not path.exists()


ORPHAN = """
import os
from support.stage import hold
from support.testapp import app as plain

async def app(scope, receive, send):
    if scope["type"] == "http":
        middle = os.fork()
        if middle == 0:
            if os.fork() == 0:
                hold("orphan")
            os._exit(0)
        os.waitpid(middle, 0)
    await plain(scope, receive, send)
"""


def test_as_pid_1_it_buries_foreign_children_and_stops_on_term(launch, write_app, tmp_path):
    unshare = ["unshare", "--pid", "--fork", "--mount-proc"]
    if subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("making a pid namespace needs root and CAP_SYS_ADMIN")
    daemon = launch("--app-dir", str(tmp_path), app=write_app(ORPHAN), wrapper=unshare)
    daemon.ready()
    init = proc.children(daemon.pid)[0].pid
    daemon.get()
    orphan = daemon.probe.wait("orphan")
    orphan.release()
    assert orphan.left()
    assert proc.eventually(lambda: not proc.zombies_of(init))
    os.kill(init, signal.SIGTERM)
    assert daemon.join() == 0


def test_check_config_says_ok_and_touches_nothing(tmp_path):
    port = proc.free_port()
    checked = run("--check-config", "-b", f"127.0.0.1:{port}", "-p", str(tmp_path / "pid"), "support.testapp:app")
    assert checked.returncode == 0, checked.stderr
    assert not (tmp_path / "pid").exists()


def test_check_config_imports_the_application(tmp_path):
    (tmp_path / "site_app.py").write_text("raise RuntimeError('no database today')\n")
    checked = run("--check-config", "--app-dir", str(tmp_path), "site_app:app")
    assert checked.returncode == 3
    assert "no database today" in checked.stderr
    assert run("--check-config", "no_such_module:app").returncode == 4


def test_print_config_shows_each_value_with_its_origin(tmp_path):
    config = tmp_path / "site.toml"
    config.write_text("workers = 3\n")
    printed = run("--print-config", "-c", str(config), "-t", "7", "support.testapp:app", WEB_CONCURRENCY="5")
    assert printed.returncode == 0, printed.stderr
    lines = {line.split()[0]: line for line in printed.stdout.splitlines() if line.split()}
    assert "7" in lines["timeout"]
    assert "--timeout" in lines["timeout"]
    assert re.search(r"5.*WEB_CONCURRENCY", lines["workers"]), "the environment wins over the file"
    assert "default" in lines["keep_alive"]


MISTAKES = {
    "no application": ([], 2),
    "an unknown option": (["--wrokers", "2", "support.testapp:app"], 2),
    "a number that is none": (["-w", "many", "support.testapp:app"], 2),
    "an address without a port": (["-b", "localhost", "support.testapp:app"], 2),
    "a missing config file": (["-c", "/no/such/file.toml", "support.testapp:app"], 2),
    "an unknown key in the config file": (["-c", "unknown.toml", "support.testapp:app"], 78),
    "an application without its attribute": (["support.testapp"], 2),
    "options that exclude each other": (["--uds", "/tmp/x", "--host", "::1", "support.testapp:app"], 2),
    "a Windows-only loop": (["--loop", "iocp", "support.testapp:app"], 2),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_answered_in_one_line_with_its_exit_code(case, tmp_path):
    (tmp_path / "unknown.toml").write_text("wrkers = 3\n")
    arguments, code = MISTAKES[case]
    refused = run(*arguments, cwd=tmp_path)
    assert refused.returncode == code, refused.stderr
    assert "Traceback" not in refused.stderr
    assert refused.stdout == ""
    assert len(refused.stderr.strip().splitlines()) == 1, refused.stderr


def test_a_module_run_from_a_directory_without_any_config_serves(serve, tmp_path):
    daemon = serve(cwd=tmp_path, env={"PWD": str(tmp_path)})
    assert daemon.get()["pid"] in daemon.workers()
    assert list(tmp_path.iterdir()) == [], "nothing is left lying around"


def test_a_worker_has_only_the_descriptors_it_needs(serve, tmp_path):
    daemon = serve("-w", "4", "-p", str(tmp_path / "pid"))
    listeners = proc.listening(daemon.port)
    for worker in daemon.workers():
        others = [each.pid for each in proc.children(daemon.pid) if each.pid != worker]
        for other in (daemon.pid, *others):
            assert proc.sockets_of(worker) & proc.sockets_of(other) <= listeners, "channels have two ends, not more"
        files = [path for path in proc.files_of(worker) if "pid" in path or "stacks" in path]
        assert len(files) == 1, f"its own stacks, and not the pid file: {files}"


SHRINKS = """
import json, os
from pathlib import Path
from support.testapp import app as plain, _answer

async def app(scope, receive, send):
    if scope.get("path") != "/shrink":
        return await plain(scope, receive, send)
    answers = {}
    for link in Path("/proc/self/fd").iterdir():
        if link.is_symlink() and "memfd:" in os.readlink(link):
            try:
                os.truncate(link, 0)
                answers[os.readlink(link)] = "shrunk"
            except OSError as error:
                answers[os.readlink(link)] = error.strerror
    await _answer(send, json.dumps(answers).encode())
"""


def test_an_application_cannot_shrink_the_scoreboard_under_the_arbiter(serve, write_app, tmp_path):
    daemon = serve("--app-dir", str(tmp_path), app=write_app(SHRINKS))
    answers = daemon.get("/shrink")
    boards = [answer for name, answer in answers.items() if "scoreboard" in name]
    assert set(boards) == {"Operation not permitted"}, answers
    daemon.reload()
    assert daemon.get()["pid"] in daemon.workers()


def test_what_the_starter_left_open_stays_with_the_arbiter(serve, tmp_path):
    leak = tmp_path / "leak"
    with leak.open("w") as stray:
        daemon = serve("-w", "2", pass_fds=[stray.fileno()])
        assert str(leak) in proc.files_of(daemon.pid), "a reload may name it as a listener"
        family = [each.pid for each in proc.children(daemon.pid)]
        assert len(family) == 3, "two workers and the guard"
        assert not any(str(leak) in proc.files_of(pid) for pid in family)


def test_the_watchdog_is_fed_at_half_its_interval_and_only_if_there_is_one(serve):
    daemon = serve(env={"WATCHDOG_USEC": "400000"})
    for _ in range(3):
        daemon.wait(lambda message: message.fields.get("WATCHDOG") == "1", "WATCHDOG=1")
    unwatched = serve()
    for _ in range(3):
        unwatched.status("1/1 workers ready")
    assert not any("WATCHDOG" in message.fields for message in unwatched.notify.messages)


def test_reloads_leak_no_descriptor(serve):
    daemon = serve("-w", "2")

    def count():
        return sum(len(proc.files_of(pid)) for pid in (daemon.pid, *daemon.workers()))

    before = count()
    for _ in range(5):
        daemon.reload()
    # Fewer, if the arbiter was just notifying us: it opens a socket for that.
    assert proc.eventually(lambda: len(daemon.workers()) == 2 and count() <= before), f"{before} became {count()}"


SHOW_IMPORTS = """
import json, sys
before = set(sys.modules)

async def app(scope, receive, send):
    if scope["type"] == "http":
        body = json.dumps(sorted(set(sys.modules) - before)).encode()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
        await send({"type": "http.response.body", "body": body})
"""


@pytest.mark.parametrize("parser", ["httptools", "h11"])
def test_a_worker_runs_the_server_as_the_arbiter_imported_it(serve, write_app, tmp_path, parser):
    daemon = serve("--http", parser, "--app-dir", str(tmp_path), app=write_app(SHOW_IMPORTS))
    assert daemon.get() == [], "nothing is taken from disk later, when it may be another version"


def test_an_idle_worker_wakes_once_a_second_and_the_arbiter_no_more_than_twice(serve):
    daemon = serve("-w", "2")
    daemon.get()

    def wakes(pid):
        return int(proc.status(pid)["voluntary_ctxt_switches"][0])

    pids = {pid: (2 if pid == daemon.pid else 1) for pid in (daemon.pid, *daemon.workers())}
    before, begun = {pid: wakes(pid) for pid in pids}, time.monotonic()
    daemon.wait(lambda message: message.at > begun + 4, "anything after four seconds")
    seconds = time.monotonic() - begun
    for pid, rate in pids.items():
        assert wakes(pid) - before[pid] <= rate * (seconds + 2), proc.process(pid)


def test_as_many_descriptors_as_may_be_are_allowed(serve):
    daemon = serve(wrapper=["/bin/sh", "-c", 'ulimit -Sn 128; exec "$@"', "sh"])
    for pid in (daemon.pid, *daemon.workers()):
        soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        assert (soft, hard) == (hard, resource.getrlimit(resource.RLIMIT_NOFILE)[1])


SHOW_SIGNALS = """
import pathlib, subprocess
from support.stage import tell
from support.testapp import app
text = subprocess.run(["/bin/cat", "/proc/self/status"], capture_output=True, text=True, check=True).stdout
fields = dict(line.split(":", 1) for line in text.splitlines())
tell("signals", blocked=fields["SigBlk"].strip(), ignored=fields["SigIgn"].strip())
"""


def test_a_program_that_the_application_starts_has_its_signals_as_the_daemon_was_given_them(serve, write_app, tmp_path):
    daemon = serve("--app-dir", str(tmp_path), app=write_app(SHOW_SIGNALS))
    told = daemon.probe.wait("signals").told
    assert int(told["blocked"], 16) == 0
    assert int(told["ignored"], 16) & 0x7FFF_FFFF == 0, "32 and 33 are the C library's own"
