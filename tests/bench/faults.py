"""Do to each server what happens to servers, under constant load, and count what its clients and the machine noticed.

``make faults``, or ``PYTHONPATH=tests python3 -m bench.faults``; see README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING

from support import proc

from bench import injuries
from bench.cli import count, interpreters, interrupt_on_stops, some_of
from bench.clients import FRESH, KEEP_ALIVE, Clients
from bench.environment import BenchError, build, need
from bench.measure import cpu_ns, pss_mib
from bench.scene import GRACE_SECONDS, SETTLE_SECONDS, Event, GoneError, Plan, Scene

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.load import Failure

    from bench.environment import Environment

SERVERS = ("procmgr", "uvicorn", "gunicorn", "gunicorn-uvicorn", "granian")
LACKS = {"uvicorn": ("upgrade",), "granian": ("recycle", "scale", "upgrade")}
PEER_EVENTS = 5  # a peer's failures show at once
LOAD_SECONDS = 3600.0  # bounds the clients, should nobody end them
BOOT_SECONDS = 1.0
GAP_SECONDS = 0.05
QUIET_SECONDS = 5.0
LOOP_CPU_PERCENT = 2.0

ALWAYS = {
    "procmgr": ("--graceful-timeout", str(GRACE_SECONDS), "--control", "off"),
    "uvicorn": ("--timeout-graceful-shutdown", str(GRACE_SECONDS)),
    "gunicorn": ("--graceful-timeout", str(GRACE_SECONDS), "--no-control-socket"),  # its path is shared
    "granian": ("--workers-kill-timeout", str(GRACE_SECONDS), "--respawn-failed-workers"),
}
HANG = {
    "procmgr": ("--timeout", str(injuries.HANG_SECONDS)),
    "uvicorn": ("--timeout-worker-healthcheck", str(injuries.HANG_SECONDS)),
    "gunicorn": ("--timeout", str(injuries.HANG_SECONDS)),
}
RECYCLE = {
    "procmgr": ("--max-requests", "300", "--max-requests-jitter", "100"),
    "uvicorn": ("--limit-max-requests", "300", "--limit-max-requests-jitter", "100"),
    "gunicorn": ("--max-requests", "300", "--max-requests-jitter", "100"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A fault: what is done how often, on which pool, and which of its numbers have a bar."""

    act: Callable[[Scene, int], None]
    times: int
    what: str
    workers: int = 4
    boot: float = BOOT_SECONDS
    burn: float = 0.0
    extra: dict[str, tuple[str, ...]] = field(default_factory=dict)
    load: bool = True
    recovers: bool = True  # "recover" says something
    lossless: bool = False  # no request may fail
    spares: bool = False  # none but the victim's may fail, and nobody else waits
    bound: float | None = None  # seconds to recover, at most
    ends: bool = False  # the server is meant to end


HUNG_BOUND = injuries.HANG_SECONDS + 1 + BOOT_SECONDS
ROWS = {
    "steady": Row(act=injuries.steady, times=10, what="seconds without a fault", recovers=False, lossless=True),
    "reload": Row(act=injuries.reload, times=50, what="HUP", lossless=True),
    "recycle": Row(act=injuries.recycle, times=50, what="--max-requests", extra=RECYCLE, recovers=False, lossless=True),
    "scale": Row(act=injuries.scale, times=3, what="TTOU and TTIN: 4, 1, 4 workers", lossless=True),
    "kill": Row(act=injuries.kill, times=5, what="kill -9 of a worker", spares=True),
    "stop": Row(act=injuries.stop, times=2, what="SIGSTOP of a worker", extra=HANG, bound=HUNG_BOUND),
    "block": Row(act=injuries.block, times=2, what="blocked event loop", extra=HANG, bound=HUNG_BOUND),
    "broken": Row(act=injuries.broken, times=3, what="HUP with broken code, then mended", lossless=True),
    "upgrade": Row(act=injuries.upgrade, times=10, what="USR2: the program anew", lossless=True),
    "crash": Row(act=injuries.crash, times=60, what="crash loop", workers=8, boot=0.0, burn=0.3, load=False),
    "arbiter": Row(act=injuries.arbiter, times=1, what="kill -9 of the arbiter", recovers=False, ends=True),
    "leaks": Row(
        act=injuries.leaks, times=200, what="HUP, 2 workers, no boot time", workers=2, boot=0.0, lossless=True
    ),
}


@dataclass(slots=True, kw_only=True)
class Outcome:
    """One server's row; times in seconds, None where a number has no meaning."""

    row: str
    server: str
    events: int = 0
    rate: float | None = None
    failed: int | None = None  # of those the fault does not excuse
    excused: int = 0  # of the killed process, in flight
    gap: float | None = None
    quiet_gap: float | None = None  # just before, without a fault
    recover: float | None = None
    orphans: int = 0
    leaked: int | None = None
    arbiter_cpu: float | None = None  # % of a core
    loop_cpu: float | None = None
    misses: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def options(argv: list[str]) -> argparse.Namespace:
    """Read the command line."""
    rows = "\n".join(f"  {name:8} {row.times:4}  {row.what}" for name, row in ROWS.items())
    parser = argparse.ArgumentParser(
        prog="bench.faults",
        description="Do to each server what happens to servers, under load.",
        epilog=f"rows, how often (steady and crash: seconds), what:\n{rows}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    servers, names = tuple(SERVERS), tuple(ROWS)
    parser.add_argument("--servers", type=some_of(servers), default=servers, metavar="A,B", help=",".join(servers))
    parser.add_argument("--rows", type=some_of(names), default=names, metavar="A,B", help="of those below (all)")
    parser.add_argument("--counts", type=counts, default={}, metavar="ROW=N,..", help="how often, instead of below")
    parser.add_argument("--peers", type=count, default=PEER_EVENTS, metavar="N", help=f"peers at most ({PEER_EVENTS})")
    parser.add_argument("--settle", type=count, default=60, metavar="S", help="before a crash loop is measured (60)")
    parser.add_argument("--rate", type=count, default=700, metavar="N", help="requests per second to offer (700)")
    parser.add_argument("--python", default=None, metavar="X.Y", help="version or path (the one that runs this)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers to FILE")
    return parser.parse_args(argv)


def counts(text: str) -> dict[str, int]:
    """Read ROW=N,ROW=N."""
    found = {}
    for each in text.split(","):
        name, _, number = each.partition("=")
        if name not in ROWS:
            raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(ROWS)}")
        found[name] = count(number)
    return found


def family(server: str) -> str:
    """Name the program whose options a server takes."""
    return server.partition("-")[0]


def take(name: str, server: str, env: Environment, chosen: argparse.Namespace, *, scratch: Path) -> Outcome:
    """Take one row of one server."""
    row, own = ROWS[name], family(server)
    times = chosen.counts.get(name, row.times)
    if server != "procmgr" and name not in ("steady", "crash"):
        times = min(times, chosen.peers)
    plan = Plan(workers=row.workers, extra=(*ALWAYS[own], *row.extra.get(own, ())), boot=row.boot, burn=row.burn)
    cores = ",".join(map(str, sorted(os.sched_getaffinity(0))))
    outcome = Outcome(row=name, server=server)
    with Scene(server, env, plan, cores=cores, scratch=scratch) as scene:
        before = first_look(scene, row, rate=chosen.rate)
        if row.load:
            with Clients(scene.server.port, rate=chosen.rate, seconds=LOAD_SECONDS) as clients:
                watch(scene, row, times, outcome, settle=chosen.settle)
                clients.end()
            count_requests(outcome, row, scene.events, clients)
        else:
            watch(scene, row, times, outcome, settle=chosen.settle)
        if scene.lives():
            look_for_leaks(scene, before, outcome)
        outcome.orphans = len(proc.in_session(scene.server.pid)) if row.ends else scene.end()
        outcome.notes += scene.notes
    judge(outcome, row)
    return outcome


def first_look(scene: Scene, row: Row, *, rate: float) -> tuple[tuple[int, int], float]:
    """Count descriptors and memory once every client was answered: what is opened for a first request is no leak."""
    if row.load:
        with Clients(scene.server.port, rate=rate, seconds=LOAD_SECONDS) as clients:
            clients.end()
    return scene.descriptors(), pss_mib([scene.arbiter])


def watch(scene: Scene, row: Row, times: int, outcome: Outcome, *, settle: float) -> None:
    """Do the fault, and see what the arbiter spends on it."""
    if row.spares:
        scene.wait(lambda: False, QUIET_SECONDS)
    begun, cpu, watched = time.monotonic(), cpu_ns([scene.arbiter]), scene.arbiter
    try:
        if row.act is injuries.crash:
            injuries.crash(scene, times, settle)
        else:
            row.act(scene, times)
    except GoneError as gone:
        outcome.misses.append(str(gone))
    outcome.events = len(scene.events) or times
    outcome.loop_cpu = scene.loop_cpu
    if scene.lives() and scene.arbiter == watched:
        outcome.arbiter_cpu = (cpu_ns([watched]) - cpu) / 1e7 / (time.monotonic() - begun)
    if row.recovers:
        found = [event.recovered for event in scene.events]
        outcome.recover = None if None in found else max((one for one in found if one is not None), default=None)


def count_requests(outcome: Outcome, row: Row, events: list[Event], clients: Clients) -> None:
    """Tell the failures that a fault excuses from the others."""
    outcome.rate = clients.rate
    failures = clients.failures
    if row.ends:  # nobody is there for what begins later
        failures = [one for one in failures if one.begun < events[0].at]
    else:
        outcome.gap = max(clients.longest_gap(*span(one)) for one in events or [Event(at=clients.times[0])])
        if row.spares:
            outcome.quiet_gap = clients.longest_gap(events[0].at - QUIET_SECONDS, events[0].at)
    if row.lossless or row.ends:
        failed = failures
    else:
        failed = [one for one in failures if not any(of_victim(one, event) for event in events)]
        outcome.excused = len(failures) - len(failed)
    outcome.failed = len(failed)
    outcome.notes += [f"{n} x {reason}" for reason, n in Counter(kind(one) for one in failed).most_common(2)]


def span(event: Event) -> tuple[float, float]:
    """Say from when to when a fault can keep clients waiting."""
    return event.at, inf if event.recovered is None else event.at + event.recovered


def of_victim(failure: Failure, event: Event) -> bool:
    """Tell whether a request was the victim's: on a connection that it had, or may have had."""
    if event.victim is None or failure.at < event.at:
        return False
    if failure.pid is not None:
        return failure.pid == event.victim
    return event.dead_at is None or failure.begun <= event.dead_at


def kind(failure: Failure) -> str:
    """Name a failure shortly."""
    which = "fresh" if failure.served_before == 0 else "kept"
    return f"{failure.request} ({which}) {failure.reason[:60]}"


def look_for_leaks(scene: Scene, before: tuple[tuple[int, int], float], outcome: Outcome) -> None:
    """Compare descriptors, without load, with those at the start; what was only late is given a while."""
    (arbiter, worker), pss = before

    def leaked() -> int:
        now = scene.descriptors()
        return max(0, now[0] - arbiter) + max(0, now[1] - worker)

    proc.eventually(lambda: leaked() == 0, SETTLE_SECONDS)
    outcome.leaked = leaked()
    if outcome.row == "leaks":
        outcome.notes.append(f"arbiter's PSS {pss_mib([scene.arbiter]) - pss:+.1f} MiB")


def judge(outcome: Outcome, row: Row) -> None:
    """Hold an outcome to the bars of its row."""
    if row.lossless and outcome.failed:
        outcome.misses.append(f"{outcome.failed} failed")
    if row.spares and outcome.failed:
        outcome.misses.append(f"{outcome.failed} failed beside the victim's")
    if row.spares and outcome.gap is not None and outcome.gap >= GAP_SECONDS:
        judge_gap(outcome, outcome.gap)
    if row.recovers and outcome.recover is None:
        outcome.misses.append("never recovered")
    elif row.bound is not None and outcome.recover is not None and outcome.recover > row.bound:
        outcome.misses.append(f"{outcome.recover:.1f} s > {row.bound:g}")
    if outcome.loop_cpu is not None and outcome.loop_cpu >= LOOP_CPU_PERCENT:
        outcome.misses.append(f"CPU {outcome.loop_cpu:.1f} % >= {LOOP_CPU_PERCENT:g}")
    if outcome.orphans:
        outcome.misses.append(f"{outcome.orphans} orphans")
    if outcome.leaked:
        outcome.misses.append(f"{outcome.leaked} fds leaked")


def judge_gap(outcome: Outcome, gap: float) -> None:
    """Blame a gap on the fault, unless the machine makes such gaps without one."""
    quiet = outcome.quiet_gap or 0.0
    if quiet >= GAP_SECONDS:
        outcome.notes.append(f"gap not judged: {1000 * quiet:.0f} ms just before, without a fault")
    else:
        outcome.misses.append(f"gap {1000 * gap:.0f} ms >= {1000 * GAP_SECONDS:.0f}")


HEAD = (
    f"{'row':8} {'server':16} {'times':>5} {'req/s':>6} {'failed':>6} {'victim':>6} {'gap ms':>7} {'recover s':>9} "
    f"{'orphans':>7} {'fds':>4} {'arbiter %':>9} {'all %':>6}  bar"
)


def line(one: Outcome) -> str:
    """Render one row of one server."""
    bar = "SHORT: " + ", ".join(one.misses) if one.misses else "ok"
    notes = f"  [{'; '.join(one.notes)}]" if one.notes else ""
    return (
        f"{one.row:8} {one.server:16} {one.events:5} {shown(one.rate, '.0f'):>6} {shown(one.failed, 'd'):>6} "
        f"{one.excused or '-':>6} {shown(one.gap and 1000 * one.gap, '.0f'):>7} {shown(one.recover, '.2f'):>9} "
        f"{one.orphans:7} {shown(one.leaked, 'd'):>4} {shown(one.arbiter_cpu, '.2f'):>9} "
        f"{shown(one.loop_cpu, '.2f'):>6}  {bar}{notes}"
    )


def shown(value: float | None, spec: str) -> str:
    """Format a number, or that there is none."""
    return "-" if value is None else format(value, spec)


def run(chosen: argparse.Namespace, scratch: Path) -> list[Outcome]:
    """Take every row of every server, and print each as it is done."""
    env = build(interpreters(chosen.python or sys.executable)[0])
    print(f"Python {env.python}: {', '.join(f'{name} {version}' for name, version in env.versions.items())}")
    print(
        f"{KEEP_ALIVE} kept-alive and {FRESH} fresh clients, a third of requests POSTs of 16 KiB, no retry; "
        f"load average {os.getloadavg()[0]:.2f} on {len(os.sched_getaffinity(0))} cores\n\n{HEAD}",
        flush=True,
    )
    outcomes = []
    for name in chosen.rows:
        for server in chosen.servers:
            if name in LACKS.get(server, ()):
                print(f"{name:8} {server:16} has no such thing", flush=True)
                continue
            try:
                outcomes.append(take(name, server, env, chosen, scratch=scratch))
                print(line(outcomes[-1]), flush=True)
            except BenchError as error:
                outcomes.append(Outcome(row=name, server=server, misses=[str(error)]))
                print(f"{name:8} {server:16} NOT MEASURED: {error}", flush=True)
    return outcomes


def main(argv: list[str]) -> int:
    """Run it all; 0 when procmgr was measured and met every bar."""
    chosen = options(argv)
    interrupt_on_stops()
    try:
        need("taskset", "util-linux")
        with tempfile.TemporaryDirectory(prefix="faults-") as scratch:
            outcomes = run(chosen, Path(scratch))
    except BenchError as error:
        print(f"faults: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    if chosen.json:
        chosen.json.write_text(json.dumps([asdict(one) for one in outcomes], indent=1) + "\n")
    return 1 if any(one.misses for one in outcomes if one.server == "procmgr") else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
