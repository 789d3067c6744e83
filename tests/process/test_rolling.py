"""Replace first, then retire: what a reload or a recycle does step by step, and where it stops when the code breaks."""

from __future__ import annotations

import json
import re
import signal

from support import proc
from support.load import Load

VERSIONED = "from support import testapp\nfrom support.testapp import app\ntestapp.version = {!r}\n"
HOLDS = "from support.stage import hold\nhold('importing')\n"
# Breaks as a deploy does that removes what the code needs: the first to start finds it, nobody after that.
ONCE = """
import os
def once():
    try:
        os.close(os.open({!r}, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        raise RuntimeError("gone from disk") from None
"""
IN_LIFESPAN = """
from support.stage import tell
from support import testapp
tell("imported")
testapp.version = "two"
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        once()
    await testapp.app(scope, receive, send)
"""


def versions(daemon, number=12):
    return {daemon.get()["version"] for _ in range(number)}


def test_a_roll_retires_an_old_worker_only_when_a_new_one_is_ready(serve, write_app, tmp_path):
    daemon = serve("-w", "2", "--app-dir", str(tmp_path), app=write_app(VERSIONED.format("one")))
    before = set(daemon.workers())
    write_app(HOLDS + VERSIONED.format("two"))
    daemon.notify.skip()
    daemon.signal(signal.SIGHUP)
    first = daemon.probe.wait("importing")
    assert set(daemon.workers()) == before | {first.pid}, "one more than desired, and nobody retired yet"
    first.release()
    second = daemon.probe.wait("importing")
    daemon.until(lambda: len(before & set(daemon.workers())) == 1, "one old worker was retired for the new one")
    assert {first.pid, second.pid} < set(daemon.workers())
    assert versions(daemon) <= {"one", "two"}
    second.release()
    daemon.ready()
    daemon.until(lambda: set(daemon.workers()) == {first.pid, second.pid}, "both old workers are gone")


def test_code_that_breaks_in_the_middle_of_a_roll_keeps_the_old_workers_that_are_left(serve, write_app, tmp_path):
    app = write_app(VERSIONED.format("one"))
    daemon = serve("-w", "3", "--boot-attempts", "2", "--app-dir", str(tmp_path), app=app)
    before = set(daemon.workers())
    write_app(ONCE.format(str(tmp_path / "marker")) + "once()\n" + VERSIONED.format("two"))
    with Load(daemon.port) as load:
        daemon.try_reload()
        load.wait_answers(50)
    assert load.result.failures == []
    daemon.status("partial 1/3")
    assert "reload partial: 1 of 3 workers is of generation 2, 2 keep the old code" in daemon.log
    assert len(before & set(daemon.workers())) == 2
    assert versions(daemon, 30) == {"one", "two"}

    write_app(VERSIONED.format("three"))
    daemon.reload()
    assert versions(daemon) == {"three"}


def test_with_a_surge_of_the_whole_pool_a_reload_is_all_or_nothing(serve, write_app, tmp_path):
    app = write_app(VERSIONED.format("one"))
    daemon = serve("-w", "3", "--reload-surge", "100%", "--app-dir", str(tmp_path), app=app)
    before = daemon.workers()
    write_app(ONCE.format(str(tmp_path / "marker")) + "once()\n" + VERSIONED.format("two"))
    daemon.try_reload()
    daemon.status("rolled back")
    daemon.until(lambda: daemon.workers() == before, "the same old workers, and no other, serve")
    assert versions(daemon) == {"one"}


def test_with_preload_the_old_generation_is_made_again_when_the_new_breaks_in_the_middle(serve, write_app, tmp_path):
    app = write_app("from support.stage import tell\ntell('imported')\n" + VERSIONED.format("one"))
    daemon = serve("-w", "3", "--preload", "--lifespan", "on", "--app-dir", str(tmp_path), app=app)
    write_app(ONCE.format(str(tmp_path / "marker")) + IN_LIFESPAN)
    daemon.probe.take("imported")
    with Load(daemon.port) as load:
        daemon.try_reload()
        daemon.status("rolled back")
        daemon.until(lambda: versions(daemon, 20) == {"one"}, "only the old code answers")
        load.wait_answers(50)
    assert load.result.failures == []
    assert len(daemon.probe.take("imported")) == 1, "the old code was forked again, not imported"
    assert len(daemon.workers()) == 3


def test_a_recycled_worker_serves_until_its_replacement_does_however_often_that_fails(serve, write_app, tmp_path):
    app = write_app(VERSIONED.format("one"))
    daemon = serve("--max-requests", "2", "--app-dir", str(tmp_path), app=app)
    old = daemon.workers()[0]
    write_app("raise RuntimeError('half deployed')\n")
    for _ in range(3):
        assert daemon.get()["pid"] == old
    daemon.logged("after 2 early deaths in a row")
    assert daemon.get() == daemon.get() | {"pid": old, "version": "one"}
    write_app(VERSIONED.format("two"))
    assert proc.wait_dead([old], 20) == []
    assert daemon.get()["version"] == "two"


def test_one_worker_is_recycled_without_a_gap_though_a_request_runs_in_it(serve):
    daemon = serve("--max-requests", "3")
    connection = daemon.connect()
    connection.request("GET", "/stay")
    visit = daemon.probe.wait("running")
    with Load(daemon.port, keep_alive=2, fresh=2) as load:
        daemon.until(lambda: daemon.get()["pid"] != visit.pid, "the replacement answers")
        load.wait_answers(20)
    assert load.result.failures == []
    assert proc.process(visit.pid), "it finishes what runs in it"
    visit.release()
    response, body = connection.answer()
    assert (response.status, json.loads(body)["pid"]) == (200, visit.pid)


def test_a_number_of_workers_set_by_hand_stands_until_the_file_names_another(serve, tmp_path):
    config = tmp_path / "site.toml"
    config.write_text("workers = 2\n")
    daemon = serve("-c", str(config))
    daemon.signal(signal.SIGTTIN)
    daemon.until(lambda: len(daemon.workers()) == 3, "three workers serve")
    config.write_text('workers = 2\nheaders = ["x-release: two"]\n')
    daemon.reload()
    daemon.until(lambda: len(daemon.workers()) == 3, "still three")
    config.write_text("workers = 1\n")
    daemon.reload()
    daemon.until(lambda: len(daemon.workers()) == 1, "as many as the file says now")


def test_hup_applies_a_new_log_level_and_new_timeouts(serve, tmp_path):
    config = tmp_path / "site.toml"
    config.write_text('log_level = "warning"\ngraceful_timeout = 60\n')
    daemon = serve("-c", str(config))
    assert daemon.log == ""
    config.write_text('log_level = "info"\ngraceful_timeout = 0.5\n')
    daemon.reload()
    daemon.logged("reload done: generation 2 serves")
    daemon.connect().request("GET", "/stay")
    daemon.probe.wait("running")
    assert daemon.stop() == 0
    assert daemon.probe.take("cancelled")


def test_hup_onto_an_address_in_use_changes_nothing(serve, tmp_path):
    config, other = tmp_path / "site.toml", serve()
    port = proc.free_port()
    config.write_text(f'bind = ["127.0.0.1:{port}"]\n')
    daemon = serve("-c", str(config), bind=None)
    before = daemon.workers()
    config.write_text(f'bind = ["127.0.0.1:{port}", "127.0.0.1:{other.port}"]\n')
    daemon.notify.skip()
    daemon.signal(signal.SIGHUP)
    daemon.status(rf"reload refused.*{other.port}.*in use")
    assert daemon.workers() == before
    assert daemon.connect(port).get()[0].status == 200
    assert other.get()["pid"] in other.workers()


def test_a_listener_that_stays_misses_no_connection_while_another_comes_and_goes(serve, tmp_path):
    config = tmp_path / "site.toml"
    stays, passing = proc.free_port(), proc.free_port()
    config.write_text(f'bind = ["127.0.0.1:{stays}"]\n')
    daemon = serve("-c", str(config), bind=None)
    inodes = proc.sockets_of(daemon.pid) & proc.listening(stays)
    with Load(stays) as load:
        for _ in range(3):
            config.write_text(f'bind = ["127.0.0.1:{passing}", "127.0.0.1:{stays}"]\n')
            daemon.reload()
            assert daemon.connect(passing).get()[0].status == 200
            config.write_text(f'bind = ["127.0.0.1:{stays}"]\n')
            daemon.reload()
            daemon.until(lambda: proc.port_is_free(passing), "the passing port is free")
            load.wait_answers(20)
    assert load.result.failures == []
    assert proc.sockets_of(daemon.pid) & proc.listening(stays) == inodes, "it is the same socket"


def test_ready_is_said_when_every_desired_worker_has_been_ready(launch, write_app, tmp_path):
    source = "import os\nfrom support.stage import hold\nif os.environ['PROCMGR_SLOT'] == '1':\n    hold('importing')\n"
    app = write_app(source + "from support.testapp import app\n")
    daemon = launch("-w", "2", "--app-dir", str(tmp_path), app=app)
    visit = daemon.probe.wait("importing")
    daemon.status("1/2 workers ready")
    assert daemon.get()["slot"] == "0", "who is ready serves"
    assert not any(message.fields.get("READY") for message in daemon.notify.messages)
    visit.release()
    daemon.ready()
    assert re.search("2/2 workers ready", "\n".join(daemon.notify.statuses()))
