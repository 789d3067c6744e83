"""How applications and tests meet: the application tells where it is, and can be held there until the test lets it go.

The test's side listens on a Unix stream socket whose path is in the application's environment as `PROBE`. Each `tell`
is a connection with one line of JSON; a `hold` leaves it open and waits for a byte. The kernel closes the connection of
a worker that dies, so a test sees that too. The application's side is `support.stage`.
"""

from __future__ import annotations

import json
import os
import socket
import time
from threading import Condition, Thread
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


class Visit:
    """One thing that an application told: its name, the pid and the worker's identity, and the line it waits on."""

    def __init__(self, sock: socket.socket, told: dict[str, str]) -> None:
        self._sock = sock
        self.told = told
        self.name = told["name"]
        self.pid = int(told["pid"])

    def release(self) -> None:
        """Let a held application go on."""
        self._sock.sendall(b"!")

    def left(self, timeout: float = 10.0) -> bool:
        """Wait until the application let go of its end (it went on, was cancelled, or died)."""
        self._sock.settimeout(timeout)
        try:
            return self._sock.recv(1) == b""
        except ConnectionResetError:
            return True

    def close(self) -> None:
        """Close the line; a held application goes on."""
        self._sock.close()


class Probe:
    """Collects visits and lets a test wait for the next of a name."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.visits: list[Visit] = []
        self._open: list[Visit] = []
        self._changed = Condition()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen(512)
        path.chmod(0o777)
        self._thread = Thread(target=self._accept, daemon=True)
        self._thread.start()

    def wait(self, name: str, *, timeout: float = 20.0, **fields: object) -> Visit:
        """Return the next visit of that name whose told fields are as given; each is returned once."""
        deadline = time.monotonic() + timeout
        with self._changed:
            while True:
                for visit in self.visits:
                    if visit.name == name and all(visit.told[key] == str(value) for key, value in fields.items()):
                        self.visits.remove(visit)
                        return visit
                left = deadline - time.monotonic()
                if left <= 0:
                    told = [visit.told for visit in self.visits]
                    raise AssertionError(f"no application told {name!r} {fields} in {timeout} s; told: {told}")
                self._changed.wait(left)

    def take(self, name: str) -> list[Visit]:
        """Return the visits of that name until now; each is returned once."""
        self._catch_up()
        with self._changed:
            found = [visit for visit in self.visits if visit.name == name]
            self.visits = [visit for visit in self.visits if visit.name != name]
            return found

    def _catch_up(self) -> None:
        """Hear out everybody who came before: visits are taken in the order in which they connected."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as last:
            last.connect(str(self.path))
            last.sendall(json.dumps({"name": "catch up", "pid": 0}).encode() + b"\n")
            self.wait("catch up").close()

    def close(self) -> None:
        """Let everybody go."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as farewell:
            farewell.connect(str(self.path))
            farewell.sendall(b'{"name": "", "pid": 0}\n')
            self._thread.join()
        self._listener.close()
        self.path.unlink(missing_ok=True)
        for visit in self._open:
            visit.close()

    def _accept(self) -> None:
        while True:
            sock, _ = self._listener.accept()
            sock.settimeout(5)
            line = b""
            while not line.endswith(b"\n"):
                data = sock.recv(4096)
                if not data:
                    break
                line += data
            if not line:
                sock.close()  # killed before it could tell
                continue
            sock.settimeout(None)
            visit = Visit(sock, {key: str(value) for key, value in json.loads(line).items()})
            with self._changed:
                self._open.append(visit)
                if not visit.name:
                    return
                self.visits.append(visit)
                self._changed.notify_all()


def environment(probe: Probe) -> dict[str, str]:
    """Return what an application needs to find the probe."""
    return {"PROBE": os.fspath(probe.path)}
