"""What every connection of a worker shares, and what every connection can do whatever protocol it speaks.

Theory of operation. A worker has one `Context`; each accepted connection is a `Connection` registered with it. Time is
coarse: the once-a-second beat calls `Context.tick`, which renders the response head block anew and sweeps deadlines.
A connection lies in the bucket of the second in which it may have to be closed, and is looked at only then; if it was
active meanwhile it moves to a later bucket. So a request costs one attribute store and no timer, an idle connection is
touched once per keep-alive period, and a sweep costs what is due.

Closing lingers: close(2) with unread bytes in the receive buffer makes the kernel send RST, which may overtake and
destroy the response (RFC 9112 section 9.6). So the write side is shut down first and what still arrives is read and
thrown away, until the peer closes too or the bound is reached.

Draining, as the worker's server asks for it:
* RETIRE: others serve on. What was accepted is answered; an idle connection may send one last request, which is
  answered with `Connection: close`, for at most the keep-alive time.
* STOP: nobody serves on. As above, but an idle connection gets `WINDOW` seconds.
* QUICK: as STOP; the server cancels what still runs at its deadline with `Context.abort_requests`.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from dataclasses import dataclass
from email.utils import formatdate
from enum import Enum
from time import time
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, cast

from procmgr.scoreboard import ACCEPTED, ACTIVE, CONNECTIONS, REQUESTS, Row

if TYPE_CHECKING:
    import logging

    from procmgr.worker.access import AccessLog

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Address = tuple[str, int | None]

WINDOW: Final = 0.2
"""Seconds in which an idle connection may still send a request when the service stops."""

LINGER: Final = 2.0
"""Seconds for which a closing connection is read to its end, once all is written."""

IDLE_LINGER: Final = 0.05
"""The same for a connection closed at a stop while it was idle: it has no response to lose."""


class DrainMode(Enum):
    """How a connection ends; the values are those of the channel's `Drain` message."""

    RETIRE = "retire"
    STOP = "stop"
    QUICK = "quick"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds on what peers may cost; sizes in bytes, 0 for no bound where said so."""

    concurrency: int = 0
    """Requests that run in the application at one time; 0 is no bound. One more is answered with 503."""
    request_line: int = 16 * 1024
    head: int = 64 * 1024
    fields: int = 256
    pipelined: int = 64 * 1024
    """Bytes kept of requests that arrived before their turn; then reading pauses."""
    body: int = 64 * 1024
    """Bytes of a request body kept for the application; then reading pauses."""
    discard: int = 64 * 1024
    """Bytes of a body that the application left unread which are read to keep the connection."""
    chunk_overhead: int = 64 * 1024
    """Bytes of chunk sizes, extensions and trailers that carry no body."""


class Sweepable(Protocol):
    """What a bucket holds."""

    bucket: set[Sweepable]

    def due(self, now: float) -> float | None:
        """Do what is due at `now`; return when to look again, or None when never."""


class Context:
    """Everything the connections of one worker share. Keyword-only; all times are `loop.time()` seconds."""

    __slots__ = (
        "_buckets",
        "_custom",
        "_date",
        "_drained",
        "_on_request_limit",
        "_server",
        "_swept",
        "aborting",
        "access",
        "active",
        "app",
        "connections",
        "draining",
        "error_log",
        "head",
        "hosts",
        "keep_alive",
        "limits",
        "loop",
        "max_requests",
        "now",
        "overload_logged",
        "reset_contextvars",
        "response_fields",
        "root_path",
        "row",
        "scheme",
        "served",
        "state",
        "tasks",
    )

    def __init__(
        self,
        *,
        app: App,
        loop: asyncio.AbstractEventLoop,
        row: Row,
        error_log: logging.Logger,
        access: AccessLog | None = None,
        state: dict[str, Any] | None = None,
        root_path: str = "",
        scheme: str = "http",
        limits: Limits | None = None,
        keep_alive: float = 5.0,
        server_header: bool = True,
        date_header: bool = True,
        headers: Iterable[tuple[bytes, bytes]] = (),
        max_requests: int = 0,
        on_request_limit: Callable[[], None] | None = None,
        reset_contextvars: bool = False,
    ) -> None:
        """Take what the server resolved; `state` is None where no lifespan is used, `max_requests` 0 is no limit."""
        self.app = app
        self.loop = loop
        self.row = row
        self.error_log = error_log
        self.access = access
        self.state = state
        self.root_path = root_path
        self.scheme = scheme
        self.limits = limits or Limits()
        self.keep_alive = keep_alive
        self.max_requests = max_requests
        self.reset_contextvars = reset_contextvars
        self._on_request_limit = on_request_limit
        self._server, self._date = server_header, date_header
        self._custom = [(bytes(name), bytes(value)) for name, value in headers]
        self.connections: set[Connection] = set()
        self.tasks: set[asyncio.Task[None]] = set()
        self.active = 0
        self.served = 0
        self.draining: DrainMode | None = None
        self.aborting = False
        self.overload_logged = 0.0
        self.hosts: set[bytes] = set()
        self.response_fields: dict[tuple[bytes, bytes], tuple[bytes, int]] = {}
        self.head: tuple[bytes, ...] = ()
        self._drained: asyncio.Future[None] | None = None
        self._buckets: dict[int, set[Sweepable]] = {}
        self.now = loop.time()
        self._swept = int(self.now)
        self.render_head(time())

    # -- the beat ------------------------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Do what is done once a second; `now` is `loop.time()`."""
        self.render_head(time())
        if self.access is not None:
            self.access.flush()
        self.sweep(now)

    def render_head(self, wall: float) -> None:
        """Render the lines common to all responses: `Server`, `Date` (RFC 9110 section 6.6.1), the user's.

        `head[n]` lacks `Server` if bit 0 of n is set and `Date` if bit 1 is: the application sent its own.
        """
        names = {name.lower() for name, _ in self._custom}
        server = b"server: procmgr\r\n" if self._server and b"server" not in names else b""
        date = f"date: {formatdate(wall, usegmt=True)}\r\n".encode() if self._date and b"date" not in names else b""
        custom = b"".join(b"%s: %s\r\n" % pair for pair in self._custom)
        self.head = (server + date + custom, date + custom, server + custom, custom)

    def sweep(self, now: float) -> None:
        """Close what is due at `now`, `loop.time()`."""
        self.now = now
        first, self._swept = self._swept + 1, int(now)
        if not self._buckets:
            return
        # After a long pause of the process fewer buckets exist than seconds have passed.
        passed = range(first, int(now) + 1)
        seconds = passed if len(passed) <= len(self._buckets) else [key for key in self._buckets if key <= now]
        for second in seconds:
            for item in self._buckets.pop(second, ()):
                again = item.due(now)
                if again is not None:
                    self.watch(item, again)

    def watch(self, item: Sweepable, when: float) -> None:
        """Look at `item` in the first sweep at or after `when`."""
        second = max(int(when), self._swept) + 1
        bucket = self._buckets.get(second)
        if bucket is None:
            bucket = self._buckets[second] = set()
        bucket.add(item)
        item.bucket = bucket

    # -- draining ------------------------------------------------------------------------------------------------

    def begin_drain(self, mode: DrainMode) -> None:
        """Begin to drain all connections, or raise the level of a drain."""
        self.draining = mode
        for connection in tuple(self.connections):
            connection.begin_drain(mode)
        if mode is not DrainMode.RETIRE:
            self.loop.call_later(WINDOW, self._window_over)
        self.settle()

    def _window_over(self) -> None:
        for connection in tuple(self.connections):
            connection.close_if_idle()

    def abort_requests(self) -> None:
        """Cancel every request that still runs in the application; it ends as the application's CancelledError."""
        self.aborting = True
        for task in tuple(self.tasks):
            task.cancel()

    def abort_connections(self) -> None:
        """Cut every connection at once."""
        for connection in tuple(self.connections):
            connection.abort()

    def drained(self) -> asyncio.Future[None]:
        """Return a future that is done once no connection is open and no request runs. Ask after `begin_drain`.

        Awaited under a time-out it must be shielded, else it is cancelled for all who wait.
        """
        if self._drained is None or self._drained.done():
            self._drained = self.loop.create_future()
        self.settle()
        return self._drained

    def settle(self) -> None:
        """Complete `drained()` if nothing is left."""
        if self._drained is not None and not self.connections and not self.tasks and not self._drained.done():
            self._drained.set_result(None)

    # -- accounts ------------------------------------------------------------------------------------------------

    def count_request(self) -> None:
        """Count a request whose response ended; the one that reaches the limit calls `on_request_limit`, once."""
        self.served = served = self.served + 1
        self.row[REQUESTS] = served
        if served == self.max_requests and self._on_request_limit is not None:
            self._on_request_limit()

    def opened(self, connection: Connection) -> None:
        """Register a connection."""
        self.connections.add(connection)
        self.row[CONNECTIONS] = len(self.connections)
        self.row[ACCEPTED] += 1

    def closed(self, connection: Connection) -> None:
        """Forget a connection."""
        self.connections.discard(connection)
        self.row[CONNECTIONS] = len(self.connections)
        if self.draining is not None:
            self.settle()

    def began(self) -> None:
        """Count a request that enters the application."""
        self.active += 1
        self.row[ACTIVE] = self.active

    def ended(self, task: asyncio.Task[None] | None) -> None:
        """Count a request out; `task` is None where it never had to wait."""
        self.active -= 1
        self.row[ACTIVE] = self.active
        if task is not None:
            self.tasks.discard(task)
        if self.draining is not None:
            self.settle()


class Phase(Enum):
    """A connection is open, or its response side is shut down and it is read to its end, or it is gone."""

    OPEN = "open"
    LINGERING = "lingering"
    GONE = "gone"


class Waiters:
    """Tasks that wait for one thing. A future exists only while somebody really waits, each task its own: cancelling
    one of two tasks that wait must not cancel the other.
    """

    __slots__ = ("_futures", "_loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._futures: list[asyncio.Future[None]] = []

    async def wait(self) -> None:
        """Wait for the next `wake`."""
        future = self._loop.create_future()
        self._futures.append(future)
        try:
            await future
        finally:
            self._futures.remove(future)

    def wake(self) -> None:
        """Let all go on."""
        for future in self._futures:
            if not future.done():
                future.set_result(None)


class Connection(asyncio.Protocol):
    """An accepted connection, below its protocol: addresses, flow control, deadlines, drain, lingering close."""

    __slots__ = (
        "_writable",
        "bucket",
        "client",
        "context",
        "eof",
        "idle_since",
        "phase",
        "reading",
        "server",
        "transport",
        "write_paused",
    )

    def __init__(self, context: Context) -> None:
        self.context = context
        self.phase = Phase.OPEN
        self.eof = False
        self.reading = True
        self.write_paused = False
        self.idle_since: float | None = None
        self.client: Address | None = None
        self.server: Address | None = None
        self._writable: Waiters | None = None
        self.bucket: set[Sweepable] = set()
        self.transport: asyncio.Transport

    # -- asyncio's side ------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Register; read the addresses once; switch Nagle's algorithm off (tcp(7))."""
        self.transport = cast("asyncio.Transport", transport)
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.client = _address(transport.get_extra_info("peername"))
        self.server = _address(transport.get_extra_info("sockname"))
        context = self.context
        context.opened(self)
        context.watch(self, context.now + context.keep_alive)
        if context.draining is not None:
            self.begin_drain(context.draining)
            self._open_window()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - why it went makes no difference
        """Wake everybody: the socket is gone."""
        self.phase = Phase.GONE
        self.bucket.discard(self)
        self.resume_writing()
        self.lost()
        self.context.closed(self)

    def pause_writing(self) -> None:
        """Let senders wait: the transport's buffer is above its high-water mark."""
        self.write_paused = True

    def resume_writing(self) -> None:
        """Let senders go on."""
        self.write_paused = False
        if self._writable is not None:
            self._writable.wake()

    async def drain_writes(self) -> None:
        """Wait until the transport takes more, or is gone."""
        if self._writable is None:
            self._writable = Waiters(self.context.loop)
        while self.write_paused:
            await self._writable.wait()

    # -- what a protocol defines ---------------------------------------------------------------------------------

    @property
    def idle(self) -> bool:
        """Whether nothing is in progress and nothing unread has arrived."""
        raise NotImplementedError

    def lost(self) -> None:
        """Tell what runs that the socket is gone."""
        raise NotImplementedError

    # -- reading, closing, deadlines -----------------------------------------------------------------------------

    def pause_reading(self) -> None:
        """Stop reading the socket: as much is buffered as may be."""
        if self.reading and self.phase is Phase.OPEN:
            self.reading = False
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        """Read the socket again."""
        if not self.reading and self.phase is Phase.OPEN:
            self.reading = True
            self.transport.resume_reading()

    def close(self, *, linger: float = LINGER) -> None:
        """Flush, shut the write side down and read on for at most `linger` seconds; idempotent."""
        if self.phase is not Phase.OPEN:
            return
        self.resume_reading()
        self.phase = Phase.LINGERING
        if self.eof or not self.transport.can_write_eof():
            self.transport.close()
            return
        self.transport.write_eof()
        self.idle_since = self.context.now
        if self.context.draining is None:
            self.bucket.discard(self)
            self.context.watch(self, self.context.now + linger)
        else:
            self.context.loop.call_later(linger, self._linger_over)

    def abort(self) -> None:
        """Close at once; what is buffered is lost."""
        if self.phase is not Phase.GONE:
            self.transport.abort()

    def _linger_over(self) -> None:
        again = self.due(self.context.loop.time() + LINGER)
        if again is not None:
            self.context.loop.call_later(LINGER, self._linger_over)

    def due(self, now: float) -> float | None:
        """Close what was idle or lingered for too long; return when to look again."""
        keep_alive = self.context.keep_alive
        if self.phase is Phase.OPEN:
            if self.idle_since is None:
                return now + keep_alive
            if now - self.idle_since < keep_alive:
                return self.idle_since + keep_alive
            self.close()
            return None
        if self.phase is Phase.LINGERING:
            if self.transport.get_write_buffer_size():
                return now + LINGER  # a slow reader still takes the response: the bound counts from its last byte
            self.transport.close()
        return None

    def begin_drain(self, mode: DrainMode) -> None:  # noqa: ARG002 - the modes differ in the context's window alone
        """Bound the wait of a connection that never sent a request; others have their bound already."""
        if self.idle_since is None and self.phase is Phase.OPEN:
            self.idle_since = self.context.now

    def close_if_idle(self) -> None:
        """Close a connection whose window passed without a request."""
        if self.phase is Phase.OPEN and self.idle:
            self.close(linger=IDLE_LINGER)

    def _open_window(self) -> None:
        """Give a connection that became idle while the service stops the same window as the others."""
        if self.context.draining in {DrainMode.STOP, DrainMode.QUICK}:
            self.context.loop.call_later(WINDOW, self.close_if_idle)


def _address(name: object) -> Address | None:
    """Return ASGI's pair for a socket name: (host, port), (path, None) for a Unix socket, None for an unnamed one."""
    if isinstance(name, (tuple, list)) and len(name) >= 2:
        return str(name[0]), int(name[1])
    if isinstance(name, bytes):  # an abstract Unix address, unix(7)
        name = "@" + name[1:].decode("utf-8", "replace")
    return (name, None) if isinstance(name, str) and name else None


def http_factory(context: Context, codec: Literal["httptools", "h11"]) -> Callable[[], asyncio.Protocol]:
    """Return what `loop.create_server` calls for each accepted connection."""
    from procmgr.worker.protocols.http1 import Http1Connection  # noqa: PLC0415 - http1 builds on this module

    if codec == "httptools":
        from procmgr.worker.protocols.httptools_codec import HttptoolsCodec as Codec  # noqa: PLC0415 - only the one in use
    else:
        from procmgr.worker.protocols.h11_codec import H11Codec as Codec  # noqa: PLC0415 - only the one in use
    return lambda: Http1Connection(context, Codec)
