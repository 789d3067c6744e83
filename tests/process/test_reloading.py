"""HUP: new code and new configuration without losing a request, and nothing changed where either is broken."""

from __future__ import annotations

import json
import re
import signal
from http.client import IncompleteRead

import pytest
from support import proc
from support.load import Load

VERSIONED = "from support import testapp\nfrom support.testapp import app\ntestapp.version = {!r}\n"
FROM_ENVIRONMENT = (
    "import os\nfrom support import testapp\nfrom support.testapp import app\ntestapp.version = os.environ['RELEASE']\n"
)


def test_twenty_reloads_under_load_fail_no_request(serve):
    daemon = serve("-w", "2")
    seen = set(daemon.workers())
    with Load(daemon.port) as load:
        for _ in range(20):
            daemon.reload()
            fresh = set(daemon.workers()) - seen
            assert len(fresh) >= 2, "a reload is done when every worker is new"
            seen |= fresh
            load.wait_answers(20)
    assert load.result.failures == []
    assert load.answering() <= seen
    assert len(load.answering()) > 20, "the load met every generation"


def test_hup_serves_the_new_code(serve, write_app, tmp_path):
    app = write_app(VERSIONED.format("one"))
    daemon = serve("-w", "2", "--app-dir", str(tmp_path), app=app)
    write_app(VERSIONED.format("two"))
    assert daemon.get()["version"] == "one"
    daemon.reload()
    assert {daemon.get()["version"] for _ in range(10)} == {"two"}


def test_hup_with_a_syntax_error_keeps_serving_and_says_why(serve, write_app, tmp_path):
    app = write_app(VERSIONED.format("one"))
    daemon = serve("-w", "2", "--app-dir", str(tmp_path), app=app)
    before = daemon.workers()
    write_app("def app(:\n")
    daemon.try_reload()
    daemon.status("rolled back")
    assert daemon.workers() == before
    assert {daemon.get()["version"] for _ in range(10)} == {"one"}
    assert "SyntaxError" in daemon.log
    assert re.search(r'File ".*site_app\.py", line 1', daemon.log), "the traceback names the application's own line"
    assert "reload rolled back" in daemon.log

    write_app(VERSIONED.format("two"))
    daemon.reload()
    assert daemon.get()["version"] == "two"


def test_hup_with_a_failing_lifespan_keeps_the_old_workers(serve, write_app, tmp_path):
    app = write_app(VERSIONED.format("one"))
    daemon = serve("-w", "2", "--app-dir", str(tmp_path), app=app)
    before = daemon.workers()
    write_app(
        "async def app(scope, receive, send):\n"
        "    await receive()\n"
        "    await send({'type': 'lifespan.startup.failed', 'message': 'no database today'})\n"
    )
    daemon.try_reload()
    assert daemon.workers() == before
    assert "no database today" in daemon.log
    assert daemon.get()["version"] == "one"


def test_hup_with_a_broken_config_file_says_why_and_changes_nothing(serve, tmp_path):
    config = tmp_path / "site.toml"
    config.write_text("workers = 2\n")
    daemon = serve("-c", str(config))
    before = daemon.workers()
    config.write_text("wrkers = 3\n")
    daemon.notify.skip()
    daemon.signal(signal.SIGHUP)
    daemon.status("reload refused.*site.toml.*wrkers")
    assert re.search(r"reload refused.*site\.toml.*wrkers.*workers", daemon.log), "it names file, key and suggestion"
    assert daemon.workers() == before
    assert daemon.get()["pid"] in before


def test_hup_with_a_changed_restart_only_setting_is_refused_as_a_whole(serve, tmp_path):
    config = tmp_path / "site.toml"
    config.write_text('workers = 1\npid = "one.pid"\n')
    daemon = serve("-c", str(config), cwd=tmp_path)
    before = daemon.workers()
    config.write_text('workers = 3\npid = "two.pid"\n')
    daemon.notify.skip()
    daemon.signal(signal.SIGHUP)
    daemon.status("reload refused.*pid.*restart")
    assert daemon.workers() == before


def test_hup_applies_a_new_configuration(serve, tmp_path):
    config = tmp_path / "site.toml"
    config.write_text("workers = 1\n")
    daemon = serve("-c", str(config))
    config.write_text('workers = 3\nheaders = ["x-release: two"]\n')
    daemon.reload()
    assert len(daemon.workers()) >= 3
    daemon.until(lambda: len(daemon.workers()) == 3, "three workers serve")
    response, _ = daemon.connect().get()
    assert response.getheader("x-release") == "two"


def test_hup_binds_a_new_address_and_lets_an_old_one_go(serve, tmp_path):
    first, second = proc.free_port(), proc.free_port()
    config = tmp_path / "site.toml"
    config.write_text(f'bind = ["127.0.0.1:{first}"]\n')
    daemon = serve("-c", str(config), bind=None)
    assert daemon.connect(first).get()[0].status == 200
    config.write_text(f'bind = ["127.0.0.1:{second}"]\n')
    daemon.reload()
    assert daemon.connect(second).get()[0].status == 200
    daemon.until(lambda: proc.port_is_free(first), "the old port is free")


def test_an_idle_connection_to_a_retiring_worker_is_answered_once_more_and_told_to_close(serve):
    daemon = serve("--keep-alive", "60")
    idle = daemon.connect()
    old = json.loads(idle.get()[1])["pid"]
    daemon.reload()
    response, body = idle.get()
    assert json.loads(body)["pid"] == old
    assert response.getheader("connection") == "close"
    assert proc.wait_dead([old], 20) == []
    assert daemon.get()["pid"] != old


def test_a_request_that_runs_in_a_retiring_worker_is_answered(serve):
    daemon = serve()
    connection = daemon.connect()
    connection.request("GET", "/stay")
    visit = daemon.probe.wait("running")
    daemon.reload()
    assert daemon.get()["pid"] != visit.pid
    visit.release()
    response, body = connection.answer()
    assert (response.status, json.loads(body)["pid"]) == (200, visit.pid)


STREAMS = """
import asyncio
from support.stage import stay, tell
from support.testapp import app as plain

async def app(scope, receive, send):
    if scope.get("path") != "/stream":
        await plain(scope, receive, send)
        return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    try:
        for part in (b"first\\n", b"second\\n"):
            await send({"type": "http.response.body", "body": part, "more_body": True})
            await stay("streaming")
    except asyncio.CancelledError:
        tell("cancelled")
        raise
"""


def test_a_stream_in_a_retiring_worker_has_the_graceful_period_and_is_cut_after_it(serve, write_app, tmp_path):
    options = ("--graceful-timeout", "4", "--app-dir", str(tmp_path))
    daemon = serve(*options, app=write_app(STREAMS))
    stream = daemon.connect()
    stream.request("GET", "/stream")
    response = stream.getresponse()
    assert response.readline() == b"first\n"
    visit = daemon.probe.wait("streaming")
    daemon.reload()
    assert daemon.get()["pid"] != visit.pid
    visit.release()
    assert response.readline() == b"second\n", "the old worker goes on with it"
    with pytest.raises(IncompleteRead):
        response.read()
    assert daemon.probe.wait("cancelled").pid == visit.pid
    assert proc.wait_dead([visit.pid], 20) == []
    daemon.logged(rf"pid {visit.pid}\) ended after")
    assert daemon.get()["pid"] in daemon.workers()


def test_the_old_workers_serve_while_the_new_code_takes_its_time_to_boot(serve, write_app, tmp_path):
    app = write_app(VERSIONED.format("one"))
    daemon = serve("--app-dir", str(tmp_path), app=app)
    write_app("from support.stage import hold\nhold('importing')\n" + VERSIONED.format("two"))
    daemon.notify.skip()
    daemon.signal(signal.SIGHUP)
    visit = daemon.probe.wait("importing")
    assert {daemon.get()["version"] for _ in range(10)} == {"one"}
    visit.release()
    daemon.ready()
    daemon.until(lambda: daemon.get()["version"] == "two", "the new code answers")


def test_term_overtakes_a_reload_that_hangs(serve, write_app, tmp_path):
    app = write_app(VERSIONED.format("one"))
    daemon = serve("--app-dir", str(tmp_path), app=app)
    write_app("from support.stage import hold\nhold('importing')\n")
    daemon.signal(signal.SIGHUP)
    daemon.probe.wait("importing")
    assert daemon.stop() == 0


def test_many_hups_at_once_end_in_the_newest_code(serve, write_app, tmp_path):
    app = write_app(VERSIONED.format("one"))
    daemon = serve("-w", "2", "--app-dir", str(tmp_path), app=app)
    with Load(daemon.port, keep_alive=4, fresh=2) as load:
        for number in range(10):
            write_app(VERSIONED.format(f"v{number}"))
            daemon.signal(signal.SIGHUP)
            load.wait_answers(5)
        daemon.until(lambda: {daemon.get()["version"] for _ in range(10)} == {"v9"}, "only the newest code answers")
    assert load.result.failures == []


def test_ttin_and_ttou_change_the_number_by_one_and_it_survives_a_reload(serve):
    daemon = serve("-w", "2")
    daemon.signal(signal.SIGTTIN)
    daemon.until(lambda: len(daemon.workers()) == 3, "three workers serve")
    daemon.reload()
    daemon.until(lambda: len(daemon.workers()) == 3, "three workers serve after the reload")
    for left in (2, 1):
        daemon.signal(signal.SIGTTOU)
        daemon.until(lambda left=left: len(daemon.workers()) == left, f"{left} workers serve")
    daemon.reload()
    daemon.until(lambda: len(daemon.workers()) == 1, "one worker serves after the reload")


ACCEPTS = """
import gc
from support import testapp

async def app(scope, receive, send):
    testapp.version = [each._burst for each in gc.get_objects() if type(each).__name__ == "Acceptor"]
    await testapp.app(scope, receive, send)
"""


@pytest.mark.parametrize("options", [(), ("--preload",)], ids=["forked by the arbiter", "forked by a zygote"])
def test_workers_learn_whether_they_accept_beside_others(serve, write_app, tmp_path, options):
    daemon = serve("-w", "1", "--app-dir", str(tmp_path), *options, app=write_app(ACCEPTS))

    def accepting():
        seen = {}
        for _ in range(500):
            answer = daemon.get()
            seen[answer["pid"]] = answer["version"]
            if seen.keys() >= set(daemon.workers()):
                break
        return seen.values()

    assert all(bursts > [1] for bursts in accepting())
    daemon.signal(signal.SIGTTIN)
    daemon.until(lambda: len(daemon.workers()) == 2, "two workers serve")
    daemon.until(lambda: all(bursts == [1] for bursts in accepting()), "a burst is left to both")
    daemon.signal(signal.SIGTTOU)
    daemon.until(lambda: len(daemon.workers()) == 1, "one worker serves")
    daemon.until(lambda: all(bursts > [1] for bursts in accepting()), "a burst is taken at once")


def test_ttou_never_ends_the_last_worker(serve):
    daemon = serve("-w", "1")
    before = daemon.workers()
    for _ in range(3):
        daemon.signal(signal.SIGTTOU)
    daemon.status("1/1 workers ready")
    assert daemon.workers() == before
    assert daemon.get()["pid"] == before[0]


def test_scaling_under_load_fails_no_request(serve):
    daemon = serve("-w", "2")
    with Load(daemon.port) as load:
        for wanted, signum in ((3, signal.SIGTTIN), (2, signal.SIGTTOU), (1, signal.SIGTTOU), (2, signal.SIGTTIN)) * 2:
            daemon.signal(signum)
            daemon.until(lambda wanted=wanted: len(daemon.workers()) == wanted, f"{wanted} workers are left")
            load.wait_answers(50)
    assert load.result.failures == []


def test_usr1_reopens_the_logs_and_serves_on(serve):
    daemon = serve("-w", "2")
    before = daemon.workers()
    daemon.signal(signal.SIGUSR1)
    daemon.logged("log files reopened")
    assert daemon.workers() == before
    assert daemon.get()["pid"] in before


def test_a_deploy_by_symlink_is_followed_by_path(serve, tmp_path):
    for release in ("one", "two"):
        (tmp_path / release).mkdir()
        (tmp_path / release / "site_app.py").write_text(VERSIONED.format(release))
    current = tmp_path / "current"
    current.symlink_to("one")
    daemon = serve("--chdir", str(current), app="site_app:app")
    assert daemon.get()["version"] == "one"
    _switch(current, "two")
    daemon.reload()
    assert daemon.get()["version"] == "two"


def test_a_deploy_by_symlink_is_followed_from_the_directory_of_the_start(serve, tmp_path):
    for release in ("one", "two"):
        (tmp_path / release).mkdir()
        (tmp_path / release / "site_app.py").write_text(VERSIONED.format(release))
    current = tmp_path / "current"
    current.symlink_to("one")
    daemon = serve(cwd=current, env={"PWD": str(current)}, app="site_app:app")  # as a shell leaves it
    assert daemon.get()["version"] == "one"
    _switch(current, "two")
    daemon.reload()
    assert daemon.get()["version"] == "two"


def test_relative_paths_follow_a_deploy_too(serve, tmp_path):
    for release in ("one", "two"):
        inside = tmp_path / release / "src"
        inside.mkdir(parents=True)
        (inside / "site_app.py").write_text(FROM_ENVIRONMENT)
        (tmp_path / release / "settings.env").write_text(f"RELEASE={release}\n")
    current = tmp_path / "current"
    current.symlink_to("one")
    options = ("--chdir", "src", "--env-file", "settings.env")
    daemon = serve(*options, cwd=current, env={"PWD": str(current)}, app="site_app:app")
    assert daemon.get()["version"] == "one"
    _switch(current, "two")
    daemon.reload()
    assert daemon.get()["version"] == "two"


def _switch(link, target):
    """Point the link elsewhere in one step, as deploy tools do."""
    fresh = link.with_name("fresh")
    fresh.symlink_to(target)
    fresh.replace(link)
