"""Sending a part of a file: by the kernel where the socket is plain, else in slices that threads read.

Theory of operation. While an outflow holds a connection, other messages of the response wait as they do for a client
that does not read: `write_paused` is set, and what the transport says of its buffer goes to the outflow. When it lets
go, the connection is paused or not as the transport left it.

sendfile(2) writes past the transport, so it has to wait until the transport has nothing left: its high-water mark is
set to zero, and then `resume_writing` means "empty". uvloop has no `loop.sendfile`, and neither loop lets anybody watch
the descriptor of a transport; a duplicate of it may be watched. As long as that is open the connection is not closed,
whatever becomes of the transport: so it is closed the moment the connection shuts or is lost, and nothing is sent on
one that was given up. Each turn of the loop moves at most `TURN` bytes of one file. Pages that are not in memory are
read by sendfile(2) itself, for which the loop waits.

Over TLS the kernel cannot do it, some file systems do not either, and a descriptor may be lacking: then a thread reads
a slice, which is written as any body is, and the next one once the transport takes more.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Final, Self

from procmgr.errors import ClientDisconnected

if TYPE_CHECKING:
    import asyncio
    from types import TracebackType

    from procmgr.worker.protocols.extensions import ExtendedConnection
    from procmgr.worker.protocols.files import FilePart

TURN: Final = 512 * 1024
"""Bytes that a turn of the loop moves at most."""

SLICE: Final = 256 * 1024
"""Bytes of a file that are in memory at one time, beside what the transport has."""

_UNABLE: Final = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}
"""Of sendfile(2): the file system, or a sandbox, has none."""

_PEER_GONE: Final = {
    errno.EPIPE,
    errno.ECONNRESET,
    errno.ECONNABORTED,
    errno.ENOTCONN,
    errno.ETIMEDOUT,
    errno.EHOSTUNREACH,
    errno.ENETUNREACH,
}


class Outflow:
    """A context in which one connection is held, so that a file can be opened for it and sent."""

    __slots__ = ("_connection", "_error", "_loop", "_part", "_socket", "_stopped", "_waiter", "_watched", "paused")

    def __init__(self, connection: ExtendedConnection) -> None:
        self._connection = connection
        self._loop = connection.context.loop
        self._part: FilePart | None = None
        self._socket = -1
        self._watched = False
        self._error: OSError | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._stopped = not connection.is_open()
        self.paused = False

    def __enter__(self) -> Self:
        """Hold the connection, on which nobody waits to write."""
        self._connection.outflow = self
        self._connection.write_paused = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let the connection go."""
        connection = self._connection
        self._let_socket_go()
        connection.outflow = None
        if not self.paused:
            connection.resume_writing()

    # -- what the connection tells it ----------------------------------------------------------------------------

    def resumed(self) -> None:
        """Go on: the transport takes more, or is empty if that was asked for."""
        self.paused = False
        self._wake()

    def stop(self) -> None:
        """Send nothing more: the connection shuts, or is gone."""
        self._stopped = True
        self._let_socket_go()
        self._wake()

    @property
    def blocked(self) -> bool:
        """Whether the peer is waited for outside of the transport."""
        return self._watched

    # -- sending -------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Raise `ClientDisconnected` if the connection does not go on."""
        if self._stopped:
            raise ClientDisconnected("the client is gone")

    async def send(self, part: FilePart, *, by_kernel: bool) -> None:
        """Send all of `part`. Raises `ClientDisconnected`, `FileCutError` if the file was cut meanwhile, `OSError`."""
        self._connection.flush()
        if by_kernel:
            await self._emptied()
            await self._by_kernel(part)
        while part.left:
            data = await part.read(SLICE)
            self.check()
            self._connection.write(data)
            while self.paused:
                await self._wait()

    async def _emptied(self) -> None:
        transport = self._connection.transport
        self.check()
        transport.set_write_buffer_limits(high=0)
        while self.paused:
            await self._wait()
        transport.set_write_buffer_limits()

    async def _by_kernel(self, part: FilePart) -> None:
        """Send `part`, or as much as can be sent this way."""
        sock = self._connection.transport.get_extra_info("socket").fileno()
        try:
            self._socket = os.dup(sock)
        except OSError:  # no descriptor is left: the head has been sent, so the file is read
            return
        self._part = part
        self._push()  # often all of it
        if self._socket >= 0:
            self._loop.add_writer(self._socket, self._push)
            self._watched = True
        while self._socket >= 0:
            await self._wait()
        self.check()
        error = self._error
        if error is None or error.errno in _UNABLE:
            return
        if error.errno not in _PEER_GONE:
            raise error
        self._connection.abort()
        while True:  # until the connection is lost, as it is in the next turn of the loop
            await self._wait()

    def _push(self) -> None:
        """Move on; let go of the socket once all is sent or nothing can be."""
        part = self._part
        assert part is not None  # it is set before
        try:
            moved = os.sendfile(self._socket, part.fd, part.offset, min(part.left, TURN))
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._error = error
        else:
            self._connection.handed += moved
            if moved:
                part.moved(moved)
            if moved and part.left:
                return
        self._let_socket_go()
        self._wake()

    def _let_socket_go(self) -> None:
        if self._socket >= 0:
            if self._watched and not self._loop.is_closed():
                self._loop.remove_writer(self._socket)
            os.close(self._socket)
            self._socket, self._watched = -1, False

    async def _wait(self) -> None:
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None
        self.check()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
