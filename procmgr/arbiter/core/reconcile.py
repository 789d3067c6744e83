"""The third step: bring what there is to what is desired, ending first and spawning last; or press a stop on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from procmgr.arbiter.core.actions import BackingOff, DrainMode, KillReason, Pause, Resume, Spawn
from procmgr.arbiter.core.events import StopLevel
from procmgr.arbiter.core.model import Worker
from procmgr.arbiter.core.plan import Cohort, plan, slot_for, twins
from procmgr.arbiter.core.reload import advance, begin

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

    from procmgr.arbiter.core.model import State


def reconcile(state: State) -> None:
    """End what is too many, move the reload on, until nothing changes; then spawn what is missing."""
    changed = True
    while changed:
        changed = advance(state)
        _trim(state)
        changed |= advance(state)
        changed |= begin(state)
    _hold(state)
    _fill(state)


def _cohorts(state: State) -> list[Cohort]:
    present, roll = state.present(), state.roll
    if roll is None or roll.committed:
        return [_cohort(state, present, _outdated(state, present), extra=state.policy.surge)]
    new = [worker for worker in present if worker.generation == roll.generation]
    old = [worker for worker in present if worker.generation != roll.generation]
    trial = Cohort(generation=roll.generation, wanted=roll.trials, extra=0, members=new, outdated=frozenset())
    return [trial, _cohort(state, old, _strays(state, old), extra=0)]


def _cohort(state: State, members: list[Worker], outdated: AbstractSet[Worker], *, extra: int) -> Cohort:
    return Cohort(generation=state.generation, wanted=state.target, extra=extra, members=members, outdated=outdated)


def _outdated(state: State, present: list[Worker]) -> set[Worker]:
    """Return whom to replace: in a roll all of another generation; else strays, twins and what is to be recycled."""
    if state.roll:
        return {worker for worker in present if worker.generation != state.generation}
    strays = _strays(state, present)
    settled = [worker for worker in present if worker not in strays]
    return strays | {worker for worker in settled if worker.recycling} | set(twins(settled))


def _strays(state: State, present: list[Worker]) -> set[Worker]:
    """Return the workers of generations that were rolled back, or overtaken before they were proven."""
    return {worker for worker in present if worker.generation > state.generation}


def _trim(state: State) -> None:
    """End what is too many. No more than the desired number drain for the sake of being replaced."""
    draining = sum(worker.drain is not None for worker in state.workers.values())
    for cohort in _cohorts(state):
        todo = plan(cohort, room=max(0, state.target - draining))
        for worker in todo.cancel:
            state.cancel(worker)
        for worker in todo.retire:
            state.drain(worker, DrainMode.RETIRE)
            if state.roll:
                state.roll.setbacks = 0


def _hold(state: State) -> None:
    """Pause whoever serves older code than what is awaited, and resume all others."""
    awaited = state.awaited()
    for worker in state.workers.values():
        paused = awaited is not None and worker.generation != awaited
        if worker.ready and paused is not worker.paused:
            worker.paused = paused
            state.out.append(Pause(worker.worker_id) if paused else Resume(worker.worker_id))


def _fill(state: State) -> None:
    """Spawn what is missing, as far as the back-off allows; the trial of a new generation comes first."""
    state.pacer.waiting = False
    for cohort in _cohorts(state):
        for _ in range(plan(cohort, room=0).missing):
            if not _may_spawn(state):
                return
            _spawn(state, cohort)


def _may_spawn(state: State) -> bool:
    pacer = state.pacer
    if pacer.until <= state.now:
        return not (pacer.failures and any(worker.booting for worker in state.workers.values()))
    pacer.waiting = True
    if not pacer.announced:
        pacer.announced = True
        state.out.append(BackingOff(pacer.until - state.now, pacer.failures))
    return False


def _spawn(state: State, cohort: Cohort) -> None:
    roll = state.roll
    policy = roll.policy if roll and roll.generation == cohort.generation else state.policy
    worker = Worker(
        worker_id=state.next_id,
        slot=slot_for(cohort, state.present()),
        generation=cohort.generation,
        boot_deadline=state.now + policy.boot_timeout,
        born=state.now,
        since=state.now,
    )
    state.next_id += 1
    state.workers[worker.worker_id] = worker
    cohort.members.append(worker)
    state.out.append(Spawn(worker.worker_id, worker.slot, worker.generation))


def press_stop(state: State, level: StopLevel) -> None:
    """See that every worker is on its way out as urgently as the stop asks."""
    mode = DrainMode.STOP if level is StopLevel.GRACEFUL else DrainMode.QUICK
    for worker in state.workers.values():
        if level is StopLevel.KILL:
            worker.doom(KillReason.STOPPING, state.now, state.now)
        elif worker.booting:
            state.cancel(worker)
        elif worker.ready or worker.drain:
            state.drain(worker, mode)


def kill_due(state: State) -> None:
    """Send the KILLs that are due; last of all, so that a replacement is on its way before."""
    for worker in state.workers.values():
        if worker.kill_due() <= state.now:
            state.out.append(worker.kill())
        elif worker.abort_due() <= state.now:
            state.out.append(worker.abort())
