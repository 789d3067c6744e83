"""Accepting connections from a listener that other processes share.

Why not loop.create_server: asyncio and libuv accept until EAGAIN, so that one worker takes a whole burst, and with
long-lived connections the skew lasts. Out of descriptors, libuv accepts and closes what is queued, and asyncio reports
once per queued connection. And neither can empty the queue before it closes the listener.

So: one accept(2) per wake of the loop, the others wake too and take the next, unless there are no others; a failure
pauses for `PAUSE` seconds, while what is queued waits; and `take_queue` accepts all there is.

What is accepted becomes a connection beside the loop's other work, by `open_plain` or after a handshake (`worker.tls`).
"""

from __future__ import annotations

import asyncio
import errno
import os
from typing import TYPE_CHECKING, Final

from procmgr.sockets import Origin

if TYPE_CHECKING:
    import logging
    import socket
    from collections.abc import Awaitable, Callable

    from procmgr.sockets import Listener
    from procmgr.worker.protocols.context import Context

    Opener = Callable[[socket.socket, Callable[[], asyncio.BaseProtocol]], Awaitable[object]]

PAUSE: Final = 0.1
"""Seconds."""

_BURST: Final = 32
_COMPLAIN_EVERY: Final = 60.0
_MORE_THAN_A_QUEUE: Final = 65536  # so that emptying a queue ends although clients keep coming
_NOTHING_TO_ACCEPT: Final = frozenset(
    # accept(2): errors that were pending on the new connection are to be treated like EAGAIN
    {
        errno.EAGAIN,
        errno.EINTR,
        errno.ECONNABORTED,
        errno.EPERM,
        errno.ENETDOWN,
        errno.EPROTO,
        errno.ENOPROTOOPT,
        errno.EHOSTDOWN,
        errno.ENONET,
        errno.EHOSTUNREACH,
        errno.EOPNOTSUPP,
        errno.ENETUNREACH,
    }
)


async def open_plain(connection: socket.socket, factory: Callable[[], asyncio.BaseProtocol]) -> None:
    """Make a connection of what was accepted; raises `OSError`."""
    await asyncio.get_running_loop().connect_accepted_socket(factory, connection)


class Room:
    """How many more connections this worker may have, over all its listeners; those that do not fit wait in the queues.

    A connection counts from its accept, handshakes included. Idle ones are not closed to make room: a request may be on
    its way on any of them.
    """

    __slots__ = ("_context", "_opening", "_waiting", "limit")

    def __init__(self, context: Context) -> None:
        self._context = context
        self.limit = context.limits.connections
        self._opening = 0
        self._waiting: list[Callable[[], None]] = []
        if self.limit:
            context.on_room = self._freed

    @property
    def full(self) -> bool:
        """Whether there is none."""
        return bool(self.limit) and len(self._context.connections) + self._opening >= self.limit

    def wait(self, go_on: Callable[[], None]) -> None:
        """Call `go_on` once there is room."""
        self._waiting.append(go_on)

    def enter(self) -> None:
        """Count one that was accepted and is no connection yet."""
        self._opening += 1

    def leave(self, _: object = None) -> None:
        """Count it no more."""
        self._opening -= 1
        self._freed()

    def _freed(self) -> None:
        if self._waiting and not self.full:
            waiting, self._waiting = self._waiting, []
            for go_on in waiting:
                go_on()


class Acceptor:
    """Accepts from one listener, in this process, and owns this process's descriptor of it.

    `opener` makes a connection of what was accepted, by a protocol of `factory`; it raises `OSError` if that fails.
    """

    __slots__ = (
        "_burst",
        "_complained",
        "_factory",
        "_handing_over",
        "_held",
        "_listener",
        "_log",
        "_loop",
        "_opener",
        "_paused",
        "_room",
    )

    def __init__(
        self,
        *,
        loop: asyncio.AbstractEventLoop,
        listener: Listener,
        factory: Callable[[], asyncio.BaseProtocol],
        log: logging.Logger,
        opener: Opener = open_plain,
        alone: bool = False,
        room: Room | None = None,
    ) -> None:
        """Take over `listener`; `alone` if no other worker accepts from it, `room` if connections are limited."""
        self._room = room if room is not None and room.limit else None
        self._loop = loop
        self._listener = listener
        self._factory = factory
        self._log = log
        self._opener = opener
        self.share(alone=alone)
        self._paused: asyncio.TimerHandle | None = None
        self._complained = float("-inf")
        self._handing_over: set[asyncio.Task[None]] = set()
        self._held = False

    def start(self) -> None:
        """Accept from now on."""
        self._paused = None
        self._held = False
        self._loop.add_reader(self._listener.sock, self._wake)

    def share(self, *, alone: bool) -> None:
        """Leave the next of a burst to others, or take it too since there are none."""
        self._burst = _BURST if alone else 1

    def hold(self) -> None:
        """Accept no more until `start` is called; what is queued waits for it, or for somebody else."""
        self._held = True
        self._silence()

    def take_queue(self) -> None:
        """Accept all that is queued, since closing the last descriptor of a listener resets it.

        The queue of an inherited listener outlives us: whoever passed the listener on keeps it. And while held we are
        not who is to serve it.
        """
        if self._held or self._listener.origin is Origin.INHERITED:
            return
        for _ in range(_MORE_THAN_A_QUEUE):
            if not self._accept():
                return

    def close(self) -> None:
        """Stop accepting and close this process's descriptor of the listener."""
        # The registration in epoll is the open file description's, which others keep open: it must go first (epoll(7)).
        self._silence()
        self._listener.sock.close()

    def _silence(self) -> None:
        self._loop.remove_reader(self._listener.sock)
        if self._paused is not None:
            self._paused.cancel()
            self._paused = None

    async def settled(self) -> None:
        """Wait until what was accepted has become connections."""
        if self._handing_over:
            await asyncio.wait(self._handing_over)

    def abandon(self) -> None:
        """Let go of what has not become a connection yet."""
        for task in self._handing_over:
            task.cancel()

    def _wake(self) -> None:
        for _ in range(self._burst):
            if self._room is not None and self._room.full:
                self._loop.remove_reader(self._listener.sock)
                self._room.wait(self._go_on)
                return
            if not self._accept():
                return

    def _go_on(self) -> None:
        """Accept again, unless something else keeps this from it, which then ends by `start` or not at all."""
        if not self._held and self._paused is None and self._listener.sock.fileno() >= 0:
            self.start()

    def _accept(self) -> bool:
        """Accept one connection; return whether there may be another."""
        try:
            connection, _ = self._listener.sock.accept()
        except OSError as error:
            if error.errno not in _NOTHING_TO_ACCEPT:
                self._pause(error)
            return error.errno == errno.ECONNABORTED
        connection.settimeout(0.0)
        task = self._loop.create_task(self._hand_over(connection))
        self._handing_over.add(task)
        task.add_done_callback(self._handing_over.discard)
        if self._room is not None:
            self._room.enter()
            task.add_done_callback(self._room.leave)
        return True

    async def _hand_over(self, connection: socket.socket) -> None:
        try:
            await self._opener(connection, self._factory)
        except OSError:  # the peer is gone already, or it was said: there is nobody to tell
            connection.close()

    def _pause(self, error: OSError) -> None:
        """Let what is queued wait: the listener stays readable, so that polling it would spin."""
        self._loop.remove_reader(self._listener.sock)
        if self._paused is None:
            self._paused = self._loop.call_later(PAUSE, self.start)
        now = self._loop.time()
        if now - self._complained >= _COMPLAIN_EVERY:
            self._complained = now
            self._log.error(
                "cannot accept on %s: %s; new connections wait", self._listener.name, os.strerror(error.errno or 0)
            )
