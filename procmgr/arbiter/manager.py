"""What the service manager, systemd that is, hears of the arbiter, and when.

Rules: the first READY is said once every desired worker has been ready; a RELOADING is always followed by a READY, even
if nothing came of the reload, and none is said before the first READY or after STOPPING, where it would be a lie. While
the pool is busy more time is asked for in small steps: systemd moves its watchdog along, so that a wedged arbiter is
found after a step and not at the end of the whole.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from procmgr.arbiter.core import actions
from procmgr.arbiter.core.horizon import Occupation, Task, task

if TYPE_CHECKING:
    from collections.abc import Callable

    from procmgr.arbiter.core.policy import Policy
    from procmgr.arbiter.core.view import View
    from procmgr.arbiter.loop import Loop
    from procmgr.errors import ProcmgrError
    from procmgr.systemd import Notifier

_STEP_SECONDS: Final = 10.0


class ServiceManager:
    """Tells `notifier` what `view` and `summary` say, when there is something new and once a second.

    `policy` is the one in force; `after_seconds` is what a stop may take after its last worker is gone.
    """

    def __init__(
        self,
        *,
        notifier: Notifier,
        loop: Loop,
        now: Callable[[], float],
        view: Callable[[], View],
        policy: Callable[[], Policy],
        summary: Callable[[], str],
        after_seconds: float,
    ) -> None:
        self._notifier = notifier
        self._loop = loop
        self._now = now
        self._view = view
        self._policy = policy
        self._summary = summary
        self._after_seconds = after_seconds
        self._task: Task | None = None
        self._until = 0.0

    def start(self) -> None:
        """Feed the watchdog from now on, and ask for the time that the start may take."""
        self._notifier.hold()
        self._notifier.main_pid()
        self._feed_watchdog()
        self._ask_for_time()

    def close_in_child(self) -> None:
        """Close, in a forked child, what belongs to the arbiter."""
        self._notifier.close()

    def hear(self, notice: actions.Notice) -> None:
        """Pass on what a notice means."""
        view, status = self._view(), self._summary()
        match notice:
            case actions.PoolReady():
                self._notifier.ready(status)
            # Not for one that a newer one overtook, nor before the first READY, nor after STOPPING.
            case actions.ReloadEnded() if _serves(view) and not _rolls(view):
                self._notifier.ready(status)
            case actions.Stopping():
                self._notifier.stopping(status)
            case _:
                self._notifier.status(status)
        self._ask_for_time()

    def reloading(self) -> None:
        """Pass on that a reload was accepted."""
        if _serves(self._view()):
            self._notifier.reloading("reloading")

    def refused(self, error: ProcmgrError) -> None:
        """Pass on that a reload was refused; if another one is under way, its end brings the READY."""
        view, status = self._view(), f"reload refused: {error}"
        if not _serves(view):
            self._notifier.status(status)
            return
        self._notifier.reloading(status)
        if not _rolls(view):
            self._notifier.ready(status)

    def say(self) -> None:
        """Say how it stands."""
        self._notifier.status(self._summary())

    def sample(self) -> None:
        """Say how it stands, and ask for time if it is needed."""
        self.say()
        self._ask_for_time()

    def _ask_for_time(self) -> None:
        current, now = task(self._view(), self._policy()), self._now()
        if current != self._task:
            self._task = current
            if current is not None:
                after = self._after_seconds if current.occupation is Occupation.STOPPING else 0.0
                self._until = now + current.seconds + after
        if current is not None and now < self._until:
            self._notifier.extend_timeout(min(_STEP_SECONDS, self._until - now))

    def _feed_watchdog(self) -> None:
        """Prove to systemd that the loop turns, at half the interval that it allows (sd_watchdog_enabled(3))."""
        interval = self._notifier.watchdog_interval
        if interval is not None:
            self._notifier.watchdog()
            self._loop.call_at(self._now() + interval, self._feed_watchdog)


def _serves(view: View) -> bool:
    return view.pool_ready and view.stop is None


def _rolls(view: View) -> bool:
    return view.rolling is not None or view.pending is not None
