"""What the pool decides, in words: one log line per fact, and the status for systemd.

A death is one line with its cause, age and requests served. A boot failure brings the application's own traceback, but
the same traceback only once: a crash loop says that it repeats.
"""

from __future__ import annotations

import logging
import signal
from typing import TYPE_CHECKING, assert_never

from procmgr import scoreboard
from procmgr.arbiter.core import actions
from procmgr.arbiter.core.actions import ReloadOutcome
from procmgr.arbiter.core.events import Exit, StopLevel

if TYPE_CHECKING:
    from collections.abc import Mapping

    from procmgr import messages
    from procmgr.arbiter.host import Member

log = logging.getLogger("procmgr.error")

PoolNotice = (
    actions.BackingOff
    | actions.PoolReady
    | actions.ReloadEnded
    | actions.Scaled
    | actions.Stopping
    | actions.GaveUp
    | actions.ClockJumped
)

_STOPPING = {
    StopLevel.GRACEFUL: "stopping: finishing what was accepted",
    StopLevel.QUICK: "stopping quickly: requests that run get a moment, then they are cancelled",
    StopLevel.KILL: "stopping at once: killing the workers",
}


class Report:
    """Logs notices; `members` is where a notice's worker is still known while it is said."""

    def __init__(self, *, members: Mapping[int, Member]) -> None:
        self._members = members
        self._said_failures: set[str] = set()

    def say(self, notice: actions.Notice) -> None:
        """Log one notice."""
        match notice:
            case actions.WorkerReady():
                log.info("%s ready in %.2f s", self._name(notice.worker_id), notice.boot_seconds)
            case actions.WorkerDied():
                self._say_death(notice)
            case actions.WorkerRecycled():
                log.info("%s will be replaced: %s", self._name(notice.worker_id), notice.reason)
            case actions.ReloadBegun(generation=generation):
                self._said_failures.clear()
                log.info("reloading: rolling to generation %d", generation)
            case _:
                _say_pool(notice)

    def _say_death(self, death: actions.WorkerDied) -> None:
        member = self._members[death.worker_id]
        if member.last_words is not None and not death.was_ready:
            self.say_failure(f"{self._name(death.worker_id)} could not start", member.last_words)
            return
        served = f"{_count(member.row[scoreboard.REQUESTS], 'request')} served"
        line = f"{self._name(death.worker_id)} {cause(death)} after {death.age_seconds:.1f} s, {served}"
        stacks = member.stacks() if death.killed is not None else ""
        log.log(_severity(death), "%s%s", line, f"; its stacks were:\n{stacks}" if stacks else "")

    def say_failure(self, what: str, words: messages.BootFailed) -> None:
        """Log why something could not start: `what`, and the words it left."""
        line = f"{what}: {words.summary}"
        if not words.detail:
            log.error("%s", line)
        elif words.detail in self._said_failures:
            log.error("%s (traceback as before)", line)
        else:
            self._said_failures.add(words.detail)
            log.error("%s\n%s", line, words.detail.rstrip())

    def _name(self, worker_id: int) -> str:
        member = self._members[worker_id]
        return f"worker {worker_id} (slot {member.slot}, pid {member.pid})"


def _say_pool(notice: PoolNotice) -> None:
    match notice:
        case actions.BackingOff(seconds=seconds, failures=failures):
            log.warning("next attempt in %.1f s, after %s in a row", seconds, _count(failures, "early death"))
        case actions.PoolReady():
            log.info("all workers are ready")
        case actions.ReloadEnded():
            _say_reload(notice)
        case actions.Scaled(workers=workers):
            log.info("scaling to %s", _count(workers, "worker"))
        case actions.Stopping(level=level):
            log.info(_STOPPING[level])
        case actions.GaveUp(attempts=attempts):
            log.critical("giving up: no worker was ready in %s", _count(attempts, "attempt"))
        case actions.ClockJumped(seconds=seconds):
            log.warning("the arbiter did not run for %.1f s; every deadline was moved by as much", seconds)
        case _:
            assert_never(notice)


def _severity(death: actions.WorkerDied) -> int:
    if death.killed is not None or not death.expected:
        return logging.ERROR
    return logging.INFO


def cause(death: actions.WorkerDied) -> str:
    """Return how a worker came to its end, as what follows its name in a sentence."""
    if death.killed is not None:
        return f"was killed by procmgr because {death.killed.value}"
    return "ended" if death.expected and death.exit.code == 0 else describe(death.exit)


def describe(ending: Exit) -> str:
    """Say how a process ended that was not told to."""
    return f"exited with status {ending.code}" if ending.signal is None else f"died of {_signal_name(ending)}"


def _signal_name(ending: Exit) -> str:
    assert ending.signal is not None
    try:
        name = signal.Signals(ending.signal).name
    except ValueError:
        name = f"signal {ending.signal}"
    unsent = ", sender unknown" if ending.signal == signal.SIGKILL else ""
    return f"{name}{', core dumped' if ending.core else ''}{unsent}"


def _say_reload(ended: actions.ReloadEnded) -> None:
    match ended.outcome:
        case ReloadOutcome.DONE:
            log.info("reload done: generation %d serves", ended.generation)
        case ReloadOutcome.ROLLED_BACK:
            log.error("reload rolled back: generation %d did not start, the old one serves on", ended.generation)
        case ReloadOutcome.PARTIAL:
            log.error(
                "reload partial: %d of %d workers are of generation %d, the others keep the old code",
                *(ended.replaced, ended.desired, ended.generation),
            )
        case ReloadOutcome.SUPERSEDED:
            log.info("reload superseded: generation %d gives way to a newer one", ended.generation)
        case ReloadOutcome.STOPPED:
            log.info("reload cut short by the stop")
        case _:
            assert_never(ended.outcome)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
