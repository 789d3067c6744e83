"""The arbiter's listeners: what stays open, what is handed over, and what is forgotten."""

from __future__ import annotations

import os
import socket

import pytest

from procmgr.arbiter.listeners import Listeners, ListenersEstate
from procmgr.arbiter.store import Store
from procmgr.errors import ConfigError
from procmgr.plain import dump, load
from procmgr.sockets import TCP, Inherited, SystemdName, Unix
from procmgr.systemd import Notifier


def unused():
    """Return a store that keeps nothing."""
    return Store(Notifier(address=None))


def handed_over(listeners):
    """Return a successor that got descriptors of its own, as if it were another program."""
    estate = load(ListenersEstate, dump(listeners.hand_over()))
    data = dump(estate)
    for each in data["open"]:
        each["fd"]["number"] = os.dup(each["fd"]["number"])
    return Listeners.adopt(load(ListenersEstate, data), store=unused())


def test_a_successor_has_the_same_listeners_under_the_same_addresses(tmp_path):
    addresses = (TCP("127.0.0.1", 0), Unix(str(tmp_path / "a,b"), mode=0o600))
    first = Listeners(store=unused())
    made = first.open(addresses, backlog=8, umask=None)
    successor = handed_over(first)
    again = successor.open(addresses, backlog=8, umask=None)
    assert [each.address for each in again] == [each.address for each in made]
    assert [(each.origin, each.inode, each.requested) for each in again] == [
        (each.origin, each.inode, each.requested) for each in made
    ]
    assert [each.sock.family for each in again] == [socket.AF_INET, socket.AF_UNIX]
    successor.keep(())
    assert not (tmp_path / "a,b").exists(), "it unlinks what its predecessor bound"
    first.keep(())


def test_what_systemd_passed_and_nobody_uses_is_handed_over_too():
    with socket.create_server(("127.0.0.1", 0)) as used, socket.create_server(("127.0.0.1", 0)) as spare:
        numbers = {"used": os.dup(used.fileno()), "spare": os.dup(spare.fileno())}
        first = Listeners(store=unused(), inherited=tuple(numbers.items()))
        first.open([SystemdName("used")], backlog=8, umask=None)
        assert [name for name, _ in first.hand_over().inherited] == ["spare"]
        first.open([SystemdName("spare")], backlog=8, umask=None)
        first.keep(())


def test_the_number_of_a_closed_listener_is_not_taken_for_what_systemd_passed():
    with socket.create_server(("127.0.0.1", 0)) as passed:
        first = Listeners(store=unused(), inherited=(("web", os.dup(passed.fileno())),))
        first.open([SystemdName("web")], backlog=8, umask=None)
        first.keep(())
        assert first.hand_over() == ListenersEstate(open=(), inherited=(), strangers=())


def test_a_descriptor_that_two_addresses_name_is_refused_and_stays_open():
    with socket.create_server(("127.0.0.1", 0)) as passed:
        fd = os.dup(passed.fileno())
        listeners = Listeners(store=unused(), inherited=(("web", fd),))
        for addresses in ((Inherited(fd), SystemdName("web")), (SystemdName("web"), Inherited(fd))):
            listeners.open(addresses[:1], backlog=8, umask=None)
            with pytest.raises(
                ConfigError, match=rf"^bad address {addresses[1]}: it is descriptor {fd}, as {addresses[0]} is"
            ):
                listeners.open(addresses, backlog=8, umask=None)
            assert os.fstat(fd)
            assert listeners.held(addresses[:1])[0].sock.fileno() == fd
            listeners.keep(())
            fd = os.dup2(passed.fileno(), fd)
            listeners = Listeners(store=unused(), inherited=(("web", fd),))
        os.close(fd)
