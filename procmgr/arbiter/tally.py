"""What has happened how often: deaths of workers by their cause, reloads by their outcome. It outlives an upgrade."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from procmgr.arbiter.core import actions
from procmgr.arbiter.core.actions import KillReason, ReloadOutcome
from procmgr.plain import record

if TYPE_CHECKING:
    from procmgr.arbiter.core.actions import Notice, WorkerDied

DEATHS: Final = (
    *("expected", "boot_failed", "exit", "signal"),
    *(f"killed_{reason.name.lower()}" for reason in KillReason),
)
RELOADS: Final = tuple(outcome.name.lower() for outcome in ReloadOutcome)


@record
class TallyEstate:
    """The counts as they are handed over."""

    counts: dict[str, int]


class Tally:
    """Counts notices; with `estate` it goes on with a predecessor's counts."""

    def __init__(self, estate: TallyEstate | None = None) -> None:
        self.deaths = dict.fromkeys(DEATHS, 0)
        self.reloads = dict.fromkeys(RELOADS, 0)
        for name, count in (estate.counts if estate else {}).items():
            kind, _, label = name.partition(".")
            counts = self.deaths if kind == "death" else self.reloads
            if label in counts:
                counts[label] = count

    def hand_over(self) -> TallyEstate:
        """Return what a successor needs."""
        deaths = {f"death.{label}": count for label, count in self.deaths.items()}
        return TallyEstate(counts=deaths | {f"reload.{label}": count for label, count in self.reloads.items()})

    def hear(self, notice: Notice) -> None:
        """Count a notice."""
        match notice:
            case actions.WorkerDied():
                self.deaths[_cause(notice)] += 1
            case actions.ReloadEnded(outcome=outcome):
                self.reloads[outcome.name.lower()] += 1
            case _:
                pass


def _cause(death: WorkerDied) -> str:
    if death.killed is not None:
        return f"killed_{death.killed.name.lower()}"
    if death.expected:
        return "expected"
    if not death.was_ready:
        return "boot_failed"
    return "exit" if death.exit.signal is None else "signal"
