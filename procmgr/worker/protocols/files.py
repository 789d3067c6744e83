"""Parts of files that an application has sent: opened and read off the loop, and closed once nobody reads them.

A disk answers when it likes, so files are opened and read by threads. A thread cannot be stopped: whoever is cancelled
while it waits for one leaves the descriptor to be closed when the thread is through, since by then its number might be
another file's.
"""

from __future__ import annotations

import asyncio
import fcntl
import io
import os
import stat
from operator import index
from typing import Any, Final, TypeVar

T = TypeVar("T")

SMALL: Final = 64 * 1024
"""Up to this size content is read at once, to leave with its head in one write."""


class FileCutError(RuntimeError):
    """A file ended before as much of it was sent as had been promised."""


class FilePart:
    """`left` bytes of a regular file, from `offset` on; both move as they are read or sent. Owns its descriptor."""

    __slots__ = ("_job", "_loop", "fd", "left", "offset")

    def __init__(self, loop: asyncio.AbstractEventLoop, fd: int, offset: int, left: int) -> None:
        self._loop = loop
        self._job: asyncio.Future[bytes] | None = None
        self.fd = fd
        self.offset = offset
        self.left = left

    async def read(self, size: int) -> bytes:
        """Return the next bytes, at most `size`. Raises `FileCutError` if there are none, `OSError`."""
        self._job = self._loop.run_in_executor(None, os.pread, self.fd, min(size, self.left), self.offset)
        data = await _finished(self._job)
        self.moved(len(data))
        return data

    def moved(self, size: int) -> None:
        """Go on by `size` bytes. Raises `FileCutError` if it is none, which is what a file says at its end."""
        if not size:
            raise FileCutError(f"the file ends {self.left} bytes short of what was to be sent of it")
        self.offset += size
        self.left -= size

    def close(self) -> None:
        """Close the descriptor, as soon as no thread reads it."""
        if self._job is None or self._job.done():
            os.close(self.fd)
        else:
            self._job.add_done_callback(self._abandoned)

    def _abandoned(self, job: asyncio.Future[bytes]) -> None:
        job.exception()  # which nobody waits for any more
        os.close(self.fd)


async def open_path(loop: asyncio.AbstractEventLoop, path: str) -> bytes | FilePart:
    """Return the content of the file at `path` if it is small, else the whole file as a part.

    Raises `OSError`, or `ValueError` for what is no regular file.
    """
    job = loop.run_in_executor(None, _open, path)
    try:
        fd, size, content = await _finished(job)
    except asyncio.CancelledError:
        job.add_done_callback(_close_abandoned)
        raise
    return content if fd < 0 else FilePart(loop, fd, 0, size)


def open_file(loop: asyncio.AbstractEventLoop, file: Any, offset: int | None, count: int | None) -> FilePart:  # noqa: ANN401 - whatever the application sends is checked here
    """Return a part of an open file: a descriptor, or an object that has one.

    Without `offset` it begins at the file's position, which moves as if the part had been read; without `count` it goes
    to the end. The descriptor is duplicated, so the application may close its own whenever it likes. Raises `OSError`,
    `TypeError` or `ValueError`.
    """
    if isinstance(file, io.TextIOBase):
        raise TypeError("file must be opened in binary mode")
    fd = os.dup(file if isinstance(file, int) else file.fileno())
    try:
        size = _regular_size(fd)
        if fcntl.fcntl(fd, fcntl.F_GETFL) & (os.O_WRONLY | os.O_PATH):
            raise ValueError("file must be opened for reading")
        begin = _position(file) if offset is None else index(offset)
        left = max(0, size - begin) if count is None else index(count)
        if begin < 0 or left < 0 or (left and begin + left > size):
            raise ValueError(f"no {left} bytes at offset {begin} in a file of {size}")
        if offset is None:
            _go_to(file, begin + left)
    except BaseException:
        os.close(fd)
        raise
    return FilePart(loop, fd, begin, left)


def _position(file: Any) -> int:  # noqa: ANN401 - as above
    """Return where a file is. A buffered one has read further than it tells, so its descriptor is not asked."""
    return int(os.lseek(file, 0, os.SEEK_CUR) if isinstance(file, int) else file.tell())


def _go_to(file: Any, position: int) -> None:  # noqa: ANN401 - as above
    if isinstance(file, int):
        os.lseek(file, position, os.SEEK_SET)
    else:
        file.seek(position)


def _open(path: str) -> tuple[int, int, bytes]:
    """Return descriptor and size of a file, or -1, its size and its content. Runs in a thread."""
    # O_NONBLOCK: to open a FIFO would wait for its writer for ever (fifo(7)).
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        size = _regular_size(fd)
        if size > SMALL:
            kept, fd = fd, -1
            return kept, size, b""
        return -1, size, _content(fd, size)
    finally:
        if fd >= 0:
            os.close(fd)


def _content(fd: int, size: int) -> bytes:
    content = b""
    while more := os.pread(fd, size - len(content), len(content)):
        content += more
    return content


def _regular_size(fd: int) -> int:
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("only regular files can be sent")
    return status.st_size


async def _finished(job: asyncio.Future[T]) -> T:
    """Wait for what a thread does; cancelling this does not make the job look as if it had ended."""
    await asyncio.wait((job,))
    return job.result()


def _close_abandoned(job: asyncio.Future[tuple[int, int, bytes]]) -> None:
    if job.exception() is None and (fd := job.result()[0]) >= 0:
        os.close(fd)
