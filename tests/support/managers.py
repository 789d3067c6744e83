"""Supervisor and Circus, the real ones, started on the files in etc/ and ended with all that they started.

Of a file only addresses and paths are replaced, and what a test names besides. The sd_notify messages of every procmgr
below the manager arrive at one socket, so tests wait for those; whoever still has the environment of this manager after
its end is an orphan, which fails the test.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from support import probe, proc
from support.daemon import PATIENCE, ROOT, Connection, environment
from support.notify import NotifySocket
from support.probe import Probe

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

BIN = Path(sys.executable).parent

APPLICATION = """
import asyncio
from support import testapp

async def app(scope, receive, send):
    if scope["type"] == "http" and scope["path"] == "/parts":
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"a", "more_body": True})
        await asyncio.sleep(0)  # what follows leaves in a write of its own
        await asyncio.sleep(0)
        await send({"type": "http.response.body", "body": b"b"})
    else:
        await testapp.app(scope, receive, send)
"""


class Manager:
    """A process manager on a copy of `etc/NAME`, in a directory of its own, with `replace` done to the text first."""

    program: str
    own_paths: tuple[str, ...]

    def __init__(self, name: str, replace: Mapping[str, str] | None = None) -> None:
        self._room = tempfile.TemporaryDirectory(prefix="procmgr-")
        self.room = Path(self._room.name)
        self.port = proc.free_port()
        self.notify = NotifySocket(self.room / "notify")
        self.probe = Probe(self.room / "probe")
        self.config = self.room / name
        self.config.write_text(self._rewrite((ROOT / "etc" / name).read_text(), replace or {}))
        (self.room / "app.py").write_text(APPLICATION)
        self._env = environment(
            NOTIFY_SOCKET=str(self.notify.path), XDG_RUNTIME_DIR=str(self.room), **probe.environment(self.probe)
        )
        self._env["PATH"] = f"{BIN}{os.pathsep}{self._env['PATH']}"
        self._connections: list[Connection] = []
        self._out = (self.room / "manager.out").open("wb")
        self.process = subprocess.Popen(
            [BIN / self.program, *self._arguments()],
            cwd=self.room,
            env=self._env,
            stdin=subprocess.DEVNULL,
            stdout=self._out,
            stderr=self._out,
            start_new_session=True,
        )
        self.notify.start(self.process.pid)

    def _arguments(self) -> list[str]:
        raise NotImplementedError

    def _client(self) -> list[str]:
        raise NotImplementedError

    def _rewrite(self, text: str, replace: Mapping[str, str]) -> str:
        ours = dict.fromkeys(self.own_paths, str(self.room))
        for old, new in {"/srv/app": str(self.room), "8000": str(self.port), **ours, **replace}.items():
            assert old in text, f"{self.config.name} has no {old!r}"
            text = text.replace(old, new)
        return text

    # What it says

    @property
    def log(self) -> str:
        """What the manager said."""
        return (self.room / "manager.out").read_text(errors="replace")

    def logs(self) -> str:
        """Return what every procmgr said, wherever the manager put it."""
        return "".join(path.read_text(errors="replace") for path in sorted(self.room.glob("*.log*"))) + self.log

    def ready(self, times: int = 1) -> None:
        """Wait for so many READY=1."""
        for _ in range(times):
            self.wait({"READY": "1"})

    def wait(self, fields: Mapping[str, str]) -> None:
        """Wait for the next message with these fields."""
        found = self.notify.wait(lambda message: fields.items() <= message.fields.items(), PATIENCE)
        assert found is not None, f"no procmgr said {fields}\n{self.story()}"

    def until(self, holds: Callable[[], object], what: str) -> None:
        """Wait until `holds`: for what the manager says and does, which nobody announces; looking costs a lot."""
        deadline = time.monotonic() + PATIENCE
        while not holds():
            assert time.monotonic() < deadline, f"it never came that {what}\n{self.story()}"
            select.select([], [], [], 0.05)

    def story(self) -> str:
        """Return what happened, for a failing test."""
        return f"-- status --\n{self.notify.statuses()[-20:]}\n-- logs --\n{self.logs()[-20_000:]}"

    # What it is told

    def ctl(self, *args: str, check: bool = True) -> str:
        """Run the manager's client to its end; with `check` it has to succeed."""
        done = subprocess.run(
            [*self._client(), *args],
            env=self._env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=3 * PATIENCE,
            check=False,
        )
        assert not (check and done.returncode), f"{args}: {done.stdout}{done.stderr}\n{self.story()}"
        return done.stdout

    def reload(self, *command: str, count: int = 1) -> None:
        """Run what reloads `count` instances, and wait until each has."""
        self.notify.skip()
        self.ctl(*command)
        for _ in range(count):
            self.wait({"RELOADING": "1"})
        self.until(lambda: self.logs().count("reload done: generation 2 serves") == count, f"{count} reloads are done")

    # What it is made of

    def members(self) -> list[proc.Process]:
        """Return what lives with the environment of this manager, itself excepted."""
        mark = os.fsencode(f"PROBE={self.probe.path}")
        return [each for each in proc.processes() if each.pid != self.process.pid and mark in _environ(each.pid)]

    def arbiters(self) -> list[int]:
        """Return the pids of the arbiters."""
        return sorted(each.pid for each in self.members() if each.parent == self.process.pid)

    def workers(self) -> list[int]:
        """Return the pids of all workers."""
        return sorted(each.pid for each in self.members() if each.comm == "procmgr: worker")

    def connect(self) -> Connection:
        """Open a connection that is closed at the end."""
        connection = Connection(self.port)
        self._connections.append(connection)
        return connection

    # How it ends

    def stop(self) -> None:
        """End the manager in order, and have it end all that it started."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(3 * PATIENCE)

    def left(self) -> list[proc.Process]:
        """Return what is left of it after a moment."""
        proc.wait_dead([each.pid for each in self.members()], 2.0)
        return self.members()

    def close(self) -> None:
        """End it in order, and make sure that nothing remains; raises AssertionError if something did."""
        try:
            for connection in self._connections:
                connection.close()
            if self.process.poll() is None:
                self.stop()
            left = self.left()
            assert not left, f"it left processes behind: {left}\n{self.story()}"
            assert proc.port_is_free(self.port), f"its port is still held\n{self.story()}"
        finally:
            self._destroy()

    def _destroy(self) -> None:
        for each in [*self.members(), proc.process(self.process.pid)]:
            with suppress(ProcessLookupError):
                if each is not None and each.state != "Z":
                    os.kill(each.pid, signal.SIGKILL)
        self.process.wait(PATIENCE)
        self.notify.close()
        self.probe.close()
        self._out.close()
        self._room.cleanup()


def _environ(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return b""


class Supervisor(Manager):
    """supervisord(1)."""

    program = "supervisord"
    own_paths = ("/run", "/var/log/supervisor")

    def _arguments(self) -> list[str]:
        return ["--nodaemon", "--configuration", str(self.config)]

    def _client(self) -> list[str]:
        return [str(BIN / "supervisorctl"), "-c", str(self.config)]


class Circus(Manager):
    """circusd(1)."""

    program = "circusd"
    own_paths = ()

    def _rewrite(self, text: str, replace: Mapping[str, str]) -> str:
        self._endpoint, pubsub = (f"127.0.0.1:{proc.free_port()}" for _ in range(2))
        own = {"127.0.0.1:5555": self._endpoint, "127.0.0.1:5556": pubsub}
        if "/var/log/circus" in text:
            own["/var/log/circus"] = str(self.room)
        return super()._rewrite(text, {**own, **replace})

    def _arguments(self) -> list[str]:
        return [str(self.config)]

    def _client(self) -> list[str]:
        return [str(BIN / "circusctl"), "--endpoint", f"tcp://{self._endpoint}", "--timeout", "60"]
