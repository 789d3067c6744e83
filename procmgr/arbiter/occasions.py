"""When the arbiter's hooks are called, and what each is told: a dict that JSON can render.

All of them hear of the pool and its workers as they are at that moment, under the names that the status has.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from procmgr import scoreboard
from procmgr.arbiter import documents
from procmgr.arbiter.core import actions
from procmgr.arbiter.core.events import StopLevel

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from procmgr.arbiter.core.view import View
    from procmgr.arbiter.documents import Document
    from procmgr.arbiter.hooks import Hooks
    from procmgr.arbiter.member import Member
    from procmgr.config.settings import Settings


class Occasions:
    """Calls hooks when there is an occasion.

    `settings` are those in force, `members` is where a notice's worker is still known, and `stop_ends` tells when a
    stop of that level, begun now, is over, monotonic seconds.
    """

    def __init__(
        self,
        *,
        hooks: Hooks,
        settings: Callable[[], Settings],
        view: Callable[[], View],
        members: Mapping[int, Member],
        stop_ends: Callable[[StopLevel], float],
    ) -> None:
        self._hooks = hooks
        self._settings = settings
        self._view = view
        self._members = members
        self._stop_ends = stop_ends
        self._stopping = False

    def started(self) -> None:
        """Call on_start."""
        self._call("on_start")

    def stop(self, level: StopLevel) -> None:
        """Bound the hooks that run by a stop of this level, which may be one that the pool has finished already."""
        self._hooks.hurry(self._stop_ends(level))

    def hear(self, notice: actions.Notice) -> None:
        """Call the hook that `notice` is an occasion for, if it is."""
        match notice:
            case actions.PoolReady():
                self._call("on_ready")
            case actions.ReloadEnded():
                self._call("on_reload", reload=_reload(notice))
            case actions.WorkerDied():
                self._call("worker_exit", worker=_departed(notice, self._members[notice.worker_id]))
            case actions.Stopping(level=level):
                self._stop_begins()
                self.stop(level)
            case actions.GaveUp():
                self._stop_begins()
                self.stop(StopLevel.GRACEFUL)
            case _:
                pass

    def _stop_begins(self) -> None:
        if not self._stopping:
            self._stopping = True
            self._call("on_stop")

    def _call(self, name: str, **more: Document) -> None:
        settings = self._settings()
        target: str | None = getattr(settings.hooks, name)
        if target is not None:
            view = self._view()
            self._hooks.call(
                name,
                target,
                {
                    "hook": name,
                    "name": settings.process.name,
                    "pid": os.getpid(),
                    "pool": documents.pool(view),
                    "workers": [documents.worker(each) for each in view.workers],
                    **more,
                },
            )


def _reload(ended: actions.ReloadEnded) -> Document:
    return {
        "generation": ended.generation,
        "outcome": ended.outcome.value,
        "replaced": ended.replaced,
        "desired": ended.desired,
        "failure": ended.failure.value if ended.failure else None,
    }


def _departed(died: actions.WorkerDied, member: Member) -> Document:
    return {
        "slot": died.slot,
        "worker": died.worker_id,
        "pid": member.pid,
        "generation": died.generation,
        "code": died.exit.code,
        "signal": died.exit.signal,
        "age": round(died.age_seconds, 3),
        "requests": member.row[scoreboard.REQUESTS],
        "was_ready": died.was_ready,
        "expected": died.expected,
        "killed": died.killed.value if died.killed else None,
        "failure": died.failure.value if died.failure else None,
    }
