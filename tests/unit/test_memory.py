"""How memory is measured: whose turn it is, by which measure, and what is said where it cannot be known."""

from __future__ import annotations

import os

import psutil
import pytest

from procmgr import scoreboard
from procmgr.arbiter.core.events import Measured
from procmgr.arbiter.member import Member
from procmgr.arbiter.memory import MemoryGauge
from procmgr.config.health import HealthSettings
from procmgr.config.settings import AppSettings, Settings


def settings(**health):
    return Settings(app=AppSettings(app="a:b"), health=HealthSettings(**health))


LIMITED = settings(max_memory=1)


@pytest.fixture
def members():
    """Ten members, all of them this very process."""
    row, records = scoreboard.detached_row(), memoryview(bytearray(scoreboard.RECORDS_BYTES))
    return {number: Member(os.getpid(), 0, 1, None, number, row, records, -1) for number in range(1, 11)}


class Gauge:
    """A gauge, and what it posted."""

    def __init__(self, members, chosen):
        self.posted = []
        self.gauge = MemoryGauge(members=members, settings=lambda: chosen, post=self.posted.append)

    def measure(self, worker_id):
        self.gauge.measure(worker_id)
        return self.posted


def test_within_five_samples_each_worker_is_measured_once(members):
    gauge = Gauge(members, LIMITED)
    for so_far in range(0, 10, 2):
        assert len(gauge.posted) == so_far
        gauge.gauge.sample()
    assert sorted(event.worker_id for event in gauge.posted) == list(range(1, 11))


@pytest.mark.parametrize("measure", ["auto", "rss", "pss"])
def test_memory_is_measured_in_bytes_by_the_measure_asked_for(members, measure):
    (event,) = Gauge(members, settings(max_memory_hard=1, memory_measure=measure)).measure(3)
    assert isinstance(event, Measured)
    rss = psutil.Process().memory_info().rss
    assert rss / 3 < event.used < rss * 1.1
    assert members[3].memory == event.used


def test_without_a_limit_nothing_is_measured(members):
    assert Gauge(members, settings()).measure(1) == []


def test_a_member_that_is_buried_is_not_measured(members):
    assert Gauge(members, LIMITED).measure(99) == []


@pytest.mark.parametrize("error", [psutil.AccessDenied(1), psutil.NoSuchProcess(1), FileNotFoundError(2, "hidden")])
def test_what_cannot_be_read_is_said_once_and_claimed_never(members, monkeypatch, caplog, error):
    def refuse(_pid):
        raise error

    monkeypatch.setattr(psutil, "Process", refuse)
    gauge = Gauge(members, LIMITED)
    for _ in range(5):
        gauge.gauge.sample()
    assert gauge.posted == []
    assert len(caplog.records) == 1
    assert "max_memory has no effect" in caplog.text


@pytest.mark.parametrize(("preload", "measured"), [(False, "rss"), (True, "pss")])
def test_with_preload_shared_pages_do_not_count_in_full(members, monkeypatch, preload, measured):
    asked = []

    class Process:
        def __init__(self, _pid):
            pass

        def memory_info(self):
            asked.append("rss")
            raise psutil.AccessDenied

        def memory_full_info(self):
            asked.append("pss")
            raise psutil.AccessDenied

    monkeypatch.setattr(psutil, "Process", Process)
    chosen = Settings(app=AppSettings(app="a:b", preload=preload), health=HealthSettings(max_memory=1))
    assert Gauge(members, chosen).measure(1) == []
    assert asked == [measured]


def test_a_worker_that_is_not_born_yet_is_not_measured(members):
    members[1].pid = None
    assert Gauge(members, LIMITED).measure(1) == []
