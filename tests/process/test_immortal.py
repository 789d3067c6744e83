"""--preload-immortal: workers read what was imported without a copy, and all else is as with --preload alone."""

from __future__ import annotations

import os
import signal

import pytest
from support import proc
from support.daemon import run

from procmgr.process import immortal

able = pytest.mark.skipif(bool(immortal.unavailable()), reason="this interpreter counts all references")

READS = """
import re
from pathlib import Path
from support import testapp

def private():
    rows = Path("/proc/self/smaps_rollup").read_text()
    return 1024 * int(re.search(r"Private_Dirty: +([0-9]+)", rows)[1])

records = [{"number": n, "name": f"customer {n}", "score": n / 7, "tags": (f"a-{n}", f"b-{n}")} for n in range(50_000)]

def read():
    return sum(len(value) if isinstance(value, (str, tuple)) else 0 for each in records for value in each.values())

async def app(scope, receive, send):
    if scope["type"] == "http":
        before, what = private(), read()
        testapp.version = private() - before
    await testapp.app(scope, receive, send)
"""
DATA_BYTES = 50_000 * 400  # a dict, a tuple, three texts and two numbers take more


def written_by_reading(serve, write_app, tmp_path, *options):
    daemon = serve("-w", "2", "--preload", *options, "--app-dir", str(tmp_path), app=write_app(READS))
    return daemon.get()["version"]


@able
def test_reading_what_was_imported_copies_none_of_it(serve, write_app, tmp_path):
    assert written_by_reading(serve, write_app, tmp_path, "--preload-immortal") < DATA_BYTES / 20


def test_without_it_reading_copies_all(serve, write_app, tmp_path):
    """So that the test above is known to see a copy."""
    assert written_by_reading(serve, write_app, tmp_path) > DATA_BYTES / 2


def status_of(daemon):
    connection = daemon.connect()
    try:
        return connection.get("/")[0].status
    finally:
        connection.close()


@able
@pytest.mark.parametrize("framework", ["fastapi", "starlette", "django"])
def test_an_application_is_served_reloaded_recycled_and_killed_as_ever(serve, framework):
    pytest.importorskip(framework)
    app = f"support.apps.{framework}_app:app"
    daemon = serve("-w", "2", "--preload", "--preload-immortal", "--max-requests", "20", app=app)
    for _ in range(50):
        assert status_of(daemon) == 200
    daemon.logged("it served 20 requests")
    daemon.reload()
    assert status_of(daemon) == 200
    victim = daemon.workers()[0]
    os.kill(victim, signal.SIGKILL)
    daemon.until(lambda: victim not in daemon.workers() and len(daemon.workers()) == 2, "the victim is replaced")
    assert status_of(daemon) == 200
    assert daemon.stop() == 0
    assert "Traceback" not in daemon.log


COUNTS = """
import sys
from support import testapp
from support.stage import tell

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        tell("born", blocks=sys.getallocatedblocks())
    await testapp.app(scope, receive, send)
"""


@able
def test_workers_do_not_start_larger_the_more_were_forked(serve, write_app, tmp_path):
    options = ("--preload", "--preload-immortal", "--max-requests", "1", "--app-dir", str(tmp_path))
    daemon = serve(*options, app=write_app(COUNTS))
    blocks = []
    for _ in range(30):
        born = daemon.probe.wait("born")
        blocks.append(int(born.told["blocks"]))
        daemon.until(lambda pid=born.pid: daemon.get()["pid"] == pid, "it serves, and is due")
    # CPython keeps freed tuples for later, at most 2,000 of a length: a few each time until then.
    assert max(blocks[10:]) - blocks[9] < 100, blocks


@able
def test_a_reload_frees_all_that_was_immortal(serve, write_app, tmp_path):
    daemon = serve("--preload", "--preload-immortal", "--app-dir", str(tmp_path), app=write_app(COUNTS))
    old = [each.pid for each in proc.children(daemon.pid) if each.comm in {"procmgr: zygote", "procmgr: worker"}]
    assert len(old) == 2
    first = int(daemon.probe.wait("born").told["blocks"])
    daemon.reload()
    assert proc.wait_dead(old, 20) == []
    assert abs(int(daemon.probe.wait("born").told["blocks"]) - first) < first / 50


@pytest.mark.skipif(not immortal.unavailable(), reason="this interpreter can")
def test_it_is_refused_in_one_line_where_the_interpreter_cannot():
    done = run("--preload", "--preload-immortal", "support.testapp:app")
    assert done.returncode == 2
    assert done.stderr == f"procmgr: error: preload_immortal from --preload-immortal: {immortal.unavailable()}\n"
