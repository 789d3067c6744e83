"""Every effect of supervision on the operating system, behind one small Protocol: `loop.Host`.

`LinuxHost` keeps a `Member` per worker: its pid, its end of the channel, its scoreboard row, and what it said before it
died.

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
from typing import TYPE_CHECKING, Final, Protocol

from procmgr import messages, scoreboard
from procmgr.arbiter import children, spawn
from procmgr.arbiter.core import actions
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
from procmgr.arbiter.member import Member, MemberEstate
from procmgr.errors import ExitCode
from procmgr.plain import record
from procmgr.worker.boot import STACKS_SIGNAL, Birth

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from procmgr.arbiter.guard import Guard
    from procmgr.arbiter.oom import OomKills
    from procmgr.sockets import Listener

STACKS_BIT: Final = 1 << (STACKS_SIGNAL - 1)
"""The signal that has stacks dumped, in the signal sets of /proc/PID/status (proc(5))."""

_MESSAGES_PER_TURN: Final = 32

log = logging.getLogger("procmgr.error")


class Births(Protocol):
    """Who has workers forked by somebody else, a zygote; see `nursery`."""

    def order(self, birth: Birth, row: int) -> None:
        """Have a worker born; the outcome shows on its channel. Raises `OSError`."""
        ...

    def settled(self, worker_id: int) -> None:
        """Hear that a worker was born, or never will be."""
        ...

    def broadcast(self, message: messages.Message, fds: tuple[int, ...]) -> None:
        """Let workers to come know what the others are told."""
        ...

    def pids(self) -> list[int]:
        """Return the pids of its own processes."""
        ...

    def close_in_child(self) -> None:
        """Close in a forked child what belongs to the arbiter."""
        ...


@record
class HostEstate:
    """The host as it is handed over; `protocol` is that of the channels."""

    board: scoreboard.BoardEstate
    members: tuple[MemberEstate, ...]
    protocol: int = messages.PROTOCOL_VERSION


class LinuxHost:
    """The real thing.

    `birth` makes what a worker is born with, of its spawn order and its member record; `close_in_child` closes in a
    forked child what the arbiter holds besides its members; `oom_kills` tells whether the kernel ran out of memory.
    With `estate` it takes over its predecessor's members.
    """

    def __init__(
        self,
        *,
        birth: Callable[[actions.Spawn, Member, messages.Channel], Birth],
        close_in_child: Callable[[tuple[Listener, ...]], None],
        oom_kills: OomKills,
        estate: HostEstate | None = None,
    ) -> None:
        self.board = scoreboard.Scoreboard.adopt(estate.board) if estate else scoreboard.Scoreboard()
        self.members = {each.worker_id: Member.adopt(each, self.board) for each in (estate.members if estate else ())}
        self._birth = birth
        self._close_arbiter = close_in_child
        self._oom_kills = oom_kills
        self._foreign: Callable[[int, Exit], None] = lambda _pid, _exit: None
        self._guard: Guard | None = None
        self._nursery: Births | None = None
        self._leaving = False

    def hand_over(self) -> HostEstate:
        """Return what a successor needs."""
        members = tuple(member.hand_over(worker_id) for worker_id, member in self.members.items())
        return HostEstate(board=self.board.hand_over(), members=members)

    def entrust(self, guard: Guard, on_foreign_death: Callable[[int, Exit], None]) -> None:
        """Have `guard` watch every child, now and later; `on_foreign_death` hears of pids that are no member."""
        self.rejoin(guard, on_foreign_death)
        zygotes = self._nursery.pids() if self._nursery else []
        for pid in (*(member.pid for member in self.members.values()), *zygotes):
            if pid is not None:
                guard.watch(pid)

    def entrust_births(self, nursery: Births) -> None:
        """Have `nursery` fork the workers of generations whose application is preloaded."""
        self._nursery = nursery

    def guard_child(self, pid: int) -> None:
        """Entrust a new child to the guard."""
        if self._guard is not None:
            self._guard.watch(pid)

    def rejoin(self, guard: Guard, on_foreign_death: Callable[[int, Exit], None]) -> None:
        """Do as `entrust`, with a guard that watches every member already."""
        self._guard = guard
        self._foreign = on_foreign_death

    def now(self) -> float:
        """Return CLOCK_MONOTONIC in seconds."""
        return time.monotonic()

    def spawn(self, order: actions.Spawn) -> Spawned | SpawnFailed | None:
        """Fork a worker with a channel, a scoreboard row and a place for its stacks, or have its zygote do so."""
        try:
            member, theirs = self._prepare(order)
        except (OSError, RuntimeError) as error:
            return _refused(order, error)
        try:
            birth = self._birth(order, member, theirs)
            if self._nursery is not None and birth.settings.app.preload:
                self.members[order.worker_id] = member
                self._nursery.order(birth, member.row_number)
                return None
            member.pid = spawn.fork_worker(birth, close_in_child=lambda: self._close_in_worker(member, birth))
        except OSError as error:
            self.members.pop(order.worker_id, None)
            self._release(member)
            theirs.close()
            return _refused(order, error)
        theirs.close()
        self.members[order.worker_id] = member
        self.guard_child(member.pid)
        return Spawned(order.worker_id, member.pid)

    def birth_of(self, worker_id: int, channel: messages.Channel) -> Birth:
        """Return again what a member that is not born yet is to be born with; `channel` is its own end."""
        member = self.members[worker_id]
        return self._birth(actions.Spawn(worker_id, member.slot, member.generation), member, channel)

    def refuse(self, refusal: SpawnFailed, words: messages.BootFailed | None = None) -> None:
        """End the wait for a worker that has not announced itself: its channel ends, and its refusal is the reason.

        `words` are the last ones of its zygote, if that is why.
        """
        member = self.members.get(refusal.worker_id)
        if member is not None and member.pid is None and member.refusal is None:
            member.refusal = refusal
            member.last_words = words
            member.channel.shut()

    def channel(self, worker_id: int) -> messages.Channel:
        """Return the arbiter's end of a member's channel, to be polled."""
        return self.members[worker_id].channel

    def drain(self, order: actions.Drain) -> None:
        """Send the drain on the channel; a worker that cannot take it is met by its deadline."""
        self._tell(order.worker_id, messages.Drain(order.mode.value, order.deadline))

    def pause(self, worker_id: int) -> None:
        """Send the pause; a worker that cannot take it does not accept either."""
        self._tell(worker_id, messages.Pause())

    def resume(self, worker_id: int) -> None:
        """Send the end of the pause."""
        self._tell(worker_id, messages.Resume())

    def broadcast(self, message: messages.Message, fds: tuple[int, ...] = ()) -> None:
        """Send `message`, with copies of `fds`, to every member, and to the zygotes of members to come."""
        self.tell_all(message, fds)
        if self._nursery is not None:
            self._nursery.broadcast(message, fds)

    def pass_on(self, notice: actions.Notice) -> None:
        """Tell the members what concerns them, also those that become ready later."""
        match notice:
            case actions.Scaled(workers=workers):
                self.tell_all(messages.Scaled(workers))
            case actions.Leaving():
                self._leaving = True
                self.tell_all(messages.Leave())
            case actions.WorkerReady(worker_id=worker_id) if self._leaving:
                self._tell(worker_id, messages.Leave())
            case _:
                pass

    def tell_all(self, message: messages.Message, fds: tuple[int, ...] = ()) -> None:
        """Send `message`, with copies of `fds`, to every member."""
        for worker_id in self.members:
            self._tell(worker_id, message, fds)

    def terminate(self, worker_id: int) -> None:
        """Send TERM."""
        self._signal(worker_id, signal.SIGTERM)

    def abort(self, worker_id: int) -> None:
        """Send ABRT."""
        self._signal(worker_id, signal.SIGABRT)

    def kill(self, worker_id: int) -> None:
        """Send KILL."""
        self.members[worker_id].kill_sent = True
        self._signal(worker_id, signal.SIGKILL)

    def dump_stacks(self, worker_id: int) -> Suspended | None:
        """Signal the worker's C-level handler, which works with its loop blocked and the GIL held."""
        member = self.members[worker_id]
        if member.pid is not None and children.is_stopped(member.pid):
            return Suspended(worker_id)
        member.forget_stacks()
        self._signal(worker_id, STACKS_SIGNAL)
        return None

    def receive(self, worker_id: int) -> list[Event]:
        """Return what a worker sent since the last call, as events; raises `messages.ChannelClosed` at its end.

        For a worker that did not announce itself the end is a `SpawnFailed`. At most 32 messages a turn, so that a
        worker which floods its channel cannot starve the others.
        """
        member = self.members[worker_id]
        events: list[Event] = []
        for _ in range(_MESSAGES_PER_TURN):
            try:
                received = member.channel.receive()
            except messages.MessageError as error:
                log.error("worker %d (slot %d) sent nonsense: %s", worker_id, member.slot, error)
                continue
            except messages.ChannelClosed:
                if member.pid is None:
                    return [self._unborn(worker_id, member)]
                if not events:
                    raise
                break  # it is met again by the next call
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
        while (pid := children.dead_child()) is not None:
            worker_id = self._member_of(pid)
            if worker_id is None:
                # Perhaps a worker whose announcement was not read yet; it stays a zombie, its pid its own, until then.
                for unborn in [key for key, member in self.members.items() if member.pid is None]:
                    yield from self.receive(unborn)
                worker_id = self._member_of(pid)
            if worker_id is not None:
                self._suspect_the_kernel(worker_id)
            _, status = os.waitpid(pid, 0)
            if worker_id is None:
                self._foreign(pid, children.exit_of(status))
                continue
            with suppress(messages.ChannelClosed):
                yield from self.receive(worker_id)
            yield Exited(worker_id, children.exit_of(status))

    def _suspect_the_kernel(self, worker_id: int) -> None:
        """Take a SIGKILL that nobody here sent for the kernel's, if it killed for want of memory and no other so.

        A death by another cause leaves the rise to one that waits to be reaped.
        """
        unsent = [key for key, member in self.members.items() if member.was_killed()]
        if (worker_id in unsent or not unsent) and self._oom_kills.rose() and unsent == [worker_id]:
            self.members[worker_id].out_of_memory = True

    def bury(self, worker_id: int) -> None:
        """Forget a member after its exit, or that it was never born, was handled; its counters go into the totals."""
        self._release(self.members.pop(worker_id))

    def beats(self) -> Beats:
        """Return the newest beat of each member."""
        now = self.now()
        return Beats(tuple((key, member.beat(now)) for key, member in self.members.items()))

    def close_in_child(self, keep: tuple[Listener, ...]) -> None:
        """Close, in a forked child, every descriptor that belongs to the arbiter, but for the listeners in `keep`."""
        for member in self.members.values():
            member.channel.close()
            os.close(member.stacks_fd)
        os.close(self.board.fd)
        if self._guard is not None:
            self._guard.close()
        if self._nursery is not None:
            self._nursery.close_in_child()
        self._close_arbiter(keep)

    def _close_in_worker(self, member: Member, birth: Birth) -> None:
        # The arbiter's end of this worker's own channel first: holding it, the worker would never see it close.
        member.channel.close()
        self.close_in_child(birth.listeners)

    def _prepare(self, order: actions.Spawn) -> tuple[Member, messages.Channel]:
        row_number = self.board.lease()
        ours, theirs = messages.Channel.pair()
        stacks_fd = os.memfd_create("procmgr-stacks", os.MFD_CLOEXEC)
        row, records = self.board.row(row_number), self.board.records(row_number)
        return Member(None, order.slot, order.generation, ours, row_number, row, records, stacks_fd), theirs

    def _release(self, member: Member) -> None:
        member.channel.close()
        os.close(member.stacks_fd)
        self.board.release(member.row_number)

    def _member_of(self, pid: int) -> int | None:
        return next((worker_id for worker_id, member in self.members.items() if member.pid == pid), None)

    def _settle(self, worker_id: int) -> None:
        if self._nursery is not None:
            self._nursery.settled(worker_id)

    def _born(self, worker_id: int, member: Member, pid: int) -> Event | None:
        """Believe a worker its pid if that is a child of ours which nobody else is, since we will send it signals."""
        known = {each.pid for each in self.members.values()} | set(self._nursery.pids() if self._nursery else ())
        if member.pid is not None or pid in known or not children.is_child(pid):
            log.error("worker %d (slot %d) claims pid %d, which is not its own", worker_id, member.slot, pid)
            return None
        member.pid = pid
        self.guard_child(pid)
        self._settle(worker_id)
        return Spawned(worker_id, pid)

    def _unborn(self, worker_id: int, member: Member) -> SpawnFailed:
        failed = member.refusal or SpawnFailed(worker_id, "it died in the fork", BootFailure.FAILED)
        if member.refusal is None or failed.failure is BootFailure.REFUSED:
            log.error("cannot start worker %d (slot %d): %s", worker_id, member.slot, failed.reason)
        self._settle(worker_id)
        return failed

    def _translate(self, worker_id: int, member: Member, message: messages.Message) -> Event | None:
        match message:
            case messages.Born(pid=pid):
                return self._born(worker_id, member, pid)
            case _ if member.pid is None:
                log.error("worker %d (slot %d) speaks before it is born", worker_id, member.slot)
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
            case messages.CodeNewer(path=path):
                member.newer_code = path
            case _:
                log.error("worker %d (slot %d) sent a %s", worker_id, member.slot, type(message).__name__)
        return None

    def _tell(self, worker_id: int, message: messages.Message, fds: tuple[int, ...] = ()) -> None:
        channel = self.members[worker_id].channel
        if not channel.send(message, fds) and not channel.gone:  # one that is gone is about to be buried
            log.warning("worker %d does not take messages; its deadline decides", worker_id)

    def _signal(self, worker_id: int, signum: int) -> None:
        pid = self.members[worker_id].pid
        if pid is not None:  # the pool signals nobody whose fork was not reported
            with suppress(ProcessLookupError):
                os.kill(pid, signum)


def _refused(order: actions.Spawn, error: Exception) -> SpawnFailed:
    log.error("cannot start worker %d (slot %d): %s", order.worker_id, order.slot, error)
    return SpawnFailed(order.worker_id, str(error))
