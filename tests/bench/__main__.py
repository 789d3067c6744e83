"""Run the bench: ``make bench``, or ``PYTHONPATH=tests python3 -m bench``; see README.md."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import report
from bench.cli import count, interpreters, interrupt_on_stops, some_of
from bench.environment import BenchError, build, need
from bench.measure import CONNECTIONS
from bench.rounds import Bench
from bench.rows import BY_NAME, HELD, IDLE, NAMES, WAITS
from bench.servers import SERVERS, YARDSTICK, make_certificate

if TYPE_CHECKING:
    from bench.environment import Environment


def options(argv: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="bench", description="Measure procmgr beside its peers.")
    parser.add_argument("--rounds", type=count, default=7, metavar="N", help="rounds of every server (7)")
    parser.add_argument("--seconds", type=count, default=2, metavar="N", help="load on a server in a round (2)")
    parser.add_argument("--servers", type=some_of(SERVERS), default=SERVERS, metavar="A,B", help=",".join(SERVERS))
    parser.add_argument("--rows", type=some_of(NAMES), default=NAMES, metavar="A,B", help=",".join(NAMES))
    parser.add_argument("--python", metavar="A,B", help="versions or paths (3.11 and 3.13 where found)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every round's numbers to FILE")
    return parser.parse_args(argv)


def measure(env: Environment, chosen: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """Measure every row with one interpreter, and print each as it is done."""
    cores = sorted(os.sched_getaffinity(0))
    core, wrk_core = str(cores[-1]), str(cores[0])
    servers = [name for name in SERVERS if name in chosen.servers or name == YARDSTICK]
    bench = Bench(
        env=env,
        servers=servers,
        rounds=chosen.rounds,
        seconds=chosen.seconds,
        core=core,
        wrk_core=wrk_core,
        scratch=scratch,
    )
    versions = ", ".join(f"{name} {version}" for name, version in env.versions.items())
    print(
        f"\nPython {env.python}: {versions}\n{chosen.rounds} rounds of {chosen.seconds} s, {CONNECTIONS} kept-alive "
        f"connections, server on core {core}, wrk on {wrk_core}, load average {os.getloadavg()[0]:.2f}",
        flush=True,
    )
    result: dict[str, Any] = {"python": env.python, "versions": env.versions, "failures": bench.failures}
    os.sched_setaffinity(0, cores[:-1] or cores)
    for row in chosen.rows:
        if row == IDLE:
            result[row] = bench.idle(cores=",".join(map(str, cores)))
            print("\n".join(report.idle_table(result[row])), flush=True)
        elif row == HELD:
            result[row] = bench.held()
            print("\n".join(report.held_table(result[row])), flush=True)
        elif row == WAITS:
            result[row] = bench.waits()
            print("\n".join(report.waits_table(result[row])), flush=True)
        else:
            rounds = bench.loads(BY_NAME[row])
            result[row] = [{name: [one.per_second, one.cpu_us] for name, one in found.items()} for found in rounds]
            print("\n".join(report.table(BY_NAME[row], rounds)), flush=True)
    os.sched_setaffinity(0, cores)
    return result


def main(argv: list[str]) -> int:
    """Run it all; 0 when everything was measured, whether or not the bars are met."""
    chosen = options(argv)
    interrupt_on_stops()
    memory = Path("/dev/shm")
    try:
        need("wrk", "wrk")
        need("taskset", "util-linux")
        environments = [build(path) for path in interpreters(chosen.python)]
        need("openssl", "openssl")
        with tempfile.TemporaryDirectory(prefix="bench-", dir=memory if memory.is_dir() else None) as scratch:
            make_certificate(Path(scratch))
            results = [measure(env, chosen, Path(scratch)) for env in environments]
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    if chosen.json:
        chosen.json.write_text(json.dumps(results, indent=1) + "\n")
    return 1 if any(result["failures"] for result in results) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
