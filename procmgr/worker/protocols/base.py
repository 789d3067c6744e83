"""What every connection can do whatever protocol it speaks: addresses, flow control, deadlines, drain, lingering close.

Closing lingers: close(2) with unread bytes in the receive buffer makes the kernel send RST, which may overtake and
destroy the response (RFC 9112 section 9.6). So the write side is shut down first and what still arrives is read and
thrown away, until the peer closes too or the bound is reached.

What is written is handed to the transport once all that is ready in this turn of the loop was read and run. A write(2)
to a near peer does its receiving too, so taking turns with reads and applications costs more than one after the other;
and the parts of one response leave in one write.
"""

from __future__ import annotations

import asyncio
import select
import socket
import struct
import sys
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal, cast

from procmgr.worker.protocols.context import WINDOW, Context, DrainMode, Limits
from procmgr.worker.protocols.framing import excerpt
from procmgr.worker.protocols.kernel import polled, unacknowledged, without_nagle
from procmgr.worker.protocols.pace import TAKING, Pace
from procmgr.worker.waiters import Waiters

if TYPE_CHECKING:
    from collections.abc import Callable

    from procmgr.worker.protocols.context import Member
    from procmgr.worker.protocols.framing import Codec, Request

__all__ = ["Address", "Connection", "Context", "DrainMode", "Limits", "Phase", "Told", "http_factory"]

Address = tuple[str, int | None]
CodecName = Literal["httptools", "h11"]


@dataclass(frozen=True, slots=True)
class Told:
    """What a trusted proxy said of a connection: client and server, if it named them, and whether TLS was spoken."""

    addresses: tuple[Address, Address] | None
    secure: bool = False


LINGER: Final = 2.0
"""Seconds for which a closing connection is read to its end, once all is written."""

GATHERED: Final = 64 * 1024
"""Bytes of output that are gathered before they are handed to the transport, which then says if it is too much."""

_FORGETS_TO_PAUSE: Final = (3, 12) <= sys.version_info < (3, 12, 9) or (3, 13) <= sys.version_info < (3, 13, 2)
"""Whether asyncio's `writelines` does not say when its buffer is full (CVE-2024-12254): senders would fill memory."""

LOOK: Final = 5.0
"""Seconds between two looks at a connection on which something is under way."""

BLOCKED: Final = 2.0
"""Seconds between two beats above which the loop was blocked."""

IDLE_LINGER: Final = 0.05
"""The same for a connection closed at a stop while it was idle: it has no response to lose."""


_WITHOUT_LINGERING: Final = struct.pack("ii", 1, 0)


class Phase(Enum):
    """A connection is open, or its response side is shut down and it is read to its end, or it is gone."""

    OPEN = "open"
    LINGERING = "lingering"
    GONE = "gone"


class Connection(asyncio.BaseProtocol):
    """An accepted connection, below its protocol: addresses, flow control, deadlines, drain, lingering close."""

    __slots__ = (
        "_out",
        "_out_bytes",
        "_writable",
        "_write_pace",
        "bucket",
        "client",
        "context",
        "eof",
        "fields",
        "handed",
        "head_since",
        "idle_since",
        "phase",
        "reading",
        "server",
        "tls",
        "told",
        "transport",
        "write_paused",
    )

    def __init__(self, context: Context) -> None:
        self.context = context
        self.fields = context.response_fields
        self.phase = Phase.OPEN
        self.eof = False
        self.reading = True
        self.write_paused = False
        self.idle_since: float | None = None
        self.head_since = context.now
        self.client: Address | None = None
        self.server: Address | None = None
        self.told: Told | None = None
        self._out: list[bytes] = []
        self._out_bytes = 0
        self.handed = 0
        self.tls: dict[str, Any] | None = None
        self._writable: Waiters | None = None
        self._write_pace: Pace | None = None
        self.bucket: set[Member] = set()
        self.transport: asyncio.Transport

    # -- asyncio's side ------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Register; read the addresses once; switch Nagle's algorithm off (tcp(7))."""
        self.transport = cast("asyncio.Transport", transport)
        context = self.context
        if context.nagle:
            without_nagle(transport)
        if self.told is None or self.told.addresses is None:
            self.client = address(transport.get_extra_info("peername"))
            self.server = address(transport.get_extra_info("sockname"))
        else:  # by a proxy that is trusted
            self.client, self.server = self.told.addresses
        context.opened(self)
        self.head_since = context.now
        context.watch(self, context.now + min(LOOK, context.keep_alive))
        if context.draining is not None:
            self.begin_drain(context.draining)
            self.open_window()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - why it went makes no difference
        """Wake everybody: the socket is gone."""
        self.phase = Phase.GONE
        self._out.clear()
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
        while self.write_paused and self.phase is Phase.OPEN:
            await self._writable.wait()

    # -- writing -------------------------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Send `data`, together with what else this turn of the loop has for the peer."""
        out = self._out
        if not out:
            self._out_bytes = 0
            self.context.flush_soon(self)
        out.append(data)
        self._out_bytes += len(data)
        if self._out_bytes > GATHERED:
            self.flush()

    def flush(self) -> None:
        """Hand over to the transport what was written."""
        out = self._out
        if not out:
            return
        self.handed += self._out_bytes
        if self.transport.is_closing():  # before it tells us that the connection is lost
            out.clear()
        elif len(out) == 1:
            self.transport.write(out.pop())
        elif self._out_bytes <= GATHERED or (_FORGETS_TO_PAUSE and self.context.nagle):
            data = b"".join(out)
            out.clear()
            self.transport.write(data)
        else:
            self.transport.writelines(out)
            out.clear()

    @property
    def peer(self) -> str:
        """Who the peer is, for a log record."""
        return "a Unix socket" if self.client is None else f"{self.client[0]}:{self.client[1]}"

    def describe(self, request: Request) -> str:
        """Return method, target and peer for a log record, bounded and escaped."""
        return f"{excerpt(b'%b %b' % (request.method, request.target))} from {self.peer}"

    # -- what a protocol defines ---------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Take bytes from the socket."""
        raise NotImplementedError

    def eof_received(self) -> bool:
        """Take the client's end of file; return whether to keep the socket open."""
        raise NotImplementedError

    @property
    def idle(self) -> bool:
        """Whether nothing is in progress and nothing unread has arrived."""
        raise NotImplementedError

    @property
    def busy(self) -> bool:
        """Whether a response is owed, so that no deadline applies."""
        raise NotImplementedError

    def half_closed(self) -> None:
        """Tell what runs that the client sends no more, although not all that it sent was read."""

    def lost(self) -> None:
        """Tell what runs that the socket is gone."""
        raise NotImplementedError

    # -- reading, closing, deadlines -----------------------------------------------------------------------------

    def pause_reading(self) -> None:
        """Stop reading the socket: as much is buffered as may be."""
        if self.reading and not self.eof and self.phase is Phase.OPEN:
            self.reading = False
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        """Read the socket again."""
        if not self.reading and not self.eof and self.phase is Phase.OPEN:
            self.reading = True
            self.transport.resume_reading()

    def hand_over(self, successor: Connection) -> None:
        """Let another protocol have the transport and this connection's place."""
        self.flush()
        for name in ("transport", "tls", "client", "server", "eof", "reading", "write_paused", "handed"):
            setattr(successor, name, getattr(self, name))
        self.bucket.discard(self)
        self._shut(Phase.GONE)
        self.context.connections.discard(self)
        self.context.connections.add(successor)
        self.transport.set_protocol(successor)

    def is_open(self) -> bool:
        """Tell whether neither side has closed."""
        return self.phase is Phase.OPEN

    def close(self, *, linger: float = LINGER) -> None:
        """Flush, shut the write side down and read on for at most `linger` seconds; idempotent."""
        if self.phase is not Phase.OPEN:
            return
        self.flush()
        if self.eof or not self.transport.can_write_eof():
            self.finish()
            return
        self.resume_reading()
        self._shut(Phase.LINGERING)
        self.transport.write_eof()
        self.idle_since = self.context.now
        if self.context.draining is None:
            self.bucket.discard(self)
            self.context.watch(self, self.context.now + linger)
        else:
            self.context.loop.call_later(linger, self._linger_over)

    def finish(self) -> None:
        """Flush and close, where the client sends no more."""
        if self.phase is Phase.OPEN:
            self.flush()
            self._shut(Phase.LINGERING)
            self.transport.close()

    def _shut(self, phase: Phase) -> None:
        self.phase = phase
        if self._writable is not None:
            self._writable.wake()

    def abort(self) -> None:
        """Close at once; what is buffered is lost."""
        if self.phase is not Phase.GONE:
            self.transport.abort()

    def reset(self) -> None:
        """Close at once and take back what the kernel has for the peer, who would have it at his pace (socket(7))."""
        sock = self.transport.get_extra_info("socket")
        if sock is not None and sock.fileno() >= 0:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _WITHOUT_LINGERING)
        self.abort()

    def _linger_over(self) -> None:
        again = self.due(self.context.loop.time() + LINGER)
        if again is not None:
            self.context.loop.call_later(LINGER, self._linger_over)

    def due(self, now: float) -> float | None:
        """Close what was idle, lingered or took its time for too long; return when to look again."""
        if self.phase is Phase.GONE:
            return None
        waiting = self.unsent()
        if self._takes_too_slowly(now, waiting):
            self.reset()
            return None
        if self.phase is Phase.OPEN:
            return self.busy_due(now) if self.busy else self.waiting_due(now)
        if waiting:
            return now + LINGER  # a slow reader still takes the response: the bound counts from its last byte
        self.let_go()
        return None

    def unsent(self) -> int:
        """Return how much of what was written has not left this process, in bytes."""
        return self.transport.get_write_buffer_size()

    def let_go(self) -> None:
        """End a connection that lingered for long enough."""
        self.transport.close()

    def _takes_too_slowly(self, now: float, waiting: int) -> bool:
        rate = self.context.limits.rate
        if not waiting or not rate:
            self._write_pace = None
            return False
        taken = self.handed - waiting - unacknowledged(self.transport)
        if self._write_pace is None:
            self._write_pace = Pace(now, taken, TAKING)
        return self._write_pace.too_slow(now, taken, waiting=True, rate=rate)

    def waiting_due(self, now: float) -> float | None:
        """Close an open connection on which no request came in time; return when to look again."""
        context = self.context
        if now - context.before > BLOCKED and context.before in {self.idle_since, self.head_since}:
            # It waits since a time that the coarse clock missed, and what came meanwhile may be unread.
            self.head_since = now
            if self.idle_since is not None:
                self.idle_since = now
        limits, keep_alive = context.limits, context.keep_alive
        if self.idle_since is not None:
            end = self.idle_since + keep_alive
        elif limits.head_time:
            end = self.head_since + limits.head_time
        else:
            return now + LOOK
        if now < end:
            return min(end, now + LOOK)
        self.too_late()
        return None

    def busy_due(self, now: float) -> float | None:
        """Look after a request under way; return when to look again.

        While the socket is not read, the loop does not tell that the client is gone.
        """
        if not self.reading:
            events = polled(self.transport, select.POLLRDHUP)
            if events & (select.POLLERR | select.POLLHUP):
                self.abort()
                return None
            if events & select.POLLRDHUP:
                self.half_closed()
        return now + LOOK

    def too_late(self) -> None:
        """Close a connection on which nothing, or not enough, came in time."""
        self.close()

    def begin_drain(self, mode: DrainMode) -> None:  # noqa: ARG002 - the modes differ in the context's window alone
        """Bound the wait of a connection that never sent a request; others have their bound already."""
        if self.idle_since is None and self.phase is Phase.OPEN:
            self.idle_since = self.context.now

    def close_if_idle(self) -> None:
        """Close a connection whose window passed without a request."""
        if self.phase is Phase.OPEN and self.idle:
            self.close(linger=IDLE_LINGER)

    def close_if_used(self) -> None:
        """Close a connection that waits for a further request; one without any is likely to have one on its way."""
        if self.idle_since is not None:
            self.close_if_idle()

    def open_window(self) -> None:
        """Give a connection that became idle while the service stops the same window as the others."""
        if self.context.draining in {DrainMode.STOP, DrainMode.QUICK}:
            self.context.loop.call_later(WINDOW, self.close_if_idle)


def address(name: object) -> Address | None:
    """Return ASGI's pair for a socket name: (host, port), (path, None) for a Unix socket, None for an unnamed one."""
    if isinstance(name, (tuple, list)) and len(name) >= 2:
        return str(name[0]), int(name[1])
    if isinstance(name, bytes):  # an abstract Unix address, unix(7)
        name = "@" + name[1:].decode("utf-8", "replace")
    return (name, None) if isinstance(name, str) and name else None


def http_factory(context: Context, codec: CodecName, *, told: bool = False) -> Callable[[], asyncio.BaseProtocol]:
    """Return what makes the protocol for each accepted connection; `told` if a proxy may tell its scheme."""
    from procmgr.worker.protocols.http1 import Http1Connection  # noqa: PLC0415 - which builds on this module
    from procmgr.worker.protocols.patience import limit_requests  # noqa: PLC0415 - likewise
    from procmgr.worker.protocols.secure import SecureHttp1Connection  # noqa: PLC0415 - likewise
    from procmgr.worker.protocols.told import with_told_scheme  # noqa: PLC0415 - likewise

    codec_class: Callable[[], Codec]
    if codec == "httptools":
        from procmgr.worker.protocols.httptools_codec import HttptoolsCodec  # noqa: PLC0415 - load the one in use

        codec_class = HttptoolsCodec
    else:
        from procmgr.worker.protocols.h11_codec import H11Codec  # noqa: PLC0415 - load the one in use

        codec_class = H11Codec
    kind = Http1Connection if context.secure is None else SecureHttp1Connection
    if told:
        kind = with_told_scheme(kind)
    return partial(limit_requests(kind) if context.limits.request_time else kind, context, codec_class)
