"""How fast the pool may spawn: the row of young deaths and the wait after each.

A *round* is what boots between two waits. The first young death of a round lengthens the row and starts a wait; the
deaths of workers that were spawned before it belong to the same round and add nothing, or eight workers that fail
together would reach the cap at once. A row that begins with a worker which was ready begins without a wait: somebody
may have killed it, or told it to go. While there is a row, one worker boots at a time. The row ends when a worker that
was spawned after the last counted death has served for `stable_after`.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from procmgr.arbiter.core.model import Worker
    from procmgr.arbiter.core.policy import Backoff


@dataclass(slots=True)
class Pacer:
    """The row of young deaths (`failures`), the end of the present wait (`until`) and whether a spawn waits for it."""

    failures: int = 0
    until: float = -inf
    delay: float = 0.0
    waiting: bool = False
    announced: bool = False
    _round: int = 0

    def on_trial(self, worker: Worker) -> bool:
        """Whether the fate of `worker` decides about the row."""
        return worker.worker_id >= self._round

    def fail(self, worker: Worker, now: float, backoff: Backoff, *, chance: float, next_id: int) -> bool:
        """Record a young death; False when it belongs to a round that failed already."""
        if not self.on_trial(worker):
            return False
        self.failures += 1
        if self.failures == 1 and worker.ready_at is not None:
            self.delay = 0.0
        else:
            self.delay = backoff.delay(self.failures, chance)
        self.until = now + self.delay
        self.announced = False
        self._round = next_id
        return True

    def succeed(self, worker: Worker) -> None:
        """Record that `worker` served long enough."""
        if self.on_trial(worker):
            self.failures = 0

    def cut(self) -> None:
        """End the wait but not the row: there is a reason to try at once, and should that fail the wait still grows."""
        self.until = -inf
