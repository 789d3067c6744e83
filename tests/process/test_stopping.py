"""TERM, INT, QUIT and their repetitions: how the daemon stops, and what it finishes before."""

from __future__ import annotations

import os
import signal
import time

import pytest
from support.daemon import PATIENCE

QUICK = [signal.SIGINT, signal.SIGQUIT]


def stopping(daemon):
    daemon.wait(lambda message: message.fields.get("STOPPING") == "1", "STOPPING=1")


def running_request(daemon, path="/stay", name="running"):
    """Start a request that the application holds; return its connection and the application's visit."""
    connection = daemon.connect()
    connection.request("GET", path)
    return connection, daemon.probe.wait(name)


def test_term_answers_the_request_that_runs_and_exits_zero(serve):
    daemon = serve("-w", "2")
    connection, visit = running_request(daemon)
    daemon.signal(signal.SIGTERM)
    stopping(daemon)
    visit.release()
    assert connection.answer()[0].status == 200
    assert daemon.join() == 0
    assert len(daemon.probe.take("shutdown")) == 2, "lifespan.shutdown runs in every worker"


def test_term_lets_a_request_run_for_the_graceful_timeout_and_then_cancels_it(serve):
    daemon = serve("--graceful-timeout", "1")
    running_request(daemon)
    daemon.signal(signal.SIGTERM)
    daemon.probe.wait("cancelled")
    assert daemon.join() == 0
    assert len(daemon.probe.take("shutdown")) == 1


@pytest.mark.parametrize("signum", QUICK)
def test_a_quick_stop_cancels_what_still_runs_after_its_second(serve, signum):
    graceful_timeout = 3 * PATIENCE
    daemon = serve("--graceful-timeout", str(graceful_timeout))
    running_request(daemon)
    assert daemon.stop(signum) == 0, "it ends long before the graceful timeout"
    told = [visit.name for visit in daemon.probe.visits]
    assert told[-2:] == ["cancelled", "shutdown"], "lifespan.shutdown runs after the last request"


@pytest.mark.parametrize("signum", QUICK)
def test_a_quick_stop_answers_what_ends_within_its_second(serve, signum):
    daemon = serve()
    connection, visit = running_request(daemon)
    daemon.signal(signum)
    stopping(daemon)
    visit.release()
    assert connection.answer()[0].status == 200
    assert daemon.join() == 0


def test_a_second_signal_makes_a_graceful_stop_quick(serve):
    daemon = serve("--graceful-timeout", str(3 * PATIENCE))
    running_request(daemon)
    daemon.signal(signal.SIGTERM)
    stopping(daemon)
    daemon.signal(signal.SIGINT)
    daemon.probe.wait("cancelled")
    assert daemon.join() == 0


def test_a_third_signal_kills(serve):
    daemon = serve("--graceful-timeout", str(3 * PATIENCE))
    running_request(daemon, "/block", "blocked")
    daemon.signal(signal.SIGTERM)
    sent = time.monotonic()
    stopping(daemon)
    daemon.signal(signal.SIGINT)
    daemon.wait(lambda message: message.at > sent + 0.6, "anything after the window in which a repetition counts once")
    daemon.signal(signal.SIGTERM)
    daemon.join()
    assert "killed by procmgr because the stop was forced" in daemon.log


def test_a_signal_repeated_at_once_counts_once(serve):
    daemon = serve()
    connection, visit = running_request(daemon)
    for _ in range(5):
        daemon.signal(signal.SIGTERM)
    stopping(daemon)
    visit.release()
    assert connection.answer()[0].status == 200
    assert daemon.join() == 0
    assert "quickly" not in daemon.log


def test_int_of_the_terminal_to_the_whole_group_reaches_workers_only_through_the_arbiter(serve):
    daemon = serve("-w", "2")
    connection, visit = running_request(daemon)
    os.killpg(daemon.pid, signal.SIGINT)
    daemon.signal(signal.SIGINT)  # as a wrapper repeats it
    stopping(daemon)
    visit.release()
    assert connection.answer()[0].status == 200
    assert daemon.join() == 0
    assert "KeyboardInterrupt" not in daemon.log
    assert "at once" not in daemon.log


def test_term_to_the_whole_group_is_one_graceful_stop(serve):
    daemon = serve("-w", "2")
    connection, visit = running_request(daemon)
    os.killpg(daemon.pid, signal.SIGTERM)
    stopping(daemon)
    visit.release()
    assert connection.answer()[0].status == 200
    assert daemon.join() == 0
    assert len(daemon.probe.take("startup")) == 2, "nobody is replaced during a stop"


def test_hup_and_usr_signals_to_the_whole_group_leave_workers_alone(serve):
    daemon = serve("-w", "2")
    before = daemon.workers()
    for worker in before:
        for signum in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT, signal.SIGTTIN, signal.SIGTTOU):
            os.kill(worker, signum)
    assert {daemon.get()["pid"] for _ in range(20)} <= set(before)
    assert daemon.workers() == before


def test_stopping_does_not_wait_for_idle_keep_alive_connections(serve):
    keep_alive = 60
    daemon = serve("-w", "2", "--keep-alive", str(keep_alive), "--graceful-timeout", str(keep_alive))
    for _ in range(20):
        assert daemon.connect().get()[0].status == 200
    begun = time.monotonic()
    assert daemon.stop() == 0
    assert time.monotonic() - begun < keep_alive / 20


def test_what_was_sent_on_an_idle_connection_before_the_stop_is_answered(serve):
    daemon = serve("--keep-alive", "60")
    idle = daemon.connect()
    worker = _worker_of(idle)
    os.kill(worker, signal.SIGSTOP)
    idle.request("GET", "/")
    daemon.signal(signal.SIGTERM)
    stopping(daemon)
    os.kill(worker, signal.SIGCONT)
    assert idle.answer()[0].status == 200
    assert daemon.join() == 0


def test_connections_in_the_listen_queue_are_served_before_a_stop_ends(serve):
    daemon = serve()
    worker = daemon.workers()[0]
    os.kill(worker, signal.SIGSTOP)
    queued = [daemon.connect() for _ in range(10)]
    for connection in queued:
        connection.request("GET", "/")
    daemon.signal(signal.SIGTERM)
    stopping(daemon)
    os.kill(worker, signal.SIGCONT)
    assert [connection.answer()[0].status for connection in queued] == [200] * 10
    assert daemon.join() == 0


def test_a_stop_during_the_boot_ends_at_once(launch, write_app, tmp_path):
    app = write_app("from support.stage import hold\nhold('importing')\nfrom support.testapp import app\n")
    daemon = launch("--app-dir", str(tmp_path), "-w", "2", "--graceful-timeout", str(3 * PATIENCE), app=app)
    daemon.probe.wait("importing")
    assert daemon.stop() == 0


def test_nothing_is_reloaded_or_scaled_during_a_stop(serve):
    daemon = serve("-w", "2")
    connection, visit = running_request(daemon)
    daemon.probe.take("startup")
    daemon.signal(signal.SIGTERM)
    stopping(daemon)
    for signum in (signal.SIGHUP, signal.SIGTTIN):
        daemon.signal(signum)
    daemon.wait(lambda message: "STATUS" in message.fields, "anything more")
    visit.release()
    assert connection.answer()[0].status == 200
    assert daemon.join() == 0
    assert daemon.probe.take("startup") == []
    said = [name for message in daemon.notify.messages for name in message.fields]
    assert "RELOADING" not in said
    assert said.index("READY") < said.index("STOPPING")
    assert said.count("READY") == 1


ENDLESS = {
    "a thread": "threading.Thread(target=threading.Event().wait).start()",
    "a task that ignores its cancellation": "asyncio.get_running_loop().create_task(stubborn())",
    "an exit function": "atexit.register(threading.Event().wait)",
}
ENDLESS_APP = """
import asyncio, atexit, threading
from support.testapp import app as plain

async def stubborn():
    while True:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            pass

async def app(scope, receive, send):
    if scope["type"] == "http":
        {}
    await plain(scope, receive, send)
"""


@pytest.mark.parametrize("what", ENDLESS)
@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_what_an_application_left_running_delays_the_end_no_longer_than_requests_do(
    serve, write_app, tmp_path, what, loop
):
    app = write_app(ENDLESS_APP.format(ENDLESS[what]))
    daemon = serve("--graceful-timeout", "1", "--loop", loop, "--app-dir", str(tmp_path), app=app)
    daemon.get()
    assert daemon.stop() == 0
    assert len(daemon.probe.take("shutdown")) == 1
    assert "leaving without them" in daemon.log
    assert "killed" not in daemon.log


def test_exit_functions_and_thread_pools_are_run_to_their_end(serve, write_app, tmp_path):
    app = write_app(
        "import atexit, concurrent.futures\nfrom support.stage import tell\nfrom support.testapp import app\n"
        "atexit.register(tell, 'exit function')\n"
        "pool = concurrent.futures.ThreadPoolExecutor()\npool.submit(tell, 'thread')\n"
    )
    daemon = serve("--app-dir", str(tmp_path), app=app)
    daemon.probe.wait("thread")
    assert daemon.stop() == 0
    daemon.probe.wait("exit function")


def test_a_worker_that_blocks_is_killed_after_the_drain_and_kill_bounds(serve):
    daemon = serve("--graceful-timeout", "1")
    running_request(daemon, "/block", "blocked")
    daemon.stop()
    assert "killed by procmgr because it did not finish draining in time" in daemon.log


def _worker_of(connection):
    import json

    return json.loads(connection.get()[1])["pid"]
