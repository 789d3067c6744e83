"""The operations of the control socket: what a request means, and who waits for what.

An operation that takes time hands its client to a waiter and returns; no operation waits. A new operation is one method
and one line in the table.
"""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

from procmgr import control
from procmgr.arbiter.core.events import RecycleDue, ScaleTo, StopLevel
from procmgr.arbiter.core.view import WorkerState
from procmgr.arbiter.status import Releases, Status, identity
from procmgr.arbiter.waiters import ReloadWaiter, RestartWaiter, StopWaiter, UpgradeWaiter, Waiter
from procmgr.config.settings import MAX_WORKERS
from procmgr.control import RequestError
from procmgr.errors import ExitCode, UnavailableError
from procmgr.scoreboard import MAX_ROWS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from procmgr.arbiter.control import Client
    from procmgr.arbiter.core import actions
    from procmgr.arbiter.core.view import View, WorkerView
    from procmgr.arbiter.documents import Document
    from procmgr.arbiter.history import History
    from procmgr.arbiter.host import LinuxHost
    from procmgr.arbiter.loop import Loop
    from procmgr.arbiter.plans import Plan
    from procmgr.arbiter.stacks import StackReader, Stacks
    from procmgr.control import Request

T = TypeVar("T")
D = TypeVar("D")

_STACKS_AHEAD: Final = 128 * 1024
"""Bytes that may wait for a client before the next worker's stacks are dumped."""

_STACKS_PAUSE: Final = 0.05


class Steering(Protocol):
    """What the arbiter lets operations do; each is also what a signal does."""

    def reload(self) -> int:
        """Read the configuration and roll the workers; returns the generation, raises `ProcmgrError`."""
        ...

    def stop(self, level: StopLevel) -> None:
        """Stop at `level`, or raise the level of a stop under way."""
        ...

    def upgrade(self) -> int:
        """Begin to become the new program; returns the number of the upgrade, raises `ProcmgrError`."""
        ...

    def reopen_logs(self) -> None:
        """Open the log files anew; raises `ProcmgrError`."""
        ...

    def summary(self) -> str:
        """Return the state in one line."""
        ...

    def plan_in_force(self) -> Plan:
        """Return what workers are made of now."""
        ...


class Operations:
    """Answers requests, and keeps those who wait informed."""

    def __init__(
        self,
        *,
        steering: Steering,
        host: LinuxHost,
        loop: Loop,
        view: Callable[[], View],
        history: History,
        stacks: StackReader,
        born: float,
    ) -> None:
        self._steering = steering
        self._host = host
        self._loop = loop
        self._view = view
        self._history = history
        self._status = Status(
            view=view,
            members=host.members,
            history=history,
            releases=Releases(),
            now=host.now,
            born=born,
            summary=steering.summary,
        )
        self._stacks = stacks
        self._waiters: list[Waiter] = []
        self._table: dict[str, Callable[[_Arguments, Client], None]] = {
            "status": self._tell_status,
            "version": self._tell_version,
            "reload": self._reload,
            "scale": self._scale,
            "restart": self._restart,
            control.STOP: self._stop,
            "upgrade": self._upgrade,
            "reopen-logs": self._reopen_logs,
            "stacks": self._tell_stacks,
            "follow": self._follow,
        }

    def answer(self, request: Request, client: Client) -> None:
        """Begin to answer a request; raises `RequestError` or `ProcmgrError`, which is then the answer."""
        operation = self._table.get(request.op)
        if operation is None:
            raise RequestError(f"unknown operation {request.op!r:.80}; expected one of {', '.join(self._table)}")
        operation(_Arguments(request.arguments), client)

    def hear(self, notice: actions.Notice) -> None:
        """Pass a notice on to those who wait."""
        self._waiters = [waiter for waiter in self._waiters if _waits(waiter)]
        for waiter in self._waiters:
            if not waiter.client.attempt(partial(waiter.hear, notice)):
                waiter.ended = True

    def look(self) -> None:
        """Have those who wait look for what no notice tells."""
        for waiter in self._waiters:
            if _waits(waiter) and not waiter.client.attempt(waiter.look):
                waiter.ended = True

    def close(self) -> None:
        """Tell those who wait that the arbiter leaves."""
        for waiter in self._waiters:
            if _waits(waiter):
                waiter.stopped()

    def status(self) -> Document:
        """Return the status document."""
        return self._status.document(self._steering.plan_in_force())

    def _tell_status(self, arguments: _Arguments, client: Client) -> None:
        arguments.nothing_more()
        client.end(ExitCode.OK, **self.status())

    def _tell_version(self, arguments: _Arguments, client: Client) -> None:
        arguments.nothing_more()
        python = ".".join(map(str, sys.version_info[:3]))
        about = identity(self._steering.plan_in_force())
        client.end(ExitCode.OK, f"procmgr {about['version']} on Python {python}", **about, python=python)

    def _reload(self, arguments: _Arguments, client: Client) -> None:
        wait = arguments.take("wait", bool, default=True)
        arguments.nothing_more()
        generation = self._steering.reload()
        if wait:
            self._await(self._reload_waiter(client, generation))
        else:
            text = f"reload accepted: generation {generation}"
            client.end(ExitCode.OK, text, generation=generation, operation=f"reload:{generation}")

    def _reload_waiter(self, client: Client, generation: int) -> Waiter:
        return ReloadWaiter(client, generation, history=self._history, view=self._view, members=self._host.members)

    def _scale(self, arguments: _Arguments, client: Client) -> None:
        by = arguments.take("by", int, default=0)
        to = arguments.take("to", int, default=0)
        arguments.nothing_more()
        if bool(by) == bool(to):
            raise RequestError('scale takes "to", a number of workers, or "by", a difference')
        self._refuse_when_stopping()
        before = self._view().desired
        wanted = to or before + by
        most = min(MAX_WORKERS, (MAX_ROWS - self._view().surge) // 2)
        if not 1 <= wanted <= most:
            raise RequestError(f"{wanted} workers are impossible, {before} are desired now; expected 1 to {most}")
        self._loop.post(ScaleTo(wanted))
        text = f"scaling from {before} to {wanted} workers" if wanted != before else f"{before} workers already"
        client.end(ExitCode.OK, text, before=before, desired=wanted)

    def _restart(self, arguments: _Arguments, client: Client) -> None:
        slot = arguments.take("slot", int, default=None)
        arguments.nothing_more()
        if slot is None:
            raise RequestError('restart takes "slot", the number of the slot')
        self._refuse_when_stopping()
        worker = self._in_slot(slot)
        waiter = self._restart_waiter(client, worker.worker_id, slot)
        self._await(waiter)
        self._loop.post(RecycleDue(worker.worker_id, "asked for by procmgrctl"))

    def _restart_waiter(self, client: Client, worker_id: int, slot: int) -> Waiter:
        return RestartWaiter(
            client, worker_id, slot=slot, history=self._history, view=self._view, members=self._host.members
        )

    def _upgrade(self, arguments: _Arguments, client: Client) -> None:
        arguments.nothing_more()
        self._await(self._upgrade_waiter(client, self._steering.upgrade()))

    def _upgrade_waiter(self, client: Client, number: int) -> Waiter:
        return UpgradeWaiter(client, number, history=self._history, view=self._view, members=self._host.members)

    def _stop(self, arguments: _Arguments, client: Client) -> None:
        quick = arguments.take("quick", bool, default=False)
        arguments.nothing_more()
        self._await(StopWaiter(client, view=self._view, members=self._host.members))
        self._steering.stop(StopLevel.QUICK if quick else StopLevel.GRACEFUL)

    def _reopen_logs(self, arguments: _Arguments, client: Client) -> None:
        arguments.nothing_more()
        self._steering.reopen_logs()
        client.end(ExitCode.OK, "log files reopened")

    def _tell_stacks(self, arguments: _Arguments, client: Client) -> None:
        slot = arguments.take("slot", int, default=None)
        arguments.nothing_more()
        workers = [each for each in self._view().workers if slot is None or each.slot == slot]
        if slot is not None:
            self._in_slot(slot)
        self._dump_next(client, workers, 0)

    def _dump_next(self, client: Client, workers: list[WorkerView], missing: int) -> None:
        """Dump one worker's stacks after the other, none before the client has read of those before."""
        if client.gone:
            return
        if len(client.waiting) > _STACKS_AHEAD:
            self._dump_later(client, workers, missing, _STACKS_PAUSE)
        elif not workers:
            client.end(ExitCode.TIMED_OUT if missing else ExitCode.OK, _missing(missing))
        else:
            worker, *rest = workers

            def tell(stacks: Stacks) -> None:
                _tell_one(client, worker, stacks)
                self._dump_later(client, rest, missing + bool(stacks.reason), 0.0)

            self._stacks.ask(worker.worker_id, tell)

    def _dump_later(self, client: Client, workers: list[WorkerView], missing: int, seconds: float) -> None:
        def step() -> None:
            client.attempt(partial(self._dump_next, client, workers, missing))

        self._loop.call_at(self._host.now() + seconds, step)

    def _follow(self, arguments: _Arguments, client: Client) -> None:
        """Wait for what another connection began."""
        operation = arguments.take("operation", str, default="")
        arguments.nothing_more()
        kind, _, number = operation.partition(":")
        if kind == "reload" and number.isdecimal():
            self._await(self._reload_waiter(client, int(number)))
        elif kind == "restart" and number.isdecimal():
            self._follow_restart(client, int(number))
        elif kind == "upgrade" and number.isdecimal():
            self._await(self._upgrade_waiter(client, int(number)))
        elif operation == control.STOP and self._view().stop is not None:
            self._await(StopWaiter(client, view=self._view, members=self._host.members))
        else:
            raise RequestError(f"there is no operation {operation!r:.80}")

    def _follow_restart(self, client: Client, worker_id: int) -> None:
        member = self._host.members.get(worker_id)
        if member is None:
            client.end(ExitCode.OK, f"worker {worker_id} is gone")
        else:
            self._await(self._restart_waiter(client, worker_id, member.slot))

    def _await(self, waiter: Waiter) -> None:
        self._waiters = [each for each in self._waiters if _waits(each)]
        if _waits(waiter):
            self._waiters.append(waiter)

    def _in_slot(self, slot: int) -> WorkerView:
        """Return the worker of a slot that is not on its way out, the newest if there are several."""
        here = [each for each in self._view().workers if each.state is not WorkerState.DRAINING]
        found = [each for each in here if each.slot == slot and each.pid is not None]
        if not found:
            slots = ", ".join(str(number) for number in sorted({each.slot for each in here})) or "none"
            raise RequestError(f"no worker is in slot {slot}; the slots with one are {slots}")
        return max(found, key=lambda each: each.worker_id)

    def _refuse_when_stopping(self) -> None:
        if self._view().stop is not None:
            raise UnavailableError("the daemon is stopping")


def _waits(waiter: Waiter) -> bool:
    return not (waiter.ended or waiter.client.gone)


def _tell_one(client: Client, worker: WorkerView, stacks: Stacks) -> None:
    about = {"slot": worker.slot, "worker": worker.worker_id, "pid": worker.pid}
    said = {"reason": stacks.reason} if stacks.reason else {"stacks": stacks.text}
    client.event(control.STACKS, **about, **said)


def _missing(number: int) -> str:
    return f"{number} worker{'' if number == 1 else 's'} could not tell" if number else ""


class _Arguments:
    """The arguments of one request, taken one by one."""

    def __init__(self, given: Mapping[str, object]) -> None:
        self._left = dict(given)

    def take(self, name: str, kind: type[T], *, default: D) -> T | D:
        if name not in self._left:
            return default
        value = self._left.pop(name)
        if type(value) is not kind:
            raise RequestError(f"{name}: expected {_KINDS[kind]}")
        return value

    def nothing_more(self) -> None:
        if self._left:
            raise RequestError(f"unknown argument {next(iter(self._left))!r:.80}")


_KINDS: Final = {bool: "true or false", int: "a whole number", str: "a string"}
