"""What the pool decides, in words: one log line per fact, and the status for systemd.

A death is one line with its cause, age and requests served. A boot failure brings the application's own traceback, but
the same traceback only once: a crash loop says that it repeats.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import time
from typing import TYPE_CHECKING, Final, assert_never

from procmgr import __version__, scoreboard, sockets
from procmgr.arbiter.core import actions
from procmgr.arbiter.core.actions import KillReason, ReloadOutcome
from procmgr.arbiter.core.events import Exit, StopLevel
from procmgr.arbiter.quota import QuotaWatch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from procmgr import messages
    from procmgr.arbiter.core.view import View
    from procmgr.arbiter.member import Member
    from procmgr.arbiter.plans import Plan

log = logging.getLogger("procmgr.error")

PoolNotice = (
    actions.BackingOff
    | actions.PoolReady
    | actions.ReloadEnded
    | actions.Leaving
    | actions.Stopping
    | actions.GaveUp
    | actions.ClockJumped
)

_CAPITAL: Final = re.compile(r"(?<=[a-z])(?=[A-Z])")
_MIB: Final = 1024 * 1024
_SHOWN_REQUESTS: Final = 8
_DUMPED: Final = {KillReason.HUNG, KillReason.BOOT_TIMEOUT}
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
        self._said_limits: set[int] = set()
        self._said_newer: set[int] = set()
        self._quota = QuotaWatch()

    def say_start(self, plan: Plan, pages: Sequence[str]) -> None:
        """Say what starts where; `pages` are the addresses of the admin pages."""
        app, workers = plan.settings.app.app, plan.settings.pool.workers
        where = ", ".join(sockets.url(listener.address, scheme=plan.settings.tls.scheme) for listener in plan.listeners)
        about = (__version__, os.getpid(), app, where, _count(workers, "worker"))
        log.info("procmgr %s (pid %d) starts %s on %s with %s", *about)
        if pages:
            log.info("admin pages on %s", ", ".join(pages))
        self._quota.look(workers)

    def go_on(self, view: View) -> None:
        """Take over from a report that has said how it stands."""
        self._quota.look(view.desired, quietly=True)

    def mixture(self, view: View) -> str:
        """Return the end of the status that says if some workers run newer code than their generation began with."""
        mixed = any(each.newer_code and each.generation == view.generation for each in self._members.values())
        return ", some with newer code: reload" if mixed and view.rolling is None else ""

    def say(self, notice: actions.Notice) -> None:
        """Log one notice."""
        match notice:
            case actions.WorkerReady():
                log.info("%s ready in %.2f s", self._name(notice.worker_id), notice.boot_seconds)
                self._say_newer_code(notice)
            case actions.WorkerDied():
                self._say_death(notice)
            case actions.WorkerRecycled():
                log.info("%s will be replaced: %s", self._name(notice.worker_id), notice.reason)
            case actions.LimitTooLow():
                self._say_limit(notice)
            case actions.LoopLate():
                pass  # said by `lateness`, together with what the loop does
            case actions.ReloadBegun(generation=generation):
                self._said_failures.clear()
                self._said_limits.clear()
                log.info("reloading: rolling to generation %d", generation)
            case actions.Scaled(workers=workers):
                log.info("scaling to %s", _count(workers, "worker"))
                self._quota.look(workers)
            case _:
                _say_pool(notice)

    def _say_death(self, death: actions.WorkerDied) -> None:
        member = self._members[death.worker_id]
        if member.last_words is not None and not death.was_ready:
            self.say_failure(f"{self._name(death.worker_id)} could not start", member.last_words)
            return
        served = f"{_count(member.row[scoreboard.REQUESTS], 'request')} served"
        line = f"{self._name(death.worker_id)} {cause(death, member)} after {death.age_seconds:.1f} s, {served}"
        if death.killed is not None or not death.expected:
            line += in_flight(member, time.monotonic())
        stacks = dumped(member.stacks()) if death.killed in _DUMPED else ""
        log.log(_severity(death), "%s%s", line, f"; {stacks}" if stacks else "")

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

    def _say_newer_code(self, notice: actions.WorkerReady) -> None:
        path = self._members[notice.worker_id].newer_code
        if path is None or notice.generation in self._said_newer:
            return
        self._said_newer.add(notice.generation)
        log.warning(
            "%s runs newer code than generation %d: %s changed since; a reload brings all workers to it",
            *(self._name(notice.worker_id), notice.generation, ascii(path)[1:-1]),
        )

    def _say_limit(self, notice: actions.LimitTooLow) -> None:
        if notice.limit in self._said_limits:
            return
        self._said_limits.add(notice.limit)
        log.error(
            "%s uses %.1f MiB before it served anything: max_memory, %.1f MiB, is too low to have any effect",
            *(self._name(notice.worker_id), notice.used / _MIB, notice.limit / _MIB),
        )

    def _name(self, worker_id: int) -> str:
        return name_of(worker_id, self._members[worker_id])


def fields_of(notice: actions.Notice, members: Mapping[int, Member]) -> dict[str, object]:
    """Return what a notice is about, by the names of its fields in the journal without their PROCMGR_."""
    fields: dict[str, object] = {"event": _CAPITAL.sub("_", type(notice).__name__).lower()}
    fields |= {name: getattr(notice, name) for name in ("worker_id", "slot", "generation") if hasattr(notice, name)}
    if isinstance(notice, actions.ReloadEnded):
        fields["outcome"] = notice.outcome.value
    member = members.get(getattr(notice, "worker_id", -1))
    if member is not None:
        fields |= {"slot": member.slot, "generation": member.generation}
    return fields


def name_of(worker_id: int, member: Member) -> str:
    """Return what a worker is called in the log."""
    return f"worker {worker_id} (slot {member.slot}, pid {member.pid})"


def dumped(stacks: str) -> str:
    """Return what is shown of the stacks of a process that was killed; empty if there are none."""
    return f"its stacks were:\n{stacks.rstrip()}" if stacks else ""


def in_flight(member: Member, now: float) -> str:
    """Return the requests that a worker runs at `now`, for the end of a line; the newest first.

    A loop that is blocked was most likely blocked by the last one it began.
    """
    running = scoreboard.running(member.records)[::-1]
    if not running:
        return ""
    shown = [f"{what} for {max(0.0, now - began / 1e9):.1f} s" for began, what in running[:_SHOWN_REQUESTS]]
    more = max(len(running), member.row[scoreboard.ACTIVE]) - len(shown)
    return f"; in flight: {', '.join(shown)}{f' and {more} more' if more else ''}"


def _say_pool(notice: PoolNotice) -> None:
    match notice:
        case actions.BackingOff(seconds=seconds, failures=failures):
            log.warning("next attempt in %.1f s, after %s in a row", seconds, _count(failures, "early death"))
        case actions.PoolReady():
            log.info("all workers are ready")
        case actions.ReloadEnded():
            _say_reload(notice)
        case actions.Leaving(seconds=seconds):
            log.info("leaving: not ready any more for those who ask, serving on for %g s", seconds)
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


def cause(death: actions.WorkerDied, member: Member) -> str:
    """Return how a worker came to its end, as what follows its name in a sentence."""
    if death.killed is not None:
        size = f" ({member.memory / _MIB:.1f} MiB)" if death.killed is KillReason.MEMORY else ""
        return f"was killed by procmgr because {death.killed.value}{size}{', core dumped' if death.exit.core else ''}"
    if death.expected and death.exit.code == 0:
        return "ended"
    if member.kill_sent:
        return describe(death.exit, sender="")
    return describe(death.exit, sender="probably out of memory" if member.out_of_memory else "sender unknown")


def describe(ending: Exit, *, sender: str = "sender unknown") -> str:
    """Say how a process ended that was not told to; `sender` is who may have sent a SIGKILL."""
    return f"exited with status {ending.code}" if ending.signal is None else f"died of {_signal_name(ending, sender)}"


def _signal_name(ending: Exit, sender: str) -> str:
    assert ending.signal is not None
    try:
        name = signal.Signals(ending.signal).name
    except ValueError:
        name = f"signal {ending.signal}"
    by = f", {sender}" if sender and ending.signal == signal.SIGKILL else ""
    return f"{name}{', core dumped' if ending.core else ''}{by}"


def _say_reload(ended: actions.ReloadEnded) -> None:
    match ended.outcome:
        case ReloadOutcome.DONE:
            log.info("reload done: generation %d serves", ended.generation)
        case ReloadOutcome.ROLLED_BACK:
            log.error("reload rolled back: generation %d did not start, the old one serves on", ended.generation)
        case ReloadOutcome.PARTIAL:
            log.error("reload %s", partial(ended))
        case ReloadOutcome.SUPERSEDED:
            log.info("reload superseded: generation %d gives way to a newer one", ended.generation)
        case ReloadOutcome.STOPPED:
            log.info("reload cut short by the stop")
        case _:
            assert_never(ended.outcome)


def partial(ended: actions.ReloadEnded) -> str:
    """Return how a reload ended that could neither go on nor back, as what follows "reload"."""
    if not (ended.replaced or ended.kept):
        return f"failed: generation {ended.generation} does not serve, and no older one either"
    kept = f"{ended.kept} keep{'s' if ended.kept == 1 else ''} the old code" if ended.kept else "no old one is left"
    new = f"{ended.replaced} of {_count(ended.desired, 'worker')}"
    return f"partial: {new} {'is' if ended.replaced == 1 else 'are'} of generation {ended.generation}, {kept}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
