"""A writer of log lines that never blocks and never raises, whatever is behind its file descriptor.

Theory of operation: stdout and stderr are open file descriptions shared with other processes, so O_NONBLOCK, a flag of
the description (fcntl(2)), is not ours to set. Instead each write to a pipe, socket or terminal is preceded by poll(2)
with time-out 0 and is at most PIPE_BUF bytes: a pipe that polls writable has that much room, and the kernel does not
tear such a write (pipe(7)). Between poll and write another worker may take the room; RWF_NOWAIT (pwritev2(2)) makes the
kernel answer EAGAIN then, where it knows the flag for that kind of file. What cannot be written waits in a bounded
buffer; when that is full, whole lines are dropped and counted, and once the reader is back a line says how many.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import stat
import threading
import time
from typing import Final

PIPE_BUF: Final = select.PIPE_BUF
LIMIT: Final = 1 << 20
_FILE_CHUNK: Final = 1 << 16
_GONE: Final = frozenset({errno.EPIPE, errno.EIO, errno.EBADF, errno.ECONNRESET, errno.ENOTCONN})
_NOWAIT_UNKNOWN: Final = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ESPIPE})


class LineWriter:
    """Buffers whole lines for `fd` and writes what the reader takes at once; `fd` stays the caller's to close.

    Any thread may call any method; the bound holds but for one `write` per thread that is in the midst of one. A flush
    that another one is inside of returns at once, and the other takes its lines along; hence a signal handler that logs
    cannot deadlock.
    """

    __slots__ = (
        "_buffer",
        "_failed",
        "_fd",
        "_limit",
        "_lock",
        "_nowait",
        "_poll",
        "_regular",
        "_unreported",
        "dropped",
    )

    def __init__(self, fd: int, *, limit: int = LIMIT) -> None:
        self._limit = limit
        self._start()
        self.reopen(fd)

    def _start(self) -> None:
        self._buffer = bytearray()
        self._lock = threading.Lock()
        self._failed = False
        self._unreported = 0
        self.dropped = 0
        """Lines dropped since this process began to write."""

    def reopen(self, fd: int) -> None:
        """Write to `fd` from now on, pending lines first."""
        with self._lock:
            self._fd = fd
            self._poll = _poll_for_room(fd)
            self._regular = _is_regular(fd)
            self._nowait = not self._regular

    def after_fork(self) -> None:
        """Forget, in a child, what the parent has yet to write, and a lock that another of its threads may hold."""
        self._start()

    def fileno(self) -> int:
        """Return the descriptor written to."""
        return self._fd

    @property
    def pending(self) -> int:
        """Bytes waiting for the reader."""
        return len(self._buffer)

    def write(self, data: bytes) -> None:
        """Add whole lines; nothing is written before `flush`, unless the buffer would overflow."""
        if not data.endswith(b"\n"):
            data += b"\n"
        if self._unreported or len(self._buffer) + len(data) > self._limit:
            self.flush()
            data = self._fit(data)
        self._buffer += data

    def _fit(self, data: bytes) -> bytes:
        """Return the lines of `data` for which there is room and count the others as dropped."""
        if self._unreported:
            # The report stands where the lines are missing, or they go on missing.
            report = self._report()
            if len(self._buffer) + len(report) + len(data) > self._limit:
                self._drop(data.count(b"\n"))
                return b""
            self._unreported = 0
            return report + data
        room = max(0, self._limit - len(self._buffer))
        end = len(data) if len(data) <= room else data.rfind(b"\n", 0, room) + 1
        self._drop(data.count(b"\n", end))
        return data[:end]

    def _drop(self, lines: int) -> None:
        self.dropped += lines
        self._unreported += lines

    def _discard(self) -> None:
        self._drop(self._buffer.count(b"\n"))
        self._buffer.clear()

    def _report(self) -> bytes:
        return b"procmgr dropped %d log lines\n" % self._unreported

    def flush(self) -> bool:
        """Write what goes without waiting; return whether nothing is left."""
        # After the lock is free again look once more: a thread that found it taken has left its lines to this one.
        while self._buffer and self._lock.acquire(blocking=False):
            try:
                if not self._drain():
                    return False
            finally:
                self._lock.release()
        return not self._buffer

    def _drain(self) -> bool:
        """Write until the buffer is empty; return False if the file takes no more for now."""
        while self._buffer:
            if not self._poll.poll(0):
                return False
            try:
                written = self._write(self._chunk())
            except BlockingIOError:
                return False
            except OSError as error:
                # A full disk may have room by the next flush; a reader that is gone does not come back.
                self._failed = True
                if error.errno in _GONE:
                    self._discard()
                return False
            self._failed = False
            del self._buffer[:written]
            if self._unreported and not self._buffer:
                self._buffer += self._report()
                self._unreported = 0
        return True

    def _chunk(self) -> bytes:
        # A copy, in both cases: while a view of the buffer exists another thread could not append to it.
        if self._regular:
            return bytes(self._buffer[:_FILE_CHUNK])
        if len(self._buffer) <= PIPE_BUF:
            return bytes(self._buffer)
        return bytes(self._buffer[: self._buffer.rfind(b"\n", 0, PIPE_BUF) + 1 or PIPE_BUF])

    def _write(self, chunk: bytes) -> int:
        if self._nowait:
            try:
                return os.pwritev(self._fd, [chunk], -1, os.RWF_NOWAIT)
            except OSError as error:
                if error.errno not in _NOWAIT_UNKNOWN:
                    raise
                self._nowait = False
        return os.write(self._fd, chunk)

    def close(self, timeout: float) -> None:
        """Flush for at most `timeout` seconds; what the reader has not taken by then is dropped."""
        deadline = time.monotonic() + timeout
        poll = _poll_for_room(self._fd)  # one of its own: two threads in one poll object are an error
        while not self.flush() and (left := deadline - time.monotonic()) > 0:
            # What failed polls ready, a full disk say: waiting for it would spin.
            if self._failed or not poll.poll(left * 1000):
                break
        self._discard()


def _poll_for_room(fd: int) -> select.poll:
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    return poll


def _is_regular(fd: int) -> bool:
    try:
        return stat.S_ISREG(os.fstat(fd).st_mode)
    except OSError:
        return False


class GuardedHandler(logging.Handler):
    """A logging handler that writes through a `LineWriter`, at once if the reader keeps up."""

    def __init__(self, writer: LineWriter) -> None:
        super().__init__()
        self.writer = writer

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record; a traceback is several lines of it."""
        try:
            text = self.format(record)
        except Exception:  # noqa: BLE001 - logging's contract: a record that cannot be formatted harms nobody
            self.handleError(record)
            return
        self.writer.write(text.encode(errors="backslashreplace") + b"\n")
        self.writer.flush()

    def flush(self) -> None:
        """Write what the reader takes."""
        self.writer.flush()
