"""What procmgrctl shows: numbers at a glance, tables that fit, colours only where they belong."""

from __future__ import annotations

import io
import re

import pytest

from procmgr.cli import tables
from procmgr.cli.tables import Paper

PIPE = Paper(None, colour=False)


def worker(slot=0, **more):
    return {
        "slot": slot,
        "worker": slot + 1,
        "pid": 4300 + slot,
        "generation": 1,
        "state": "ready",
        "age": 754.0,
        "requests": 1234,
        "active": 2,
        "connections": 17,
        "lag": 0.0004,
        "beat_ago": 0.41,
        "cpu": 12.34,
        "memory": 45 << 20,
        "in_flight": [],
        "debugging": False,
        "predecessor": None,
        **more,
    }


def document(*workers, **more):
    return {
        "name": "shop",
        "version": "1.2.3",
        "pid": 4242,
        "uptime": 100_000.0,
        "app": "shop.main:app",
        "addresses": ["http://127.0.0.1:8000", "http://[::1]:8000"],
        "summary": "2/2 workers ready, generation 1",
        "warnings": [],
        "last_reload": None,
        "workers": list(workers),
        "vacant": [],
        **more,
    }


def gone(worker_id, reason, ago=70.0):
    return {"worker": worker_id, "reason": reason, "ago": ago}


def test_the_status_of_a_healthy_pool_on_a_pipe():
    assert tables.status(document(worker(0), worker(1, requests=7)), PIPE) == (
        "shop: procmgr 1.2.3, pid 4242, up 28h\n"
        "serves shop.main:app on http://127.0.0.1:8000, http://[::1]:8000\n"
        "2/2 workers ready, generation 1\n"
        "\n"
        "SLOT  ID   PID  GEN  STATE  AGE  REQS  ACT  CONN    CPU    MEM  LAG   BEAT\n"
        "   0   1  4300    1  ready  13m  1234    2    17  12.3s  45.0M  0ms  410ms\n"
        "   1   2  4301    1  ready  13m     7    2    17  12.3s  45.0M  0ms  410ms\n"
    )


def test_what_cannot_be_known_is_a_dash():
    unknown = worker(cpu=None, memory=None, beat_ago=None, pid=None, state="starting")
    del unknown["requests"], unknown["lag"]
    row = tables.status(document(unknown), PIPE).splitlines()[-1]
    assert row.split() == ["0", "1", "-", "1", "starting", "13m", "-", "2", "17", "-", "-", "-", "-"]


def test_predecessors_that_went_for_one_reason_share_a_line():
    rows = [worker(0, predecessor=gone(4, "was retired")), worker(1, predecessor=gone(5, "was retired", 3.0))]
    shown = tables.status(document(*rows, worker(2, predecessor=gone(6, "died of SIGKILL"))), PIPE)
    assert shown.endswith(
        "\n\nSLOT  BEFORE     WENT  WHY\n0, 1  4, 5     3s ago  was retired\n2     6       70s ago  died of SIGKILL\n"
    )


def request(path="/", age=1.0, method="GET"):
    return {"method": method, "path": path, "age": age}


def test_requests_in_flight_are_shown_oldest_first_whichever_worker_runs_them():
    rows = [worker(0, in_flight=[request("/new", 0.3)]), worker(1, in_flight=[request("/old", 75.0, "POST")])]
    assert tables.status(document(*rows), PIPE).endswith(
        "\n\nSLOT   PID    FOR  REQUEST\n   1  4301  75.0s  POST /old\n   0  4300  300ms  GET /new\n"
        "(and 2 more in flight)\n"
    )


def test_without_requests_in_flight_there_is_no_table_of_them():
    assert "REQUEST" not in tables.status(document(worker()), PIPE)


@pytest.mark.parametrize("width", [40, 80])
def test_requests_in_flight_fit_the_terminal_and_are_few_and_whole_on_a_pipe(width):
    rows = [worker(slot, active=8, in_flight=[request("/long" * 20)] * 8) for slot in range(12)]
    lines = tables.status(document(*rows), Paper(width, colour=False)).splitlines()
    shown = [line for line in lines if "GET /" in line]
    assert len(shown) == 10
    assert all(len(line) == width and line.endswith("...") for line in shown)
    assert "(and 86 more in flight)" in lines
    assert "GET " + "/long" * 20 + "\n" in tables.status(document(*rows), PIPE)


def test_a_worker_that_is_debugged_is_marked():
    shown = tables.status(document(worker(debugging=True)), Paper(80, colour=True))
    assert "\x1b[33mdebugged\x1b[0m" in shown
    assert "too narrow" not in shown


def test_an_empty_slot_tells_who_was_there_last():
    vacant = {"slot": 1, **gone(9, "died of SIGSEGV")}
    shown = tables.status(document(worker(0), vacant=[vacant]), PIPE)
    assert re.search(r"^1 +9 +70s ago  died of SIGSEGV$", shown, re.MULTILINE)


def test_a_pool_without_workers_has_no_table():
    assert "SLOT" not in tables.status(document(), PIPE)


@pytest.mark.parametrize("width", [40, 60, 80, 100])
def test_the_table_of_workers_fits_the_terminal_and_says_what_is_left_out(width):
    rows = [worker(slot, worker=88_000 + slot, pid=4_000_000 + slot, requests=123_456_789) for slot in range(12)]
    lines = tables.status(document(*rows), Paper(width, colour=False)).splitlines()
    assert all(len(line) <= width for line in lines if not line.startswith("("))
    assert any(line.startswith("(too narrow for ") for line in lines) == (width < 80)
    head = next(line for line in lines if line.startswith("SLOT"))
    assert {"SLOT", "PID", "STATE", "BEAT"} <= set(head.split()), "what matters most stays"


def test_at_eighty_columns_a_usual_pool_loses_nothing_but_the_generation_they_share():
    shown = tables.status(document(worker(0), worker(1)), Paper(80, colour=False))
    assert "too narrow" not in shown
    assert " GEN " not in shown
    mixed = tables.status(document(worker(0), worker(1, generation=2)), Paper(80, colour=False))
    assert " GEN " in mixed


def test_long_lines_are_wrapped_on_a_terminal_and_whole_on_a_pipe():
    last = {"generation": 2, "outcome": "rolled back", "exit": 3, "text": "word " * 60, "detail": "", "ago": 5.0}
    given = document(worker(), last_reload=last, warnings=["the daemon runs uvloop 1, installed is uvloop 2 " * 3])
    assert all(len(line) <= 60 for line in tables.status(given, Paper(60, colour=False)).splitlines())
    assert sum(line.startswith("last reload, 5s ago: word") for line in tables.status(given, PIPE).splitlines()) == 1


def test_colours_change_nothing_but_colours():
    plain = tables.status(document(worker(), worker(1, beat_ago=9.0)), Paper(80, colour=False))
    coloured = tables.status(document(worker(), worker(1, beat_ago=9.0)), Paper(80, colour=True))
    assert "\x1b[32mready\x1b[0m" in coloured
    assert re.search(r"\x1b\[31m *9\.0s\x1b\[0m", coloured), "an old beat stands out"
    assert re.sub(r"\x1b\[\d+m", "", coloured) == plain


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("stream", "environ", "colour"),
    [
        (Terminal(), {"TERM": "xterm"}, True),
        (Terminal(), {"TERM": "xterm", "NO_COLOR": ""}, True),
        (Terminal(), {"TERM": "xterm", "NO_COLOR": "1"}, False),
        (Terminal(), {"TERM": "dumb"}, False),
        (io.StringIO(), {"TERM": "xterm"}, False),
    ],
)
def test_colour_is_for_terminals_that_want_it(stream, environ, colour):
    paper = Paper.of(stream, environ)
    assert paper.colour is colour
    assert (paper.width is None) is not stream.isatty()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "-"), (0.2, "0s"), (119.4, "119s"), (120, "2m"), (7199, "120m"), (7200, "2h"), (172_800, "2d")],
)
def test_spans_are_told_in_their_largest_sensible_unit(seconds, text):
    assert tables.span(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "-"), (0, "0ms"), (0.0123, "12ms"), (0.9996, "1.0s"), (99.94, "99.9s"), (600, "10m")]
)
def test_short_times_are_told_finely(seconds, text):
    assert tables.fine(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"), [(None, "-"), (0, "0.0M"), (99 << 20, "99.0M"), (300 << 20, "300M"), (20 << 30, "20.0G")]
)
def test_sizes_are_told_in_mebibytes_or_gibibytes(count, text):
    assert tables.size(count) == text


def test_instances_are_listed_by_name():
    rows = [{"name": "one", "pid": 7, "path": "/run/one.sock"}, {"name": "longer", "pid": 4242, "path": "/run/x"}]
    assert tables.instances(rows, PIPE) == ("NAME     PID  SOCKET\none        7  /run/one.sock\nlonger  4242  /run/x\n")
