"""What the pool shows of itself: a frozen snapshot for `status`, STATUS=, metrics and hooks, and one line of it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from procmgr.arbiter.core.actions import ReloadOutcome

if TYPE_CHECKING:
    from procmgr.arbiter.core.actions import ReloadEnded
    from procmgr.arbiter.core.events import StopLevel


class WorkerState(Enum):
    """The state a person is shown: starting → ready → draining; draining is all that will end in death."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerView:
    """One worker.

    `pid` is None until its fork is reported; `born` is when it was forked, `since` when it entered `state`, monotonic
    seconds. One that is `given_up` is killed within a moment, whatever it says.
    """

    worker_id: int
    slot: int
    generation: int
    pid: int | None
    state: WorkerState
    born: float
    since: float
    given_up: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """The pool at one moment, workers by slot.

    `generation` is what a replacement is made of, `rolling` the generation a roll under way leads to, `pending` the one
    that waits for it, `newest_generation` the one the latest accepted `Reload` got. `surge` bounds starting + ready:
    they are at most `desired` + `surge`. `backoff_until` (monotonic) and `backoff_seconds` (its whole length) are set
    while a spawn waits. `failures` counts young deaths in a row. `leaving` says that a stop was asked for and waits.
    """

    desired: int
    surge: int
    generation: int
    newest_generation: int
    rolling: int | None
    pending: int | None
    last_reload: ReloadEnded | None
    workers: tuple[WorkerView, ...]
    failures: int
    backoff_until: float | None
    backoff_seconds: float | None
    stop: StopLevel | None
    leaving: bool
    gave_up: bool
    ever_ready: bool
    pool_ready: bool

    def count(self, state: WorkerState) -> int:
        """Return how many workers are in `state`."""
        return sum(worker.state is state for worker in self.workers)

    @property
    def starting(self) -> int:
        """How many workers boot."""
        return self.count(WorkerState.STARTING)

    @property
    def ready(self) -> int:
        """How many workers serve."""
        return self.count(WorkerState.READY)

    @property
    def draining(self) -> int:
        """How many workers are on their way out."""
        return self.count(WorkerState.DRAINING)


def status_line(view: View, upgrade: str | None = None) -> str:
    """Return one line for STATUS= and `status`: what the pool does now, or else how the last reload ended.

    `upgrade` is how the last upgrade goes or ended, if that is of interest still.
    """
    if view.stop is not None:
        return _stopping(view)
    return f"{_serving(view)}; {upgrade}" if upgrade else _serving(view)


def _serving(view: View) -> str:
    activity = _activity(view)
    if activity and not (view.rolling or view.ready):
        return activity
    if activity is None and view.ready == view.desired and _rolled_back(view):
        return f"reload rolled back, generation {view.generation} serves on"
    return f"{view.ready}/{view.desired} workers ready, {activity or _settled(view)}"


def _stopping(view: View) -> str:
    """Say how far a stop is."""
    why = f"giving up after {_times(view.failures, 'failed boot')}" if view.gave_up else "stopping"
    left = view.draining
    return f"{why}, {_times(left, 'worker')} draining" if left else why


def _activity(view: View) -> str | None:
    """Say what the pool is busy with; None when it is settled."""
    parts = ["leaving"] if view.leaving else []
    if view.rolling is not None:
        parts.append(f"rolling to generation {view.rolling}")
    if view.backoff_seconds is not None:
        wait = f"{view.backoff_seconds:.1f}".removesuffix(".0")
        parts.append(f"backing off {wait} s after {_times(view.failures, 'early death')}")
    return ", ".join(parts) or None


def _settled(view: View) -> str:
    """Say what serves; after a reload that did not end well, that too."""
    last = view.last_reload
    if _rolled_back(view):
        return f"reload rolled back, generation {view.generation} serves on"
    if last is not None and last.outcome is ReloadOutcome.PARTIAL:
        return f"reload to generation {last.generation} ended {last.outcome.value} {last.replaced}/{last.desired}"
    return f"generation {view.generation}"


def _rolled_back(view: View) -> bool:
    return view.last_reload is not None and view.last_reload.outcome is ReloadOutcome.ROLLED_BACK


def _times(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
