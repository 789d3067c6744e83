"""Boot, crash, back-off and giving up."""

from __future__ import annotations

import pytest
from sim.drive import OK, Drive, serving

from procmgr.arbiter.core import actions, events
from procmgr.arbiter.core.actions import KillReason
from procmgr.arbiter.core.events import BootFailure, Exit
from procmgr.arbiter.core.policy import MAX_WORKERS, Backoff, Policy

KILLED = Exit(signal=9)


def test_the_first_call_spawns_every_worker_in_slots_from_zero():
    drive = Drive(workers=3)
    assert drive.spawns() == [(1, 0, 1), (2, 1, 1), (3, 2, 1)]
    assert drive.out == drive.of(actions.Spawn)


def test_a_ready_worker_is_announced_with_the_time_since_its_fork():
    drive = Drive(workers=1)
    drive.now = 1.0
    drive.spawned(1)
    drive.now = 3.5
    assert drive.send(events.Ready(1)) == [actions.WorkerReady(1, 0, 1, 2.5), actions.PoolReady()]


def test_the_pool_is_ready_when_every_desired_worker_was_ready_once_though_one_died_since():
    drive = Drive(workers=2)
    drive.ready(1)
    drive.died(1, KILLED)
    assert not drive.view.pool_ready
    drive.ready(2)
    assert drive.of(actions.PoolReady) == [actions.PoolReady()]
    assert drive.view.pool_ready


def test_the_same_slot_ready_twice_does_not_make_the_pool_ready():
    drive = Drive(workers=2)
    drive.ready(1)
    drive.died(1, KILLED)
    drive.wait(1)
    drive.died(2, KILLED)
    drive.wait(1)
    drive.ready(3)
    assert not drive.view.pool_ready


def test_a_late_boot_gets_its_stacks_dumped_then_kill_and_counts_as_a_failure():
    drive = Drive(workers=1, boot_timeout=10.0, dump_grace=0.5)
    drive.now = 2.0
    drive.spawned(1)
    drive.wait(7.9)
    assert drive.out == []
    drive.wait(0.1)
    assert drive.of(actions.DumpStacks) == [actions.DumpStacks(1)]
    assert drive.view.failures == 1
    assert drive.of(actions.Kill) == []
    drive.wait(0.5)
    assert drive.of(actions.Kill) == [actions.Kill(1, KillReason.BOOT_TIMEOUT)]
    drive.died(1, KILLED)
    died = drive.of(actions.WorkerDied)[0]
    assert (died.killed, died.failure, died.expected) == (KillReason.BOOT_TIMEOUT, BootFailure.TIMED_OUT, True)
    assert drive.view.failures == 1


def test_what_a_fork_has_to_wait_for_counts_as_boot():
    drive = Drive(workers=1, boot_timeout=10.0)
    drive.wait(11)
    assert drive.out == [], "nobody can be killed before there is a process"
    drive.spawned(1)
    assert drive.of(actions.DumpStacks) == [actions.DumpStacks(1)]
    drive.wait(0.5)
    assert drive.of(actions.Kill) == [actions.Kill(1, KillReason.BOOT_TIMEOUT)]


def test_a_worker_whose_fork_waits_is_shown_as_starting():
    drive = Drive(workers=2)
    assert [(worker.state.value, worker.pid) for worker in drive.view.workers] == [("starting", None)] * 2


FAILED_FORKS = {
    BootFailure.REFUSED: 71,
    BootFailure.NOT_FOUND: 4,
    BootFailure.FAILED: 3,
    BootFailure.TIMED_OUT: 3,
}


@pytest.mark.parametrize("failure", FAILED_FORKS)
def test_the_reason_why_there_is_no_process_decides_the_exit_code(failure):
    drive = Drive(workers=2, boot_attempts=1)
    drive.send(events.SpawnFailed(1, "why", failure))
    assert drive.of(actions.GaveUp) == [actions.GaveUp(1, failure)]
    drive.send(events.SpawnFailed(2, "why", failure))
    assert drive.of(actions.Finish) == [actions.Finish(FAILED_FORKS[failure])]


def test_forks_that_fail_together_are_one_failure():
    drive = Drive(workers=8, boot_attempts=3)
    for worker_id in range(1, 9):
        drive.send(events.SpawnFailed(worker_id, "why", BootFailure.FAILED))
    assert drive.view.failures == 1
    drive.wait(1)
    assert drive.spawns() == [(9, 0, 1)], "one is tried"


def test_a_fork_that_fails_for_the_new_code_rolls_the_reload_back():
    drive = serving(2)
    drive.reload()
    drive.send(events.SpawnFailed(3, "why", BootFailure.NOT_FOUND))
    ended = drive.of(actions.ReloadEnded)[0]
    assert (ended.outcome, ended.failure) == (actions.ReloadOutcome.ROLLED_BACK, BootFailure.NOT_FOUND)
    assert drive.ids("ready") == [1, 2]


def test_ready_after_the_boot_deadline_does_not_save_a_worker():
    drive = Drive(workers=1, boot_timeout=10.0)
    drive.spawned(1)
    drive.wait(10)
    assert drive.send(events.Ready(1)) == []
    drive.wait(0.5)
    assert drive.of(actions.Kill)


def test_young_deaths_wait_longer_each_time_up_to_the_cap():
    drive = Drive(workers=1, boot_attempts=99, backoff=Backoff(first=0.5, cap=3.0))
    waits = []
    for worker_id in range(1, 6):
        drive.spawned(worker_id)
        drive.died(worker_id, Exit(code=3))
        waits += drive.of(actions.BackingOff)
        assert drive.spawns() == []
        drive.wait(waits[-1].seconds - 0.01)
        assert drive.spawns() == []
        drive.wait(0.02)
        assert drive.spawns() == [(worker_id + 1, 0, 1)]
    assert [(wait.seconds, wait.failures) for wait in waits] == [
        (pytest.approx(0.5), 1),
        (pytest.approx(1.0), 2),
        (pytest.approx(2.0), 3),
        (pytest.approx(3.0), 4),
        (pytest.approx(3.0), 5),
    ]


def test_jitter_shortens_a_wait_by_at_most_its_share():
    assert Backoff(first=1.0, jitter=0.25).delay(1, 1.0) == 0.75
    assert Backoff(first=1.0, jitter=0.25).delay(3, 0.5) == 4 * 0.875
    assert Backoff(first=1.0, cap=30.0, jitter=0).delay(5000, 0.0) == 30.0


def test_workers_that_fail_together_are_one_failure():
    drive = Drive(workers=4, boot_attempts=2)
    drive.spawned(1, 2, 3, 4)
    for worker_id in (1, 2, 3, 4):
        drive.died(worker_id, Exit(code=3))
    assert drive.view.failures == 1
    assert drive.view.stop is None


def test_after_a_failure_one_trial_boots_at_a_time_and_the_next_when_it_is_ready():
    drive = Drive(workers=3)
    drive.spawned(1, 2, 3)
    for worker_id in (1, 2, 3):
        drive.died(worker_id, Exit(code=3))
    drive.wait(0.5)
    assert drive.spawns() == [(4, 0, 1)]
    drive.spawned(4)
    drive.wait(5)
    assert drive.spawns() == []
    drive.ready(4)
    assert drive.spawns() == [(5, 1, 1)]


def test_a_trial_that_serves_long_enough_ends_the_row_and_all_may_boot():
    drive = Drive(workers=3, backoff=Backoff(stable_after=10.0))
    drive.spawned(1, 2, 3)
    for worker_id in (1, 2, 3):
        drive.died(worker_id, Exit(code=3))
    drive.wait(0.5)
    drive.ready(4)
    assert drive.spawns() == [(5, 1, 1)]
    drive.wait(9.9)
    assert drive.view.failures == 1
    drive.wait(0.1)
    assert drive.view.failures == 0
    assert drive.spawns() == [(6, 2, 1)]


def test_a_worker_older_than_the_failure_does_not_end_the_row():
    drive = Drive(workers=2)
    drive.ready(1, 2)
    drive.wait(5)
    drive.died(2, KILLED)
    drive.wait(0.5)
    drive.spawned(3)
    drive.wait(30)
    assert drive.view.failures == 1


def test_a_worker_that_had_served_is_replaced_at_once_in_its_slot():
    drive = serving(3)
    drive.died(2, KILLED)
    assert drive.spawns() == [(4, 1, 1)]
    died = drive.of(actions.WorkerDied)[0]
    assert (died.expected, died.was_ready, died.age_seconds, died.slot) == (False, True, 60.0, 1)


def test_the_first_worker_that_dies_soon_after_ready_is_replaced_at_once_the_next_with_back_off():
    drive = Drive(workers=1)
    drive.ready(1)
    drive.wait(9.9)
    drive.died(1, KILLED)
    assert drive.spawns() == [(2, 0, 1)]
    assert drive.of(actions.BackingOff) == []
    drive.ready(2)
    drive.wait(9.9)
    drive.died(2, KILLED)
    assert drive.spawns() == []
    assert drive.of(actions.BackingOff) == [actions.BackingOff(pytest.approx(1.0), 2)]


def test_exit_zero_of_a_serving_worker_is_a_death_like_any_other():
    drive = serving(1)
    drive.died(1, OK)
    assert drive.spawns() == [(2, 0, 1)]
    assert not drive.of(actions.WorkerDied)[0].expected


def test_the_death_of_one_that_had_served_cuts_a_wait_short_but_not_the_row():
    drive = serving(2)
    drive.died(1, KILLED)
    drive.spawned(3)
    drive.died(3, Exit(code=3))
    assert drive.view.backoff_until is not None
    drive.died(2, KILLED)
    assert len(drive.spawns()) == 1
    assert drive.view.failures == 1
    drive.died(4, Exit(code=3))
    assert drive.view.failures == 2


def test_a_trial_that_dies_the_moment_it_has_served_long_enough_ends_the_row():
    drive = Drive(workers=1, backoff=Backoff(stable_after=10.0))
    drive.spawned(1)
    drive.died(1, KILLED)
    drive.wait(1)
    drive.ready(2)
    drive.now += 10
    drive.died(2, KILLED)
    assert drive.view.failures == 0
    assert drive.spawns() == [(3, 0, 1)]


def test_the_age_of_a_dead_worker_counts_from_its_fork():
    drive = Drive(workers=1)
    drive.now = 3.0
    drive.spawned(1)
    drive.now = 5.0
    drive.died(1, KILLED)
    assert drive.of(actions.WorkerDied)[0].age_seconds == 2.0


def test_a_wait_is_reported_once_and_only_when_a_spawn_waits():
    drive = serving(2)
    drive.died(1, KILLED)
    drive.spawned(3)
    drive.died(3, Exit(code=3))
    assert len(drive.of(actions.BackingOff)) == 1
    assert drive.send(events.Tick()) == []
    drive.send(events.ScaleTo(1))
    assert drive.view.backoff_until is None


@pytest.mark.parametrize(
    ("told", "exit_", "code"),
    [
        (None, Exit(code=3), 3),
        (None, Exit(code=4), 4),
        (None, Exit(code=1), 3),
        (None, Exit(signal=11), 3),
        (BootFailure.NOT_FOUND, Exit(code=1), 4),
        (BootFailure.FAILED, Exit(code=4), 3),
    ],
)
def test_when_nothing_was_ever_ready_the_pool_gives_up_with_the_reason(told, exit_, code):
    drive = Drive(workers=1, boot_attempts=2)
    for worker_id in (1, 2):
        drive.spawned(worker_id)
        if told:
            drive.send(events.BootFailed(worker_id, told))
        drive.died(worker_id, exit_)
        if worker_id == 1:
            drive.wait(0.5)
    gave_up = drive.of(actions.GaveUp)[0]
    assert gave_up.attempts == 2
    assert gave_up.failure is (told or {3: BootFailure.FAILED, 4: BootFailure.NOT_FOUND}.get(exit_.code))
    assert drive.of(actions.WorkerDied)[0].failure is gave_up.failure
    assert drive.of(actions.Finish) == [actions.Finish(code)]
    assert drive.pool.deadline() is None


def test_giving_up_ends_what_still_boots_before_it_finishes():
    drive = Drive(workers=2, boot_attempts=1)
    drive.spawned(1, 2)
    drive.died(1, Exit(code=4))
    assert drive.of(actions.Terminate) == [actions.Terminate(2)]
    assert drive.of(actions.Finish) == []
    assert drive.view.gave_up
    drive.died(2, Exit(signal=15))
    assert drive.of(actions.Finish) == [actions.Finish(4)]


def test_once_something_was_ready_the_pool_never_gives_up():
    drive = Drive(workers=1, boot_attempts=1)
    drive.ready(1)
    drive.died(1, KILLED)
    for worker_id in range(2, 9):
        assert drive.spawns() == [(worker_id, 0, 1)]
        drive.died(worker_id, Exit(code=4))
        drive.wait(40)
    assert drive.view.stop is None


def test_a_refused_fork_waits_and_is_no_death():
    drive = serving(2)
    drive.died(1, KILLED)
    drive.send(events.SpawnFailed(3, "EAGAIN"))
    assert drive.out == [actions.BackingOff(0.5, 1)]
    drive.wait(0.5)
    assert drive.spawns() == [(4, 0, 1)]


def test_forks_that_are_always_refused_end_the_first_boot_with_an_os_error():
    drive = Drive(workers=2, boot_attempts=2)
    drive.send(events.SpawnFailed(1, "ENOMEM"))
    drive.send(events.SpawnFailed(2, "ENOMEM"))
    assert drive.of(actions.Finish) == []
    drive.wait(1)
    drive.send(events.SpawnFailed(3, "ENOMEM"))
    assert drive.of(actions.GaveUp) == [actions.GaveUp(2, BootFailure.REFUSED)]
    assert drive.of(actions.Finish) == [actions.Finish(71)]


def test_events_about_unknown_workers_are_nothing():
    drive = serving(1)
    for event in (
        events.Spawned(9, 1),
        events.SpawnFailed(9, ""),
        events.Ready(9),
        events.BootFailed(9, BootFailure.FAILED),
        events.Beats(((9, 1.0),)),
        events.Suspended(9),
        events.DrainBegun(9),
        events.RecycleDue(9, ""),
        events.Exited(9, OK),
    ):
        assert drive.send(event) == []


def test_a_fork_refused_after_it_was_reported_is_nothing():
    drive = serving(1)
    assert drive.send(events.SpawnFailed(1, "late")) == []
    assert drive.ids() == [1]


def test_scaling_up_takes_the_lowest_free_slots_and_is_bounded():
    drive = serving(2)
    drive.send(events.ScaleBy(2))
    assert drive.of(actions.Scaled) == [actions.Scaled(4)]
    assert drive.spawns() == [(3, 2, 1), (4, 3, 1)]
    drive.send(events.ScaleTo(10**9))
    assert drive.view.desired == MAX_WORKERS


def test_scaling_down_retires_the_highest_slot_and_never_below_one():
    drive = serving(3)
    drive.send(events.ScaleBy(-1))
    assert drive.of(actions.Drain) == [actions.Drain(3, actions.DrainMode.RETIRE, drive.now + 30.0)]
    drive.send(events.ScaleBy(-9))
    assert drive.view.desired == 1
    assert drive.ids("ready") == [1]
    assert drive.send(events.ScaleTo(0)) == []


def test_scaling_down_prefers_to_cancel_what_still_boots():
    drive = serving(3)
    drive.died(1, KILLED)
    drive.spawned(4)
    drive.send(events.ScaleBy(-1))
    assert drive.out == [actions.Scaled(2), actions.Terminate(4)]
    drive.wait(5)
    assert drive.of(actions.Kill) == [actions.Kill(4, KillReason.TERM_IGNORED)]


def test_a_worker_cancelled_while_its_fork_was_under_way_is_terminated_once_it_is_reported():
    drive = serving(1)
    drive.send(events.ScaleBy(1))
    assert drive.send(events.ScaleBy(-1)) == [actions.Scaled(1)]
    assert drive.spawned(2) == [actions.Terminate(2)]
    assert drive.died(2, Exit(signal=15))[0].expected


@pytest.mark.parametrize(
    "wrong",
    [
        {"workers": 0},
        {"workers": MAX_WORKERS + 1},
        {"surge": 0},
        {"boot_attempts": 0},
        {"boot_timeout": 0.0},
        {"boot_timeout": float("nan")},
        {"kill_grace": -1.0},
    ],
)
def test_a_policy_no_pool_can_run_by_is_refused(wrong):
    with pytest.raises(ValueError, match="workers"):
        Policy(**{"workers": 1} | wrong)


@pytest.mark.parametrize("wrong", [{"first": 0.0}, {"cap": 0.1}, {"jitter": 1.0}, {"stable_after": -1.0}])
def test_a_back_off_that_would_spin_is_refused(wrong):
    with pytest.raises(ValueError, match="back-off"):
        Backoff(**wrong)
