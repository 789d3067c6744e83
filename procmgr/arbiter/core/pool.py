"""The pool: every decision about workers, as a state machine without I/O.

Laws, held by tests/unit/test_pool_laws.py and tests/sim on random events and simulated time:

1. A pool that was ever ready never stops serving because of a reload, a scale or a bad configuration; `Handover.HOLD`
   excepted, under which connections wait for a reload to end.
2. Ready workers never fall below the desired number because of anything the pool chose to do, except that it ends a
   hung or stopped one; starting + ready ≤ desired + surge.
3. Every worker gets TERM at most once, KILL at most once, and never a milder drain after a stricter one.
4. No spawn after a stop, none before its back-off has passed, none of a generation that was rolled back.
5. `deadline()` is None or later than `now` after every `handle`: no busy loop.
6. A stop begins `shutdown_delay` after it was asked for, or at once if it is urgent or nobody serves. It ends within
   the drain and kill bounds. A reload ends in bounded time, however slow the boot.
7. When the clock jumps nobody is killed for it.
8. Every state answers every event, and worker ids are never reused.
9. A pool restored from its snapshot answers every event as the first would have done.
10. A ready worker is paused if and only if, under `Handover.HOLD`, a reload to another generation than its own is under
    way or waits; so none is paused once the reload has ended, whatever way it did.

Theory of operation. Each event takes the same steps: *record* the fact or the wish, *expire* the deadlines that have
passed, *reconcile* what is desired with what there is (end what is too many, then spawn what is missing), and last send
the KILLs that are due, so that a replacement is on its way before them. Nothing is remembered but state: no step knows
which event led to it, so overlapping wishes need no case of their own.

Decided here:
- `generation` is what replacements are made of: the newest one that is proven, i.e. whose roll was committed. During an
  uncommitted roll and after a rollback that is the old one; after a commit, and so after a partial reload, the new one.
  Old workers kept by a partial or overtaken reload serve on, and are replaced as they leave. Only a generation that can
  be forked again (`Policy.refork`) takes the place of a newer one that fails between its commit and the roll's end.
- A reload may discard a boot under way once in `boot_timeout`; a later one waits as pending, and only the newest waits.
- The deaths of workers that ran at the same time are one failure, for the back-off as for giving up.
- The death of a worker that had served cuts a wait short; it neither ends nor lengthens the row of failures.
- A young death that begins a row is answered at once if the worker was ready: somebody may have killed it.
- A stop reaches workers that are retiring already, since STOP lets idle connections go at once; their deadline is never
  put off by it.
- A worker that is given up (late boot, old beat, stopped process) stays so, whatever it says afterwards.
- A worker that drains because somebody outside sent it TERM is a loss like a crash, only not reported as one: without
  the back-off an application that ends itself at once would be forked in a tight loop.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Any, Final, Self

from procmgr.arbiter.core import snapshot
from procmgr.arbiter.core.actions import Action, Finish, PoolReady
from procmgr.arbiter.core.clock import expire, measure_pause, next_wake
from procmgr.arbiter.core.model import Phase, State
from procmgr.arbiter.core.reconcile import kill_due, press_stop, reconcile
from procmgr.arbiter.core.record import record
from procmgr.arbiter.core.view import View, WorkerState, WorkerView

if TYPE_CHECKING:
    from collections.abc import Callable

    from procmgr.arbiter.core.events import Event
    from procmgr.arbiter.core.model import Worker
    from procmgr.arbiter.core.policy import Policy

_STATES: Final = {
    Phase.FORKING: WorkerState.STARTING,
    Phase.STARTING: WorkerState.STARTING,
    Phase.READY: WorkerState.READY,
    Phase.LEAVING: WorkerState.DRAINING,
}


class Pool:
    """The state machine. `now` is monotonic seconds throughout; `random` answers numbers in [0, 1), for the jitter."""

    __slots__ = ("_state", "_wake")

    def __init__(self, policy: Policy, *, now: float, random: Callable[[], float]) -> None:
        self._state = State(policy=policy, random=random, now=now, target=policy.workers)
        self._wake: float | None = None

    @classmethod
    def restore(cls, data: dict[str, Any], *, random: Callable[[], float]) -> Self:
        """Return the pool that `snapshot` described; it answers any event as that one would.

        Raises `plain.PlainError` when the data is not a snapshot that this release understands.
        """
        pool = cls.__new__(cls)
        pool._state, pool._wake = snapshot.read(data, random)  # noqa: SLF001 - of its own class
        return pool

    def snapshot(self) -> dict[str, Any]:
        """Return all that the pool remembers, as data for `json.dumps`. Not to be called within `handle`."""
        return snapshot.write(self._state, self._wake)

    def handle(self, event: Event, now: float) -> list[Action]:
        """Record `event` and return what is to be done, in order. Raises for no event in any state.

        The first call spawns the workers. The shell answers every `Spawn` by `Spawned` or `SpawnFailed`.
        """
        state = self._state
        if state.finished:
            return []
        state.out = []
        measure_pause(state, max(now, state.now), wake=self._wake)
        record(state, event)
        policy = None
        while policy is not state.policy:  # a roll that is committed brings a new one, and so other deadlines
            policy = state.policy
            expire(state)
            if state.stop is None:
                reconcile(state)
            else:
                press_stop(state, state.stop)
        kill_due(state)
        _announce(state)
        self._wake = next_wake(state)
        return state.out

    def deadline(self) -> float | None:
        """Return when to call `handle` at the latest, with `Tick` if nothing else happens; None is never.

        The shell passes on the `Beats` before, or instead of, that call, so that no worker is judged by a stale one.
        """
        return self._wake

    def view(self) -> View:
        """Return a snapshot."""
        state, pacer = self._state, self._state.pacer
        waiting = pacer.waiting and state.stop is None
        trying = state.roll.policy if state.roll else state.policy
        return View(
            desired=state.target,
            surge=trying.surge,
            generation=state.generation,
            newest_generation=state.newest,
            rolling=state.roll.generation if state.roll else None,
            pending=state.pending.generation if state.pending else None,
            last_reload=state.last_reload,
            workers=tuple(_show(worker) for worker in sorted(state.workers.values(), key=_by_slot)),
            failures=pacer.failures,
            backoff_until=pacer.until if waiting else None,
            backoff_seconds=pacer.delay if waiting else None,
            stop=state.stop,
            leaving=state.stop is None and state.leave_at != inf,
            gave_up=state.gave_up,
            ever_ready=state.ever_ready,
            pool_ready=state.pool_ready,
        )


def _announce(state: State) -> None:
    """Say that the pool is ready, or finished; each once."""
    if state.stop is None:
        if not state.pool_ready and len(state.slots_booted) >= state.target:
            state.pool_ready = True
            state.out.append(PoolReady())
    elif not state.workers:
        state.finished = True
        state.out.append(Finish(state.exit_code))


def _by_slot(worker: Worker) -> tuple[int, int]:
    return worker.slot, worker.worker_id


def _show(worker: Worker) -> WorkerView:
    return WorkerView(
        worker_id=worker.worker_id,
        slot=worker.slot,
        generation=worker.generation,
        pid=worker.pid,
        state=_STATES[worker.phase],
        born=worker.born,
        since=worker.since,
        given_up=worker.doomed,
    )
