"""What all connections of a worker share: the application, limits, the response head, deadlines, accounts, the drain.

Theory of operation. Time is coarse: the once-a-second beat calls `Context.tick`, which renders the response head block
anew and sweeps deadlines. A connection lies in the bucket of the second in which it may have to be closed, and is
looked at only then; if it was active meanwhile it moves to a later bucket. So a request costs one attribute store and
no timer, an idle connection is touched once per keep-alive period, and a sweep costs what is due.

Draining, as the worker's server asks for it:
* RETIRE: others serve on. What was accepted is answered; an idle connection may send one last request, which is
  answered with `Connection: close`, for at most the keep-alive time.
* STOP: nobody serves on. As above, but an idle connection gets `WINDOW` seconds.
* QUICK: as STOP; the server cancels what still runs at its deadline with `Context.abort_requests`.

Before a stop the service may be leaving for a while: it serves on, but responses end their connections, so that whoever
keeps connections opens the next one elsewhere. Idle ones stay: a request may be on its way.

A pause is no drain: newer code may take over, or else this worker goes on. Responses end their connections, connections
that wait for a next request are closed at once and new ones after `WINDOW`; what runs, runs on.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from dataclasses import dataclass
from email.utils import formatdate
from enum import Enum
from functools import partial
from time import time
from typing import TYPE_CHECKING, Any, Final, Protocol

from procmgr.scoreboard import ACCEPTED, ACTIVE, CONNECTIONS, REQUESTS, STATUS_1XX, InFlight, Row
from procmgr.worker.cycle import Cycle
from procmgr.worker.forwarded import Forwarding
from procmgr.worker.protocols.response import FieldEncoder
from procmgr.worker.protocols.scope import scope_template

if TYPE_CHECKING:
    import logging

    from procmgr.worker.access import AccessLog
    from procmgr.worker.protocols.framing import Request
    from procmgr.worker.protocols.http1 import Http1Connection
    from procmgr.worker.protocols.secure import Secure

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

EAGERLY: Final[dict[str, Any]] = {"eager_start": True} if sys.version_info >= (3, 12) else {}
"""Of a task: most requests wait for nothing, and need no turn of the loop if their first step runs at once."""

_STATUS: Final = STATUS_1XX - 1
WINDOW: Final = 0.2
"""Seconds in which an idle connection may still send a request when the service stops."""


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
    body_size: int = 0
    """Bytes of a request body; a longer one is answered with 413. 0 is no bound."""
    head_time: float = 10.0
    """Seconds in which the head of a request has to be complete, from its first byte or the accept; 0 is no bound."""
    request_time: float = 0.0
    """Seconds from the head of a request to the end of its response; 0 is no bound."""
    rate: int = 240
    """Bytes per second at which bodies and responses have to move while somebody waits for them; 0 is no bound."""
    underscores: bool = True
    """Whether names of fields may have a `_`, but for those that could be taken for others that are believed."""
    connections: int = 0
    """Connections of a worker; 0 is no bound. Others wait to be accepted."""
    discard: int = 64 * 1024
    """Bytes of a body that the application left unread which are read to keep the connection."""
    chunk_framing: int = 64 * 1024
    """Bytes of chunk sizes and extensions beyond 32 for each chunk; more are answered with 413."""
    trailers: int = 8 * 1024
    """Bytes of the fields after a chunked body; more are answered with 431."""


class Member(Protocol):
    """What a context asks of a connection."""

    bucket: set[Member]

    def due(self, now: float) -> float | None:
        """Do what is due at `now`; return when to look again, or None when never."""

    def begin_drain(self, mode: DrainMode) -> None:
        """Begin to drain."""

    def close_if_idle(self) -> None:
        """Close, unless a request is in progress."""

    def close_if_used(self) -> None:
        """Close if it had a request and waits for the next."""

    def abort(self) -> None:
        """Close at once."""

    def flush(self) -> None:
        """Hand over to the transport what was written."""


class Context:
    """Everything the connections of one worker share. Keyword-only; all times are `loop.time()` seconds."""

    __slots__ = (
        "_buckets",
        "_custom",
        "_date",
        "_drained",
        "_on_request_limit",
        "_record",
        "_server",
        "_swept",
        "_unrecord",
        "aborting",
        "about",
        "access",
        "active",
        "app",
        "before",
        "connections",
        "cycle",
        "draining",
        "error_log",
        "extensions",
        "forwarding",
        "head",
        "hosts",
        "keep_alive",
        "leaving",
        "limits",
        "loop",
        "max_requests",
        "nagle",
        "now",
        "on_room",
        "overload_logged",
        "parting",
        "paused",
        "reset_contextvars",
        "response_fields",
        "root_path",
        "row",
        "scope_template",
        "secure",
        "served",
        "start",
        "state",
        "tasks",
        "unflushed",
        "upgrade",
    )

    def __init__(
        self,
        *,
        app: App,
        loop: asyncio.AbstractEventLoop,
        row: Row,
        inflight: InFlight | None = None,
        error_log: logging.Logger,
        access: AccessLog | None = None,
        state: dict[str, Any] | None = None,
        root_path: str = "",
        forwarding: Forwarding | None = None,
        secure: Secure | None = None,
        limits: Limits | None = None,
        keep_alive: float = 5.0,
        server_header: bool = True,
        date_header: bool = True,
        headers: Iterable[tuple[bytes, bytes]] = (),
        max_requests: int = 0,
        on_request_limit: Callable[[], None] | None = None,
        reset_contextvars: bool = False,
        upgrade: Callable[[Http1Connection, Request], Cycle | None] | None = None,
    ) -> None:
        """Take what the server resolved.

        `state` is None where no lifespan is used, `max_requests` 0 is no limit, `secure` is what TLS needs. `upgrade`
        returns the cycle of a request that changes the protocol, None for another.
        """
        self.app = app
        self.loop = loop
        # uvloop switches Nagle's algorithm off on every TCP connection; asyncio only where a socket's number says TCP.
        self.nagle = not type(loop).__module__.startswith("uvloop")
        # Named, since to make a name up costs a tenth of making a task.
        self.start: Callable[..., asyncio.Task[None]] = partial(asyncio.Task, loop=loop, name="request", **EAGERLY)
        self.row = row
        inflight = inflight or InFlight()
        self._record, self._unrecord = inflight.begin, inflight.end
        self.error_log = error_log
        self.access = access
        self.cycle: type[Cycle] = access.cycle if access is not None else Cycle
        self.state = state
        self.root_path = root_path
        self.secure = secure
        scheme = "https" if secure else "http"
        self.scope_template = scope_template(scheme=scheme, root_path=root_path, state=state)
        self.forwarding = forwarding or Forwarding()
        self.limits = limits or Limits()
        self.keep_alive = keep_alive
        self.max_requests = max_requests
        self.reset_contextvars = reset_contextvars
        self.upgrade = upgrade
        self._on_request_limit = on_request_limit
        self._server, self._date = server_header, date_header
        self._custom = [(bytes(name), bytes(value)) for name, value in headers]
        self.connections: set[Member] = set()
        self.unflushed: list[Member] = []
        self.tasks: set[asyncio.Task[None]] = set()
        self.active = 0
        self.served = 0
        self.draining: DrainMode | None = None
        self.paused = False
        self.leaving = False
        self.parting = False
        self.about = {"draining": asyncio.Event()}
        self.extensions: dict[str, dict[str, Any]] = {
            "http.response.early_hint": {},
            "http.response.pathsend": {},
            "http.response.zerocopysend": {},
            "procmgr": self.about,
        }
        self.aborting = False
        self.overload_logged = 0.0
        self.on_room: Callable[[], None] | None = None
        self.hosts: set[bytes] = set()
        self.response_fields = FieldEncoder(close=keep_alive == 0)
        self.head: tuple[bytes, ...] = ()
        self._drained: asyncio.Future[None] | None = None
        self._buckets: dict[int, set[Member]] = {}
        self.before = self.now = loop.time()
        self._swept = int(self.now)
        self.render_head(time())

    # -- the beat ------------------------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Do what is done once a second; `now` is `loop.time()`."""
        self.render_head(time())
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
        self.before, self.now = self.now, now
        first, self._swept = self._swept + 1, int(now)
        if not self._buckets:
            return
        # After a long pause of the process fewer buckets exist than seconds have passed.
        passed = range(first, int(now) + 1)
        seconds = passed if len(passed) <= len(self._buckets) else [key for key in self._buckets if key <= now]
        for second in seconds:
            for item in tuple(self._buckets.pop(second, ())):  # closing one takes it out of its bucket
                again = item.due(now)
                if again is not None:
                    self.watch(item, again)

    def watch(self, item: Member, when: float) -> None:
        """Look at `item` in the first sweep at or after `when`."""
        second = max(int(when), self._swept) + 1
        bucket = self._buckets.get(second)
        if bucket is None:
            bucket = self._buckets[second] = set()
        bucket.add(item)
        item.bucket = bucket

    # -- output --------------------------------------------------------------------------------------------------

    def flush_soon(self, connection: Member) -> None:
        """Flush `connection` once everything that is ready in this turn of the loop was read and run."""
        if not self.unflushed:
            self.loop.call_soon(self._flush)
        self.unflushed.append(connection)

    def _flush(self) -> None:
        unflushed, self.unflushed = self.unflushed, []
        for connection in unflushed:
            try:
                connection.flush()
            except Exception:  # noqa: BLE001 - whatever it is: the others' output must not wait for it for ever
                self.error_log.exception("a connection's output cannot be written")
                connection.abort()

    # -- draining ------------------------------------------------------------------------------------------------

    def begin_drain(self, mode: DrainMode) -> None:
        """Begin to drain all connections, or raise the level of a drain."""
        self.draining = mode
        self.parting = True
        self.about["draining"].set()
        for connection in tuple(self.connections):
            connection.begin_drain(mode)
        if mode is not DrainMode.RETIRE:
            self.loop.call_later(WINDOW, self._window_over)
        self.settle()

    def _window_over(self) -> None:
        for connection in tuple(self.connections):
            connection.close_if_idle()

    def pause(self) -> None:
        """Let go of the connections, each as soon as nothing runs on it."""
        self.paused = self.parting = True
        for connection in tuple(self.connections):
            connection.close_if_used()
        self.loop.call_later(WINDOW, self._pause_window_over)

    def resume(self) -> None:
        """Keep connections alive again."""
        self.paused = False
        self.parting = self.leaving or self.draining is not None

    def leave(self) -> None:
        """End connections with their responses from now on."""
        self.leaving = self.parting = True

    def _pause_window_over(self) -> None:
        if self.paused:
            self._window_over()

    def abort_requests(self) -> None:
        """Cancel every request that still runs in the application and start no other; each is answered with 503."""
        self.aborting = True
        # A task cancelled before its first step never enters its coroutine, which would then not account for its end.
        # The first steps of all tasks there are were scheduled before this.
        self.loop.call_soon(self._cancel_tasks)

    def _cancel_tasks(self) -> None:
        for task in tuple(self.tasks):
            task.cancel()

    def abort_connections(self) -> None:
        """Cut every connection at once."""
        for connection in tuple(self.connections):
            connection.abort()

    def drained(self) -> asyncio.Future[None]:
        """Return a future that is done once no connection is open and no request runs.

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

    def say_overloaded(self) -> None:
        """Log that as many requests run as may; once a second, however many are turned away."""
        if self.now >= self.overload_logged + 1.0:
            self.overload_logged = self.now
            self.error_log.warning("503: %d requests run, which is limit_concurrency", self.active)

    # -- accounts ------------------------------------------------------------------------------------------------

    def count_request(self, status: int) -> None:
        """Count a request whose response ended; the one that reaches the limit calls `on_request_limit`, once."""
        self.served = served = self.served + 1
        row = self.row
        row[REQUESTS] = served
        row[_STATUS + status // 100] += 1
        if served == self.max_requests and self._on_request_limit is not None:
            self._on_request_limit()

    def opened(self, connection: Member) -> None:
        """Register a connection."""
        self.connections.add(connection)
        self.row[CONNECTIONS] = len(self.connections)
        self.row[ACCEPTED] += 1

    def closed(self, connection: Member) -> None:
        """Forget a connection."""
        self.connections.discard(connection)
        self.row[CONNECTIONS] = len(self.connections)
        if self.on_room is not None:
            self.on_room()
        if self._drained is not None:
            self.settle()

    def began(self, request: Request) -> int:
        """Count and record a request that enters the application; return its record, for `ended`."""
        self.active += 1
        self.row[ACTIVE] = self.active
        return self._record(request.head)

    def ended(self, task: asyncio.Task[None] | None, record: int) -> None:
        """Count a request out; `task` is None for one that the caller awaits itself."""
        self.active -= 1
        self.row[ACTIVE] = self.active
        self._unrecord(record)
        if task is not None:
            self.tasks.discard(task)
        if self._drained is not None:
            self.settle()
