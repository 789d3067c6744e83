"""A loop for what is watched and timed, turned by the test: the arbiter's own without a pool, and without waiting."""

from __future__ import annotations

import selectors
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class FakeLoop:
    """Has the `watch`, `unwatch` and `call_at` of `arbiter.loop.Loop`; time passes by `now` alone."""

    def __init__(self) -> None:
        self.now = 100.0
        self.timers: list[tuple[float, Callable[[], None]]] = []
        self._selector = selectors.DefaultSelector()

    def watch(self, fd: int, callback: Callable[[int], None], events: int = selectors.EVENT_READ) -> None:
        if fd in self._selector.get_map():
            self._selector.modify(fd, events, callback)
        else:
            self._selector.register(fd, events, callback)

    def unwatch(self, fd: int) -> None:
        if fd in self._selector.get_map():
            self._selector.unregister(fd)

    def call_at(self, when: float, callback: Callable[[], None]) -> None:
        self.timers.append((when, callback))

    @property
    def watched(self) -> int:
        """How many descriptors are watched."""
        return len(self._selector.get_map())

    def turn(self, turns: int = 1) -> None:
        """Handle what is ready, and the timers that are due, so many times."""
        for _ in range(turns):
            for key, events in self._selector.select(0):
                if self._selector.get_map().get(key.fd) == key:
                    key.data(events)
            due = [timer for timer in self.timers if timer[0] <= self.now]
            self.timers = [timer for timer in self.timers if timer[0] > self.now]
            for _, callback in due:
                callback()

    def close(self) -> None:
        self._selector.close()
