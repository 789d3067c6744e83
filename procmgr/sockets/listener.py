"""What a listener is, and the one rule for removing the file it left behind."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Self

from procmgr.handover import Descriptor
from procmgr.plain import record
from procmgr.sockets.address import TCP, Abstract, Address, Bindable, Unix


class Origin(Enum):
    """Who made a listener: it decides whether its path may be unlinked."""

    BOUND = "bound"
    INHERITED = "inherited"


@record
class ListenerEstate:
    """A listener as it is handed over; see `Listener`."""

    fd: Descriptor
    address: Bindable
    requested: Address
    origin: Origin
    inode: tuple[int, int] | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Listener:
    """A listening stream socket.

    `address` is where it really listens (port 0 resolved), `requested` is how the configuration asked for it, and
    `inode` is (st_dev, st_ino) of the socket file procmgr made, else None.
    """

    sock: socket.socket
    address: Bindable
    requested: Address
    origin: Origin
    inode: tuple[int, int] | None = None

    @classmethod
    def adopt(cls, estate: ListenerEstate) -> Self:
        """Take over a listener of the arbiter before this one; raises `OSError`."""
        sock = socket.socket(fileno=estate.fd.number)  # of its real family: CPython asks the kernel
        sock.settimeout(0)
        return cls(
            sock=sock, address=estate.address, requested=estate.requested, origin=estate.origin, inode=estate.inode
        )

    def hand_over(self) -> ListenerEstate:
        """Return what `adopt` needs."""
        return ListenerEstate(
            fd=Descriptor(self.sock.fileno()),
            address=self.address,
            requested=self.requested,
            origin=self.origin,
            inode=self.inode,
        )

    @property
    def name(self) -> str:
        """The configuration's spelling: it stays the same when a listener is handed to a successor."""
        return str(self.requested)


def file_identity(path: str) -> tuple[int, int]:
    """Return (st_dev, st_ino) of what is at `path`, symbolic links not followed; raises OSError."""
    status = Path(path).lstat()
    return status.st_dev, status.st_ino


def local_address(sock: socket.socket) -> Bindable | None:
    """Return where `sock` is bound, None if it is not bound."""
    name = sock.getsockname()
    if sock.family == socket.AF_UNIX:
        return _unix_address(name)
    return TCP(name[0], name[1]) if name[1] else None


def _unix_address(name: str | bytes) -> Bindable | None:
    # CPython gives abstract names as bytes with the leading NUL, paths as str; a path may hold any byte but NUL.
    if isinstance(name, bytes):
        return Abstract(name[1:].decode(errors="backslashreplace")) if name else None
    return Unix(name) if name else None


def unlink(listener: Listener) -> bool:
    """Remove the socket file of a listener that procmgr bound, if it is still the file procmgr made.

    Returns whether a file was removed. One that cannot be removed stays: the next start replaces it as stale.
    """
    if listener.origin is not Origin.BOUND or not isinstance(listener.address, Unix) or listener.inode is None:
        return False
    try:
        if file_identity(listener.address.path) != listener.inode:
            return False
        Path(listener.address.path).unlink()
    except OSError:
        return False
    return True
