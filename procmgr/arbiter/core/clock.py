"""Time: what has expired, when to be woken next, and what to make of a clock that jumped.

Every deadline is compared as `deadline <= now` and announced as the same sum, so that floating point cannot make a
deadline both past and not yet expired: that would be a busy loop.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Final

from procmgr.arbiter.core.actions import ClockJumped, DumpStacks, KillReason, LoopLate
from procmgr.arbiter.core.events import BootFailure, StopLevel
from procmgr.arbiter.core.losses import begin_stop, judge_loss

if TYPE_CHECKING:
    from collections.abc import Iterator

    from procmgr.arbiter.core.model import State, Worker

# While anything is timed the pool asks to be woken at least this often, and takes a call that comes LATE after the time
# it asked for as a pause of the arbiter. Together they bound the pause that goes unnoticed, well below any sensible
# time-out, so that it cannot make a healthy worker look hung.
WATCH: Final = 5.0
LATE: Final = 2.0

# A beat that is overdue says nothing about its worker when the arbiter is late as well: the machine is busy, or both
# were frozen. If so by more than PUNCTUAL, workers have EXCUSE to beat before they are called late.
PUNCTUAL: Final = 0.1
EXCUSE: Final = 0.5


def measure_pause(state: State, now: float, *, wake: float | None) -> None:
    """Set the time; if this call is far later than `wake`, move all deadlines and beats by the time since the last one.

    By all of that time and not just the lateness: when within it the arbiter stopped is unknown, and a worker that was
    suspended along with it had none of it.
    """
    pause = now - state.now
    state.now = now
    if wake is not None and now - wake > PUNCTUAL:
        for worker in state.workers.values():
            worker.excuse(now + EXCUSE)
    if wake is None or now - wake <= LATE:
        return
    for worker in state.workers.values():
        worker.shift(pause)
    state.pacer.until += pause
    state.supersede_at += pause
    state.out.append(ClockJumped(pause))


def expire(state: State) -> None:
    """Give up on workers that are late, and end the row of young deaths when a trial has proved itself."""
    for worker in state.workers.values():
        if worker.boot_expires() <= state.now:
            worker.failure = worker.failure or BootFailure.TIMED_OUT
            _give_up_on(state, worker, KillReason.BOOT_TIMEOUT)
        elif worker.hung_at(state.policy.beat_timeout) <= state.now:
            _give_up_on(state, worker, KillReason.HUNG)
        elif worker.expires_at(state.policy) <= state.now:
            state.recycle(worker, f"it served for {state.policy.max_lifetime:g} s or more")
    if state.stop is None and state.leave_at <= state.now:
        begin_stop(state, StopLevel.GRACEFUL)
    for worker in state.workers.values():
        if worker.ready and worker.served(state.now, state.policy.backoff.stable_after):
            state.pacer.succeed(worker)


def _give_up_on(state: State, worker: Worker, reason: KillReason) -> None:
    """Have its stacks dumped and kill it soon after. A late sign of life does not save it: the age was proven."""
    lost = worker.present
    kill_at = state.now + state.policy.dump_grace
    if reason is KillReason.HUNG:
        worker.abort_at = kill_at
        kill_at += state.policy.core_grace
    worker.doom(reason, kill_at, state.now)
    state.out.append(DumpStacks(worker.worker_id))
    if lost:
        judge_loss(state, worker)


def judge_lateness(state: State) -> None:
    """Say once of a loop that it is late. Call it when the newest beats were just read: by old ones all look late."""
    policy = state.policy
    for worker in state.workers.values():
        if worker.late_at(policy) <= state.now < worker.hung_at(policy.beat_timeout):
            worker.late = True
            state.out.append(LoopLate(worker.worker_id, state.now - worker.beat_at - policy.beat_interval))


def next_wake(state: State) -> float | None:
    """Return when something expires, but no later than `WATCH` from now; None when nothing is timed."""
    earliest = min(_deadlines(state), default=inf)
    return None if earliest == inf else min(earliest, state.now + WATCH)


def _deadlines(state: State) -> Iterator[float]:
    if state.stop is None:
        yield state.leave_at
        if state.pacer.waiting:
            yield state.pacer.until
    if state.pending and state.supersede_at > state.now:
        yield state.supersede_at
    for worker in state.workers.values():
        yield from _worker_deadlines(state, worker)


def _worker_deadlines(state: State, worker: Worker) -> Iterator[float]:
    yield worker.boot_expires()
    yield worker.hung_at(state.policy.beat_timeout)
    # Past already if the event at hand brought no beats; at the next call it will.
    yield max(worker.late_at(state.policy), state.now + PUNCTUAL)
    yield worker.expires_at(state.policy)
    yield worker.abort_due()
    yield worker.kill_due()
    if state.pacer.failures and worker.ready and state.pacer.on_trial(worker):
        yield worker.stable_at(state.policy.backoff.stable_after)
