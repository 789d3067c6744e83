"""Where a fault happens: one server with the victim application, watched through its journal and /proc.

A worker is a process that has told `ready` to the journal and lives: the same for every server, whatever its processes
are called and however it talks about them.
"""

from __future__ import annotations

import os
import signal
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Self

from support import proc

from bench.environment import BenchError
from bench.servers import BOOT_SECONDS, Running

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bench.environment import Environment

GRACE_SECONDS = 5  # every server's graceful time-out
SETTLE_SECONDS = 5.0
LINGER_SECONDS = 0.5
TICK = os.sysconf("SC_CLK_TCK")


class GoneError(Exception):
    """The server has ended by itself."""


@dataclass(slots=True, kw_only=True)
class Event:
    """One fault: when it was done, to whom, when that process was dead, and how long until all was well again."""

    at: float
    victim: int | None = None
    dead_at: float | None = None
    recovered: float | None = None  # seconds; None is never


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How a server is started for a row."""

    workers: int
    extra: Sequence[str]
    boot: float  # seconds an import waits
    burn: float = 0.0  # seconds an import computes


@dataclass(slots=True)
class Journal:
    """What the victims have told so far."""

    path: Path
    told: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    _read: int = 0

    def of(self, word: str) -> list[tuple[int, float]]:
        """Give pid and time of each line of that word."""
        if self.path.exists():
            with self.path.open("rb") as file:
                file.seek(self._read)
                whole, end, _ = file.read().rpartition(b"\n")
            self._read += len(whole) + len(end)
            for word_, pid, at in (line.split() for line in whole.decode().splitlines()):
                self.told.setdefault(word_, []).append((int(pid), float(at)))
        return self.told.get(word, [])


class Scene:
    """A context manager: the server serves with every worker ready on entry; nothing of it is left on exit."""

    def __init__(self, name: str, env: Environment, plan: Plan, *, cores: str, scratch: Path) -> None:
        self.name, self.plan = name, plan
        self.events: list[Event] = []
        self.notes: list[str] = []
        self.loop_cpu: float | None = None  # % of a core, all processes, while it tries in vain
        self._scratch, self._env, self._cores = scratch, env, cores
        self._dead: set[int] = set()

    def __enter__(self) -> Self:
        self.room = Path(tempfile.mkdtemp(prefix=f"{self.name}-", dir=self._scratch))
        self.journal = Journal(self.room / "journal")
        plan, room = self.plan, {"VICTIM_ROOM": str(self.room)}
        self.server = Running(
            self.name,
            self._env,
            cores=self._cores,
            scratch=self.room,
            workers=plan.workers,
            access_log=False,
            app="victim:app",
            extra=plan.extra,
            variables={**room, "VICTIM_BOOT": str(plan.boot), "VICTIM_BURN": str(plan.burn)},
        )
        self.arbiter = self.server.pid
        try:
            if not self.wait(self.whole, BOOT_SECONDS):
                raise BenchError(f"{self.name} is not ready; its last words: {self.server.last_words()}")
        except BaseException as error:
            self.server.stop()
            if isinstance(error, GoneError):
                raise BenchError(f"{self.name} {error}") from None
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.server.stop()
        proc.kill_session(self.server.pid)

    # What is seen

    def lives(self) -> bool:
        """Tell whether the arbiter runs."""
        seen = proc.process(self.arbiter)
        return seen is not None and seen.state not in "ZX" and seen.session == self.server.pid

    def alive(self) -> list[int]:
        """Give the workers."""
        found = []
        for pid, _ in self.journal.of("ready"):
            if pid in self._dead:
                continue
            seen = proc.process(pid)
            if seen is None or seen.state in "ZX" or seen.session != self.server.pid:
                self._dead.add(pid)
            else:
                found.append(pid)
        return found

    def whole(self) -> bool:
        """Tell whether there are as many workers as there should be."""
        return len(self.alive()) >= self.plan.workers

    def ready_after(self, begun: float, number: int) -> float | None:
        """Give how long after `begun` the number-th worker since then was ready."""
        after = [at - begun for _, at in self.journal.of("ready") if at > begun]
        return after[number - 1] if len(after) >= number else None

    def wait(self, holds: Callable[[], object], seconds: float) -> bool:
        """Look until something holds, at most so many seconds; raises GoneError when the server has ended."""
        found = proc.eventually(lambda: bool(holds()) or not self.lives(), seconds)
        if not self.lives():
            code = self.server.process.poll()
            raise GoneError("has ended" if code is None else f"exited {code}")
        return found

    def descriptors(self) -> tuple[int, int]:
        """Count those of the arbiter, and of the worker that has most, once the connections of clients are gone."""
        seen: list[tuple[int, int]] = []
        proc.eventually(lambda: bool(seen.append(self._descriptors())), LINGER_SECONDS)
        return min(one[0] for one in seen), min(one[1] for one in seen)

    def _descriptors(self) -> tuple[int, int]:
        return len(proc.files_of(self.arbiter)), max((len(proc.files_of(pid)) for pid in self.alive()), default=0)

    def cpu_seconds(self) -> float:
        """Sum the processor time of all its processes, with that of the dead whom they have waited for (proc(5))."""
        return sum(_ticks(each.pid) for each in proc.in_session(self.server.pid)) / TICK

    # What is done to it

    def signal(self, number: signal.Signals) -> float:
        """Signal the arbiter; give the time just before."""
        begun = time.monotonic()
        os.kill(self.arbiter, number)
        return begun

    def breaks(self) -> None:
        """Make every import fail from now on."""
        (self.room / "broken").touch()

    def mends(self) -> None:
        """Make imports succeed again."""
        (self.room / "broken").unlink()

    def end(self) -> int:
        """Stop it in order and count whom it leaves behind."""
        with suppress(ProcessLookupError):
            if self.lives():
                os.kill(self.arbiter, signal.SIGTERM)
        if proc.wait_dead([self.arbiter], GRACE_SECONDS + SETTLE_SECONDS):
            self.notes.append("did not stop")
        proc.wait_dead([each.pid for each in proc.in_session(self.server.pid)], 1.0)
        return len(proc.in_session(self.server.pid))


def _ticks(pid: int) -> int:
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return sum(int(field) for field in fields[11:15])  # utime, stime, cutime, cstime
