"""The arbiter's children that are neither workers nor what workers need: the watcher, and hooks that run.

Each is forked without the arbiter's descriptors, prepares itself as a worker does, is entrusted to the guard, and is
gone when the arbiter is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from procmgr.arbiter.core.events import StopLevel
from procmgr.arbiter.hooks import Hooks
from procmgr.arbiter.occasions import Occasions
from procmgr.arbiter.watch import Watcher
from procmgr.worker import boot, hooks

if TYPE_CHECKING:
    from collections.abc import Callable

    from procmgr.arbiter.core import actions
    from procmgr.arbiter.core.events import Exit
    from procmgr.arbiter.core.view import View
    from procmgr.arbiter.hooks import Call
    from procmgr.arbiter.host import LinuxHost
    from procmgr.arbiter.loop import Loop
    from procmgr.arbiter.plans import Plan
    from procmgr.config.resolve import Invocation
    from procmgr.logs import LogSetup


class Aides:
    """Starts, entrusts and buries them.

    `plan` returns the one in force. `entrust` is called with each pid. `stop_ends` tells when a stop of that level,
    begun now, is over, monotonic seconds. `on_change` is called with one line that says which files changed.
    """

    def __init__(
        self,
        *,
        invocation: Invocation,
        loop: Loop,
        host: LinuxHost,
        view: Callable[[], View],
        plan: Callable[[], Plan],
        logs: LogSetup,
        entrust: Callable[[int], None],
        stop_ends: Callable[[StopLevel], float],
        on_change: Callable[[str], None],
    ) -> None:
        self._invocation = invocation
        self._loop = loop
        self._host = host
        self._plan = plan
        self._logs = logs
        self._entrust = entrust
        self._stop_ends = stop_ends
        self._on_change = on_change
        self._hooks = Hooks(loop=loop, run=self._call, close_in_child=self._close_arbiter, entrust=entrust)
        self._occasions = Occasions(
            hooks=self._hooks,
            settings=lambda: plan().settings,
            view=view,
            members=host.members,
            stop_ends=stop_ends,
        )
        self._watcher: Watcher | None = None

    def start(self) -> None:
        """Call on_start."""
        self._occasions.started()

    def watch(self) -> None:
        """Fork the watcher, if there is to be one."""
        settings = self._plan().settings.development
        if settings.reload:
            self._watcher = Watcher(
                loop=self._loop,
                settings=settings,
                prepare=self._prepare,
                close_in_child=self._close_arbiter,
                entrust=self._entrust,
                on_change=self._on_change,
            )
            self._watcher.start()

    def hear(self, notice: actions.Notice) -> None:
        """Call the hook that `notice` is an occasion for, if it is."""
        self._occasions.hear(notice)

    def stop(self, level: StopLevel) -> None:
        """Bound the hooks that run by a stop of this level."""
        self._occasions.stop(level)

    def finish(self) -> None:
        """Wait for the hooks, within the bounds of the stop, and end the watcher."""
        self._loop.linger(lambda: self._hooks.idle, self._stop_ends(StopLevel.GRACEFUL))
        if self._watcher is not None:
            self._watcher.close()

    def entrust(self) -> None:
        """Entrust all to a guard that was forked after them."""
        self._hooks.entrust()
        if self._watcher is not None:
            self._watcher.entrust()

    def buried(self, pid: int, exit_: Exit) -> bool:
        """Return whether `pid`, which died, was one of them."""
        return self._hooks.buried(pid, exit_) or (self._watcher is not None and self._watcher.buried(pid))

    def close_in_child(self) -> None:
        """Close, in a forked child, what belongs to the arbiter."""
        self._hooks.close_in_child()
        if self._watcher is not None:
            self._watcher.close_in_child()

    def _close_arbiter(self) -> None:
        self._host.close_in_child(())

    def _call(self, call: Call) -> int:
        self._logs.after_fork()
        app_dir = self._plan().settings.app.app_dir
        try:
            return hooks.run_alone(call.target, call.told, app_dir=app_dir, prepare=self._prepare)
        finally:
            self._logs.error_writer.flush()

    def _prepare(self) -> None:
        plan = self._plan()
        boot.prepare(plan.settings, plan.privileges, self._invocation.environ, self._invocation.cwd)
