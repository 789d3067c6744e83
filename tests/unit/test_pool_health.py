"""Hung, stopped and self-draining workers, and a clock that jumps."""

from __future__ import annotations

import pytest
from sim.drive import OK, Drive, serving

from procmgr.arbiter.core import actions, events
from procmgr.arbiter.core.actions import DrainMode, KillReason
from procmgr.arbiter.core.events import Exit, StopLevel

KILLED = Exit(signal=9)


def silent(drive, worker_id, seconds):
    """Let time pass while all but one beat; what was answered in it."""
    out, end = [], drive.now + seconds
    while drive.now < end - 1e-9:
        drive.now = min(drive.now + 0.5, end)
        out += drive.beat(worker_id)
    drive.out = out
    return out


def test_a_worker_whose_beat_is_too_old_is_dumped_and_replaced_then_killed():
    drive = serving(2, beat_timeout=30.0, dump_grace=0.5)
    assert silent(drive, 1, 29.5) == []
    assert silent(drive, 1, 0.5) == [actions.DumpStacks(1), actions.Spawn(3, 0, 1)]
    assert silent(drive, 1, 0.5) == [actions.Kill(1, KillReason.HUNG)]
    drive.died(1, KILLED)
    died = drive.of(actions.WorkerDied)[0]
    assert (died.killed, died.was_ready) == (KillReason.HUNG, True)
    assert drive.spawns() == []


def test_a_beat_after_the_dump_does_not_save_a_worker():
    drive = serving(1, beat_timeout=30.0)
    silent(drive, 1, 30)
    drive.beat()
    drive.wait(0.5)
    assert drive.of(actions.Kill) == [actions.Kill(1, KillReason.HUNG)]


def test_the_beat_counts_from_ready():
    drive = Drive(workers=1, beat_timeout=5.0, boot_timeout=60.0)
    drive.spawned(1)
    drive.wait(40, beating=False)
    drive.ready(1)
    drive.wait(4.9, beating=False)
    assert drive.of(actions.DumpStacks) == []
    drive.wait(0.1, beating=False)
    assert drive.of(actions.DumpStacks)


def test_a_beat_timeout_of_zero_is_off():
    drive = serving(1, beat_timeout=0.0)
    assert drive.pool.deadline() is None
    assert drive.wait(10_000, beating=False) == []


@pytest.mark.parametrize("cell", [float("nan"), float("inf"), 1e12, -1.0, 0.0])
def test_a_cell_that_is_no_plausible_time_is_no_beat(cell):
    drive = serving(1, beat_timeout=30.0)
    for _ in range(60):
        drive.now += 0.5
        drive.send(events.Beats(((1, cell),)))
    assert drive.out[0] == actions.DumpStacks(1)


def test_a_beat_a_little_newer_than_now_counts_as_now():
    drive = serving(1, beat_timeout=30.0)
    drive.send(events.Beats(((1, drive.now + 0.9),)))
    drive.wait(29.9, beating=False)
    assert drive.out == []
    drive.wait(0.1, beating=False)
    assert drive.of(actions.DumpStacks)


def test_a_beat_never_goes_back():
    drive = serving(1, beat_timeout=30.0)
    drive.send(events.Beats(((1, drive.now - 29.0),)))
    drive.wait(5, beating=False)
    assert drive.out == []


def test_a_worker_that_hangs_while_it_drains_is_dumped_and_killed_without_a_replacement():
    drive = serving(1, beat_timeout=10.0, graceful_timeout=60.0)
    drive.send(events.Stop(StopLevel.GRACEFUL))
    drive.wait(10, beating=False)
    assert drive.of(actions.DumpStacks) == [actions.DumpStacks(1)]
    drive.wait(0.5, beating=False)
    assert drive.out == [actions.Kill(1, KillReason.HUNG)]


def test_a_hung_worker_gets_no_drain_at_a_stop():
    drive = serving(1, beat_timeout=10.0)
    drive.wait(10, beating=False)
    drive.send(events.Stop(StopLevel.GRACEFUL))
    assert drive.of(actions.Drain) == []


def test_when_all_hang_at_once_all_are_replaced_at_once():
    drive = serving(4, beat_timeout=10.0)
    drive.wait(10, beating=False)
    assert [slot for _, slot, _ in drive.spawns()] == [0, 1, 2, 3]


def test_a_stopped_worker_is_replaced_and_killed_at_once_in_this_order():
    drive = serving(2)
    assert drive.send(events.Suspended(2)) == [actions.Spawn(3, 1, 1), actions.Kill(2, KillReason.SUSPENDED)]
    assert drive.send(events.Suspended(2)) == []


def test_a_stopped_worker_that_boots_or_drains_is_killed_at_once():
    drive = serving(2)
    drive.send(events.ScaleTo(1))
    assert drive.send(events.Suspended(2)) == [actions.Kill(2, KillReason.SUSPENDED)]
    drive.send(events.ScaleTo(2))
    drive.spawned(3)
    assert actions.Kill(3, KillReason.SUSPENDED) in drive.send(events.Suspended(3))
    assert drive.view.failures == 1


def test_a_worker_terminated_from_outside_is_replaced_and_its_death_is_expected():
    drive = serving(2)
    assert drive.send(events.DrainBegun(1))[1:] == [actions.Spawn(3, 0, 1)]
    assert drive.send(events.DrainBegun(1)) == []
    drive.died(1, OK)
    assert drive.of(actions.WorkerDied)[0].expected
    assert drive.spawns() == []


def test_a_worker_terminated_from_outside_has_the_graceful_time_and_hears_of_a_stop():
    drive = serving(1, graceful_timeout=20.0, kill_grace=5.0)
    drive.send(events.DrainBegun(1))
    assert drive.of(actions.Drain) == [actions.Drain(1, DrainMode.RETIRE, 80.0)]
    drive.wait(10)
    drive.send(events.Stop(StopLevel.GRACEFUL))
    assert drive.of(actions.Drain) == [actions.Drain(1, DrainMode.STOP, 80.0)]
    drive.wait(15)
    assert actions.Kill(1, KillReason.DRAIN_TIMEOUT) in drive.out


def test_an_application_that_ends_itself_at_once_is_paced():
    drive = Drive(workers=1)
    drive.ready(1)
    drive.send(events.DrainBegun(1))
    assert drive.spawns() == [(2, 0, 1)], "an operator may have sent it TERM"
    drive.ready(2)
    drive.send(events.DrainBegun(2))
    assert drive.spawns() == []
    assert drive.of(actions.BackingOff) == [actions.BackingOff(1.0, 2)]


def test_a_clock_jump_kills_nobody_and_leaves_every_deadline_its_rest():
    drive = serving(3, beat_timeout=30.0, graceful_timeout=20.0, kill_grace=5.0)
    drive.send(events.ScaleTo(2))
    drive.now += 500
    assert drive.send(events.Tick()) == [actions.ClockJumped(500.0)]
    assert drive.ids("ready") == [1, 2]
    drive.wait(24.9)
    assert drive.out == []
    drive.wait(0.2)
    assert drive.out == [actions.Kill(3, KillReason.DRAIN_TIMEOUT)]


def test_a_clock_jump_moves_the_boot_deadline_and_the_back_off():
    drive = serving(1, boot_timeout=10.0)
    drive.send(events.RecycleDue(1, "requests"))
    drive.spawned(2)
    drive.now += 60
    drive.send(events.Tick())
    assert drive.ids("starting") == [2]
    drive.died(2, Exit(code=3))
    until = drive.view.backoff_until
    drive.now += 60
    drive.send(events.Tick())
    assert drive.view.backoff_until == until + 60
    drive.wait(0.6)
    assert drive.spawns() == [(3, 0, 1)]


def test_a_clock_jump_moves_the_time_a_reload_waits():
    drive = serving(1, boot_timeout=20.0)
    for _ in range(3):
        drive.reload()
    drive.spawned(2, 3)
    drive.now += 100
    drive.send(events.Tick())
    assert drive.view.pending == 4


def test_a_little_lateness_is_no_jump():
    drive = serving(1)
    drive.now = drive.pool.deadline() + 2.0
    assert drive.send(events.Tick()) == []
    drive.now = drive.pool.deadline() + 2.1
    assert drive.send(events.Tick()) == [actions.ClockJumped(pytest.approx(7.1))]


def test_while_anything_is_timed_the_pool_asks_to_be_woken_within_five_seconds():
    drive = serving(1)
    assert drive.pool.deadline() == drive.now + 5.0


def test_time_that_goes_back_is_time_that_stands_still():
    drive = serving(1)
    drive.now -= 30
    assert drive.send(events.Tick()) == []
    assert drive.pool.deadline() == 65.0


def test_a_beat_timeout_switched_on_by_a_reload_judges_nobody_by_old_beats():
    drive = serving(1, beat_timeout=0.0)
    drive.wait(100, beating=False)
    drive.reload(beat_timeout=5.0, workers=2)
    drive.ready(2)
    assert drive.of(actions.DumpStacks) == []
