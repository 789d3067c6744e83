"""Listeners that outlive the arbiter: those it bound, kept by systemd from one start of the service to the next.

Rules: a stored listener is taken back by the address that was asked for, if it still listens there; its socket file
stays when the service ends. What is stored and no longer wanted is shut down as well as forgotten: systemd lets go of
its copy a little later, and until then the address would be in use, and clients would queue for nobody.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from procmgr import sockets, systemd
from procmgr.errors import BindError
from procmgr.sockets import Listener, Origin, Unix

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from procmgr.sockets import Address, Bindable
    from procmgr.systemd import Notifier


class Store:
    """What systemd keeps; `passed` are the descriptors, by name, that it kept from the last start."""

    def __init__(self, notifier: Notifier, *, passed: Mapping[str, int] = MappingProxyType({})) -> None:
        self._notifier = notifier
        self._passed = dict(passed)
        self._kept: set[str] = set()

    def sweep(self, wanted: Iterable[Address]) -> None:
        """Let go of what was stored for other addresses than those `wanted`, which they may be in the way of."""
        names = {systemd.stored_name(str(address)) for address in wanted}
        for name in self._passed.keys() - names:
            self._end(name, self._passed.pop(name))

    def take(self, address: Bindable, *, backlog: int) -> Listener | None:
        """Return the listener that was stored for `address`, None if there is none that can be reached."""
        name = systemd.stored_name(str(address))
        fd = self._passed.pop(name, None)
        if fd is None:
            return None
        listener = _again(fd, address, backlog)
        if listener is None:
            self._end(name, fd)
        else:
            self._kept.add(name)
        return listener

    def keep(self, listener: Listener) -> None:
        """Have `listener` kept if procmgr bound it; what is kept already is not kept twice."""
        bound = listener.origin is Origin.BOUND
        if self._notifier.stores and bound and self._notifier.store(listener.sock.fileno(), _name(listener)):
            self._kept.add(_name(listener))

    def keeps(self, listener: Listener) -> bool:
        """Tell whether `listener` stays open when the arbiter ends."""
        return listener.origin is Origin.BOUND and _name(listener) in self._kept

    def drop(self, listener: Listener) -> None:
        """Have `listener`, which is about to be closed for good, kept no longer."""
        if self.keeps(listener):
            self._kept.remove(_name(listener))
            _shut_down(listener.sock)
            self._notifier.forget(_name(listener))

    def _end(self, name: str, fd: int) -> None:
        try:
            sock = socket.socket(fileno=fd)
        except OSError:  # no socket, whoever has put it there
            os.close(fd)
        else:
            with sock:
                _shut_down(sock)
        self._notifier.forget(name)


def _name(listener: Listener) -> str:
    return systemd.stored_name(listener.name)


def _shut_down(sock: socket.socket) -> None:
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RD)  # ends listening, whoever holds a copy


def _again(fd: int, address: Bindable, backlog: int) -> Listener | None:
    """Return the listener on `fd`, None if it is none or its socket file is gone; then `fd` stays open."""
    try:
        adopted = sockets.adopt(fd)
    except BindError:
        return None
    found, inode = adopted.address, None
    if isinstance(found, Unix) and isinstance(address, Unix):
        found = Unix(found.path, address.mode, address.owner, address.group)
        inode = _socket_file(found.path)
        if inode is None:
            adopted.sock.detach()
            return None
    adopted.sock.listen(backlog)  # it may be another one now
    return Listener(sock=adopted.sock, address=found, requested=address, origin=Origin.BOUND, inode=inode)


def _socket_file(path: str) -> tuple[int, int] | None:
    try:
        return sockets.file_identity(path) if Path(path).is_socket() else None
    except OSError:
        return None
