"""How often something happens."""

from __future__ import annotations

from collections import deque
from typing import Final

_WINDOW_SECONDS: Final = 5


class Rate:
    """How often something happens, per second, by a counter that is looked at about once a second."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque(maxlen=_WINDOW_SECONDS + 1)

    def look(self, now: float, count: int) -> None:
        """Take the counter's value at `now`, monotonic seconds."""
        self._seen.append((now, count))

    def per_second(self) -> float:
        """Return the rate over the last few seconds."""
        if len(self._seen) < 2:
            return 0.0
        (began, first), (ended, last) = self._seen[0], self._seen[-1]
        return (last - first) / (ended - began) if ended > began else 0.0

    def __str__(self) -> str:
        """Return it as a person reads it; below one in ten seconds it is nothing."""
        rate = self.per_second()
        return "" if rate < 0.1 else f"{rate:.0f} req/s" if rate >= 10 else f"{rate:.1f} req/s"
