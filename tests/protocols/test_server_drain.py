"""Draining over real sockets: nothing accepted is lost, every bound holds, the application's shutdown always runs."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time

import pytest
import uvloop
from support.embedded import Client

from procmgr.config.resolve import build
from procmgr.logs import LineWriter, LogSetup
from procmgr.scoreboard import BEAT, detached_row
from procmgr.sockets import TCP, bind
from procmgr.worker import drain as drain_module
from procmgr.worker.server import Server

FAR = 60.0


@pytest.fixture(params=["uvloop", "asyncio"])
def runner(request):
    factory = uvloop.new_event_loop if request.param == "uvloop" else asyncio.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        yield lambda coroutine: runner.run(asyncio.wait_for(coroutine, 20))


class App:
    """An application whose requests wait to be let go, and which notes the order of what happens to it."""

    def __init__(self, *, shutdown=None):
        self.events = []
        self.running = asyncio.Event()
        self.release = asyncio.Event()
        self.shutdown = shutdown

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan":
            await self.lifespan(receive, send)
            return
        if scope["path"] == "/slow":
            self.running.set()
            try:
                await self.release.wait()
            except asyncio.CancelledError:
                self.events.append("cancelled")
                raise
        self.events.append(scope["path"])
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    async def lifespan(self, receive, send):
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        self.events.append("shutdown")
        if self.shutdown is not None:
            await self.shutdown()
        await send({"type": "lifespan.shutdown.complete"})


class Worker:
    """A worker's server without its process; `urls` for the client."""

    def __init__(self, app, **values):
        self.listener = bind(TCP("127.0.0.1", 0), backlog=128)
        self.urls = (f"http://127.0.0.1:{self.listener.address.port}",)
        self.row = detached_row()
        self.limits = []
        logs = LogSetup(access=None, access_via_logging=False, access_colors=False, error_writer=LineWriter(2))
        self.server = Server(
            app=app,
            settings=build({"app": "test:app", **values}),
            listeners=[self.listener],
            row=self.row,
            logs=logs,
            on_request_limit=self.limits.append,
        )

    def drain(self, mode, seconds=FAR):
        self.server.request_drain(mode, time.monotonic() + seconds)


@contextlib.asynccontextmanager
async def working(app, **values):
    """Yield a started worker and the task that ends when it is drained."""
    worker = Worker(app, **values)
    await worker.server.start()
    task = asyncio.create_task(worker.server.serve_until_drained())
    try:
        yield worker, task
    finally:
        worker.drain("quick", 0)
        await task


MODES = ["retire", "stop", "quick"]


@pytest.mark.parametrize("mode", MODES)
def test_an_idle_drain_ends_with_the_applications_shutdown(runner, mode):
    async def run():
        app = App()
        async with working(app) as (worker, task):
            worker.drain(mode)
            await task
        assert app.events == ["shutdown"]

    runner(run())


@pytest.mark.parametrize("mode", MODES)
def test_a_running_request_finishes_before_the_shutdown(runner, mode):
    async def run():
        app = App()
        async with working(app) as (worker, task):
            client = await Client.connect(worker)
            client.send("/slow")
            await app.running.wait()
            worker.drain(mode)
            app.release.set()
            head, body = await client.answer()
            assert "connection: close" in head
            assert body == b"ok"
            assert await client.rest() == b""
            await client.close()
            await task
        assert app.events == ["/slow", "shutdown"]

    runner(run())


@pytest.mark.parametrize("mode", ["retire", "stop"])
def test_an_idle_connection_gets_one_last_answer(runner, mode):
    async def run():
        app = App()
        async with working(app) as (worker, task):
            client = await Client.connect(worker)
            client.send("/first")
            await client.answer()
            worker.drain(mode)
            client.send("/last")
            head, _ = await client.answer()
            assert "connection: close" in head
            assert await client.rest() == b""
            await client.close()
            await task
        assert app.events == ["/first", "/last", "shutdown"]

    runner(run())


@pytest.mark.parametrize("mode", MODES)
def test_a_connection_accepted_but_unread_is_served(runner, mode):
    async def run():
        app = App()
        async with working(app) as (worker, task):
            client = await Client.connect(worker)
            client.send("/unread")
            worker.drain(mode)
            head, _ = await client.answer()
            assert "connection: close" in head
            await client.close()
            await task
        assert app.events == ["/unread", "shutdown"]

    runner(run())


@pytest.mark.parametrize("mode", ["stop", "quick"])
def test_a_stop_serves_what_is_queued_in_the_listener(runner, mode):
    """All connections are made while the loop does not run, so that none is accepted before the drain begins."""

    async def run():
        app = App()
        async with working(app) as (worker, task):
            with contextlib.ExitStack() as stack:
                socks = [
                    stack.enter_context(socket.create_connection(("127.0.0.1", worker.listener.address.port)))
                    for _ in range(20)
                ]
                for sock in socks:
                    sock.sendall(b"GET /queued HTTP/1.1\r\nHost: test\r\n\r\n")
                    sock.settimeout(0)
                worker.drain(mode)
                loop = asyncio.get_running_loop()
                answers = [await loop.sock_recv(sock, 1000) for sock in socks]
            assert all(answer.startswith(b"HTTP/1.1 200") for answer in answers)
            await task
        assert app.events == ["/queued"] * 20 + ["shutdown"]

    runner(run())


def test_retiring_leaves_the_queue_to_the_siblings(runner):
    async def run():
        app = App()
        async with working(app) as (worker, task):
            sibling = worker.listener.sock.dup()
            worker.drain("retire")
            await task
            client = await Client.connect(worker)
            connection, _ = sibling.accept()
            connection.close()
            sibling.close()
            await client.close()
        assert app.events == ["shutdown"]

    runner(run())


@pytest.mark.parametrize("mode", MODES)
def test_at_the_deadline_requests_are_cancelled_and_the_shutdown_still_runs(runner, mode, caplog):
    async def run():
        app = App()
        async with working(app) as (worker, task):
            client = await Client.connect(worker)
            client.send("/slow")
            await app.running.wait()
            worker.drain(mode, 0.05)
            await task
            await client.close()
        assert app.events == ["cancelled", "shutdown"]

    runner(run())
    assert "cancelling 1 requests" in caplog.text


@pytest.mark.parametrize(("first", "then"), [("retire", "stop"), ("retire", "quick"), ("stop", "quick")])
def test_a_quicker_drain_overtakes_a_slower_one(runner, first, then):
    async def run():
        app = App()
        async with working(app) as (worker, task):
            client = await Client.connect(worker)
            client.send("/slow")
            await app.running.wait()
            worker.drain(first)
            await asyncio.sleep(0)
            worker.drain(then, 0.05)
            await task
            await client.close()
        assert app.events == ["cancelled", "shutdown"]

    runner(run())


def test_a_later_deadline_does_not_lengthen_a_drain(runner):
    async def run():
        app = App()
        async with working(app) as (worker, task):
            client = await Client.connect(worker)
            client.send("/slow")
            await app.running.wait()
            worker.drain("stop", 0.05)
            worker.drain("retire", FAR)
            worker.drain("quick", FAR)
            await task
            await client.close()
        assert app.events == ["cancelled", "shutdown"]

    runner(run())


def test_a_stop_escalates_a_retirement_that_waits_for_idle_connections(runner):
    """Retiring, an idle connection may stay for the keep-alive time; stopping, for the window only."""

    async def run():
        app = App()
        async with working(app, keep_alive=FAR) as (worker, task):
            client = await Client.connect(worker)
            client.send("/first")
            await client.answer()
            worker.drain("retire")
            await asyncio.sleep(0)
            worker.drain("stop")
            assert await client.rest() == b""
            await client.close()
            await task
        assert app.events == ["/first", "shutdown"]

    runner(run())


def test_a_request_that_ignores_its_cancellation_does_not_hold_the_drain(runner, monkeypatch, caplog):
    monkeypatch.setattr(drain_module, "CANCELLED", 0.05)

    async def run():
        app = App()
        stubborn = asyncio.Event()

        async def ignores(scope, receive, send):
            if scope["type"] == "lifespan":
                await app.lifespan(receive, send)
                return
            app.running.set()
            while not stubborn.is_set():
                with contextlib.suppress(asyncio.CancelledError):
                    await stubborn.wait()

        async with working(ignores) as (worker, task):
            client = await Client.connect(worker)
            client.send("/")
            await app.running.wait()
            worker.drain("quick", 0)
            await task
            await client.close()
            stubborn.set()
            await asyncio.sleep(0)
        assert app.events == ["shutdown"]

    runner(run())
    assert "1 requests ignore their cancellation" in caplog.text


def test_a_shutdown_that_hangs_is_left_behind_in_time(runner, monkeypatch, caplog):
    monkeypatch.setattr(drain_module, "SHUTDOWN", 0.05)

    async def run():
        app = App(shutdown=asyncio.Event().wait)
        async with working(app) as (worker, task):
            worker.drain("quick", 0)
            await task
        assert app.events == ["shutdown"]

    runner(run())
    assert "took too long" in caplog.text


def test_a_shutdown_that_raises_is_logged_with_its_traceback(runner, caplog):
    async def fails():
        raise ValueError("unsaved")

    async def run():
        async with working(App(shutdown=fails)) as (worker, task):
            worker.drain("stop")
            await task

    runner(run())
    assert "the application's shutdown failed: ValueError: unsaved" in caplog.text
    assert "in fails" in caplog.text


def test_a_drain_requested_while_the_application_starts_gives_up_the_start(runner):
    async def run():
        entered, left = asyncio.Event(), []

        async def app(scope, receive, send):
            entered.set()
            try:
                await asyncio.Event().wait()
            finally:
                left.append(True)

        worker = Worker(app)
        starting = asyncio.create_task(worker.server.start())
        await entered.wait()
        worker.drain("stop")
        with pytest.raises(asyncio.CancelledError):
            await starting
        worker.listener.sock.close()
        assert left

    runner(run())


def test_the_beat_goes_on_while_draining(runner):
    async def run():
        app = App()
        async with working(app) as (worker, task):
            assert worker.row[BEAT]
            client = await Client.connect(worker)
            client.send("/slow")
            await app.running.wait()
            worker.drain("stop")
            before = worker.row[BEAT]
            while worker.row[BEAT] == before:
                await asyncio.sleep(0.01)
            app.release.set()
            await client.answer()
            await client.close()
            await task

    runner(run())


def test_the_request_limit_is_reported_once_and_the_worker_serves_on(runner):
    async def run():
        async with working(App(), max_requests=3) as (worker, _):
            client = await Client.connect(worker)
            for _ in range(5):
                client.send("/")
                await client.answer()
            assert worker.limits == [3]
            await client.close()

    runner(run())


def test_the_jitter_spreads_the_request_limits_of_workers():
    def limit():
        worker = Worker(App(), max_requests=1000, max_requests_jitter=500)
        worker.listener.sock.close()
        return worker.server._request_limit()

    limits = {limit() for _ in range(50)}
    assert len(limits) > 1
    assert all(1000 <= limit <= 1500 for limit in limits)
