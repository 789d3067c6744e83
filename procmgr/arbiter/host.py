"""Every effect of supervision on the operating system, behind one small Protocol.

`Host` is the whole seam between the pool's decisions and Linux; a test scripts another. `LinuxHost` keeps a `Member`
per worker: its pid, its end of the channel, its scoreboard row, and what it said before it died.

Invariants: a member exists from the fork until it is buried after waitpid(2), so its pid cannot have been reused and a
signal never hits a stranger. A dead worker's channel is read to its end before its exit is reported, so the reason it
gave is known when its death is. No call here waits for a worker.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from procmgr import messages, scoreboard
from procmgr.arbiter import spawn
from procmgr.arbiter.core.events import (
    Beats,
    BootFailed,
    BootFailure,
    DrainBegun,
    Event,
    Exit,
    Exited,
    Ready,
    RecycleDue,
    Spawned,
    SpawnFailed,
    Suspended,
)
from procmgr.errors import ExitCode
from procmgr.handover import Descriptor
from procmgr.plain import record
from procmgr.worker.boot import STACKS_SIGNAL, Birth

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from procmgr.arbiter.core import actions
    from procmgr.arbiter.guard import Guard
    from procmgr.sockets import Listener

_STACKS_BYTES: Final = 32 * 1024
STACKS_BIT: Final = 1 << (STACKS_SIGNAL - 1)
"""The signal that has stacks dumped, in the signal sets of /proc/PID/status (proc(5))."""

_MESSAGES_PER_TURN: Final = 32

log = logging.getLogger("procmgr.error")


class Host(Protocol):
    """What the loop needs from the operating system."""

    def now(self) -> float:
        """Return CLOCK_MONOTONIC in seconds."""
        ...

    def spawn(self, order: actions.Spawn) -> Spawned | SpawnFailed:
        """Fork a worker."""
        ...

    def channel(self, worker_id: int) -> messages.Channel:
        """Return the arbiter's end of a worker's channel."""
        ...

    def drain(self, order: actions.Drain) -> None:
        """Tell a worker to drain."""
        ...

    def terminate(self, worker_id: int) -> None:
        """Send TERM."""
        ...

    def kill(self, worker_id: int) -> None:
        """Send KILL."""
        ...

    def dump_stacks(self, worker_id: int) -> Suspended | None:
        """Ask for the worker's stacks; `Suspended` when it is stopped and cannot answer."""
        ...

    def receive(self, worker_id: int) -> list[Event]:
        """Return what a worker sent, as events."""
        ...

    def reap(self) -> Iterator[Event]:
        """Yield the last words and the `Exited` of every child that died."""
        ...

    def bury(self, worker_id: int) -> None:
        """Forget a worker whose `Exited` was handled."""
        ...

    def beats(self) -> Beats:
        """Return the newest beat of each worker."""
        ...


@dataclass(slots=True)
class Member:
    """What the arbiter holds of one worker until it is buried."""

    pid: int
    slot: int
    generation: int
    channel: messages.Channel
    row_number: int
    row: scoreboard.Row
    stacks_fd: int
    last_words: messages.BootFailed | None = None

    def stacks(self) -> str:
        """Return the Python stacks that the worker dumped, cut to 32 KiB; empty if it did not."""
        return os.pread(self.stacks_fd, _STACKS_BYTES, 0).decode("utf-8", "replace")

    def forget_stacks(self) -> None:
        """Make place for the next dump. The descriptor is one with the worker's: its writing goes on at the start."""
        os.ftruncate(self.stacks_fd, 0)
        os.lseek(self.stacks_fd, 0, os.SEEK_SET)


@record
class MemberEstate:
    """A member as it is handed over."""

    worker_id: int
    pid: int
    slot: int
    generation: int
    channel: Descriptor
    row_number: int
    stacks: Descriptor
    last_words: messages.BootFailed | None


@record
class HostEstate:
    """The host as it is handed over; `protocol` is that of the channels."""

    board: scoreboard.BoardEstate
    members: tuple[MemberEstate, ...]
    protocol: int = messages.PROTOCOL_VERSION


class LinuxHost:
    """The real thing.

    `birth` makes what a worker is born with, of its spawn order and its member record; `close_in_child` closes in a
    forked child what the arbiter holds besides its members. With `estate` it takes over its predecessor's members.
    """

    def __init__(
        self,
        *,
        birth: Callable[[actions.Spawn, Member, messages.Channel], Birth],
        close_in_child: Callable[[tuple[Listener, ...]], None],
        estate: HostEstate | None = None,
    ) -> None:
        self.board = scoreboard.Scoreboard.adopt(estate.board) if estate else scoreboard.Scoreboard()
        self.members = {each.worker_id: self._adopt(each) for each in (estate.members if estate else ())}
        self._birth = birth
        self._close_arbiter = close_in_child
        self._foreign: Callable[[int, Exit], None] = lambda _pid, _exit: None
        self._guard: Guard | None = None

    def hand_over(self) -> HostEstate:
        """Return what a successor needs."""
        members = tuple(_hand_over(worker_id, member) for worker_id, member in self.members.items())
        return HostEstate(board=self.board.hand_over(), members=members)

    def entrust(self, guard: Guard, on_foreign_death: Callable[[int, Exit], None]) -> None:
        """Have `guard` watch every member, now and later; `on_foreign_death` hears of pids that are no member."""
        self.rejoin(guard, on_foreign_death)
        for member in self.members.values():
            guard.watch(member.pid)

    def rejoin(self, guard: Guard, on_foreign_death: Callable[[int, Exit], None]) -> None:
        """Do as `entrust`, with a guard that watches every member already."""
        self._guard = guard
        self._foreign = on_foreign_death

    def now(self) -> float:
        """Return CLOCK_MONOTONIC in seconds."""
        return time.monotonic()

    def spawn(self, order: actions.Spawn) -> Spawned | SpawnFailed:
        """Fork a worker with a channel, a scoreboard row and a place for its stacks."""
        try:
            member, theirs = self._prepare(order)
        except (OSError, RuntimeError) as error:
            return _refused(order, error)
        try:
            birth = self._birth(order, member, theirs)
            member.pid = spawn.fork_worker(birth, close_in_child=lambda: self._close_in_worker(member, birth))
        except OSError as error:
            self._release(member)
            return _refused(order, error)
        finally:
            theirs.close()
        self.members[order.worker_id] = member
        if self._guard is not None:
            self._guard.watch(member.pid)
        return Spawned(order.worker_id, member.pid)

    def channel(self, worker_id: int) -> messages.Channel:
        """Return the arbiter's end of a member's channel, to be polled."""
        return self.members[worker_id].channel

    def drain(self, order: actions.Drain) -> None:
        """Send the drain on the channel; a worker that cannot take it is met by its deadline."""
        self._tell(order.worker_id, messages.Drain(order.mode.value, order.deadline))

    def broadcast(self, message: messages.Message, fds: tuple[int, ...] = ()) -> None:
        """Send `message` to every member, with copies of `fds`."""
        for worker_id in self.members:
            self._tell(worker_id, message, fds)

    def terminate(self, worker_id: int) -> None:
        """Send TERM."""
        self._signal(worker_id, signal.SIGTERM)

    def kill(self, worker_id: int) -> None:
        """Send KILL."""
        self._signal(worker_id, signal.SIGKILL)

    def dump_stacks(self, worker_id: int) -> Suspended | None:
        """Signal the worker's C-level handler, which works with its loop blocked and the GIL held."""
        member = self.members[worker_id]
        if _is_stopped(member.pid):
            return Suspended(worker_id)
        member.forget_stacks()
        self._signal(worker_id, STACKS_SIGNAL)
        return None

    def receive(self, worker_id: int) -> list[Event]:
        """Return what a worker sent since the last call, as events; raises `messages.ChannelClosed` at its end.

        At most 32 messages a turn, so that a worker which floods its channel cannot starve the others.
        """
        member = self.members[worker_id]
        events: list[Event] = []
        for _ in range(_MESSAGES_PER_TURN):
            try:
                received = member.channel.receive()
            except messages.MessageError as error:
                log.error("worker %d (slot %d) sent nonsense: %s", worker_id, member.slot, error)
                continue
            if received is None:
                break
            for fd in received[1]:
                os.close(fd)  # no message of a worker carries any
            event = self._translate(worker_id, member, received[0])
            if event is not None:
                events.append(event)
        return events

    def reap(self) -> Iterator[Event]:
        """Yield the last words and the `Exited` of each member that died; foreign children are buried and reported."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            worker_id = next((key for key, member in self.members.items() if member.pid == pid), None)
            if worker_id is None:
                self._foreign(pid, _exit_of(status))
                continue
            with suppress(messages.ChannelClosed):
                yield from self.receive(worker_id)
            yield Exited(worker_id, _exit_of(status))

    def bury(self, worker_id: int) -> None:
        """Forget a member after its exit was handled; its counters are folded into the totals."""
        self._release(self.members.pop(worker_id))

    def beats(self) -> Beats:
        """Return the newest beats; a cell is a worker's word, so one from the future counts as now."""
        now = self.now()
        return Beats(tuple((key, min(m.row[scoreboard.BEAT] / 1e9, now)) for key, m in self.members.items()))

    def close_in_child(self, keep: tuple[Listener, ...]) -> None:
        """Close, in a forked child, every descriptor that belongs to the arbiter, but for the listeners in `keep`."""
        for member in self.members.values():
            member.channel.close()
            os.close(member.stacks_fd)
        os.close(self.board.fd)
        if self._guard is not None:
            self._guard.close()
        self._close_arbiter(keep)

    def _close_in_worker(self, member: Member, birth: Birth) -> None:
        # The arbiter's end of this worker's own channel first: holding it, the worker would never see it close.
        member.channel.close()
        self.close_in_child(birth.listeners)

    def _prepare(self, order: actions.Spawn) -> tuple[Member, messages.Channel]:
        row_number = self.board.lease()
        ours, theirs = messages.Channel.pair()
        stacks_fd = os.memfd_create("procmgr-stacks", os.MFD_CLOEXEC)
        row = self.board.row(row_number)
        return Member(0, order.slot, order.generation, ours, row_number, row, stacks_fd), theirs

    def _adopt(self, estate: MemberEstate) -> Member:
        return Member(
            pid=estate.pid,
            slot=estate.slot,
            generation=estate.generation,
            channel=messages.Channel.adopt(estate.channel),
            row_number=estate.row_number,
            row=self.board.row(estate.row_number),
            stacks_fd=estate.stacks.number,
            last_words=estate.last_words,
        )

    def _release(self, member: Member) -> None:
        member.channel.close()
        os.close(member.stacks_fd)
        self.board.release(member.row_number)

    def _translate(self, worker_id: int, member: Member, message: messages.Message) -> Event | None:
        match message:
            case messages.Ready():
                return Ready(worker_id)
            case messages.BootFailed(exit_code=code):
                member.last_words = message
                not_found = code == ExitCode.APP_NOT_FOUND
                return BootFailed(worker_id, BootFailure.NOT_FOUND if not_found else BootFailure.FAILED)
            case messages.DrainBegun():
                return DrainBegun(worker_id)
            case messages.RecycleDue(reason=reason):
                return RecycleDue(worker_id, reason)
            case messages.Drain() | messages.ReopenLogs() | messages.Configure():
                log.error("worker %d (slot %d) sent an arbiter's message", worker_id, member.slot)
                return None

    def _tell(self, worker_id: int, message: messages.Message, fds: tuple[int, ...] = ()) -> None:
        if not self.members[worker_id].channel.send(message, fds):
            log.warning("worker %d does not take messages; its deadline decides", worker_id)

    def _signal(self, worker_id: int, signum: int) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.members[worker_id].pid, signum)


def _refused(order: actions.Spawn, error: Exception) -> SpawnFailed:
    log.error("cannot start worker %d (slot %d): %s", order.worker_id, order.slot, error)
    return SpawnFailed(order.worker_id, str(error))


def _hand_over(worker_id: int, member: Member) -> MemberEstate:
    return MemberEstate(
        worker_id=worker_id,
        pid=member.pid,
        slot=member.slot,
        generation=member.generation,
        channel=Descriptor(member.channel.fileno()),
        row_number=member.row_number,
        stacks=Descriptor(member.stacks_fd),
        last_words=member.last_words,
    )


def _exit_of(status: int) -> Exit:
    """Translate a wait status (waitpid(2))."""
    if os.WIFSIGNALED(status):
        return Exit(signal=os.WTERMSIG(status), core=os.WCOREDUMP(status))
    return Exit(code=os.waitstatus_to_exitcode(status))


def _is_stopped(pid: int) -> bool:
    """Tell whether the process is in state T (proc(5), field 3 of stat); False where /proc does not say."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return False
    return stat.rpartition(b")")[2].split()[:1] == [b"T"]
