"""The arbiter: what outlives a generation, and the answers to signals, notices and control requests.

`Arbiter` owns the listeners, the guard, the pid file and the notifier, and joins the pool to its loop and its host.
What a generation is made of is a `Plan`.
"""

from __future__ import annotations

import logging
import os
import signal
from contextlib import suppress
from typing import TYPE_CHECKING

from procmgr import control, logs, messages, scoreboard
from procmgr.arbiter import descendants, estate
from procmgr.arbiter.admin import Admin
from procmgr.arbiter.aides import Aides
from procmgr.arbiter.control import Control
from procmgr.arbiter.core import actions
from procmgr.arbiter.core.events import MemoryShort, Reload, ScaleBy, Stop, StopLevel
from procmgr.arbiter.core.view import status_line
from procmgr.arbiter.guard import Guard, Guards
from procmgr.arbiter.history import History
from procmgr.arbiter.hooks import HOOK_SECONDS
from procmgr.arbiter.host import LinuxHost
from procmgr.arbiter.lateness import LateLoops
from procmgr.arbiter.loop import Loop
from procmgr.arbiter.manager import ServiceManager
from procmgr.arbiter.memory import MemoryGauge
from procmgr.arbiter.nursery import Nursery
from procmgr.arbiter.oom import OomKills
from procmgr.arbiter.operations import Operations
from procmgr.arbiter.parts import KILL_GRACE_SECONDS, QUICK_SECONDS, Parts, live_level, policy_of
from procmgr.arbiter.pressure import PressureWatch
from procmgr.arbiter.rate import Rate
from procmgr.arbiter.reexec import Upgrade
from procmgr.arbiter.renewal import Renewal
from procmgr.arbiter.report import Report, fields_of
from procmgr.arbiter.signals import HANDLED, SignalQueue, StopLadder
from procmgr.arbiter.stacks import StackReader
from procmgr.errors import ProcmgrError, UnavailableError
from procmgr.worker import boot

if TYPE_CHECKING:
    from procmgr.arbiter.core.events import Exit
    from procmgr.arbiter.member import Member
    from procmgr.arbiter.plans import Plan
    from procmgr.config.resolve import Invocation
    from procmgr.handover import Envelope
    from procmgr.sockets import Listener

log = logging.getLogger("procmgr.error")


class Arbiter:
    """Everything that outlives a generation, and the answers to signals and notices."""

    def __init__(self, invocation: Invocation, made: Parts) -> None:
        self._invocation = invocation
        self._log_files, self._logs = made.log_files, made.logs
        self._listeners, self._plans = made.listeners, made.plans
        self._pid_file = made.pid_file
        self._pool = made.pool
        self._ladder = StopLadder()
        self._born = made.born
        left = made.estate
        self._signals = SignalQueue(left.signals if left else None)
        host = left.host if left else None
        self._host = LinuxHost(
            birth=self._birth, close_in_child=self._close_in_child, oom_kills=OomKills(), estate=host
        )
        self._report = Report(members=self._host.members)
        self._loop = Loop(pool=self._pool, host=self._host, signals=self._signals, observer=self)
        self._loop.adopt(self._host.members)
        history = left.history if left else None
        self._history = History(members=self._host.members, view=self._pool.view, now=self._host.now, estate=history)
        self._upgrade = Upgrade(
            invocation=invocation,
            loop=self._loop,
            history=self._history,
            hand_over=self._hand_over,
            part=self._part,
            changed=self._on_upgrade,
        )
        self._stacks = StackReader(host=self._host, loop=self._loop)
        self._make_watches()
        self._make_speakers(made)
        self._make_helpers(left)

    def _make_watches(self) -> None:
        """Make those who look after the workers beside the pool."""
        self._late_loops = LateLoops(host=self._host, stacks=self._stacks)
        self._pressure = PressureWatch(
            environ=self._invocation.environ,
            loop=self._loop,
            now=self._host.now,
            on_pressure=lambda: self._loop.post(MemoryShort(self._memory.sizes())),
        )
        self._memory = MemoryGauge(
            members=self._host.members,
            settings=lambda: self.plan_in_force().settings,
            post=self._loop.post,
            always=self._pressure.active,
        )
        self._renewal = Renewal(plans=self._plans.serving, send=self._host.broadcast)

    def _make_speakers(self, made: Parts) -> None:
        """Make those who tell of all this: systemd, operators, whoever looks at the pages."""
        left = made.estate
        self._operations = Operations(
            steering=self,
            host=self._host,
            loop=self._loop,
            view=self._pool.view,
            history=self._history,
            stacks=self._stacks,
            born=self._born,
        )
        self._rate = Rate()
        self._manager = ServiceManager(
            notifier=made.notifier,
            loop=self._loop,
            now=self._host.now,
            view=self._pool.view,
            policy=lambda: policy_of(self.plan_in_force().settings),
            summary=self._service_status,
            after_seconds=HOOK_SECONDS,
        )
        self._admin = Admin(
            settings=made.settings.admin,
            estate=left.admin if left else None,
            loop=self._loop,
            now=self._host.now,
            view=self._pool.view,
            summary=self.summary,
            document=self._operations.status,
            members=self._host.members,
            board=self._host.board,
            born=self._born,
        )
        self._control = Control.begin(
            left.control if left else None,
            setting=control.OFF if left and left.control is None else made.settings.process.control,
            default=control.default_path(self._invocation.environ, made.settings.process.name),
            loop=self._loop,
            now=self._host.now,
            answer=self._operations.answer,
        )

    def _make_helpers(self, left: estate.Estate | None) -> None:
        """Make those who keep the arbiter's other processes; the children of the arbiter before are known again."""
        self._aides = Aides(
            invocation=self._invocation,
            loop=self._loop,
            host=self._host,
            view=self._pool.view,
            plan=self.plan_in_force,
            logs=self._logs,
            entrust=self._entrust,
            stop_ends=self._stop_ends,
            on_change=self._on_change,
        )
        self._guards = Guards(
            later=lambda seconds, callback: self._loop.call_at(self._host.now() + seconds, callback),
            fork=self._fork_guard,
            entrust=self._entrust_all,
            first=Guard.adopt(left.guard) if left else None,
        )
        self._nursery = Nursery(host=self._host, loop=self._loop, report=self._report, on_lost=self._on_zygote_lost)
        self._host.entrust_births(self._nursery)
        if left:
            self._host.rejoin(self._guards.current, self._on_foreign_death)
            self._nursery.adopt(left.nursery)

    def run(self, envelope: Envelope | None = None) -> int:
        """Supervise until the pool finishes; returns the exit code. `envelope` is what was taken over, if anything."""
        if envelope is None:
            self._report.say_start(self.plan_in_force(), self._admin.addresses)
            self._aides.start()
        else:
            self._report.go_on(self._pool.view())
            self._upgrade.ended(envelope)
        self._aides.watch()
        self._manager.start()
        code = self._loop.run()
        self._aides.finish()
        self._nursery.close()
        left = descendants.end_all(except_pids=frozenset({self._guards.current.pid, *self._upgrade.pids}))
        if left:
            log.warning("ended %d process%s that workers had left behind", left, "" if left == 1 else "es")
        self._guards.current.dismiss()
        # The interpreter restores default actions as it ends: a signal that comes late would turn this into a death.
        signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)
        log.info("stopped")
        return code

    def close(self) -> None:
        """Let go of the control socket, at the end."""
        self._operations.close()
        self._pressure.close()
        self._admin.leave()
        if self._control is not None:
            self._control.leave()

    def on_signal(self, signum: signal.Signals) -> None:
        """Answer a signal; see the signals table in the README."""
        log.debug("received %s", signum.name)
        match signum:
            case signal.SIGTERM | signal.SIGINT | signal.SIGQUIT:
                level = self._ladder.climb(signum, self._host.now())
                if level is not None:
                    self._loop.post(Stop(level))
                    self._aides.stop(level)
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
            case signal.SIGUSR2:
                with suppress(ProcmgrError):  # it is logged
                    self.upgrade()
            case _:
                log.info("%s has no meaning", signum.name)

    def on_notice(self, notice: actions.Notice) -> None:
        """Say a notice, and act where it concerns more than the pool."""
        with self._logs.about(fields_of(notice, self._host.members)):
            self._answer_notice(notice)

    def _answer_notice(self, notice: actions.Notice) -> None:
        match notice:
            case actions.ReloadBegun(generation=generation):
                self._plans.begin(generation)
                self._keep_zygotes()
            case actions.ReloadEnded():
                self._plans.forget(self._pool.view())
                self._guards.current.set_patience(self._patience())
                self._keep_zygotes()
            case actions.Stopping() | actions.GaveUp():
                self._nursery.keep(())
                self._upgrade.cancel()
            case actions.WorkerReady(worker_id=worker_id):
                self._memory.measure(worker_id)
            case actions.LoopLate():
                self._late_loops.look(notice)
            case _:
                pass
        self._host.pass_on(notice)
        self._history.note(notice)
        self._admin.hear(notice)
        self._report.say(notice)
        self._aides.hear(notice)
        self._manager.hear(notice)
        self._operations.hear(notice)

    def on_sample(self, now: float) -> None:
        """Say how it stands, measure workers, and let go of control clients that were silent for too long."""
        self._rate.look(now, self._host.board.sum(scoreboard.REQUESTS))
        self._manager.sample()
        self._memory.sample()
        self._renewal.look()
        self._admin.sample(now)
        if self._control is not None:
            self._control.sweep(now)

    def _birth(self, order: actions.Spawn, member: Member, channel: messages.Channel) -> boot.Birth:
        plan = self._plans.of(order.generation)
        return boot.Birth(
            worker_id=order.worker_id,
            slot=order.slot,
            generation=order.generation,
            workers=self._pool.view().desired,
            arbiter_pid=os.getpid(),
            settings=plan.settings,
            listeners=plan.listeners,
            privileges=plan.privileges,
            tls=plan.certificates.contexts if plan.certificates else None,
            environ=self._invocation.environ,
            cwd=self._invocation.cwd,
            began=plan.began,
            channel=channel,
            row=member.row,
            records=member.records,
            stacks_fd=member.stacks_fd,
            logs=self._logs,
        )

    def _close_in_child(self, keep: tuple[Listener, ...]) -> None:
        self._loop.close_in_child()
        self._upgrade.close_in_child()
        self._pressure.close()
        self._manager.close_in_child()
        self._listeners.close_in_child(keep)
        self._plans.close_in_child()
        self._admin.close_in_child()
        if self._control is not None:
            self._control.close_in_child()
        if self._pid_file is not None:
            self._pid_file.close_in_child()
        self._aides.close_in_child()

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
            with self._logs.about({"event": "reload_refused"}):
                log.error("reload refused, nothing changed: %s", error)
            self._history.note_refusal(error)
            self._manager.refused(error)
            raise
        level = live_level(plan.settings)
        if level is not None:
            logs.set_level(level)
            self._host.broadcast(messages.Configure(level))
        self._upgrade.forget()
        return self._roll(plan)

    def _roll(self, plan: Plan) -> int:
        self._manager.reloading()
        self._loop.post(Reload(policy_of(plan.settings)))
        return self._pool.view().newest_generation

    def stop(self, level: StopLevel) -> None:
        """Stop at `level`, or raise the level of a stop under way."""
        self._ladder.reach(level)
        self._loop.post(Stop(level))
        self._aides.stop(level)

    def upgrade(self) -> int:
        """Begin to become the program that the same command line starts now; returns the number of the upgrade.

        Raises `UnavailableError`.
        """
        seconds = self.plan_in_force().settings.pool.timeout_boot
        refusal = self._upgrade.begin(self._pool.view(), now=self._host.now(), seconds=seconds)
        if refusal is not None:
            log.info("upgrade ignored: %s", refusal.value)
            raise UnavailableError(refusal.value)
        return self._history.upgrades

    def _on_upgrade(self) -> None:
        self._manager.say()
        self._operations.look()

    def _part(self) -> None:
        """Take leave of those whom the next program does not know."""
        if self._control is not None:
            self._control.part()
        self._logs.error_writer.flush()

    def _hand_over(self) -> estate.Estate:
        return estate.Estate(
            pool=self._pool.snapshot(),
            plans=self._plans.hand_over(),
            listeners=self._listeners.hand_over(),
            host=self._host.hand_over(),
            guard=self._guards.current.hand_over(),
            log_files=self._log_files.hand_over(),
            signals=self._signals.hand_over(),
            pid_file=self._pid_file.hand_over() if self._pid_file else None,
            nursery=self._nursery.hand_over(),
            control=self._control.listener.hand_over() if self._control else None,
            admin=self._admin.hand_over(),
            history=self._history.hand_over(),
            born=self._born,
        )

    def _on_zygote_lost(self, generation: int) -> None:
        """Rebuild a zygote by a reload: what it imports may be newer than what serves, so it replaces all or none."""
        view = self._pool.view()
        in_force = view.generation == generation and not (view.rolling or view.pending) and view.stop is None
        if in_force and not self._nursery.serves(generation):
            log.warning("rebuilding the zygote of generation %d by a reload", generation)
            self._roll(self._plans.again(generation))

    def _keep_zygotes(self) -> None:
        """End zygotes that no replacement will be forked from: a roll keeps the old one until it ends."""
        view = self._pool.view()
        self._nursery.keep({view.generation, view.rolling})

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

    def summary(self) -> str:
        """Return the state in one line."""
        view = self._pool.view()
        return status_line(view, self._upgrade.status) + self._report.mixture(view)

    def _service_status(self) -> str:
        return ", ".join(filter(None, [self.summary() + self._history.trouble(), str(self._rate)]))

    def _fork_guard(self) -> Guard:
        return Guard(patience=self._patience(), close_in_child=lambda: self._host.close_in_child(()))

    def _entrust_all(self, guard: Guard) -> None:
        self._host.entrust(guard, self._on_foreign_death)
        self._aides.entrust()

    def _stop_ends(self, level: StopLevel) -> float:
        """Return when a stop of this level that begins now is over, monotonic seconds."""
        patience = {StopLevel.GRACEFUL: self._patience(), StopLevel.QUICK: QUICK_SECONDS + KILL_GRACE_SECONDS}
        return self._host.now() + patience.get(level, 0.0)

    def _entrust(self, pid: int) -> None:
        self._guards.current.watch(pid)  # whichever guard there is

    def _on_change(self, what: str) -> None:
        log.info("%s changed", what)
        with suppress(ProcmgrError):  # it is logged
            self.reload()

    def _patience(self) -> float:
        """Return how long the arbiter's workers may take to drain after its death, in seconds."""
        return self.plan_in_force().settings.pool.graceful_timeout + KILL_GRACE_SECONDS

    def _on_foreign_death(self, pid: int, exit_: Exit) -> None:
        if self._upgrade.on_death(pid, exit_):
            return
        if not (self._guards.buried(pid) or self._nursery.buried(pid, exit_) or self._aides.buried(pid, exit_)):
            log.debug("buried pid %d, which is no worker", pid)
