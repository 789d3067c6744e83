"""The servers: how each is started, checked for right answers, watched through /proc, and ended."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from bench.environment import BenchError
from bench.hello import BODY

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from bench.environment import Environment

HERE = Path(__file__).parent
HOST = "127.0.0.1"
APP = "hello:app"
CHECKS = 20
CHECKED = "/checked"  # told apart from the first answer, whose log line may come late
BOOT_SECONDS = 30.0
STOP_SECONDS = 3.0

YARDSTICK = "uvicorn"
SERVERS = ("procmgr", "uvicorn", "gunicorn", "granian", "bare")


def command(
    name: str, env: Environment, port: int, *, workers: int, access_log: bool, app: str = APP, extra: Sequence[str] = ()
) -> list[str]:
    """Spell one server's command line: its defaults, the access log switched the way it has it, and `extra`."""
    python, listen = str(env.bin / "python"), ["--host", HOST, "--port", str(port)]
    rest = ["--workers", str(workers), *extra, app]
    quiet = [] if access_log else ["--no-access-log"]
    match name:
        case "procmgr" | "uvicorn":
            return [python, "-m", name, *listen, *quiet, *rest]
        case "gunicorn" | "gunicorn-uvicorn":
            kind = "asgi" if name == "gunicorn" else "uvicorn_worker.UvicornWorker"
            log = ["--access-logfile", "-"] if access_log else []
            # By its script: under USR2 `-m` would run its __main__.py as a file.
            return [str(env.bin / "gunicorn"), "-k", kind, "-b", f"{HOST}:{port}", *log, *rest]
        case "granian":
            log = ["--access-log"] if access_log else []
            return [python, "-m", "granian", "--interface", "asgi", *listen, *log, *rest]
        case _:
            return [python, "bare.py", HOST, str(port)]


def free_port() -> int:
    """Ask the kernel for a port nobody listens on."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


class Running:
    """A started server: one session, hence one process group, of its own."""

    def __init__(
        self,
        name: str,
        env: Environment,
        *,
        cores: str,
        scratch: Path,
        workers: int,
        access_log: bool,
        app: str = APP,
        path: str = "/",
        answer: bytes = BODY,
        extra: Sequence[str] = (),
        variables: Mapping[str, str] | None = None,
    ):
        self.name, self.access_log, self.port = name, access_log, free_port()
        self.path, self.answer = path, answer
        # All write to the same kind of file, so that no server gains by where its log goes.
        self.log = scratch / f"{name}-{self.port}.log"
        words = command(name, env, self.port, workers=workers, access_log=access_log, app=app, extra=extra)
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                ["taskset", "-c", cores, *words],
                cwd=HERE,
                env={**os.environ, "PYTHONPATH": str(HERE), **(variables or {})},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """The arbiter's, or whatever the server's first process calls itself."""
        return self.process.pid

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://{HOST}:{self.port}{self.path}"

    def await_ready(self) -> None:
        """Wait for the first answer, then hold it and CHECKS more to the expected one."""
        end = time.monotonic() + BOOT_SECONDS
        while not self.answers(self.path):
            if self.process.poll() is not None or time.monotonic() > end:
                raise BenchError(f"{self.name} does not answer; its last words: {self.last_words()}")
            time.sleep(0.05)
        for _ in range(CHECKS):
            if not self.answers(CHECKED if self.access_log else self.path):
                raise BenchError(f"{self.name} stopped answering; its last words: {self.last_words()}")
        self.check_log()

    def answers(self, path: str) -> bool:
        """Make one request; False when nobody listens, BenchError when the answer is another."""
        connection = http.client.HTTPConnection(HOST, self.port, timeout=5)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            status, body = response.status, response.read()
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()
        if (status, body) != (200, self.answer):
            raise BenchError(f"{self.name} answered {status} {body[:80]!r} instead of 200 {self.answer[:80]!r}")
        return True

    def check_log(self) -> None:
        """See that each request was logged where it should be, and none where it should not."""
        path = CHECKED if self.access_log else self.path
        expected, line, end = CHECKS if self.access_log else 0, f"GET {path}".encode(), time.monotonic() + 3
        while (found := self.log.read_bytes().count(line)) < expected and time.monotonic() < end:
            time.sleep(0.05)
        if found != expected:
            raise BenchError(f"{self.name} wrote {found} access lines for {CHECKS} requests, not {expected}")

    def forget_log(self) -> None:
        """Empty the log; it is open for appending, so writing goes on at its start."""
        os.truncate(self.log, 0)

    def last_words(self) -> str:
        """Give the end of the log as one line."""
        words = self.log.read_text(errors="replace").rstrip().split("\n")[-3:]
        return " | ".join(line.strip()[:200] for line in words if line.strip()) or "none"

    def pids(self) -> list[int]:
        """Give every process of the group."""
        return [pid for entry in Path("/proc").glob("[0-9]*") if group_of(pid := int(entry.name)) == self.pid]

    def stop(self) -> None:
        """TERM, a short while, then KILL to the whole group."""
        with suppress(ProcessLookupError):
            self.process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(STOP_SECONDS)
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.process.wait()


def group_of(pid: int) -> int | None:
    """Give a process's group, None when it has gone."""
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return None
