"""`Server` on the caller's loop, and `run` in a process of its own: started, stopped, refused, cleaned up."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest
from support.embedded import Client, serving

import procmgr
from procmgr import Config, Server
from procmgr.errors import AppError, BindError, ConfigError

ROOT = Path(procmgr.__file__).parents[1]


class App:
    def __init__(self):
        self.events = []
        self.running = asyncio.Event()

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan":
            await receive()
            self.events.append("startup")
            await send({"type": "lifespan.startup.complete"})
            await receive()
            self.events.append("shutdown")
            await send({"type": "lifespan.shutdown.complete"})
            return
        if scope["path"] == "/hang":
            self.running.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.events.append("cancelled")
                raise
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"hello"})


def bounded(coroutine):
    async def run():
        async with asyncio.timeout(20):
            await coroutine

    asyncio.run(run())


async def get(server, path="/"):
    async with httpx.AsyncClient(trust_env=False) as client:
        return (await client.get(server.urls[0] + path)).text


def test_it_serves_on_the_callers_loop_until_should_exit():
    async def run():
        app = App()
        async with serving(app) as server:
            assert server.started
            assert await get(server) == "hello"
        assert app.events == ["startup", "shutdown"]

    bounded(run())


def test_shutdown_waits_until_all_is_done():
    async def run():
        app = App()
        server = Server(Config(app, port=0))
        task = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0)
        await server.shutdown()
        assert app.events == ["startup", "shutdown"]
        await task

    bounded(run())


def test_shutdown_of_a_server_that_does_not_serve_returns():
    bounded(Server(Config(App())).shutdown())


def test_a_server_told_to_exit_before_it_serves_starts_nothing():
    async def run():
        app = App()
        server = Server(Config(app, port=0))
        server.should_exit = True
        await server.serve()
        assert not server.started
        assert app.events == []

    bounded(run())


def test_a_stop_while_the_application_starts_gives_up_the_start():
    async def run():
        entered = asyncio.Event()

        async def app(scope, receive, send):
            entered.set()
            await asyncio.Event().wait()

        server = Server(Config(app, port=0))
        task = asyncio.create_task(server.serve())
        await entered.wait()
        server.should_exit = True
        await task
        assert not server.started

    bounded(run())


def test_a_stop_just_after_the_applications_startup_still_runs_its_shutdown():
    """The stop finds the start complete on the application's side, but the server not yet told."""

    async def run():
        events = []

        async def app(scope, receive, send):
            await receive()
            server.should_exit = True
            await send({"type": "lifespan.startup.complete"})
            events.append((await receive())["type"])
            await send({"type": "lifespan.shutdown.complete"})

        server = Server(Config(app, port=0))
        await server.serve()
        assert events == ["lifespan.shutdown"]

    bounded(run())


def test_a_server_serves_once():
    async def run():
        async with serving(App()) as server:
            with pytest.raises(RuntimeError, match="serves once"):
                await server.serve()
        with pytest.raises(RuntimeError, match="serves once"):
            await server.serve()

    bounded(run())


def test_cancelling_serve_cancels_requests_and_runs_the_applications_shutdown():
    async def run():
        app = App()
        server = Server(Config(app, port=0))
        task = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0)
        client = await Client.connect(server)
        client.send("/hang")
        await app.running.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await client.close()
        assert app.events == ["startup", "cancelled", "shutdown"]

    bounded(run())


def test_should_exit_may_be_set_from_another_thread_than_the_one_that_serves():
    server = Server(Config(App(), port=0))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        threading.Event().wait(0.001)
    assert httpx.get(server.urls[0], trust_env=False).text == "hello"
    server.should_exit = True
    thread.join(20)
    assert not thread.is_alive()


def test_sockets_that_are_given_are_served_and_closed():
    async def run():
        sock = socket.socket()
        sock.bind(("127.0.0.1", 0))
        server = Server(Config(App()))
        task = asyncio.create_task(server.serve(sockets=[sock]))
        while not server.started:
            await asyncio.sleep(0)
        assert server.urls == ("http://{}:{}".format(*sock.getsockname()),)
        assert await get(server) == "hello"
        await server.shutdown()
        await task
        assert sock.fileno() == -1

    bounded(run())


def test_a_unix_socket_is_served_and_removed(tmp_path):
    async def run():
        path = tmp_path / "app.sock"
        transport = httpx.AsyncHTTPTransport(uds=str(path))
        async with serving(App(), uds=path, port=None), httpx.AsyncClient(transport=transport) as client:
            assert (await client.get("http://any/")).text == "hello"
        assert not path.exists()

    bounded(run())


def test_a_port_in_use_is_a_bind_error_and_the_application_is_not_started():
    async def run():
        app = App()
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            with pytest.raises(BindError):
                await Server(Config(app, port=taken.getsockname()[1])).serve()
        assert app.events == []

    bounded(run())


def test_a_failed_startup_is_an_app_error_and_leaves_no_listener():
    async def run():
        async def app(scope, receive, send):
            await receive()
            await send({"type": "lifespan.startup.failed", "message": "no database"})

        server = Server(Config(app, port=0))
        with pytest.raises(AppError, match="no database"):
            await server.serve()
        assert server._listeners[0].sock.fileno() == -1

    bounded(run())


def test_the_request_limit_ends_an_embedded_server():
    async def run():
        app = App()
        server = Server(Config(app, port=0, limit_max_requests=2))
        task = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0)
        await get(server)
        await get(server)
        await task
        assert app.events == ["startup", "shutdown"]

    bounded(run())


def test_access_lines_go_through_the_callers_logging(caplog):
    async def run():
        async with serving(App(), access_log=True) as server:
            await get(server, "/path?q=1")

    with caplog.at_level(logging.INFO, "procmgr.access"):
        bounded(run())
    (record,) = [record for record in caplog.records if record.name == "procmgr.access"]
    assert record.args[1:] == ("GET", "/path?q=1", "1.1", 200)


def test_signal_handlers_are_installed_only_when_asked_and_put_back():
    async def run(install, during):
        server = Server(Config(App(), port=0, install_signal_handlers=install))
        task = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0)
        during(server)
        await server.shutdown()
        await task

    before = [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)]
    seen = []

    async def both():
        for install in (False, True):
            await run(install, lambda _: seen.append(signal.getsignal(signal.SIGTERM)))

    asyncio.run(both())
    assert seen[0] is before[1]
    assert seen[1] is not before[1]
    assert [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)] == before


SCRIPT = """
import sys
import procmgr

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        print("shutdown", flush=True)
        await send({"type": "lifespan.shutdown.complete"})

async def failing(scope, receive, send):
    raise ValueError("no database")

if __name__ == "__main__":
    KEYWORDS = {"port": 0, "access_log": False}
    sys.exit(procmgr.run(TARGET, **KEYWORDS))
"""


def script(tmp_path, target, keywords="{}"):
    path = tmp_path / "script.py"
    path.write_text(SCRIPT.replace("TARGET", target).replace("**KEYWORDS", f"**KEYWORDS | {keywords}"))
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.Popen(
        [sys.executable, str(path)],
        cwd=tmp_path,
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_until_ready(process):
    for line in process.stderr:
        if "all workers are ready" in line or "serving on" in line:
            return
    raise AssertionError("it ended before it was ready")


@pytest.mark.parametrize("target", ["app", "'script:app'"])
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_run_stops_on_a_signal_after_the_applications_shutdown_and_returns_0(tmp_path, target, signum):
    with script(tmp_path, target) as process:
        wait_until_ready(process)
        process.send_signal(signum)
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (0, "shutdown\n"), err


@pytest.mark.parametrize("target", ["failing", "'script:failing'"])
def test_run_returns_3_when_the_application_does_not_start_and_says_why(tmp_path, target):
    with script(tmp_path, target, "{'lifespan': 'on'}") as process:
        _, err = process.communicate(timeout=60)
    assert process.returncode == 3, err
    assert "ValueError: no database" in err


def test_a_run_that_is_killed_leaves_no_daemon(tmp_path):
    """The pipe ends when the last process that holds it does."""
    with script(tmp_path, "'script:app'") as process:
        wait_until_ready(process)
        process.kill()
        assert process.communicate(timeout=20)[0] == "shutdown\n"


def test_a_wsgi_application_is_served_on_the_callers_loop(caplog):
    pytest.importorskip("a2wsgi")

    def wsgi(environ, start_response):
        start_response("200 OK", [("Content-Length", "2")])
        return [b"on"]

    async def run():
        async with serving(wsgi, interface="wsgi", threads=2) as server:
            assert await get(server) == "on"

    bounded(run())
    assert "lifespan" not in caplog.text


def test_a_missing_extra_is_one_line_and_nothing_is_served(monkeypatch):
    async def run():
        monkeypatch.setitem(sys.modules, "a2wsgi", None)
        with pytest.raises(ConfigError, match=r"interface: wsgi needs a2wsgi: pip install 'procmgr\[wsgi\]'"):
            await Server(Config(lambda environ, start_response: [], interface="wsgi", port=0)).serve()

    bounded(run())
