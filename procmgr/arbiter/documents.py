"""A view of the pool as documents of plain values: what the status and the hooks tell alike."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from procmgr.arbiter.core.view import View, WorkerView

Document = dict[str, Any]


def pool(view: View) -> Document:
    """Return how the pool stands."""
    return {
        "desired": view.desired,
        "ready": view.ready,
        "starting": view.starting,
        "draining": view.draining,
        "generation": view.generation,
        "rolling": view.rolling,
        "stopping": None if view.stop is None else view.stop.name.lower(),
    }


def worker(worker: WorkerView) -> Document:
    """Return who a worker is."""
    return {
        "slot": worker.slot,
        "worker": worker.worker_id,
        "pid": worker.pid,
        "generation": worker.generation,
        "state": worker.state.value,
    }
