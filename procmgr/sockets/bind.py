"""Binding what the configuration asks for, with every refusal as one line that says what would be right."""

from __future__ import annotations

import errno
import fcntl
import grp
import os
import pwd
import socket
import stat
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, assert_never

from procmgr.errors import AddressInUseError, BindError, ConfigError, PrivilegeError, ProcmgrError
from procmgr.sockets.address import TCP, Abstract, Bindable, Unix
from procmgr.sockets.holders import PROC, holder
from procmgr.sockets.listener import Listener, Origin, file_identity

if TYPE_CHECKING:
    from collections.abc import Iterator

_PATH_BYTES: Final = 107
"""sun_path is 108 bytes with its final NUL (unix(7))."""

_TURN_SECONDS: Final = 0.5
_TURN_PAUSE: Final = 0.001


def bind(address: Bindable, *, backlog: int, umask: int | None = None) -> Listener:
    """Bind and listen.

    A host name becomes one listener, at its IPv4 address where it has one, as uvicorn's and gunicorn's users expect of
    `localhost`. An IPv6 listener takes IPv6 only, so `:8000` and `[::]:8000` stand side by side. `backlog` is the
    length of the listen queue, which the kernel cuts to `somaxconn()`. `umask` replaces the process's own for the
    permissions of a Unix socket; the process's umask changes for a moment, so no other thread should create files
    meanwhile.

    Raises BindError, PrivilegeError where a right is missing, ConfigError for an unknown owner or group.
    """
    match address:
        case TCP():
            return _bind_tcp(address, backlog)
        case Unix():
            return _bind_unix(address, backlog, umask)
        case Abstract():
            return _bind_abstract(address, backlog)
        case _:
            assert_never(address)


def somaxconn(*, proc: Path = PROC) -> int | None:
    """Return the kernel's limit on every listen queue (listen(2)), None where /proc hides it."""
    return _sysctl(proc / "sys/net/core/somaxconn")


def _sysctl(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def _bind_tcp(address: TCP, backlog: int) -> Listener:
    family, target = _resolve(address)
    with _opened(address, family, socket.IPPROTO_TCP) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(target)
        # With SO_REUSEADDR two sockets can be bound to one port: only listen(2) tells that it is taken.
        sock.listen(backlog)
        host, port = sock.getsockname()[:2]
        return Listener(sock=sock, address=TCP(host, port), requested=address, origin=Origin.BOUND)


def _resolve(address: TCP) -> tuple[socket.AddressFamily, tuple[object, ...]]:
    host = address.host or "0.0.0.0"  # noqa: S104 - `:8000` asks for every interface
    try:
        found = socket.getaddrinfo(
            host, address.port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP, flags=socket.AI_PASSIVE
        )
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise BindError(f"cannot bind {address}: host {host!r} does not resolve: {reason}") from error
    family, _, _, _, target = min(found, key=lambda entry: entry[0] != socket.AF_INET)
    return family, target


@contextmanager
def _opened(address: Bindable, family: socket.AddressFamily, proto: int = 0) -> Iterator[socket.socket]:
    """Yield a new non-blocking stream socket; on any error close it and say what was wrong with `address`."""
    try:
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK, proto)
    except OSError as error:
        raise BindError(f"cannot bind {address}: {error.strerror}") from error
    try:
        yield sock
    except OSError as error:
        sock.close()
        raise _refusal(address, error) from error
    except BaseException:
        sock.close()
        raise


def _refusal(address: Bindable, error: OSError) -> ProcmgrError:
    match error.errno:
        case errno.EADDRINUSE:
            return in_use(address)
        case errno.EACCES | errno.EPERM:
            return PrivilegeError(f"cannot bind {address}: permission denied; {_right_hint(address)}")
        case errno.EADDRNOTAVAIL:
            return BindError(f"cannot bind {address}: this machine has no such address; bind one of its own, or :PORT")
        case _:
            return BindError(f"cannot bind {address}: {error.strerror or error}")


def in_use(address: Bindable) -> AddressInUseError:
    """Return the refusal for an address that another socket has, naming who holds it where /proc tells."""
    return AddressInUseError(f"cannot bind {address}: already in use by {holder(address) or 'another process'}")


def _right_hint(address: Bindable) -> str:
    if not isinstance(address, TCP):
        return "procmgr needs write permission on the directory, and to be root or the owner for owner= and group="
    first = _sysctl(PROC / "sys/net/ipv4/ip_unprivileged_port_start") or 1024
    return f"a port below {first} needs root, CAP_NET_BIND_SERVICE or a systemd .socket unit"


def _bind_abstract(address: Abstract, backlog: int) -> Listener:
    with _opened(address, socket.AF_UNIX) as sock:
        sock.bind(b"\0" + os.fsencode(address.name))
        sock.listen(backlog)
        return Listener(sock=sock, address=address, requested=address, origin=Origin.BOUND)


def _bind_unix(address: Unix, backlog: int, umask: int | None) -> Listener:
    # Absolute from here on: whoever unlinks it may have changed directory.
    path = str(Path(address.path).absolute())
    if len(os.fsencode(path)) > _PATH_BYTES:
        raise BindError(f"cannot bind {address}: a socket path has at most {_PATH_BYTES} bytes, this is longer")
    uid, gid = _uid(address), _gid(address)
    real = Unix(path, address.mode, address.owner, address.group)
    with _opened(address, socket.AF_UNIX) as sock, _turn(path):
        _clear_stale(real)
        _bind_with_mode(sock, path, address.mode, umask)
        inode = file_identity(path)
        try:
            _chown(path, uid, gid)
            sock.listen(backlog)
        except OSError:
            Path(path).unlink()
            raise
        return Listener(sock=sock, address=real, requested=address, origin=Origin.BOUND, inode=inode)


def _chown(path: str, uid: int, gid: int) -> None:
    if (uid, gid) != (-1, -1):
        os.chown(path, uid, gid, follow_symlinks=False)


def _bind_with_mode(sock: socket.socket, path: str, mode: int | None, umask: int | None) -> None:
    """Bind so that the file never has wider permissions than it is to have: bind(2) creates it with 0777 & ~umask.

    Binding under another name and renaming would need no umask, but then getsockname(2), /proc/net/unix and the
    application's `server` would show that other name for ever.
    """
    previous = os.umask(0o777)
    try:
        permissions = 0o666 & ~(previous if umask is None else umask) if mode is None else mode
        os.umask(0o777 & ~permissions)
        sock.bind(path)
    finally:
        os.umask(previous)


@contextmanager
def _turn(path: str) -> Iterator[None]:
    """Bind in a directory one at a time: of two that find the same stale file the later would remove the earlier's.

    And one that is bound but does not listen yet passes for stale. The lock (flock(2)) is the directory's own, so it
    leaves no file behind; where it cannot be had, or not soon, the bind goes on without.
    """
    try:
        directory = os.open(Path(path).parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        yield
        return
    try:
        _lock(directory)
        yield
    finally:
        os.close(directory)


def _lock(directory: int) -> None:
    deadline = time.monotonic() + _TURN_SECONDS
    while time.monotonic() < deadline:
        try:
            fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(_TURN_PAUSE)
        except OSError:
            return  # a file system without locks
        else:
            return


def _clear_stale(address: Unix) -> None:
    """Remove a socket file that nobody listens on; raises BindError for a live one and for any other kind of file."""
    try:
        status = Path(address.path).lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(status.st_mode):
        raise BindError(f"cannot bind {address}: there is a file that is no socket; remove it or choose another path")
    if _answers(address):
        raise in_use(address)
    Path(address.path).unlink(missing_ok=True)


def _answers(address: Unix) -> bool:
    """Tell whether a socket is behind the file: connect(2) is refused only when nobody listens."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        error = probe.connect_ex(address.path)
    match error:
        case errno.ECONNREFUSED | errno.ENOENT:
            return False
        case errno.EACCES | errno.EPERM:
            raise PermissionError(error, os.strerror(error))
        case _:  # 0, EAGAIN when its queue is full, EPROTOTYPE for a datagram socket: somebody is there
            return True


def _uid(address: Unix) -> int:
    if address.owner is None:
        return -1
    try:
        return int(address.owner) if address.owner.isdecimal() else pwd.getpwnam(address.owner).pw_uid
    except KeyError as error:
        raise ConfigError(
            f"bad address {address}: there is no user {address.owner!r}; name one or give a uid"
        ) from error


def _gid(address: Unix) -> int:
    if address.group is None:
        return -1
    try:
        return int(address.group) if address.group.isdecimal() else grp.getgrnam(address.group).gr_gid
    except KeyError as error:
        raise ConfigError(
            f"bad address {address}: there is no group {address.group!r}; name one or give a gid"
        ) from error
