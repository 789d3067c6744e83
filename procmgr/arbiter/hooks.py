"""The arbiter's hooks, each called in a fresh child: the arbiter imports no code of the application's.

A hook module that imports the application would freeze it for every later worker, and a hook that hangs would stop the
arbiter. So a hook gets a process, without the arbiter's rights and descriptors, and a dict that says what happened and
what the pool is like. The arbiter waits for none: `_AT_ONCE` run at a time, the next `_WAITING` wait for their turn,
and who still runs after `HOOK_SECONDS` is killed. What a hook writes is logged as one event at its end, if need be
without its middle.

At a stop hooks get the time that the stop has anyway, and no more: see `hurry`.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from math import inf
from typing import TYPE_CHECKING, Final

from procmgr.arbiter.spawn import fork

if TYPE_CHECKING:
    from collections.abc import Callable

    from procmgr.arbiter.core.events import Exit
    from procmgr.arbiter.documents import Document
    from procmgr.arbiter.loop import Loop, Timer


_AT_ONCE: Final = 4
_WAITING: Final = 256
HOOK_SECONDS: Final = 10.0
_CHUNK: Final = 64 * 1024
_PAUSE: Final = 0.01  # seconds between two chunks, so that a hook which writes and writes does not occupy the arbiter
_KEPT_HEAD: Final = 4 * 1024
_KEPT_TAIL: Final = 12 * 1024

log = logging.getLogger("procmgr.error")


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A hook to call: the setting that names it, its "module:attribute", what it is told."""

    name: str
    target: str
    told: Document

    def __str__(self) -> str:
        return f"hook {self.name} ({self.target})"


class Capture:
    """The beginning and the end of what was written."""

    __slots__ = ("_head", "_left_out", "_tail")

    def __init__(self) -> None:
        self._head = bytearray()
        self._tail = bytearray()
        self._left_out = 0

    def feed(self, data: bytes) -> None:
        """Take more."""
        room = _KEPT_HEAD - len(self._head)
        self._head += data[:room]
        self._tail += data[room:]
        excess = len(self._tail) - _KEPT_TAIL
        if excess > 0:
            del self._tail[:excess]
            self._left_out += excess

    def text(self) -> str:
        """Return what was kept, and how much was not."""
        cut = f"\n... {self._left_out} bytes left out ...\n".encode() if self._left_out else b""
        return bytes(self._head + cut + self._tail).decode("utf-8", "replace").rstrip()


@dataclass(slots=True, kw_only=True)
class _Run:
    call: Call
    pid: int
    reader: int
    timer: Timer
    output: Capture = field(default_factory=Capture)
    killed: bool = False


class Hooks:
    """Calls hooks one by one in children, and buries them.

    `run` is what a child does: it calls the hook and returns the exit status. `entrust` is called with each pid.
    """

    def __init__(
        self,
        *,
        loop: Loop,
        run: Callable[[Call], int],
        close_in_child: Callable[[], None],
        entrust: Callable[[int], None],
    ) -> None:
        self._loop = loop
        self._run = run
        self._close_arbiter = close_in_child
        self._entrust = entrust
        self._running: dict[int, _Run] = {}
        self._waiting: deque[Call] = deque()
        self._dropped = 0
        self._until = inf

    @property
    def idle(self) -> bool:
        """Whether no hook runs or waits."""
        return not (self._running or self._waiting)

    def call(self, name: str, target: str, told: Document) -> None:
        """Call a hook as soon as its turn comes."""
        if len(self._waiting) >= _WAITING:
            if not self._dropped:
                log.error("too many hooks wait: hook %s (%s), and what follows, is not called", name, target)
            self._dropped += 1
            return
        self._waiting.append(Call(name=name, target=target, told=told))
        self._advance()

    def buried(self, pid: int, exit_: Exit) -> bool:
        """Return whether `pid`, which died, was a hook; then the next has its turn."""
        run = self._running.pop(pid, None)
        if run is None:
            return False
        run.timer.cancelled = True
        self._drain(run)
        self._loop.unwatch(run.reader)
        os.close(run.reader)
        _report(run, exit_)
        self._advance()
        return True

    def hurry(self, until: float) -> None:
        """See that no hook runs or waits after `until`, monotonic seconds: the stop is over by then."""
        if until < self._until:
            self._until = until
            self._loop.call_at(until, self._time_over)

    def entrust(self) -> None:
        """Entrust the running hooks to a guard that was forked after them."""
        for pid in self._running:
            self._entrust(pid)

    def close_in_child(self) -> None:
        """Close, in a forked child, what belongs to the arbiter."""
        for run in self._running.values():
            os.close(run.reader)

    def _advance(self) -> None:
        while self._waiting and len(self._running) < _AT_ONCE and time.monotonic() < self._until:
            self._start(self._waiting.popleft())
        if self._dropped and not self._waiting:
            log.error("%d hooks were not called", self._dropped)
            self._dropped = 0

    def _start(self, call: Call) -> None:
        try:
            reader, writer = os.pipe2(os.O_CLOEXEC)
        except OSError as error:
            log.error("%s cannot be called: %s", call, error.strerror)
            return
        try:
            pid = fork(lambda: self._child(call, writer), close_in_child=lambda: self._leave(reader))
        except OSError as error:
            log.error("%s cannot be called: %s", call, error.strerror)
            os.close(reader)
            return
        finally:
            os.close(writer)
        os.set_blocking(reader, False)
        timer = self._loop.call_at(time.monotonic() + HOOK_SECONDS, lambda: self._kill(pid))
        run = self._running[pid] = _Run(call=call, pid=pid, reader=reader, timer=timer)
        self._loop.watch(reader, lambda _events: self._listen(run))
        self._entrust(pid)

    def _leave(self, reader: int) -> None:
        os.close(reader)
        self._close_arbiter()

    def _child(self, call: Call, writer: int) -> int:
        null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        for fd, standard in ((null, 0), (writer, 1), (writer, 2)):
            os.dup2(fd, standard)  # to another number always: these are taken from the start
        os.close(writer)
        return self._run(call)

    def _listen(self, run: _Run) -> None:
        """Read one chunk; after a full one let a little time pass."""
        data = _read(run.reader)
        if data is None:
            return
        run.output.feed(data)
        if not data:
            self._loop.unwatch(run.reader)
        elif len(data) == _CHUNK:
            self._loop.unwatch(run.reader)
            self._loop.call_at(time.monotonic() + _PAUSE, lambda: self._listen_again(run))

    def _listen_again(self, run: _Run) -> None:
        if run.pid in self._running:
            self._loop.watch(run.reader, lambda _events: self._listen(run))

    def _drain(self, run: _Run) -> None:
        """Read what a dead hook left in the pipe, which holds a few chunks at most unless a child of its writes on."""
        for _ in range(16):
            data = _read(run.reader)
            if not data:
                return
            run.output.feed(data)

    def _kill(self, pid: int) -> None:
        run = self._running.get(pid)
        if run is not None:  # and so is not reaped: the pid is its own
            run.killed = True
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _time_over(self) -> None:
        if self._waiting:
            log.error("the stop is over: %d hooks were not called", len(self._waiting))
            self._waiting.clear()
        for pid in self._running:
            self._kill(pid)


def _read(reader: int) -> bytes | None:
    """Return what is there, b"" at the end, None while there is nothing."""
    try:
        return os.read(reader, _CHUNK)
    except BlockingIOError:
        return None


def _report(run: _Run, exit_: Exit) -> None:
    text = run.output.text()
    said = f"\n{text}" if text else ""
    if run.killed:
        log.error("%s was killed: it did not end in time%s", run.call, said)
    elif exit_.signal is not None:
        log.error("%s died of signal %d%s", run.call, exit_.signal, said)
    elif exit_.code:
        log.error("%s failed%s", run.call, f": {text}" if text else f" with status {exit_.code}")
    elif text:
        log.info("%s said:%s", run.call, said)
