"""The arithmetic of reconciling: which workers are too many, which to end, how many are missing, in which slot.

Pure functions of a *cohort*: present workers that are counted together. Outside a roll, and in a committed one, the
whole pool is one cohort, and its *outdated* members (of an old generation, or due to be recycled) are replaced by way
of `extra` workers above the wanted number. Until a roll is committed its new workers are a cohort of their own, so that
nothing they do can touch the old.

Ending comes before spawning, and spawning counts what is left: a worker that would be too many is never spawned.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from collections.abc import Set as AbstractSet

    from procmgr.arbiter.core.model import Worker


@dataclass(frozen=True, slots=True, kw_only=True)
class Cohort:
    """Workers counted together: `wanted` of `generation` are to be ready, at most `extra` more present meanwhile."""

    generation: int
    wanted: int
    extra: int
    members: list[Worker]
    outdated: AbstractSet[Worker]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to do about a cohort: these to cancel, these to retire, and then so many to spawn."""

    cancel: Sequence[Worker]
    retire: Sequence[Worker]
    missing: int


def plan(cohort: Cohort, *, room: int) -> Plan:
    """Return what brings `cohort` to what is wanted; outdated ones retire only as far as there is `room` to drain."""
    ready = [worker for worker in cohort.members if worker.ready]
    retire = _surplus_ready(cohort, ready, room)
    obsolete = [worker for worker in cohort.members if worker.booting and worker in cohort.outdated]
    booting = [worker for worker in cohort.members if worker.booting and worker not in cohort.outdated]
    kept = len(ready) - len(retire)
    keepers = kept - sum(worker in cohort.outdated for worker in set(ready).difference(retire))
    limit = min(cohort.wanted - keepers, cohort.wanted + cohort.extra - kept)
    booting.sort(key=lambda worker: (worker.generation, -worker.slot, -worker.worker_id))
    surplus = booting[: max(0, len(booting) - max(0, limit))]
    missing = max(0, limit - len(booting))
    return Plan(cancel=[*obsolete, *surplus], retire=retire, missing=missing)


def _surplus_ready(cohort: Cohort, ready: Sequence[Worker], room: int) -> Sequence[Worker]:
    """Pick what is ready beyond the wanted: outdated first, of these the one whose slot has a ready successor."""
    surplus = max(0, len(ready) - cohort.wanted)
    if any(worker in cohort.outdated for worker in ready):
        surplus = min(surplus, max(room, surplus - cohort.extra))
    taken = {worker.slot for worker in ready if worker not in cohort.outdated}
    order = sorted(
        ready,
        key=lambda worker: (
            worker not in cohort.outdated,
            worker.slot not in taken,
            worker.generation,
            -worker.slot,
            -worker.worker_id,
        ),
    )
    return order[:surplus]


def twins(members: Sequence[Worker]) -> list[Worker]:
    """Return the ready workers whose slot a newer ready worker holds too."""
    newest: dict[int, int] = {}
    for worker in members:
        if worker.ready:
            newest[worker.slot] = max(worker.worker_id, newest.get(worker.slot, -1))
    return [worker for worker in members if worker.ready and worker.worker_id < newest[worker.slot]]


def slot_for(cohort: Cohort, present: Sequence[Worker]) -> int:
    """Return the slot of the next worker: the lowest nobody present holds, else that of the first it is to replace."""
    held = {worker.slot for worker in present}
    free = next((slot for slot in range(cohort.wanted) if slot not in held), None)
    if free is not None:
        return free
    kept = {worker.slot for worker in cohort.members if worker not in cohort.outdated}
    return next(slot for slot in count() if slot not in kept)
