"""Take the numbers: requests per second under wrk, processor time and memory from /proc."""

from __future__ import annotations

import json
import re
import subprocess
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench.environment import BenchError
from bench.servers import HERE, Transport

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from bench.rows import Row
    from bench.servers import Running

CONNECTIONS = 32
SCRIPT = Path(__file__).with_name("load.lua")


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What one round of load showed."""

    per_second: float
    cpu_us: float  # processor time of the server's processes per request, microseconds


def load(server: Running, row: Row, *, core: str, seconds: int) -> Load:
    """Load a server from `core`, with wrk where it can."""
    if row.message or row.transport is Transport.UNIX:
        return driven(server, row, core=core, seconds=seconds)
    before = cpu_ns(server.pids())
    text = wrk(server.url, row, core=core, seconds=seconds)
    used = cpu_ns(server.pids()) - before
    if problem := re.search(r"(Socket errors: .*|Non-2xx or 3xx responses: .*)", text):
        raise BenchError(f"{server.name} failed under load: {problem[1]}")
    requests, rate = re.search(r"(\d+) requests in", text), re.search(r"Requests/sec:\s+([\d.]+)", text)
    if requests is None or rate is None or not int(requests[1]):
        raise BenchError(f"{server.name} answered nothing under load: {text.strip()[-200:]!r}")
    return Load(per_second=float(rate[1]), cpu_us=used / 1000 / int(requests[1]))


def wrk(url: str, row: Row, *, core: str, seconds: int) -> str:
    """Run wrk once, bounded."""
    # A plain load is made without Lua, which would be slower than the fastest servers.
    script, words = ([], []) if row.how == "plain" else (["-s", str(SCRIPT)], ["--", row.how])
    command = ["taskset", "-c", core, "wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", *script, url, *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            return process.communicate(timeout=seconds + 15)[0]
        finally:
            process.kill()


def driven(server: Running, row: Row, *, core: str, seconds: int) -> Load:
    """Load a server with the bench's own client."""
    before = cpu_ns(server.pids())
    words = ["--message", str(row.message), *(["--deflate"] if row.deflate else [])]
    found = drive(server, "closed", *words, core=core, seconds=seconds)
    used = cpu_ns(server.pids()) - before
    if not found["answers"]:
        raise BenchError(f"{server.name} answered nothing under load")
    return Load(per_second=found["per_second"], cpu_us=used / 1000 / found["answers"])


def drive(server: Running, how: str, *words: str, core: str, seconds: float) -> dict[str, float]:
    """Run driver.py to its end, bounded, and return what it found."""
    command = ["taskset", "-c", core, *driver(server, how, *words), "--seconds", str(seconds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=HERE) as process:
        try:
            text, problem = process.communicate(timeout=seconds + 30)
        finally:
            process.kill()
    if process.returncode:
        raise BenchError(f"{server.name} failed under load: {problem.strip().splitlines()[-1:]}")
    found: dict[str, float] = json.loads(text)
    return found


def driver(server: Running, how: str, *words: str) -> list[str]:
    """Spell the command of driver.py."""
    program = [str(server.python), str(HERE / "driver.py"), how, server.place.address, "--path", server.path]
    return [*program, "--connections", str(CONNECTIONS), *words]


@contextmanager
def held(server: Running, connections: int) -> Iterator[None]:
    """Hold connections open that were each answered once; raises BenchError if one was closed in the end."""
    command = driver(server, "hold", "--connections", str(connections))
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=HERE
    ) as process:
        try:
            assert process.stdout is not None
            if not process.stdout.readline():
                raise BenchError(f"{server.name} did not answer {connections} connections: {process.communicate()[1]}")
            yield
            _, problem = process.communicate(timeout=30)
        finally:
            process.kill()
    if process.returncode:
        raise BenchError(f"{server.name} closed some of {connections} idle connections: {problem.strip()[-200:]}")


def cpu_ns(pids: Iterable[int]) -> int:
    """Sum the time on a processor of all threads, in ns; /proc/PID/stat counts in steps of 10 ms (proc(5))."""
    return sum(thread_ns(task) for pid in pids for task in Path(f"/proc/{pid}/task").glob("*/schedstat"))


def thread_ns(schedstat: Path) -> int:
    """Read the first number of a thread's schedstat, 0 when it has gone."""
    try:
        return int(schedstat.read_text().split()[0])
    except (FileNotFoundError, ProcessLookupError):
        return 0


def pss_mib(pids: Iterable[int]) -> float:
    """Sum the proportional set size, in MiB."""
    return sum(int(match[1]) for pid in pids if (match := rollup(pid))) / 1024


def rollup(pid: int) -> re.Match[str] | None:
    """Find the Pss line, in KiB."""
    try:
        return re.search(r"^Pss:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
    except (FileNotFoundError, ProcessLookupError):
        return None
