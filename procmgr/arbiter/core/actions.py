"""What the pool asks its shell to do, and what it wants said.

A `Command` has effects. A `Notice` has none: it is a decision or a fact for the log, for sd_notify and for whoever
waits for a reload. The shell executes actions in order.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from procmgr.arbiter.core.events import BootFailure, Exit, StopLevel


class DrainMode(Enum):
    """Why a worker drains, which decides how it treats idle connections and how long requests may run."""

    RETIRE = "retire"
    STOP = "stop"
    QUICK = "quick"


class KillReason(Enum):
    """Why procmgr sends KILL; the worker's death is reported with it."""

    BOOT_TIMEOUT = "it was not ready in time"
    HUNG = "its event loop was blocked"
    SUSPENDED = "it was stopped"
    MEMORY = "it used more memory than max_memory_hard"
    DRAIN_TIMEOUT = "it did not finish draining in time"
    TERM_IGNORED = "it did not end on TERM"
    STOPPING = "the stop was forced"


@dataclass(frozen=True, slots=True)
class Spawn:
    """Fork a worker; answered by `Spawned` or `SpawnFailed`."""

    worker_id: int
    slot: int
    generation: int


@dataclass(frozen=True, slots=True)
class Drain:
    """Tell a serving worker to drain until `deadline` (monotonic seconds); each one after the first is stricter."""

    worker_id: int
    mode: DrainMode
    deadline: float


@dataclass(frozen=True, slots=True)
class Pause:
    """Tell a serving worker to accept no more for now, and to let go of connections that wait for a next request."""

    worker_id: int


@dataclass(frozen=True, slots=True)
class Resume:
    """Tell a paused worker to accept again."""

    worker_id: int


@dataclass(frozen=True, slots=True)
class Terminate:
    """Send TERM to a worker that is still starting: nothing can be lost and it dies at once."""

    worker_id: int


@dataclass(frozen=True, slots=True)
class DumpStacks:
    """Have the worker's Python stacks written by its C-level handler, before the `Kill` that follows."""

    worker_id: int


@dataclass(frozen=True, slots=True)
class Abort:
    """Send ABRT to a hung worker, so that it leaves a core file before the `Kill` that follows."""

    worker_id: int


@dataclass(frozen=True, slots=True)
class Kill:
    """Send KILL."""

    worker_id: int
    reason: KillReason


@dataclass(frozen=True, slots=True)
class Finish:
    """Every worker is gone and none will come: leave with `exit_code` (an `errors.ExitCode` value)."""

    exit_code: int


@dataclass(frozen=True, slots=True)
class WorkerReady:
    """Notice: a worker serves."""

    worker_id: int
    slot: int
    generation: int
    boot_seconds: float


@dataclass(frozen=True, slots=True)
class WorkerDied:
    """Notice: a worker is gone.

    `killed` is set when procmgr killed or aborted it, `expected` when it was on its way out already: told to end, given
    up, or draining because an operator sent it TERM.
    """

    worker_id: int
    slot: int
    generation: int
    exit: Exit
    age_seconds: float
    was_ready: bool
    expected: bool
    killed: KillReason | None
    failure: BootFailure | None


@dataclass(frozen=True, slots=True)
class WorkerRecycled:
    """Notice: a worker that reached a limit will be replaced, then retired."""

    worker_id: int
    slot: int
    reason: str


@dataclass(frozen=True, slots=True)
class LimitTooLow:
    """Notice: a worker that has not served yet uses `used` bytes, more than max_memory; it will not be replaced for it.

    Its replacement would use as much, and be replaced in its turn, and so on.
    """

    worker_id: int
    used: int
    limit: int


@dataclass(frozen=True, slots=True)
class LoopLate:
    """Notice: a worker's beat is overdue by `seconds`. Once for each lateness: the next one follows a beat."""

    worker_id: int
    seconds: float


@dataclass(frozen=True, slots=True)
class BackingOff:
    """Notice: the next spawn waits `seconds`, after `failures` young deaths in a row.

    Deaths of workers that ran at the same time count once: eight workers that fail together are one failure.
    """

    seconds: float
    failures: int


@dataclass(frozen=True, slots=True)
class PoolReady:
    """Notice: every desired worker has been ready once (sent once in the pool's life)."""


@dataclass(frozen=True, slots=True)
class ReloadBegun:
    """Notice: a roll towards `generation` started."""

    generation: int


class ReloadOutcome(Enum):
    """How a reload ended."""

    DONE = "done"
    ROLLED_BACK = "rolled back"
    PARTIAL = "partial"
    SUPERSEDED = "superseded"
    STOPPED = "cut short by a stop"


@dataclass(frozen=True, slots=True)
class ReloadEnded:
    """Notice: a reload ended; `replaced` of `desired` workers are ready and of `generation`, `kept` of another.

    Every accepted `Reload` is answered by exactly one. One that a newer reload overtook before its roll began ends as
    SUPERSEDED without a `ReloadBegun`. `failure` is None when the worker died without a word.
    """

    generation: int
    outcome: ReloadOutcome
    replaced: int
    desired: int
    failure: BootFailure | None
    kept: int = 0


@dataclass(frozen=True, slots=True)
class Scaled:
    """Notice: the desired number of workers changed."""

    workers: int


@dataclass(frozen=True, slots=True)
class Leaving:
    """Notice: a stop was asked for and begins in `seconds`; until then the pool serves on, as if nothing were."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Stopping:
    """Notice: a stop began or became more urgent."""

    level: StopLevel


@dataclass(frozen=True, slots=True)
class GaveUp:
    """Notice: nothing was ever ready in `attempts` rounds of boots; `Finish` follows once the rest is gone."""

    attempts: int
    failure: BootFailure | None


@dataclass(frozen=True, slots=True)
class ClockJumped:
    """Notice: the arbiter did not run for about `seconds`; every deadline was moved by as much."""

    seconds: float


Command = Spawn | Drain | Pause | Resume | Terminate | DumpStacks | Abort | Kill | Finish
Notice = (
    WorkerReady
    | WorkerDied
    | WorkerRecycled
    | LimitTooLow
    | LoopLate
    | BackingOff
    | PoolReady
    | ReloadBegun
    | ReloadEnded
    | Scaled
    | Leaving
    | Stopping
    | GaveUp
    | ClockJumped
)
Action = Command | Notice
