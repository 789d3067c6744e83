"""Signals of the arbiter: a queue that its loop reads, and the ladder that repeated TERM and INT climb.

Theory of operation: every signal of interest has a handler that does nothing. CPython's C-level handler writes the
signal's number into the wakeup pipe (signal.set_wakeup_fd), so a signal becomes one readable byte and is handled in
order with everything else, never in the middle of it.
"""

from __future__ import annotations

import os
import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from procmgr.arbiter.core.events import StopLevel
from procmgr.handover import Descriptor
from procmgr.plain import record

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

HANDLED: Final = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGHUP,
    signal.SIGTTIN,
    signal.SIGTTOU,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGCHLD,
)
_ENTRY: Final = {
    signal.SIGTERM: StopLevel.GRACEFUL,
    signal.SIGINT: StopLevel.QUICK,
    signal.SIGQUIT: StopLevel.QUICK,
}
_REPEAT_SECONDS: Final = 0.5


def ignore(_signum: int, _frame: FrameType | None) -> None:
    """Do nothing, as a handler: unlike SIG_IGN it is reset by execve(2) and does not leak into subprocesses."""


@record
class SignalsEstate:
    """The pipe of a `SignalQueue` as it is handed over: what was delivered and not read yet is in it."""

    reader: Descriptor
    writer: Descriptor


class SignalQueue:
    """Delivered signals as numbers to be read from a descriptor; install it once, on the main thread.

    With `estate` it takes over its predecessor's pipe, and whatever is in it.
    """

    def __init__(self, estate: SignalsEstate | None = None) -> None:
        if estate is None:
            self._reader, self._writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        else:
            self._reader, self._writer = estate.reader.number, estate.writer.number
        signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        for signum in HANDLED:
            signal.signal(signum, ignore)
        if estate is None:
            # Whoever starts us may have left some blocked, and as process 1 we have done so ourselves. A successor's
            # stay blocked until it has taken over everything.
            signal.pthread_sigmask(signal.SIG_SETMASK, ())

    def hand_over(self) -> SignalsEstate:
        """Return what a successor needs; to be called with all signals blocked, so that nothing more comes."""
        return SignalsEstate(reader=Descriptor(self._reader), writer=Descriptor(self._writer))

    def fileno(self) -> int:
        """Return the descriptor to be polled for reading."""
        return self._reader

    def read(self) -> list[signal.Signals]:
        """Return what was delivered since the last call, oldest first."""
        try:
            data = os.read(self._reader, 4096)
        except BlockingIOError:
            return []
        return [signal.Signals(number) for number in data if number in HANDLED]

    def close(self) -> None:
        """Close both ends. In a forked child the caller has cleared the wakeup descriptor before."""
        os.close(self._reader)
        os.close(self._writer)


class StopLadder:
    """Turns TERM, INT and QUIT into ever more urgent stops: graceful → quick → kill.

    The first signal enters at its own level, each further TERM or INT climbs one. The same signal again within half a
    second counts once: a wrapper repeats what the terminal has already sent to the whole process group.
    """

    def __init__(self) -> None:
        self._level: StopLevel | None = None
        self._seen: dict[signal.Signals, float] = {}

    def climb(self, signum: signal.Signals, now: float) -> StopLevel | None:
        """Return the level that `signum` at `now` (monotonic seconds) asks for, or None if it changes nothing."""
        repeated = now - self._seen.get(signum, float("-inf")) < _REPEAT_SECONDS
        self._seen[signum] = now
        if repeated:
            return None
        if self._level is None:
            self._level = _ENTRY[signum]
        elif signum is signal.SIGQUIT:
            self._level = max(self._level, StopLevel.QUICK)
        else:
            self._level = StopLevel(min(self._level + 1, StopLevel.KILL))
        return self._level

    def reach(self, level: StopLevel) -> None:
        """Stand at `level` at least, since somebody asked for it otherwise: the next TERM or INT climbs from there."""
        self._level = level if self._level is None else max(self._level, level)


@contextmanager
def all_blocked() -> Iterator[set[int]]:
    """Block every signal around a fork and yield the mask to restore in the child.

    A signal that arrives between fork and the child's own setup would otherwise run the arbiter's handlers there, and
    write into the arbiter's wakeup pipe.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    mask = {int(number) for number in before}  # most real-time signals have no name in signal.Signals
    try:
        yield mask
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def reset_in_child() -> None:
    """Undo the arbiter's signal setup in a forked child, before the mask is restored."""
    signal.set_wakeup_fd(-1)
    for signum in HANDLED:
        signal.signal(signum, signal.SIG_DFL)
