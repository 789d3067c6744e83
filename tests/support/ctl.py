"""`procmgrctl` as a test runs it: to its end, or line by line."""

from __future__ import annotations

import json
import os
import re
import select
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

from support.daemon import PATIENCE, environment

if TYPE_CHECKING:
    from pathlib import Path


def command(*args: str) -> list[str]:
    """Return the command line of the client under test."""
    return [sys.executable, "-m", "procmgr.cli.ctl", *args]


def ctl(*args: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the client to its end."""
    return subprocess.run(
        command(*args),
        env=environment(**env),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


class Running:
    """A client that runs while the test goes on."""

    def __init__(self, *args: str) -> None:
        self.process = subprocess.Popen(
            command(*args),
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self.said = ""

    def until(self, pattern: str) -> None:
        """Wait until it has said something that matches."""
        deadline = time.monotonic() + PATIENCE
        while not re.search(pattern, self.said):
            left = deadline - time.monotonic()
            ready, _, _ = select.select([self.process.stdout], [], [], max(0.0, left))
            data = os.read(self.process.stdout.fileno(), 65_536) if ready else b""
            assert data, f"procmgrctl never said {pattern!r}, it said: {self.said}"
            self.said += data.decode()

    def join(self) -> int:
        """Wait until it ended and return its exit code; negative is a signal."""
        rest, _ = self.process.communicate(timeout=PATIENCE)
        self.said += rest.decode()
        return self.process.returncode


class Raw:
    """A connection to the control socket without a client's manners."""

    def __init__(self, path: Path) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(PATIENCE)
        self.sock.connect(str(path))
        self._file = self.sock.makefile("rb")

    def send(self, **fields: object) -> None:
        """Send a request."""
        self.sock.sendall(json.dumps({"v": 1, **fields}).encode() + b"\n")

    def event(self) -> dict[str, Any]:
        """Return the next event; an empty one is the end of the connection."""
        line = self._file.readline()
        return json.loads(line) if line else {}

    def end(self) -> dict[str, Any]:
        """Return the last event of a request."""
        while (event := self.event()) and event["event"] != "end":
            pass
        return event

    def ask(self, **fields: object) -> dict[str, Any]:
        """Send a request and return the last event of its answer."""
        self.send(**fields)
        return self.end()

    def close(self) -> None:
        """Leave."""
        self._file.close()
        self.sock.close()
