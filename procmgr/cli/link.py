"""The client's end of the control protocol: find an instance, ask it, and hear its events to the last.

A daemon that re-executes itself says so; the same operation is then followed on a new connection.
"""

from __future__ import annotations

import select
import socket
import time
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from procmgr import control
from procmgr.control import RequestError
from procmgr.errors import ExitCode, PrivilegeError, UnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

Event = dict[str, Any]

_ANSWER_SECONDS: Final = 10.0
_PROBE_SECONDS: Final = 1.0
_EXEC_SECONDS: Final = 30.0
_RETRY_SECONDS: Final = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """A running daemon."""

    path: Path
    name: str
    pid: int
    version: str


class Link:
    """One connection; `ask` may be called again once the events of the request before have ended.

    Raises `UnavailableError` where nobody answers within `patience` seconds, `PrivilegeError` where one may not ask.
    """

    def __init__(self, path: Path, *, patience: float = _ANSWER_SECONDS) -> None:
        self._path = path
        self._patience = patience
        self._received = b""
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._sock.settimeout(patience)
        try:
            self._sock.connect(str(path))
        except OSError as error:
            self._sock.close()
            raise _unreachable(path, error) from error

    def ask(self, op: str, arguments: Event) -> Iterator[Event]:
        """Send a request and yield its events, the last one too. Only the first has to come soon."""
        self._sock.settimeout(self._patience)
        with suppress(OSError):  # it may have said why before it closed the connection
            self._sock.sendall(control.encode({"op": op, **arguments}))
        while True:
            event = self._event()
            yield event
            if event.get("event") in {control.END, control.EXEC}:
                return
            self._sock.settimeout(None)

    def wait_closed(self) -> None:
        """Wait until the daemon's end of the connection is closed; raises `UnavailableError` if it stays open."""
        self._sock.settimeout(self._patience)
        try:
            while self._sock.recv(65_536):
                pass
        except ConnectionResetError:
            return
        except TimeoutError:
            raise UnavailableError(f"{self._path}: it has stopped, but its process is still there") from None

    def close(self) -> None:
        """Close the connection; what the daemon does for it goes on."""
        self._sock.close()

    def _event(self) -> Event:
        while b"\n" not in self._received:
            try:
                data = self._sock.recv(65_536)
            except TimeoutError:
                raise UnavailableError(f"{self._path}: no answer within {self._patience:g} s") from None
            except OSError as error:
                raise UnavailableError(f"{self._path}: {error.strerror}") from error
            if not data:
                raise UnavailableError(f"{self._path}: the daemon closed the connection")
            self._received += data
        line, _, self._received = self._received.partition(b"\n")
        try:
            return control.decode(line)
        except RequestError as error:
            raise UnavailableError(f"{self._path}: {error}") from None


def _unreachable(path: Path, error: OSError) -> UnavailableError | PrivilegeError:
    if isinstance(error, PermissionError):
        return PrivilegeError(f"{path}: permission denied; root may, and the user that the daemon runs as")
    if isinstance(error, TimeoutError | BlockingIOError):  # EAGAIN: its queue is full
        return UnavailableError(f"{path}: the daemon takes no connection; is its process stopped?")
    if isinstance(error, FileNotFoundError):
        return UnavailableError(f"{path}: there is no such socket; no daemon runs, or it has another")
    if isinstance(error, ConnectionRefusedError):
        return UnavailableError(f"{path}: no daemon listens there any more")
    return UnavailableError(f"{path}: {error.strerror or error}")


def converse(path: Path, op: str, arguments: Event) -> Iterator[Event]:
    """Yield the events of one request, across a re-exec of the daemon."""
    deadline = 0.0
    while True:
        try:
            link = Link(path)
        except UnavailableError:
            if time.monotonic() >= deadline:
                raise
            select.select([], [], [], _RETRY_SECONDS)
            continue
        with closing(link):
            for event in link.ask(op, arguments):
                if event.get("event") == control.END:
                    if arguments == {"operation": control.STOP} and event.get("exit") == ExitCode.OK:
                        link.wait_closed()
                    yield event
                    return
                yield event
                if operation := event.get("operation"):
                    op, arguments = "follow", {"operation": operation}
        deadline = time.monotonic() + _EXEC_SECONDS


def running(paths: Iterable[Path]) -> tuple[list[Instance], list[Path]]:
    """Return the instances that answer at `paths`, and the paths at which one may not ask."""
    found, forbidden = [], []
    for path in paths:
        try:
            found.append(_probe(path))
        except UnavailableError:
            continue  # a stale socket, or none of ours
        except PrivilegeError:
            forbidden.append(path)
    return found, forbidden


def _probe(path: Path) -> Instance:
    with closing(Link(path, patience=_PROBE_SECONDS)) as link:
        for event in link.ask("version", {}):
            if event.get("exit") == 0:
                return Instance(
                    path=path, name=str(event.get("name")), pid=int(event["pid"]), version=str(event.get("version"))
                )
            raise PrivilegeError(f"{path}: {event.get('text')}")
    raise UnavailableError(f"{path}: no answer")
