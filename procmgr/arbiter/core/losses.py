"""What the loss of a worker that was to stay means: the next spawn waits, a roll is set back, or the pool gives up."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from procmgr.arbiter.core.actions import GaveUp, Stopping
from procmgr.arbiter.core.events import BootFailure, StopLevel
from procmgr.arbiter.core.policy import Handover
from procmgr.arbiter.core.reload import end_all, set_back
from procmgr.errors import ExitCode

if TYPE_CHECKING:
    from procmgr.arbiter.core.model import State, Worker

_EXIT_CODES: Final[dict[BootFailure | None, ExitCode]] = {
    BootFailure.NOT_FOUND: ExitCode.APP_NOT_FOUND,
    BootFailure.REFUSED: ExitCode.OS_ERROR,
}


def judge_loss(state: State, worker: Worker) -> None:
    """Answer the loss of a worker that was to stay. Call it once, when the loss is known, even if it still runs."""
    if state.stop is not None:
        return
    fresh = _pace(state, worker)
    roll = state.roll
    if fresh and roll and worker.generation == roll.generation:
        set_back(state, roll, worker)
    _despair(state, worker.failure)


def _pace(state: State, worker: Worker) -> bool:
    """Replace at once what had served, else wait; False when a worker of the same round has failed already."""
    backoff = state.policy.backoff
    if worker.served(state.now, backoff.stable_after):
        state.pacer.succeed(worker)
        state.pacer.cut()
        return True
    return state.pacer.fail(worker, state.now, backoff, chance=state.random(), next_id=state.next_id)


def _despair(state: State, failure: BootFailure | None) -> None:
    """Give up when nothing was ever ready; never while newer code waits for its turn, or somebody is writing it."""
    attempts = state.pacer.failures
    writing = state.policy.handover is Handover.HOLD
    if state.ever_ready or state.pending or writing or attempts < state.policy.boot_attempts:
        return
    state.out.append(GaveUp(attempts, failure))
    state.gave_up = True
    state.exit_code = _EXIT_CODES.get(failure, ExitCode.APP_FAILED)
    enter_stop(state, StopLevel.GRACEFUL)


def begin_stop(state: State, level: StopLevel) -> None:
    """Say so and stop at `level`."""
    state.out.append(Stopping(level))
    enter_stop(state, level)


def enter_stop(state: State, level: StopLevel) -> None:
    """Stop at `level`: no reload outlives it."""
    state.stop = level
    end_all(state)
