"""Diagnostics as entries of systemd's journal, with fields; by way of standard error where that cannot be.

Rules: an entry is one datagram (systemd's JOURNAL_NATIVE_PROTOCOL), sent without waiting, so a traceback is one entry.
What the journal does not take so, because its queue is full say, goes to standard error through the guarded writer,
each line with its priority in front as sd-daemon(3) has it. The time is the journal's own, and so are pid and unit:
none of them is in the message.
"""

from __future__ import annotations

import logging
import os
import socket
import struct
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from procmgr.logs.writer import GuardedHandler

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from procmgr.logs.writer import LineWriter

SOCKET: Final = "/run/systemd/journal/socket"
_LENGTH: Final = struct.Struct("<Q")
_PRIORITIES: Final = (
    (logging.CRITICAL, 2),
    (logging.ERROR, 3),
    (logging.WARNING, 4),
    (logging.INFO, 6),
)
_DEBUG: Final = 7
_PREFIX: Final = "PROCMGR_"


def journal_reads(fd: int, environ: Mapping[str, str]) -> bool:
    """Tell whether the journal is at the other end of `fd`: JOURNAL_STREAM names it (systemd.exec(5))."""
    try:
        status = os.fstat(fd)
    except OSError:
        return False
    return environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def priority(level: int) -> int:
    """Return the syslog(3) priority of a level of `logging`."""
    return next((number for least, number in _PRIORITIES if level >= least), _DEBUG)


def entry(fields: Mapping[str, object]) -> bytes:
    """Return the datagram of one entry; a value of several lines goes with its length."""
    parts = []
    for name, value in fields.items():
        data = str(value).encode(errors="backslashreplace")
        if b"\n" in data:
            parts.append(b"%s\n%s%s\n" % (name.encode("ascii"), _LENGTH.pack(len(data)), data))
        else:
            parts.append(b"%s=%s\n" % (name.encode("ascii"), data))
    return b"".join(parts)


class JournalHandler(GuardedHandler):
    """Writes records to the journal, or to `writer`; `path` is the journal's socket.

    The socket is shared with forked children, which are told apart by the pid that the kernel attaches.
    """

    def __init__(self, writer: LineWriter, *, path: str = SOCKET) -> None:
        super().__init__(writer)
        self.setFormatter(logging.Formatter("%(message)s"))
        self._path = path
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._identity: dict[str, object] = {}
        self._occasion: dict[str, object] = {}

    def identify(self, fields: Mapping[str, object]) -> None:
        """Give every record of this process these fields."""
        self._identity = _own(fields)

    @contextmanager
    def about(self, fields: Mapping[str, object]) -> Iterator[None]:
        """Give the records within these fields."""
        before, self._occasion = self._occasion, _own(fields)
        try:
            yield
        finally:
            self._occasion = before

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        try:
            text = self.format(record)
        except Exception:  # noqa: BLE001 - logging's contract: a record that cannot be formatted harms nobody
            self.handleError(record)
            return
        number = priority(record.levelno)
        fields = {
            "MESSAGE": text,
            "PRIORITY": number,
            "SYSLOG_IDENTIFIER": "procmgr",
            "LOGGER": record.name,
            "CODE_FILE": record.pathname,
            "CODE_LINE": record.lineno,
            "CODE_FUNC": record.funcName,
            **self._identity,
            **self._occasion,
        }
        try:
            self._sock.sendto(entry(fields), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL, self._path)
        except OSError:  # a full queue, a long record, no such socket in this namespace
            lines = "".join(f"<{number}>{line}\n" for line in text.split("\n"))
            self.writer.write(lines.encode(errors="backslashreplace"))
            self.writer.flush()

    def close(self) -> None:
        """Close the socket."""
        self._sock.close()
        super().close()


def _own(fields: Mapping[str, object]) -> dict[str, object]:
    return {f"{_PREFIX}{name.upper()}": value for name, value in fields.items() if value is not None}
