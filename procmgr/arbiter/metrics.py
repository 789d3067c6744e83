"""The metrics page: Prometheus' text format 0.0.4, by hand, of the scoreboard, the pool and what was counted.

Rules: names are `procmgr_` and what is counted, in base units; counters end in `_total` and never go backwards, since
those of workers are sums over all that ever were. Labels have few values, known beforehand, but for slots.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from procmgr import __version__, scoreboard
from procmgr.arbiter.memory import resident

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from procmgr.arbiter.core.view import View
    from procmgr.arbiter.member import Member
    from procmgr.arbiter.tally import Tally
    from procmgr.scoreboard import Scoreboard

KIND: Final = "text/plain; version=0.0.4; charset=utf-8"

Samples = list[tuple[str, float]]
"""Labels as they are rendered, `{state="ready"}` or nothing, and the value."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric: its name, its type and what it tells."""

    name: str
    type: str
    help: str


METRICS: Final = (
    Metric("procmgr_info", "gauge", "Always 1; the label tells the version."),
    Metric("procmgr_start_time_seconds", "gauge", "When this instance started, seconds since the epoch."),
    Metric("procmgr_ready", "gauge", "1 if /readyz answers 200."),
    Metric("procmgr_workers_desired", "gauge", "Workers that there should be."),
    Metric("procmgr_workers", "gauge", "Workers by state."),
    Metric("procmgr_generation", "gauge", "The generation that replacements are made of; reloads make new ones."),
    Metric("procmgr_rolling", "gauge", "1 while a reload is under way."),
    Metric("procmgr_utilisation_ratio", "gauge", "Processor time used of what the ready workers could use, 0 to 1."),
    Metric("procmgr_worker_deaths_total", "counter", "Workers that are gone, by cause."),
    Metric("procmgr_reloads_total", "counter", "Reloads that ended, by outcome."),
    Metric("procmgr_connections", "gauge", "Open connections."),
    Metric("procmgr_connections_accepted_total", "counter", "Connections accepted."),
    Metric("procmgr_requests_active", "gauge", "Requests that run in the application."),
    Metric("procmgr_requests_total", "counter", "Requests whose response ended."),
    Metric("procmgr_responses_total", "counter", "Responses by class of status."),
    Metric("procmgr_application_errors_total", "counter", "Requests in which the application misbehaved."),
    Metric("procmgr_tls_handshakes_failed_total", "counter", "Connections whose TLS handshake failed."),
    Metric("procmgr_log_lines_dropped_total", "counter", "Log lines dropped because their reader stalled."),
    Metric("procmgr_cpu_seconds_total", "counter", "Processor time of workers, as of their last beat."),
    Metric("procmgr_worker_lag_seconds", "gauge", "How late the last beat of the worker in a slot was."),
    Metric("procmgr_worker_beat_age_seconds", "gauge", "How long ago the worker in a slot beat last."),
    Metric("procmgr_worker_memory_bytes", "gauge", "Resident memory of the worker in a slot."),
    Metric("procmgr_worker_requests_active", "gauge", "Requests that run in the worker in a slot."),
)
_CLASSES: Final = ("1xx", "2xx", "3xx", "4xx", "5xx")


def render(
    *,
    view: View,
    members: Mapping[int, Member],
    board: Scoreboard,
    tally: Tally,
    ready: bool,
    utilisation: float,
    started: float,
    now: float,
) -> str:
    """Return the page; `started` is seconds since the epoch, `now` monotonic seconds."""
    found: dict[str, Samples] = {
        "procmgr_info": [(f'{{version="{__version__}"}}', 1)],
        "procmgr_start_time_seconds": [("", started)],
        "procmgr_ready": [("", ready)],
        "procmgr_utilisation_ratio": [("", utilisation)],
        **_pool(view),
        **_sums(board, members),
        **_workers(view, members, now),
        "procmgr_worker_deaths_total": [(f'{{cause="{cause}"}}', count) for cause, count in tally.deaths.items()],
        "procmgr_reloads_total": [(f'{{outcome="{outcome}"}}', count) for outcome, count in tally.reloads.items()],
    }
    return "".join(line for metric in METRICS for line in _lines(metric, found[metric.name]))


def _lines(metric: Metric, samples: Samples) -> Iterator[str]:
    yield f"# HELP {metric.name} {metric.help}\n# TYPE {metric.name} {metric.type}\n"
    for labels, value in samples:
        yield f"{metric.name}{labels} {float(value):.12g}\n"


def _pool(view: View) -> dict[str, Samples]:
    states = (("starting", view.starting), ("ready", view.ready), ("draining", view.draining))
    return {
        "procmgr_workers_desired": [("", view.desired)],
        "procmgr_workers": [(f'{{state="{state}"}}', count) for state, count in states],
        "procmgr_generation": [("", view.generation)],
        "procmgr_rolling": [("", view.rolling is not None)],
    }


def _sums(board: Scoreboard, members: Mapping[int, Member]) -> dict[str, Samples]:
    def gauge(index: int) -> Samples:
        return [("", sum(member.row[index] for member in members.values()))]

    def counter(index: int) -> Samples:
        return [("", board.sum(index))]

    return {
        "procmgr_connections": gauge(scoreboard.CONNECTIONS),
        "procmgr_connections_accepted_total": counter(scoreboard.ACCEPTED),
        "procmgr_requests_active": gauge(scoreboard.ACTIVE),
        "procmgr_requests_total": counter(scoreboard.REQUESTS),
        "procmgr_responses_total": [
            (f'{{class="{name}"}}', board.sum(scoreboard.STATUS_1XX + place)) for place, name in enumerate(_CLASSES)
        ],
        "procmgr_application_errors_total": counter(scoreboard.APP_ERRORS),
        "procmgr_tls_handshakes_failed_total": counter(scoreboard.TLS_FAILED),
        "procmgr_log_lines_dropped_total": counter(scoreboard.LOG_DROPPED),
        "procmgr_cpu_seconds_total": [("", board.sum(scoreboard.CPU) / 1e9)],
    }


def _workers(view: View, members: Mapping[int, Member], now: float) -> dict[str, Samples]:
    """Tell of the newest worker in each slot."""
    newest = {worker.slot: members[worker.worker_id] for worker in view.workers if worker.worker_id in members}
    sizes = {slot: resident(member.pid) for slot, member in newest.items()}
    beats = {slot: member.row[scoreboard.BEAT] / 1e9 for slot, member in newest.items()}

    def each(values: Mapping[int, float]) -> Samples:
        return [(f'{{slot="{slot}"}}', value) for slot, value in values.items()]

    return {
        "procmgr_worker_lag_seconds": each({slot: one.row[scoreboard.LAG] / 1e9 for slot, one in newest.items()}),
        "procmgr_worker_beat_age_seconds": each({slot: max(0.0, now - beat) for slot, beat in beats.items() if beat}),
        "procmgr_worker_memory_bytes": each({slot: size for slot, size in sizes.items() if size is not None}),
        "procmgr_worker_requests_active": each({slot: one.row[scoreboard.ACTIVE] for slot, one in newest.items()}),
    }


def table() -> str:
    """Return the metrics as a table in Markdown."""
    rows = (f"| `{metric.name}` | {metric.type} | {metric.help} |" for metric in METRICS)
    return "\n".join(("| name | type | what it tells |", "|---|---|---|", *rows)) + "\n"
