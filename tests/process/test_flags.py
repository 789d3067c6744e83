"""What flags of uvicorn's do to requests and responses, and what access lines say, through the real daemon."""

from __future__ import annotations

import json
import re

import pytest
from support.daemon import run
from websockets.sync.client import connect

SCOPE = """
import contextvars, json
seen = contextvars.ContextVar("seen", default="nothing")
seen.set("set while importing")

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        raise RuntimeError("none")
    told = {
        "path": scope["path"],
        "root_path": scope["root_path"],
        "seen": seen.get(),
        "names": sorted(name.decode() for name, _ in scope["headers"]),
    }
    body = json.dumps(told).encode()
    headers = [(b"content-length", str(len(body)).encode()), (b"x-request-id", b"made-up")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
"""
WSGI = """
def app(environ, start_response):
    if environ["PATH_INFO"] == "/broken":
        raise RuntimeError("broken on purpose")
    start_response("200 OK", [])
    return [b"one", b"two"]
"""
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACEPARENT = f"00-{TRACE}-00f067aa0ba902b7-01"


@pytest.fixture
def serving(serve, write_app, tmp_path):
    """Return a function that serves a source with these options."""
    return lambda *options, source=SCOPE: serve("--app-dir", str(tmp_path), *options, app=write_app(source))


def ask(daemon, path="/", **headers):
    connection = daemon.connect()
    connection.request("GET", path, headers={name.replace("0", "_"): value for name, value in headers.items()})
    response, body = connection.answer()
    return response, body


def lines(daemon, count):
    """Return the access lines once there are so many."""
    daemon.until(lambda: len(daemon.output.splitlines()) >= count, f"{count} access lines are written")
    return daemon.output.splitlines()


@pytest.mark.parametrize("parser", ["httptools", "h11"])
def test_headers_of_the_server_are_sent_added_and_left_out(serving, parser):
    daemon = serving("--http", parser)
    response, _ = ask(daemon)
    assert response.headers["server"] == "procmgr"
    assert re.fullmatch(r"\w{3}, \d\d \w{3} \d{4} [\d:]{8} GMT", response.headers["date"])
    daemon = serving(
        "--http", parser, "--no-server-header", "--no-date-header", "--header", "X-A:1", "--header", "X-A: 2"
    )
    response, _ = ask(daemon)
    assert (response.headers["server"], response.headers["date"]) == (None, None)
    assert response.headers.get_all("x-a") == ["1", "2"]
    daemon = serving("--http", parser, "--header", "Server: mine")
    assert ask(daemon)[0].headers.get_all("server") == ["mine"]


def test_a_root_path_is_put_before_the_path(serving):
    told = json.loads(ask(serving("--root-path", "/api"), "/x")[1])
    assert (told["root_path"], told["path"]) == ("/api", "/api/x")


@pytest.mark.parametrize(("options", "seen"), [([], "set while importing"), (["--reset-contextvars"], "nothing")])
@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_requests_run_in_the_servers_context_or_in_an_empty_one(serving, options, seen, loop):
    assert json.loads(ask(serving("--loop", loop, *options))[1])["seen"] == seen


@pytest.mark.parametrize(("options", "kept"), [([], True), (["--underscore-headers", "drop"], False)])
def test_names_with_underscores_can_be_dropped(serving, options, kept):
    names = json.loads(ask(serving(*options), X0A="1", X0Forwarded0For="1")[1])["names"]
    assert ("x_a" in names) is kept
    assert "x_forwarded_for" not in names, "it could pass for a proxy's"


def test_h11_takes_heads_up_to_its_size(serving):
    daemon = serving("--http", "h11", "--h11-max-incomplete-event-size", "2048")
    assert ask(daemon, A="x" * 1000)[0].status == 200
    assert ask(daemon, A="x" * 3000)[0].status == 431


def test_lines_are_json_with_what_came_and_went(serving):
    daemon = serving("--access-log-format", "json", "--access-log-exclude", "/health*")
    ask(daemon, "/healthz")
    ask(daemon, "/a?b=1", traceparent=TRACEPARENT, **{"X-Request-ID": "r1"})
    ask(daemon)
    first, second = map(json.loads, lines(daemon, 2))
    assert (first["method"], first["target"], first["status"]) == ("GET", "/a?b=1", 200)
    assert (first["request_id"], first["trace_id"]) == ("r1", TRACE)
    assert (first["response_bytes"] > 0, first["duration_seconds"] >= 0) == (True, True)
    assert second["request_id"] == "made-up", "that of the response, where the request had none"


def test_lines_of_wsgi_are_like_others(serving):
    pytest.importorskip("a2wsgi")
    daemon = serving("--interface", "wsgi", "--access-log-format", "json", source=WSGI)
    ask(daemon, "/a", traceparent=TRACEPARENT)
    ask(daemon, "/broken")
    first, second = map(json.loads, lines(daemon, 2))
    assert (first["status"], first["response_bytes"], first["trace_id"]) == (200, 6, TRACE)
    assert (second["status"], second["target"]) == (500, "/broken")


@pytest.mark.parametrize(
    ("form", "pattern"),
    [
        ("combined", r'127\.0\.0\.1 - - \[.*\] "GET /echo HTTP/1\.1" 101 - "-" "Python/.*"'),
        ("%(m)s %(U)s %(s)s", "GET /echo 101"),
        ("json", r'\{.*"websocket": \{"code": 1000, "received": 1, "sent": 1\}.*"trace_id": "[0-9a-f]{32}".*\}'),
        ("uvicorn", r'INFO: +127\.0\.0\.1:\d+ - "WebSocket /echo" closed 1000 after \d+\.\d{3}s, 1 in, 1 out'),
    ],
)
def test_a_websocket_has_a_line_in_every_format(serve, form, pattern):
    daemon = serve("--access-log-format", form, app="support.apps.websocket_app:app")
    headers = {"traceparent": TRACEPARENT}
    with connect(f"ws://127.0.0.1:{daemon.port}/echo", proxy=None, additional_headers=headers) as websocket:
        websocket.send("hello")
        websocket.recv(timeout=20)
    (line,) = lines(daemon, 1)
    assert re.fullmatch(pattern, line), line


LOOPS = """
import asyncio
from support.testapp import app

class Loop(asyncio.SelectorEventLoop):
    pass

def make():
    print("made by make", flush=True)
    return Loop()

def fails():
    raise RuntimeError("no loop today")

nothing = lambda: None
number = 3
"""


def test_a_loop_may_be_made_by_a_function(serving):
    daemon = serving("--loop", "site_app:make", source=LOOPS)
    assert daemon.get("/x")["path"] == "/x"
    assert "made by make" in daemon.output
    daemon.reload()
    assert daemon.get("/x")["path"] == "/x"


@pytest.mark.parametrize(
    ("name", "code", "said"),
    [
        ("fails", 3, "loop 'site_app:fails' failed: RuntimeError: no loop today"),
        ("nothing", 3, "loop 'site_app:nothing' returned a NoneType; expected an event loop"),
        ("number", 3, "loop 'site_app:number' cannot be called"),
        ("absent", 4, "no attribute 'absent' for loop 'site_app:absent'"),
    ],
)
def test_a_loop_that_cannot_be_made_is_an_application_that_fails(launch, write_app, tmp_path, name, code, said):
    app = write_app(LOOPS)
    daemon = launch("--app-dir", str(tmp_path), "--boot-attempts", "1", "--loop", f"site_app:{name}", app=app)
    assert daemon.join() == code
    assert said in daemon.log


def test_check_config_looks_for_the_loop_too(write_app, tmp_path):
    app = write_app(LOOPS)
    for name, code in (("make", 0), ("absent", 4)):
        done = run("--check-config", "--app-dir", str(tmp_path), "--loop", f"site_app:{name}", app)
        assert done.returncode == code, done.stderr
