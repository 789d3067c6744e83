"""The listening sockets that the arbiter holds, by address.

Rules: what stays is never closed, what is new is bound before anything old is let go, and opening is all or nothing: a
set with one bad address leaves everything as it was. Only what procmgr bound is ever closed for good or unlinked. Where
systemd keeps descriptors (see `store`), what procmgr bound stays open for the next start.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING, Self

from procmgr import sockets
from procmgr.errors import BindError, ConfigError
from procmgr.handover import Descriptor
from procmgr.plain import record
from procmgr.sockets import Listener, ListenerEstate

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from procmgr.arbiter.store import Store
    from procmgr.sockets import Address


@record
class ListenersEstate:
    """The listeners as they are handed over, and what systemd or any starter passed and nobody listens on yet."""

    open: tuple[ListenerEstate, ...]
    inherited: tuple[tuple[str, Descriptor], ...]
    strangers: tuple[Descriptor, ...]


class Listeners:
    """Opens, keeps and closes listeners.

    `inherited` are the (name, descriptor) pairs that systemd passed, `strangers` all descriptors that were open when
    the arbiter started. A stranger may become a listener by a reload, so the arbiter keeps it; a child does not.
    """

    def __init__(
        self,
        *,
        store: Store,
        inherited: tuple[tuple[str, int], ...] = (),
        strangers: frozenset[int] = frozenset(),
    ) -> None:
        self._store = store
        self._inherited = inherited
        self._strangers = set(strangers)
        self._open: dict[Address, tuple[Listener, ...]] = {}

    @classmethod
    def adopt(cls, estate: ListenersEstate, *, store: Store) -> Self:
        """Take over listeners, which are bound already; raises `OSError`."""
        inherited = tuple((name, fd.number) for name, fd in estate.inherited)
        strangers = frozenset(fd.number for fd in estate.strangers)
        listeners = cls(store=store, inherited=inherited, strangers=strangers)
        for each in estate.open:
            listener = Listener.adopt(each)
            listeners._open[each.requested] = (*listeners._open.get(each.requested, ()), listener)
            store.keep(listener)  # a predecessor may not have
        return listeners

    def hand_over(self) -> ListenersEstate:
        """Return what `adopt` needs."""
        held = [listener for listeners in self._open.values() for listener in listeners]
        taken = {listener.sock.fileno() for listener in held}
        waiting = [(name, Descriptor(fd)) for name, fd in self._inherited if fd not in taken]
        return ListenersEstate(
            open=tuple(each.hand_over() for each in held),
            inherited=tuple(waiting),
            strangers=tuple(Descriptor(fd) for fd in sorted(self._strangers)),
        )

    def held(self, addresses: Iterable[Address]) -> tuple[Listener, ...]:
        """Return the listeners for `addresses`, all of which are open; raises `KeyError`."""
        return tuple(listener for address in dict.fromkeys(addresses) for listener in self._open[address])

    def open(self, addresses: Iterable[Address], *, backlog: int, umask: int | None) -> tuple[Listener, ...]:
        """Return the listeners for `addresses`, binding those that are neither open yet nor stored.

        Raises `BindError`, `PrivilegeError` or `ConfigError` and closes again what this call has bound.
        """
        fresh: dict[Address, tuple[Listener, ...]] = {}
        try:
            for address in addresses:
                if address not in self._open and address not in fresh:
                    fresh[address] = self._bind(address, backlog, umask, fresh)
        except BaseException:
            self._leave(fresh.values())
            raise
        for listeners in fresh.values():
            for listener in listeners:
                self._store.keep(listener)
        self._open.update(fresh)
        return self.held(addresses)

    def keep(self, addresses: Iterable[Address]) -> None:
        """Close every listener whose address is not among `addresses`."""
        wanted = set(addresses)
        gone = [self._open.pop(address) for address in list(self._open) if address not in wanted]
        closed = {listener.sock.fileno() for listeners in gone for listener in listeners}
        self._inherited = tuple((name, fd) for name, fd in self._inherited if fd not in closed)
        self._close(gone)

    def leave(self) -> None:
        """Close every listener at the end of the service; what is stored waits as it is for the next start."""
        self._leave(self._open.values())
        self._open.clear()

    def close_in_child(self, keep: tuple[Listener, ...]) -> None:
        """Close the descriptors in a forked child, but for those in `keep`, without unlinking anything."""
        for listeners in self._open.values():
            for listener in listeners:
                if listener not in keep:
                    listener.sock.close()
        for fd in self._strangers:
            with suppress(OSError):
                os.close(fd)

    def _bind(
        self, address: Address, backlog: int, umask: int | None, fresh: Mapping[Address, tuple[Listener, ...]]
    ) -> tuple[Listener, ...]:
        match address:
            case sockets.Inherited(fd=fd):
                self._refuse_twice(address, fd, fresh)
                return (self._adopt(fd, None, backlog),)
            case sockets.SystemdName(name=name):
                fds = [fd for known, fd in self._inherited if known == name]
                if not fds:
                    known = ", ".join(sorted({known for known, _ in self._inherited})) or "no socket at all"
                    raise BindError(f"{address}: systemd passed no socket of that name, it passed {known}")
                for fd in fds:
                    self._refuse_twice(address, fd, fresh)
                return tuple(self._adopt(fd, name, backlog) for fd in fds)
            case _:
                stored = self._store.take(address, backlog=backlog)
                return (stored or sockets.bind(address, backlog=backlog, umask=umask),)

    def _refuse_twice(self, address: Address, fd: int, fresh: Mapping[Address, tuple[Listener, ...]]) -> None:
        """Refuse a descriptor that is a listener already: each of the two would close it under the other."""
        for known, listeners in (*self._open.items(), *fresh.items()):
            if any(listener.sock.fileno() == fd for listener in listeners):
                raise ConfigError(f"bad address {address}: it is descriptor {fd}, as {known} is; name it only once")

    def _adopt(self, fd: int, name: str | None, backlog: int) -> Listener:
        listener = sockets.adopt(fd, name=name, backlog=backlog)
        self._strangers.discard(fd)  # it is the listener's from now on, and its number may be somebody else's one day
        return listener

    def _close(self, groups: Sequence[tuple[Listener, ...]]) -> None:
        for listeners in groups:
            for listener in listeners:
                self._store.drop(listener)
        self._leave(groups)

    def _leave(self, groups: Iterable[tuple[Listener, ...]]) -> None:
        for listeners in groups:
            for listener in listeners:
                if not self._store.keeps(listener):
                    sockets.unlink(listener)
                listener.sock.close()
