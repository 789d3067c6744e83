"""The reload as a transaction: pending → begin → commit → done, or rolled back, partial, superseded, stopped.

Nothing here ends or spawns a worker. A roll only says which generation is tried, and a commit which one the pool is
made of from then on; `reconcile` does the rest. Until the commit the new policy applies to the new workers alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from procmgr.arbiter.core.actions import ReloadBegun, ReloadEnded, ReloadOutcome
from procmgr.arbiter.core.model import Request, Roll
from procmgr.arbiter.core.policy import retarget

if TYPE_CHECKING:
    from procmgr.arbiter.core.events import BootFailure
    from procmgr.arbiter.core.model import State, Worker
    from procmgr.arbiter.core.policy import Policy


def accept(state: State, policy: Policy) -> None:
    """Give a reload its generation; it takes the place of one that waits."""
    if state.pending:
        _end_pending(state, state.pending, ReloadOutcome.SUPERSEDED)
    state.newest += 1
    state.pending = Request(generation=state.newest, policy=policy)


def _adopt(state: State, policy: Policy, workers: int) -> None:
    """Decide by `policy` from now on; a beat is not held to a time-out that did not apply when it was due."""
    if policy.beat_timeout != state.policy.beat_timeout:
        for worker in state.workers.values():
            worker.beat(state.now, state.now)
    state.policy = policy
    state.aim(workers)


def begin(state: State) -> bool:
    """Begin the pending reload, unless it would discard a boot under way too soon after the last did.

    Under `Handover.HOLD` it is never too soon: what boots may not serve any more, and somebody waits for the newest.
    """
    request = state.pending
    if request is None or _full(state):
        return False
    if _boot_under_way(state):
        if state.now < state.supersede_at and state.awaited() is None:
            return False
        state.supersede_at = state.now + state.policy.boot_timeout
    if state.roll:
        _end_roll(state, state.roll, ReloadOutcome.SUPERSEDED)
    workers = retarget(state.target, state.policy, request.policy)
    state.pending = None
    state.roll = Roll(generation=request.generation, policy=request.policy, workers=workers)
    state.pacer.cut()
    state.out.append(ReloadBegun(request.generation))
    if not state.ever_ready:
        _commit(state, state.roll)  # there is nothing to fall back upon
    return True


def _full(state: State) -> bool:
    """Whether a roll waits for drains to end: one that began now would let more than the desired number drain."""
    ready = sum(worker.ready for worker in state.workers.values())
    return bool(state.roll and state.roll.committed and ready > state.target)


def _boot_under_way(state: State) -> bool:
    """Whether a reload that began now would discard what boots."""
    if state.ever_ready and state.roll is None:
        return False
    generation = state.roll.generation if state.roll else state.generation
    return any(worker.booting and worker.generation == generation for worker in state.workers.values())


def advance(state: State) -> bool:
    """Commit a roll whose generation is proven, end one that is complete; whether either happened."""
    roll = state.roll
    if roll is None:
        return False
    ready = _replaced(state, roll)
    if not roll.committed:
        if ready < roll.proof:
            return False
        _commit(state, roll)
        return True
    if ready < state.target or any(worker.generation != roll.generation for worker in state.present()):
        return False
    _end_roll(state, roll, ReloadOutcome.DONE)
    return True


def _commit(state: State, roll: Roll) -> None:
    roll.committed = True
    if state.ever_ready and state.policy.refork:
        roll.fallback = Request(generation=state.generation, policy=state.policy)
    state.generation = roll.generation
    _adopt(state, roll.policy, roll.workers)


def set_back(state: State, roll: Roll, worker: Worker) -> None:
    """Answer the loss of a new worker: roll back while that is possible, else count up to partial."""
    if not roll.committed:
        _end_roll(state, roll, ReloadOutcome.ROLLED_BACK, worker.failure)
        return
    roll.setbacks += 1
    # What was never ready, and is no development either, gives up instead (`losses`).
    lasting = state.ever_ready or state.awaited() is not None
    exhausted = lasting and roll.setbacks >= state.policy.boot_attempts
    if roll.fallback and (exhausted or worker.ready_at is None):
        _fall_back(state, roll.fallback)
        _end_roll(state, roll, ReloadOutcome.ROLLED_BACK, worker.failure)
    elif exhausted:
        _end_roll(state, roll, ReloadOutcome.PARTIAL, worker.failure)


def _fall_back(state: State, fallback: Request) -> None:
    """Make the pool of the old generation again; what is ready of the new one is replaced like any other stray."""
    state.generation = fallback.generation
    _adopt(state, fallback.policy, retarget(state.target, state.policy, fallback.policy))


def end_all(state: State) -> None:
    """End the roll and what waits, for a stop."""
    if state.roll:
        _end_roll(state, state.roll, ReloadOutcome.STOPPED)
    if state.pending:
        _end_pending(state, state.pending, ReloadOutcome.STOPPED)


def _end_roll(state: State, roll: Roll, outcome: ReloadOutcome, failure: BootFailure | None = None) -> None:
    replaced = _replaced(state, roll)
    kept = sum(worker.ready for worker in state.workers.values()) - replaced
    state.roll = None
    _report(state, ReloadEnded(roll.generation, outcome, replaced, state.target, failure, kept))


def _end_pending(state: State, request: Request, outcome: ReloadOutcome) -> None:
    state.pending = None
    _report(state, ReloadEnded(request.generation, outcome, 0, state.target, None))


def _report(state: State, ended: ReloadEnded) -> None:
    state.last_reload = ended
    state.out.append(ended)


def _replaced(state: State, roll: Roll) -> int:
    return sum(worker.ready and worker.generation == roll.generation for worker in state.workers.values())
