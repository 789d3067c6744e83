"""The Python stacks of a running worker, for whoever asks.

Theory of operation: a real-time signal makes the worker's C-level handler (faulthandler) write the stacks into a memfd
that the arbiter shares, whatever the worker is doing. Nothing says when the dump is complete, so the kernel is asked:
a signal that waits is in ShdPnd or SigPnd of /proc/PID/status, and one whose handler runs is in SigBlk, since the
handler was installed without SA_NODEFER. Those are the main thread's; in case another thread took the signal, the dump
must also have stopped growing. Only a worker that catches the signal is sent it: it would kill one just being born.

One dump at a time for each worker; who asks meanwhile is told the same. All of it is bounded in time and in length.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from procmgr.arbiter.host import STACKS_BIT
from procmgr.scoreboard import BEAT

if TYPE_CHECKING:
    from collections.abc import Callable

    from procmgr.arbiter.host import LinuxHost
    from procmgr.arbiter.loop import Loop
    from procmgr.arbiter.member import Member

PATIENCE_SECONDS: Final = 2.0
_LOOK_SECONDS: Final = 0.01


@dataclass(frozen=True, slots=True)
class Stacks:
    """What became of a dump: the stacks as faulthandler writes them, or else why there are none."""

    text: str
    reason: str


@dataclass(slots=True)
class _Dump:
    deadline: float
    size: int = 0
    tell: list[Callable[[Stacks], None]] = field(default_factory=list)


class StackReader:
    """Has stacks dumped and reads them when they are complete."""

    def __init__(self, *, host: LinuxHost, loop: Loop) -> None:
        self._host = host
        self._loop = loop
        self._dumps: dict[int, _Dump] = {}

    def ask(self, worker_id: int, tell: Callable[[Stacks], None]) -> None:
        """Call `tell` with the worker's stacks, at once or within `PATIENCE_SECONDS`."""
        if worker_id in self._dumps:
            self._dumps[worker_id].tell.append(tell)
            return
        member = self._host.members.get(worker_id)
        if member is None:
            tell(Stacks("", "it is gone"))
        elif not _can_dump(member):
            tell(Stacks("", "it has only just been forked"))
        elif self._host.dump_stacks(worker_id) is not None:
            tell(Stacks("", "it is stopped: no stack is available"))
        else:
            now = self._host.now()
            self._dumps[worker_id] = _Dump(now + PATIENCE_SECONDS, tell=[tell])
            self._loop.call_at(now + _LOOK_SECONDS, lambda: self._look(worker_id))

    def _look(self, worker_id: int) -> None:
        now, dump, member = self._host.now(), self._dumps[worker_id], self._host.members.get(worker_id)
        if member is None:
            self._tell(worker_id, Stacks("", "it is gone"))
            return
        before, dump.size = dump.size, os.fstat(member.stacks_fd).st_size
        if dump.size and dump.size == before and not _is_dumping(member):
            self._tell(worker_id, Stacks(member.stacks(), ""))
        elif now >= dump.deadline:
            self._tell(worker_id, Stacks("", f"it did not answer within {PATIENCE_SECONDS:g} s"))
        else:
            self._loop.call_at(now + _LOOK_SECONDS, lambda: self._look(worker_id))

    def _tell(self, worker_id: int, stacks: Stacks) -> None:
        for tell in self._dumps.pop(worker_id).tell:
            tell(stacks)


def _can_dump(member: Member) -> bool:
    """Tell whether the handler is in place; where /proc does not say, it is by the first beat."""
    if member.pid is None:
        return False
    masks = _masks(member.pid)
    return bool(masks["SigCgt"] & STACKS_BIT) if masks else bool(member.row[BEAT])


def _is_dumping(member: Member) -> bool:
    masks = {} if member.pid is None else _masks(member.pid)
    return any(mask & STACKS_BIT for name, mask in masks.items() if name != "SigCgt")


def _masks(pid: int) -> dict[str, int]:
    """Return the signal sets in /proc/PID/status (proc(5)); none where it cannot be read."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in lines if line.startswith(("SigPnd", "ShdPnd", "SigBlk", "SigCgt")))
    return {name: int(value, 16) for name, value in pairs}
