"""What the arbiter tells those who watch it: pages, metrics and counts, without a socket."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from prometheus_client.parser import text_string_to_metric_families
from sim.drive import Drive, serving

from procmgr import scoreboard
from procmgr.arbiter import metrics, pages
from procmgr.arbiter.admin import Admin
from procmgr.arbiter.core import actions, events
from procmgr.arbiter.core.actions import KillReason, ReloadEnded, ReloadOutcome, WorkerDied
from procmgr.arbiter.core.events import Exit, StopLevel
from procmgr.arbiter.core.view import WorkerState
from procmgr.arbiter.metrics import METRICS
from procmgr.arbiter.tally import DEATHS, RELOADS, Tally
from procmgr.arbiter.visitors import _names_loopback
from procmgr.config.admin import AdminSettings
from procmgr.scoreboard import Scoreboard

DOCUMENT = {
    "name": "<shop>",
    "version": "1",
    "pid": 1,
    "uptime": 90000.0,
    "app": "a:<b>",
    "addresses": ["http://127.0.0.1:8000"],
    "summary": "1/1 workers ready & well",
    "warnings": ["<old>"],
    "last_reload": {"outcome": "rolled back", "exit": 3, "text": "<boom>", "ago": 3.0},
    "workers": [
        {
            "slot": 0,
            "pid": 12,
            "state": "ready",
            "lag": 0.0012,
            "memory": 1 << 20,
            "age": 7300,
            "cpu": None,
            "in_flight": [
                {"method": "GET", "path": "/<slow>", "age": 90.0},
                {"method": "PUT", "path": "/", "age": 99.0},
            ],
            "predecessor": {"worker": 1, "reason": "killed by <signal> 9", "ago": 7300.0},
        }
    ],
    "vacant": [{"slot": 1, "worker": 2, "reason": "could not start", "ago": 0.5}],
}


def died(**changes):
    usual = {"exit": Exit(code=0), "age_seconds": 1.0, "was_ready": True, "expected": False, "killed": None}
    return WorkerDied(**{"worker_id": 1, "slot": 0, "generation": 1, "failure": None, **usual, **changes})


def ended(outcome):
    return ReloadEnded(generation=2, outcome=outcome, replaced=0, desired=1, failure=None)


def admin(view, board=None, now=lambda: 10.0):
    return Admin(
        settings=AdminSettings(),
        estate=None,
        loop=None,
        now=now,
        view=view,
        summary=lambda: "how it is",
        document=lambda: DOCUMENT,
        members={},
        board=board or Scoreboard(),
        born=0.0,
    )


def test_every_death_has_one_cause_and_every_reload_one_outcome():
    tally = Tally()
    for reason in KillReason:
        tally.hear(died(killed=reason, expected=True))
    tally.hear(died(expected=True))
    tally.hear(died(was_ready=False))
    tally.hear(died())
    tally.hear(died(exit=Exit(signal=11)))
    for outcome in ReloadOutcome:
        tally.hear(ended(outcome))
    tally.hear(actions.Scaled(3))
    assert tally.deaths == dict.fromkeys(DEATHS, 1)
    assert tally.reloads == dict.fromkeys(RELOADS, 1)


def test_counts_outlive_an_upgrade_and_unknown_ones_are_forgotten():
    tally = Tally()
    tally.hear(died())
    tally.hear(ended(ReloadOutcome.DONE))
    estate = tally.hand_over()
    estate.counts["death.of_old_age"] = 9
    again = Tally(estate)
    assert (again.deaths, again.reloads) == (tally.deaths, tally.reloads)


def rendered(board, members, view, tally=None):
    return metrics.render(
        view=view,
        members=members,
        board=board,
        tally=tally or Tally(),
        ready=True,
        utilisation=0.25,
        started=1.0,
        now=10.0,
    )


def test_the_metrics_page_is_what_prometheus_reads():
    board, drive = Scoreboard(), serving(2)
    members = {}
    for worker in drive.view.workers:
        number = board.lease()
        row = board.row(number)
        row[scoreboard.REQUESTS], row[scoreboard.STATUS_2XX], row[scoreboard.BEAT] = 5, 5, 9 * 10**9
        row[scoreboard.CPU], row[scoreboard.ACTIVE] = 3 * 10**9, worker.slot
        members[worker.worker_id] = SimpleNamespace(row=row, pid=None, number=number)
    families = {one.name: one for one in text_string_to_metric_families(rendered(board, members, drive.view))}
    names = {name.removesuffix("_total") for name in (metric.name for metric in METRICS)}
    assert set(families) == names

    def value(name, **labels):
        samples = [sample for family in families.values() for sample in family.samples if sample.name == name]
        return next(sample.value for sample in samples if sample.labels == labels)

    assert value("procmgr_requests_total") == 10
    assert value("procmgr_responses_total", **{"class": "2xx"}) == 10
    assert value("procmgr_workers", state="ready") == 2
    assert value("procmgr_cpu_seconds_total") == 6
    assert value("procmgr_utilisation_ratio") == 0.25
    assert value("procmgr_worker_requests_active", slot="1") == 1
    assert value("procmgr_worker_beat_age_seconds", slot="0") == 1
    board.release(members.popitem()[1].number)
    assert "procmgr_requests_total 10\n" in rendered(board, members, drive.view)


def test_every_metric_has_a_good_name_and_a_sentence():
    for metric in METRICS:
        assert re.fullmatch(r"procmgr_[a-z_]+[a-z]", metric.name)
        assert metric.name.endswith("_total") == (metric.type == "counter")
        assert metric.help.endswith(".")


def test_readiness_follows_the_pool():
    drive = Drive(workers=1, shutdown_delay=5.0)
    told = admin(lambda: drive.view)
    assert told.page("/readyz").status == 503
    assert told.page("/readyz").text == "no worker is ready: how it is\n"
    assert told.agent_line() == "down #no worker is ready\n"
    drive.spawned(1)
    drive.ready(1)
    assert told.page("/readyz").status == 200
    drive.send(events.Stop(StopLevel.GRACEFUL))
    assert told.page("/readyz").text == "leaving: how it is\n"
    assert told.agent_line() == "drain\n"
    drive.send(events.Stop(StopLevel.QUICK))
    assert told.page("/readyz").text == "stopping: how it is\n"
    assert told.agent_line() == "drain\n"
    assert told.page("/livez").status == 200


def test_the_weight_is_what_is_left_of_the_workers_time_and_never_nothing():
    board, drive = Scoreboard(), serving(2)
    row = board.row(board.lease())
    told = admin(lambda: drive.view, board)
    told.sample(0.0)
    assert told.agent_line() == "up ready 100%\n"
    row[scoreboard.CPU] = 10**9
    told.sample(2.0)
    assert told.utilisation() == pytest.approx(0.25)
    assert told.agent_line() == "up ready 75%\n"
    row[scoreboard.CPU] = 10 * 10**9
    told.sample(4.0)
    assert told.agent_line() == "up ready 1%\n"


def test_other_paths_are_not_found_and_say_what_there_is():
    page = admin(lambda: serving(1).view).page("/metrics/")
    assert (page.status, page.text) == (404, "there are /livez /readyz /status.json /metrics and /\n")


def test_the_page_for_people_escapes_everything_and_loads_nothing():
    text = pages.page(DOCUMENT)
    for harm in ("<shop>", "<b>", "<old>", "<boom>", "<slow>", "<signal>"):
        assert harm not in text
    assert "1/1 workers ready &amp; well" in text
    assert "<td class=n>1.0 MiB</td>" in text
    assert "<td class=n>2 h</td>" in text
    assert "up 25 h" in text
    assert "<td class=n>1 ms</td>" in text
    assert text.index("PUT /<") < text.index("GET /&lt;slow&gt;"), "what runs for longest comes first"
    assert re.search(
        r"<td>0</td><td class=n>1</td><td class=n>2 h ago</td><td class=l>killed by &lt;signal&gt; 9<", text
    )
    assert re.search(r"<td>1</td><td class=n>2</td><td class=n>0\.5 s ago</td><td class=l>could not start<", text)
    assert not re.search(r"<script|<img|<link|src=|http-equiv=\"(?!refresh)", text)
    assert "last reload: rolled back" in pages.page({**DOCUMENT, "last_reload": DOCUMENT["last_reload"]})
    assert "last reload" not in pages.page({**DOCUMENT, "last_reload": None})


@pytest.mark.parametrize("host", [b"localhost", b"LOCALHOST:1", b"127.0.0.1", b"127.9.9.9:80", b"[::1]:80", b"[::1]"])
def test_names_of_this_machine(host):
    assert _names_loopback(host)


@pytest.mark.parametrize(
    "host", [b"example.org", b"localhost.example.org", b"10.0.0.1:80", b"[2001:db8::1]", b"", b"["]
)
def test_other_names(host):
    assert not _names_loopback(host)


def test_the_view_of_a_pool_that_hangs_is_ready_still():
    view = serving(1).view
    assert view.count(WorkerState.READY) == 1
    assert admin(lambda: replace(view, gave_up=False)).trouble() == ""


def test_the_documentation_lists_every_metric():
    text = (Path(__file__).parents[2] / "docs/observability.md").read_text()
    assert text.partition("<!-- metrics -->\n")[2].partition("<!-- /metrics -->")[0] == metrics.table()
