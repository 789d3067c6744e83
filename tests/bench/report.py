"""Turn rounds into tables: medians, the ratio to uvicorn within each round and its quartiles, the bars."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

from bench.rounds import HELD_CONNECTIONS
from bench.servers import YARDSTICK

if TYPE_CHECKING:
    from bench.measure import Load
    from bench.rows import Row

IDLE_CPU_BAR, IDLE_PSS_BAR = 0.2, 25.0  # % of a core, MiB: the arbiter, at most


def spread(values: list[float]) -> tuple[float, float, float]:
    """Give the lower quartile, the median and the upper quartile."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def ratios(rounds: list[dict[str, Load]], name: str, other: str) -> list[float]:
    """Compare within each round, where both met the same machine."""
    return [one[name].per_second / one[other].per_second for one in rounds if name in one and other in one]


def table(row: Row, rounds: list[dict[str, Load]]) -> list[str]:
    """Render one row of the bench, fastest first, and hold procmgr to its bars."""
    lines = [f"\n{row.title:42} req/s  x {row.yardstick:11} quartiles   CPU us/req"]
    names = {name for one in rounds for name in one}
    medians = {n: statistics.median(one[n].per_second for one in rounds if n in one) for n in names}
    for name in sorted(names, key=lambda n: -medians[n]):
        cpu = statistics.median(one[name].cpu_us for one in rounds if name in one)
        compared = ratios(rounds, name, row.yardstick)
        low, middle, high = spread(compared) if compared else (0.0, 0.0, 0.0)
        lines.append(f"  {name:36} {medians[name]:9.0f} {middle:8.2f}   {low:.2f} to {high:.2f}  {cpu:12.1f}")
    for peer, bar in row.bars.items():
        if compared := ratios(rounds, "procmgr", peer):
            lines.append(verdict(f"procmgr / {peer}", spread(compared)[1], at_least=bar))
    return lines


def waits_table(rounds: list[dict[str, dict[str, float]]]) -> list[str]:
    """Render how long requests waited."""
    lines = [f"\nhalf of {YARDSTICK}'s rate, waiting             p50 ms    p99 ms  x {YARDSTICK}   quartiles"]
    compared = {}
    for name in sorted({name for one in rounds for name in one}):
        both = [one for one in rounds if name in one and YARDSTICK in one]
        low, middle, high = compared[name] = spread([one[name]["p99"] / one[YARDSTICK]["p99"] for one in both])
        half, most = (statistics.median(one[name][key] for one in both) * 1000 for key in ("p50", "p99"))
        lines.append(f"  {name:36} {half:9.2f} {most:9.2f} {middle:8.2f}   {low:.2f} to {high:.2f}")
    if "procmgr" in compared:
        lines.append(verdict(f"p99 of procmgr / {YARDSTICK}", compared["procmgr"][1], at_most=1.0))
    return lines


def held_table(held: dict[str, float]) -> list[str]:
    """Render what idle connections cost."""
    lines = [f"\n{HELD_CONNECTIONS} idle connections                  KiB each"]
    lines += [f"  {name:36} {cost:9.2f}" for name, cost in sorted(held.items(), key=lambda item: item[1])]
    if {"procmgr", YARDSTICK} <= held.keys():
        ratio = held["procmgr"] / held[YARDSTICK]
        lines.append(verdict(f"memory of procmgr / {YARDSTICK}", ratio, at_most=1.0))
    return lines


def idle_table(idle: dict[str, dict[str, float]]) -> list[str]:
    """Render what four idle workers cost."""
    head = "idle, 4 workers"
    lines = [f"\n{head:22} arbiter: CPU %   PSS MiB     all processes: CPU %   PSS MiB"]
    lines += [
        f"  {name:20} {one['cpu']:14.3f} {one['pss']:9.1f} {one['all_cpu']:24.3f} {one['all_pss']:9.1f}"
        for name, one in sorted(idle.items(), key=lambda item: item[1]["cpu"])
    ]
    if mine := idle.get("procmgr"):
        lines.append(verdict("arbiter CPU %", mine["cpu"], at_most=IDLE_CPU_BAR))
        lines.append(verdict("arbiter PSS MiB", mine["pss"], at_most=IDLE_PSS_BAR))
    return lines


def verdict(what: str, value: float, *, at_least: float | None = None, at_most: float | None = None) -> str:
    """Say whether a bar is met, and by how much it is missed."""
    bar, sign = (at_least, ">=") if at_least is not None else (at_most, "<=")
    assert bar is not None
    gap = bar - value if at_least is not None else value - bar
    return f"  bar: {what} {sign} {bar:g}: {'PASS' if gap <= 0 else f'SHORT by {gap:.2f}'} ({value:.3g})"
