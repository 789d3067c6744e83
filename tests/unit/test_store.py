"""Listeners kept by systemd: taken back by address, kept alive at the end, shut down once they are not wanted."""

import os
import socket

import pytest

from procmgr.arbiter.listeners import Listeners
from procmgr.arbiter.store import Store
from procmgr.errors import BindError
from procmgr.sockets import TCP, Origin, Unix
from procmgr.systemd import Notifier, stored_name


class Manager:
    """The service manager's store: what it keeps, by name."""

    def __init__(self, path):
        self.path = path
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.sock.bind(str(path))
        self.kept = {}

    def start(self):
        """Return the listeners of a service that starts now, to be opened."""
        self.hear()
        passed = {name: os.dup(fd) for name, fd in self.kept.items()}
        self.store = Store(Notifier(address=str(self.path), stores=True), passed=passed)
        return Listeners(store=self.store)

    def hear(self):
        while True:
            try:
                message, fds, _, _ = socket.recv_fds(self.sock, 4096, 4)
            except BlockingIOError:
                return
            fields = dict(line.split("=", 1) for line in message.decode().split("\n"))
            if "FDSTORE" in fields:
                self.kept[fields["FDNAME"]] = fds[0]
            else:
                os.close(self.kept.pop(fields["FDNAME"]))

    def close(self):
        self.sock.close()
        for fd in self.kept.values():
            os.close(fd)


@pytest.fixture
def manager(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = Manager(tmp_path / "notify")
    yield made
    made.close()


def opened(listeners, *addresses):
    return listeners.open(addresses, backlog=8, umask=None)


def connects(address):
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as client:
        return client.connect_ex(address) == 0


def test_a_connection_that_is_queued_while_nobody_runs_is_accepted_by_the_next(manager, tmp_path):
    addresses = (TCP("127.0.0.1", 0), Unix("own.sock", mode=0o600))
    first = manager.start()
    made = opened(first, *addresses)
    where = [each.sock.getsockname() for each in made]
    first.leave()
    manager.hear()
    clients = [socket.create_connection(where[0]), socket.socket(socket.AF_UNIX)]
    clients[1].connect(where[1])
    second = manager.start()
    again = opened(second, *addresses)
    for listener, client in zip(again, clients, strict=True):
        listener.sock.accept()[0].close()
        client.close()
    assert [each.requested for each in again] == [each.requested for each in made]
    assert [each.address for each in again] == [each.address for each in made]
    assert [each.origin for each in again] == [Origin.BOUND] * 2
    second.keep(())
    assert not (tmp_path / "own.sock").exists(), "it is procmgr's own, whichever start has made it"


def test_an_address_that_a_reload_takes_away_is_gone_at_once_and_from_the_store(manager):
    listeners = manager.start()
    port = opened(listeners, TCP("127.0.0.1", 0))[0].address.port
    manager.hear()
    listeners.keep(())
    assert not connects(("127.0.0.1", port)), "although systemd has not closed its copy yet"
    manager.hear()
    assert manager.kept == {}


def test_what_the_new_configuration_does_not_want_is_in_nobodys_way(manager):
    first = manager.start()
    port = opened(first, TCP("127.0.0.1", 0))[0].address.port
    first.leave()
    second = manager.start()
    wanted = TCP("", port)
    manager.store.sweep([wanted])
    opened(second, wanted)
    manager.hear()
    assert list(manager.kept) == [stored_name(f":{port}")]
    second.keep(())


def test_a_stored_socket_whose_file_is_gone_is_bound_anew(manager, tmp_path):
    address = Unix("own.sock")
    first = manager.start()
    opened(first, address)
    first.leave()
    (tmp_path / "own.sock").unlink()
    second = manager.start()
    opened(second, address)
    assert connects(str(tmp_path / "own.sock"))
    second.keep(())


def test_a_refused_start_leaves_what_is_stored_to_the_next(manager):
    kept = TCP("127.0.0.1", 0)
    first = manager.start()
    where = opened(first, kept)[0].sock.getsockname()
    first.leave()
    second = manager.start()
    with pytest.raises(BindError):
        opened(second, kept, Unix("missing/own.sock"))
    assert connects(where)
    third = manager.start()
    assert opened(third, kept)[0].sock.getsockname() == where
    third.keep(())


def test_what_is_stored_under_a_name_of_ours_and_is_no_listener_is_let_go(manager):
    reader, writer = os.pipe()
    address = TCP("127.0.0.1", 0)
    manager.kept[stored_name(str(address))] = writer
    listeners = manager.start()
    opened(listeners, address)
    manager.kept[stored_name("old")] = os.dup(writer)
    manager.start()
    manager.store.sweep([address])
    listeners.leave()
    os.close(reader)
