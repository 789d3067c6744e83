"""What has happened, for those who ask later: why the worker of a slot went, and how the last reload ended and why.

The pool forgets a worker once it is buried and says failures in one word; here the application's own words are kept, of
one reload and of one departure per slot, so it stays bounded.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, assert_never

from procmgr.arbiter.core import actions
from procmgr.arbiter.core.actions import KillReason, ReloadOutcome
from procmgr.arbiter.core.events import BootFailure
from procmgr.arbiter.report import cause, dumped, name_of, partial
from procmgr.errors import ExitCode
from procmgr.plain import record

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from procmgr.arbiter.core.view import View
    from procmgr.arbiter.member import Member
    from procmgr.errors import ProcmgrError

_CODES: Final = {
    BootFailure.NOT_FOUND: ExitCode.APP_NOT_FOUND,
    BootFailure.FAILED: ExitCode.APP_FAILED,
    BootFailure.TIMED_OUT: ExitCode.TIMED_OUT,
    BootFailure.REFUSED: ExitCode.OS_ERROR,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Why a worker could not start: the exit code that says so, one line, the application's traceback or nothing."""

    exit_code: int
    summary: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Departure:
    """A worker that went: `reason` follows its name in a sentence, `at` is monotonic seconds."""

    worker_id: int
    reason: str
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LastReload:
    """How a reload ended. `generation` is None for one that was refused; `at` is monotonic seconds.

    `why` is what went wrong, in a line, if anything did.
    """

    generation: int | None
    outcome: ReloadOutcome | None
    exit_code: int
    text: str
    detail: str
    at: float
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LastUpgrade:
    """How an upgrade in place ended; `number` counts them from 1."""

    number: int
    exit_code: int
    text: str
    detail: str


@record
class HistoryEstate:
    """The notes as they are handed over."""

    recycled: dict[int, str]
    departures: dict[int, Departure]
    last_reload: LastReload | None
    upgrades: int


class History:
    """Takes notes of notices; `members` is where a notice's worker is still known while it is noted.

    With `estate` it goes on with a predecessor's notes.
    """

    def __init__(
        self,
        *,
        members: Mapping[int, Member],
        view: Callable[[], View],
        now: Callable[[], float],
        estate: HistoryEstate | None = None,
    ) -> None:
        self._members = members
        self._view = view
        self._now = now
        self._recycled = estate.recycled if estate else {}
        self.departures = estate.departures if estate else {}
        self.last_reload = estate.last_reload if estate else None
        self.upgrades = estate.upgrades if estate else 0
        """How many upgrades were begun."""
        self.last_upgrade: LastUpgrade | None = None
        self._last_fault = ""

    def hand_over(self) -> HistoryEstate:
        """Return what a successor needs."""
        return HistoryEstate(
            recycled=self._recycled,
            departures=self.departures,
            last_reload=self.last_reload,
            upgrades=self.upgrades,
        )

    def note(self, notice: actions.Notice) -> None:
        """Note what is worth remembering."""
        match notice:
            case actions.WorkerRecycled():
                self._recycled[notice.worker_id] = notice.reason
            case actions.WorkerDied():
                reason = self._reason(notice)
                self._recycled.pop(notice.worker_id, None)
                if not notice.was_ready:
                    self._last_fault = self.fault(notice).summary
                self._complete(notice)
                if not self._was_only_a_trial(notice):
                    self.departures[notice.slot] = Departure(worker_id=notice.worker_id, reason=reason, at=self._now())
            case actions.ReloadEnded():
                self.last_reload = self._ended(notice)
            case _:
                pass

    def note_refusal(self, error: ProcmgrError) -> None:
        """Note that a reload was refused for its configuration."""
        text = f"refused, nothing changed: {error}"
        self.last_reload = LastReload(
            generation=None,
            outcome=None,
            exit_code=error.exit_code,
            text=text,
            detail="",
            at=self._now(),
            why=str(error),
        )

    def trouble(self) -> str:
        """Return the end of the status that says why nothing starts, or why the last reload failed."""
        last, view = self.last_reload, self._view()
        if view.gave_up and self._last_fault:
            return f": {self._last_fault}"
        if last is None or not last.why or view.rolling is not None or view.stop is not None:
            return ""
        return f"; reload {'refused' if last.outcome is None else 'failed'}: {last.why}"

    def note_upgrade(self, exit_code: int, text: str, detail: str = "") -> None:
        """Note how the upgrade that was begun last has ended."""
        self.last_upgrade = LastUpgrade(number=self.upgrades, exit_code=exit_code, text=text, detail=detail)

    def fault(self, death: actions.WorkerDied) -> Fault:
        """Return why a worker that died before it was ready could not start."""
        fault = _fault(self._members[death.worker_id], death.failure, self._cause(death))
        return fault if fault.detail else replace(fault, detail=self._stacks(death))

    @property
    def incomplete(self) -> bool:
        """Whether the stacks of a worker that was not ready in time are still to come, as the last reload's detail."""
        last = self.last_reload
        if last is None or last.exit_code != ExitCode.TIMED_OUT or last.detail:
            return False
        return any(each.given_up and each.generation == last.generation for each in self._view().workers)

    def _complete(self, death: actions.WorkerDied) -> None:
        """Add its stacks to the last reload if that ended by giving up this worker; they are dumped after that."""
        last = self.last_reload
        if last and last.generation == death.generation and last.exit_code == ExitCode.TIMED_OUT and not last.detail:
            self.last_reload = replace(last, detail=self._stacks(death))

    def _stacks(self, death: actions.WorkerDied) -> str:
        member = self._members[death.worker_id]
        stacks = dumped(member.stacks()) if death.killed is KillReason.BOOT_TIMEOUT else ""
        return f"{name_of(death.worker_id, member)}: {stacks}" if stacks else ""

    def _cause(self, death: actions.WorkerDied) -> str:
        return cause(death, self._members[death.worker_id])

    def _was_only_a_trial(self, death: actions.WorkerDied) -> bool:
        """Tell whether the worker that it was to succeed is still there: that one's predecessor remains who it was."""
        return any(each.slot == death.slot and each.worker_id < death.worker_id for each in self._view().workers)

    def _reason(self, death: actions.WorkerDied) -> str:
        generation = self._view().generation
        if not death.was_ready and self._members[death.worker_id].last_words:
            return f"could not start: {self.fault(death).summary}"
        if death.killed is not None or not death.expected:
            return self._cause(death)
        if reason := self._recycled.get(death.worker_id):
            return f"was recycled: {reason}"
        if death.generation < generation:
            return f"gave way to generation {generation}"
        return "was rolled back" if death.generation > generation else "was retired"

    def _ended(self, ended: actions.ReloadEnded) -> LastReload:
        fault = None
        if ended.outcome in {ReloadOutcome.ROLLED_BACK, ReloadOutcome.PARTIAL}:
            fault = _fault(self._witness(ended.generation), ended.failure, "it died without a word")
        return LastReload(
            generation=ended.generation,
            outcome=ended.outcome,
            exit_code=fault.exit_code if fault else _exit_code(ended.outcome),
            text=_sentence(ended, self._view().generation, fault),
            detail=fault.detail if fault else "",
            at=self._now(),
            why=fault.summary if fault else "",
        )

    def _witness(self, generation: int) -> Member | None:
        """Return the newest worker of a generation that told why it cannot start; it is not buried yet."""
        told = [each for each in self._members.values() if each.generation == generation and each.last_words]
        return told[-1] if told else None


def _fault(member: Member | None, failure: BootFailure | None, otherwise: str) -> Fault:
    words = member.last_words if member is not None else None
    if words is not None:
        return Fault(exit_code=words.exit_code, summary=words.summary, detail=words.detail)
    if failure is None:
        return Fault(exit_code=ExitCode.APP_FAILED, summary=otherwise, detail="")
    return Fault(exit_code=_CODES[failure], summary=failure.value, detail="")


def _exit_code(outcome: ReloadOutcome) -> ExitCode:
    return ExitCode.OK if outcome is ReloadOutcome.DONE else ExitCode.UNREACHABLE


def _sentence(ended: actions.ReloadEnded, generation: int, fault: Fault | None) -> str:
    why = f": {fault.summary}" if fault else ""
    match ended.outcome:
        case ReloadOutcome.DONE:
            return f"generation {ended.generation} serves"
        case ReloadOutcome.ROLLED_BACK:
            return f"generation {ended.generation} was rolled back, generation {generation} serves on{why}"
        case ReloadOutcome.PARTIAL:
            return f"{partial(ended)}{why}"
        case ReloadOutcome.SUPERSEDED:
            return f"generation {ended.generation} gave way to a newer reload"
        case ReloadOutcome.STOPPED:
            return f"generation {ended.generation} was cut short by a stop"
        case _:
            assert_never(ended.outcome)
