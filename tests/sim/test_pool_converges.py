"""Whatever happened before: with healthy workers the pool converges, a reload ends and a stop ends, in bounded time."""

from __future__ import annotations

from math import inf
from random import Random

import pytest

from procmgr.arbiter.core import events
from procmgr.arbiter.core.actions import ReloadOutcome
from procmgr.arbiter.core.events import BootFailure, Exit, StopLevel
from procmgr.arbiter.core.policy import Backoff, Handover, Policy
from sim.host import CRASHED, HEALTHY, KILLED, Host, Script

BACKOFF = Backoff(first=0.5, cap=8.0, stable_after=5.0)
FATES = ["crash", "leave", "hang", "suspend", "recycle", "term", "grow", "press", "burst"]


def policy_of(random, **changes):
    values = {
        "workers": random.choice([1, 2, 4]),
        "surge": random.choice([1, 2, 8]),
        "boot_timeout": 10.0,
        "beat_timeout": random.choice([0.0, 12.0]),
        "graceful_timeout": 8.0,
        "kill_grace": 2.0,
        "slow_loop": random.choice([0.0, 1.0]),
        "core_grace": random.choice([0.0, 1.0]),
        "max_memory": 100,
        "max_memory_hard": 200,
        "backoff": BACKOFF,
        "refork": random.random() < 0.5,
        "handover": random.choice([Handover.ROLL, Handover.ROLL, Handover.HOLD]),
    }
    return Policy(**values | changes)


def faulty(random):
    """Workers of every kind, half of them healthy."""

    def script(_spawn):
        if random.random() < 0.5:
            return HEALTHY
        return Script(
            refused=random.random() < 0.1,
            fork=random.choice([0.0, 0.0, 0.3]),
            boot=random.choice([0.1, 2.0, 9.0, inf]),
            boot_exit=random.choice([None, None, None, CRASHED, Exit(code=3), Exit(code=4), KILLED]),
            tells=random.choice([None, BootFailure.NOT_FOUND]),
            life=tuple(
                (random.choice([0.0, 1.0, 7.0, 30.0]), random.choice(FATES)) for _ in range(random.randrange(2))
            ),
            term=random.choice([0.01, inf]),
            drain=random.choice([0.1, 5.0, 8.0, inf]),
            drain_exit=random.choice([Exit(code=0), CRASHED]),
        )

    return script


def meddle(host, random, policy):
    """One wish of an operator, or a clock that jumps."""
    what = random.randrange(11)
    if what < 4:
        changes = {"workers": random.choice([policy.workers, policy.workers, random.randint(1, 5)])}
        host.send(events.Reload(policy_of(random, beat_timeout=policy.beat_timeout, **changes)))
    elif what < 7:
        host.send(events.ScaleBy(random.choice([-2, -1, 1, 2])))
    elif what == 7:
        host.send(events.ScaleTo(random.randint(1, 5)))
    elif what == 8:
        host.jump(random.choice([0.5, 20.0, 400.0]), everyone=random.random() < 0.5)


def troubled(seed, *, steps=12):
    random = Random(seed)
    policy = policy_of(random, boot_attempts=random.choice([2, 50]))
    host = Host(policy, script=faulty(random), seed=seed)
    for _ in range(steps):
        host.run(random.choice([0.0, 0.4, 3.0, 15.0]))
        meddle(host, random, policy)
    return host


def bound(view):
    """Every worker booted one after the other, each after the longest wait, and everything that hangs killed."""
    return (BACKOFF.cap + 10.0 + 12.0 + 8.0 + 2.0 + 5.0) * (view.desired + 4)


def settled(view):
    busy = view.starting or view.draining or view.rolling or view.pending or view.backoff_until
    slots = {worker.slot for worker in view.workers}
    return not busy and view.ready == view.desired == len(slots)


def converges(seed):
    host = troubled(seed)
    host.heal()
    if host.view().stop is None:
        limit = bound(host.view())
        assert host.run_until(lambda: settled(host.view()), limit), host.view()
        host.send(events.Reload(host.pool.pool._state.policy))
        newest = host.view().newest_generation
        assert host.run_until(lambda: newest in host.pool.ended, limit), host.view()
        assert host.pool.ended[newest].outcome is ReloadOutcome.DONE
        assert host.run_until(lambda: settled(host.view()), limit), host.view()
        assert {worker.generation for worker in host.view().workers} == {newest}
        host.send(events.Stop(StopLevel.GRACEFUL))
    assert host.run_until(lambda: host.exit_code is not None, 12.0), host.view()


@pytest.mark.parametrize("chunk", range(10))
def test_with_healthy_workers_the_pool_converges_reloads_and_stops_from_any_state(chunk):
    """All desired get ready in slots of their own, a reload makes them one generation, a stop ends."""
    for seed in range(chunk * 25, chunk * 25 + 25):
        converges(seed)


def stops(seed):
    bounds = {StopLevel.GRACEFUL: 8.0 + 2.0, StopLevel.QUICK: 1.0 + 2.0, StopLevel.KILL: 0.0}
    host = troubled(seed)
    level = Random(seed).choice(list(StopLevel))
    host.send(events.Stop(level))
    limit = bounds[level] + 0.4  # a fork under way, the process dying
    assert host.run_until(lambda: host.exit_code is not None, limit), host.view()


@pytest.mark.parametrize("chunk", range(5))
def test_a_stop_ends_within_its_bounds_in_any_trouble(chunk):
    """Graceful within drain + kill bounds, quick within its own, kill at once, although workers go on misbehaving."""
    for seed in range(1000 + chunk * 25, 1025 + chunk * 25):
        stops(seed)


def reload_ends(seed):
    host = troubled(seed)
    if host.view().stop is not None:
        return
    host.send(events.Reload(policy_of(Random(seed), boot_attempts=3)))
    newest = host.view().newest_generation
    limit = 4 * bound(host.view())
    assert host.run_until(lambda: newest in host.pool.ended, limit), host.view()


@pytest.mark.parametrize("chunk", range(5))
def test_a_reload_ends_in_bounded_time_although_workers_go_on_failing(chunk):
    """Done, rolled back, partial or stopped: never for ever, however the workers behave."""
    for seed in range(2000 + chunk * 20, 2020 + chunk * 20):
        reload_ends(seed)
