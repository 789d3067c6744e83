"""Whether bytes move fast enough: a slow attacker sends a few at a time and never trips an idle timer.

Time counts only while somebody waits for the bytes, and is judged in windows: what moved long ago excuses no
standstill.
"""

from __future__ import annotations

from typing import Final

WINDOW: Final = 10.0
"""Seconds of waiting after which a window is judged."""

TAKING: Final = 30.0
"""The same for what a peer takes: it opens its window in lumps of 64 KiB and more (RFC 9293 section 3.8.6.2.2)."""


class Pace:
    """Watches one direction of a connection, from time to time."""

    __slots__ = ("_at", "_moved", "_total", "_waited", "_window")

    def __init__(self, now: float, total: int, window: float = WINDOW) -> None:
        """Begin at `now`, when `total` bytes had moved; judge every `window` seconds of waiting."""
        self._at, self._total, self._window = now, total, window
        self._waited, self._moved = 0.0, 0

    def too_slow(self, now: float, total: int, *, waiting: bool, rate: int) -> bool:
        """Look again: tell whether a window of waiting is over in which less than `rate` bytes a second moved."""
        elapsed, moved = now - self._at, total - self._total
        self._at, self._total = now, total
        if not waiting:
            return False
        self._waited += elapsed
        self._moved += moved
        if self._waited < self._window:
            return False
        slow = self._moved < rate * self._waited
        self._waited, self._moved = 0.0, 0
        return slow
