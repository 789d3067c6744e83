"""What `status` is told: optional measures, drifted releases, and why workers went and reloads failed."""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from importlib import metadata
from types import SimpleNamespace

import psutil
import pytest
from sim.drive import serving

from procmgr import control, messages, scoreboard
from procmgr.arbiter import status
from procmgr.arbiter.control import MAX_OUTPUT
from procmgr.arbiter.core import actions, events
from procmgr.arbiter.core.events import BootFailure, Exit
from procmgr.arbiter.history import History
from procmgr.arbiter.status import Releases, Status
from procmgr.config.settings import MAX_WORKERS
from procmgr.config.tls import TLSSettings
from procmgr.errors import ConfigError


@dataclass
class Member:
    """What a note needs of a worker's record."""

    generation: int
    last_words: messages.BootFailed | None = None
    kill_sent: bool = False
    out_of_memory: bool = False


class Story:
    """A pool that is driven, and the history of it."""

    def __init__(self, workers: int = 2) -> None:
        self.drive = serving(workers)
        self.members = {worker.worker_id: Member(1) for worker in self.drive.view.workers}
        self.history = History(members=self.members, view=lambda: self.drive.view, now=lambda: self.drive.now)

    def note(self, out) -> None:
        for action in out:
            if isinstance(action, actions.Spawn):
                self.members[action.worker_id] = Member(action.generation)
            self.history.note(action)

    def reason(self, slot: int) -> str:
        return self.history.departures[slot].reason


def test_requests_in_flight_are_told_oldest_first_with_their_age_and_without_their_query():
    records = memoryview(bytearray(scoreboard.RECORDS_BYTES))
    inflight = scoreboard.InFlight(records)
    inflight.begin(b"GET /old?secret=1 HTTP/1.1\r\n")
    inflight.begin(b"POST /new HTTP/1.1\r\n")
    (began, _), _ = scoreboard.running(records)
    told = status._in_flight(records, began / 1e9 + 2.5, most=8)
    assert [(each["method"], each["path"]) for each in told] == [("GET", "/old"), ("POST", "/new")]
    assert told[0]["age"] == 2.5


def test_a_record_that_makes_no_sense_is_told_without_harm():
    records = memoryview(bytearray(b"\xff" * scoreboard.RECORDS_BYTES))
    told = status._in_flight(records, 1.0, most=8)
    assert len(told) == 8
    assert all(each["age"] == 0.0 and each["path"].isascii() for each in told)


def test_the_status_of_the_largest_pool_full_of_requests_is_an_answer_that_can_be_sent(monkeypatch):
    monkeypatch.setattr(status, "_process", lambda _pid: {"cpu": 123_456.789, "memory": 1 << 40})
    worst = struct.pack("=Q120s", 1, b"G \x1b" + b"\xff" * 117) * scoreboard.RECORDS
    member = SimpleNamespace(row=memoryview(bytearray(b"\xff" * 512)).cast("Q"), records=memoryview(worst))
    story = Story(1)
    view = replace(story.drive.view, workers=story.drive.view.workers * MAX_WORKERS)
    told = Status(
        view=lambda: view,
        members=dict.fromkeys(story.members, member),
        history=story.history,
        releases=Releases(),
        now=lambda: 1e6,
        born=0.0,
        summary=lambda: "",
    )
    settings = SimpleNamespace(
        process=SimpleNamespace(name="shop"), app=SimpleNamespace(app="shop:app"), tls=TLSSettings()
    )
    document = told.document(SimpleNamespace(settings=settings, listeners=(), certificates=None))
    assert len(document["workers"]) == MAX_WORKERS
    assert all(worker["in_flight"] for worker in document["workers"])
    assert len(control.encode(document)) < MAX_OUTPUT


def test_releases_that_were_replaced_on_disk_are_told(monkeypatch):
    installed = {"procmgr": "1.0", "uvloop": "0.19", "h11": "0.14"}

    def version(name):
        if name not in installed:
            raise metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(metadata, "version", version)
    releases = Releases()
    assert releases.drift() == []
    installed |= {"uvloop": "0.21", "psutil": "7.0"}
    del installed["h11"]
    (line,) = releases.drift()
    assert "runs uvloop 0.19, installed is 0.21" in line


@pytest.mark.parametrize("error", [psutil.NoSuchProcess(1), psutil.AccessDenied(1), FileNotFoundError("/proc/stat")])
def test_what_proc_hides_is_unknown_and_no_error(monkeypatch, error):
    class Hidden:
        def __init__(self, pid) -> None:
            raise error

    class HalfHidden:
        def __init__(self, pid) -> None:
            pass

        def cpu_times(self):
            raise error

        def memory_info(self):
            raise error

    for process in (Hidden, HalfHidden):
        monkeypatch.setattr(psutil, "Process", process)
        assert status._process(4242) == {"cpu": None, "memory": None}


def test_a_crash_is_told_by_its_cause():
    story = Story()
    story.note(story.drive.died(1, Exit(signal=11, core=True)))
    assert story.reason(0) == "died of SIGSEGV, core dumped"
    assert story.history.departures[0].worker_id == 1


def test_a_recycled_worker_is_told_by_its_limit():
    story = Story()
    story.note(story.drive.send(events.RecycleDue(1, "it served 1000 requests")))
    story.note(story.drive.ready(3))
    story.note(story.drive.died(1, Exit(code=0)))
    assert story.reason(0) == "was recycled: it served 1000 requests"


def test_a_worker_that_a_reload_replaced_is_told_so():
    story = Story(1)
    story.note(story.drive.reload())
    story.note(story.drive.ready(2))
    story.note(story.drive.died(1, Exit(code=0)))
    assert story.reason(0) == "gave way to generation 2"


def test_a_worker_that_was_one_too_many_is_told_so():
    story = Story()
    story.note(story.drive.send(events.ScaleTo(1)))
    story.note(story.drive.died(2, Exit(code=0)))
    assert story.reason(1) == "was retired"


def test_a_reload_that_failed_keeps_the_applications_words_and_its_exit_code():
    story = Story(1)
    story.note(story.drive.reload())
    story.members[2].last_words = messages.BootFailed(4, "no module named x", "Traceback ...")
    story.note(story.drive.died(2, Exit(code=4)))
    last = story.history.last_reload
    assert last is not None
    assert (last.generation, last.exit_code, last.detail) == (2, 4, "Traceback ...")
    assert last.text == "generation 2 was rolled back, generation 1 serves on: no module named x"
    assert 0 not in story.history.departures, "the worker that serves has had no predecessor"


@pytest.mark.parametrize(
    ("failure", "exit_code"),
    [
        (BootFailure.TIMED_OUT, 75),
        (BootFailure.REFUSED, 71),
        (BootFailure.FAILED, 3),
        (BootFailure.NOT_FOUND, 4),
        (None, 3),
    ],
)
def test_a_failure_without_words_is_told_by_its_kind(failure, exit_code):
    story = Story(1)
    outcome = actions.ReloadOutcome.ROLLED_BACK
    story.history.note(actions.ReloadEnded(2, outcome, 0, 1, failure))
    assert story.history.last_reload is not None
    assert story.history.last_reload.exit_code == exit_code


def test_a_refused_reload_is_the_last_one_too():
    story = Story(1)
    story.history.note_refusal(ConfigError("wrkers: unknown"))
    last = story.history.last_reload
    assert last is not None
    assert (last.generation, last.exit_code, last.text) == (None, 78, "refused, nothing changed: wrkers: unknown")


def test_the_history_is_as_long_as_there_are_slots():
    story = Story(2)
    for worker_id in range(10, 200):
        story.members[worker_id] = Member(1)
        story.history.note(
            actions.WorkerDied(
                worker_id=worker_id,
                slot=5 + worker_id % 2,
                generation=1,
                exit=Exit(code=1),
                age_seconds=1.0,
                was_ready=True,
                expected=False,
                killed=None,
                failure=None,
            )
        )
    assert {slot: gone.worker_id for slot, gone in story.history.departures.items()} == {5: 198, 6: 199}
