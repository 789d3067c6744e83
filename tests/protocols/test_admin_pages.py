"""The admin pages by themselves: that no crowd of visitors, nor a want of descriptors, keeps the loop from its work."""

from __future__ import annotations

import errno
import logging
import os
import socket
from contextlib import suppress
from types import SimpleNamespace

import pytest
from support.fakeloop import FakeLoop

from procmgr import sockets
from procmgr.arbiter.accepting import Accepting
from procmgr.arbiter.visitors import Page, Visitors

ASKS = b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n"


class Pages:
    """`Visitors` whose pages the test makes, and counts."""

    def __init__(self, path) -> None:
        self.path = path
        self.loop = FakeLoop()
        self.made = 0
        self.socks = []
        self.visitors = Visitors(
            sockets.bind(sockets.Unix(str(path)), backlog=128),
            loop=self.loop,
            now=lambda: self.loop.now,
            page=self._page,
        )

    def _page(self, path) -> Page:
        self.made += 1
        return Page(text=f"{path} {self.made}\n")

    def ask(self, data=ASKS) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        self.socks.append(sock)
        sock.connect(str(self.path))
        sock.settimeout(5)
        sock.sendall(data)
        return sock

    def close(self) -> None:
        self.visitors.leave()
        self.visitors.listener.sock.close()
        for sock in self.socks:
            sock.close()
        self.loop.close()


@pytest.fixture
def pages(tmp_path):
    made = Pages(tmp_path / "admin.sock")
    yield made
    made.close()


def answer(sock):
    return b"".join(iter(lambda: sock.recv(65536), b""))


def test_one_page_is_made_in_a_turn_however_many_ask_for_one(pages):
    asking = [pages.ask() for _ in range(40)]
    for _ in range(60):
        before = pages.made
        pages.loop.turn()
        assert pages.made <= before + 1
    assert all(answer(sock).startswith(b"HTTP/1.1 200") for sock in asking)


def test_the_first_page_is_made_in_the_turn_in_which_it_is_asked_for(pages):
    sock = pages.ask()
    pages.loop.turn(2)  # one accepts
    assert answer(sock).endswith(b"/metrics 1\n")


def test_no_page_is_made_for_whom_newcomers_have_pushed_out(pages):
    for _ in range(20):
        for _ in range(16):
            pages.ask()
        pages.loop.turn()
    made = pages.made
    sock = pages.ask()
    pages.loop.turn(made + 2 + 64)
    assert answer(sock).startswith(b"HTTP/1.1 200")
    assert pages.made <= made + 64


def test_who_closes_its_half_before_the_answer_has_it_nevertheless(pages):
    sock = pages.ask()
    pages.ask()
    sock.shutdown(socket.SHUT_WR)
    pages.loop.turn(4)
    assert answer(sock).startswith(b"HTTP/1.1 200")


def test_visitors_who_went_or_whose_time_is_over_are_let_go_of(pages):
    pages.ask().close()
    pages.ask(b"GET /met")
    pages.loop.turn(3)
    pages.loop.now += 11
    pages.visitors.sweep(pages.loop.now)
    assert pages.loop.watched == 1


def test_a_want_of_descriptors_is_said_once_and_the_listener_rests(caplog):
    loop, tries = FakeLoop(), []

    def accept():
        tries.append(loop.now)
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    ours, theirs = socket.socketpair()
    with ours, theirs, caplog.at_level(logging.WARNING, "procmgr.error"):
        theirs.send(b"x")  # it stays readable, as a listener does whose queue nobody empties
        listener = SimpleNamespace(sock=SimpleNamespace(fileno=ours.fileno, accept=accept))
        Accepting(listener, loop=loop, now=lambda: loop.now, admit=print, what="a guest")
        for _ in range(100):
            loop.turn(5)
            loop.now += 0.1
        with suppress(OSError):
            loop.close()
    assert len(tries) == 100
    assert [record.getMessage() for record in caplog.records] == ["cannot accept a guest: Too many open files"]
