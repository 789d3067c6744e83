"""Take the rows with one interpreter: start the servers, load them in rounds, watch them idle."""

from __future__ import annotations

import random
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from bench.environment import BenchError
from bench.measure import CONNECTIONS, Load, cpu_ns, drive, held, load, pss_mib
from bench.rows import BY_NAME
from bench.servers import YARDSTICK, Running

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from bench.environment import Environment
    from bench.rows import Row

IDLE_WORKERS = 4
IDLE_SETTLE_SECONDS = 3
IDLE_SECONDS = 10
HELD_CONNECTIONS = 5000


@dataclass(slots=True, kw_only=True)
class Bench:
    """One interpreter's measurements; what could not be measured is told at once and kept in ``failures``."""

    env: Environment
    servers: list[str]
    rounds: int
    seconds: int
    core: str  # of the measured server, alone
    wrk_core: str
    scratch: Path
    failures: list[str] = field(default_factory=list)

    def loads(self, row: Row) -> list[dict[str, Load]]:
        """Measure every server once a round, in shuffled order, the others idle."""
        names = [*(name for name in self.servers if name not in row.lack), *row.others]
        rounds = []
        with self.started(names, row, cores=self.core, workers=1) as running:
            self.one_round(running, row, seconds=1)  # to warm up
            for _ in range(self.rounds):
                order = random.sample(running, len(running))
                rounds.append(self.one_round(order, row, seconds=self.seconds))
                for server in running:
                    server.forget_log()
        return rounds

    def waits(self) -> list[dict[str, dict[str, float]]]:
        """Measure how long requests wait at a rate that leaves the yardstick half of its time, the same for all."""
        row = BY_NAME["hello"]
        rounds = []
        with self.started(
            [name for name in self.servers if name != "bare"], row, cores=self.core, workers=1
        ) as running:
            yardstick = next((one for one in running if one.name == YARDSTICK), None)
            if yardstick is None:
                return []
            for _ in range(self.rounds):
                rate = drive(yardstick, "closed", core=self.wrk_core, seconds=1)["per_second"] / 2
                found = {}
                for server in random.sample(running, len(running)):
                    words = ("--rate", str(rate))
                    try:
                        found[server.name] = drive(server, "paced", *words, core=self.wrk_core, seconds=self.seconds)
                    except BenchError as error:
                        self.fail(error)
                rounds.append(found)
        return rounds

    def held(self) -> dict[str, float]:
        """Measure what an idle connection costs a server of one worker, in KiB of PSS: HELD of them, each used once."""
        costs = {}
        names = [name for name in self.servers if name != "bare"]
        with self.started(names, BY_NAME["hello"], cores=self.core, workers=1) as running:
            for server in running:
                try:
                    with held(server, CONNECTIONS):  # to warm up
                        pass
                    before = pss_mib(server.pids())
                    with held(server, HELD_CONNECTIONS):
                        costs[server.name] = (pss_mib(server.pids()) - before) * 1024 / HELD_CONNECTIONS
                except BenchError as error:
                    self.fail(error)
        return costs

    def idle(self, *, cores: str) -> dict[str, dict[str, float]]:
        """Measure what servers of IDLE_WORKERS workers cost while nothing happens, all in the same window."""
        names = [name for name in self.servers if name != "bare"]
        with self.started(names, BY_NAME["log"], cores=cores, workers=IDLE_WORKERS) as running:
            time.sleep(IDLE_SETTLE_SECONDS)
            groups = {one.name: ([one.pid], one.pids()) for one in running}
            before = {name: [cpu_ns(pids) for pids in pair] for name, pair in groups.items()}
            begin = time.monotonic()
            time.sleep(IDLE_SECONDS)
            percent = 100 / 1e9 / (time.monotonic() - begin)
            costs = {}
            for name, pair in groups.items():
                cpu, all_cpu = (percent * (cpu_ns(pids) - was) for pids, was in zip(pair, before[name], strict=True))
                pss, all_pss = map(pss_mib, pair)
                costs[name] = {"cpu": cpu, "pss": pss, "all_cpu": all_cpu, "all_pss": all_pss}
        return costs

    @contextmanager
    def started(self, names: list[str], row: Row, *, cores: str, workers: int) -> Iterator[list[Running]]:
        """Have servers running and checked, without those that fail; all are ended on the way out."""
        with ExitStack() as stack:
            running = []
            for name in names:
                server = Running(
                    name,
                    self.env,
                    scratch=self.scratch,
                    cores=cores,
                    workers=workers,
                    access_log=row.access_log,
                    app=row.app,
                    path=row.path,
                    answer=row.answer,
                    transport=row.transport,
                )
                stack.callback(server.stop)
                try:
                    server.await_ready()
                except BenchError as error:
                    self.fail(error)
                else:
                    running.append(server)
            yield running

    def one_round(self, order: list[Running], row: Row, *, seconds: int) -> dict[str, Load]:
        """Load each server in turn; one that fails has no number in this round."""
        found = {}
        for server in order:
            try:
                found[server.name] = load(server, row, core=self.wrk_core, seconds=seconds)
            except BenchError as error:
                self.fail(error)
        return found

    def fail(self, error: BenchError) -> None:
        """Tell and keep a failure."""
        print(f"NOT MEASURED: {error}", flush=True)
        self.failures.append(str(error))
