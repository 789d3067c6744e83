"""The real daemon, started for a test and ended with it, whatever the test did.

It runs in a session of its own: whoever is still in that session after it ended is an orphan, which fails the test.
Nothing here sleeps: tests wait for the daemon's sd_notify messages, for the death of a process, for what the
application tells, or for an answer.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import tempfile
from contextlib import suppress
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from signal import SIGHUP, SIGTERM, SIGUSR2, Signals
from typing import TYPE_CHECKING, Any

from support import probe, proc
from support.notify import Notification, NotifySocket
from support.probe import Probe

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 20.0
WORKER_COMM = "procmgr: worker"


def environment(**more: str) -> dict[str, str]:
    """Return a clean environment in which the daemon, and the applications of the tests, can be imported.

    And measured, if this process is (make coverage).
    """
    names = ("PATH", "HOME", "LANG", "TMPDIR", "COVERAGE_PROCESS_CONFIG")
    kept = {key: os.environ[key] for key in names if key in os.environ}
    paths = f"{ROOT}{os.pathsep}{ROOT / 'tests'}"
    # An application rewritten within a second would be taken from its stale .pyc.
    return {**kept, "PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1", **more}


def command(*args: str) -> list[str]:
    """Return the command line of the daemon under test."""
    return [sys.executable, "-m", "procmgr", *args]


def run(*args: str, cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the daemon to its end: for starts that are refused and commands that only print."""
    return subprocess.run(
        command(*args),
        cwd=cwd,
        env=environment(**env),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


class Connection(HTTPConnection):
    """One connection, opened at once and never again."""

    auto_open = 0

    def __init__(self, address: int | Path, *, host: str = "127.0.0.1") -> None:
        super().__init__("localhost", timeout=PATIENCE)
        if isinstance(address, int):
            self.sock = socket.create_connection((host, address), timeout=PATIENCE)
        else:
            self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self.sock.settimeout(PATIENCE)
            self.sock.connect(str(address))

    def get(self, path: str = "/") -> tuple[HTTPResponse, bytes]:
        """Send a request and return its answer, read to its end."""
        self.request("GET", path)
        return self.answer()

    def answer(self) -> tuple[HTTPResponse, bytes]:
        """Return the answer to the request that was sent, read to its end."""
        response = self.getresponse()
        return response, response.read()


class Daemon:
    """`procmgr ARGS APP` with a notify socket, a probe and a port of its own; both outputs go to files.

    `options` come before the address and the application. `bind` None leaves the address to `options`. `wrapper` is
    put before the command and must exec it in the end.
    """

    def __init__(
        self,
        *options: str,
        app: str | None = "support.testapp:app",
        bind: str | None = "",
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        wrapper: Sequence[str] = (),
        pass_fds: Sequence[int] = (),
        stdin: int | None = subprocess.DEVNULL,
        stdout: int | None = None,
    ) -> None:
        self.port = proc.free_port()
        self._room = tempfile.TemporaryDirectory(prefix="procmgr-")
        self.room = Path(self._room.name)
        self.room.chmod(0o755)  # a worker that dropped its privileges passes through
        self.notify = NotifySocket(self.room / "notify")
        self.probe = Probe(self.room / "probe")
        self._connections: list[Connection] = []
        own = {"NOTIFY_SOCKET": str(self.notify.path), **probe.environment(self.probe)}
        address = [] if bind is None else ["-b", bind or f"127.0.0.1:{self.port}"]
        self.args = [*options, *address, *([] if app is None else [app])]
        self._out = (self.room / "stdout").open("wb")
        self._err = (self.room / "stderr").open("wb")
        self.process = subprocess.Popen(
            [*wrapper, *command(*self.args)],
            cwd=cwd,
            env=environment(**own, **(env or {})),
            stdin=stdin,
            stdout=self._out if stdout is None else stdout,
            stderr=self._err,
            start_new_session=True,
            pass_fds=pass_fds,
        )
        self.pid = self.process.pid
        self.notify.start(self.pid)

    # What it says

    @property
    def log(self) -> str:
        """Everything on stderr so far."""
        return (self.room / "stderr").read_text(errors="replace")

    @property
    def output(self) -> str:
        """Everything on stdout so far."""
        return (self.room / "stdout").read_text(errors="replace")

    def wait(self, matches: Callable[[Notification], bool], what: str, timeout: float = PATIENCE) -> Notification:
        """Return the next notification that matches, or fail with the daemon's log."""
        message = self.notify.wait(matches, timeout)
        assert message is not None, f"the daemon never said {what}\n{self.story()}"
        return message

    def ready(self) -> Daemon:
        """Wait for the next READY=1."""
        self.wait(lambda message: message.fields.get("READY") == "1", "READY=1")
        return self

    def status(self, pattern: str) -> str:
        """Wait for the next status that matches the regular expression and return it."""
        found = self.wait(lambda message: bool(re.search(pattern, message.status)), f"a STATUS like {pattern!r}")
        return found.status

    def until(self, holds: Callable[[], Any], what: str) -> None:
        """Wait until `holds` is true, looking whenever the daemon says something: at every change and each second."""
        if holds() or self.notify.wait(lambda _: bool(holds()), PATIENCE) or holds():
            return
        raise AssertionError(f"it never came that {what}\n{self.story()}")

    def logged(self, pattern: str) -> None:
        """Wait until a line of the log matches."""
        self.until(lambda: re.search(pattern, self.log, re.MULTILINE), f"its log has {pattern!r}")

    def story(self) -> str:
        """Return what the daemon was, said and logged, for a failing test."""
        said = "\n".join(self.notify.statuses()[-20:])
        code = self.process.poll()
        state = "it runs" if code is None else f"it exited with {code}"
        return f"procmgr {' '.join(self.args)}: {state}\n-- status --\n{said}\n-- stderr --\n{self.log[-20_000:]}"

    # What it is made of

    def workers(self) -> list[int]:
        """Return the pids of its living workers."""
        return sorted(each.pid for each in proc.children(self.pid) if each.comm == WORKER_COMM)

    def signal(self, signum: Signals) -> None:
        """Signal the arbiter alone."""
        self.process.send_signal(signum)

    def try_reload(self) -> None:
        """HUP, and wait until the reload has ended one way or the other."""
        self.notify.skip()
        self.signal(SIGHUP)
        self.wait(lambda message: message.fields.get("RELOADING") == "1", "RELOADING=1")
        self.ready()

    def reload(self) -> None:
        """HUP, and wait until every old worker was replaced and accepts no more."""
        old = self.workers()
        self.try_reload()
        # A reload is done when the new workers are ready; that the old let go of the listeners follows unannounced.
        assert proc.eventually(lambda: not any(self._accepts(pid) for pid in old)), f"not replaced\n{self.story()}"

    def try_upgrade(self) -> str:
        """USR2, and wait until the upgrade has ended one way or the other; return the status that says how."""
        self.notify.skip()
        self.signal(SIGUSR2)
        return self.status("upgraded to|upgrade refused|upgrade failed")

    def upgrade(self) -> None:
        """USR2, and wait until the new program is in charge."""
        status = self.try_upgrade()
        assert "upgraded to" in status, f"{status}\n{self.story()}"

    def _accepts(self, worker: int) -> bool:
        return bool(proc.sockets_of(worker) & proc.sockets_of(self.pid))

    # How it answers

    def connect(self, address: int | Path | None = None) -> Connection:
        """Open a connection that is closed at the end of the test."""
        connection = Connection(self.port if address is None else address)
        self._connections.append(connection)
        return connection

    def get(self, path: str = "/") -> Any:
        """Return the JSON that a GET on a fresh connection is answered with."""
        connection = self.connect()
        response, body = connection.get(path)
        connection.close()
        assert response.status == 200, f"answered {response.status}: {body!r}\n{self.story()}"
        return json.loads(body)

    # How it ends

    def join(self, timeout: float = PATIENCE) -> int:
        """Wait until it ended and return its exit code, or fail with its log."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the daemon does not end\n{self.story()}") from None

    def stop(self, signum: Signals = SIGTERM) -> int:
        """Signal it, wait until it ended and return its exit code."""
        self.signal(signum)
        return self.join()

    def left(self, timeout: float = PATIENCE) -> list[proc.Process]:
        """Wait until every process of its session is gone; return those that are not after `timeout` seconds."""
        proc.wait_dead([each.pid for each in proc.in_session(self.pid)], timeout)
        return proc.in_session(self.pid)

    def close(self) -> None:
        """End it in order if it runs, and make sure that nothing remains; raises AssertionError if something did."""
        try:
            for connection in self._connections:
                connection.close()
            code = self.stop() if self.process.poll() is None else 0
            orphans = self.left(1.0)
            assert code == 0, f"it did not end in order\n{self.story()}"
            assert not orphans, f"it left processes behind: {orphans}\n{self.story()}"
            assert proc.port_is_free(self.port), f"its port is still held\n{self.story()}"
        finally:
            self._destroy()

    def _destroy(self) -> None:
        proc.kill_session(self.pid)
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(PATIENCE)
        self.notify.close()
        self.probe.close()
        self._out.close()
        self._err.close()
        self._room.cleanup()
