"""Reload under `Handover.HOLD`, for development: nobody is served by old code while newer code is on its way."""

from __future__ import annotations

from sim.drive import Drive
from sim.drive import serving as _serving
from sim.host import Host, Script

from procmgr.arbiter.core import actions, events
from procmgr.arbiter.core.actions import DrainMode, ReloadEnded, ReloadOutcome
from procmgr.arbiter.core.events import BootFailure, Exit, StopLevel
from procmgr.arbiter.core.policy import Handover, Policy

FAILED = Exit(code=4)


def serving(workers=1, **policy):
    return _serving(workers, surge=workers, handover=Handover.HOLD, **policy)


def test_the_old_worker_is_paused_before_the_new_one_is_forked():
    drive = serving()
    assert drive.reload() == [actions.ReloadBegun(2), actions.Pause(1), actions.Spawn(2, 0, 2)]


def test_the_old_worker_goes_within_a_second_once_the_new_one_is_ready():
    drive = serving(graceful_timeout=30.0)
    drive.reload()
    drive.ready(2)
    assert drive.of(actions.Drain) == [actions.Drain(1, DrainMode.RETIRE, drive.now + drive.policy.quick_timeout)]
    assert drive.of(actions.Resume) == []
    assert drive.of(ReloadEnded)[0].outcome is ReloadOutcome.DONE


def test_the_old_worker_resumes_when_the_new_one_fails():
    drive = serving()
    drive.reload()
    drive.spawned(2)
    drive.send(events.BootFailed(2, BootFailure.NOT_FOUND))
    drive.died(2, FAILED)
    assert drive.of(ReloadEnded)[0].outcome is ReloadOutcome.ROLLED_BACK
    assert drive.of(actions.Resume) == [actions.Resume(1)]
    assert drive.reload()[:2] == [actions.ReloadBegun(3), actions.Pause(1)]


def test_with_several_workers_all_wait_until_all_of_the_new_are_ready():
    drive = serving(2)
    drive.reload()
    assert [action.worker_id for action in drive.of(actions.Pause)] == [1, 2]
    drive.ready(3)
    assert drive.of(actions.Drain) == []
    drive.ready(4)
    assert {action.worker_id for action in drive.of(actions.Drain)} == {1, 2}


def test_each_save_during_a_boot_starts_over_at_once_and_ends_what_boots():
    drive = serving(boot_timeout=60.0)
    for generation in range(2, 8):
        drive.reload()
        assert drive.view.rolling == generation
        drive.spawned(generation)
        drive.wait(0.3)
    assert drive.ids("starting") == [7]
    drive.ready(7)
    assert drive.of(ReloadEnded)[0].outcome is ReloadOutcome.DONE


def test_what_became_ready_while_newer_code_waits_for_drains_to_end_is_paused():
    drive = serving()
    drive.reload()
    drive.ready(2)  # 1 drains
    drive.reload()
    drive.ready(3)  # 2 is not retired before 1 is gone
    assert drive.view.rolling == 3
    drive.reload()
    assert drive.of(actions.Pause) == [actions.Pause(3)]
    assert drive.view.pending == 4
    drive.died(1)
    assert [action.worker_id for action in drive.of(actions.Drain)] == [2]
    assert drive.spawns() == [(4, 0, 4)]


def test_a_worker_that_is_ready_only_after_the_save_is_paused_too():
    drive = serving(2)
    drive.died(2, Exit(signal=9))
    drive.reload()
    drive.ready(3)
    assert drive.of(actions.Pause) == [actions.Pause(3)]


def test_a_stop_during_a_reload_resumes_nobody():
    drive = serving()
    drive.reload()
    drive.spawned(2)
    drive.send(events.Stop(StopLevel.QUICK))
    assert drive.of(actions.Resume) == []
    assert [type(action) for action in drive.out[-2:]] == [actions.Drain, actions.Terminate]


def test_it_never_gives_up_and_a_save_ends_the_wait():
    drive = Drive(workers=1, handover=Handover.HOLD, boot_attempts=1)
    for worker_id in range(1, 6):
        drive.died(worker_id, FAILED)
        drive.wait(40)
    assert drive.view.stop is None
    drive.died(6, FAILED)
    assert drive.view.backoff_until
    drive.reload()
    assert drive.spawns() == [(7, 0, 2)]


def test_a_reload_ends_although_nothing_was_ever_ready():
    drive = Drive(workers=1, handover=Handover.HOLD, boot_attempts=1)
    drive.died(1, FAILED)
    drive.reload()
    drive.died(2, FAILED)
    assert drive.of(ReloadEnded) == [ReloadEnded(2, ReloadOutcome.PARTIAL, 0, 1, BootFailure.NOT_FOUND)]


def test_held_code_that_is_terminated_from_outside_hears_how_little_time_it_has():
    drive = serving(graceful_timeout=30.0, quick_timeout=1.0)
    drive.reload()
    drive.send(events.DrainBegun(1))
    assert drive.of(actions.Drain) == [actions.Drain(1, DrainMode.RETIRE, drive.now + 1.0)]


def test_recycling_and_scaling_pause_nobody_and_give_the_whole_time():
    drive = serving(graceful_timeout=30.0)
    drive.send(events.RecycleDue(1, "requests"))
    drive.ready(2)
    assert drive.of(actions.Drain) == [actions.Drain(1, DrainMode.RETIRE, drive.now + 30)]
    assert drive.of(actions.Pause) == []


def test_saves_faster_than_drains_leave_one_worker_of_the_newest_code():
    policy = Policy(workers=1, handover=Handover.HOLD)
    host = Host(policy, script=lambda spawn: Script(boot=0.5, drain=30.0))
    host.run(10)
    for _ in range(50):
        host.send(events.Reload(policy))
        host.run(0.3)
    host.run(20)
    assert [worker.generation for worker in host.view().workers] == [51]
