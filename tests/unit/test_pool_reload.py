"""Reload and recycle: replace first, then retire."""

from __future__ import annotations

import pytest
from sim.drive import Drive, serving
from sim.host import HEALTHY, Host, Script

from procmgr.arbiter.core import actions, events
from procmgr.arbiter.core.actions import DrainMode, ReloadEnded, ReloadOutcome
from procmgr.arbiter.core.events import BootFailure, Exit
from procmgr.arbiter.core.policy import Policy

FAILED = Exit(code=3)


def test_a_reload_starts_one_waits_until_it_is_ready_and_only_then_retires_the_old_of_its_slot():
    drive = serving(2)
    assert drive.reload() == [actions.ReloadBegun(2), actions.Spawn(3, 0, 2)]
    drive.spawned(3)
    assert drive.wait(30) == []
    drive.ready(3)
    assert drive.of(actions.Drain) == [actions.Drain(1, DrainMode.RETIRE, drive.now + 30)]
    assert drive.spawns() == [(4, 1, 2)]
    drive.ready(4)
    assert drive.of(ReloadEnded) == [ReloadEnded(2, ReloadOutcome.DONE, 2, 2, None)]
    assert drive.of(actions.Drain)[0].worker_id == 2
    assert drive.ids("ready") == [3, 4]


def test_a_reload_with_a_surge_starts_that_many():
    drive = serving(4, surge=2)
    drive.reload()
    assert drive.spawns() == [(5, 0, 2), (6, 1, 2)]
    drive.ready(6)
    assert [drain.worker_id for drain in drive.of(actions.Drain)] == [2]


def test_a_failed_boot_before_the_first_old_is_retired_rolls_back():
    drive = serving(4, surge=2)
    drive.reload()
    drive.spawned(5, 6)
    drive.send(events.BootFailed(5, BootFailure.NOT_FOUND))
    drive.died(5, Exit(code=4))
    assert drive.of(ReloadEnded) == [ReloadEnded(2, ReloadOutcome.ROLLED_BACK, 0, 4, BootFailure.NOT_FOUND, 4)]
    assert drive.of(actions.Terminate) == [actions.Terminate(6)]
    assert drive.view.generation == 1
    assert drive.ids("ready") == [1, 2, 3, 4]
    assert drive.view.last_reload.outcome is ReloadOutcome.ROLLED_BACK


def test_a_boot_that_times_out_rolls_back():
    drive = serving(1, boot_timeout=20.0)
    drive.reload()
    drive.spawned(2)
    drive.wait(20)
    assert drive.of(ReloadEnded) == [ReloadEnded(2, ReloadOutcome.ROLLED_BACK, 0, 1, BootFailure.TIMED_OUT, 1)]


def test_after_a_rollback_replacements_are_of_the_old_generation_and_the_next_reload_is_newer():
    drive = serving(1)
    drive.reload()
    drive.died(2, FAILED)
    drive.wait(1)
    drive.died(1, Exit(signal=9))
    assert drive.spawns() == [(3, 0, 1)]
    drive.ready(3)
    drive.wait(20)
    drive.reload()
    assert drive.spawns() == [(4, 0, 3)]


def test_a_crash_during_an_uncommitted_roll_is_replaced_by_the_old_generation():
    drive = serving(2)
    drive.reload()
    drive.spawned(3)
    drive.died(2, Exit(signal=9))
    assert drive.spawns() == [(4, 1, 1)]


def test_a_crash_after_the_commit_is_replaced_by_the_new_generation():
    drive = serving(3)
    drive.reload()
    drive.ready(4)
    drive.died(3, Exit(signal=9))
    assert {generation for *_, generation in drive.spawns()} == {2}


def test_a_surge_of_the_whole_pool_is_all_or_nothing():
    drive = serving(2, surge=2)
    drive.reload()
    drive.ready(3)
    assert drive.of(actions.Drain) == []
    drive.died(4, FAILED)
    assert drive.of(ReloadEnded)[0].outcome is ReloadOutcome.ROLLED_BACK
    assert [drain.worker_id for drain in drive.of(actions.Drain)] == [3]
    drive.died(3)
    drive.wait(1)
    drive.reload()
    drive.ready(5)
    drive.ready(6)
    assert {drain.worker_id for drain in drive.of(actions.Drain)} == {1, 2}
    assert drive.of(ReloadEnded)[0].outcome is ReloadOutcome.DONE


def test_a_new_worker_that_crashes_before_the_commit_rolls_back():
    drive = serving(2, surge=2)
    drive.reload()
    drive.ready(3)
    drive.died(3, Exit(signal=11))
    assert drive.of(ReloadEnded)[0].outcome is ReloadOutcome.ROLLED_BACK


def test_after_the_commit_a_failed_boot_pauses_retries_and_ends_partial_with_the_old_kept():
    drive = serving(3, boot_attempts=3)
    drive.reload()
    drive.ready(4)
    for worker_id in (5, 6, 7):
        assert drive.of(ReloadEnded) == []
        drive.wait(5)
        assert drive.view.rolling == 2
        drive.died(worker_id, FAILED)
    assert drive.of(ReloadEnded) == [ReloadEnded(2, ReloadOutcome.PARTIAL, 1, 3, BootFailure.FAILED, 2)]
    drive.wait(60)
    assert drive.ids("ready") == [4, 2, 3]
    assert drive.spawns() == []


def test_after_a_partial_reload_replacements_are_of_the_new_generation():
    drive = serving(2, boot_attempts=1)
    drive.reload()
    drive.ready(3)
    drive.died(4, FAILED)
    assert drive.of(ReloadEnded)[0].outcome is ReloadOutcome.PARTIAL
    drive.wait(20)
    drive.died(2, Exit(signal=9))
    assert drive.spawns() == [(5, 1, 2)]


def test_an_old_worker_retired_starts_the_count_of_setbacks_anew():
    drive = serving(4, boot_attempts=2)
    drive.reload()
    drive.ready(5)
    drive.died(6, FAILED)
    drive.wait(2)
    drive.ready(7)
    drive.died(8, FAILED)
    assert drive.of(ReloadEnded) == []
    assert drive.view.rolling == 2


def test_a_second_reload_during_a_roll_starts_over_with_the_newest():
    drive = serving(2)
    drive.reload()
    drive.spawned(3)
    drive.reload()
    assert drive.of(ReloadEnded) == [ReloadEnded(2, ReloadOutcome.SUPERSEDED, 0, 2, None, 2)]
    assert drive.of(actions.ReloadBegun) == [actions.ReloadBegun(3)]
    assert drive.of(actions.Terminate) == [actions.Terminate(3)]
    assert drive.spawns() == [(4, 0, 3)]


def test_a_boot_is_superseded_once_per_boot_timeout_and_only_the_newest_reload_waits():
    drive = serving(1, boot_timeout=20.0)
    drive.reload()
    drive.wait(5)
    drive.spawned(2)
    drive.reload()
    drive.wait(15)
    drive.spawned(3)
    drive.reload()
    assert drive.out == []
    assert (drive.view.rolling, drive.view.pending, drive.view.newest_generation) == (3, 4, 4)
    drive.reload()
    assert drive.of(ReloadEnded) == [ReloadEnded(4, ReloadOutcome.SUPERSEDED, 0, 1, None)]
    drive.wait(4.9)
    assert drive.out == []
    assert drive.pool.deadline() == pytest.approx(drive.now + 0.1)
    drive.wait(0.1)
    assert drive.of(actions.ReloadBegun) == [actions.ReloadBegun(5)]


def test_a_reload_that_waits_begins_when_the_one_before_has_ended():
    drive = serving(1)
    drive.reload()
    drive.reload()
    drive.reload()
    assert drive.view.pending == 4
    drive.ready(3)
    assert [ended.outcome for ended in drive.of(ReloadEnded)] == [ReloadOutcome.DONE]
    assert drive.of(actions.ReloadBegun) == [actions.ReloadBegun(4)]


def test_a_reload_during_the_first_boot_is_a_new_generation_for_what_is_to_come():
    drive = Drive(workers=2)
    drive.spawned(1, 2)
    drive.reload(workers=3)
    assert drive.of(actions.Terminate) == [actions.Terminate(1), actions.Terminate(2)]
    assert drive.spawns() == [(3, 0, 2), (4, 1, 2), (5, 2, 2)]
    drive.died(1, Exit(signal=15))
    assert drive.view.failures == 0
    drive.ready(3, 4, 5)
    assert drive.of(ReloadEnded) == [ReloadEnded(2, ReloadOutcome.DONE, 3, 3, None)]


def test_the_pool_does_not_give_up_while_newer_code_waits():
    drive = Drive(workers=1, boot_attempts=1)
    drive.reload()
    drive.reload()
    drive.reload()
    assert drive.view.pending == 4
    drive.died(2, FAILED)
    assert drive.view.stop is None
    assert drive.spawns() == [(3, 0, 4)]
    drive.died(3, FAILED)
    assert drive.view.gave_up


def test_a_reload_in_a_crash_loop_tries_the_new_code_at_once_and_alone():
    drive = Drive(workers=2)
    drive.ready(1, 2)
    for worker_id in (1, 2):
        drive.died(worker_id, FAILED)
    drive.died(3, FAILED)
    assert drive.view.backoff_until
    drive.reload()
    assert drive.spawns() == [(4, 0, 2)]
    assert drive.view.failures == 2


def test_a_changed_number_of_workers_applies_at_the_commit_and_not_after_a_rollback():
    drive = serving(4)
    drive.reload(workers=2)
    assert drive.view.desired == 4
    drive.died(5, FAILED)
    assert drive.view.desired == 4
    drive.wait(1)
    drive.reload(workers=2)
    drive.ready(6)
    assert drive.of(actions.Scaled) == [actions.Scaled(2)]
    assert drive.view.desired == 2


def test_a_scaled_number_survives_a_reload_that_does_not_change_workers():
    drive = serving(2)
    drive.send(events.ScaleTo(3))
    drive.ready(3)
    drive.reload()
    drive.send(events.ScaleBy(1))
    assert drive.spawns() == [(5, 3, 1)]
    drive.ready(4)
    assert drive.view.desired == 4


def test_new_workers_boot_under_the_new_policy():
    drive = serving(1, boot_timeout=20.0)
    drive.reload(boot_timeout=50.0)
    drive.spawned(2)
    drive.wait(49.9)
    assert drive.view.rolling == 2
    drive.wait(0.1)
    assert drive.view.rolling is None


def test_recycling_replaces_first_one_at_a_time_however_many_are_due():
    drive = serving(3)
    for worker_id in (1, 2, 3):
        drive.send(events.RecycleDue(worker_id, "requests"))
        assert drive.of(actions.WorkerRecycled) == [actions.WorkerRecycled(worker_id, worker_id - 1, "requests")]
        assert drive.send(events.RecycleDue(worker_id, "requests")) == []
    assert drive.ids("starting") == [4]
    drive.ready(4)
    assert [drain.worker_id for drain in drive.of(actions.Drain)] == [1]
    assert drive.spawns() == [(5, 1, 1)]


def test_a_single_worker_is_recycled_without_a_gap():
    drive = serving(1)
    drive.send(events.RecycleDue(1, "memory"))
    assert drive.spawns() == [(2, 0, 1)]
    drive.ready(2)
    assert drive.ids("ready") == [2]
    assert drive.ids("draining") == [1]


def test_a_recycle_whose_replacement_fails_keeps_the_old_worker_and_retries_with_back_off():
    drive = serving(1)
    drive.send(events.RecycleDue(1, "memory"))
    drive.died(2, FAILED)
    assert drive.ids("ready") == [1]
    assert drive.of(actions.BackingOff) == [actions.BackingOff(0.5, 1)]
    drive.wait(0.5)
    assert drive.spawns() == [(3, 0, 1)]


def test_recycling_waits_for_a_roll():
    drive = serving(2)
    drive.reload()
    assert drive.send(events.RecycleDue(2, "memory"))[1:] == []


@pytest.mark.parametrize("boot", [0.1, 1.0, 9.0])
def test_no_more_than_the_desired_number_drain_however_often_one_reloads(boot):
    host = Host(Policy(workers=3), script=lambda spawn: Script(boot=boot, drain=30.0))
    host.run(10)
    host.forget()
    for _ in range(30):
        host.send(events.Reload(Policy(workers=3)))
        host.run(4)
    assert host.most_draining <= 3 + 1  # and one new worker that was superseded while it booted
    assert host.lowest_ready == 3
    host.run(200)
    assert {worker.generation for worker in host.view().workers} == {31}


def test_a_mixed_pool_never_shares_a_slot_for_long():
    """A partial reload may leave two workers in one slot and another slot empty; the older is replaced into it."""
    scripts = iter([HEALTHY] * 4 + [HEALTHY] + [Script(boot=3.0, boot_exit=FAILED)] * 3)
    host = Host(Policy(workers=4), script=lambda spawn: next(scripts, HEALTHY))
    host.run(60)
    host.send(events.Reload(Policy(workers=4)))
    host.run(0.9)
    for process in list(host.processes.values())[2:4]:
        host.fault(process, "crash")
    host.run(100)
    assert sorted(worker.slot for worker in host.view().workers) == [0, 1, 2, 3]


def test_while_the_fork_of_the_first_new_worker_waits_an_old_one_that_dies_is_replaced_by_its_own_generation():
    drive = serving(2)
    drive.reload()
    assert drive.spawns() == [(3, 0, 2)]
    drive.died(1, Exit(signal=9))
    assert [spawn[2] for spawn in drive.spawns()] == [1]


def half_rolled(**policy):
    """A pool of two: the first new worker (3) is ready and an old one is gone for it, the second (4) starts."""
    drive = serving(2, refork=True, **policy)
    drive.reload()
    drive.ready(3)
    drive.died(next(iter(drive.ids("draining"))))
    assert drive.ids("starting") == [4]
    return drive


def test_a_boot_that_fails_after_the_commit_rolls_back_if_the_old_generation_can_be_forked_again():
    drive = half_rolled()
    drive.spawned(4)
    drive.died(4, Exit(code=3))
    ended = drive.of(ReloadEnded)[0]
    assert (ended.generation, ended.outcome) == (2, ReloadOutcome.ROLLED_BACK)
    assert drive.view.generation == 1
    assert len(drive.ids("ready")) == 2, "what is ready serves until it is replaced"
    drive.wait(1)
    assert {spawn[2] for spawn in drive.spawns()} == {1}
    drive.ready(5)
    assert [action.worker_id for action in drive.of(actions.Drain)] == [3], "the new code goes when the old is back"
    assert {worker.generation for worker in drive.view.workers if worker.state.value == "ready"} == {1}


def test_a_new_worker_that_dies_after_it_was_ready_is_tried_again_before_a_fallback():
    drive = half_rolled(boot_attempts=2)
    drive.died(3, Exit(signal=11))
    assert drive.of(ReloadEnded) == []
    drive.ready(4)
    drive.died(4, Exit(signal=11))
    assert drive.of(ReloadEnded) == []
    newest = drive.ids("starting")[0]
    drive.ready(newest)
    drive.died(newest, Exit(signal=11))
    assert [ended.outcome for ended in drive.of(ReloadEnded)] == [ReloadOutcome.ROLLED_BACK]


def test_a_fallback_restores_the_policy_and_keeps_what_was_scaled_by_hand():
    drive = serving(2, refork=True, boot_timeout=20.0)
    drive.reload(boot_timeout=5.0, refork=False)
    drive.ready(3)
    drive.send(events.ScaleBy(1))
    drive.died(4, Exit(code=3))
    assert drive.view.generation == 1
    assert drive.view.desired == 3
    drive.wait(1)
    drive.spawned(drive.ids("starting")[0])
    drive.wait(6)
    assert drive.of(actions.DumpStacks) == [], "the old time-out holds again"


def test_without_a_generation_that_can_be_forked_again_the_same_ends_as_partial():
    drive = serving(2, boot_attempts=1)
    drive.reload()
    drive.ready(3)
    drive.died(next(iter(drive.ids("draining"))))
    drive.spawned(4)
    drive.died(4, Exit(code=3))
    assert [ended.outcome for ended in drive.of(ReloadEnded)] == [ReloadOutcome.PARTIAL]
    assert drive.view.generation == 2
