"""Memory pressure as systemd has it watched: what is opened, what is written, when it is heard, what it costs."""

import base64
import os
import select
import socket

import pytest

from procmgr.arbiter.pressure import PressureWatch, urgency_of


class Loop:
    """Calls back by hand."""

    def __init__(self):
        self.watched = {}

    def watch(self, fd, callback):
        self.watched[fd] = callback

    def unwatch(self, fd):
        del self.watched[fd]

    def turn(self):
        for fd, callback in list(self.watched.items()):
            if select.select([fd], [], [], 0)[0]:
                callback(1)


class Watch:
    """A watch, what it heard, and its clock."""

    def __init__(self, **environ):
        self.loop, self.heard, self.time = Loop(), 0, 100.0
        self.watch = PressureWatch(environ=environ, loop=self.loop, now=lambda: self.time, on_pressure=self.hear)

    def hear(self):
        self.heard += 1

    def after(self, seconds):
        """Return how often it was heard until then."""
        self.time += seconds
        self.loop.turn()
        return self.heard


@pytest.fixture
def fifo(tmp_path):
    path = tmp_path / "fifo"
    os.mkfifo(path)
    return str(path)


def press(path):
    end = os.open(path, os.O_RDWR)
    os.write(end, b"x")
    os.close(end)


@pytest.mark.parametrize("environ", [{}, {"MEMORY_PRESSURE_WATCH": ""}, {"MEMORY_PRESSURE_WATCH": "/dev/null"}])
def test_nothing_is_watched_where_nobody_asks(environ):
    assert not Watch(**environ).watch.active


def test_a_fifo_is_heard_when_it_has_something_to_read(fifo):
    watch = Watch(MEMORY_PRESSURE_WATCH=fifo)
    assert watch.watch.active
    assert watch.after(10) == 0
    press(fifo)
    assert watch.after(10) == 1
    assert watch.after(10) == 1
    watch.watch.close()


def test_pressure_that_goes_on_is_heard_every_two_seconds(fifo):
    watch = Watch(MEMORY_PRESSURE_WATCH=fifo)
    for _ in range(8):
        press(fifo)
        watch.after(0.5)
    assert watch.heard == 2
    watch.watch.close()


def test_a_socket_is_told_the_threshold_and_left_alone_once_it_ends(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind("sock")
        listener.listen(1)
        threshold = base64.b64encode(b"some 1 2").decode()
        watch = Watch(MEMORY_PRESSURE_WATCH="sock", MEMORY_PRESSURE_WRITE=threshold)
        with listener.accept()[0] as manager:
            assert manager.recv(100) == b"some 1 2"
            manager.send(b"!")
            assert watch.after(10) == 1
        assert watch.after(10) == 1
        assert watch.loop.watched == {}


def test_a_file_gets_the_default_threshold(tmp_path):
    # epoll takes no regular file, only the kernel's own: so it is refused here, after the threshold was written.
    path = tmp_path / "memory.pressure"
    path.touch()
    assert not Watch(MEMORY_PRESSURE_WATCH=str(path)).watch.active
    assert path.read_bytes() == b"some 200000 2000000"


def test_urgent_data_is_heard():
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as ours:
        theirs, _ = server.accept()
        with theirs, urgency_of(theirs.fileno()) as urgent:
            ours.send(b"plain")
            assert select.select([urgent], [], [], 0)[0] == []
            ours.send(b"!", socket.MSG_OOB)
            assert select.select([urgent], [], [], 20)[0] == [urgent]


@pytest.mark.parametrize(
    "environ",
    [
        {"MEMORY_PRESSURE_WATCH": "/nowhere"},
        {"MEMORY_PRESSURE_WATCH": "/"},
        {"MEMORY_PRESSURE_WATCH": "a\0b"},
        {"MEMORY_PRESSURE_WATCH": "/dev/zero", "MEMORY_PRESSURE_WRITE": "%"},
    ],
)
def test_what_cannot_be_watched_is_said_and_does_no_harm(environ, caplog):
    watch = Watch(**environ)
    assert not watch.watch.active
    assert "memory pressure is not watched" in caplog.text
