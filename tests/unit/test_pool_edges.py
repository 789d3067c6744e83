"""The edges: values at their bound, facts that come twice or out of their time, and what must not change.

Most of these were found by mutants of the pool that no other test noticed (tests/mutants.py).
"""

from __future__ import annotations

import json

import pytest
from sim.drive import Drive, serving

from procmgr.arbiter.core import actions, events
from procmgr.arbiter.core.actions import KillReason, ReloadEnded, ReloadOutcome
from procmgr.arbiter.core.events import BootFailure, Exit, StopLevel
from procmgr.arbiter.core.horizon import Occupation, Task, task
from procmgr.arbiter.core.model import Phase, Worker
from procmgr.arbiter.core.plan import Cohort, plan, slot_for
from procmgr.arbiter.core.policy import MAX_WORKERS, Backoff, Handover, Policy, bounded
from procmgr.arbiter.core.pool import Pool
from procmgr.arbiter.core.view import status_line

MIB = 1024 * 1024
KILLED = Exit(signal=9)


def view_of(drive, worker_id):
    return next(worker for worker in drive.view.workers if worker.worker_id == worker_id)


# Bounds of the numbers


@pytest.mark.parametrize(
    "changes",
    [
        {"workers": 1, "surge": 1, "boot_attempts": 1},
        {"workers": MAX_WORKERS},
        {"beat_timeout": 0.0, "graceful_timeout": 0.0, "quick_timeout": 0.0, "kill_grace": 0.0, "dump_grace": 0.0},
        {"core_grace": 0.0, "slow_loop": 0.0, "max_lifetime": 0.0, "max_lifetime_jitter": 0.0},
        {"max_memory": 0, "max_memory_hard": 0},
    ],
)
def test_a_policy_may_reach_its_bounds(changes):
    assert Policy(**{"workers": 2} | changes).workers >= 1


TIMES = ["beat_timeout", "graceful_timeout", "quick_timeout", "kill_grace", "dump_grace", "core_grace", "slow_loop"]
TIMES += ["max_lifetime", "max_lifetime_jitter", "boot_timeout", "beat_interval"]


@pytest.mark.parametrize("name", TIMES)
def test_no_time_of_a_policy_is_negative(name):
    with pytest.raises(ValueError, match="no other time is negative"):
        Policy(workers=1, **{name: -0.1})


@pytest.mark.parametrize("name", ["boot_timeout", "beat_interval"])
def test_what_is_waited_for_takes_some_time(name):
    with pytest.raises(ValueError, match="above 0"):
        Policy(workers=1, **{name: 0.0})
    assert Policy(workers=1, **{name: 0.1})


@pytest.mark.parametrize("name", ["max_memory", "max_memory_hard"])
def test_no_limit_of_memory_is_negative(name):
    with pytest.raises(ValueError, match="no limit of memory is negative"):
        Policy(workers=1, **{name: -1})


@pytest.mark.parametrize("name", ["workers", "surge", "boot_attempts"])
def test_what_is_counted_is_at_least_one(name):
    with pytest.raises(ValueError, match="at least 1"):
        Policy(**{"workers": 1} | {name: 0})


@pytest.mark.parametrize(
    "edge", [{"first": 1.0, "cap": 1.0}, {"jitter": 0.0}, {"jitter": 0.99}, {"stable_after": 0.0}, {"first": 0.001}]
)
def test_a_back_off_may_reach_its_bounds(edge):
    assert Backoff(**edge).delay(1, 0.0) > 0


def test_a_back_off_with_a_negative_jitter_is_refused():
    with pytest.raises(ValueError, match="back-off"):
        Backoff(jitter=-0.1)


def test_the_numbers_that_hold_unless_others_are_given():
    assert Backoff() == Backoff(first=0.5, cap=30.0, jitter=0.25, stable_after=10.0)
    assert Policy(workers=1) == Policy(
        workers=1,
        surge=1,
        boot_timeout=60.0,
        beat_timeout=30.0,
        graceful_timeout=30.0,
        quick_timeout=1.0,
        kill_grace=5.0,
        dump_grace=0.5,
        core_grace=0.0,
        beat_interval=1.0,
        slow_loop=0.0,
        max_lifetime=0.0,
        max_lifetime_jitter=0.0,
        max_memory=0,
        max_memory_hard=0,
        boot_attempts=3,
        refork=False,
        handover=Handover.ROLL,
        backoff=Backoff(),
    )


def test_a_wait_doubles_for_as_long_as_a_number_can():
    assert Backoff(first=1.0, cap=1e30).delay(65, 0.0) == 2.0**64
    assert Backoff(first=1.0, cap=1e30).delay(66, 0.0) == 2.0**64


def test_a_number_of_workers_is_brought_into_its_bounds():
    assert [bounded(number) for number in (-1, 0, 1, 2, 1000, 1001)] == [1, 1, 1, 2, 1000, 1000]


# Facts


@pytest.mark.parametrize(("ahead", "counts"), [(1.0, True), (1.1, False)])
def test_a_beat_may_be_newer_than_now_by_one_second(ahead, counts):
    drive = serving(1, beat_timeout=4.0)
    drive.now += 1.0
    drive.send(events.Beats(((1, drive.now + ahead),)))
    assert drive.pool.deadline() == (65.0 if counts else 64.0)


def test_a_failure_to_boot_that_is_said_by_a_ready_worker_or_before_it_was_ready_after_all_is_no_reason():
    drive = Drive(workers=2)
    drive.spawned(1, 2)
    drive.send(events.BootFailed(1, BootFailure.FAILED))
    drive.ready(1, 2)
    drive.send(events.BootFailed(2, BootFailure.FAILED))
    assert [drive.died(each, KILLED)[0].failure for each in (1, 2)] == [None, None]


def test_what_a_worker_said_of_its_boot_stands_though_it_never_ends():
    drive = Drive(workers=1, boot_timeout=10.0)
    drive.spawned(1)
    drive.send(events.BootFailed(1, BootFailure.NOT_FOUND))
    drive.wait(10.5)
    assert drive.died(1, KILLED)[0].failure is BootFailure.NOT_FOUND


def test_what_a_worker_said_of_its_boot_outweighs_its_exit_status():
    drive = Drive(workers=1)
    drive.spawned(1)
    drive.send(events.BootFailed(1, BootFailure.FAILED))
    assert drive.died(1, Exit(code=4))[0].failure is BootFailure.FAILED


def test_the_exit_status_of_a_worker_that_was_ready_says_nothing_of_its_boot():
    assert serving(1).died(1, Exit(code=4))[0].failure is None


def test_a_worker_that_nobody_killed_is_not_reported_as_killed():
    drive = serving(2)
    assert drive.died(1, Exit(signal=11))[0].killed is None
    drive.send(events.Stop(StopLevel.GRACEFUL))
    assert drive.died(2, Exit(code=0))[0].killed is None


def test_a_worker_on_its_way_out_is_not_recycled():
    drive = serving(2)
    drive.send(events.ScaleTo(1))
    assert drive.send(events.RecycleDue(2, "requests")) == []
    assert drive.send(events.RecycleDue(1, "requests"))[0] == actions.WorkerRecycled(1, 0, "requests")


def test_a_core_file_is_there_only_if_it_is_said():
    assert Exit(signal=6) == Exit(code=None, signal=6, core=False)


def test_a_second_ready_is_nothing():
    drive = serving(1)
    assert drive.send(events.Ready(1)) == []
    assert view_of(drive, 1).since == 0.0


def test_the_first_reason_of_two_that_come_together_is_told():
    drive = Drive(workers=1)
    drive.send(events.Suspended(1))
    drive.send(events.Stop(StopLevel.KILL))
    assert drive.spawned(1) == [actions.Kill(1, KillReason.SUSPENDED)]


def test_a_worker_is_on_its_way_out_since_the_first_reason():
    drive = serving(2, beat_timeout=10.0)
    drive.send(events.ScaleTo(1))
    began = drive.now
    drive.wait(5)
    drive.send(events.Stop(StopLevel.QUICK))
    drive.send(events.Suspended(2))
    assert view_of(drive, 2).since == began


def test_a_fork_cancelled_before_it_was_reported_is_on_its_way_out_since_then():
    drive = serving(1)
    drive.send(events.ScaleTo(2))
    drive.send(events.ScaleTo(1))
    began = drive.now
    drive.now += 1
    assert drive.spawned(2) == [actions.Terminate(2)]
    assert view_of(drive, 2).since == began


def test_nothing_is_sent_to_a_worker_that_was_killed():
    drive = serving(2, graceful_timeout=5.0, kill_grace=2.0, beat_timeout=0.0)
    drive.send(events.ScaleTo(1))
    drive.wait(7)
    assert drive.of(actions.Kill) == [actions.Kill(2, KillReason.DRAIN_TIMEOUT)]
    drive.send(events.Stop(StopLevel.QUICK))
    assert [drain.worker_id for drain in drive.of(actions.Drain)] == [1]


def test_a_worker_that_hangs_in_its_drain_hears_of_no_stricter_one():
    drive = serving(1, beat_timeout=10.0, graceful_timeout=60.0)
    drive.send(events.Stop(StopLevel.GRACEFUL))
    drive.wait(10, beating=False)
    assert drive.of(actions.DumpStacks) == [actions.DumpStacks(1)]
    assert drive.send(events.Stop(StopLevel.QUICK)) == [actions.Stopping(StopLevel.QUICK)]


def test_a_hung_worker_that_was_killed_is_not_aborted_any_more():
    drive = serving(1, beat_timeout=10.0, dump_grace=0.5, core_grace=10.0)
    drive.wait(10, beating=False)
    drive.send(events.Stop(StopLevel.KILL))
    assert drive.of(actions.Kill)
    assert drive.wait(2, beating=False) == []


def test_a_stop_waits_for_no_back_off():
    drive = serving(2, beat_timeout=0.0, graceful_timeout=float("inf"))
    drive.died(1, KILLED)
    drive.spawned(3)
    drive.died(3, Exit(code=3))
    assert drive.pool.deadline() is not None
    drive.send(events.Stop(StopLevel.GRACEFUL))
    assert drive.pool.deadline() is None


# Memory


def test_the_reason_of_a_recycle_for_memory_is_told_in_mebibytes():
    drive = serving(1, max_memory=1000 * MIB)
    drive.send(events.Measured(1, 500 * MIB))
    drive.send(events.Measured(1, 1500 * MIB))
    assert drive.of(actions.WorkerRecycled)[0].reason == "it uses 1500.0 MiB, max_memory is 1000.0 MiB"


def test_a_fresh_worker_at_its_limit_is_below_it():
    drive = serving(1, max_memory=100)
    assert drive.send(events.Measured(1, 100)) == []
    drive.send(events.Measured(1, 101))
    assert drive.of(actions.WorkerRecycled)


def test_a_worker_at_the_hard_limit_lives():
    drive = serving(1, max_memory_hard=200)
    assert drive.send(events.Measured(1, 200)) == []
    assert actions.Kill(1, KillReason.MEMORY) in drive.send(events.Measured(1, 201))


def test_without_a_limit_no_memory_is_too_much():
    drive = serving(1)
    assert drive.send(events.Measured(1, 10)) + drive.send(events.Measured(1, 10**15)) == []


# The row of young deaths


def test_a_worker_that_left_before_it_had_served_long_enough_does_not_end_the_row():
    drive = Drive(workers=1, backoff=Backoff(stable_after=10.0))
    drive.spawned(1)
    drive.died(1, KILLED)
    drive.wait(1)
    drive.ready(2)
    drive.send(events.RecycleDue(2, "requests"))
    drive.wait(5)
    drive.ready(3)
    assert drive.ids("draining") == [2]
    drive.wait(6)
    assert drive.view.failures == 1
    drive.wait(4)
    assert drive.view.failures == 0


def test_the_pool_wakes_when_a_trial_has_served_long_enough():
    drive = Drive(workers=1, beat_timeout=0.0, backoff=Backoff(stable_after=3.0))
    drive.spawned(1)
    drive.died(1, KILLED)
    drive.wait(1)
    drive.ready(2)
    assert drive.pool.deadline() == drive.now + 3.0


def test_a_worker_that_hangs_while_it_retires_is_no_failure():
    drive = Drive(workers=2, beat_timeout=5.0)
    drive.ready(1, 2)
    drive.send(events.ScaleTo(1))
    while actions.DumpStacks(2) not in drive.out:
        drive.now += 0.5
        drive.beat(2)
    assert drive.view.failures == 0


def test_a_worker_that_is_stopped_while_it_retires_is_no_failure():
    drive = Drive(workers=2)
    drive.ready(1, 2)
    drive.send(events.ScaleTo(1))
    assert drive.send(events.Suspended(2)) == [actions.Kill(2, KillReason.SUSPENDED)]
    assert drive.view.failures == 0


def test_a_pool_that_has_not_begun_waits_for_nothing():
    pool = Pool(Policy(workers=1), now=0.0, random=lambda: 0.5)
    assert (pool.view().backoff_until, pool.deadline()) == (None, None)


def test_the_horizon_of_a_start_has_every_boot_and_every_whole_wait_in_it():
    policy = Policy(workers=1, boot_timeout=10.0, dump_grace=1.0, kill_grace=2.0, boot_attempts=3)
    assert task(Drive(workers=1).view, policy) == Task(Occupation.STARTING, 0, 3 * 13.0 + 0.5 + 1.0)


def test_after_a_row_that_ended_the_next_begins_from_the_start():
    drive = Drive(workers=1, boot_attempts=9)
    for worker_id in (1, 2):
        drive.spawned(worker_id)
        drive.died(worker_id, Exit(code=3))
        drive.wait(5)
    drive.ready(3)
    drive.wait(20)
    drive.died(3, KILLED)
    assert drive.spawns() == [(4, 0, 1)]
    drive.spawned(4)
    drive.died(4, Exit(code=3))
    assert drive.of(actions.BackingOff) == [actions.BackingOff(0.5, 1)]


# Reloads


def test_the_loss_of_an_old_worker_is_no_setback_of_a_roll():
    drive = serving(2)
    drive.reload()
    drive.died(2, KILLED)
    assert drive.of(ReloadEnded) == []
    assert drive.view.rolling == 2


def test_a_reload_waits_no_longer_than_a_boot_may_be_discarded_again():
    drive = serving(1, boot_timeout=20.0, beat_timeout=0.0)
    drive.reload(boot_timeout=50.0)
    drive.reload()
    drive.spawned(2, 3)
    drive.reload()
    drive.wait(17)
    assert drive.view.pending == 4
    assert drive.pool.deadline() == 80.0
    drive.now = 80.0
    assert actions.ReloadBegun(4) in drive.send(events.Tick())


def test_a_boot_beyond_the_desired_number_holds_no_reload_up_before_the_commit():
    drive = serving(2, surge=2)
    drive.reload()
    drive.ready(3)
    assert drive.view.ready == 3
    assert actions.ReloadBegun(3) in drive.reload()


def test_setbacks_are_counted_from_none():
    drive = serving(2, boot_attempts=2)
    drive.reload()
    drive.died(1, KILLED)
    drive.ready(3)
    assert drive.of(actions.Drain) == [], "nobody was retired, which would begin the count anew"
    newest = drive.spawns()[0][0]
    drive.spawned(newest)
    drive.died(newest, Exit(code=3))
    assert drive.view.rolling == 2


def test_a_pool_that_was_never_ready_gives_up_rather_than_call_a_reload_partial():
    drive = Drive(workers=1, boot_attempts=1)
    drive.reload()
    drive.spawned(2)
    drive.died(2, Exit(code=3))
    assert [ended.outcome for ended in drive.of(ReloadEnded)] == [ReloadOutcome.STOPPED]
    assert drive.view.gave_up


def test_a_new_worker_that_dies_before_the_commit_rolls_back_however_long_it_had_served():
    drive = serving(2, surge=2)
    drive.reload()
    drive.ready(3)
    drive.wait(30)
    drive.died(3, KILLED)
    assert [ended.outcome for ended in drive.of(ReloadEnded)] == [ReloadOutcome.ROLLED_BACK]


def test_when_all_boots_time_out_at_once_the_pool_gives_up_once():
    drive = Drive(workers=3, boot_attempts=1, boot_timeout=10.0)
    drive.spawned(1, 2, 3)
    drive.wait(10)
    assert drive.of(actions.GaveUp) == [actions.GaveUp(1, BootFailure.TIMED_OUT)]


def test_there_is_no_falling_back_upon_what_was_never_ready():
    drive = Drive(workers=1, refork=True, boot_attempts=3)
    drive.reload()
    drive.spawned(2)
    drive.died(2, Exit(code=3))
    assert (drive.view.rolling, drive.view.generation) == (2, 2)


def test_a_replacement_that_boots_is_not_what_a_reload_discards():
    drive = serving(2)
    drive.died(1, KILLED)
    drive.spawned(3)
    assert actions.ReloadBegun(2) in drive.reload()
    assert actions.ReloadBegun(3) in drive.reload(), "this is the first boot that is discarded"


# Who is counted, and under which policy


def test_a_rollback_ends_what_boots_of_the_new_generation_and_nothing_of_the_old():
    drive = serving(3, surge=2)
    drive.reload()
    drive.died(3, KILLED)
    drive.spawned(4, 5, 6)
    assert drive.ids("starting") == [4, 5, 6]
    drive.died(4, Exit(code=3))
    assert drive.of(actions.Terminate) == [actions.Terminate(5)]
    assert drive.ids("starting") == [6]


def test_after_a_partial_reload_what_boots_for_a_slot_that_is_served_is_ended():
    drive = serving(3, surge=2)
    drive.reload(boot_attempts=1)
    drive.ready(4)
    drive.spawned(5, 6)
    drive.died(5, Exit(code=3))
    assert [ended.outcome for ended in drive.of(ReloadEnded)] == [ReloadOutcome.PARTIAL]
    assert drive.of(actions.Terminate) == [actions.Terminate(6)]


def test_of_two_that_serve_in_one_slot_the_older_goes_once_there_is_room_to_drain():
    drive = serving(3, surge=2, graceful_timeout=1000.0)
    drive.reload()
    drive.ready(4, 5, 6)
    assert drive.ids("draining") == [1, 2, 3]
    drive.reload(boot_attempts=1)
    drive.ready(7)
    drive.spawned(8)
    drive.died(8, Exit(code=3))
    assert [ended.outcome for ended in drive.of(ReloadEnded)] == [ReloadOutcome.PARTIAL]
    assert drive.of(actions.Drain) == []
    drive.died(1)
    assert [drain.worker_id for drain in drive.of(actions.Drain)] == [4]


def test_an_empty_slot_is_filled_before_one_whose_worker_is_due():
    drive = serving(2)
    drive.died(2, KILLED)
    drive.spawned(3)
    drive.died(3, Exit(code=3))
    drive.send(events.RecycleDue(1, "requests"))
    assert drive.spawns() == []
    drive.wait(drive.view.backoff_until - drive.now)
    assert drive.spawns() == [(4, 1, 1)]


def test_what_is_spawned_for_the_old_generation_during_a_roll_boots_under_the_old_policy():
    drive = serving(2, boot_timeout=20.0, beat_timeout=0.0)
    drive.reload(boot_timeout=50.0)
    drive.spawned(3)
    drive.died(2, KILLED)
    drive.spawned(4)
    drive.wait(20)
    assert drive.of(actions.DumpStacks) == [actions.DumpStacks(4)]


def test_a_worker_that_drains_when_its_fork_is_reported_is_left_to_it():
    drive = Drive(workers=1)
    drive.send(events.Ready(1))
    assert drive.send(events.Stop(StopLevel.GRACEFUL))[-1] == actions.Drain(1, actions.DrainMode.STOP, 30.0)
    assert drive.spawned(1) == []


def test_the_failed_fork_of_a_worker_that_was_cancelled_is_no_failure():
    drive = serving(1)
    drive.send(events.ScaleBy(1))
    drive.send(events.ScaleBy(-1))
    drive.send(events.SpawnFailed(2, "EAGAIN"))
    assert (drive.view.failures, drive.view.backoff_until) == (0, None)


def test_in_a_stop_nothing_waits_for_a_back_off():
    drive = Drive(workers=2)
    drive.ready(1)
    drive.spawned(2)
    drive.died(2, Exit(code=3))
    assert drive.view.backoff_until is not None
    drive.send(events.Stop(StopLevel.GRACEFUL))
    assert (drive.view.backoff_until, drive.view.backoff_seconds) == (None, None)


def test_a_row_that_begins_with_a_worker_that_was_ready_begins_without_a_wait_whatever_the_last_one_waited():
    drive = serving(2)
    drive.died(2, KILLED)
    drive.spawned(3)
    drive.died(3, Exit(code=3))
    drive.wait(drive.view.backoff_until - drive.now)
    drive.ready(4)
    drive.wait(20)
    assert drive.view.failures == 0
    drive.send(events.RecycleDue(1, "requests"))
    drive.ready(5)
    drive.died(5, KILLED)
    assert drive.view.failures == 1
    assert drive.spawns() == [(6, 0, 1)]


def test_a_reload_that_has_nothing_booting_may_be_overtaken_although_the_old_generation_boots():
    drive = serving(2)
    drive.died(2, KILLED)
    drive.spawned(3)
    drive.died(3, Exit(code=3))
    drive.wait(drive.view.backoff_until - drive.now)
    assert drive.spawns() == [(4, 1, 1)]
    for generation in (2, 3, 4):
        assert actions.ReloadBegun(generation) in drive.reload()


def test_a_worker_that_says_it_drains_when_it_was_told_to_is_no_loss():
    drive = Drive(workers=2)
    drive.ready(1, 2)
    drive.send(events.ScaleTo(1))
    assert drive.send(events.DrainBegun(2)) == []
    assert drive.view.failures == 0


def test_a_reload_that_waits_for_drains_does_not_wake_the_pool_when_it_might_discard_a_boot():
    drive = serving(1, boot_timeout=20.0, beat_timeout=0.0, graceful_timeout=1000.0)
    drive.reload()
    drive.reload()
    drive.ready(3)
    drive.reload()
    drive.ready(4)
    drive.reload()
    assert (drive.view.rolling, drive.view.pending) == (4, 5)
    drive.now = 80.0
    drive.send(events.Tick())
    assert drive.pool.deadline() > 80.0


def test_a_reload_whose_workers_wait_for_a_back_off_has_no_boot_that_could_be_discarded():
    drive = serving(2, boot_timeout=60.0)
    drive.reload()
    drive.reload()
    drive.ready(4)
    drive.spawned(5)
    drive.died(5, Exit(code=3))
    assert (drive.view.rolling, drive.ids("starting")) == (3, [])
    assert actions.ReloadBegun(4) in drive.reload()


# Time


def test_a_clock_jump_moves_the_deadline_of_a_drain_that_becomes_stricter():
    drive = serving(2, graceful_timeout=20.0)
    drive.send(events.ScaleTo(1))
    drive.wait(5)
    drive.now += 100
    drive.send(events.Tick())
    drive.send(events.Stop(StopLevel.GRACEFUL))
    assert next(drain.deadline for drain in drive.of(actions.Drain) if drain.worker_id == 2) == drive.now + 15


def test_a_clock_jump_moves_the_time_of_a_core_file():
    drive = serving(1, beat_timeout=10.0, dump_grace=0.5, core_grace=10.0)
    drive.wait(10, beating=False)
    drive.now += 100
    assert drive.of(actions.Abort) == []
    drive.send(events.Tick())
    assert drive.of(actions.Abort) == []
    drive.wait(0.5, beating=False)
    assert drive.of(actions.Abort) == [actions.Abort(1)]


def test_a_loop_that_is_found_hung_at_this_moment_is_not_called_late_as_well():
    drive = serving(1, slow_loop=1.95, beat_timeout=3.0)
    drive.now += 3.0
    assert drive.send(events.Tick())[0] == actions.DumpStacks(1)
    drive = serving(1, slow_loop=1.95, beat_timeout=3.0)
    drive.now += 3.0
    assert drive.beat(1)[0] == actions.DumpStacks(1)


def test_the_excuse_of_a_late_arbiter_lasts_half_a_second():
    drive = serving(1, slow_loop=1.0)
    drive.now = drive.pool.deadline() + 0.3
    drive.beat(1)
    assert drive.pool.deadline() == pytest.approx(drive.now + 0.5)


def test_an_arbiter_that_is_late_by_a_tenth_of_a_second_excuses_nobody():
    drive = serving(1, slow_loop=1.0)
    drive.now = drive.pool.deadline() + 0.09
    assert drive.beat(1) == [actions.LoopLate(1, pytest.approx(1.09))]


def test_a_loop_that_blocks_before_its_first_beat_is_late():
    drive = Drive(workers=1, slow_loop=1.0)
    drive.ready(1)
    drive.now = 2.0
    assert drive.beat(1) == [actions.LoopLate(1, 1.0)]


def test_a_worker_that_was_killed_is_not_called_late():
    drive = serving(1, slow_loop=5.0, beat_timeout=0.0, graceful_timeout=1.0, kill_grace=1.0)
    drive.send(events.Stop(StopLevel.GRACEFUL))
    said = []
    for _ in range(20):
        drive.now += 0.5
        said += drive.beat(1)
    assert said == [actions.Kill(1, KillReason.DRAIN_TIMEOUT)]


# What is shown and kept


def test_an_upgrade_stands_at_the_end_of_the_line_until_a_stop():
    drive = serving(1)
    assert status_line(drive.view, "upgrade refused") == "1/1 workers ready, generation 1; upgrade refused"
    drive.send(events.Stop(StopLevel.GRACEFUL))
    assert status_line(drive.view, "upgrade refused") == "stopping, 1 worker draining"


def test_the_line_of_a_wait_comes_before_that_of_a_rollback():
    drive = serving(1)
    drive.reload()
    drive.died(2, Exit(code=3))
    drive.send(events.RecycleDue(1, "requests"))
    assert status_line(drive.view) == "1/1 workers ready, backing off 0.5 s after 1 early death"


def test_the_line_of_a_roll_says_that_nobody_is_ready():
    drive = serving(1)
    drive.reload()
    drive.died(1, KILLED)
    assert status_line(drive.view) == "0/1 workers ready, rolling to generation 2"


def test_a_snapshot_is_plain_and_has_nothing_of_the_moment():
    written = serving(2).pool.pool.snapshot()
    assert json.loads(json.dumps(written, allow_nan=False)) == written
    assert {"random", "out"}.isdisjoint(written)


# The plan, on cohorts that no event brings about


def worker(worker_id, *, slot=0, generation=1, phase=Phase.READY):
    return Worker(
        worker_id=worker_id, slot=slot, generation=generation, boot_deadline=60.0, born=0.0, since=0.0, phase=phase
    )


def cohort(members, *, wanted, extra=1, outdated=()):
    return Cohort(generation=2, wanted=wanted, extra=extra, members=members, outdated=frozenset(outdated))


def test_of_those_that_boot_the_oldest_generation_the_highest_slot_and_the_newest_are_too_many_first():
    old = worker(9, generation=1, slot=0, phase=Phase.STARTING)
    high = worker(3, generation=2, slot=5, phase=Phase.STARTING)
    newer = worker(8, generation=2, slot=1, phase=Phase.STARTING)
    older = worker(7, generation=2, slot=1, phase=Phase.STARTING)
    for wanted, gone in ((3, [old]), (2, [old, high]), (1, [old, high, newer])):
        assert plan(cohort([older, newer, high, old], wanted=wanted), room=9).cancel == gone


def test_of_those_that_serve_the_outdated_whose_slot_is_taken_go_first():
    free = worker(1, slot=1)
    taken = worker(2, slot=0)
    successor = worker(3, slot=0, generation=2)
    served = [free, taken, successor]
    assert plan(cohort(served, wanted=2, outdated=[free, taken]), room=9).retire == [taken]
    assert plan(cohort(served, wanted=1, outdated=[free, taken]), room=9).retire == [taken, free]


def test_of_equals_the_highest_slot_and_the_newest_goes_first():
    low, high = worker(1, slot=0), worker(2, slot=1)
    twin = worker(3, slot=1)
    assert plan(cohort([low, high, twin], wanted=2), room=9).retire == [twin]
    assert plan(cohort([low, high, twin], wanted=1), room=9).retire == [twin, high]


def test_outdated_ones_retire_no_further_than_there_is_room_to_drain():
    members = [worker(each, slot=each) for each in range(4)]
    members += [worker(each, slot=each - 4, generation=2) for each in range(4, 8)]
    retire = [
        len(plan(cohort(members, wanted=4, extra=1, outdated=members[:4]), room=room).retire) for room in (0, 3, 9)
    ]
    assert retire == [3, 3, 4]


def test_the_missing_are_what_is_wanted_and_may_be_there():
    old = [worker(each, slot=each) for each in range(3)]
    assert plan(cohort(old, wanted=3, extra=1, outdated=old), room=9).missing == 1
    assert plan(cohort(old, wanted=3, extra=2, outdated=old), room=9).missing == 2
    assert plan(cohort(old, wanted=5, extra=1), room=9).missing == 2
    assert plan(cohort(old, wanted=2, extra=1), room=9).missing == 0


def test_who_is_to_retire_leaves_its_place_to_who_is_missing():
    old, new = [worker(1, slot=0), worker(2, slot=1)], worker(3, slot=0, generation=2)
    todo = plan(cohort([*old, new], wanted=2, extra=1, outdated=old), room=9)
    assert (todo.retire, todo.missing) == ([old[0]], 1)


def test_a_slot_is_the_lowest_free_one_else_that_of_the_first_to_be_replaced():
    old = [worker(each, slot=each) for each in range(3)]
    assert slot_for(cohort(old, wanted=4), old) == 3
    assert slot_for(cohort(old, wanted=3, outdated=old[1:]), old) == 1
    assert slot_for(cohort(old, wanted=3), old) == 3
