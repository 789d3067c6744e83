"""More workers than the CPU quota: said once, and again only when it has become so anew."""

from __future__ import annotations

import os

import pytest

from procmgr.arbiter.quota import QuotaWatch


@pytest.fixture
def limit(tmp_path, monkeypatch):
    """A function that sets the quota, in CPUs, of the cgroup that this process seems to be in."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/\n")
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)

    def write(quota):
        text = "max" if quota is None else str(int(quota * 100_000))
        (tmp_path / "sys/fs/cgroup/cpu.max").write_text(f"{text} 100000\n")

    return write


@pytest.fixture
def look(tmp_path, caplog):
    """A function that has the watch look, and returns what it said then."""
    watch = QuotaWatch(root=tmp_path)

    def ask(workers, **more):
        caplog.clear()
        watch.look(workers, **more)
        assert all(record.levelname == "WARNING" for record in caplog.records)
        return [record.getMessage() for record in caplog.records]

    return ask


def test_one_line_names_the_workers_the_quota_and_what_would_be_right(limit, look):
    limit(1.5)
    said = "8 workers are more than the cgroup's CPU quota of 1.5 can keep busy; --workers 2 or auto suits it"
    assert look(8) == [said]


@pytest.mark.parametrize(("quota", "workers"), [(None, 64), (2, 2), (1.5, 2), (0.25, 1), (16, 9)])
def test_nothing_is_said_within_the_quota_rounded_up(limit, look, quota, workers):
    limit(quota)
    assert look(workers) == []


def test_it_is_said_again_only_after_it_was_not_so(limit, look):
    limit(2)
    assert look(3)
    assert look(4) == []
    assert look(2) == []
    assert look(3)
    limit(4)
    assert look(4) == []
    limit(2)
    assert look(4)


def test_what_was_said_before_an_upgrade_is_not_said_after_it(limit, look):
    limit(2)
    assert look(3, quietly=True) == []
    assert look(4) == []


def test_where_no_cgroup_can_be_read_nothing_is_said(tmp_path, look):
    assert look(512) == []
