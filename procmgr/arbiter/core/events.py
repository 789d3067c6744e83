"""What can happen to the pool: every fact and every wish, as one closed union.

Facts come from the operating system or from a worker (`Spawned`, `Ready`, `Exited`, …) and are true already when they
arrive. Wishes come from signals, the control socket and the configuration (`Scale`, `Reload`, `Stop`) and change only
what is *desired*. The pool answers each in any state; an unknown worker id is a late fact about a buried worker.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from procmgr.arbiter.core.policy import Policy


class BootFailure(Enum):
    """Why a worker could not become ready: the first two as it told itself, the others as the arbiter saw."""

    NOT_FOUND = "the application could not be found"
    FAILED = "the application failed to start"
    TIMED_OUT = "it was not ready in time"
    REFUSED = "the operating system refused to start a process"


class StopLevel(IntEnum):
    """How urgently to stop; a later wish only ever raises it."""

    GRACEFUL = 1
    QUICK = 2
    KILL = 3


@dataclass(frozen=True, slots=True)
class Exit:
    """How a process ended (wait(2)): either `code`, or `signal` with `core` telling whether it left a core file."""

    code: int | None = None
    signal: int | None = None
    core: bool = False


@dataclass(frozen=True, slots=True)
class Tick:
    """Nothing happened but time."""


@dataclass(frozen=True, slots=True)
class Spawned:
    """The fork that a `Spawn` action asked for succeeded."""

    worker_id: int
    pid: int


@dataclass(frozen=True, slots=True)
class SpawnFailed:
    """The fork that a `Spawn` action asked for did not come about; there is no process."""

    worker_id: int
    reason: str
    failure: BootFailure = BootFailure.REFUSED


@dataclass(frozen=True, slots=True)
class Ready:
    """The worker finished its lifespan startup and accepts connections."""

    worker_id: int


@dataclass(frozen=True, slots=True)
class BootFailed:
    """The worker says why it cannot start; its `Exited` follows."""

    worker_id: int
    failure: BootFailure


@dataclass(frozen=True, slots=True)
class Beats:
    """The newest beat of each worker, read from the scoreboard: (worker id, monotonic seconds)."""

    beats: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class Suspended:
    """The worker's process is stopped (state T in proc(5)): it will neither beat nor answer."""

    worker_id: int


@dataclass(frozen=True, slots=True)
class DrainBegun:
    """The worker began to drain on its own: somebody outside sent it TERM."""

    worker_id: int


@dataclass(frozen=True, slots=True)
class RecycleDue:
    """The worker reached a limit (requests, lifetime, memory); it serves until it is replaced and retired."""

    worker_id: int
    reason: str


@dataclass(frozen=True, slots=True)
class Measured:
    """The worker uses so much memory, bytes. The first one after `Ready` is what it needs before it has served."""

    worker_id: int
    used: int


@dataclass(frozen=True, slots=True)
class MemoryShort:
    """The machine, or the service's part of it, is short of memory; (worker id, bytes) of each that was measured."""

    used: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Exited:
    """The worker's process is gone and reaped. Only this, never a closed channel, is a worker's death."""

    worker_id: int
    exit: Exit


@dataclass(frozen=True, slots=True)
class ScaleBy:
    """Change the desired number of workers by `delta`; it never falls below one."""

    delta: int


@dataclass(frozen=True, slots=True)
class ScaleTo:
    """Set the desired number of workers; at least one."""

    workers: int


@dataclass(frozen=True, slots=True)
class Reload:
    """Replace every worker by one of a new generation, under `policy`."""

    policy: Policy


@dataclass(frozen=True, slots=True)
class Stop:
    """Stop the pool at this level, or raise the level of a stop under way."""

    level: StopLevel


Fact = Spawned | SpawnFailed | Ready | BootFailed | Suspended | DrainBegun | RecycleDue | Measured | Exited
Wish = ScaleBy | ScaleTo | Reload | Stop
Event = Tick | Beats | MemoryShort | Fact | Wish
