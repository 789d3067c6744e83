"""Taking over a listener that another program made: say what a descriptor is before trusting it."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
from pathlib import Path
from typing import Final

from procmgr.errors import BindError
from procmgr.sockets.address import Bindable, Inherited, SystemdName
from procmgr.sockets.listener import Listener, Origin, local_address

_FILE_KINDS: Final = (
    (stat.S_ISREG, "a regular file"),
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISCHR, "a character device"),
    (stat.S_ISBLK, "a block device"),
)
_FAMILIES: Final = {socket.AF_INET: "TCP", socket.AF_INET6: "TCP", socket.AF_UNIX: "Unix"}
_STANDARD_STREAMS: Final = 3


def adopt(fd: int, *, name: str | None = None, backlog: int = 2048) -> Listener:
    """Take over the stream listener on descriptor `fd`, which belongs to the returned listener from then on.

    `name` is the one systemd gave it. A bound socket that does not listen yet is made to, with `backlog`, as uvicorn
    does. One on a standard stream moves to a number above 2 and leaves /dev/null in its place, because sys.stdin and
    its like close their number on their own account. The socket becomes non-blocking and close-on-exec.

    Raises BindError, which says what `fd` is, when it cannot serve as a listener; the descriptor is then untouched.
    """
    requested = Inherited(fd) if name is None else SystemdName(name)
    label = f"fd {fd}" if name is None else f"fd {fd} (systemd:{name})"
    sock = _as_socket(fd, label)
    try:
        address = _validate(sock, label)
        _listen(sock, label, backlog)
    except BaseException:
        sock.detach()
        raise
    sock = _move_off_standard_stream(sock)
    sock.set_inheritable(False)
    sock.settimeout(0)
    return Listener(sock=sock, address=address, requested=requested, origin=Origin.INHERITED)


def _as_socket(fd: int, label: str) -> socket.socket:
    try:
        status = os.fstat(fd)
    except OSError as error:
        raise BindError(f"{label} is not open; pass a listening socket under this number") from error
    if not stat.S_ISSOCK(status.st_mode):
        raise BindError(f"{label} is {_describe_file(fd, status.st_mode)}, not a listening TCP or Unix socket")
    # Without a family given, CPython asks the kernel for SO_DOMAIN, SO_TYPE and SO_PROTOCOL.
    return socket.socket(fileno=fd)


def _describe_file(fd: int, mode: int) -> str:
    kind = next((text for matches, text in _FILE_KINDS if matches(mode)), "no socket")
    try:
        return f"{kind} {Path(f'/proc/self/fd/{fd}').readlink()}"
    except OSError:
        return kind


def _validate(sock: socket.socket, label: str) -> Bindable:
    family = _FAMILIES.get(sock.family)
    if family is None or sock.type != socket.SOCK_STREAM:
        raise BindError(f"{label} is {_describe_socket(sock)}, not a listening TCP or Unix stream socket")
    if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) and _is_connected(sock):
        raise BindError(f"{label} is a connected {family} socket, not a listening one")
    address = local_address(sock)
    if address is None:
        raise BindError(f"{label} is a {family} socket that is not bound; call bind() and listen() on it first")
    return address


def _describe_socket(sock: socket.socket) -> str:
    kind = getattr(sock.type, "name", str(sock.type))
    if sock.family in {socket.AF_INET, socket.AF_INET6}:
        return "a UDP socket" if sock.type == socket.SOCK_DGRAM else f"an IP socket of type {kind}"
    return f"a socket of family {getattr(sock.family, 'name', sock.family)} and type {kind}"


def _is_connected(sock: socket.socket) -> bool:
    try:
        sock.getpeername()
    except OSError as error:
        # EINVAL: it was connected and has been shut down.
        return error.errno != errno.ENOTCONN
    return True


def _listen(sock: socket.socket, label: str, backlog: int) -> None:
    if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        return  # again would replace the queue length its maker chose
    try:
        sock.listen(backlog)
    except OSError as error:
        raise BindError(f"{label} is bound but cannot listen: {error.strerror}; call listen() on it first") from error


def _move_off_standard_stream(sock: socket.socket) -> socket.socket:
    fd = sock.fileno()
    if fd >= _STANDARD_STREAMS:
        return sock
    moved = socket.socket(fileno=fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _STANDARD_STREAMS))
    sock.detach()
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    os.dup2(null, fd)  # dup2 closes the old number; left open it would hold the port after every listener is closed
    os.close(null)
    return moved
