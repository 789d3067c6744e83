"""What --preload and --preload-immortal save: memory of the process tree, and the time until a killed worker is back.

    PYTHONPATH=tests python3 -m bench.preload [--python 3.13] [--workers 8] [--mib 100] [--kills 5]

Memory is PSS over the whole process tree after every worker has read all data once; a page that n processes share
counts 1/n in each. Back is from KILL until the arbiter says that all workers are ready; a bare fork is the same for a
process of the same size whose child says one word. Kills are far enough apart that nobody backs off.
"""

from __future__ import annotations

import argparse
import http.client
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from bench.environment import BenchError, build, find_interpreter, run
from bench.measure import pss_mib
from bench.servers import HERE, HOST, free_port, group_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

KINDS = ("records", "documents")
MEMORY_BAR, TIME_BAR = 0.4, 5.0
SETTLED = 11.0  # a worker that dies younger is replaced after a wait
PATIENCE = 60.0


def options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="bench.preload", description="Measure --preload.")
    parser.add_argument("--python", default="{}.{}".format(*sys.version_info[:2]), help="version or path (this one)")
    parser.add_argument("--workers", type=int, default=8, help="workers (8)")
    parser.add_argument("--mib", type=int, default=100, help="MiB of data made at import (100)")
    parser.add_argument("--kills", type=int, default=5, help="workers killed, one after another (5)")
    return parser.parse_args()


class Tree:
    """A process group with a socket on which it tells how it is."""

    def __init__(self, command: Callable[[str], list[str]], scratch: Path, env: dict[str, str]) -> None:
        self.path = scratch / f"tell-{time.monotonic_ns()}"
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sock.bind(str(self.path))
        self._sock.settimeout(PATIENCE)
        self._log = (scratch / "log").open("ab")
        self.process = subprocess.Popen(
            command(str(self.path)),
            cwd=HERE,
            env={**os.environ, **env, "NOTIFY_SOCKET": str(self.path), "PYTHONPATH": str(HERE)},
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,
        )

    def hear(self, text: bytes = b"") -> bytes:
        """Wait for the next message with `text` in it."""
        while text not in (message := self._sock.recv(65536)):
            pass
        return message

    def forget(self) -> None:
        """Drop what was told until now."""
        self._sock.setblocking(False)
        while True:
            try:
                self._sock.recv(65536)
            except BlockingIOError:
                break
        self._sock.settimeout(PATIENCE)

    def pids(self) -> list[int]:
        """Give every process of the group."""
        return [pid for entry in Path("/proc").glob("[0-9]*") if group_of(pid := int(entry.name)) == self.process.pid]

    def end(self) -> None:
        """TERM, then KILL to the whole group."""
        self.process.terminate()
        try:
            self.process.wait(10)
        finally:
            with_nobody_left(self.process.pid)
            self.process.wait()
            self._sock.close()
            self._log.close()


def with_nobody_left(group: int) -> None:
    """KILL what is left of a group."""
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return


@contextmanager
def running(tree: Tree) -> Iterator[Tree]:
    """End the tree whatever happens."""
    try:
        yield tree
    finally:
        tree.end()


def serve(python: Path, scratch: Path, args: argparse.Namespace, kind: str, how: list[str]) -> tuple[Tree, int]:
    """Start procmgr."""
    port = free_port()
    flags = ["-w", str(args.workers), "-b", f"{HOST}:{port}", *how]
    command = [str(python), "-m", "procmgr", "--no-access-log", *flags, "heavy:app"]
    return Tree(lambda _: command, scratch, {"HEAVY_MIB": str(args.mib), "HEAVY_KIND": kind}), port


def read_everywhere(port: int, workers: int) -> set[int]:
    """Make requests until every worker has read its data; give their pids."""
    seen: set[int] = set()
    for _ in range(workers * 100):
        connection = http.client.HTTPConnection(HOST, port, timeout=PATIENCE)
        connection.request("GET", "/")
        seen.add(int(connection.getresponse().read()))
        connection.close()
        if len(seen) == workers:
            return seen
    raise BenchError(f"only {len(seen)} of {workers} workers answered")


def measure(python: Path, scratch: Path, args: argparse.Namespace, kind: str, how: list[str]) -> tuple[float, float]:
    """Give PSS in MiB, and the median time to be back in ms."""
    tree, port = serve(python, scratch, args, kind, how)
    with running(tree):
        tree.hear(b"READY=1")
        workers = read_everywhere(port, args.workers)
        memory = pss_mib(tree.pids())
        time.sleep(SETTLED)
        times = [kill_worker(tree, pid, args.workers) for pid in sorted(workers)[: args.kills]]
    return memory, statistics.median(times)


def kill_worker(tree: Tree, pid: int, workers: int) -> float:
    """Kill a worker; give the ms until the arbiter, which has seen it gone, says that all are ready."""
    tree.forget()
    start = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    tree.hear(f"STATUS={workers - 1}/{workers} ".encode())
    tree.hear(f"STATUS={workers}/{workers} ".encode())
    return (time.monotonic() - start) * 1000


def bare_fork(python: Path, scratch: Path, args: argparse.Namespace, kind: str) -> float:
    """Give the median ms from the death of a child of a process that does nothing else to the next child's word."""
    env = {"HEAVY_MIB": str(args.mib), "HEAVY_KIND": kind}
    times = []
    with running(Tree(lambda path: [str(python), "heavy.py", path], scratch, env)) as tree:
        pid = int(tree.hear())
        for _ in range(args.kills):
            tree.hear(b"read")
            start = time.monotonic()
            os.kill(pid, signal.SIGKILL)
            pid = int(tree.hear())
            times.append((time.monotonic() - start) * 1000)
    return statistics.median(times)


def main() -> None:
    """Measure and print."""
    args = options()
    interpreter = find_interpreter(args.python)
    if interpreter is None:
        raise BenchError(f"no Python {args.python}")
    env = build(interpreter)
    python = env.bin / "python"
    run(str(python), "-m", "pip", "--disable-pip-version-check", "-qq", "install", "numpy")
    print(f"Python {env.python}, {args.workers} workers, {args.mib} MiB made at import, each read in every worker\n")
    print(f"{'objects':10} {'how':9} {'PSS without':>12} {'with':>8} {'ratio':>6}", end="   ")
    print(f"{'back without':>13} {'with':>8} {'bare fork':>10} {'ratio':>6}")
    hows = {"preload": ["--preload"], "immortal": ["--preload", "--preload-immortal"]}
    if env.python.startswith("3.11"):
        del hows["immortal"]
    with tempfile.TemporaryDirectory(prefix="procmgr-bench-") as scratch:
        for kind in KINDS:
            for line in rows(python, Path(scratch), args, kind, hows):
                print(line, flush=True)
    print(f"\nbars: {MEMORY_BAR:.2f} of the memory, {TIME_BAR:g} times the bare fork")


def rows(python: Path, scratch: Path, args: argparse.Namespace, kind: str, hows: dict[str, list[str]]) -> Iterator[str]:
    """Measure one kind of objects, shared in each of these ways."""
    plain, plain_back = measure(python, scratch, args, kind, [])
    bare = bare_fork(python, scratch, args, kind)
    for how, flags in hows.items():
        shared, back = measure(python, scratch, args, kind, flags)
        memory = f"{plain:8.0f} MiB {shared:4.0f} MiB {shared / plain:6.2f}"
        yield f"{kind:10} {how:9} {memory}   {plain_back:10.0f} ms {back:5.1f} ms {bare:7.1f} ms {back / bare:6.1f}"


if __name__ == "__main__":
    main()
