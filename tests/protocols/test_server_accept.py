"""Accepting from a shared listener: fair, patient when descriptors run out, and nothing queued is lost at a stop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import socket
from pathlib import Path

import pytest
import uvloop

from procmgr.sockets import TCP, Listener, Origin, bind
from procmgr.worker.acceptor import PAUSE, Acceptor

log = logging.getLogger("procmgr.error")


@pytest.fixture(params=["uvloop", "asyncio"])
def runner(request):
    factory = uvloop.new_event_loop if request.param == "uvloop" else asyncio.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        yield lambda coroutine: runner.run(asyncio.wait_for(coroutine, 20))


@pytest.fixture
def listener():
    listener = bind(TCP("127.0.0.1", 0), backlog=128)
    yield listener
    listener.sock.close()


def sibling(listener, origin=Origin.BOUND):
    """Return what another process holds of the same listener: a descriptor of the same open file description."""
    sock = listener.sock.dup()
    return Listener(sock=sock, address=listener.address, requested=listener.requested, origin=origin)


class Greeter(asyncio.Protocol):
    """Says `word` to each connection and counts it."""

    def __init__(self, word, transports):
        self.word = word
        self.transports = transports

    def connection_made(self, transport):
        self.transports.append(transport)
        transport.write(self.word)
        transport.close()


def acceptor(listener, word=b"hello", transports=None, *, alone=False):
    made = [] if transports is None else transports
    loop = asyncio.get_running_loop()
    return Acceptor(loop=loop, listener=listener, factory=lambda: Greeter(word, made), log=log, alone=alone)


@contextlib.contextmanager
def queued(listener, count):
    """Open connections that lie in the listener's queue."""
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(socket.socket()) for _ in range(count)]
        for client in clients:
            client.connect((listener.address.host, listener.address.port))
            client.settimeout(0)
        yield clients


async def heard(clients):
    """Return what the server said on each connection, to its end; an exception counts as what it said."""
    loop = asyncio.get_running_loop()

    async def one(client):
        data = b""
        while chunk := await loop.sock_recv(client, 100):
            data += chunk
        return data

    return await asyncio.gather(*map(one, clients), return_exceptions=True)


def test_a_burst_is_shared_by_those_who_accept(runner, listener):
    async def run():
        first, second = acceptor(listener, b"first"), acceptor(sibling(listener), b"second")
        with queued(listener, 40) as clients:
            first.start()
            second.start()
            said = await heard(clients)
        first.close()
        second.close()
        assert said.count(b"first") == said.count(b"second") == 20

    runner(run())


def test_who_is_alone_takes_what_there_is_at_once(runner, listener):
    async def run():
        first, second = acceptor(listener, b"first", alone=True), acceptor(sibling(listener), b"second")
        with queued(listener, 40) as clients:
            first.start()
            second.start()
            said = await heard(clients)
        first.close()
        second.close()
        assert said.count(b"first") >= 32
        assert len(said) == said.count(b"first") + said.count(b"second")

    runner(run())


def test_who_was_alone_shares_with_whom_it_is_told_of(runner, listener):
    async def run():
        first, second = acceptor(listener, b"first", alone=True), acceptor(sibling(listener), b"second")
        first.share(alone=False)
        with queued(listener, 40) as clients:
            first.start()
            second.start()
            said = await heard(clients)
        first.close()
        second.close()
        assert said.count(b"first") == said.count(b"second") == 20

    runner(run())


def test_a_listener_closed_here_still_serves_elsewhere(runner, listener):
    async def run():
        leaving, staying = acceptor(sibling(listener), b"leaving"), acceptor(listener, b"staying")
        leaving.start()
        staying.start()
        leaving.close()
        with queued(listener, 4) as clients:
            assert await heard(clients) == [b"staying"] * 4
        staying.close()

    runner(run())


def test_the_queue_is_taken_before_the_last_descriptor_closes(runner, listener):
    async def run():
        with queued(listener, 100) as clients:
            stopping = acceptor(listener)
            stopping.take_queue()
            stopping.close()
            await stopping.settled()
            assert await heard(clients) == [b"hello"] * 100

    runner(run())


def test_the_queue_of_an_inherited_listener_is_left_to_its_holder(runner, listener):
    async def run():
        with queued(listener, 3) as clients:
            stopping = acceptor(sibling(listener, Origin.INHERITED), b"stopping")
            stopping.take_queue()
            stopping.close()
            successor = acceptor(listener, b"successor")
            successor.start()
            assert await heard(clients) == [b"successor"] * 3
            successor.close()

    runner(run())


@contextlib.contextmanager
def no_descriptor_left():
    """Let this process open nothing more: unused numbers below the highest in use are filled, it becomes the limit."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(entry.name) for entry in Path("/proc/self/fd").iterdir())
    filler = [os.open("/dev/null", os.O_RDONLY)]
    while filler[-1] <= highest:
        filler.append(os.open("/dev/null", os.O_RDONLY))
    resource.setrlimit(resource.RLIMIT_NOFILE, (filler[-1] + 1, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for fd in filler:
            os.close(fd)


def test_out_of_descriptors_connections_wait_and_it_is_said_once(runner, listener, caplog):
    async def run():
        accepting = acceptor(listener)
        with queued(listener, 5) as clients:
            hearing = asyncio.create_task(heard(clients))
            with no_descriptor_left():
                accepting.start()
                while not caplog.records:
                    await asyncio.sleep(0)
                await asyncio.sleep(3 * PAUSE)  # time for what must not happen
                assert not hearing.done()
            assert await hearing == [b"hello"] * 5
        accepting.close()

    runner(run())
    assert [record.getMessage() for record in caplog.records] == [
        f"cannot accept on {listener.name}: Too many open files; new connections wait"
    ]


def test_an_acceptor_closed_while_it_pauses_does_not_start_again(runner, listener):
    async def run():
        accepting = acceptor(sibling(listener), b"closed")
        with queued(listener, 1) as clients:
            with no_descriptor_left():
                accepting.start()
                await asyncio.sleep(0)
                await asyncio.sleep(0)
            accepting.close()
            other = acceptor(listener, b"other")
            other.start()
            assert await heard(clients) == [b"other"]
            other.close()

    runner(run())


def test_a_peer_that_is_gone_before_it_is_handed_over_is_no_error(runner, listener, caplog):
    async def run():
        with queued(listener, 3) as clients:
            for client in clients:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        accepting = acceptor(listener)
        accepting.start()
        with queued(listener, 1) as clients:
            assert await heard(clients) == [b"hello"]
        accepting.close()
        await accepting.settled()

    runner(run())
    assert not caplog.records
