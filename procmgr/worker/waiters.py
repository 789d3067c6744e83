"""Waiting for one thing in several tasks, at no cost while nobody waits."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio


class Waiters:
    """Tasks that wait for one thing.

    A future exists only while somebody really waits, and each has its own: cancelling one must not cancel the other.
    """

    __slots__ = ("_futures", "_loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._futures: list[asyncio.Future[None]] = []

    async def wait(self) -> None:
        """Wait for the next `wake`."""
        future = self._loop.create_future()
        self._futures.append(future)
        try:
            await future
        finally:
            self._futures.remove(future)

    @property
    def waiting(self) -> bool:
        """Whether anybody waits."""
        return bool(self._futures)

    def wake(self) -> None:
        """Let all go on."""
        for future in self._futures:
            if not future.done():
                future.set_result(None)
