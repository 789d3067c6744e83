"""The facts the pool keeps: one mutable record per worker, one for the reload under way, and the state that holds both.

A worker lives through forking → starting → ready → leaving; when its process is reaped its record goes. The first three
phases are *present*: they count as capacity, now or soon. Leaving is everything that will end in death, whether it
drains, was terminated or waits for its KILL, and it never goes back. Each method here is one transition of one worker;
it answers the command that belongs to it and leaves times in the record for the pool's clock to find.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from math import inf
from typing import TYPE_CHECKING, Final

from procmgr.arbiter.core.actions import Abort, Drain, DrainMode, Kill, KillReason, Scaled, Terminate, WorkerRecycled
from procmgr.arbiter.core.events import BootFailure
from procmgr.arbiter.core.pacing import Pacer
from procmgr.arbiter.core.policy import Handover
from procmgr.errors import ExitCode

if TYPE_CHECKING:
    from collections.abc import Callable

    from procmgr.arbiter.core.actions import Action, ReloadEnded
    from procmgr.arbiter.core.events import Exit, StopLevel
    from procmgr.arbiter.core.policy import Policy

STRICTNESS: Final = {DrainMode.RETIRE: 1, DrainMode.STOP: 2, DrainMode.QUICK: 3}
# The scoreboard is read after the shell took its `now`, so an honest beat may be a little newer than that.
BEAT_TOLERANCE: Final = 1.0


class Phase(Enum):
    """Where in its life a worker is."""

    FORKING = "forking"
    STARTING = "starting"
    READY = "ready"
    LEAVING = "leaving"


@dataclass(slots=True, kw_only=True, eq=False)
class Worker:
    """One worker, from the wish to fork it until it is reaped. Times are monotonic seconds; `inf` is never."""

    worker_id: int
    slot: int
    generation: int
    boot_deadline: float
    born: float
    since: float
    pid: int | None = None
    phase: Phase = Phase.FORKING
    ready_at: float | None = None
    beat_at: float = inf
    late: bool = False
    excused_until: float = -inf
    lifetime_chance: float = 0.0
    fresh_size: int | None = None
    recycling: bool = False
    paused: bool = False
    drain: DrainMode | None = None
    drain_deadline: float = inf
    terminated: bool = False
    doomed: bool = False
    abort_at: float = inf
    aborted: bool = False
    kill_at: float = inf
    kill_reason: KillReason = KillReason.STOPPING
    killed: KillReason | None = None
    failure: BootFailure | None = None

    @property
    def present(self) -> bool:
        """Whether it counts as capacity, now or soon."""
        return self.phase is not Phase.LEAVING

    @property
    def booting(self) -> bool:
        """Whether it is on its way to ready."""
        return self.phase in {Phase.FORKING, Phase.STARTING}

    @property
    def ready(self) -> bool:
        """Whether it serves and is to go on serving."""
        return self.phase is Phase.READY

    def served(self, now: float, stable_after: float) -> bool:
        """Whether it was ready for long enough that its death says nothing about its code."""
        return self.stable_at(stable_after) <= now

    def stable_at(self, stable_after: float) -> float:
        """Return when it will have served long enough; `inf` before it is ready."""
        return inf if self.ready_at is None else self.ready_at + stable_after

    def enter(self, phase: Phase, now: float) -> None:
        """Move on to `phase`."""
        self.phase = phase
        self.since = now

    def fork(self, pid: int, now: float) -> None:
        """Record the process. Its boot deadline runs already: what its fork had to wait for is part of the boot."""
        self.pid = pid
        if self.phase is Phase.FORKING:
            self.born = now
            self.enter(Phase.STARTING, now)

    def serve(self, now: float) -> None:
        """Record that it is ready; the beat counts from here."""
        self.ready_at = self.beat_at = now
        self.failure = None
        self.enter(Phase.READY, now)

    def beat(self, at: float, now: float) -> None:
        """Record a beat of one that was ready. Cells are untrusted: what is no number, or of the future, is no beat."""
        if self.beat_at < at <= now + BEAT_TOLERANCE:
            self.beat_at = min(at, now)
            self.late = False

    def note_exit(self, exit_: Exit) -> None:
        """Read the boot failure from the exit status of a worker that died before it could tell."""
        if self.ready_at is None and self.failure is None:
            self.failure = _FAILURES.get(exit_.code)

    def boot_expires(self) -> float:
        """Return when it is late to be ready; `inf` once it is, or is leaving."""
        return self.boot_deadline if self.phase is Phase.STARTING else inf

    def hung_at(self, beat_timeout: float) -> float:
        """Return when its newest beat is too old; `inf` while the beat does not count."""
        if self.doomed or self.killed or not beat_timeout:
            return inf
        return self.beat_at + beat_timeout  # which is `inf` before it is ready

    def late_at(self, policy: Policy) -> float:
        """Return when its beat is overdue by so much that it is to be said; `inf` if it was, or it is given up."""
        if not policy.slow_loop or self.late or self.doomed or self.killed:
            return inf
        return max(self.beat_at + policy.beat_interval + policy.slow_loop, self.excused_until)

    def excuse(self, until: float) -> None:
        """Take its beat for timely until then: the arbiter did not run either."""
        self.excused_until = max(self.excused_until, until)

    def expires_at(self, policy: Policy) -> float:
        """Return when it has served for as long as it may; `inf` while it does not serve or is to be replaced."""
        if not (policy.max_lifetime and self.ready and self.ready_at is not None) or self.recycling:
            return inf
        return self.ready_at + policy.max_lifetime + policy.max_lifetime_jitter * self.lifetime_chance

    def cancel(self, now: float, kill_grace: float) -> Terminate | None:
        """End a worker that does not serve yet; one whose fork is not reported yet is told once it is."""
        if self.present:
            self.enter(Phase.LEAVING, now)
        if self.pid is None or self.terminated:
            return None
        self.terminated = True
        self.kill_by(now + kill_grace, KillReason.TERM_IGNORED)
        return Terminate(self.worker_id)

    def drain_by(self, mode: DrainMode, deadline: float, now: float, kill_grace: float) -> Drain | None:
        """Begin to drain, or drain more strictly; a deadline never moves back, and a repetition is nothing."""
        if self.doomed or self.killed or (self.drain and STRICTNESS[mode] <= STRICTNESS[self.drain]):
            return None
        if self.present:
            self.enter(Phase.LEAVING, now)
        self.drain = mode
        self.drain_deadline = min(self.drain_deadline, deadline)
        self.kill_by(self.drain_deadline + kill_grace, KillReason.DRAIN_TIMEOUT)
        return Drain(self.worker_id, mode, self.drain_deadline)

    def doom(self, reason: KillReason, at: float, now: float) -> None:
        """Give it up: it is killed at `at` for `reason`, whatever it says until then."""
        if self.present:
            self.enter(Phase.LEAVING, now)
        self.doomed = True
        self.kill_by(at, reason)

    def kill_by(self, at: float, reason: KillReason) -> None:
        """Bring its KILL forward to `at`; never put it off."""
        if at < self.kill_at:
            self.kill_at = at
            self.kill_reason = reason

    def abort(self) -> Abort:
        """Have it leave a core file; if that takes too long its KILL follows."""
        self.aborted = True
        return Abort(self.worker_id)

    def abort_due(self) -> float:
        """Return when to abort it; as with its KILL, never before its fork is reported."""
        return inf if self.aborted or self.killed or self.pid is None else self.abort_at

    def kill(self) -> Kill:
        """Kill it; only its `Exited` can follow."""
        self.killed = self.kill_reason
        return Kill(self.worker_id, self.kill_reason)

    def kill_due(self) -> float:
        """Return when to kill it; never before its fork is reported, since nobody could."""
        return inf if self.killed or self.pid is None else self.kill_at

    def shift(self, seconds: float) -> None:
        """Move what is measured against the clock; its age stays."""
        self.boot_deadline += seconds
        self.beat_at += seconds
        self.drain_deadline += seconds
        self.abort_at += seconds
        self.kill_at += seconds


_FAILURES: Final[dict[int | None, BootFailure]] = {
    ExitCode.APP_FAILED: BootFailure.FAILED,
    ExitCode.APP_NOT_FOUND: BootFailure.NOT_FOUND,
}


@dataclass(slots=True, kw_only=True)
class Request:
    """A reload that is asked for and has not begun."""

    generation: int
    policy: Policy


@dataclass(slots=True, kw_only=True)
class Roll:
    """The reload under way. Its policy and its number of workers become the pool's when it is committed.

    It is committed once the new generation is proven: a worker of it is ready, or with a surge of the whole pool all
    are. Before, any loss of a new worker rolls it back; from then on `setbacks` counts the losses since one was last
    retired for it, and `boot_attempts` of them end it as partial.
    """

    generation: int
    policy: Policy
    workers: int
    committed: bool = False
    setbacks: int = 0
    fallback: Request | None = None

    @property
    def trials(self) -> int:
        """How many new workers may be present before the commit."""
        return min(self.policy.surge, self.workers)

    @property
    def proof(self) -> int:
        """How many new workers must be ready for the commit."""
        return 1 if self.policy.surge < self.workers else self.workers


@dataclass(slots=True, kw_only=True, eq=False)
class State:
    """All the pool knows. `out` collects the answer to the event at hand; `now` is its time.

    At `leave_at` a stop begins that was asked for before; `inf` if none was.
    """

    policy: Policy
    random: Callable[[], float]
    now: float
    target: int
    out: list[Action] = field(default_factory=list)
    workers: dict[int, Worker] = field(default_factory=dict)
    next_id: int = 1
    generation: int = 1
    newest: int = 1
    roll: Roll | None = None
    pending: Request | None = None
    supersede_at: float = -inf
    last_reload: ReloadEnded | None = None
    pacer: Pacer = field(default_factory=Pacer)
    slots_booted: set[int] = field(default_factory=set)
    ever_ready: bool = False
    pool_ready: bool = False
    stop: StopLevel | None = None
    leave_at: float = inf
    gave_up: bool = False
    exit_code: ExitCode = ExitCode.OK
    finished: bool = False

    def present(self) -> list[Worker]:
        """Return the workers that count as capacity, now or soon."""
        return [worker for worker in self.workers.values() if worker.present]

    def cancel(self, worker: Worker) -> None:
        """End a worker that does not serve yet."""
        if command := worker.cancel(self.now, self.policy.kill_grace):
            self.out.append(command)

    def drain(self, worker: Worker, mode: DrainMode) -> None:
        """Have a worker drain in `mode`, within the time the policy gives for it."""
        if command := worker.drain_by(mode, self.now + self.patience(mode), self.now, self.policy.kill_grace):
            self.out.append(command)

    def recycle(self, worker: Worker, reason: str) -> None:
        """Have a worker replaced, and retired once its replacement serves."""
        if worker.present and not worker.recycling:
            worker.recycling = True
            self.out.append(WorkerRecycled(worker.worker_id, worker.slot, reason))

    def patience(self, mode: DrainMode) -> float:
        """Return how long a drain may last, seconds; old code that newer code was held back for goes quickly."""
        outdone = self.awaited() is not None  # never in a stop
        return self.policy.quick_timeout if outdone or mode is DrainMode.QUICK else self.policy.graceful_timeout

    def awaited(self) -> int | None:
        """Return the generation that alone may accept connections; None when every ready worker may."""
        coming = self.pending or self.roll
        return coming.generation if coming and self.policy.handover is Handover.HOLD else None

    def aim(self, workers: int) -> None:
        """Set the desired number of workers."""
        if workers != self.target:
            self.target = workers
            self.out.append(Scaled(workers))
