"""The nursery: the zygotes by generation, and the workers that were ordered and are not born yet.

Rules: a generation has one zygote, forked with its first order and rebuilt with the next if it died. An order is sent
once the zygote has imported and the one before is settled, so its channel is never full. Whatever prevents a birth ends
in one way: the reason is noted on the member and its channel shut, which the host reports as `SpawnFailed`. An order
that is not settled within the boot time-out is the end of its zygote, which hangs.

An upgrade hands zygotes over. They are of the old program, and so are the workers they fork, until the next reload.
"""

from __future__ import annotations

import logging
import os
import signal
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from procmgr import messages
from procmgr.arbiter.core.events import BootFailure, SpawnFailed
from procmgr.arbiter.core.policy import Backoff
from procmgr.arbiter.report import describe, dumped
from procmgr.arbiter.zygote import Zygote, fork_zygote
from procmgr.errors import ExitCode
from procmgr.handover import Descriptor
from procmgr.plain import record
from procmgr.worker.boot import STACKS_SIGNAL

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from procmgr.arbiter.core.events import Exit
    from procmgr.arbiter.host import LinuxHost
    from procmgr.arbiter.loop import Loop
    from procmgr.arbiter.report import Report
    from procmgr.worker.boot import Birth

_DUMP_SECONDS: Final = 0.5
_END_SECONDS: Final = 5.0
_BACKOFF: Final = Backoff()

log = logging.getLogger("procmgr.error")


@dataclass(frozen=True, slots=True)
class _Order:
    birth: Birth
    row: int


@dataclass(slots=True, eq=False)
class _Mother:
    """A zygote and what it owes: the order that was sent and is not settled, and those that wait."""

    zygote: Zygote
    since: float
    sent: int | None = None
    waiting: deque[_Order] = field(default_factory=deque)
    ready: bool = False
    ending: bool = False
    late: bool = False
    last_words: messages.BootFailed | None = None

    def __str__(self) -> str:
        return f"zygote of generation {self.zygote.generation} (pid {self.zygote.pid})"

    def owed(self) -> list[int]:
        """Return the worker ids of what it owes."""
        return [*([] if self.sent is None else [self.sent]), *(order.birth.worker_id for order in self.waiting)]


@record
class OrderEstate:
    """An order that was not sent yet; `channel` is the end of the worker to come."""

    worker_id: int
    row: int
    channel: Descriptor


@record
class MotherEstate:
    """A zygote as it is handed over, with what it owes."""

    pid: int
    generation: int
    channel: Descriptor
    stacks: Descriptor
    since: float
    sent: int | None
    waiting: tuple[OrderEstate, ...]
    ready: bool
    ending: bool
    late: bool
    last_words: messages.BootFailed | None


@record
class NurseryEstate:
    """The nursery as it is handed over."""

    mothers: tuple[MotherEstate, ...] = ()
    young_deaths: int = 0


class Nursery:
    """Has workers forked by zygotes. `on_lost` hears of a generation whose zygote died after it had imported."""

    def __init__(self, *, host: LinuxHost, loop: Loop, report: Report, on_lost: Callable[[int], None]) -> None:
        self._host = host
        self._loop = loop
        self._report = report
        self._on_lost = on_lost
        self._mothers: dict[int, _Mother] = {}
        self._young_deaths = 0

    def hand_over(self) -> NurseryEstate:
        """Return what `adopt` needs."""
        mothers = tuple(_hand_over(mother) for mother in self._mothers.values())
        return NurseryEstate(mothers=mothers, young_deaths=self._young_deaths)

    def adopt(self, estate: NurseryEstate) -> None:
        """Take over the zygotes of a predecessor. What they owe has its whole time again."""
        self._young_deaths = estate.young_deaths
        for each in estate.mothers:
            mother = self._adopt(each)
            if mother.ending or mother.late:
                self._kill_in(_END_SECONDS if mother.ending else _DUMP_SECONDS, mother)
            if not mother.ending:
                self._listen(mother)
                self._feed(mother)

    def pids(self) -> list[int]:
        """Return the pids of all zygotes."""
        return list(self._mothers)

    def serves(self, generation: int) -> bool:
        """Return whether the generation has a zygote, or one that is importing."""
        return self._of(generation) is not None

    def order(self, birth: Birth, row: int) -> None:
        """Have a worker born; the outcome shows on its channel. Raises `OSError` if no zygote can be forked."""
        mother = self._of(birth.generation) or self._found(birth)
        mother.waiting.append(_Order(birth, row))
        self._expect(mother, birth.worker_id, birth.settings.pool.timeout_boot)
        self._feed(mother)

    def settled(self, worker_id: int) -> None:
        """Go on with the next order: this worker announced itself, or never will."""
        for mother in self._mothers.values():
            if mother.sent == worker_id:
                mother.sent = None
                self._feed(mother)

    def broadcast(self, message: messages.Message, fds: tuple[int, ...]) -> None:
        """Send `message` to every zygote, so that the workers to come know it."""
        for mother in self._mothers.values():
            mother.zygote.channel.send(message, fds)

    def keep(self, generations: Collection[int | None]) -> None:
        """End the zygotes of all other generations."""
        for mother in self._mothers.values():
            if mother.zygote.generation not in generations and not mother.ending:
                self._end(mother)

    def buried(self, pid: int, ending: Exit) -> bool:
        """Answer the death of a child; False if it was no zygote."""
        mother = self._mothers.pop(pid, None)
        if mother is None:
            return False
        self._read(mother)
        self._loop.unwatch(mother.zygote.channel.fileno())
        words = _last_words(mother, ending)
        if not mother.ending:
            self._say_end(mother, words)
        self._refuse_all(mother, f"the {mother} is gone", _failure(mother, ending), words)
        mother.zygote.close()
        if mother.ready and not mother.ending:
            self._lose(mother)
        return True

    def close(self) -> None:
        """Kill and reap what is left, when the arbiter itself ends."""
        for pid, mother in self._mothers.items():
            mother.zygote.signal(signal.SIGKILL)
            with suppress(ChildProcessError):
                os.waitpid(pid, 0)
            mother.zygote.close()
        self._mothers.clear()

    def close_in_child(self) -> None:
        """Close in a forked child what belongs to the arbiter."""
        for mother in self._mothers.values():
            mother.zygote.close()
            for order in mother.waiting:
                order.birth.channel.close()

    def _of(self, generation: int) -> _Mother | None:
        living = (mother for mother in self._mothers.values() if not mother.ending)
        return next((mother for mother in living if mother.zygote.generation == generation), None)

    def _found(self, birth: Birth) -> _Mother:
        zygote = fork_zygote(birth, self._host.board, close_in_child=lambda: self._host.close_in_child(()))
        mother = self._mothers[zygote.pid] = _Mother(zygote, self._host.now())
        self._host.guard_child(zygote.pid)
        self._listen(mother)
        return mother

    def _listen(self, mother: _Mother) -> None:
        self._loop.watch(mother.zygote.channel.fileno(), lambda _: self._read(mother))

    def _adopt(self, estate: MotherEstate) -> _Mother:
        channel, stacks_fd = messages.Channel.adopt(estate.channel), estate.stacks.number
        zygote = Zygote(pid=estate.pid, generation=estate.generation, channel=channel, stacks_fd=stacks_fd)
        mother = self._mothers[estate.pid] = _Mother(
            zygote=zygote,
            since=estate.since,
            sent=estate.sent,
            waiting=deque(self._order_of(each) for each in estate.waiting),
            ready=estate.ready,
            ending=estate.ending,
            late=estate.late,
            last_words=estate.last_words,
        )
        for worker_id in mother.owed():
            member = self._host.members[worker_id]
            self._expect(mother, worker_id, self._host.birth_of(worker_id, member.channel).settings.pool.timeout_boot)
        return mother

    def _order_of(self, estate: OrderEstate) -> _Order:
        return _Order(self._host.birth_of(estate.worker_id, messages.Channel.adopt(estate.channel)), estate.row)

    def _expect(self, mother: _Mother, worker_id: int, seconds: float) -> None:
        self._loop.call_at(self._host.now() + seconds, lambda: self._expire(mother, worker_id))

    def _feed(self, mother: _Mother) -> None:
        while mother.ready and mother.sent is None and mother.waiting:
            order = mother.waiting.popleft()
            worker_id = order.birth.worker_id
            if mother.zygote.order(order.birth, order.row):
                mother.sent = worker_id
            else:
                self._refuse(worker_id, f"the {mother} takes no order", BootFailure.REFUSED)
            order.birth.channel.close()

    def _read(self, mother: _Mother) -> None:
        """Execute what a zygote said; at its end stop listening, since its death comes by waitpid(2)."""
        try:
            while (received := _receive(mother)) is not None:
                self._hear(mother, received)
        except messages.ChannelClosed:
            self._loop.unwatch(mother.zygote.channel.fileno())

    def _hear(self, mother: _Mother, message: messages.Message) -> None:
        match message:
            case messages.Imported():
                mother.ready = True
                log.info("the %s has imported the application in %.2f s", mother, self._host.now() - mother.since)
                self._feed(mother)
            case messages.BootFailed():
                mother.last_words = message
            case messages.ForkFailed(worker_id=worker_id, reason=reason):
                self._refuse(worker_id, reason, BootFailure.REFUSED)
            case _:
                log.error("the %s sent a %s", mother, type(message).__name__)

    def _expire(self, mother: _Mother, worker_id: int) -> None:
        """Give up a zygote that still owes a worker when its boot is over: have it dump its stacks, then kill it."""
        if worker_id in mother.owed() and not (mother.late or mother.ending):
            mother.late = True
            mother.zygote.signal(STACKS_SIGNAL)
            self._kill_in(_DUMP_SECONDS, mother)

    def _end(self, mother: _Mother) -> None:
        """Let a zygote go: what it owes will not be; one that is still importing cannot hear it."""
        mother.ending = True
        self._refuse_all(mother, f"the {mother} is not needed any more", BootFailure.FAILED)
        if mother.ready:
            self._loop.unwatch(mother.zygote.channel.fileno())
            mother.zygote.channel.shut()
            self._kill_in(_END_SECONDS, mother)
        else:
            mother.zygote.signal(signal.SIGKILL)

    def _kill_in(self, seconds: float, mother: _Mother) -> None:
        pid = mother.zygote.pid
        self._loop.call_at(
            self._host.now() + seconds,
            lambda: mother.zygote.signal(signal.SIGKILL) if self._mothers.get(pid) is mother else None,
        )

    def _refuse_all(
        self, mother: _Mother, reason: str, failure: BootFailure, words: messages.BootFailed | None = None
    ) -> None:
        for worker_id in mother.owed():
            self._host.refuse(SpawnFailed(worker_id, reason, failure), words)
        for order in mother.waiting:
            order.birth.channel.close()
        mother.waiting.clear()

    def _refuse(self, worker_id: int, reason: str, failure: BootFailure) -> None:
        self._host.refuse(SpawnFailed(worker_id, reason, failure))

    def _say_end(self, mother: _Mother, words: messages.BootFailed) -> None:
        if words is mother.last_words:
            self._report.say_failure(f"the {mother} could not start", words)
        else:
            log.error("%s%s", words.summary, f"; {words.detail}" if words.detail else "")

    def _lose(self, mother: _Mother) -> None:
        """Say that a generation lost its zygote; later each time if zygotes do not live long."""
        young = self._host.now() - mother.since < _BACKOFF.stable_after
        self._young_deaths = self._young_deaths + 1 if young else 0
        wait = _BACKOFF.delay(self._young_deaths, 0.0) if young else 0.0
        self._loop.call_at(self._host.now() + wait, lambda: self._on_lost(mother.zygote.generation))


def _receive(mother: _Mother) -> messages.Message | None:
    """Return the zygote's next message; it sends no descriptors."""
    while True:
        try:
            received = mother.zygote.channel.receive()
        except messages.MessageError as error:
            log.error("the %s sent nonsense: %s", mother, error)
            continue
        if received is None:
            return None
        for fd in received[1]:
            os.close(fd)
        return received[0]


def _hand_over(mother: _Mother) -> MotherEstate:
    return MotherEstate(
        pid=mother.zygote.pid,
        generation=mother.zygote.generation,
        channel=Descriptor(mother.zygote.channel.fileno()),
        stacks=Descriptor(mother.zygote.stacks_fd),
        since=mother.since,
        sent=mother.sent,
        waiting=tuple(
            OrderEstate(
                worker_id=order.birth.worker_id, row=order.row, channel=Descriptor(order.birth.channel.fileno())
            )
            for order in mother.waiting
        ),
        ready=mother.ready,
        ending=mother.ending,
        late=mother.late,
        last_words=mother.last_words,
    )


def _last_words(mother: _Mother, ending: Exit) -> messages.BootFailed:
    """Return why a zygote has ended: in its own words, or in those that can be found for it."""
    if mother.late:
        what = "answer" if mother.ready else "import the application"
        summary = f"the {mother} was killed by procmgr because it did not {what} in time"
        return messages.BootFailed(ExitCode.TIMED_OUT, summary, dumped(mother.zygote.stacks()))
    if mother.last_words is not None:
        return mother.last_words
    when = "" if mother.ready else " before it had imported"
    return messages.BootFailed(ExitCode.APP_FAILED, f"the {mother} {describe(ending)}{when}", "")


def _failure(mother: _Mother, ending: Exit) -> BootFailure:
    if mother.late:
        return BootFailure.TIMED_OUT
    code = ending.code if mother.last_words is None else mother.last_words.exit_code
    return BootFailure.NOT_FOUND if code == ExitCode.APP_NOT_FOUND else BootFailure.FAILED
