"""Every state answers every event: the whole product of what a worker may be, what the pool may be, and what may come.

`Drive` watches the laws at each step, so an answer that breaks one fails here too.
"""

from __future__ import annotations

from itertools import product
from typing import get_args

import pytest

from procmgr.arbiter.core import events
from procmgr.arbiter.core.events import BootFailure, Exit, StopLevel
from procmgr.arbiter.core.model import Phase
from procmgr.arbiter.core.policy import Handover, Policy
from sim.drive import Drive

BOUNDS = {"boot_timeout": 20.0, "beat_timeout": 12.0, "slow_loop": 1.0, "core_grace": 5.0, "max_memory_hard": 200}
ROLL = Policy(workers=2, max_memory=100, max_lifetime=3600.0, **BOUNDS)
HOLD = Policy(workers=2, max_memory=100, max_lifetime=3600.0, handover=Handover.HOLD, refork=True, **BOUNDS)

SUBJECT = 1
UNKNOWN = 99


def forks(drive):
    drive.send(events.Spawned(SUBJECT, 101))


def serves(drive):
    drive.ready(SUBJECT)


def hangs(drive):
    drive.ready(SUBJECT)
    for _ in range(30):
        drive.now = min(drive.now + 1.0, drive.pool.deadline() or drive.now + 1.0)
        drive.beat(SUBJECT)


WORKERS = {
    "forking": lambda drive: None,
    "starting": forks,
    "starting, said why it cannot": lambda d: (forks(d), d.send(events.BootFailed(SUBJECT, BootFailure.FAILED))),
    "ready": serves,
    "ready, to be recycled": lambda d: (serves(d), d.send(events.RecycleDue(SUBJECT, "age"))),
    "ready, measured": lambda d: (serves(d), d.send(events.Measured(SUBJECT, 50))),
    "draining by itself": lambda d: (serves(d), d.send(events.DrainBegun(SUBJECT))),
    "stopped and killed": lambda d: (serves(d), d.send(events.Suspended(SUBJECT))),
    "hung, dumped, aborted": hangs,
    "late to boot": lambda d: (forks(d), d.wait(20.0)),
    "buried": lambda d: (serves(d), d.died(SUBJECT)),
}


def commit(drive):
    drive.ready(*(worker_id for worker_id in drive.ids("starting") if worker_id != SUBJECT))
    drive.send(events.Reload(drive.policy))
    drive.ready(*(worker.worker_id for worker in drive.view.workers if worker.generation == 2))


def roll_back(drive):
    drive.ready(*drive.ids("starting"))
    drive.send(events.Reload(drive.policy))
    for worker in drive.view.workers:
        if worker.generation == 2:
            drive.died(worker.worker_id, Exit(code=1))


POOLS = {
    "as it is": lambda d: None,
    "rolling": lambda d: d.send(events.Reload(d.policy)),
    "rolling, with one that waits": lambda d: [d.send(events.Reload(d.policy)) for _ in range(3)],
    "rolling, committed": commit,
    "rolled back": roll_back,
    "backing off": lambda d: [d.died(worker_id, Exit(code=1)) for worker_id in d.ids() if worker_id != SUBJECT],
    "scaled up": lambda d: d.send(events.ScaleTo(4)),
    "scaled down": lambda d: d.send(events.ScaleTo(1)),
    "stopping gracefully": lambda d: d.send(events.Stop(StopLevel.GRACEFUL)),
    "stopping quickly": lambda d: d.send(events.Stop(StopLevel.QUICK)),
    "killing": lambda d: d.send(events.Stop(StopLevel.KILL)),
    "restored": lambda d: d.pool.restore(),
}

EVENTS = {
    events.Tick: [events.Tick()],
    events.Beats: [
        events.Beats(()),
        events.Beats(((SUBJECT, 1e9), (UNKNOWN, 0.0))),
        events.Beats(((SUBJECT, float("nan")),)),
    ],
    events.MemoryShort: [
        events.MemoryShort(()),
        events.MemoryShort(((SUBJECT, 90), (2, 80), (UNKNOWN, 100))),
    ],
    events.Spawned: [events.Spawned(SUBJECT, 101), events.Spawned(UNKNOWN, 199)],
    events.SpawnFailed: [
        *(events.SpawnFailed(SUBJECT, "EAGAIN", why) for why in (BootFailure.REFUSED, BootFailure.FAILED)),
        events.SpawnFailed(UNKNOWN, "EAGAIN"),
    ],
    events.Ready: [events.Ready(SUBJECT), events.Ready(UNKNOWN)],
    events.BootFailed: [
        events.BootFailed(SUBJECT, BootFailure.NOT_FOUND),
        events.BootFailed(UNKNOWN, BootFailure.FAILED),
    ],
    events.Suspended: [events.Suspended(SUBJECT), events.Suspended(UNKNOWN)],
    events.DrainBegun: [events.DrainBegun(SUBJECT), events.DrainBegun(UNKNOWN)],
    events.RecycleDue: [events.RecycleDue(SUBJECT, "age"), events.RecycleDue(UNKNOWN, "age")],
    events.Measured: [*(events.Measured(SUBJECT, used) for used in (0, 150, 250)), events.Measured(UNKNOWN, 250)],
    events.Exited: [
        *(events.Exited(SUBJECT, Exit(code=code)) for code in (0, 1)),
        events.Exited(SUBJECT, Exit(signal=11, core=True)),
        events.Exited(UNKNOWN, Exit(code=0)),
    ],
    events.ScaleBy: [events.ScaleBy(delta) for delta in (-10, -1, 0, 1)],
    events.ScaleTo: [events.ScaleTo(workers) for workers in (-1, 1, 3)],
    events.Reload: [events.Reload(ROLL), events.Reload(HOLD)],
    events.Stop: [events.Stop(level) for level in StopLevel],
}


def fields(policy):
    return {name: getattr(policy, name) for name in Policy.__dataclass_fields__}


def situation(policy, worker, pool):
    drive = Drive(**fields(policy))
    WORKERS[worker](drive)
    POOLS[pool](drive)
    return drive


def settle(drive):
    """Whatever the answer set in motion goes on: deadlines pass, the dead are reaped, and a stop comes to its end."""
    for _ in range(2):
        if (deadline := drive.pool.deadline()) is not None:
            drive.now = max(drive.now, deadline)
            drive.beat()
    drive.send(events.Stop(StopLevel.KILL))
    for worker in drive.view.workers:
        drive.send(events.SpawnFailed(worker.worker_id, "EAGAIN") if worker.pid is None else _death(worker))
    assert drive.pool.finished
    assert drive.send(events.Ready(SUBJECT)) == []
    assert drive.pool.deadline() is None


def _death(worker):
    return events.Exited(worker.worker_id, Exit(signal=9))


@pytest.mark.parametrize(
    ("policy", "pool"),
    [*((ROLL, pool) for pool in POOLS), *((HOLD, pool) for pool in POOLS if "roll" in pool)],
    ids=[*POOLS, *(f"{pool}, holding" for pool in POOLS if "roll" in pool)],
)
def test_every_state_answers_every_event(policy, pool):
    """No pair of a worker's state and an event raises, breaks a law, or keeps a stop from ending."""
    for worker, (kind, examples) in product(WORKERS, EVENTS.items()):
        for event in examples:
            drive = situation(policy, worker, pool)
            try:
                drive.send(event)
                settle(drive)
            except Exception as error:
                raise AssertionError(f"{kind.__name__} to a worker that is {worker}, the pool {pool}") from error


def test_the_product_has_every_event_and_every_phase():
    """A new event or phase must be given its place above."""
    assert set(EVENTS) == set(get_args(events.Event))
    phases = set()
    for worker in WORKERS:
        subject = situation(ROLL, worker, "as it is").pool.pool._state.workers.get(SUBJECT)
        phases.add(subject.phase if subject else None)
    assert phases == {None, *Phase}


def test_the_pools_of_the_product_are_what_they_are_called():
    """Each condition of the pool holds when its events have come."""

    def shown(pool):
        return situation(ROLL, "ready", pool).view

    assert shown("rolling").rolling == 2
    assert not situation(ROLL, "ready", "rolling").pool.pool._state.roll.committed
    assert situation(ROLL, "ready", "rolling, committed").pool.pool._state.roll.committed
    assert shown("rolling, with one that waits").pending is not None
    assert shown("rolled back").last_reload.outcome.value == "rolled back"
    assert shown("backing off").failures == 1
    assert [shown(pool).stop for pool in ("stopping gracefully", "stopping quickly", "killing")] == list(StopLevel)
