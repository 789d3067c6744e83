"""The ASGI lifespan protocol: one task, in which the application starts before the first request and ends after all.

Theory of operation: the application runs in one task through the phases starting → serving → stopping. What it sends,
or that it ended, settles the phase it is in. Rules, as uvicorn's: with "auto", an exception before an answer means that
the application does not speak lifespan, and it is served without; with "on" it is a failed start. "startup.failed" is a
failed start in both. An application that returns without a word is served, and not told of the shutdown.

SystemExit, KeyboardInterrupt and CancelledError raised by the application are failures, never the end of the process:
an asyncio task would let the first two through to the loop's caller.
"""

from __future__ import annotations

import asyncio
from enum import Enum, auto
from typing import TYPE_CHECKING, Any, Final, Literal, assert_never

from procmgr.errors import AppError
from procmgr.worker.app import one_line, own_traceback

if TYPE_CHECKING:
    import logging

    from procmgr.worker.app import ASGIApp, Event

Mode = Literal["auto", "on", "off"]

_AFTERWARDS: Final = 1.0  # seconds an application has after shutdown.complete, for what its `async with` cleans up
_CANCELLED: Final = 0.1  # seconds a cancelled application has


class _Phase(Enum):
    STARTING = auto()
    SERVING = auto()
    STOPPING = auto()
    ENDED = auto()


class Lifespan:
    """One application's lifespan; `state` is the dict it may fill, which every request gets a copy of."""

    __slots__ = (
        "_app",
        "_discarded",
        "_failure",
        "_finished",
        "_log",
        "_mode",
        "_phase",
        "_started",
        "_state",
        "_stop",
        "_task",
        "_told",
    )

    def __init__(self, *, app: ASGIApp, mode: Mode, state: dict[str, Any], log: logging.Logger) -> None:
        self._app = app
        self._mode = mode
        self._state = state
        self._log = log
        self._phase = _Phase.STARTING
        self._told = 0  # messages the application received
        self._started = asyncio.Event()
        self._stop = asyncio.Event()
        self._finished = asyncio.Event()  # the application ended, or has nothing more to do
        self._failure: AppError | None = None
        self._discarded = False
        self._task: asyncio.Task[None] | None = None

    @property
    def serving(self) -> bool:
        """Whether the application has said that its startup is complete, and is owed a shutdown."""
        return self._phase is _Phase.SERVING

    async def startup(self) -> None:
        """Start the application; raises `AppError` when it says or shows that it cannot. Not bounded in time."""
        if self._mode == "off":
            return
        self._log.debug("waiting for the application's startup")
        self._task = asyncio.get_running_loop().create_task(self._run())
        try:
            await self._started.wait()
        except asyncio.CancelledError:
            await self._discard(self._task)
            raise
        if self._failure is not None:
            await self._discard(self._task)
            raise self._failure
        self._log.debug("the application's startup is complete")

    async def shutdown(self) -> None:
        """Tell the application to end and wait until it has; raises `AppError` when that fails.

        Not bounded in time: cancel it to give up, which cancels the application. Does nothing if the startup did not
        complete or the application's lifespan ended before.
        """
        if self._task is None or self._finished.is_set():
            return
        self._log.debug("waiting for the application's shutdown")
        self._phase = _Phase.STOPPING
        self._stop.set()
        try:
            await self._finished.wait()
        finally:
            await self._discard(self._task)
        if self._failure is not None:
            raise self._failure
        self._log.debug("the application's shutdown is complete")

    async def _run(self) -> None:
        scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": self._state}
        try:
            await self._app(scope, self._receive, self._send)
        except BaseException as error:  # noqa: BLE001 - see the module's rules
            self._raised(error)
        self._finished.set()
        self._started.set()

    def _raised(self, error: BaseException) -> None:
        if self._discarded or self._failure is not None:
            return  # we cancelled it, or it repeats as an exception what it said as a message
        match self._phase:
            case _Phase.STARTING if self._mode == "auto" and isinstance(error, Exception):
                self._log.info("the application does not support the lifespan protocol (%s)", one_line(error))
            case _Phase.STARTING:
                self._failure = AppError(f"the application's startup failed: {one_line(error)}", own_traceback(error))
            case _Phase.STOPPING:
                self._failure = AppError(f"the application's shutdown failed: {one_line(error)}", own_traceback(error))
            case _Phase.SERVING:
                self._log.error("the application's lifespan ended while it serves: %s", one_line(error), exc_info=error)
            case _Phase.ENDED:
                self._log.error("the application raised after its shutdown: %s", one_line(error), exc_info=error)
            case _:
                assert_never(self._phase)

    async def _receive(self) -> Event:
        self._told += 1
        if self._told == 1:
            return {"type": "lifespan.startup"}
        await self._stop.wait()
        if self._told == 2:
            return {"type": "lifespan.shutdown"}
        self._finished.set()  # it loops on receive() for ever: there is nothing left that it could be told
        await asyncio.get_running_loop().create_future()
        raise AssertionError

    async def _send(self, message: Event) -> None:
        match self._phase, message["type"]:
            case _Phase.STARTING, "lifespan.startup.complete":
                self._phase = _Phase.SERVING
                self._started.set()
            case _Phase.STARTING, "lifespan.startup.failed":
                self._phase = _Phase.ENDED
                self._failure = _said("startup", message.get("message", ""))
                self._started.set()
            case _Phase.STOPPING, "lifespan.shutdown.complete":
                self._phase = _Phase.ENDED
                asyncio.get_running_loop().call_later(_AFTERWARDS, self._finished.set)
            case _Phase.STOPPING, "lifespan.shutdown.failed":
                self._phase = _Phase.ENDED
                self._failure = _said("shutdown", message.get("message", ""))
                self._finished.set()
            case phase, kind:
                raise RuntimeError(f"the application sent {kind!r} while {phase.name.lower()}")

    async def _discard(self, task: asyncio.Task[None]) -> None:
        self._discarded = True
        task.cancel()
        await asyncio.wait({task}, timeout=_CANCELLED)


def _said(phase: str, words: str) -> AppError:
    """Return what the application sent with a "failed" message; frameworks put a whole traceback there."""
    lines = words.strip().splitlines()
    last = f": {' '.join(lines[-1].split())[:500]}" if lines else ""
    return AppError(f"the application's {phase} failed{last}", words.rstrip() if len(lines) > 1 else "")
