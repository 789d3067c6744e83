"""Flask and Django over WSGI behind the real daemon: requests in threads, drains and stops while those run."""

from __future__ import annotations

import hashlib
import json
import signal
import sys

import pytest
from support.ctl import ctl
from support.daemon import ROOT, run
from support.load import Load

from procmgr.errors import ExitCode

pytest.importorskip("a2wsgi")
pytest.importorskip("flask")

NUMBERS = "".join(f"{number}\n" for number in range(100)).encode()
FILE = bytes(range(256)) * 4000
PART = b'--edge\r\nContent-Disposition: form-data; name="file"; filename="a.bin"\r\n\r\n%b\r\n--edge--\r\n' % FILE
MULTIPART = {"Content-Type": "multipart/form-data; boundary=edge"}
FORM = {"Content-Type": "application/x-www-form-urlencoded"}
FLASK = "support.apps.flask_app:app"


def ask(daemon, method, path, body=None, headers=None, *, chunked=False):
    """Return status and body of a request on a fresh connection."""
    connection = daemon.connect()
    if chunked:
        connection.request(method, path, iter([body]), {**headers, "Transfer-Encoding": "chunked"}, encode_chunked=True)
    else:
        connection.request(method, path, body, headers or {})
    response, content = connection.answer()
    return response.status, content


@pytest.mark.parametrize("parser", ["httptools", "h11"])
def test_a_flask_application_is_served(serve, parser):
    daemon = serve("--interface", "wsgi", "-w", "2", "--http", parser, app=FLASK)
    answered = json.loads(ask(daemon, "GET", "/?a=1")[1])
    assert answered.items() >= {"method": "GET", "query": {"a": "1"}, "remote": "127.0.0.1"}.items()
    for chunked in (False, True):
        assert json.loads(ask(daemon, "POST", "/form", b"name=pen&price=2", FORM, chunked=chunked)[1])["name"] == "pen"
        uploaded = json.loads(ask(daemon, "POST", "/upload", PART, MULTIPART, chunked=chunked)[1])
        assert uploaded == {"name": "a.bin", "digest": hashlib.sha256(FILE).hexdigest()}
    assert ask(daemon, "POST", "/echo", FILE)[1] == FILE
    assert ask(daemon, "GET", "/stream")[1] == NUMBERS
    assert b"import Flask" in ask(daemon, "GET", "/file")[1]
    assert ask(daemon, "HEAD", "/file") == (200, b"")
    assert ask(daemon, "GET", "/url?x=1", headers={"Host": "shop"})[1] == b"http://shop/url?x=1"
    assert json.loads(ask(daemon, "GET", "/session", headers={"Cookie": "a=1; b=2"})[1]) == {"a": "1", "b": "2"}
    assert json.loads(ask(daemon, "GET", "/thread")[1]) == {"main": False}
    assert ask(daemon, "GET", "/teapot")[0] == 418
    assert "Traceback" not in daemon.log
    assert ask(daemon, "GET", "/broken")[0] == 500
    daemon.logged("broken on purpose")
    assert '"GET /teapot HTTP/1.1" 418' in daemon.output
    assert daemon.stop() == 0
    assert "lifespan" not in daemon.log


def test_a_django_application_is_served(serve):
    pytest.importorskip("django")
    daemon = serve("--interface", "wsgi", app="support.apps.django_app:wsgi")
    answered = json.loads(ask(daemon, "GET", "/?a=1")[1])
    assert answered == {"method": "GET", "query": {"a": "1"}, "remote": "127.0.0.1"}
    assert json.loads(ask(daemon, "POST", "/form", "name=pen&price=2", FORM)[1]) == {"name": "pen", "price": "2"}
    uploaded = json.loads(ask(daemon, "POST", "/upload", PART, MULTIPART)[1])
    assert (uploaded["name"], uploaded["size"]) == ("a.bin", len(FILE))
    assert b"import django" in ask(daemon, "GET", "/file")[1]
    assert ask(daemon, "GET", "/async")[1] == b"async"
    assert ask(daemon, "GET", "/broken")[0] == 500
    assert daemon.stop() == 0


@pytest.mark.parametrize("options", [("--factory",), ("--preload",), ("--loop", "asyncio"), ("--reset-contextvars",)])
def test_wsgi_goes_with_other_settings(serve, options):
    app = "support.apps.flask_app:create" if "--factory" in options else FLASK
    daemon = serve("--interface", "wsgi", *options, app=app)
    assert json.loads(ask(daemon, "GET", "/thread")[1]) == {"main": False}
    daemon.reload()
    assert json.loads(ask(daemon, "GET", "/thread")[1]) == {"main": False}
    assert daemon.stop() == 0
    assert "WARNING" not in daemon.log


def test_reloads_under_load_lose_no_request(serve, write_app, tmp_path):
    app = write_app(
        "import json, os\n"
        "def app(environ, start_response):\n"
        "    body = environ['wsgi.input'].read() or json.dumps({'pid': os.getpid()}).encode()\n"
        "    start_response('200 OK', [('Content-Length', str(len(body)))])\n"
        "    return [body]\n"
    )
    daemon = serve("--interface", "wsgi", "-w", "2", "--app-dir", str(tmp_path), app=app)
    with Load(daemon.port, keep_alive=8, fresh=4) as load:
        for _ in range(3):
            daemon.reload()
            load.wait_answers(50)
    assert load.result.failures == []
    assert daemon.stop() == 0


def held(daemon):
    connection = daemon.connect()
    connection.request("GET", "/stay")
    return connection, daemon.probe.wait("running")


def test_requests_run_beside_each_other_in_as_many_threads_as_asked_for(serve, tmp_path):
    at = tmp_path / "control"
    daemon = serve("--interface", "wsgi", "--threads", "3", "--control", str(at), app=FLASK)
    running = [held(daemon) for _ in range(3)]
    late = daemon.connect()
    late.request("GET", "/")
    daemon.logged("all 3 threads are busy")
    stacks = ctl("-s", str(at), "stacks").stdout
    assert stacks.count("in stay") == 3, "what the threads are doing can be seen"
    for connection, visit in running:
        visit.release()
        assert connection.answer()[0].status == 200
    assert late.answer()[0].status == 200


def test_a_stop_and_a_reload_let_a_thread_finish(serve):
    daemon = serve("--interface", "wsgi", app=FLASK)
    first, visit = held(daemon)
    daemon.try_reload()
    second, other = held(daemon)
    assert other.pid != visit.pid
    daemon.signal(signal.SIGTERM)
    daemon.wait(lambda message: message.fields.get("STOPPING") == "1", "STOPPING=1")
    for connection, each in ((first, visit), (second, other)):
        each.release()
        assert connection.answer()[0].status == 200
    assert daemon.join() == 0


@pytest.mark.parametrize(("signum", "seconds"), [(signal.SIGTERM, "1"), (signal.SIGINT, "60")])
def test_a_thread_that_does_not_end_delays_a_stop_no_longer_than_requests_do(serve, signum, seconds):
    daemon = serve("--interface", "wsgi", "--graceful-timeout", seconds, app=FLASK)
    connection, _ = held(daemon)
    daemon.signal(signum)
    assert connection.answer()[0].status == 503
    assert daemon.join() == 0
    assert "the thread of GET /stay goes on" in daemon.log
    assert "leaving without them" in daemon.log
    assert "killed" not in daemon.log


def test_a_worker_whose_threads_were_all_left_behind_is_replaced(serve):
    daemon = serve("--interface", "wsgi", "--threads", "2", "--timeout-request", "1", app=FLASK)
    running = [held(daemon) for _ in range(2)]
    for connection, _ in running:
        assert connection.answer()[0].status == 503
    daemon.logged("none of its threads came back")
    daemon.logged(r"worker 2 \(slot 0, pid \d+\) ready")
    for _, visit in running:
        visit.release()
    assert daemon.stop() == 0


def test_a_websocket_handshake_is_a_request_like_others(serve):
    daemon = serve("--interface", "wsgi", app="support.apps.django_app:wsgi")
    fields = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "a"}
    assert ask(daemon, "GET", "/", headers=fields)[0] == 200


def test_a_wsgi_application_without_its_interface_is_told_what_to_say():
    done = run("--check-config", FLASK)
    assert done.returncode == ExitCode.APP_FAILED
    assert done.stderr.splitlines()[-1].endswith("looks like a WSGI application; say so with --interface wsgi")


WITHOUT = (
    "import importlib.util, runpy, sys; find = importlib.util.find_spec\n"
    "importlib.util.find_spec = lambda name, *more: None if name == 'a2wsgi' else find(name, *more)\n"
    "sys.argv = ['procmgr', *sys.argv[1:]]; runpy.run_module('procmgr', run_name='__main__')"
)


@pytest.mark.parametrize(("variable", "code"), [(False, ExitCode.USAGE), (True, ExitCode.CONFIG)])
def test_a_missing_extra_is_one_line_before_anything_is_bound(variable, code, tmp_path):
    import os
    import subprocess

    given = [] if variable else ["--interface", "wsgi"]
    env = {**os.environ, "PYTHONPATH": f"{ROOT}", **({"PROCMGR_INTERFACE": "wsgi"} if variable else {})}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, *given, "-b", f"unix:{tmp_path}/sock", FLASK],
        env=env,
        capture_output=True,
        text=True,
        check=False,
        timeout=20,
    )
    assert done.returncode == code
    assert done.stderr.count("\n") == 1
    assert "pip install 'procmgr[wsgi]'" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_asgi2_application_is_served(serve, write_app, tmp_path):
    app = write_app(
        "from support.testapp import app as plain\n"
        "class app:\n"
        "    def __init__(self, scope):\n"
        "        self.scope = scope\n"
        "        assert scope['asgi']['version'] == '2.0' or scope['type'] == 'lifespan'\n"
        "    async def __call__(self, receive, send):\n"
        "        await plain(self.scope, receive, send)\n"
    )
    for interface in ("auto", "asgi2"):
        daemon = serve("--interface", interface, "--app-dir", str(tmp_path), app=app)
        assert daemon.get("/x")["path"] == "/x"
        assert daemon.stop() == 0
        assert len(daemon.probe.take("startup")) == 1
