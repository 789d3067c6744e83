"""The control socket by itself: who may connect, and that no client costs more than a bounded amount."""

from __future__ import annotations

import json
import logging
import os
import socket
import stat
from contextlib import suppress

import pytest
from support.fakeloop import FakeLoop

from procmgr import sockets
from procmgr.arbiter import control
from procmgr.arbiter.control import Control, open_socket, try_open
from procmgr.errors import AppError, ProcmgrError


class Server:
    """A `Control` whose answers the test gives."""

    def __init__(self, path) -> None:
        self.path = path
        self.loop = FakeLoop()
        self.asked = []
        self.held = []
        self.socks = []
        self.control = Control(
            listener=open_socket(path), loop=self.loop, now=lambda: self.loop.now, answer=self._answer
        )

    def _answer(self, request, client) -> None:
        self.asked.append(request)
        match request.op:
            case "hold":
                self.held.append(client)
                client.event("accepted")
            case "flood":
                client.end(0, "x" * request.arguments["bytes"])
            case "refuse":
                raise AppError("not today")
            case "fail":
                raise ZeroDivisionError
            case _:
                client.end(0, "done", number=len(self.asked))

    def connect(self) -> socket.socket:
        sock = self.socket()
        sock.connect(str(self.path))
        self.loop.turn()
        return sock

    def socket(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(5)
        self.socks.append(sock)
        return sock

    def close(self) -> None:
        for client in list(self.control._clients.values()):
            self.control._drop(client)
        self.control.leave()
        for sock in self.socks:
            sock.close()
        assert self.loop.watched == 0, "everything that was watched is let go"
        self.loop.close()

    def send(self, sock, data: bytes, turns: int = 3) -> None:
        with suppress(OSError):
            sock.sendall(data)
        self.loop.turn(turns)

    def ask(self, sock, op: str, **arguments) -> dict:
        self.send(sock, json.dumps({"v": 1, "op": op, **arguments}).encode() + b"\n")
        return receive(sock)


def receive(sock) -> dict:
    data = b""
    while not data.endswith(b"\n"):
        piece = sock.recv(1)
        if not piece:
            raise EOFError(data)
        data += piece
    return json.loads(data)


def is_closed(sock) -> bool:
    try:
        while sock.recv(65_536):
            pass
    except ConnectionResetError:
        pass
    return True


@pytest.fixture
def server(tmp_path):
    server = Server(tmp_path / "room" / "control.sock")
    yield server
    server.close()


def test_the_socket_is_for_its_owner_alone_and_so_is_a_directory_made_for_it(server):
    assert stat.S_IMODE(server.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(server.path.parent.stat().st_mode) == 0o700


def test_one_request_after_the_other_is_answered_on_one_connection(server):
    sock = server.connect()
    assert [server.ask(sock, "status")["number"] for _ in range(3)] == [1, 2, 3]


def test_requests_sent_at_once_are_answered_one_a_turn_and_in_order(server):
    sock = server.connect()
    server.send(sock, b'{"v":1,"op":"a"}\n{"v":1,"op":"b"}\n{"v":1,"op":"c"}\n', turns=1)
    assert len(server.asked) < 3, "a client that asks much does not keep the loop from others"
    server.loop.turn(5)
    assert [request.op for request in server.asked] == ["a", "b", "c"]
    assert [receive(sock)["number"] for _ in range(3)] == [1, 2, 3]


def test_a_request_may_come_in_pieces(server):
    sock = server.connect()
    for byte in b'{"v":1,"op":"status"}\n':
        server.send(sock, bytes([byte]), turns=1)
    server.loop.turn()
    assert receive(sock)["exit"] == 0


def test_an_answer_comes_to_who_has_shut_down_its_sending_half(server):
    sock = server.connect()
    sock.sendall(b'{"v":1,"op":"status"}\n')
    sock.shutdown(socket.SHUT_WR)
    server.loop.turn(4)
    assert receive(sock)["exit"] == 0
    assert is_closed(sock)


def test_a_client_that_shut_down_its_sending_half_still_hears_what_it_waits_for(server):
    sock = server.connect()
    server.ask(sock, "hold")
    sock.shutdown(socket.SHUT_WR)
    server.loop.turn(2)
    server.held[0].end(0, "at last")
    assert receive(sock)["text"] == "at last"
    assert is_closed(sock)


@pytest.mark.parametrize("data", [b"\x00\xff garbage\n", b"GET / HTTP/1.1\r\n", b"\n", b'{"v":1}\n', b'{"v":9}\n'])
def test_garbage_is_refused_and_the_connection_goes_on(server, data):
    sock = server.connect()
    server.send(sock, data)
    refused = receive(sock)
    assert (refused["event"], refused["exit"]) == ("end", 2)
    server.loop.turn(3)
    if data.count(b"\n") == 1:
        assert server.ask(sock, "status")["exit"] == 0


def test_a_line_without_end_is_refused_and_the_connection_closed(server):
    sock = server.connect()
    server.send(sock, b"x" * 5000, turns=5)
    assert "4096 bytes" in receive(sock)["text"]
    assert is_closed(sock)
    assert server.asked == []


def test_much_sent_while_an_answer_is_awaited_ends_the_connection(server):
    sock = server.connect()
    server.ask(sock, "hold")
    server.send(sock, b'{"v":1,"op":"status"}\n' * 400, turns=20)
    assert server.held[0].gone
    assert is_closed(sock)


def test_a_client_that_never_reads_is_let_go_at_a_bounded_amount(server):
    sock = server.connect()
    for _ in range(40):
        server.send(sock, b'{"v":1,"op":"flood","bytes":100000}\n')
    assert len(server.asked) < 25, "a megabyte of answers and what the kernel takes"
    assert server.loop.watched == 1, "only the listener is left"
    assert server.ask(server.connect(), "status")["exit"] == 0


def test_a_client_that_reads_slowly_gets_all(server):
    sock = server.connect()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    server.send(sock, b'{"v":1,"op":"flood","bytes":900000}\n')
    data = b""
    while not data.endswith(b"\n"):
        data += sock.recv(16_384)
        server.loop.turn()
    assert len(json.loads(data)["text"]) == 900_000


def test_an_idle_client_is_closed_and_one_that_waits_is_not(server):
    idle, waiting = server.connect(), server.connect()
    server.ask(waiting, "hold")
    server.loop.now += control.IDLE_SECONDS + 1
    server.control.sweep(server.loop.now)
    assert is_closed(idle)
    server.held[0].end(0, "still here")
    assert receive(waiting)["text"] == "still here"


def test_a_client_that_waits_but_does_not_read_is_closed_too(server):
    sock = server.connect()
    server.ask(sock, "hold")
    while not server.held[0].waiting:
        server.held[0].event("step", text="x" * 50_000)
    server.loop.now += control.IDLE_SECONDS + 1
    server.control.sweep(server.loop.now)
    assert server.held[0].gone


def test_one_client_too_many_takes_the_place_of_the_one_that_is_idle_for_longest(server):
    waiting = server.connect()
    server.ask(waiting, "hold")
    socks = []
    for _ in range(control.MAX_CLIENTS - 1):
        server.loop.now += 0.01
        socks.append(server.connect())
    assert server.loop.watched == control.MAX_CLIENTS + 1
    late = server.connect()
    assert server.ask(late, "status")["exit"] == 0, "nobody is told to come again later"
    assert is_closed(socks[0])
    assert server.ask(socks[1], "status")["exit"] == 0
    assert not server.held[0].gone, "who waits for something goes last"


def test_a_refusal_is_answered_with_its_exit_code(server):
    refused = server.ask(server.connect(), "refuse")
    assert (refused["exit"], refused["text"]) == (3, "not today")


def test_a_mistake_in_an_operation_is_logged_and_ends_nothing_but_its_request(server, caplog):
    sock = server.connect()
    with caplog.at_level(logging.ERROR, "procmgr.error"):
        assert server.ask(sock, "fail")["exit"] == 1
    assert "ZeroDivisionError" in caplog.text
    assert server.ask(sock, "status")["exit"] == 0


def test_a_client_that_left_is_forgotten_and_events_for_it_are_nothing(server):
    sock = server.connect()
    server.ask(sock, "hold")
    sock.close()
    server.loop.turn(2)
    server.held[0].event("step", text="x")
    server.held[0].end(0, "x")
    assert server.held[0].gone


def test_out_of_descriptors_accepting_pauses_and_goes_on(server, monkeypatch):
    class Listener:
        def __init__(self, sock) -> None:
            self._sock = sock

        def accept(self):
            raise OSError(24, "Too many open files")

        def __getattr__(self, name):
            return getattr(self._sock, name)

    real = server.control.listener
    poor = sockets.Listener(
        sock=Listener(real.sock), address=real.address, requested=real.requested, origin=real.origin, inode=real.inode
    )
    server.control._accepting.listener = poor
    sock = server.connect()
    assert server.loop.watched == 0, "or the loop would spin on a listener that stays readable"
    server.control._accepting.listener = real
    server.loop.now += 1
    server.loop.turn(2)
    assert server.ask(sock, "status")["exit"] == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_another_user_is_refused_whatever_the_permissions_of_the_file(server, caplog, monkeypatch):
    server.path.chmod(0o666)
    server.path.parent.chmod(0o755)
    monkeypatch.chdir(server.path.parent)  # the directories above are root's alone
    sock = server.socket()
    os.seteuid(65_534)
    try:
        sock.connect(server.path.name)
    finally:
        os.seteuid(0)
    server.send(sock, b'{"v":1,"op":"status"}\n')
    refused = receive(sock)
    assert refused["exit"] == 77
    assert "65534" in refused["text"]
    assert server.asked == []
    assert "uid 65534" in caplog.text


def test_a_live_socket_is_not_stolen(server, caplog):
    assert try_open(str(server.path), None) is None
    assert "already in use" in caplog.text
    assert server.ask(server.connect(), "status")["exit"] == 0
    assert caplog.records[-1].levelname == "WARNING"


def test_that_another_has_the_default_path_is_no_warning(server, caplog):
    caplog.set_level("INFO")
    assert try_open(None, server.path) is None
    assert "already in use" in caplog.text
    assert caplog.records[-1].levelname == "INFO"


def test_a_stale_socket_is_replaced(tmp_path):
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    listener = try_open(str(path), None)
    assert listener is not None
    sockets.unlink(listener)
    listener.sock.close()


def test_a_file_that_is_no_socket_is_left_alone(tmp_path, caplog):
    path = tmp_path / "control.sock"
    path.write_text("precious")
    assert try_open(str(path), None) is None
    assert path.read_text() == "precious"
    assert str(path) in caplog.text


def test_the_socket_of_somebody_who_took_the_path_meanwhile_is_not_unlinked(tmp_path):
    server = Server(tmp_path / "control.sock")
    server.path.unlink()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(server.path))
        server.control.leave()
        assert server.path.is_socket()
    server.loop.close()


@pytest.mark.parametrize("path", ["/proc/none/control.sock", f"/tmp/{'x' * 120}.sock", "/dev/null/x/c.sock"])
def test_a_path_that_cannot_be_is_one_warning_and_keeps_nothing_from_starting(path, caplog):
    assert try_open(path, None) is None
    assert len(caplog.records) == 1
    assert caplog.records[0].levelno == logging.WARNING


def test_without_a_runtime_directory_it_is_off_with_one_info_line(caplog):
    with caplog.at_level(logging.INFO, "procmgr.error"):
        assert try_open(None, None) is None
    assert [record.levelno for record in caplog.records] == [logging.INFO]
    assert "--control" in caplog.text


def test_off_is_off_without_a_word(tmp_path, caplog):
    with caplog.at_level(logging.DEBUG, "procmgr.error"):
        assert try_open("off", tmp_path / "control.sock") is None
    assert caplog.text == ""
    assert not (tmp_path / "control.sock").exists()


def test_errors_raised_by_opening_are_refusals(tmp_path):
    with pytest.raises(ProcmgrError, match=r"cannot make the directory .*/a/b"):
        open_socket(tmp_path / "a" / "b" / "control.sock")
