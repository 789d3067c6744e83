"""The servers: how each is started, checked for right answers, watched through /proc, and ended."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import ssl
import subprocess
import time
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

from bench.environment import BenchError, run
from bench.hello import BODY

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from contextlib import AbstractContextManager as ContextManager

    from bench.environment import Environment

HERE = Path(__file__).parent
HOST = "127.0.0.1"
APP = "hello:app"
CHECKS = 20
CHECKED = "/checked"  # told apart from the first answer, whose log line may come late
BOOT_SECONDS = 30.0
STOP_SECONDS = 3.0
KEY, CERTIFICATE = "key.pem", "certificate.pem"
_TLS_OPTIONS = {
    "gunicorn": ("--keyfile", "--certfile"),
    "gunicorn-uvicorn": ("--keyfile", "--certfile"),
    "granian": ("--ssl-keyfile", "--ssl-certificate"),
}

YARDSTICK = "uvicorn"
SERVERS = ("procmgr", "uvicorn", "gunicorn", "granian", "bare")


class Transport(Enum):
    """By what clients reach a server."""

    TCP = "tcp"
    TLS = "tls"
    UNIX = "unix"
    FD = "fd"
    """TCP, on a socket that the server inherits as descriptor 0; peers that cannot take one bind it themselves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a server listens."""

    transport: Transport
    port: int
    path: Path  # of the Unix socket

    @property
    def address(self) -> str:
        """As a client of the bench is told."""
        return str(self.path) if self.transport is Transport.UNIX else f"{HOST}:{self.port}"

    def listen(self, name: str) -> list[str]:
        """Spell it for a server."""
        words = ["--host", HOST, "--port", str(self.port)]
        if name.startswith("gunicorn"):
            words = ["-b", f"unix:{self.path}" if self.transport is Transport.UNIX else f"{HOST}:{self.port}"]
        match self.transport:
            case Transport.UNIX if not name.startswith("gunicorn"):
                return ["--uds", str(self.path)]
            case Transport.FD if name in {"procmgr", "uvicorn"}:
                return ["--fd", "0"]
            case Transport.TLS:
                keys, certificates = _TLS_OPTIONS.get(name, ("--ssl-keyfile", "--ssl-certfile"))
                return [
                    *words,
                    keys,
                    str(self.path.with_name(KEY)),
                    certificates,
                    str(self.path.with_name(CERTIFICATE)),
                ]
            case _:
                return words


def command(
    name: str,
    env: Environment,
    place: Place,
    *,
    workers: int,
    access_log: bool,
    app: str = APP,
    extra: Sequence[str] = (),
) -> list[str]:
    """Spell one server's command line: its defaults, the access log switched the way it has it, and `extra`."""
    python, listen = str(env.bin / "python"), place.listen(name)
    rest = ["--workers", str(workers), *extra, app]
    quiet = [] if access_log else ["--no-access-log"]
    match name:
        case "procmgr" | "uvicorn":
            return [python, "-m", name, *listen, *quiet, *rest]
        case "gunicorn" | "gunicorn-uvicorn":
            kind = "asgi" if name == "gunicorn" else "uvicorn_worker.UvicornWorker"
            log = ["--access-logfile", "-"] if access_log else []
            # By its script: under USR2 `-m` would run its __main__.py as a file.
            return [str(env.bin / "gunicorn"), "-k", kind, *listen, *log, *rest]
        case "granian":
            log = ["--access-log"] if access_log else []
            return [python, "-m", "granian", "--interface", "asgi", *listen, *log, *rest]
        case _:
            return [python, "bare.py", HOST, str(place.port)]


def make_certificate(directory: Path) -> None:
    """Make a key and a certificate for the servers, which no client of the bench verifies."""
    names = ("-keyout", str(directory / KEY), "-out", str(directory / CERTIFICATE), "-subj", "/CN=localhost")
    run(
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "2",
        *names,
    )


def inherited(place: Place) -> socket.socket | ContextManager[int]:
    """Give what a server has as its standard input: the socket where it inherits one."""
    if place.transport is not Transport.FD:
        return nullcontext(subprocess.DEVNULL)
    return socket.create_server((HOST, place.port), backlog=2048)


def unix_socket(path: Path) -> socket.socket:
    """Connect to a Unix socket."""
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(5)
    sock.connect(str(path))
    return sock


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
        transport: Transport = Transport.TCP,
    ):
        self.name, self.access_log, self.port = name, access_log, free_port()
        self.python = env.bin / "python"
        self.path, self.answer = path, answer
        server = name.removesuffix("-tcp")
        if server != name:  # beside itself on another transport
            transport = Transport.TCP
        self.place = Place(transport=transport, port=self.port, path=scratch / f"{name}-{self.port}.sock")
        # All write to the same kind of file, so that no server gains by where its log goes.
        self.log = scratch / f"{name}-{self.port}.log"
        words = command(server, env, self.place, workers=workers, access_log=access_log, app=app, extra=extra)
        with self.log.open("ab") as output, inherited(self.place) as stdin:
            self.process = subprocess.Popen(
                ["taskset", "-c", cores, *words],
                cwd=HERE,
                env={**os.environ, "PYTHONPATH": str(HERE), **(variables or {})},
                stdin=stdin,
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
        scheme = "https" if self.place.transport is Transport.TLS else "http"
        return f"{scheme}://{HOST}:{self.port}{self.path}"

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
        connection = self.connection()
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

    def connection(self) -> http.client.HTTPConnection:
        """Make a connection that is not open yet; nobody verifies what the bench made itself."""
        if self.place.transport is Transport.TLS:
            context = ssl._create_unverified_context()
            return http.client.HTTPSConnection(HOST, self.port, timeout=5, context=context)
        connection = http.client.HTTPConnection(HOST, self.port, timeout=5)
        if self.place.transport is Transport.UNIX:
            connection.connect = lambda: setattr(connection, "sock", unix_socket(self.place.path))  # type: ignore[method-assign] # its only seam
        return connection

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
