"""--reload: a save brings new code at once, a mistake is shown and harmless, nobody is served by old code after it."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
from pathlib import Path

import pytest
from support import proc
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

HELD = "from support.stage import hold\nhold('importing')\n"
VERSIONED = "from support import testapp\nfrom support.testapp import app\ntestapp.version = {!r}\n"
ONE, TWO = VERSIONED.format("one"), VERSIONED.format("two")
STREAM = """
import asyncio
from support.stage import tell

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
        return
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
    await send({"type": "http.response.body", "body": b"data: VERSION\\n\\n", "more_body": True})
    try:
        await asyncio.Event().wait()
    finally:
        tell("stream ended")
"""
DEBUGGED = """
from support import testapp

async def app(scope, receive, send):
    if scope["type"] == "http":
        answer = 41
        breakpoint()
        testapp.version = answer
    await testapp.app(scope, receive, send)
"""


@pytest.fixture
def develop(launch, write_app, tmp_path):
    """Return a function that serves a file under --reload and waits until changes are noticed."""

    def start(*options, source=ONE, **more):
        app = write_app(source)
        daemon = launch("--reload", *options, app=app, cwd=tmp_path, **more).ready()
        daemon.logged("watching ")
        return daemon

    return start


def watcher(daemon):
    return next((each.pid for each in proc.children(daemon.pid) if each.comm == "procmgr: watch"), None)


def save_held(daemon, write_app, source=TWO):
    """Save code that boots for as long as the test wants; return its visit once the old worker accepts no more."""
    idle = daemon.connect()
    assert idle.get()[0].status == 200
    write_app(HELD + source)
    visit = daemon.probe.wait("importing")
    assert idle.sock.recv(1) == b"", "the old worker lets go of idle connections"
    return visit


def test_a_save_brings_new_code(develop, write_app):
    daemon = develop()
    assert daemon.get()["version"] == "one"
    for version in ("two", "three"):
        write_app(VERSIONED.format(version))
        daemon.until(lambda version=version: daemon.get()["version"] == version, f"{version} answers")
    assert "site_app.py changed" in daemon.log


def test_what_arrives_after_a_save_waits_for_the_new_code(develop, write_app):
    daemon = develop()
    visit = save_held(daemon, write_app)
    waiting = [daemon.connect() for _ in range(10)]
    for connection in waiting:
        connection.request("GET", "/")
    assert not select.select([each.sock for each in waiting], [], [], 0.2)[0]
    visit.release()
    assert [json.loads(each.answer()[1])["version"] for each in waiting] == ["two"] * 10


def test_what_waits_is_answered_by_the_old_code_when_the_new_fails(develop, write_app):
    daemon = develop()
    visit = save_held(daemon, write_app, "raise RuntimeError('half done')\n")
    waiting = daemon.connect()
    waiting.request("GET", "/")
    visit.release()
    assert json.loads(waiting.answer()[1])["version"] == "one"
    daemon.logged("RuntimeError: half done")
    connection = daemon.connect()
    for _ in range(3):
        response, body = connection.get()
        assert response.getheader("connection") is None, "it keeps connections alive again"
        assert json.loads(body)["version"] == "one"


def test_a_syntax_error_is_shown_and_the_old_worker_serves_until_the_next_save(develop, write_app):
    daemon = develop()
    before = daemon.workers()
    write_app("def app(:\n")
    daemon.logged("SyntaxError")
    daemon.logged("reload rolled back")
    assert daemon.workers() == before
    assert {daemon.get()["version"] for _ in range(5)} == {"one"}
    write_app(VERSIONED.format("two"))
    daemon.until(lambda: daemon.get()["version"] == "two", "the repaired code answers")


def test_a_request_that_runs_during_a_save_is_answered_with_connection_close(develop, write_app):
    daemon = develop()
    connection = daemon.connect()
    connection.request("GET", "/stay")
    running = daemon.probe.wait("running")
    visit = save_held(daemon, write_app)
    running.release()
    response, _ = connection.answer()
    assert (response.status, response.getheader("connection")) == (200, "close")
    visit.release()


def test_an_open_stream_lives_while_the_new_code_boots_and_does_not_hold_it_up(develop, write_app):
    daemon = develop(source=STREAM.replace("VERSION", "one"))
    stream = daemon.connect()
    stream.request("GET", "/")
    response = stream.getresponse()
    assert response.readline() == b"data: one\n"
    old = daemon.workers()
    write_app(HELD + STREAM.replace("VERSION", "two"))
    visit = daemon.probe.wait("importing")
    assert not daemon.probe.take("stream ended")
    visit.release()
    again = daemon.connect()
    again.request("GET", "/")
    assert again.getresponse().readline() == b"data: two\n"
    assert proc.wait_dead(old, 20) == []
    assert len(daemon.probe.take("stream ended")) == 1
    assert daemon.stop(signal.SIGINT) == 0


def test_an_open_websocket_lives_while_the_new_code_boots_and_is_closed_with_1012(develop, write_app):
    source = "from support import testapp\nfrom support.apps.websocket_app import app\ntestapp.version = {!r}\n"
    daemon = develop(source=source.format("one"))
    with connect(f"ws://127.0.0.1:{daemon.port}/echo", proxy=None, open_timeout=20) as chat:
        chat.send("before")
        assert chat.recv(timeout=20).endswith(" before")
        old = daemon.workers()
        write_app(HELD + source.format("two"))
        visit = daemon.probe.wait("importing")
        chat.send("meanwhile")
        assert chat.recv(timeout=20) == f"{old[0]} meanwhile"
        visit.release()
        assert daemon.get()["version"] == "two"
        with pytest.raises(ConnectionClosed) as caught:
            chat.recv(timeout=20)
        assert caught.value.rcvd.code == 1012
    assert proc.wait_dead(old, 20) == []


def test_int_stops_during_a_reload(develop, write_app):
    daemon = develop()
    visit = save_held(daemon, write_app)
    assert daemon.stop(signal.SIGINT) == 0
    assert visit.left()


def test_a_worker_that_somebody_terminates_while_it_is_held_back_ends_by_itself(develop, write_app):
    daemon = develop()
    old = daemon.workers()
    connection = daemon.connect()
    connection.request("GET", "/stay")
    daemon.probe.wait("running")
    visit = save_held(daemon, write_app)
    os.kill(old[0], signal.SIGTERM)
    assert proc.wait_dead(old, 20) == []
    daemon.logged(rf"pid {old[0]}\) ended after ")
    visit.release()
    daemon.until(lambda: daemon.get()["version"] == "two", "the new code answers")


def test_term_during_a_reload_lets_the_running_request_finish(develop, write_app):
    daemon = develop()
    connection = daemon.connect()
    connection.request("GET", "/stay")
    running = daemon.probe.wait("running")
    visit = save_held(daemon, write_app)
    daemon.signal(signal.SIGTERM)
    assert visit.left()
    running.release()
    assert connection.answer()[0].status == 200
    assert daemon.join() == 0
    assert "killed" not in daemon.log


def test_int_of_the_terminal_to_the_whole_group_stops_without_a_word_of_the_watcher(develop):
    daemon = develop()
    os.killpg(daemon.pid, signal.SIGINT)
    assert daemon.join() == 0
    assert "watcher" not in daemon.log
    assert "left behind" not in daemon.log
    assert "Traceback" not in daemon.log


def test_a_save_during_a_boot_starts_over_with_the_newest_code(develop, write_app):
    daemon = develop()
    for version in ("two", "three", "four"):
        write_app(HELD + VERSIONED.format(version))
        daemon.probe.wait("importing")
    write_app(VERSIONED.format("five"))
    daemon.until(lambda: daemon.get()["version"] == "five", "the newest code answers")


def test_code_that_fails_at_the_start_is_shown_and_waits_for_a_save(launch, write_app, tmp_path):
    app = write_app("def app(:\n")
    daemon = launch("--reload", "--boot-attempts", "1", app=app, cwd=tmp_path)
    daemon.logged("SyntaxError")
    daemon.logged("watching ")
    write_app("import nothere\n")
    daemon.logged("reload failed: generation 2 does not serve, and no older one either$")
    assert "old code" not in daemon.log
    write_app(VERSIONED.format("one"))
    daemon.ready()
    assert daemon.get()["version"] == "one"


def test_several_workers_change_together(develop, write_app):
    daemon = develop("-w", "3")
    old = daemon.workers()
    write_app(VERSIONED.format("two"))
    daemon.until(lambda: "reload done" in daemon.log, "the reload is done")
    assert {daemon.get()["version"] for _ in range(10)} == {"two"}
    assert proc.wait_dead(old, 20) == []


def test_other_files_count_where_they_are_included_and_not_where_they_are_excluded(develop, tmp_path):
    (tmp_path / "generated").mkdir()
    options = ["--reload-include", "*.html", "--reload-exclude", "skip_*.py", "--reload-exclude", "generated"]
    daemon = develop(*options)
    for name in ("skip_me.py", "generated/code.py", "notes.txt", ".hidden.py"):
        (tmp_path / name).write_text("1\n")
    (tmp_path / "page.html").write_text("hello\n")
    daemon.logged("^INFO: +page.html changed$")
    daemon.until(lambda: "reload done" in daemon.log, "the reload is done")
    assert re.findall(r"(\S+) changed", daemon.log) == ["page.html"]


def test_only_the_named_directories_are_looked_at(launch, write_app, tmp_path):
    for name in ("lib", "other"):
        (tmp_path / name).mkdir()
    app = write_app(VERSIONED.format("one"))
    daemon = launch("--reload", "--reload-dir", "lib", app=app, cwd=tmp_path).ready()
    daemon.logged(f"watching {tmp_path}/lib$")
    (tmp_path / "other" / "one.py").write_text("1\n")
    (tmp_path / "lib" / "two.py").write_text("1\n")
    daemon.logged("lib/two.py changed")
    assert "one.py" not in daemon.log


def test_five_hundred_files_at_once_are_few_reloads(develop, write_app, tmp_path):
    daemon = develop()
    for number in range(500):
        (tmp_path / f"module_{number}.py").write_text("1\n")
    write_app(VERSIONED.format("two"))
    daemon.until(lambda: daemon.get()["version"] == "two", "the new code answers")
    assert re.search(r"and \d+ more changed", daemon.log)
    assert daemon.log.count(" changed") < 20


def test_where_inotify_is_used_up_changes_are_found_by_polling_and_that_is_said_once(develop, write_app, tmp_path):
    limit = ["sh", "-c", 'echo 1 > /proc/sys/user/max_inotify_watches && exec "$@"', "sh"]
    wrapper = ["unshare", "--user", "--map-root-user", *limit]
    if subprocess.run([*wrapper, "true"], capture_output=True, check=False).returncode:
        pytest.skip("user namespaces are not allowed here")
    (tmp_path / "package").mkdir()
    daemon = develop(wrapper=wrapper)
    daemon.logged("looked for by polling: .*limit")
    write_app(VERSIONED.format("two"))
    daemon.until(lambda: daemon.get()["version"] == "two", "the new code answers")
    os.kill(watcher(daemon), signal.SIGKILL)
    daemon.until(lambda: len(re.findall("watching /", daemon.log)) == 2, "another watcher is at work")
    assert daemon.log.count("by polling") == 1


def test_a_watcher_that_is_killed_is_replaced_and_what_it_missed_is_made_up_for(develop, write_app):
    daemon = develop()
    first = watcher(daemon)
    os.kill(first, signal.SIGKILL)
    write_app(VERSIONED.format("two"))
    daemon.until(lambda: daemon.get()["version"] == "two", "the new code answers")
    assert watcher(daemon) not in (None, first)
    write_app(VERSIONED.format("three"))
    daemon.until(lambda: daemon.get()["version"] == "three", "the new watcher notices")


def test_a_watcher_that_dies_again_and_again_is_given_up_and_the_service_goes_on(develop):
    daemon = develop()
    seen = set()
    while "reload with HUP from now on" not in daemon.log:
        daemon.until(lambda: watcher(daemon) not in seen, "there is another watcher, or none any more")
        pid = watcher(daemon)
        if pid is not None:
            seen.add(pid)
            os.kill(pid, signal.SIGKILL)
            assert proc.wait_dead([pid], 20) == []
        daemon.until(lambda: daemon.log.count("the watcher") >= len(seen), "its death was noticed")
    assert len(seen) < 10
    assert daemon.get()["version"] == "one"


def test_nothing_is_left_when_the_arbiter_is_killed_with_its_watcher_at_work(develop):
    daemon = develop()
    daemon.signal(signal.SIGKILL)
    daemon.join()
    assert daemon.left() == []


def test_the_arbiter_never_imports_watchfiles_and_the_watcher_holds_no_socket_of_the_service(develop):
    daemon = develop()
    assert "watchfiles" not in Path(f"/proc/{daemon.pid}/maps").read_text()
    assert not proc.sockets_of(watcher(daemon)) & proc.listening(daemon.port)


def test_breakpoint_reaches_the_terminal(develop):
    master, terminal = pty.openpty()
    daemon = develop(source=DEBUGGED, stdin=terminal, stdout=terminal)
    connection = daemon.connect()
    connection.request("GET", "/")
    with os.fdopen(master, "r+b", buffering=0) as person:
        _expect(person, b"(Pdb)")
        person.write(b"answer + 1\n")
        _expect(person, b"42")
        person.write(b"answer = 42\n")
        _expect(person, b"(Pdb)")
        person.write(b"c\n")
        assert json.loads(connection.answer()[1])["version"] == 42
        os.close(terminal)


def _expect(terminal, text):
    seen = b""
    while text not in seen:
        assert select.select([terminal], [], [], 20)[0], f"the terminal showed {seen!r}, not {text!r}"
        seen += terminal.read(4096)


def test_uvicorns_variables_mean_the_same(launch, write_app, tmp_path):
    app = write_app(VERSIONED.format("one"))
    daemon = launch(app=app, cwd=tmp_path, env={"UVICORN_RELOAD": "true"}).ready()
    daemon.logged(f"watching {tmp_path}$")


def test_after_an_upgrade_in_place_saves_are_noticed_by_one_watcher(develop, write_app):
    daemon = develop()
    first = watcher(daemon)
    daemon.signal(signal.SIGUSR2)
    daemon.logged("upgraded from release")
    assert proc.wait_dead([first], 20) == []
    daemon.until(lambda: len(re.findall("watching /", daemon.log)) == 2, "the new watcher is at work")
    write_app(TWO)
    daemon.until(lambda: daemon.get()["version"] == "two", "the new code answers")
    assert [each.comm for each in proc.children(daemon.pid)].count("procmgr: watch") == 1


def test_an_upgrade_during_a_reload_leaves_nobody_waiting(develop, write_app):
    daemon = develop()
    visit = save_held(daemon, write_app)
    waiting = daemon.connect()
    waiting.request("GET", "/")
    daemon.signal(signal.SIGUSR2)
    daemon.probe.wait("importing").release()  # the preflight's
    daemon.logged("upgraded from release")
    visit.release()
    assert json.loads(waiting.answer()[1])["version"] == "two"
