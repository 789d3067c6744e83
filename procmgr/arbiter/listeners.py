"""The listening sockets that the arbiter holds, by address.

Rules: what stays is never closed, what is new is bound before anything old is let go, and opening is all or nothing: a
set with one bad address leaves everything as it was. Only what procmgr bound is ever closed for good or unlinked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from procmgr import sockets
from procmgr.errors import BindError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from procmgr.sockets import Address, Listener


class Listeners:
    """Opens, keeps and closes listeners; `inherited` are the (name, descriptor) pairs that systemd passed."""

    def __init__(self, *, inherited: tuple[tuple[str, int], ...] = ()) -> None:
        self._inherited = inherited
        self._open: dict[Address, tuple[Listener, ...]] = {}

    def open(self, addresses: Iterable[Address], *, backlog: int, umask: int | None) -> tuple[Listener, ...]:
        """Return the listeners for `addresses`, binding those that are not open yet.

        Raises `BindError` or `PrivilegeError` and closes again what this call has bound.
        """
        fresh: dict[Address, tuple[Listener, ...]] = {}
        try:
            for address in addresses:
                if address not in self._open and address not in fresh:
                    fresh[address] = self._bind(address, backlog, umask)
        except BaseException:
            _close(fresh.values())
            raise
        self._open.update(fresh)
        return tuple(listener for address in dict.fromkeys(addresses) for listener in self._open[address])

    def keep(self, addresses: Iterable[Address]) -> None:
        """Close every listener whose address is not among `addresses`."""
        wanted = set(addresses)
        gone = [address for address in self._open if address not in wanted]
        _close([self._open.pop(address) for address in gone])

    def close_in_child(self, keep: tuple[Listener, ...]) -> None:
        """Close the descriptors in a forked child, but for those in `keep`, without unlinking anything."""
        for listeners in self._open.values():
            for listener in listeners:
                if listener not in keep:
                    listener.sock.close()

    def _bind(self, address: Address, backlog: int, umask: int | None) -> tuple[Listener, ...]:
        match address:
            case sockets.Inherited(fd=fd):
                return (sockets.adopt(fd, name=None),)
            case sockets.SystemdName(name=name):
                fds = [fd for known, fd in self._inherited if known == name]
                if not fds:
                    known = ", ".join(sorted({known for known, _ in self._inherited})) or "no socket at all"
                    raise BindError(f"{address}: systemd passed no socket of that name, it passed {known}")
                return tuple(sockets.adopt(fd, name=name) for fd in fds)
            case _:
                return (sockets.bind(address, backlog=backlog, umask=umask),)


def _close(groups: Iterable[tuple[Listener, ...]]) -> None:
    for listeners in groups:
        for listener in listeners:
            sockets.unlink(listener)
            listener.sock.close()
