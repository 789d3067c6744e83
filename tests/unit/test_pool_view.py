"""The snapshot and its line."""

from __future__ import annotations

from sim.drive import Drive, serving

from procmgr.arbiter.core import events
from procmgr.arbiter.core.events import Exit, StopLevel
from procmgr.arbiter.core.policy import Backoff
from procmgr.arbiter.core.view import WorkerState, WorkerView, status_line


def test_a_worker_is_shown_with_its_slot_pid_state_and_since_when():
    drive = Drive(workers=2)
    drive.now = 1.0
    drive.spawned(2)
    drive.now = 2.0
    drive.ready(2)
    drive.send(events.DrainBegun(2))
    assert drive.view.workers == (
        WorkerView(worker_id=1, slot=0, generation=1, pid=None, state=WorkerState.STARTING, born=0.0, since=0.0),
        WorkerView(worker_id=2, slot=1, generation=1, pid=102, state=WorkerState.DRAINING, born=1.0, since=2.0),
    )
    assert (drive.view.starting, drive.view.ready, drive.view.draining) == (1, 0, 1)
    assert drive.view.ever_ready


def test_workers_are_shown_by_slot():
    drive = serving(2)
    drive.reload()
    assert drive.ids() == [1, 3, 2]


def test_the_line_of_a_settled_pool():
    assert status_line(serving(2).view) == "2/2 workers ready, generation 1"


def test_the_line_of_a_roll():
    drive = serving(4)
    drive.reload()
    assert status_line(drive.view) == "4/4 workers ready, rolling to generation 2"


def test_a_stop_that_waits_is_said():
    drive = serving(2, shutdown_delay=5.0)
    drive.send(events.Stop(StopLevel.GRACEFUL))
    assert status_line(drive.view) == "2/2 workers ready, leaving"


def test_the_line_after_a_rollback_stays_until_the_next_reload():
    drive = serving(1)
    drive.reload()
    drive.died(2, Exit(code=3))
    assert status_line(drive.view) == "reload rolled back, generation 1 serves on"
    drive.wait(20)
    drive.reload()
    drive.ready(3)
    drive.died(1)
    assert status_line(drive.view) == "1/1 workers ready, generation 3"


def test_the_line_after_a_rollback_while_a_worker_boots():
    drive = serving(2)
    drive.reload()
    drive.died(3, Exit(code=3))
    drive.wait(1)
    drive.died(1, Exit(signal=9))
    assert status_line(drive.view) == "1/2 workers ready, reload rolled back, generation 1 serves on"


def test_the_line_after_a_partial_reload():
    drive = serving(2, boot_attempts=1)
    drive.reload()
    drive.ready(3)
    drive.died(4, Exit(code=3))
    assert status_line(drive.view) == "2/2 workers ready, reload to generation 2 ended partial 1/2"


def test_the_line_of_a_back_off_without_and_with_workers():
    drive = Drive(workers=1, boot_attempts=9, backoff=Backoff(first=4.0))
    for worker_id in (1, 2):
        drive.spawned(worker_id)
        drive.died(worker_id, Exit(code=3))
        seconds = 4 * worker_id
        noun = "death" if worker_id == 1 else "deaths"
        assert status_line(drive.view) == f"backing off {seconds} s after {worker_id} early {noun}"
        drive.wait(seconds)
    drive = serving(2)
    drive.died(1, Exit(signal=9))
    drive.died(3, Exit(code=3))
    assert status_line(drive.view) == "1/2 workers ready, backing off 0.5 s after 1 early death"
    drive.wait(0.5)
    assert status_line(drive.view) == "1/2 workers ready, generation 1"


def test_the_line_of_a_stop_and_of_giving_up():
    drive = serving(2)
    drive.send(events.Stop(StopLevel.GRACEFUL))
    assert status_line(drive.view) == "stopping, 2 workers draining"
    drive.died(1)
    assert status_line(drive.view) == "stopping, 1 worker draining"
    drive.died(2)
    assert status_line(drive.view) == "stopping"
    drive = Drive(workers=1, boot_attempts=1)
    drive.spawned(1)
    drive.died(1, Exit(code=3))
    assert status_line(drive.view) == "giving up after 1 failed boot"
