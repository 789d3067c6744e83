"""The drain: a worker's way out, from the last accept to the end of lifespan.shutdown.

Theory of operation: a drain has a mode and a deadline; it begins within the call that asks for it and goes on in `run`.
Asking again can only raise the mode (retire → stop → quick) and bring the deadline nearer, whatever step it is at;
hence no order of asking needs a special case. The steps:

1. Accept no more. For a stop, first what is queued: nobody else will, and closing the last descriptor of a listener
   resets its queue.
2. Let connections finish: how is `protocols.context`'s to know, by mode.
3. At the deadline a retirement becomes quick, which closes WebSockets. Then cancel the requests that still run, then
   cut what is still connected.
4. lifespan.shutdown, always; it has the rest of the time, and never less than `SHUTDOWN` seconds.

`PARTED` + `CANCELLED` + `CUT` + `SHUTDOWN` must stay below the arbiter's kill grace, which counts from the same
deadline.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final

from procmgr.errors import AppError
from procmgr.worker.protocols.context import DrainMode

if TYPE_CHECKING:
    import logging
    from collections.abc import Awaitable, Sequence

    from procmgr.worker.acceptor import Acceptor
    from procmgr.worker.lifespan import Lifespan
    from procmgr.worker.protocols.context import Context

HANDSHAKES: Final = 1.0
"""Seconds in which a connection that was accepted has to be through its TLS handshake when the service stops."""

PARTED: Final = 0.25
"""Seconds in which an application may end by itself whose WebSocket is closed at a retirement's deadline."""

CANCELLED: Final = 0.5
"""Seconds in which a cancelled request may still clean up."""

CUT: Final = 0.1
"""Seconds in which the loop reports cut connections as closed."""

SHUTDOWN: Final = 3.0
"""Seconds that lifespan.shutdown has even after the deadline."""

_LEVELS: Final = tuple(DrainMode)


class Drain:
    """One worker's drain. `request` may be called at any time; `run` returns when all is done."""

    def __init__(
        self,
        *,
        context: Context,
        acceptors: Sequence[Acceptor],
        lifespan: Lifespan,
        log: logging.Logger,
    ) -> None:
        self._context = context
        self._acceptors = acceptors
        self._lifespan = lifespan
        self._log = log
        self._mode: DrainMode | None = None
        self._deadline = float("inf")  # loop.time()
        self._at_least = 0.0
        self._requested = asyncio.Event()
        self._timeout: asyncio.Timeout | None = None

    def request(self, mode: DrainMode, deadline: float) -> None:
        """Ask for a drain, or for a shorter one; `deadline` is CLOCK_MONOTONIC seconds."""
        loop = self._context.loop
        self._deadline = min(self._deadline, loop.time() + deadline - time.monotonic())
        if self._timeout is not None:
            self._timeout.reschedule(self._bound())
        if self._mode is not None and _LEVELS.index(mode) <= _LEVELS.index(self._mode):
            return
        first, self._mode = self._mode is None, mode
        if first:
            self._accept_no_more(mode)
            self._requested.set()
        if mode is not DrainMode.RETIRE:
            loop.call_later(HANDSHAKES, self._abandon_handshakes)
        self._context.begin_drain(mode)

    def pause(self) -> None:
        """Accept no more and let go of idle connections, until `resume`; a drain goes on regardless."""
        if self._mode is None:
            for acceptor in self._acceptors:
                acceptor.hold()
            self._context.pause()

    def resume(self) -> None:
        """Accept again; a drain is not taken back."""
        if self._mode is None:
            self._context.resume()
            for acceptor in self._acceptors:
                acceptor.start()

    async def run(self) -> None:
        """Wait until a drain is requested and go through with it. Never raises for what the application does."""
        await self._requested.wait()
        if not await self._bounded(self._handshakes()):
            self._abandon_handshakes()
        await self._finish_connections()
        await self._end_application()

    def _accept_no_more(self, mode: DrainMode) -> None:
        for acceptor in self._acceptors:
            if mode is not DrainMode.RETIRE:
                acceptor.take_queue()
            acceptor.close()

    async def _handshakes(self) -> None:
        for acceptor in self._acceptors:
            await acceptor.settled()

    def _abandon_handshakes(self) -> None:
        for acceptor in self._acceptors:
            acceptor.abandon()

    async def _finish_connections(self) -> None:
        context = self._context
        if await self._bounded(asyncio.shield(context.drained())):
            return
        if self._mode is DrainMode.RETIRE:
            self._mode = DrainMode.QUICK
            context.begin_drain(DrainMode.QUICK)
            if await self._bounded(asyncio.shield(context.drained()), at_least=PARTED):
                return
        if context.tasks:
            self._log.warning("cancelling %d requests that still run at the drain's deadline", len(context.tasks))
        context.abort_requests()
        if await self._bounded(asyncio.shield(context.drained()), at_least=CANCELLED):
            return
        if context.tasks:
            self._log.error("%d requests ignore their cancellation", len(context.tasks))
        context.abort_connections()
        await self._bounded(asyncio.shield(context.drained()), at_least=CUT)

    async def _end_application(self) -> None:
        try:
            if not await self._bounded(self._lifespan.shutdown(), at_least=SHUTDOWN):
                self._log.error("the application's shutdown took too long: leaving without it")
        except AppError as error:
            self._log.error("%s", "\n".join(filter(None, (error.summary, error.detail))))

    async def _bounded(self, awaitable: Awaitable[None], *, at_least: float = 0.0) -> bool:
        """Wait until the deadline, wherever it moves, but at least `at_least` seconds; return whether it was done."""
        self._at_least = self._context.loop.time() + at_least
        try:
            async with asyncio.timeout_at(self._bound()) as self._timeout:
                await awaitable
        except TimeoutError:
            return False
        finally:
            self._timeout = None
        return True

    def _bound(self) -> float:
        return max(self._deadline, self._at_least)
