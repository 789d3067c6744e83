"""WebSockets through the real daemon: frameworks and a real client, reloads, recycling, stops, memory under attack."""

from __future__ import annotations

import re
import zlib
from contextlib import ExitStack
from signal import SIGTERM

import pytest
from support import proc
from support.frames import BINARY, DEFLATE, deflated, frame, handshake
from support.tls import Authority
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

APP = "support.apps.websocket_app:app"
LIBRARIES = pytest.mark.parametrize("ws", ["websockets", "wsproto"])
MIB = 1024  # KiB, as /proc has it


@pytest.fixture
def dial():
    """Return a function that opens a WebSocket, closed at the end of the test."""
    with ExitStack() as stack:

        def open_one(daemon, path, scheme="ws", **options):
            url = f"{scheme}://127.0.0.1:{daemon.port}{path}"
            return stack.enter_context(connect(url, proxy=None, open_timeout=20, **options))

        yield open_one


def ask(websocket, text="hello"):
    """Return the pid of the worker that sent `text` back."""
    websocket.send(text)
    pid, _, said = websocket.recv(timeout=20).partition(" ")
    assert said == text
    return int(pid)


def closed(websocket):
    """Return the code with which the server closes."""
    with pytest.raises(ConnectionClosed) as caught:
        websocket.recv(timeout=20)
    return caught.value.rcvd.code


@LIBRARIES
@pytest.mark.parametrize("framework", ["starlette", "fastapi"])
def test_websocket_routes_of_frameworks_are_served(serve, dial, framework, ws):
    pytest.importorskip(framework)
    daemon = serve("--ws", ws, app=f"support.apps.{framework}_app:app")
    chat = dial(daemon, "/chat/lobby?name=Ann", subprotocols=["v1", "v2"])
    assert chat.subprotocol == "v2"
    assert chat.recv(timeout=20) == "Ann in lobby"
    for text in ("\u20ac", "", "x" * 100_000):
        chat.send(text)
        assert chat.recv(timeout=20) == f"said {text}"
    chat.send("!close")
    assert closed(chat) == 4001
    with pytest.raises(InvalidStatus) as denied:
        dial(daemon, "/chat/secret")
    assert denied.value.response.status_code == 403
    with pytest.raises(InvalidStatus) as denied:
        dial(daemon, "/chat/reasons")
    assert (denied.value.response.status_code, denied.value.response.body) == (402, b"pay first")
    left = dial(daemon, "/chat/lobby?name=Bob")
    left.recv(timeout=20)
    left.close()
    broken = dial(daemon, "/chat/broken?name=Cid")
    assert closed(broken) == 1011
    daemon.logged("broken on purpose")
    assert daemon.stop() == 0
    assert daemon.log.count("Traceback") == 1
    lines = [line for line in daemon.output.splitlines() if "WebSocket" in line]
    assert len(lines) == 3
    assert re.search(r'"WebSocket /chat/lobby\?name=Ann" closed 4001 after \d+\.\d{3}s, 4 in, 4 out$', lines[0])
    assert sum("403 Forbidden" in line or "402 Payment Required" in line for line in daemon.output.splitlines()) == 2


def test_a_reload_leaves_it_the_graceful_period_and_closes_it_with_1012(serve, dial):
    daemon = serve("-w", "2", "--graceful-timeout", "3", app=APP)
    old = set(daemon.workers())
    chats = [dial(daemon, "/echo") for _ in range(4)]
    homes = [ask(chat) for chat in chats]
    daemon.reload()
    assert [ask(chat) for chat in chats] == homes, "the old workers serve what they have"
    assert ask(dial(daemon, "/echo")) not in old, "new ones are for the new workers"
    assert [closed(chat) for chat in chats] == [1012] * 4
    told = [daemon.probe.wait("disconnected").told for _ in chats]
    assert [each["code"] for each in told] == ["1012"] * 4, "the application is told before it is cancelled"
    assert proc.wait_dead(sorted(old), 20.0) == []
    assert "cancelled" not in daemon.log
    assert "Traceback" not in daemon.log


@pytest.mark.parametrize("signal", ["SIGTERM", "SIGINT"])
def test_a_stop_closes_it_with_1012_at_once_and_ends_in_order(serve, dial, signal):
    import signal as signals

    daemon = serve("-w", "2", "--graceful-timeout", "600", app=APP)
    chats = [dial(daemon, "/echo") for _ in range(4)]
    for chat in chats:
        ask(chat)
    daemon.signal(getattr(signals, signal))
    assert [closed(chat) for chat in chats] == [1012] * 4
    assert daemon.join() == 0
    assert [daemon.probe.wait("disconnected").told["code"] for _ in chats] == ["1012"] * 4


def test_a_worker_with_one_is_recycled_behind_its_replacement(serve, dial):
    daemon = serve("--max-requests", "1", "--graceful-timeout", "600", app=APP)
    (old,) = daemon.workers()
    chat = dial(daemon, "/echo")
    assert ask(chat) == old
    daemon.get()
    daemon.until(lambda: len(daemon.workers()) == 2, "the replacement is there")
    assert ask(chat) == old
    assert proc.eventually(lambda: daemon.get()["pid"] != old)


def test_without_websockets_a_handshake_is_served_as_http(serve, dial):
    daemon = serve("--ws", "none", app=APP)
    with pytest.raises(InvalidStatus) as answered:
        dial(daemon, "/echo")
    assert answered.value.response.status_code == 200


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_over_tls_messages_and_both_sides_closes_are_as_without(serve, dial, tmp_path, loop):
    authority = Authority(tmp_path)
    site = authority.write("site", authority.issue("a.test"))
    daemon = serve("--loop", loop, *site.options, app=APP)
    tls = {"scheme": "wss", "ssl": authority.client(), "server_hostname": "a.test"}
    chat = dial(daemon, "/echo", **tls)
    ask(chat, "x" * 300_000)
    chat.close(4001)
    assert daemon.probe.wait("disconnected").told["code"] == "4001"
    daemon.until(lambda: "closed 4001 after" in daemon.output, "the access log has it")
    stopped = dial(daemon, "/echo", **tls)
    ask(stopped)
    daemon.signal(SIGTERM)
    assert closed(stopped) == 1012
    assert daemon.join() == 0
    assert daemon.output.count("closed 1012 after") == 1


# -- memory ----------------------------------------------------------------------------------------------------------


def attack(daemon, fields, bytes_to_send):
    """Send bytes to an application that takes nothing, as long as the server reads; return by how much it grew."""
    (worker,) = daemon.workers()
    warm = daemon.connect()
    warm.sock.sendall(handshake(fields, line=b"GET /deaf HTTP/1.1\r\n"))
    assert b" 101 " in warm.sock.recv(65_536)
    deaf = daemon.probe.wait("deaf")
    proc.forget_peak(worker)
    before, _ = proc.resident(worker)
    sock = warm.sock
    sock.settimeout(0.5)
    sent = 0
    try:
        while sent < len(bytes_to_send):
            sent += sock.send(bytes_to_send[sent : sent + 65_536])
    except TimeoutError:
        pass
    daemon.get()  # the loop is free, so it has done with what it read
    _, peak = proc.resident(worker)
    sock.close()
    deaf.release()
    return peak - before, sent


@LIBRARIES
def test_a_flood_of_tiny_frames_takes_no_memory(serve, ws):
    daemon = serve("--ws", ws, app=APP)
    grown, sent = attack(daemon, b"", frame(BINARY, b"x") * 6_000_000)
    assert sent < 30_000_000, "the server stopped reading"
    assert grown < 32 * MIB


@LIBRARIES
@pytest.mark.parametrize("each", [16 << 20, 1 << 20, 64])
def test_a_deflate_bomb_takes_no_memory(serve, ws, each):
    daemon = serve("--ws", ws, app=APP)
    bomb = frame(BINARY, deflated(bytes(each), zlib.compressobj(9, wbits=-12)), rsv=4)
    grown, sent = attack(daemon, DEFLATE, bomb * (30_000_000 // len(bomb)))
    assert sent < 30_000_000, "the server stopped reading"
    assert grown < 32 * MIB


@LIBRARIES
def test_a_message_in_endless_fragments_takes_no_more_than_its_limit(serve, ws):
    daemon = serve("--ws", ws, app=APP)
    fragments = frame(BINARY, b"x" * 100, fin=False) + frame(0, b"y" * 100, fin=False) * 150_000
    grown, _ = attack(daemon, b"", fragments)
    assert grown < 32 * MIB
