"""How long what the pool is busy with may take, by its own bounds: for whoever waits for it with a bound of their own.

A pure function of the view and the policy. The bounds are generous, since a pool that is done earlier says so; what
matters is that each is finite, so that one which never gets ready is not waited for without end.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from math import ceil
from typing import TYPE_CHECKING

from procmgr.arbiter.core.events import StopLevel

if TYPE_CHECKING:
    from procmgr.arbiter.core.policy import Policy
    from procmgr.arbiter.core.view import View


class Occupation(Enum):
    """What a pool is busy with."""

    STARTING = "starting"
    ROLLING = "rolling"
    LEAVING = "leaving"
    STOPPING = "stopping"


@dataclass(frozen=True, slots=True)
class Task:
    """One piece of such work: two that are not equal have begun at different times. `seconds` bounds the whole."""

    occupation: Occupation
    number: int
    seconds: float


def task(view: View, policy: Policy) -> Task | None:
    """Return what the pool is busy with, None when it is settled."""
    if view.stop is not None:
        return Task(Occupation.STOPPING, view.stop, _stop_seconds(view.stop, policy))
    if view.leaving:
        return Task(Occupation.LEAVING, 0, policy.shutdown_delay + policy.kill_grace)
    if not view.pool_ready:
        return Task(Occupation.STARTING, 0, _boots_seconds(policy))
    if view.rolling is not None or view.pending is not None:
        steps = ceil(view.desired / view.surge)
        return Task(Occupation.ROLLING, view.newest_generation, steps * _boots_seconds(policy))
    return None


def _stop_seconds(level: StopLevel, policy: Policy) -> float:
    patience = policy.graceful_timeout if level is StopLevel.GRACEFUL else policy.quick_timeout
    return policy.kill_grace + (0.0 if level is StopLevel.KILL else patience)


def _boots_seconds(policy: Policy) -> float:
    """Return how long `boot_attempts` boots in a row may take, each ended by its deadline, with the waits between."""
    boot = policy.boot_timeout + policy.dump_grace + policy.kill_grace
    waits = sum(policy.backoff.delay(failures, 0.0) for failures in range(1, policy.boot_attempts))
    return policy.boot_attempts * boot + waits
