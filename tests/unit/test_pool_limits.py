"""Limits of a worker: how late its loop, how long its life, how big its memory may be; and the core file it leaves."""

from __future__ import annotations

import pytest
from sim.drive import Drive, serving

from procmgr.arbiter.core import actions, events
from procmgr.arbiter.core.actions import KillReason
from procmgr.arbiter.core.events import Exit, StopLevel

SOFT, HARD = 100, 200


def late(drive):
    return drive.of(actions.LoopLate)


def watch(drive, seconds, *, silent=()):
    """Look each second and at each deadline, as the shell does, while `silent` workers do not beat."""
    out, end = [], drive.now + seconds
    while drive.now < end - 1e-9:
        drive.now = min(drive.pool.deadline() or end, drive.now + 1.0, end)
        out += drive.beat(*silent)
    drive.out = out
    return out


def test_a_loop_that_is_late_is_said_once_and_at_the_moment_it_is():
    drive = serving(2, slow_loop=1.0)
    watch(drive, 1.9, silent=[1])
    assert late(drive) == []
    watch(drive, 0.1, silent=[1])
    assert late(drive) == [actions.LoopLate(1, pytest.approx(1.0))]
    watch(drive, 20, silent=[1])
    assert late(drive) == []


def test_after_a_beat_the_next_lateness_is_said_anew():
    drive = serving(1, slow_loop=1.0)
    watch(drive, 5, silent=[1])
    watch(drive, 1)
    watch(drive, 5, silent=[1])
    assert len(late(drive)) == 1


def test_a_worker_that_beats_in_time_is_never_late():
    drive = serving(2, slow_loop=0.2)
    for _ in range(100):
        drive.now += 1.0
        drive.send(events.Beats(((1, drive.now - 0.9), (2, drive.now - 0.1))))
        assert late(drive) == []


def test_without_slow_loop_nobody_is_late():
    drive = serving(1)
    watch(drive, 20, silent=[1])
    assert late(drive) == []


def test_a_worker_that_boots_is_not_late():
    drive = Drive(workers=1, slow_loop=1.0)
    drive.spawned(1)
    watch(drive, 30)
    assert late(drive) == []


def test_an_event_without_beats_calls_nobody_late():
    drive = serving(1, slow_loop=1.0)
    drive.now += 2.05
    assert drive.send(events.RecycleDue(1, "requests")) == [
        actions.WorkerRecycled(1, 0, "requests"),
        actions.Spawn(2, 0, 1),
    ]
    assert drive.pool.deadline() == pytest.approx(drive.now + 0.1)


def test_the_same_old_beat_read_again_is_no_beat():
    drive = serving(1, slow_loop=1.0)
    said = 0
    for _ in range(5):
        drive.now = drive.pool.deadline()
        drive.send(events.Beats(((1, 60.0),)))
        said += len(late(drive))
    assert said == 1


def test_an_arbiter_that_is_late_by_a_tenth_of_a_second_excuses_nobody():
    drive = Drive(workers=1, slow_loop=0.01, beat_interval=0.01)
    drive.ready(1)
    assert drive.pool.deadline() == 0.1
    drive.now = 0.2
    drive.send(events.Beats(((1, 0.0),)))
    assert [each.worker_id for each in late(drive)] == [1]


def test_when_the_arbiter_was_late_itself_the_workers_get_half_a_second_to_beat():
    drive = serving(2, slow_loop=1.0)
    drive.now = drive.pool.deadline() + 0.3
    old = tuple((worker, 60.0) for worker in (1, 2))
    drive.send(events.Beats(old))
    assert late(drive) == []
    drive.now += 0.4
    drive.send(events.Beats(((1, drive.now), (2, 60.0))))
    drive.now = drive.pool.deadline()
    drive.send(events.Beats(((1, drive.now), (2, 60.0))))
    assert [each.worker_id for each in late(drive)] == [2]


def test_a_loop_that_would_be_found_hung_as_early_is_only_that():
    drive = serving(1, slow_loop=3.0, beat_timeout=4.0)
    watch(drive, 10, silent=[1])
    assert late(drive) == []
    assert drive.of(actions.DumpStacks) == [actions.DumpStacks(1)]


def test_a_draining_worker_is_called_late_too():
    drive = serving(1, slow_loop=1.0)
    drive.send(events.Stop(StopLevel.GRACEFUL))
    watch(drive, 3, silent=[1])
    assert [each.worker_id for each in late(drive)] == [1]


def test_a_worker_is_replaced_after_its_lifetime_and_jitter_and_then_retired():
    drive = Drive(workers=1, chance=0.5, max_lifetime=100.0, max_lifetime_jitter=20.0)
    drive.ready(1)
    drive.wait(109)
    assert drive.spawns() == []
    drive.wait(1)
    assert drive.of(actions.WorkerRecycled) == [actions.WorkerRecycled(1, 0, "it served for 100 s or more")]
    assert drive.spawns() == [(2, 0, 1)]
    drive.ready(2)
    assert [drain.worker_id for drain in drive.of(actions.Drain)] == [1]


def test_the_pool_wakes_when_a_lifetime_ends():
    drive = serving(1, max_lifetime=62.0)
    assert drive.pool.deadline() == 62.0


def test_of_many_whose_lifetime_ends_together_one_at_a_time_is_replaced():
    drive = serving(4, max_lifetime=100.0)
    drive.wait(40)
    assert len(drive.of(actions.WorkerRecycled)) == 4
    assert len(drive.spawns()) == 1


def test_a_worker_above_the_soft_limit_is_replaced_once_and_never_killed():
    drive = serving(2, max_memory=SOFT, max_memory_hard=HARD)
    drive.send(events.Measured(1, SOFT))
    drive.send(events.Measured(1, SOFT))
    assert drive.out == []
    drive.send(events.Measured(1, SOFT + 1))
    assert len(drive.of(actions.WorkerRecycled)) == 1
    assert drive.spawns() == [(3, 0, 1)]
    assert drive.send(events.Measured(1, SOFT + 1)) == []


def test_a_limit_below_what_a_fresh_worker_uses_is_said_and_replaces_nobody():
    drive = serving(1, max_memory=SOFT)
    assert drive.send(events.Measured(1, SOFT + 10)) == [actions.LimitTooLow(1, SOFT + 10, SOFT)]
    assert drive.send(events.Measured(1, 10 * SOFT)) == []


def short(*used):
    """Memory is short, and the workers from 1 on use so much."""
    return events.MemoryShort(tuple(enumerate(used, start=1)))


def grown(workers):
    """A pool whose workers used 100 bytes each when they were fresh."""
    drive = serving(workers)
    for worker_id in range(1, workers + 1):
        drive.send(events.Measured(worker_id, 100))
    return drive


def test_when_memory_is_short_the_largest_worker_is_replaced_first_and_then_the_next():
    drive = grown(3)
    drive.send(short(300, 500, 400))
    assert [each.worker_id for each in drive.of(actions.WorkerRecycled)] == [2]
    assert drive.spawns() == [(4, 1, 1)], "its replacement comes first"
    assert drive.send(short(300, 0, 400)) == [], "one at a time: a replacement needs memory too"
    drive.ready(4)
    assert drive.send(short(300, 0, 400)) == [], "its predecessor has not given back its own yet"
    drive.died(2)
    drive.send(short(300, 0, 400))
    assert [each.worker_id for each in drive.of(actions.WorkerRecycled)] == [3]


def test_when_memory_is_short_nobody_is_replaced_whose_replacement_would_be_as_large():
    drive = grown(2)
    assert drive.send(short(120, 125)) == []
    drive.send(short(120, 126))
    assert [each.worker_id for each in drive.of(actions.WorkerRecycled)] == [2]
    unmeasured = serving(1)
    assert unmeasured.send(short(10_000)) == []


def test_when_memory_is_short_the_reason_is_said_in_mib():
    drive = serving(1)
    drive.send(events.Measured(1, 100 << 20))
    drive.send(short(200 << 20))
    assert drive.of(actions.WorkerRecycled)[0].reason == "memory is short and it uses the most, 200.0 MiB"


def test_when_memory_is_short_while_workers_come_nobody_else_is_replaced():
    drive = grown(3)
    drive.send(events.ScaleBy(1))
    assert drive.send(short(300, 500, 400)) == []


def test_when_memory_is_short_while_a_replacement_waits_for_its_back_off_nobody_else_is_replaced():
    drive = grown(3)
    drive.send(events.RecycleDue(1, "requests"))
    drive.spawned(4)
    drive.died(4, Exit(code=3))
    assert drive.view.backoff_until is not None
    assert drive.ids("ready") == drive.ids() == [1, 2, 3]
    assert drive.send(short(0, 500, 400)) == []


def test_when_memory_is_short_while_a_roll_waits_for_its_back_off_nobody_is_replaced():
    drive = grown(3)
    drive.reload()
    drive.ready(4)
    drive.died(1)
    drive.spawned(5)
    drive.died(5, Exit(code=3))
    assert (drive.view.rolling, drive.ids("ready")) == (2, drive.ids())
    assert drive.send(short(0, 500, 400)) == []


def test_when_memory_is_short_during_a_roll_or_a_stop_nothing_is_added_to_it():
    drive = grown(2)
    drive.send(events.Reload(drive.policy))
    assert drive.send(short(1000, 1000)) == []
    drive.send(events.Stop(StopLevel.GRACEFUL))
    assert drive.send(short(1000, 1000)) == []


def test_a_booting_worker_is_not_held_against_the_soft_limit():
    drive = Drive(workers=1, max_memory=SOFT)
    drive.spawned(1)
    assert drive.send(events.Measured(1, 10 * SOFT)) == []


def test_a_worker_above_the_hard_limit_is_killed_after_its_replacement_was_spawned():
    drive = serving(2, max_memory_hard=HARD)
    assert drive.send(events.Measured(2, HARD + 1)) == [actions.Spawn(3, 1, 1), actions.Kill(2, KillReason.MEMORY)]
    drive.died(2, Exit(signal=9))
    assert drive.of(actions.WorkerDied)[0].killed is KillReason.MEMORY
    assert drive.spawns() == []


def test_a_booting_worker_above_the_hard_limit_is_killed_and_its_successor_waits():
    drive = Drive(workers=1, max_memory_hard=HARD)
    drive.spawned(1)
    drive.send(events.Measured(1, HARD + 1))
    assert drive.of(actions.Kill) == [actions.Kill(1, KillReason.MEMORY)]
    assert drive.of(actions.BackingOff)


def test_a_hung_worker_may_leave_a_core_file_before_its_kill():
    drive = serving(1, beat_timeout=10.0, dump_grace=0.5, core_grace=10.0)
    drive.wait(10, beating=False)
    assert drive.out == [actions.DumpStacks(1), actions.Spawn(2, 0, 1)]
    assert drive.pool.deadline() == drive.now + 0.5
    drive.wait(0.5, beating=False)
    assert drive.out == [actions.Abort(1)]
    drive.wait(9.9, beating=False)
    assert drive.out == []
    drive.wait(0.1, beating=False)
    assert drive.out == [actions.Kill(1, KillReason.HUNG)]


def test_nobody_is_aborted_before_its_fork_is_reported():
    drive = Drive(workers=1, beat_timeout=10.0, core_grace=10.0)
    drive.send(events.Ready(1))
    drive.wait(30, beating=False)
    assert drive.view.workers[0].given_up
    assert drive.of(actions.Abort) == []


def test_without_time_for_a_core_file_a_hung_worker_is_killed_and_not_aborted():
    drive = serving(1, beat_timeout=10.0)
    drive.wait(20, beating=False)
    assert drive.of(actions.Abort) == []
    assert drive.of(actions.Kill) == [actions.Kill(1, KillReason.HUNG)]


def test_a_worker_that_was_killed_and_does_not_die_is_not_found_hung_as_well():
    drive = serving(1, beat_timeout=10.0, graceful_timeout=1.0, kill_grace=1.0)
    drive.send(events.Stop(StopLevel.GRACEFUL))
    drive.wait(2)
    assert drive.of(actions.Kill) == [actions.Kill(1, KillReason.DRAIN_TIMEOUT)]
    drive.wait(30, beating=False)
    assert drive.out == []


def test_the_death_of_an_aborted_worker_is_reported_with_the_reason_of_the_abort():
    drive = serving(1, beat_timeout=10.0, core_grace=10.0)
    drive.wait(11, beating=False)
    drive.died(1, Exit(signal=6, core=True))
    assert drive.of(actions.WorkerDied)[0].killed is KillReason.HUNG


def test_a_boot_that_takes_too_long_leaves_no_core_file():
    drive = Drive(workers=1, boot_timeout=10.0, core_grace=10.0)
    drive.spawned(1)
    drive.wait(10.5, beating=False)
    assert drive.of(actions.Abort) == []
    assert drive.of(actions.Kill) == [actions.Kill(1, KillReason.BOOT_TIMEOUT)]


def test_a_forced_stop_does_not_wait_for_a_core_file():
    drive = serving(1, beat_timeout=10.0, core_grace=10.0)
    drive.wait(10.5, beating=False)
    drive.send(events.Stop(StopLevel.KILL))
    assert actions.Kill(1, KillReason.HUNG) in drive.out or actions.Kill(1, KillReason.STOPPING) in drive.out
