"""The import of an application on behalf of many workers, which are forked from the process that has it.

Memory stays shared as long as nobody writes to it. The cyclic collector writes to every object it looks at, so it rests
during the import, and what is there afterwards is put beyond its reach before the first fork (gc.freeze).

What a fork does not carry over, threads, or must not, event loops, is said once.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from procmgr.process.immortal import immortalize
from procmgr.worker import boot

if TYPE_CHECKING:
    from procmgr.config.settings import Settings
    from procmgr.worker.app import ASGIApp
    from procmgr.worker.boot import Birth

_NAMED: Final = 5

log = logging.getLogger("procmgr.error")


@dataclass(frozen=True, slots=True, kw_only=True)
class Preloaded:
    """An imported application, and how often the collector is to run in the workers that serve it."""

    app: ASGIApp
    thresholds: tuple[int, int, int]

    def serve(self, birth: Birth) -> int:
        """Run a worker to its end in a fork that the arbiter has adopted; returns its exit status."""
        if gc.get_threshold()[0] == 0:  # else the application has decided otherwise
            gc.set_threshold(*self.thresholds)
        return boot.hatch(birth, self.app)


def preload(settings: Settings) -> Preloaded:
    """Import the application; raises `AppError`."""
    thresholds = gc.get_threshold()
    gc.set_threshold(0)  # not gc.disable(): whether there is a collector is the application's to say
    app = boot.load_app(settings)
    if left := residue():
        log.warning(
            "importing %s left %s behind, not for the workers: start such in the lifespan", settings.app.app, left
        )
    if settings.app.preload_immortal:
        log.info("%d objects are immortal from now on", immortalize())
    gc.freeze()
    return Preloaded(app=app, thresholds=thresholds)


def residue() -> str:
    """Return in words which threads and open event loops this process has, but for the main thread; empty if none.

    Threads that Python does not know are not looked at: the libraries that start them care for the fork themselves.
    """
    threads = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
    loops = [type(loop).__qualname__ for loop in _loops() if not loop.is_closed()]
    return " and ".join(filter(None, (_count("thread", threads), _count("open event loop", loops))))


def _loops() -> list[asyncio.AbstractEventLoop]:
    """Return every event loop there is, by its real type: asking a lazy proxy for its class runs what it stands for."""
    return [each for each in gc.get_objects() if issubclass(type(each), asyncio.AbstractEventLoop)]


def _count(noun: str, names: list[str]) -> str:
    if not names:
        return ""
    shown = ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
    return f"{len(names)} {noun}{'' if len(names) == 1 else 's'} ({shown})"
