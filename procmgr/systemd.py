"""systemd's protocols: notifications (sd_notify(3)), the watchdog, sockets passed by activation, kept descriptors.

Rules: a notification never blocks and never raises; a failed one is remembered in `Notifier.error` for the caller to
report. Reading the environment removes the variables, so that nothing a worker starts mistakes itself for the service.

The descriptor store (systemd.service(5), FileDescriptorStoreMax=) is used where FDSTORE says that there is one, as
systemd does from release 254 on: systemd never answers, and what is taken for stored must not be unlinked.
"""

from __future__ import annotations

import array
import fcntl
import hashlib
import os
import re
import socket
import time
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Final, Self
from urllib.parse import quote

from procmgr.errors import ProcmgrError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, MutableMapping, Sequence

FIRST_FD: Final = 3
"""SD_LISTEN_FDS_START: passed descriptors are numbered from here (sd_listen_fds(3))."""

MAX_VALUE: Final = 4096
"""Longest value sent, in characters: a status line is for people, and a datagram must fit the socket's buffer."""

_LINE_BREAKS: Final = re.compile(r"[\r\n\0]+")
_MAX_FDS: Final = 4096
_STORED: Final = "procmgr-"
_NAME_CHARACTERS: Final = 255
_KEPT_CHARACTERS: Final = 180


class Notifier:
    """Tells the service manager what the arbiter is doing; without NOTIFY_SOCKET every call does nothing.

    A socket is opened per message, unless one is held: for a start or a command that is enough.
    """

    __slots__ = ("_address", "_sock", "error", "stores", "watchdog_interval")

    def __init__(self, *, address: str | None, watchdog_interval: float | None = None, stores: bool = False) -> None:
        self._address = address
        self._sock: socket.socket | None = None
        self.watchdog_interval = watchdog_interval
        """Seconds between two `watchdog()` calls, half of what systemd allows; None if it does not watch."""
        self.stores = stores and address is not None
        """Whether systemd keeps descriptors for this service."""
        self.error: OSError | None = None
        """Why the last message was not delivered, None if it was."""

    @classmethod
    def from_environ(cls, environ: MutableMapping[str, str]) -> Self:
        """Take NOTIFY_SOCKET, FDSTORE, WATCHDOG_USEC and WATCHDOG_PID (sd_watchdog_enabled(3)) out of `environ`."""
        address = environ.pop("NOTIFY_SOCKET", None)
        usec = environ.pop("WATCHDOG_USEC", None)
        pid = environ.pop("WATCHDOG_PID", None)
        watched = pid is None or _number(pid) == os.getpid()
        return cls(
            address=address or None,
            watchdog_interval=_half_seconds(usec) if watched else None,
            stores=bool(_number(environ.pop("FDSTORE", ""))),
        )

    @property
    def enabled(self) -> bool:
        """Whether a service manager listens."""
        return self._address is not None

    def hold(self) -> None:
        """Keep a socket open from now on: when no other can be had, a watchdog that hears nothing would kill."""
        if self._address is not None:
            self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)

    def close(self) -> None:
        """Close the socket that is held, in a forked child too."""
        if self._sock is not None:
            self._sock.close()
            self._sock = None

    def ready(self, status: str | None = None) -> bool:
        """Tell that the start or a reload is complete, and who it is: a wrapper may have been started instead."""
        return self.send(READY=1, MAINPID=os.getpid(), STATUS=status)

    def reloading(self, status: str | None = None) -> bool:
        """Tell that a reload begins; by the time stamp `Type=notify-reload` knows that it began after its signal."""
        return self.send(RELOADING=1, MONOTONIC_USEC=time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000, STATUS=status)

    def stopping(self, status: str | None = None) -> bool:
        """Tell that the service begins to stop."""
        return self.send(STOPPING=1, STATUS=status)

    def status(self, text: str) -> bool:
        """Set the line that `systemctl status` shows."""
        return self.send(STATUS=text)

    def watchdog(self) -> bool:
        """Prove that the arbiter's loop turns."""
        return self.send(WATCHDOG=1)

    def extend_timeout(self, seconds: float) -> bool:
        """Ask for `seconds` more, from now, for the start or stop under way."""
        return self.send(EXTEND_TIMEOUT_USEC=int(seconds * 1_000_000))

    def main_pid(self) -> bool:
        """Tell which process is the service's main one: this."""
        return self.send(MAINPID=os.getpid())

    def failed(self, error: BaseException) -> bool:
        """Tell why the service does not start; with the operating system's own number if that was the reason."""
        cause = error if isinstance(error, OSError) else error.__cause__
        number = cause.errno if isinstance(cause, OSError) else None
        return self.send(STATUS=f"cannot start: {error}", ERRNO=number)

    def store(self, fd: int, name: str) -> bool:
        """Have a copy of `fd` kept, which the next start finds among the passed sockets under `name`."""
        return self.send([fd], FDSTORE=1, FDNAME=name)

    def forget(self, name: str) -> bool:
        """Have every kept copy of that name closed."""
        return self.send(FDSTOREREMOVE=1, FDNAME=name)

    def send(self, fds: Sequence[int] = (), /, **fields: str | int | None) -> bool:
        """Send `NAME=value` lines in one datagram, leaving out None; line breaks in a value become spaces.

        Returns whether it was handed over; if not and a service manager listens, `error` says why.
        """
        if self._address is None:
            return False
        message = "\n".join(f"{name}={_clean(value)}" for name, value in fields.items() if value is not None)
        try:
            self._deliver(self._address, message.encode(errors="replace"), fds)
        except OSError as error:
            self.error = error
            return False
        self.error = None
        return True

    def _deliver(self, address: str, message: bytes, fds: Sequence[int]) -> None:
        # "@" stands for the NUL of an abstract name; vsock:… and other schemes are for virtual machines.
        if not address.startswith(("/", "@")):
            raise OSError(f"NOTIFY_SOCKET={address!r} is neither a path nor an abstract name")
        target = b"\0" + os.fsencode(address[1:]) if address.startswith("@") else os.fsencode(address)
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        with nullcontext(self._sock) if self._sock else socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.sendmsg([message], rights, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL, target)


@contextmanager
def told_of_failure(environ: MutableMapping[str, str]) -> Iterator[None]:
    """Tell the service manager that is in `environ` now, and may have been taken out of it by then, of a refusal."""
    notifier = Notifier(address=environ.get("NOTIFY_SOCKET") or None)
    try:
        yield
    except ProcmgrError as error:
        notifier.failed(error)
        raise


def stored_name(address: str) -> str:
    """Return the name under which a listener for `address` is stored: printable ASCII without a colon, bounded."""
    raw = os.fsencode(address)
    name = _STORED + quote(raw, safe="/@[],=")
    if len(name) <= _NAME_CHARACTERS:
        return name
    return f"{name[:_KEPT_CHARACTERS]}-{hashlib.sha256(raw).hexdigest()}"


def is_stored(name: str) -> bool:
    """Tell whether a passed socket of this name is one that procmgr had stored."""
    return name.startswith(_STORED)


def inherited_sockets(
    environ: MutableMapping[str, str], *, on_ignored: Callable[[str], object] | None = None
) -> tuple[tuple[str, int], ...]:
    """Take the sockets that systemd passed out of `environ`: (name, fd) in their order, sd_listen_fds_with_names(3).

    The order is not that of `Sockets=`: go by the names. They need not be unique, and a socket without one is called
    "unknown". The descriptors become close-on-exec. Whatever cannot be used is left alone, and `on_ignored` is called
    with the reason in one line.
    """
    count_text = environ.pop("LISTEN_FDS", None)
    pid = environ.pop("LISTEN_PID", None)
    names = environ.pop("LISTEN_FDNAMES", "").split(":")
    environ.pop("LISTEN_PIDFDID", None)
    if count_text is None:
        return ()
    count, reason = _listen_count(count_text, pid)
    ignored = [reason] if reason else []
    names += [""] * (count - len(names))
    found = [(names[index] or "unknown", FIRST_FD + index) for index in range(count)]
    usable = [(name, fd) for name, fd in found if _set_cloexec(fd)]
    closed = [fd for name, fd in found if (name, fd) not in usable]
    ignored += [f"LISTEN_FDS={count_text} promises fd {fd}, which is not open" for fd in closed]
    if on_ignored is not None:
        for line in ignored:
            on_ignored(line)
    return tuple(usable)


def _listen_count(count_text: str, pid: str | None) -> tuple[int, str | None]:
    """Return how many descriptors are ours, or 0 and the reason why not."""
    count = _number(count_text)
    if count is None or count > _MAX_FDS:
        return 0, f"LISTEN_FDS={count_text!r} ignored: it is not a number up to {_MAX_FDS}"
    if pid is None or _number(pid) != os.getpid():
        given = "unset" if pid is None else repr(pid)
        reason = f"LISTEN_FDS={count_text} ignored: LISTEN_PID is {given}, not this process ({os.getpid()}); "
        return 0, reason + "a wrapper that forks before it starts procmgr loses them, let it exec instead"
    return count, None


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= 20 else None


def _half_seconds(usec: str | None) -> float | None:
    number = _number(usec) if usec else None
    return number / 2_000_000 if number else None


def _clean(value: str | int) -> str:
    return _LINE_BREAKS.sub(" ", str(value))[:MAX_VALUE]


def _set_cloexec(fd: int) -> bool:
    try:
        fcntl.fcntl(fd, fcntl.F_SETFD, fcntl.FD_CLOEXEC)
    except OSError:
        return False
    return True
