"""The service manager's end of sd_notify(3): collects the daemon's messages and lets a test wait for one of them."""

from __future__ import annotations

import os
import re
import select
import socket
import time
from dataclasses import dataclass
from threading import Condition, Thread
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Notification:
    """One datagram: its fields, and when it came (monotonic seconds)."""

    fields: dict[str, str]
    at: float

    @property
    def status(self) -> str:
        """The STATUS line, empty if the message had none."""
        return self.fields.get("STATUS", "")


class NotifySocket:
    """Receives on a thread of its own, since the daemon drops what a full queue does not take.

    A message is looked at by one `wait` at most: each wait goes on behind the message that ended the one before.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.messages: list[Notification] = []
        self._seen = 0
        self._changed = Condition()
        self._pidfd: int | None = None
        self._ended = False
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sock.bind(str(path))
        self._stop_reader, self._stop_writer = os.pipe()
        self._thread = Thread(target=self._receive, daemon=True)

    def start(self, pid: int) -> None:
        """Receive from here on; the death of `pid` ends every wait."""
        self._pidfd = os.pidfd_open(pid)
        self._thread.start()

    def wait(self, matches: Callable[[Notification], bool], timeout: float) -> Notification | None:
        """Return the next message that matches; None when the daemon ended or `timeout` seconds passed without one."""
        deadline = time.monotonic() + timeout
        with self._changed:
            while True:
                while self._seen < len(self.messages):
                    message = self.messages[self._seen]
                    self._seen += 1
                    if matches(message):
                        return message
                left = deadline - time.monotonic()
                if self._ended or left <= 0:
                    return None
                self._changed.wait(left)

    def skip(self) -> None:
        """Forget what came until now: the next wait is for something newer."""
        with self._changed:
            self._seen = len(self.messages)

    def statuses(self) -> list[str]:
        """Return every STATUS line so far."""
        with self._changed:
            return [message.status for message in self.messages if message.status]

    def close(self) -> None:
        """Stop receiving."""
        if self._thread.is_alive():
            os.write(self._stop_writer, b"x")
            self._thread.join()
        for fd in (self._stop_reader, self._stop_writer, *([] if self._pidfd is None else [self._pidfd])):
            os.close(fd)
        self._sock.close()
        self.path.unlink(missing_ok=True)

    def _receive(self) -> None:
        assert self._pidfd is not None
        poller = select.poll()
        for fd in (self._sock.fileno(), self._stop_reader, self._pidfd):
            poller.register(fd, select.POLLIN)
        while True:
            ready = {fd for fd, _ in poller.poll()}
            if self._sock.fileno() in ready:
                self._take(self._sock.recv(65_536))
            elif self._pidfd in ready:
                poller.unregister(self._pidfd)
                with self._changed:
                    self._ended = True
                    self._changed.notify_all()
            else:
                return

    def _take(self, data: bytes) -> None:
        lines = re.split("\n", data.decode(errors="replace"))
        fields = dict(line.split("=", 1) for line in lines if "=" in line)
        with self._changed:
            self.messages.append(Notification(fields, time.monotonic()))
            self._changed.notify_all()
