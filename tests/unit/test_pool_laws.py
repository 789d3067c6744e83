"""The laws of the pool, on any sequence of events whatsoever, plausible or not (tests/sim/laws.py checks each step)."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from sim.laws import WatchedPool

import procmgr.arbiter.core
from procmgr.arbiter.core import events
from procmgr.arbiter.core.events import BootFailure, Exit, StopLevel
from procmgr.arbiter.core.policy import Backoff, Handover, Policy
from procmgr.arbiter.core.pool import Pool

POLICIES = st.builds(
    Policy,
    workers=st.integers(1, 4),
    surge=st.sampled_from([1, 2, 4]),
    boot_timeout=st.sampled_from([3.0, 20.0]),
    beat_timeout=st.sampled_from([0.0, 8.0, 30.0]),
    graceful_timeout=st.sampled_from([0.0, 4.0, float("inf")]),
    kill_grace=st.sampled_from([0.5, 2.0]),
    dump_grace=st.sampled_from([0.0, 0.5]),
    core_grace=st.sampled_from([0.0, 10.0]),
    slow_loop=st.sampled_from([0.0, 0.01, 1.0]),
    max_lifetime=st.sampled_from([0.0, 5.0, 60.0]),
    max_lifetime_jitter=st.sampled_from([0.0, 10.0]),
    max_memory=st.sampled_from([0, 100]),
    max_memory_hard=st.sampled_from([0, 200]),
    boot_attempts=st.sampled_from([1, 3]),
    refork=st.booleans(),
    handover=st.sampled_from(Handover),
    backoff=st.builds(Backoff, first=st.just(0.5), cap=st.just(4.0), stable_after=st.sampled_from([1.0, 10.0])),
)
EXITS = st.sampled_from([Exit(code=0), Exit(code=1), Exit(code=3), Exit(code=4), Exit(signal=9), Exit(signal=15)])


def through_json(pool):
    return Pool.restore(json.loads(json.dumps(pool.snapshot(), allow_nan=False)), random=lambda: 0.5)


class AnyEvents(RuleBasedStateMachine):
    """Facts about known and unknown workers in any order, wishes in any state, time in any step."""

    @initialize(policy=POLICIES)
    def boot(self, policy):
        self.now = 100.0
        self.pool = WatchedPool(policy, now=self.now)
        self.twin = None
        self.send(events.Tick())

    def send(self, event):
        out = self.pool.handle(event, self.now)
        if self.twin is not None:
            assert self.twin.handle(event, self.now) == out, "law 9: what was restored decides otherwise"
            self.check_twin()

    def check_twin(self):
        assert self.twin.deadline() == self.pool.deadline(), "law 9"
        assert self.twin.view() == self.pool.view(), "law 9"

    @rule()
    def restored_from_its_snapshot(self):
        self.twin = through_json(self.pool.pool)
        self.check_twin()

    def worker(self, pick):
        """A known worker mostly; for some numbers one that is unknown."""
        known = sorted(self.pool.known)
        return known[pick % len(known)] if known and pick < 60 else pick

    @rule(seconds=st.sampled_from([0.0, 0.1, 1.0, 1.9, 6.0, 40.0]))
    def time_passes(self, seconds):
        self.now += seconds

    @rule()
    def the_deadline_comes(self):
        deadline = self.pool.deadline()
        if deadline is not None:
            self.now = max(self.now, deadline)
            self.send(events.Tick())

    @rule(pick=st.integers(0, 63))
    def spawned(self, pick):
        self.send(events.Spawned(self.worker(pick), 4000 + pick))

    @rule()
    def all_boot(self):
        for worker_id in sorted(self.pool.known):
            self.send(events.Spawned(worker_id, 4000))
            self.send(events.Ready(worker_id))

    @rule(data=st.data(), pick=st.integers(0, 63))
    def a_fact(self, data, pick):
        worker_id = self.worker(pick)
        fact = st.sampled_from(
            [
                events.Ready(worker_id),
                events.SpawnFailed(worker_id, "EAGAIN"),
                events.BootFailed(worker_id, BootFailure.NOT_FOUND),
                events.Suspended(worker_id),
                events.DrainBegun(worker_id),
                events.RecycleDue(worker_id, "requests"),
                events.Measured(worker_id, data.draw(st.sampled_from([50, 150, 250]))),
            ]
        )
        self.send(data.draw(fact))

    @rule(sizes=st.lists(st.tuples(st.integers(0, 63), st.sampled_from([50, 150, 250])), max_size=4))
    def memory_is_short(self, sizes):
        self.send(events.MemoryShort(tuple((self.worker(pick), used) for pick, used in sizes)))

    @rule(pick=st.integers(0, 63), exit_=EXITS)
    def exited(self, pick, exit_):
        self.send(events.Exited(self.worker(pick), exit_))

    @rule(age=st.sampled_from([0.0, 5.0, float("nan"), float("-inf"), -1e9]))
    def beats(self, age):
        self.send(events.Beats(tuple((worker_id, self.now - age) for worker_id in self.pool.known)))

    @rule(delta=st.sampled_from([-3, -1, 1, 2]))
    def scale_by(self, delta):
        self.send(events.ScaleBy(delta))

    @rule(workers=st.integers(-1, 6))
    def scale_to(self, workers):
        self.send(events.ScaleTo(workers))

    @rule(policy=POLICIES)
    def reload(self, policy):
        self.send(events.Reload(policy))

    @rule(level=st.sampled_from(StopLevel), rarely=st.integers(0, 9))
    def stop(self, level, rarely):
        if rarely == 0:
            self.send(events.Stop(level))

    @invariant()
    def desired_is_at_least_one(self):
        assert self.pool.view().desired >= 1


AnyEvents.TestCase.settings = settings(stateful_step_count=50, report_multiple_bugs=False)


class TestAnyEvents(AnyEvents.TestCase):
    """Laws 1 to 9."""


def test_the_core_touches_nothing_but_itself_and_the_exit_codes():
    """No module of the core imports anything that could read a clock, a file or a signal."""
    allowed = {
        "__future__",
        "collections.abc",
        "dataclasses",
        "enum",
        "itertools",
        "math",
        "typing",
        "procmgr.errors",
        "procmgr.plain",
    }
    for path in Path(procmgr.arbiter.core.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module]
            for name in names:
                assert name in allowed or name.startswith("procmgr.arbiter.core"), f"{path.name} imports {name}"
