"""The guard: a tiny process that outlives only the arbiter and kills what its death left behind.

Why: workers learn of the arbiter's death by the closed channel, but a worker whose loop is blocked or that was stopped
notices nothing and would hold the port for ever. The guard is forked before any worker and holds a pidfd of each, sent
by the arbiter right after the fork, while the pid cannot have been reused. When its channel closes, it gives the
workers `patience` seconds (the drain and kill bounds), sends KILL to those that are left, and exits. When the arbiter
ends in order there are no workers left and the guard exits at once.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import struct
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Self

from procmgr import process
from procmgr.arbiter.spawn import fork
from procmgr.errors import ExitCode
from procmgr.handover import Descriptor
from procmgr.plain import record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_DISMISS_SECONDS: Final = 1.0
_RENEW_SECONDS: Final = 1.0
_PATIENCE: Final = struct.Struct("=d")  # seconds; a datagram that carries a pidfd means "watch this worker"

log = logging.getLogger("procmgr.error")


@record
class GuardEstate:
    """A guard as it is handed over; it keeps what it knows."""

    pid: int
    channel: Descriptor


class Guard:
    """The arbiter's handle on its guard. Raises `OSError` when it cannot be forked."""

    def __init__(self, *, patience: float, close_in_child: Callable[[], None]) -> None:
        self._sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._sock.settimeout(0.0)
        try:
            self.pid = fork(lambda: _run(theirs, patience), close_in_child=lambda: self._leave(close_in_child))
        finally:
            theirs.close()

    @classmethod
    def adopt(cls, estate: GuardEstate) -> Self:
        """Take over a guard that watches already; raises `OSError`."""
        guard = cls.__new__(cls)
        guard.pid = estate.pid
        guard._sock = socket.socket(fileno=estate.channel.number)  # noqa: SLF001 - of its own class
        guard._sock.settimeout(0.0)  # noqa: SLF001 - of its own class
        return guard

    def hand_over(self) -> GuardEstate:
        """Return what `adopt` needs."""
        return GuardEstate(pid=self.pid, channel=Descriptor(self._sock.fileno()))

    def watch(self, pid: int) -> None:
        """Entrust a living child to the guard."""
        try:
            pidfd = os.pidfd_open(pid)
        except OSError as error:  # out of descriptors: the child is no worse off than without a guard
            log.warning("the guard cannot be told of pid %d: %s", pid, error.strerror)
            return
        try:
            with suppress(OSError):  # the guard is dead: the arbiter forks another and entrusts all to it
                socket.send_fds(self._sock, [_PATIENCE.pack(0.0)], [pidfd])
        finally:
            os.close(pidfd)

    def set_patience(self, seconds: float) -> None:
        """Change how long the workers get after the arbiter's death."""
        with suppress(OSError):
            self._sock.send(_PATIENCE.pack(seconds), socket.MSG_NOSIGNAL)

    def dismiss(self) -> None:
        """Let the guard go at the arbiter's end and bury it, so that not even a zombie is left to somebody else."""
        self._sock.close()
        with suppress(OSError):  # it died before, and the loop has buried it; or it cannot be waited for
            pidfd = os.pidfd_open(self.pid)
            poller = select.poll()
            poller.register(pidfd, select.POLLIN)
            poller.poll(_DISMISS_SECONDS * 1000)
            os.close(pidfd)
            os.waitpid(self.pid, os.WNOHANG)

    def _leave(self, close_in_child: Callable[[], None]) -> None:
        self._sock.close()
        close_in_child()

    def close(self) -> None:
        """Let the guard go; in a forked child this only closes the copy."""
        self._sock.close()


class Guards:
    """The guard that there is, and another one when it died, as soon as one can be forked.

    `fork` makes one, `entrust` has it watch every child, `later` calls in so many seconds; `first` watches already.
    """

    def __init__(
        self,
        *,
        later: Callable[[float, Callable[[], None]], object],
        fork: Callable[[], Guard],
        entrust: Callable[[Guard], None],
        first: Guard | None,
    ) -> None:
        self._later = later
        self._fork = fork
        self._entrust = entrust
        self._said = False
        self.current = first or fork()
        if first is None:
            entrust(self.current)

    def buried(self, pid: int) -> bool:
        """Return whether `pid`, which died, was the guard."""
        if pid != self.current.pid:
            return False
        log.warning("the guard (pid %d) died; forking another", pid)
        self._said = False
        self._renew()
        return True

    def _renew(self) -> None:
        try:
            guard = self._fork()
        except OSError as error:
            if not self._said:
                self._said = True
                log.error("cannot fork another guard: %s; trying again", error.strerror)
            self._later(_RENEW_SECONDS, self._renew)
            return
        self.current.close()
        self.current = guard
        self._entrust(guard)


def _run(sock: socket.socket, patience: float) -> int:
    _ignore_group_signals()
    process.set_title("procmgr: guard")
    _guard(sock, patience)
    return ExitCode.OK


def _ignore_group_signals() -> None:
    """Stay while the terminal or a supervisor signals the whole group: the channel alone says when to act."""
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(signum, signal.SIG_IGN)


def _guard(sock: socket.socket, patience: float) -> None:
    pidfds: set[int] = set()
    poller = select.poll()
    poller.register(sock, select.POLLIN)
    while True:
        for fd, _ in poller.poll():
            if fd in pidfds:
                _forget(poller, pidfds, fd)
                continue
            received = _receive(sock)
            if received is None:
                poller.unregister(sock)
                _outlive(poller, pidfds, time.monotonic() + patience)
                return
            seconds, pidfd = received
            if pidfd is None:
                patience = seconds
            else:
                pidfds.add(pidfd)
                poller.register(pidfd, select.POLLIN)


def _receive(sock: socket.socket) -> tuple[float, int | None] | None:
    """Return (seconds, pidfd), or None once the arbiter's end is closed."""
    try:
        data, fds, _, _ = socket.recv_fds(sock, _PATIENCE.size, 1)
    except OSError:
        return None
    if len(data) != _PATIENCE.size:
        return None
    return _PATIENCE.unpack(data)[0], fds[0] if fds else None


def _outlive(poller: select.poll, pidfds: set[int], deadline: float) -> None:
    """Wait for the orphans until `deadline`, then kill those that are left."""
    while pidfds and (left := deadline - time.monotonic()) > 0:
        for fd, _ in poller.poll(left * 1000):
            _forget(poller, pidfds, fd)
    _kill(pidfds)


def _kill(pidfds: Iterable[int]) -> None:
    for pidfd in pidfds:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)


def _forget(poller: select.poll, pidfds: set[int], fd: int) -> None:
    poller.unregister(fd)
    pidfds.remove(fd)
    os.close(fd)
