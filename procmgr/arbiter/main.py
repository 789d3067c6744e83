"""The composition root: how an arbiter begins, by a start, by an upgrade or by a check, and what it is made of then."""

from __future__ import annotations

import gc
import os
import sys
from contextlib import closing
from typing import TYPE_CHECKING

from procmgr import __version__, process
from procmgr.arbiter import certificates, estate, parts, spawn
from procmgr.arbiter.arbiter import Arbiter
from procmgr.config.resolve import resolve
from procmgr.errors import ExitCode
from procmgr.worker import boot

if TYPE_CHECKING:
    from collections.abc import Callable

    from procmgr.config.resolve import Invocation, Resolved
    from procmgr.config.settings import Settings
    from procmgr.handover import Envelope, Ticket


def main(invocation: Invocation, resolved: Resolved) -> int:
    """Supervise until stopped; returns the exit code. Raises `ProcmgrError` when it cannot start."""
    process.open_standard_streams()
    with closing(parts.start(invocation, resolved)) as made:
        _prepare_process(made.settings)
        with closing(Arbiter(invocation, made)) as arbiter:
            return arbiter.run()


def take_over(invocation: Invocation, envelope: Envelope) -> Callable[[], int]:
    """Take over from the arbiter that this process was before; returns what supervises until stopped.

    Until that is called nothing has happened that anybody could notice. Raises whatever may go wrong.
    """
    made = parts.take_over(invocation, estate.read(envelope.estate))
    _prepare_process(made.settings)
    arbiter = Arbiter(invocation, made)

    def go_on() -> int:
        with closing(made), closing(arbiter):
            return arbiter.run(envelope)

    return go_on


def could_take_over(invocation: Invocation, ticket: Ticket) -> int:
    """Check, in the child of an arbiter, that `take_over` would succeed and the application can be imported here.

    Binds, locks, notifies and unlinks nothing. Returns the exit code, having answered through `ticket` if it is 0.
    Raises `ProcmgrError`. The process is of no further use then: it has become the application's user.
    """
    plan = estate.read(ticket.envelope.estate).plan_in_force
    resolve(invocation)
    parts.configure_logs(plan.settings)
    boot.preimport(plan.settings)
    code = boot.check(plan.settings, plan.privileges, invocation.environ, invocation.cwd)
    if code == ExitCode.OK:
        ticket.answer(__version__)
    return code


def check(invocation: Invocation, resolved: Resolved) -> int:
    """Import the application in a child, without serving; returns the exit code it would fail with, or 0.

    Raises `ProcmgrError` for what a start would refuse before it forks.
    """
    process.open_standard_streams()
    settings = resolved.settings
    privileges = process.resolve_privileges(settings.process.user, settings.process.group)
    if settings.logs.log_config is not None:
        parts.configure_logs(settings)
    for note in resolved.notes:
        sys.stderr.write(f"procmgr: note: {note}\n")
    for warning in certificates.check(settings, invocation.cwd):
        sys.stderr.write(f"procmgr: warning: {warning}\n")
    pid = spawn.fork(
        lambda: boot.check(settings, privileges, invocation.environ, invocation.cwd), close_in_child=lambda: None
    )
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else ExitCode.APP_FAILED


def _prepare_process(settings: Settings) -> None:
    process.enlarge_signal_stack()
    process.raise_nofile_limit()
    process.set_subreaper()
    process.set_title(f"procmgr: {settings.process.name}")
    boot.preimport(settings)
    gc.collect()
    gc.freeze()
