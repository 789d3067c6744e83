"""The beat: the one timer of a worker, once a second, by which the arbiter sees that the event loop turns.

It goes on while the worker drains: a worker that hangs there is found too. An idle worker wakes for nothing else.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from procmgr.scoreboard import BEAT, BEAT_SECONDS, CPU, LAG

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from procmgr.scoreboard import Row


class Beat:
    """Stamps `row` and calls `on_beat` with `loop.time()`, every `BEAT_SECONDS` seconds."""

    __slots__ = ("_armed_for", "_loop", "_on_beat", "_row", "_timer")

    def __init__(self, *, loop: asyncio.AbstractEventLoop, row: Row, on_beat: Callable[[float], None]) -> None:
        self._loop = loop
        self._row = row
        self._on_beat = on_beat
        self._armed_for = time.monotonic_ns()
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Beat now and from now on."""
        self._armed_for = time.monotonic_ns()
        self._turn()

    def stop(self) -> None:
        """Beat no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _turn(self) -> None:
        # Both clocks are CLOCK_MONOTONIC, but uvloop's is cached per turn in milliseconds: too coarse for the lag.
        now = time.monotonic_ns()
        self._row[BEAT] = now
        self._row[LAG] = max(0, now - self._armed_for)
        self._row[CPU] = time.process_time_ns()
        self._armed_for = now + int(BEAT_SECONDS * 1e9)
        self._timer = self._loop.call_later(BEAT_SECONDS, self._turn)
        self._on_beat(self._loop.time())
