"""The arbiter's sudden death: its workers finish what they have, and then nothing remains."""

from __future__ import annotations

import os
import signal

from support import proc


def test_workers_answer_what_runs_and_then_no_process_remains(serve):
    daemon = serve("-w", "2")
    connection = daemon.connect()
    connection.request("GET", "/stay")
    visit = daemon.probe.wait("running")
    idle = next(pid for pid in daemon.workers() if pid != visit.pid)
    daemon.signal(signal.SIGKILL)
    daemon.join()
    assert proc.wait_dead([idle], 20) == [], "a worker with nothing to do goes at once"
    visit.release()
    assert connection.answer()[0].status == 200
    assert daemon.left() == []
    assert proc.port_is_free(daemon.port)
    assert len(daemon.probe.take("shutdown")) == 2, "lifespan.shutdown runs in every worker"
    assert "the arbiter died" in daemon.log


def test_workers_close_their_listeners_at_once_while_they_drain(serve):
    daemon = serve()
    connection = daemon.connect()
    connection.request("GET", "/stay")
    visit = daemon.probe.wait("running")
    daemon.signal(signal.SIGKILL)
    daemon.join()
    assert proc.eventually(lambda: proc.port_is_free(daemon.port)), "while the request still runs"
    visit.release()
    assert connection.answer()[0].status == 200


def test_connections_in_the_listen_queue_are_answered_after_the_arbiters_death(serve):
    daemon = serve()
    daemon.connect().request("GET", "/block")
    visit = daemon.probe.wait("blocked")
    queued = [daemon.connect() for _ in range(5)]
    for connection in queued:
        connection.request("GET", "/")
    daemon.signal(signal.SIGKILL)
    daemon.join()
    visit.release()
    assert [connection.answer()[0].status for connection in queued] == [200] * 5
    assert daemon.left() == []


def test_a_worker_that_notices_nothing_is_killed_by_the_guard(serve):
    daemon = serve("-w", "2", "--graceful-timeout", "1")
    daemon.connect().request("GET", "/block")
    blocked = daemon.probe.wait("blocked")
    stopped = next(pid for pid in daemon.workers() if pid != blocked.pid)
    os.kill(stopped, signal.SIGSTOP)
    daemon.signal(signal.SIGKILL)
    daemon.join()
    assert daemon.left() == []
    assert proc.port_is_free(daemon.port)


def test_a_worker_that_boots_when_the_arbiter_dies_goes_with_it(launch, write_app, tmp_path):
    app = write_app("from support.stage import hold\nhold('importing')\nfrom support.testapp import app\n")
    daemon = launch("--app-dir", str(tmp_path), "--graceful-timeout", "60", app=app)
    visit = daemon.probe.wait("importing")
    daemon.signal(signal.SIGKILL)
    daemon.join()
    assert visit.left()
    assert daemon.left() == []


def test_a_guard_that_dies_is_replaced(serve):
    daemon = serve("--graceful-timeout", "1")
    guard = next(each.pid for each in proc.children(daemon.pid) if each.comm == "procmgr: guard")
    os.kill(guard, signal.SIGKILL)
    daemon.until(lambda: _guards(daemon) not in ([], [guard]), "another guard was forked")
    daemon.connect().request("GET", "/block")
    daemon.probe.wait("blocked")
    daemon.signal(signal.SIGKILL)
    daemon.join()
    assert daemon.left() == []


def _guards(daemon):
    return [each.pid for each in proc.children(daemon.pid) if each.comm == "procmgr: guard"]
