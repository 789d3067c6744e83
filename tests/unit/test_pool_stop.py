"""Stop: three levels, each within its bounds."""

from __future__ import annotations

from sim.drive import OK, Drive, serving

from procmgr.arbiter.core import actions, events
from procmgr.arbiter.core.actions import DrainMode, KillReason, ReloadEnded, ReloadOutcome
from procmgr.arbiter.core.events import Exit, StopLevel

GRACEFUL, QUICK, KILL = events.Stop(StopLevel.GRACEFUL), events.Stop(StopLevel.QUICK), events.Stop(StopLevel.KILL)
KILLED = Exit(signal=9)


def test_a_graceful_stop_drains_all_and_finishes_when_the_last_is_gone():
    drive = serving(2)
    assert drive.send(GRACEFUL) == [
        actions.Stopping(StopLevel.GRACEFUL),
        actions.Drain(1, DrainMode.STOP, 90.0),
        actions.Drain(2, DrainMode.STOP, 90.0),
    ]
    drive.died(1)
    assert drive.of(actions.Finish) == []
    assert drive.of(actions.WorkerDied)[0].expected
    drive.died(2, Exit(signal=11))
    assert drive.of(actions.Finish) == [actions.Finish(0)]
    assert drive.of(actions.WorkerDied)[0].expected
    assert drive.pool.deadline() is None


def test_who_does_not_finish_draining_is_killed_after_the_grace():
    drive = serving(1, graceful_timeout=20.0, kill_grace=5.0)
    drive.send(GRACEFUL)
    drive.wait(24.9)
    assert drive.out == []
    drive.wait(0.1)
    assert drive.out == [actions.Kill(1, KillReason.DRAIN_TIMEOUT)]
    assert drive.wait(60) == []


def test_a_quick_stop_drains_quickly():
    drive = serving(1, quick_timeout=1.0)
    drive.send(QUICK)
    assert drive.of(actions.Drain) == [actions.Drain(1, DrainMode.QUICK, 61.0)]


def test_raising_a_graceful_stop_to_quick_hastens_who_drains_and_kill_ends_it():
    drive = serving(1)
    drive.send(GRACEFUL)
    assert drive.send(GRACEFUL) == []
    drive.wait(1)
    drive.send(QUICK)
    assert drive.out == [actions.Stopping(StopLevel.QUICK), actions.Drain(1, DrainMode.QUICK, 62.0)]
    assert drive.send(GRACEFUL) == []
    assert drive.send(KILL) == [actions.Stopping(StopLevel.KILL), actions.Kill(1, KillReason.STOPPING)]
    assert drive.send(KILL) == []


def test_a_stop_reaches_a_worker_that_retires_already_without_putting_off_its_deadline():
    drive = serving(2)
    drive.send(events.ScaleTo(1))
    drive.wait(10)
    drive.send(GRACEFUL)
    assert drive.of(actions.Drain) == [
        actions.Drain(1, DrainMode.STOP, 100.0),
        actions.Drain(2, DrainMode.STOP, 90.0),
    ]


def test_workers_that_boot_are_terminated_and_killed_if_they_ignore_it():
    drive = Drive(workers=1)
    drive.spawned(1)
    assert drive.send(GRACEFUL)[1:] == [actions.Terminate(1)]
    assert drive.send(QUICK)[1:] == []
    assert drive.send(events.Ready(1)) == []
    drive.wait(5)
    assert drive.out == [actions.Kill(1, KillReason.TERM_IGNORED)]


def test_a_fork_under_way_when_the_stop_comes_is_ended_once_it_is_reported():
    drive = Drive(workers=2)
    assert drive.send(GRACEFUL) == [actions.Stopping(StopLevel.GRACEFUL)]
    assert drive.spawned(1) == [actions.Terminate(1)]
    drive.died(1, Exit(signal=15))
    assert drive.send(events.SpawnFailed(2, "EAGAIN")) == [actions.Finish(0)]


def test_a_fork_under_way_when_the_stop_is_forced_is_killed_once_it_is_reported():
    drive = Drive(workers=1)
    assert drive.send(KILL) == [actions.Stopping(StopLevel.KILL)]
    assert drive.pool.deadline() is None
    assert drive.spawned(1) == [actions.Kill(1, KillReason.STOPPING)]


def test_a_stop_forces_who_was_terminated_or_dumped_already():
    drive = serving(2, beat_timeout=10.0)
    drive.send(events.ScaleTo(3))
    drive.spawned(3)
    drive.wait(5)
    drive.beat(1)
    drive.wait(5.1, beating=False)
    drive.send(GRACEFUL)
    drive.send(KILL)
    assert {kill.worker_id for kill in drive.of(actions.Kill)} >= {2, 3}


def test_nothing_is_spawned_and_no_wish_is_heard_after_a_stop():
    drive = serving(2)
    drive.send(GRACEFUL)
    drive.died(1, KILLED)
    assert drive.spawns() == []
    for wish in (events.Reload(drive.policy), events.ScaleBy(1), events.ScaleTo(5)):
        assert drive.send(wish) == []
    assert drive.view.newest_generation == 1
    assert drive.view.desired == 2


def test_a_stop_ends_the_reload_under_way_and_the_one_that_waits():
    drive = serving(1)
    for _ in range(3):
        drive.reload()
    drive.send(GRACEFUL)
    assert drive.of(ReloadEnded) == [
        ReloadEnded(3, ReloadOutcome.STOPPED, 0, 1, None, 1),
        ReloadEnded(4, ReloadOutcome.STOPPED, 0, 1, None),
    ]


def test_a_stop_during_back_off_finishes_at_once():
    drive = Drive(workers=1)
    drive.spawned(1)
    drive.died(1, KILLED)
    assert drive.send(GRACEFUL) == [actions.Stopping(StopLevel.GRACEFUL), actions.Finish(0)]


def test_a_stop_while_giving_up_keeps_the_reason():
    drive = Drive(workers=2, boot_attempts=1)
    drive.spawned(1, 2)
    drive.died(1, Exit(code=4))
    drive.send(QUICK)
    drive.died(2, OK)
    assert drive.of(actions.Finish) == [actions.Finish(4)]


def test_after_the_finish_nothing_is_answered():
    drive = Drive(workers=1)
    drive.send(GRACEFUL)
    drive.send(events.SpawnFailed(1, "EAGAIN"))
    assert drive.send(KILL) == []
    assert drive.send(events.Tick()) == []


def test_an_endless_graceful_time_is_no_deadline():
    drive = serving(1, graceful_timeout=float("inf"), beat_timeout=0.0)
    drive.send(GRACEFUL)
    assert drive.pool.deadline() is None
    assert drive.wait(10_000) == []


# -- the delay before a stop -----------------------------------------------------------------------------------------


def test_a_stop_with_a_delay_serves_on_and_begins_when_it_is_over():
    drive = serving(2, shutdown_delay=10.0)
    assert drive.send(GRACEFUL) == [actions.Leaving(10.0)]
    assert drive.pool.view().leaving
    assert drive.pool.view().ready == 2
    drive.wait(9.9)
    assert drive.out == []
    drive.wait(0.1)
    assert drive.of(actions.Stopping) == [actions.Stopping(StopLevel.GRACEFUL)]
    assert len(drive.of(actions.Drain)) == 2
    assert not drive.pool.view().leaving


def test_asking_again_does_not_put_the_stop_off():
    drive = serving(1, shutdown_delay=10.0)
    drive.send(GRACEFUL)
    drive.wait(6)
    assert drive.send(GRACEFUL) == []
    drive.wait(4)
    assert drive.of(actions.Stopping) == [actions.Stopping(StopLevel.GRACEFUL)]


def test_an_urgent_stop_does_not_wait_for_the_delay():
    drive = serving(1, shutdown_delay=10.0)
    drive.send(GRACEFUL)
    assert drive.send(QUICK)[0] == actions.Stopping(StopLevel.QUICK)
    assert drive.wait(0.5) == []


def test_nobody_waits_where_nobody_serves():
    drive = Drive(workers=1, shutdown_delay=10.0)
    assert drive.send(GRACEFUL)[0] == actions.Stopping(StopLevel.GRACEFUL)


def test_one_who_serves_is_reason_enough_to_wait():
    drive = serving(2, shutdown_delay=10.0)
    drive.wait(60)
    drive.died(1, Exit(signal=11))
    assert drive.pool.view().ready == 1
    assert drive.send(GRACEFUL) == [actions.Leaving(10.0)]


def test_the_end_of_the_delay_is_a_deadline():
    drive = serving(1, shutdown_delay=0.25)
    drive.send(GRACEFUL)
    assert drive.pool.deadline() == drive.now + 0.25


def test_who_dies_before_the_stop_begins_is_replaced():
    drive = serving(1, shutdown_delay=10.0)
    drive.wait(60)
    drive.send(GRACEFUL)
    drive.died(1, Exit(signal=11))
    assert len(drive.of(actions.Spawn)) == 1


def test_a_stop_that_waits_outlives_an_upgrade():
    drive = serving(1, shutdown_delay=10.0)
    drive.send(GRACEFUL)
    drive.pool.restore()
    assert drive.pool.view().leaving
    drive.wait(10)
    assert drive.of(actions.Stopping) == [actions.Stopping(StopLevel.GRACEFUL)]
