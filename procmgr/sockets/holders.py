"""Who holds an address, as far as /proc tells: for the error line only, so every gap in /proc means "unknown".

The kernel lists sockets with their inode in /proc/net (proc_net(5)); a process that has one open shows it as the link
`socket:[inode]` in /proc/PID/fd. Both may be hidden (ProcSubset=pid, another user's process); the search is bounded.
"""

from __future__ import annotations

import os
import socket
from ipaddress import IPv4Address, IPv6Address, ip_address
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Final

from procmgr.sockets.address import TCP, Abstract, Bindable, Unix

if TYPE_CHECKING:
    from collections.abc import Iterator

PROC: Final = Path("/proc")
_MAX_ROWS: Final = 65_536
_MAX_DESCRIPTORS: Final = 65_536
_LISTEN: Final = "0A"


def holder(address: Bindable, *, proc: Path = PROC) -> str | None:
    """Return "pid 123 (name)" of a process that listens where `address` would, None if that cannot be found out.

    If it is this process, that is said too.
    """
    inodes = set(_tcp_inodes(address, proc) if isinstance(address, TCP) else _unix_inodes(address, proc))
    return _describe_owner({f"socket:[{inode}]" for inode in inodes}, proc) if inodes else None


def _rows(path: Path) -> Iterator[list[str]]:
    try:
        with path.open(encoding="utf-8", errors="replace") as table:
            for line in islice(table, 1, _MAX_ROWS):
                yield line.split()
    except OSError:
        return


def _tcp_inodes(address: TCP, proc: Path) -> Iterator[str]:
    for table in ("tcp", "tcp6"):
        for row in _rows(proc / "net" / table):
            if len(row) > 9 and row[3] == _LISTEN and _conflicts(row[1], address):
                yield row[9]


def _conflicts(local: str, address: TCP) -> bool:
    """Tell whether the kernel's `ADDRESS:PORT` in hex stands in the way of `address`."""
    raw, _, port = local.partition(":")
    if int(port, 16) != address.port:
        return False
    listening, wanted = _kernel_ip(raw), _ip(address.host)
    return wanted is None or listening.is_unspecified or wanted.is_unspecified or listening == wanted


def _kernel_ip(raw: str) -> IPv4Address | IPv6Address:
    # 32-bit words, each printed in host byte order.
    words = [int(raw[at : at + 8], 16) for at in range(0, len(raw), 8)]
    return ip_address(b"".join(socket.htonl(word).to_bytes(4, "big") for word in words))


def _ip(host: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(host)
    except ValueError:
        return None


def _unix_inodes(address: Unix | Abstract, proc: Path) -> Iterator[str]:
    wanted = f"@{address.name}" if isinstance(address, Abstract) else address.path
    for row in _rows(proc / "net" / "unix"):
        if len(row) > 7 and " ".join(row[7:]) == wanted:
            yield row[6]


def _describe_owner(links: set[str], proc: Path) -> str | None:
    # The lowest pid first: among an arbiter and its workers that is most often the arbiter.
    budget = _MAX_DESCRIPTORS
    for process in sorted(_processes(proc), key=lambda path: int(path.name)):
        for link in islice(_links(process / "fd"), budget):
            budget -= 1
            if link in links:
                return _describe(process)
    return None


def _processes(proc: Path) -> list[Path]:
    try:
        return [path for path in proc.iterdir() if path.name.isdecimal()]
    except OSError:
        return []


def _links(directory: Path) -> Iterator[str]:
    try:
        for path in directory.iterdir():
            yield str(path.readlink())
    except OSError:
        return


def _describe(process: Path) -> str:
    try:
        name = (process / "comm").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return f"pid {process.name}"
    # A name of a host that is an address listened on already, or an address that a reload widens.
    ourselves = ", this procmgr itself" if process.name == str(os.getpid()) else ""
    return f"pid {process.name} ({name}){ourselves}"
