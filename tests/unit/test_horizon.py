"""How long the pool's work may take: finite, generous, and one bound for one piece of work."""

from dataclasses import replace

import pytest

from procmgr.arbiter.core.events import Ready, Reload, Spawned, Stop, StopLevel, Tick
from procmgr.arbiter.core.horizon import Occupation, Task, task
from procmgr.arbiter.core.policy import Policy
from procmgr.arbiter.core.pool import Pool

POLICY = Policy(workers=4, surge=2, boot_timeout=10.0, graceful_timeout=20.0, kill_grace=5.0, boot_attempts=3)


@pytest.fixture
def pool():
    made = Pool(POLICY, now=0.0, random=lambda: 0.0)
    made.handle(Tick(), 0.0)
    for worker_id in range(1, POLICY.workers + 1):
        made.handle(Spawned(worker_id, 100 + worker_id), 0.0)
        made.handle(Ready(worker_id), 0.0)
    return made


def test_a_settled_pool_has_no_task(pool):
    assert pool.view().pool_ready
    assert task(pool.view(), POLICY) is None


def test_a_start_takes_no_longer_than_all_its_attempts():
    pool = Pool(POLICY, now=0.0, random=lambda: 0.0)
    found = task(pool.view(), POLICY)
    assert found.occupation is Occupation.STARTING
    assert 3 * POLICY.boot_timeout < found.seconds < 3 * (POLICY.boot_timeout + POLICY.kill_grace) + 10


def test_a_roll_takes_as_many_starts_as_it_has_steps(pool):
    pool.handle(Reload(POLICY), 1.0)
    found = task(pool.view(), POLICY)
    assert (found.occupation, found.number) == (Occupation.ROLLING, 2)
    assert found.seconds == 2 * task(Pool(POLICY, now=0.0, random=lambda: 0.0).view(), POLICY).seconds


def test_every_reload_is_a_task_of_its_own(pool):
    pool.handle(Reload(POLICY), 1.0)
    first = task(pool.view(), POLICY)
    pool.handle(Reload(POLICY), 2.0)
    assert task(pool.view(), POLICY) != first


def test_leaving_is_one_task_that_takes_the_delay_and_a_little(pool):
    policy = replace(POLICY, shutdown_delay=7.0)
    leaving = replace(pool.view(), leaving=True)
    assert task(leaving, policy) == Task(Occupation.LEAVING, 0, 12.0)


@pytest.mark.parametrize(
    ("level", "seconds"), [(StopLevel.GRACEFUL, 25.0), (StopLevel.QUICK, 6.0), (StopLevel.KILL, 5.0)]
)
def test_a_stop_takes_the_drain_and_the_kill(pool, level, seconds):
    pool.handle(Stop(level), 1.0)
    found = task(pool.view(), POLICY)
    assert (found.occupation, found.seconds) == (Occupation.STOPPING, seconds)
