"""Memory pressure, as systemd has a service watch it: MEMORY_PRESSURE_WATCH and MEMORY_PRESSURE_WRITE.

Theory of operation (systemd.io/MEMORY_PRESSURE): what is at the path decides. A file of the kernel's, a cgroup's
memory.pressure say, is given the threshold to watch for and then has urgent data (EPOLLPRI) each time that is passed. A
FIFO or a socket, of a container manager or a test, has something to read. What it means for workers is the pool's to
decide.
"""

from __future__ import annotations

import base64
import logging
import os
import select
import socket
import stat
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from procmgr.arbiter.loop import Loop

log = logging.getLogger("procmgr.error")

_SOME: Final = b"some 200000 2000000"
"""Stalled for 0.2 s within 2 s: what systemd has services watch for by default."""

_AT_MOST_EVERY: Final = 2.0
_SAID_EVERY: Final = 60.0
_HOW: Final = os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
_OFF: Final = frozenset({"", os.devnull})


class PressureWatch:
    """Calls `on_pressure` when memory is short, at most every two seconds; does nothing where nobody asks for it."""

    def __init__(
        self,
        *,
        environ: Mapping[str, str],
        loop: Loop,
        now: Callable[[], float],
        on_pressure: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._now = now
        self._on_pressure = on_pressure
        self._heard = self._said = float("-inf")
        self._open = ExitStack()
        self._source: int | None = None
        self.active = False
        """Whether anything is watched."""
        path = environ.get("MEMORY_PRESSURE_WATCH", "")
        if path not in _OFF:
            self._watch(path, environ.get("MEMORY_PRESSURE_WRITE"))

    def close(self) -> None:
        """Close what is watched, at the end or in a forked child."""
        self._open.close()

    def _watch(self, path: str, threshold: str | None) -> None:
        try:
            fd = self._find(path, threshold)
        except (OSError, ValueError) as error:
            self.close()
            log.warning("memory pressure is not watched: MEMORY_PRESSURE_WATCH=%s: %s", ascii(path)[1:-1], error)
            return
        self.active = True
        self._loop.watch(fd, lambda _events: self._hear())

    def _find(self, path: str, threshold: str | None) -> int:
        """Return what is readable whenever there is pressure; raises `OSError` or `ValueError`."""
        mode = os.stat(path).st_mode  # noqa: PTH116 - an environment variable's text
        fd = _connect(path) if stat.S_ISSOCK(mode) else os.open(path, _HOW)
        self._open.callback(os.close, fd)
        regular = stat.S_ISREG(mode)
        data = base64.b64decode(threshold, validate=True) if threshold else _SOME if regular else b""
        if data:
            os.write(fd, data)
        if not regular:
            self._source = fd
            return fd
        urgent = self._open.enter_context(urgency_of(fd))
        return urgent.fileno()

    def _hear(self) -> None:
        if self._source is not None and not _drain(self._source):
            self._loop.unwatch(self._source)
            self.close()
            return
        now = self._now()
        if now - self._heard < _AT_MOST_EVERY:
            return
        self._heard = now
        if now - self._said >= _SAID_EVERY:
            self._said = now
            log.warning("memory is short")
        self._on_pressure()


def urgency_of(fd: int) -> select.epoll:
    """Return what is readable whenever `fd` has urgent data, for a loop that knows nothing of that.

    The kernel takes an event of its pressure files away with the question for it (psi_trigger_poll), and the loop's own
    epoll, which asks through this one, was that question: there is nothing to be read from it.
    """
    epoll = select.epoll()
    epoll.register(fd, select.EPOLLPRI)
    return epoll


def _connect(path: str) -> int:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as sock:
        sock.connect(path)
        return sock.detach()


def _drain(fd: int) -> bool:
    """Read away what there is; returns False at its end."""
    try:
        return bool(os.read(fd, 4096))
    except BlockingIOError:
        return True
    except OSError:
        return False
