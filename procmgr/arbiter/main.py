"""The composition root: settings become listeners, processes, a pool and the loop that runs them.

`Arbiter` owns what outlives a generation: listeners, the guard, the pid file, the notifier. What a generation is made
of is a `Plan`.
"""

from __future__ import annotations

import gc
import logging
import os
import random
import signal
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from procmgr import __version__, logs, messages, process, sockets, systemd
from procmgr.arbiter import descendants, spawn
from procmgr.arbiter.control import Control, try_open
from procmgr.arbiter.core import actions
from procmgr.arbiter.core.events import Reload, ScaleBy, Stop
from procmgr.arbiter.core.policy import Policy
from procmgr.arbiter.core.pool import Pool
from procmgr.arbiter.core.view import status_line
from procmgr.arbiter.guard import Guard
from procmgr.arbiter.history import History
from procmgr.arbiter.host import LinuxHost, Member
from procmgr.arbiter.listeners import Listeners
from procmgr.arbiter.logfiles import LogFiles
from procmgr.arbiter.loop import Loop
from procmgr.arbiter.operations import Operations
from procmgr.arbiter.plans import Plans
from procmgr.arbiter.report import Report
from procmgr.arbiter.signals import HANDLED, SignalQueue, StopLadder
from procmgr.control import default_path
from procmgr.errors import ExitCode, ProcmgrError, UnavailableError
from procmgr.worker import boot

if TYPE_CHECKING:
    from procmgr.arbiter.core.events import StopLevel
    from procmgr.arbiter.plans import Plan
    from procmgr.config.resolve import Invocation, Resolved
    from procmgr.config.settings import Settings
    from procmgr.sockets import Listener

log = logging.getLogger("procmgr.error")

QUICK_SECONDS = 1.0
KILL_GRACE_SECONDS = 5.0


def main(invocation: Invocation, resolved: Resolved) -> int:
    """Supervise until stopped; returns the exit code. Raises `ProcmgrError` when it cannot start."""
    process.open_standard_streams()
    with ExitStack() as stack:
        return Arbiter(invocation, resolved, stack).run()


def check(invocation: Invocation, resolved: Resolved) -> int:
    """Import the application in a child, without serving; returns the exit code it would fail with, or 0."""
    settings = resolved.settings
    privileges = process.resolve_privileges(settings.process.user, settings.process.group)
    pid = spawn.fork(
        lambda: boot.check(settings, privileges, invocation.environ, invocation.cwd), close_in_child=_nothing
    )
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else ExitCode.APP_FAILED


def _nothing() -> None:
    """There is nothing to close in the child."""


def policy_of(settings: Settings) -> Policy:
    """Translate settings into the numbers that the pool decides by."""
    pool = settings.pool
    return Policy(
        workers=pool.workers,
        surge=pool.reload_surge.count(pool.workers),
        boot_timeout=pool.timeout_boot,
        beat_timeout=pool.timeout,
        graceful_timeout=pool.graceful_timeout,
        quick_timeout=QUICK_SECONDS,
        kill_grace=KILL_GRACE_SECONDS,
        boot_attempts=pool.boot_attempts,
    )


class Arbiter:
    """Everything that outlives a generation, and the answers to signals and notices."""

    def __init__(self, invocation: Invocation, resolved: Resolved, stack: ExitStack) -> None:
        self._invocation = invocation
        self._notifier = systemd.Notifier.from_environ(os.environ)
        settings = resolved.settings
        self._log_files = LogFiles(settings.logs)
        self._logs = _configure_logs(settings, self._log_files)
        inherited = systemd.inherited_sockets(os.environ, on_ignored=lambda reason: log.warning("%s", reason))
        self._listeners = Listeners(inherited=inherited)
        for note in resolved.notes:
            log.info("%s", note)
        stack.callback(self._listeners.keep, ())
        self._plans = Plans(invocation=invocation, listeners=self._listeners)
        first = self._plans.make(settings)
        self._pid_file = process.PidFile(Path(settings.process.pid)) if settings.process.pid is not None else None
        if self._pid_file is not None:
            stack.callback(self._pid_file.close)
        self._prepare_process(settings)
        self._ladder = StopLadder()
        self._signals = SignalQueue()
        self._host = LinuxHost(birth=self._birth, close_in_child=self._close_in_child)
        self._report = Report(members=self._host.members)
        self._pool = Pool(policy_of(settings), now=self._host.now(), random=random.random)
        self._plans.adopt(self._pool.view().generation, first)
        self._loop = Loop(pool=self._pool, host=self._host, signals=self._signals, observer=self)
        now = self._host.now
        self._history = History(members=self._host.members, view=self._pool.view, now=now)
        self._operations = Operations(
            steering=self, host=self._host, loop=self._loop, view=self._pool.view, history=self._history
        )
        self._control = self._open_control(settings)
        stack.callback(self._close_control)
        self._guard = self._fork_guard()

    def run(self) -> int:
        """Supervise until the pool finishes; returns the exit code."""
        plan = self.plan_in_force()
        settings = plan.settings
        where = ", ".join(sockets.url(listener.address) for listener in plan.listeners)
        workers = f"{settings.pool.workers} worker{'' if settings.pool.workers == 1 else 's'}"
        log.info(
            "procmgr %s (pid %d) starts %s on %s with %s", __version__, os.getpid(), settings.app.app, where, workers
        )
        code = self._loop.run()
        left = descendants.end_all(except_pids=frozenset({self._guard.pid}))
        if left:
            log.warning("ended %d process%s that workers had left behind", left, "" if left == 1 else "es")
        self._guard.dismiss()
        # The interpreter restores default actions as it ends: a signal that comes late would turn this into a death.
        signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)
        log.info("stopped")
        return code

    def on_signal(self, signum: signal.Signals) -> None:
        """Answer a signal; see the signals table in the README."""
        log.debug("received %s", signum.name)
        match signum:
            case signal.SIGTERM | signal.SIGINT | signal.SIGQUIT:
                level = self._ladder.climb(signum, self._host.now())
                if level is not None:
                    self._loop.post(Stop(level))
            case signal.SIGHUP:
                with suppress(ProcmgrError):  # it is logged
                    self.reload()
            case signal.SIGTTIN:
                self._loop.post(ScaleBy(1))
            case signal.SIGTTOU:
                self._loop.post(ScaleBy(-1))
            case signal.SIGUSR1:
                with suppress(ProcmgrError):  # it is logged
                    self.reopen_logs()
            case _:
                log.info("%s has no meaning yet", signum.name)

    def on_notice(self, notice: actions.Notice) -> None:
        """Say a notice, and act where it concerns more than the pool."""
        match notice:
            case actions.ReloadBegun(generation=generation):
                self._plans.begin(generation)
            case actions.ReloadEnded():
                self._plans.forget(self._pool.view())
            case _:
                pass
        self._history.note(notice)
        self._report.say(notice)
        self._notify(notice)
        self._operations.hear(notice)

    def on_sample(self, now: float) -> None:
        """Send what systemd wants to hear regularly."""
        self._notifier.watchdog()
        self._notifier.status(status_line(self._pool.view()))
        if self._control is not None:
            self._control.sweep(now)

    def _birth(self, order: actions.Spawn, member: Member, channel: messages.Channel) -> boot.Birth:
        plan = self._plans.of(order.generation)
        return boot.Birth(
            worker_id=order.worker_id,
            slot=order.slot,
            generation=order.generation,
            arbiter_pid=os.getpid(),
            settings=plan.settings,
            listeners=plan.listeners,
            privileges=plan.privileges,
            environ=self._invocation.environ,
            cwd=self._invocation.cwd,
            channel=channel,
            row=member.row,
            stacks_fd=member.stacks_fd,
            logs=self._logs,
        )

    def _close_in_child(self, keep: tuple[Listener, ...]) -> None:
        self._loop.close_in_child()
        self._listeners.close_in_child(keep)
        if self._control is not None:
            self._control.close_in_child()
        if self._pid_file is not None:
            self._pid_file.close_in_child()

    def reload(self) -> int:
        """Read the configuration anew and roll the workers; returns the generation that this asks for.

        Raises `ProcmgrError` and says why in the log and to systemd: everything stays as it is then.
        """
        view = self._pool.view()
        if view.stop is not None:
            log.info("reload ignored: stopping")
            raise UnavailableError("the daemon is stopping")
        try:
            plan = self._plans.propose(view.generation)
        except ProcmgrError as error:
            log.error("reload refused, nothing changed: %s", error)
            self._history.note_refusal(error)
            self._notifier.reloading("reload refused")
            self._notifier.ready(f"reload refused: {error}")
            raise
        level = _live_level(plan.settings)
        if level is not None:
            logs.set_level(level)
            self._host.broadcast(messages.Configure(level))
        self._notifier.reloading("reloading")
        self._loop.post(Reload(policy_of(plan.settings)))
        return self._pool.view().newest_generation

    def stop(self, level: StopLevel) -> None:
        """Stop at `level`, or raise the level of a stop under way."""
        self._ladder.reach(level)
        self._loop.post(Stop(level))

    def reopen_logs(self) -> None:
        """Open the log files anew, here and in the workers; raises `ProcmgrError` if that cannot be, and says so."""
        logs.reopen_files()
        try:
            fds = self._log_files.reopen()
        except ProcmgrError as error:
            log.error("the log files stay as they are: %s", error)
            raise
        self._host.broadcast(messages.ReopenLogs(), fds)
        self._logs.replace(fds)
        log.info("log files reopened")

    def plan_in_force(self) -> Plan:
        """Return what workers are made of now."""
        return self._plans.in_force(self._pool.view().generation)

    def _open_control(self, settings: Settings) -> Control | None:
        default = default_path(self._invocation.environ, settings.process.name)
        listener = try_open(settings.process.control, default)
        if listener is None:
            return None
        return Control(listener=listener, loop=self._loop, now=self._host.now, answer=self._operations.answer)

    def _close_control(self) -> None:
        self._operations.close()
        if self._control is not None:
            self._control.leave()

    def _notify(self, notice: actions.Notice) -> None:
        view = self._pool.view()
        status = status_line(view)
        match notice:
            case actions.PoolReady():
                self._notifier.ready(status)
            # Not for one that a newer one overtook, nor before the first READY, nor after STOPPING.
            case actions.ReloadEnded() if view.pool_ready and view.stop is None and not (view.rolling or view.pending):
                self._notifier.ready(status)
            case actions.Stopping():
                self._notifier.stopping(status)
            case _:
                self._notifier.status(status)

    def _fork_guard(self) -> Guard:
        guard = Guard(patience=self._patience(), close_in_child=lambda: self._host.close_in_child(()))
        self._host.entrust(guard, self._on_foreign_death)
        return guard

    def _patience(self) -> float:
        """Return how long the arbiter's workers may take to drain after its death, in seconds."""
        return self.plan_in_force().settings.pool.graceful_timeout + KILL_GRACE_SECONDS

    def _on_foreign_death(self, pid: int) -> None:
        if pid == self._guard.pid:
            log.warning("the guard (pid %d) died; forking another", pid)
            self._guard.close()
            self._guard = self._fork_guard()
        else:
            log.debug("buried pid %d, which is no worker", pid)

    def _prepare_process(self, settings: Settings) -> None:
        process.enlarge_signal_stack()
        process.raise_nofile_limit()
        process.set_subreaper()
        process.set_title(f"procmgr: {settings.process.name}")
        boot.preimport(settings)
        gc.collect()
        gc.freeze()


def _live_level(settings: Settings) -> str | None:
    """Return the log level that a reload applies; None where the log configuration decides."""
    return settings.logs.log_level or (None if settings.logs.log_config else "info")


def _configure_logs(settings: Settings, files: LogFiles) -> logs.LogSetup:
    return logs.configure(
        level=settings.logs.log_level,
        access=settings.logs.access_log,
        use_colors=settings.logs.use_colors,
        log_config=settings.logs.log_config,
        stdout=files.access,
        stderr=files.error,
    )
