"""A member: what the arbiter holds of one worker, from its order until it is buried."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from procmgr import messages, scoreboard
from procmgr.arbiter import children, dumps
from procmgr.arbiter.core.events import SpawnFailed
from procmgr.handover import Descriptor
from procmgr.plain import record

if TYPE_CHECKING:
    from procmgr.scoreboard import Scoreboard


@record
class MemberEstate:
    """A member as it is handed over."""

    worker_id: int
    pid: int | None
    slot: int
    generation: int
    channel: Descriptor
    row_number: int
    stacks: Descriptor
    last_words: messages.BootFailed | None
    refusal: SpawnFailed | None = None
    newer_code: str | None = None
    kill_sent: bool = False


@dataclass(slots=True)
class Member:
    """What the arbiter holds of one worker until it is buried.

    `pid` is None until the worker of a zygote announced itself; `refusal` says why it never will. `newer_code` is a
    file it imported that is newer than its generation, `memory` what it used when measured last, in bytes.
    """

    pid: int | None
    slot: int
    generation: int
    channel: messages.Channel
    row_number: int
    row: scoreboard.Row
    records: scoreboard.Records
    stacks_fd: int
    last_words: messages.BootFailed | None = None
    refusal: SpawnFailed | None = None
    newer_code: str | None = None
    memory: int = 0
    kill_sent: bool = False
    out_of_memory: bool = False

    @classmethod
    def adopt(cls, estate: MemberEstate, board: Scoreboard) -> Self:
        """Take over a predecessor's member."""
        return cls(
            pid=estate.pid,
            slot=estate.slot,
            generation=estate.generation,
            channel=messages.Channel.adopt(estate.channel),
            row_number=estate.row_number,
            row=board.row(estate.row_number),
            records=board.records(estate.row_number),
            stacks_fd=estate.stacks.number,
            last_words=estate.last_words,
            refusal=estate.refusal,
            newer_code=estate.newer_code,
            kill_sent=estate.kill_sent,
        )

    def hand_over(self, worker_id: int) -> MemberEstate:
        """Return what a successor needs."""
        return MemberEstate(
            worker_id=worker_id,
            pid=self.pid,
            slot=self.slot,
            generation=self.generation,
            channel=Descriptor(self.channel.fileno()),
            row_number=self.row_number,
            stacks=Descriptor(self.stacks_fd),
            last_words=self.last_words,
            refusal=self.refusal,
            newer_code=self.newer_code,
            kill_sent=self.kill_sent,
        )

    def stacks(self) -> str:
        """Return the Python stacks that the worker dumped; empty if it did not."""
        return dumps.read(self.stacks_fd)

    def forget_stacks(self) -> None:
        """Make place for the next dump. The descriptor is one with the worker's: its writing goes on at the start."""
        os.ftruncate(self.stacks_fd, 0)
        os.lseek(self.stacks_fd, 0, os.SEEK_SET)

    def beat(self, now: float) -> float:
        """Return its newest beat. A cell is the worker's word, so one from the future counts as now.

        A worker that a person debugs stands still while he thinks, and counts as beating.
        """
        return now if self.row[scoreboard.DEBUGGING] else min(self.row[scoreboard.BEAT] / 1e9, now)

    def was_killed(self) -> bool:
        """Return whether it died of a SIGKILL that the arbiter did not send; asked before it is reaped."""
        return self.pid is not None and not self.kill_sent and children.killed_by(self.pid) == signal.SIGKILL
