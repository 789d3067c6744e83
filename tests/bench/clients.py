"""The clients of the fault bench, in a process of their own: constant load without retries (`support.load`).

Started as ``python -m bench.clients PORT RATE SECONDS``. It writes one line once every client was answered, loads until
its standard input ends (so it ends with the bench, however that ends) or SECONDS have passed, then writes what became
of the requests as one line of JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import asdict
from itertools import pairwise
from typing import Any, Self

from support.load import Failure, Load

from bench.environment import ROOT, BenchError

KEEP_ALIVE, FRESH = 32, 8
END_SECONDS = 40.0  # a client waits for its last answer for 20


def main(port: int, rate: float, seconds: float) -> None:
    """Load until told to end."""
    clients = KEEP_ALIVE + FRESH
    with Load(port, keep_alive=KEEP_ALIVE, fresh=FRESH, seconds=seconds, pause=clients / rate) as load:
        print("loading", flush=True)
        sys.stdin.read()
    print(json.dumps({"times": list(load.result.times), "failures": [asdict(one) for one in load.result.failures]}))


class Clients:
    """The bench's side: starts and ends the process, and reads what it has seen."""

    def __init__(self, port: int, *, rate: float, seconds: float) -> None:
        self.times: list[float] = []
        self.failures: list[Failure] = []
        self._ended = 0.0
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.clients", str(port), str(rate), str(seconds)],
            cwd=ROOT / "tests",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def __enter__(self) -> Self:
        assert self._process.stdout is not None
        if not self._process.stdout.readline():
            self._process.kill()
            raise BenchError("the clients were not answered")
        return self

    def __exit__(self, *_: object) -> None:
        with self._process:  # closes the pipes and waits
            self._process.kill()

    def end(self) -> None:
        """End the load and take its result."""
        self._ended = time.monotonic()
        text, _ = self._process.communicate(timeout=END_SECONDS)
        result: dict[str, Any] = json.loads(text)
        self.times = sorted(result["times"])
        self.failures = [Failure(**one) for one in result["failures"]]

    @property
    def rate(self) -> float:
        """Answers per second."""
        return len(self.times) / (self.times[-1] - self.times[0]) if len(self.times) > 1 else 0.0

    def longest_gap(self, begin: float, end: float) -> float:
        """Give the longest time in a span, seconds, in which nobody was answered."""
        end = min(end, self._ended)
        seen = [one for one in self.times if begin < one < end]
        return max(later - earlier for earlier, later in pairwise([begin, *seen, end]))


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3]))
