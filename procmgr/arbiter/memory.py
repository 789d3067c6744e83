"""How much memory each worker uses, asked of psutil at a modest pace; what follows from it is the pool's to decide."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final, Literal

import psutil

from procmgr.arbiter.core.events import Measured

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from procmgr.arbiter.member import Member
    from procmgr.config.settings import Settings

_EVERY: Final = 5
"""A worker is measured at every so many samples, which come once a second; each time a part of the workers is."""

log = logging.getLogger("procmgr.error")


class MemoryGauge:
    """Measures members, as far as there is a limit to hold them to, and hands `post` what it found.

    With `always` each is measured when it is fresh: there will be something else to compare it with.
    """

    def __init__(
        self,
        *,
        members: Mapping[int, Member],
        settings: Callable[[], Settings],
        post: Callable[[Measured], None],
        always: bool = False,
    ) -> None:
        self._always = always
        self._members = members
        self._settings = settings
        self._post = post
        self._samples = 0
        self._complained = False

    def sample(self) -> None:
        """Measure those whose turn it is, if there is a limit."""
        self._samples += 1
        if self._limited():
            for worker_id in list(self._members):
                if (worker_id + self._samples) % _EVERY == 0:
                    self.measure(worker_id)

    def measure(self, worker_id: int) -> None:
        """Measure one member; without a limit, or where it cannot be known, nothing comes of it."""
        used = self._size(worker_id) if self._always or self._limited() else None
        if used is not None:
            self._post(Measured(worker_id, used))

    def sizes(self) -> tuple[tuple[int, int], ...]:
        """Return (worker id, bytes) of every member that can be measured."""
        found = [(worker_id, self._size(worker_id)) for worker_id in list(self._members)]
        return tuple((worker_id, used) for worker_id, used in found if used is not None)

    def _limited(self) -> bool:
        health = self._settings().health
        return bool(health.max_memory or health.max_memory_hard)

    def _size(self, worker_id: int) -> int | None:
        member = self._members.get(worker_id)
        if member is None or member.pid is None:
            return None
        used = self._used(member.pid, _measure_of(self._settings()))
        if used is not None:
            member.memory = used
        return used

    def _used(self, pid: int, measure: Literal["rss", "pss"]) -> int | None:
        try:
            process = psutil.Process(pid)
            return int(process.memory_info().rss if measure == "rss" else process.memory_full_info().pss)
        except (psutil.Error, OSError) as error:  # ProcSubset=pid hides parts of /proc; another user's PSS is secret
            if not self._complained:
                self._complained = True
                what = "max_memory" if self._limited() else "memory pressure"
                log.error("%s has no effect: the %s of pid %d cannot be read: %s", what, measure, pid, error)
            return None


def resident(pid: int | None) -> int | None:
    """Return resident bytes; None for no process, and where a part of /proc is hidden (ProcSubset=pid, proc(5))."""
    try:
        return None if pid is None else int(psutil.Process(pid).memory_info().rss)
    except (psutil.Error, OSError):
        return None


def _measure_of(settings: Settings) -> Literal["rss", "pss"]:
    """Return what counts. The resident size has the pages that a worker shares with its zygote in full."""
    chosen = settings.health.memory_measure
    if chosen == "auto":
        return "pss" if settings.app.preload else "rss"
    return chosen
