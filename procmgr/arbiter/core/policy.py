"""The numbers by which the pool decides. All times are seconds; `arbiter.main` derives them from the settings."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

MAX_WORKERS: Final = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """How long a spawn waits after young deaths: `first` · 2ⁿ up to `cap`, shortened at random by up to `jitter` of it.

    A worker that stays ready for `stable_after` seconds ends the row of failures.
    """

    first: float = 0.5
    cap: float = 30.0
    jitter: float = 0.25
    stable_after: float = 10.0

    def __post_init__(self) -> None:
        """Refuse numbers that would let the pool spin; raises `ValueError`."""
        if not (0 < self.first <= self.cap and 0 <= self.jitter < 1 and self.stable_after >= 0):
            raise ValueError(f"a back-off needs 0 < first <= cap, 0 <= jitter < 1 and stable_after >= 0: {self}")

    def delay(self, failures: int, chance: float) -> float:
        """Return the wait after `failures` young deaths in a row; `chance` is a random number in [0, 1)."""
        full = min(self.cap, self.first * 2.0 ** min(failures - 1, 64))
        return full * (1 - self.jitter * chance)


class Handover(Enum):
    """Who accepts connections while a reload is under way."""

    ROLL = "roll"  # the old workers, until each is replaced: nobody ever waits
    HOLD = "hold"  # only the newest code: connections wait in the listeners' queues, and nobody is served by old code


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """One immutable set of bounds for the pool; 0 is "never", or "no limit", where it is a default or said so.

    `beat_timeout` 0 switches the watch over the beat off. A loop is late once its beat, due every `beat_interval`, is
    overdue by `slow_loop`. `max_memory` and `max_memory_hard` are bytes. With `core_grace` a hung worker gets ABRT, and
    so long to leave a core file, before its KILL.

    A graceful stop begins `shutdown_delay` after it was asked for, if anybody serves.

    `refork` says that workers made under this policy can be made again from the same code, whatever is on disk by then.
    """

    workers: int
    surge: int = 1
    boot_timeout: float = 60.0
    beat_timeout: float = 30.0
    shutdown_delay: float = 0.0
    graceful_timeout: float = 30.0
    quick_timeout: float = 1.0
    kill_grace: float = 5.0
    dump_grace: float = 0.5
    core_grace: float = 0.0
    beat_interval: float = 1.0
    slow_loop: float = 0.0
    max_lifetime: float = 0.0
    max_lifetime_jitter: float = 0.0
    max_memory: int = 0
    max_memory_hard: int = 0
    boot_attempts: int = 3
    refork: bool = False
    handover: Handover = Handover.ROLL
    backoff: Backoff = Backoff()

    def __post_init__(self) -> None:
        """Refuse numbers no pool can run by; raises `ValueError`."""
        if min(self.workers, self.surge, self.boot_attempts) < 1:
            raise ValueError(f"workers, surge and boot_attempts are at least 1: {self}")
        if self.workers > MAX_WORKERS:
            raise ValueError(f"there are at most {MAX_WORKERS} workers: {self}")
        times = (
            *(self.beat_timeout, self.graceful_timeout, self.quick_timeout, self.kill_grace, self.dump_grace),
            *(self.shutdown_delay, self.core_grace, self.slow_loop, self.max_lifetime, self.max_lifetime_jitter),
        )
        if not (min(self.boot_timeout, self.beat_interval) > 0 and all(time >= 0 for time in times)):
            raise ValueError(f"boot_timeout and beat_interval are above 0 and no other time is negative: {self}")
        if min(self.max_memory, self.max_memory_hard) < 0:
            raise ValueError(f"no limit of memory is negative: {self}")


def bounded(workers: int) -> int:
    """Return the number of workers nearest to `workers` that a pool can have."""
    return max(1, min(workers, MAX_WORKERS))


def retarget(target: int, old: Policy, new: Policy) -> int:
    """Return the desired number under `new`: scaling by hand stands until `workers` itself changes."""
    return target if new.workers == old.workers else new.workers
