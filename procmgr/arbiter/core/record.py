"""The first step: record a fact or a wish, and decide only what it means for its worker or for what is desired."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Final, assert_never

from procmgr.arbiter.core import actions, events, reload
from procmgr.arbiter.core.actions import DrainMode, KillReason
from procmgr.arbiter.core.clock import judge_lateness
from procmgr.arbiter.core.losses import begin_stop, judge_loss
from procmgr.arbiter.core.policy import bounded

if TYPE_CHECKING:
    from collections.abc import Callable

    from procmgr.arbiter.core.events import BootFailure
    from procmgr.arbiter.core.model import State, Worker

_MIB: Final = 1024 * 1024
_GROWN: Final = 1.25
"""Times its size when fresh: by less than this a worker has not grown, and a replacement would be as large."""


def record(state: State, event: events.Event) -> None:
    """Record `event`; one about an unknown worker is a late fact about a buried one, and nothing."""
    if isinstance(event, events.Tick):
        return
    if isinstance(event, events.Beats):
        for worker_id, at in event.beats:
            if worker := state.workers.get(worker_id):
                worker.beat(at, state.now)
        judge_lateness(state)
    elif isinstance(event, events.MemoryShort):
        _relieve(state, event)
    elif isinstance(event, events.Wish):
        _record_wish(state, event)
    elif worker := state.workers.get(event.worker_id):
        _record_fact(state, worker, event)


def _record_fact(state: State, worker: Worker, fact: events.Fact) -> None:
    match fact:
        case events.Spawned():
            _spawned(state, worker, fact.pid)
        case events.SpawnFailed():
            _spawn_failed(state, worker, fact.failure)
        case events.Ready():
            _ready(state, worker)
        case events.BootFailed():
            worker.failure = fact.failure if worker.ready_at is None else None
        case events.Suspended():
            _suspended(state, worker)
        case events.DrainBegun():
            _drain_begun(state, worker)
        case events.RecycleDue():
            state.recycle(worker, fact.reason)
        case events.Measured():
            _measured(state, worker, fact.used)
        case events.Exited():
            _exited(state, worker, fact.exit)
        case _:
            assert_never(fact)


def _spawned(state: State, worker: Worker, pid: int) -> None:
    worker.fork(pid, state.now)
    if not (worker.present or worker.doomed or worker.drain):  # cancelled while its fork was under way
        state.cancel(worker)


def _spawn_failed(state: State, worker: Worker, failure: BootFailure) -> None:
    if worker.pid is not None:
        return
    del state.workers[worker.worker_id]
    worker.failure = failure
    if worker.present:
        judge_loss(state, worker)


def _ready(state: State, worker: Worker) -> None:
    if not worker.booting:
        return
    worker.serve(state.now)
    worker.lifetime_chance = state.random()
    state.ever_ready = True
    state.slots_booted.add(worker.slot)
    boot_seconds = state.now - worker.born
    state.out.append(actions.WorkerReady(worker.worker_id, worker.slot, worker.generation, boot_seconds))


def _suspended(state: State, worker: Worker) -> None:
    _kill_now(state, worker, KillReason.SUSPENDED)


def _kill_now(state: State, worker: Worker, reason: KillReason) -> None:
    lost = worker.present
    worker.doom(reason, state.now, state.now)
    if lost:
        judge_loss(state, worker)


def _measured(state: State, worker: Worker, used: int) -> None:
    """Hold its memory against the limits; what it used before it served is no reason to replace it."""
    policy = state.policy
    if policy.max_memory_hard and used > policy.max_memory_hard:
        _kill_now(state, worker, KillReason.MEMORY)
    elif worker.ready:
        limited = bool(policy.max_memory) and used > policy.max_memory
        if worker.fresh_size is None:
            worker.fresh_size = used
            if limited:
                state.out.append(actions.LimitTooLow(worker.worker_id, used, policy.max_memory))
        elif limited and worker.fresh_size <= policy.max_memory:
            state.recycle(worker, f"it uses {used / _MIB:.1f} MiB, max_memory is {policy.max_memory / _MIB:.1f} MiB")


def _relieve(state: State, event: events.MemoryShort) -> None:
    """Have the largest worker replaced, of those whose replacement will be smaller, unless workers come or go already.

    One at a time: a replacement needs memory before its predecessor gives its own back. In a stop all workers go.
    """
    if state.roll or not all(worker.ready and not worker.recycling for worker in state.workers.values()):
        return
    grown = [
        (used, worker)
        for worker_id, used in event.used
        if (worker := state.workers.get(worker_id)) and worker.fresh_size and used > _GROWN * worker.fresh_size
    ]
    if grown:
        used, worker = max(grown, key=lambda each: each[0])
        state.recycle(worker, f"memory is short and it uses the most, {used / _MIB:.1f} MiB")


def _drain_begun(state: State, worker: Worker) -> None:
    """Expect its end by the same deadline as if the pool had asked, and tell it that: its own may be far later."""
    if worker.present:
        state.drain(worker, DrainMode.RETIRE)
        judge_loss(state, worker)


def _exited(state: State, worker: Worker, exit_: events.Exit) -> None:
    del state.workers[worker.worker_id]
    worker.note_exit(exit_)
    state.out.append(
        actions.WorkerDied(
            worker_id=worker.worker_id,
            slot=worker.slot,
            generation=worker.generation,
            exit=exit_,
            age_seconds=state.now - worker.born,
            was_ready=worker.ready_at is not None,
            expected=not worker.present,
            killed=worker.killed or (worker.kill_reason if worker.aborted else None),
            failure=worker.failure,
        )
    )
    if worker.present:
        judge_loss(state, worker)


def _record_wish(state: State, wish: events.Wish) -> None:
    if isinstance(wish, events.Stop):
        _stop(state, wish.level)
        return
    if state.stop is not None:
        return
    match wish:
        case events.ScaleBy():
            _scale(state, lambda workers: workers + wish.delta)
        case events.ScaleTo():
            _scale(state, lambda _: wish.workers)
        case events.Reload():
            reload.accept(state, wish.policy)
        case _:
            assert_never(wish)


def _stop(state: State, level: events.StopLevel) -> None:
    if level is events.StopLevel.GRACEFUL and _takes_leave(state):
        return
    if state.stop is None or level > state.stop:
        begin_stop(state, level)


def _takes_leave(state: State) -> bool:
    """Whether a stop waits until those who send requests have heard of it."""
    delay = state.policy.shutdown_delay
    if state.leave_at == inf and delay and any(worker.ready for worker in state.workers.values()):
        state.leave_at = state.now + delay
        state.out.append(actions.Leaving(delay))
    return state.leave_at != inf


def _scale(state: State, change: Callable[[int], int]) -> None:
    """Scale now, and what a roll leads to likewise."""
    if state.roll:
        state.roll.workers = bounded(change(state.roll.workers))
    state.aim(bounded(change(state.target)))
