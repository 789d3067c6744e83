"""Run the bench: ``make bench``, or ``PYTHONPATH=tests python3 -m bench``; see README.md."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import report
from bench.environment import VERSIONS, BenchError, build, find_interpreter, need
from bench.measure import CONNECTIONS
from bench.rounds import Bench
from bench.servers import SERVERS, YARDSTICK

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.environment import Environment

ROWS = ("hello", "varied", "log", "idle")
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def options(argv: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="bench", description="Measure procmgr beside its peers.")
    parser.add_argument("--rounds", type=count, default=7, metavar="N", help="rounds of every server (7)")
    parser.add_argument("--seconds", type=count, default=2, metavar="N", help="load on a server in a round (2)")
    parser.add_argument("--servers", type=some_of(SERVERS), default=SERVERS, metavar="A,B", help=",".join(SERVERS))
    parser.add_argument("--rows", type=some_of(ROWS), default=ROWS, metavar="A,B", help=",".join(ROWS))
    parser.add_argument("--python", metavar="A,B", help="versions or paths (3.11 and 3.13 where found)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every round's numbers to FILE")
    return parser.parse_args(argv)


def count(text: str) -> int:
    """Read a number of at least one."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 1")
    return int(text)


def some_of(known: tuple[str, ...]) -> Callable[[str], tuple[str, ...]]:
    """Make a reader of comma-separated names."""

    def read(text: str) -> tuple[str, ...]:
        given = text.split(",")
        for one in given:
            if one not in known:
                raise argparse.ArgumentTypeError(f"{one!r} is none of {', '.join(known)}")
        return tuple(one for one in known if one in given)

    return read


def interpreters(wanted: str | None) -> list[str]:
    """Find the interpreters asked for; of the default ones, those that this machine has."""
    found = {one: find_interpreter(one) for one in (wanted.split(",") if wanted else VERSIONS)}
    for one in (one for one, path in found.items() if path is None):
        if wanted:
            raise BenchError(f"--python {one}: no such interpreter; give a version such as 3.13, or a path")
        print(f"no Python {one} on this machine: not measured")
    return [path for path in found.values() if path is not None]


def measure(env: Environment, chosen: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """Measure every row with one interpreter, and print each as it is done."""
    cores = sorted(os.sched_getaffinity(0))
    core = str(cores[-1])
    servers = [name for name in SERVERS if name in chosen.servers or name == YARDSTICK]
    bench = Bench(env=env, servers=servers, rounds=chosen.rounds, seconds=chosen.seconds, core=core, scratch=scratch)
    versions = ", ".join(f"{name} {version}" for name, version in env.versions.items())
    print(
        f"\nPython {env.python}: {versions}\n{chosen.rounds} rounds of {chosen.seconds} s, {CONNECTIONS} kept-alive "
        f"connections, server and wrk on core {core}, load average {os.getloadavg()[0]:.2f}",
        flush=True,
    )
    result: dict[str, Any] = {"python": env.python, "versions": env.versions, "failures": bench.failures}
    os.sched_setaffinity(0, cores[:-1] or cores)
    for row in chosen.rows:
        if row == "idle":
            result[row] = bench.idle(cores=",".join(map(str, cores)))
            print("\n".join(report.idle_table(result[row])), flush=True)
        else:
            rounds = bench.loads(access_log=row == "log", varied=row == "varied")
            result[row] = [{name: [one.per_second, one.cpu_us] for name, one in found.items()} for found in rounds]
            print("\n".join(report.table(row, rounds)), flush=True)
    os.sched_setaffinity(0, cores)
    return result


def interrupt(_signal: int, _frame: object) -> None:
    """Leave through every finally, once: a second signal must not cut the cleaning up short."""
    for number in STOPS:
        signal.signal(number, lambda *_: None)
    raise KeyboardInterrupt


def main(argv: list[str]) -> int:
    """Run it all; 0 when everything was measured, whether or not the bars are met."""
    chosen = options(argv)
    for number in STOPS:
        signal.signal(number, interrupt)
    memory = Path("/dev/shm")
    try:
        need("wrk", "wrk")
        need("taskset", "util-linux")
        environments = [build(path) for path in interpreters(chosen.python)]
        with tempfile.TemporaryDirectory(prefix="bench-", dir=memory if memory.is_dir() else None) as scratch:
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
