"""The pool as `procmgrctl status` is told of it: a document of plain values.

What the kernel knows of a process comes from psutil, each value optional: under ProcSubset=pid and the like (proc(5)) a
part of /proc is hidden. What a worker wrote into its row is its own word and is shown as such.
"""

from __future__ import annotations

import os
from importlib import metadata
from typing import TYPE_CHECKING, Final

import psutil

from procmgr import __version__, scoreboard, sockets
from procmgr.arbiter import documents
from procmgr.arbiter.memory import resident
from procmgr.arbiter.renewal import describe

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from procmgr.arbiter.core.view import View, WorkerView
    from procmgr.arbiter.documents import Document
    from procmgr.arbiter.history import Departure, History, LastReload
    from procmgr.arbiter.member import Member
    from procmgr.arbiter.plans import Plan

_SHOWN_REQUESTS: Final = 8
_SHOWN_IN_ALL: Final = 400  # of up to 600 bytes each, since what is escaped is escaped again in JSON
_PREIMPORTED: Final = ("procmgr", "uvloop", "httptools", "h11", "websockets", "click", "psutil")


class Releases:
    """The releases that this process runs, as they were when it started; a reload does not change them."""

    def __init__(self) -> None:
        self._running = _installed()

    def drift(self) -> list[str]:
        """Return one line for each release that is not the installed one any more."""
        installed = _installed()
        return [
            f"the daemon runs {name} {running}, installed is {installed[name]}: an upgrade takes it, a reload does not"
            for name, running in self._running.items()
            if installed.get(name, running) != running
        ]


def _installed() -> dict[str, str]:
    found = {}
    for name in _PREIMPORTED:
        try:
            found[name] = metadata.version(name)
        except (metadata.PackageNotFoundError, OSError):  # runs from a checkout, or is an extra; or cannot be read
            continue
    return found


class Status:
    """Makes the document. Times are seconds; `born` is the arbiter's start, `summary` says the state in a line."""

    def __init__(
        self,
        *,
        view: Callable[[], View],
        members: Mapping[int, Member],
        history: History,
        releases: Releases,
        now: Callable[[], float],
        born: float,
        summary: Callable[[], str],
    ) -> None:
        self._view = view
        self._members = members
        self._history = history
        self._releases = releases
        self._now = now
        self._born = born
        self._summary = summary

    def document(self, plan: Plan) -> Document:
        """Return the status; `plan` is the one in force."""
        view, now = self._view(), self._now()
        shown = min(_SHOWN_REQUESTS, max(1, _SHOWN_IN_ALL // max(1, len(view.workers))))
        return {
            **identity(plan),
            "uptime": round(now - self._born, 3),
            "app": plan.settings.app.app,
            "addresses": [
                sockets.url(listener.address, scheme=plan.settings.tls.scheme) for listener in plan.listeners
            ],
            "certificates": describe(plan.certificates),
            "summary": self._summary(),
            "warnings": self._releases.drift(),
            "pool": _pool(view),
            "last_reload": _reload(self._history.last_reload, now),
            "workers": [self._worker(worker, now, shown) for worker in view.workers],
            "vacant": self._vacant(view, now),
        }

    def _vacant(self, view: View, now: float) -> list[Document]:
        """Return why there is nobody in a slot that should have a worker."""
        held = {worker.slot for worker in view.workers}
        return [
            {"slot": slot, **_departure(gone, now)}
            for slot, gone in sorted(self._history.departures.items())
            if slot < view.desired and slot not in held
        ]

    def _worker(self, worker: WorkerView, now: float, shown: int) -> Document:
        member = self._members.get(worker.worker_id)
        return {
            **documents.worker(worker),
            "age": round(now - worker.born, 3),
            "in_state": round(now - worker.since, 3),
            **(_row(member.row, now) if member else {}),
            "in_flight": _in_flight(member.records, now, shown) if member else [],
            **(_process(worker.pid) if worker.pid else {}),
            "predecessor": _predecessor(self._history.departures.get(worker.slot), worker.worker_id, now),
        }


def identity(plan: Plan) -> Document:
    """Return who answers."""
    return {"name": plan.settings.process.name, "version": __version__, "pid": os.getpid()}


def _pool(view: View) -> Document:
    return {
        **documents.pool(view),
        "pending": view.pending,
        "failures": view.failures,
        "backoff_seconds": view.backoff_seconds,
        "leaving": view.leaving,
    }


def _reload(last: LastReload | None, now: float) -> Document | None:
    if last is None:
        return None
    return {
        "generation": last.generation,
        "outcome": last.outcome.value if last.outcome else "refused",
        "exit": int(last.exit_code),
        "text": last.text,
        "detail": last.detail,
        "ago": round(now - last.at, 3),
    }


def _row(row: scoreboard.Row, now: float) -> Document:
    beat = row[scoreboard.BEAT] / 1e9
    return {
        "requests": row[scoreboard.REQUESTS],
        "active": row[scoreboard.ACTIVE],
        "connections": row[scoreboard.CONNECTIONS],
        "tls_failed": row[scoreboard.TLS_FAILED],
        "lag": round(row[scoreboard.LAG] / 1e9, 6),
        "beat_ago": round(max(0.0, now - beat), 3) if beat else None,
        "debugging": bool(row[scoreboard.DEBUGGING]),
    }


def _in_flight(records: scoreboard.Records, now: float, most: int) -> list[Document]:
    """Return the requests that run, the oldest first; "active" counts them all."""
    found = []
    for began, what in scoreboard.running(records, most):
        method, _, path = what.partition(" ")
        found.append({"method": method, "path": path, "age": round(max(0.0, now - began / 1e9), 3)})
    return found


def _process(pid: int) -> Document:
    """Return CPU seconds and resident bytes, None for what cannot be known."""
    return {"cpu": _cpu(pid), "memory": resident(pid)}


def _cpu(pid: int) -> float | None:
    try:
        times = psutil.Process(pid).cpu_times()
    except (psutil.Error, OSError):
        return None
    return round(times.user + times.system, 3)


def _predecessor(departure: Departure | None, worker_id: int, now: float) -> Document | None:
    if departure is None or departure.worker_id >= worker_id:
        return None
    return _departure(departure, now)


def _departure(gone: Departure, now: float) -> Document:
    return {"worker": gone.worker_id, "reason": gone.reason, "ago": round(now - gone.at, 3)}
