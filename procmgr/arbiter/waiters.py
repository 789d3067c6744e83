"""What a client of the control socket waits for: each waiter hears every notice, sends steps, and ends when it is so.

Rules: a waiter decides by the pool's view, not by counting notices, so it may begin in the middle. Its end is final.
That a client goes away cancels nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from procmgr import control
from procmgr.arbiter.core import actions
from procmgr.arbiter.core.actions import ReloadOutcome
from procmgr.arbiter.core.view import WorkerState
from procmgr.errors import ExitCode

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from procmgr.arbiter.core.view import View
    from procmgr.arbiter.history import History, LastReload
    from procmgr.arbiter.member import Member


class Client(Protocol):
    """Who waits; see `arbiter.control.Client`."""

    gone: bool

    def event(self, name: str, **fields: object) -> None:
        """Send an event that is not the last."""
        ...

    def end(self, exit_code: int, text: str = "", **fields: object) -> None:
        """Send the last event."""
        ...

    def attempt(self, step: Callable[[], object]) -> bool:
        """Take a step; what goes wrong ends the request. Returns whether it went well."""
        ...


class Waiter:
    """One client that waits, and what it is told."""

    def __init__(self, client: Client, *, view: Callable[[], View], members: Mapping[int, Member]) -> None:
        self.client = client
        self.ended = False
        self._view = view
        self._members = members

    def hear(self, notice: actions.Notice) -> None:
        """Answer a notice by a step, the end, or nothing."""
        raise NotImplementedError

    def look(self) -> None:
        """Look whether what is waited for has come: something changed of which no notice tells."""

    def stopped(self) -> None:
        """Say that the arbiter leaves: nothing more will happen."""
        self._end(ExitCode.UNREACHABLE, "the daemon stopped")

    def _step(self, step: str, text: str, **fields: object) -> None:
        self.client.event(control.STEP, step=step, text=text, **fields)

    def _end(self, exit_code: int, text: str, **fields: object) -> None:
        self.ended = True
        self.client.end(exit_code, text, **fields)

    def _name(self, worker_id: int) -> str:
        member = self._members[worker_id]
        return f"worker {worker_id} (slot {member.slot}, pid {member.pid})"

    def _say_ready(self, notice: actions.WorkerReady, tail: str) -> None:
        text = f"{self._name(notice.worker_id)} is ready after {notice.boot_seconds:.2f} s{tail}"
        fields = {"worker": notice.worker_id, "slot": notice.slot, "boot_seconds": round(notice.boot_seconds, 3)}
        self._step("ready", text, **fields)


class ReloadWaiter(Waiter):
    """Waits until the reload to `generation`, or the one that overtook it, has ended."""

    def __init__(
        self,
        client: Client,
        generation: int,
        *,
        history: History,
        view: Callable[[], View],
        members: Mapping[int, Member],
    ) -> None:
        super().__init__(client, view=view, members=members)
        self._generation = generation
        self._history = history
        self._delayed = False
        self._begin()

    def hear(self, notice: actions.Notice) -> None:
        """Tell how the roll goes."""
        match notice:
            case actions.ReloadBegun(generation=generation) if generation >= self._generation:
                self._say_rolling(generation)
            case actions.WorkerReady(generation=generation) if generation >= self._generation:
                view = self._view()
                ready = sum(each.state is WorkerState.READY and each.generation == generation for each in view.workers)
                self._say_ready(notice, f", {ready} of {view.desired}")
            case actions.WorkerDied(generation=generation) if generation >= self._generation and not notice.was_ready:
                if not notice.expected or notice.killed:
                    summary = self._history.fault(notice).summary
                    text = f"{self._name(notice.worker_id)} could not start: {summary}"
                    self._step("failed", text, worker=notice.worker_id, slot=notice.slot)
                if self._delayed:
                    self._judge()
            case actions.BackingOff():
                self._step("backing-off", f"next attempt in {notice.seconds:.1f} s", seconds=round(notice.seconds, 3))
            case actions.ReloadEnded(generation=generation) if generation >= self._generation:
                self._judge()
            case _:
                pass

    def _begin(self) -> None:
        view, generation = self._view(), self._generation
        self.client.event(control.ACCEPTED, operation=f"reload:{generation}")
        self._judge()
        if self.ended or self._delayed:
            return
        if view.rolling is not None and view.rolling >= generation:
            self._say_rolling(view.rolling)
        elif view.pending is not None:
            self._step("pending", "another reload is under way; this one comes next")
        else:
            self._end(ExitCode.USAGE, f"nothing is known of a reload to generation {generation}")

    def _say_rolling(self, generation: int) -> None:
        desired = self._view().desired
        text = f"rolling {desired} worker{'' if desired == 1 else 's'} to generation {generation}"
        self._step("rolling", text, generation=generation)

    def _judge(self) -> None:
        """End if the last reload that ended is the one waited for, or a later one."""
        last = self._history.last_reload
        if last is None or last.generation is None or last.generation < self._generation:
            return
        self._delayed = self._history.incomplete
        if self._delayed:
            return
        if last.outcome is ReloadOutcome.SUPERSEDED:
            self._step("superseded", f"{last.text}: following that")
            return
        self._finish(last)

    def _finish(self, last: LastReload) -> None:
        assert last.outcome is not None
        more = {"detail": last.detail} if last.detail else {}
        self._end(last.exit_code, last.text, generation=last.generation, outcome=last.outcome.value, **more)


class RestartWaiter(Waiter):
    """Waits until another worker serves in the slot of `worker_id`, or could not start."""

    def __init__(
        self,
        client: Client,
        worker_id: int,
        *,
        slot: int,
        history: History,
        view: Callable[[], View],
        members: Mapping[int, Member],
    ) -> None:
        super().__init__(client, view=view, members=members)
        self._worker_id = worker_id
        self._slot = slot
        self._history = history
        text = f"{self._name(worker_id)} is to be replaced"
        client.event(control.ACCEPTED, operation=f"restart:{worker_id}", text=text)
        self._judge()

    def hear(self, notice: actions.Notice) -> None:
        """Tell how the replacement goes."""
        match notice:
            case actions.WorkerReady(slot=slot) if slot == self._slot:
                self._say_ready(notice, "")
                self._judge()
            case actions.WorkerDied(slot=slot, worker_id=worker_id) if slot == self._slot:
                if worker_id > self._worker_id and not notice.was_ready and not (notice.expected and not notice.killed):
                    self._fail(notice)
                else:
                    self._judge()
            case actions.BackingOff():
                self._step("backing-off", f"next attempt in {notice.seconds:.1f} s", seconds=round(notice.seconds, 3))
            case actions.Stopping():
                self._end(ExitCode.UNREACHABLE, "the daemon is stopping")
            case _:
                self._judge()

    def _judge(self) -> None:
        here = [each for each in self._view().workers if each.slot == self._slot]
        old = [each for each in here if each.worker_id == self._worker_id and each.state is not WorkerState.DRAINING]
        new = [each for each in here if each.worker_id > self._worker_id]
        serving = next((each for each in new if each.state is WorkerState.READY), None)
        if old or self.ended:
            return
        if serving is not None:
            self._end(ExitCode.OK, f"slot {self._slot} is served by worker {serving.worker_id} (pid {serving.pid})")
        elif not new and self._view().ready >= self._view().desired:  # scaled down meanwhile
            self._end(ExitCode.OK, f"slot {self._slot} is not needed any more")

    def _fail(self, death: actions.WorkerDied) -> None:
        fault = self._history.fault(death)
        kept = any(
            each.worker_id == self._worker_id and each.state is WorkerState.READY for each in self._view().workers
        )
        still = f"; worker {self._worker_id} serves on" if kept else ""
        more = {"detail": fault.detail} if fault.detail else {}
        text = f"{self._name(death.worker_id)} could not start{still}, procmgr tries again: {fault.summary}"
        self._end(fault.exit_code, text, **more)


class UpgradeWaiter(Waiter):
    """Waits until upgrade `number` has ended: here, or on a new connection in the new program."""

    def __init__(
        self,
        client: Client,
        number: int,
        *,
        history: History,
        view: Callable[[], View],
        members: Mapping[int, Member],
    ) -> None:
        super().__init__(client, view=view, members=members)
        self._number = number
        self._history = history
        client.event(control.ACCEPTED, operation=f"upgrade:{number}", text="the new program is being checked")
        if number > history.upgrades:
            self._end(ExitCode.USAGE, f"nothing is known of upgrade {number}")
        self.look()

    def hear(self, notice: actions.Notice) -> None:
        """Pass over what happens meanwhile."""

    def look(self) -> None:
        """End if the upgrade has."""
        last = self._history.last_upgrade
        if last is not None and last.number >= self._number and not self.ended:
            self._end(last.exit_code, last.text, **({"detail": last.detail} if last.detail else {}))


class StopWaiter(Waiter):
    """Waits until the arbiter leaves."""

    def __init__(self, client: Client, *, view: Callable[[], View], members: Mapping[int, Member]) -> None:
        super().__init__(client, view=view, members=members)
        client.event(control.ACCEPTED, operation=control.STOP, text=self._left("stopping"))

    def hear(self, notice: actions.Notice) -> None:
        """Tell how many workers are left."""
        match notice:
            case actions.WorkerDied():
                self._step("left", self._left(f"{self._name(notice.worker_id)} is gone"))
            case _:
                pass

    def stopped(self) -> None:
        """Say that the arbiter leaves, as was asked."""
        self._end(ExitCode.OK, "stopped")

    def _left(self, text: str) -> str:
        workers = len(self._view().workers)
        return f"{text}, {workers} worker{'' if workers == 1 else 's'} left"
