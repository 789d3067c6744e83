"""What /proc(5) says about processes: parents, sessions, states, names and credentials."""

from __future__ import annotations

import ctypes
import os
import select
import signal
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_PIDFD_GETFD = 438  # the same number on every architecture


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """One row of /proc: the fields of stat that the tests need."""

    pid: int
    comm: str
    state: str
    parent: int
    session: int


def process(pid: int) -> Process | None:
    """Return what /proc says about `pid`, None if there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes().decode(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    head, _, tail = text.rpartition(")")
    fields = tail.split()
    return Process(pid=pid, comm=head.partition("(")[2], state=fields[0], parent=int(fields[1]), session=int(fields[3]))


def processes() -> list[Process]:
    """Return every process that is not a zombie."""
    found = (process(int(entry.name)) for entry in Path("/proc").iterdir() if entry.name.isdecimal())
    return [each for each in found if each is not None and each.state not in "ZX"]


def in_session(session: int) -> list[Process]:
    """Return the living members of a session, whoever is their parent by now."""
    return [each for each in processes() if each.session == session]


def children(pid: int) -> list[Process]:
    """Return the living children of `pid`."""
    return [each for each in processes() if each.parent == pid]


def zombies_of(pid: int) -> list[int]:
    """Return the children of `pid` that died and were not reaped."""
    found = (process(int(entry.name)) for entry in Path("/proc").iterdir() if entry.name.isdecimal())
    return [each.pid for each in found if each is not None and each.state == "Z" and each.parent == pid]


def status(pid: int) -> dict[str, list[str]]:
    """Return /proc/PID/status as name → words."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: rest.split() for name, _, rest in (line.partition(":") for line in lines)}


def wait_dead(pids: list[int], timeout: float) -> list[int]:
    """Wait until every process of `pids` is gone, or `timeout` seconds; return those that are left."""
    left: dict[int, int] = {}
    poller = select.poll()
    for pid in pids:
        with suppress(ProcessLookupError):
            fd = os.pidfd_open(pid)
            left[fd] = pid
            poller.register(fd, select.POLLIN)
    try:
        while left and (ready := poller.poll(timeout * 1000)):
            for fd, _ in ready:
                poller.unregister(fd)
                os.close(fd)
                del left[fd]
        return sorted(left.values())
    finally:
        for fd in left:
            os.close(fd)


def eventually(holds: Callable[[], bool], seconds: float = 20.0) -> bool:
    """Look until `holds`; only for what the kernel knows and nobody announces, such as a port that became free."""
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            return False
        select.select([], [], [], 0.01)
    return True


def kill_session(session: int) -> None:
    """KILL what is left of a session, each by its pid, held by a pidfd while its session is looked at again."""
    for each in in_session(session):
        with suppress(ProcessLookupError):
            fd = os.pidfd_open(each.pid)
            try:
                again = process(each.pid)
                if again is not None and again.session == session:
                    signal.pidfd_send_signal(fd, signal.SIGKILL)
            finally:
                os.close(fd)


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 that nobody has.

    It lies below the ephemeral range, so that no client's connection takes it before the daemon does.
    """
    first, last = 10_000, 32_000
    start = first + (os.getpid() * 131 + int.from_bytes(os.urandom(2), "big")) % (last - first)
    for port in (*range(start, last), *range(first, start)):
        if port_is_free(port):
            return port
    raise AssertionError("no free port")


def port_is_free(port: int) -> bool:
    """Tell whether somebody could listen on the port now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(("127.0.0.1", port))
            sock.listen(1)
        except OSError:
            return False
        return True


def files_of(pid: int) -> list[str]:
    """Return what each descriptor of a process refers to; nothing once it is gone."""
    found: list[str] = []
    with suppress(FileNotFoundError, ProcessLookupError):
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(FileNotFoundError):
                found.append(str(link.readlink()))
    return found


def sockets_of(pid: int) -> set[int]:
    """Return the inodes of the sockets that a process has open."""
    return {int(file[len("socket:[") : -1]) for file in files_of(pid) if file.startswith("socket:[")}


def datagram_sockets() -> set[str]:
    """Return the Unix datagram sockets of this network namespace, as descriptors refer to them (proc(5), net/unix)."""
    rows = (line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:])
    return {f"socket:[{row[6]}]" for row in rows if row[4] == "0002"}


def listening(port: int) -> set[int]:
    """Return the inodes of the sockets that listen on an IPv4 port."""
    rows = (line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:])
    return {int(row[9]) for row in rows if row[3] == "0A" and int(row[1].rpartition(":")[2], 16) == port}


def unfinished(port: int) -> int:
    """Return how many connections to a local IPv4 port are open, or closed with data that the peer has not taken."""
    rows = (line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:])
    return sum(row[3] in {"01", "04", "08"} and int(row[1].rpartition(":")[2], 16) == port for row in rows)


def borrow(pid: int, inode: int) -> socket.socket:
    """Return a copy of the socket with that inode out of another process (pidfd_getfd(2))."""
    fd = next(
        int(link.name) for link in Path(f"/proc/{pid}/fd").iterdir() if str(link.readlink()) == f"socket:[{inode}]"
    )
    libc = ctypes.CDLL(None, use_errno=True)
    pidfd = os.pidfd_open(pid)
    try:
        copy = libc.syscall(_PIDFD_GETFD, pidfd, fd, 0)
    finally:
        os.close(pidfd)
    if copy < 0:
        raise OSError(ctypes.get_errno(), "pidfd_getfd")
    return socket.socket(fileno=copy)


def limit(pid: int, name: str) -> tuple[str, str]:
    """Return the soft and hard value of a row of /proc/PID/limits."""
    rows = Path(f"/proc/{pid}/limits").read_text().splitlines()
    soft, hard = next(row[len(name) :].split()[:2] for row in rows if row.startswith(name))
    return soft, hard


def resident(pid: int) -> tuple[int, int]:
    """Return what a process holds and its peak since `forget_peak`, KiB."""
    rows = status(pid)
    return int(rows["VmRSS"][0]), int(rows["VmHWM"][0])


def forget_peak(pid: int) -> None:
    """Let the peak of what a process holds begin anew (proc(5), clear_refs)."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")
