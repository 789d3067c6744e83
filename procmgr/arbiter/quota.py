"""More workers than the control group's CPU quota can keep busy: the kernel stops them all when it is used up.

Each worker is one event loop on one CPU. Beyond the quota they do no more work together, but every period (100 ms) ends
with all of them stopped at once, which shows as latency.
"""

from __future__ import annotations

import logging
import math
from pathlib import Path

from procmgr import process

log = logging.getLogger("procmgr.error")


class QuotaWatch:
    """Warns when the number of workers begins to exceed the quota; `root` is where /proc and /sys are."""

    def __init__(self, *, root: Path = Path("/")) -> None:
        self._root = root
        self._exceeded = False

    def look(self, workers: int, *, quietly: bool = False) -> None:
        """Compare `workers` with the quota as it is now, which may be changed at any time.

        Nothing is said of what was so at the last look; nor, `quietly`, at this one.
        """
        quota = process.cpu_quota(root=self._root)
        before, self._exceeded = self._exceeded, quota is not None and workers > max(1, math.ceil(quota))
        if self._exceeded and not before and not quietly:
            log.warning(
                "%d workers are more than the cgroup's CPU quota of %.4g can keep busy; --workers %d or auto suits it",
                *(workers, quota, process.usable_cpus(root=self._root)),
            )
