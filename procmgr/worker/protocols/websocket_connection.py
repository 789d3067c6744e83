"""A WebSocket on its connection: frames in and out, back-pressure, keep-alive pings, the closing handshake, the drain.

Theory of operation. An HTTP/1.1 connection hands its transport over once the application has accepted. Bytes are fed to
the codec in slices, and not at all while the application's queue is full or the peer does not take what is sent to it,
pongs included; then the socket is not read either. So what one read can hold, tens of thousands of messages or a
thousandfold inflated one, is never there at once.

Who sends a close frame first waits for the other's (RFC 6455 section 7.1.1), for at most `CLOSE` seconds. Then the
server ends the TCP connection, lingering as after HTTP. After a violation nobody waits.

Times are the context's coarse deadlines: no timer per connection or message. A peer that does not answer a ping in time
is closed with 1011, but not while we do not read: its pong may lie behind what the application does not take. A peer
that takes some of what is sent to it is alive too; one that takes too little is cut off, as after HTTP.

A retiring worker leaves its WebSockets be until the drain's deadline, where the drain becomes a quick one; a worker
that stops closes them at once, since nobody would serve on. Both with 1012, which tells clients to connect again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from procmgr.worker.protocols.base import LOOK, Connection, Phase
from procmgr.worker.protocols.context import DrainMode
from procmgr.worker.protocols.frames import ABNORMAL, INTERNAL_ERROR, RESTARTING, Closed, Pong
from procmgr.worker.protocols.handshake import asks_for_websocket, negotiate
from procmgr.worker.protocols.kernel import unacknowledged
from procmgr.worker.protocols.response import STATUS_LINES
from procmgr.worker.protocols.secure import SecureConnection
from procmgr.worker.protocols.websocket import WebSocketCycle

if TYPE_CHECKING:
    from collections.abc import Callable

    from procmgr.worker.cycle import Cycle
    from procmgr.worker.protocols.frames import FrameCodec, MakeCodec
    from procmgr.worker.protocols.framing import Request
    from procmgr.worker.protocols.http1 import Http1Connection

SLICE: Final = 4096
"""Bytes that are fed to the codec at a time, or the rest of a larger frame."""

CLOSE: Final = 5.0
"""Seconds in which a peer has to answer a close frame."""

CLOSE_DRAINING: Final = 1.0
"""The same where the service stops."""

_OPEN: Final = Phase.OPEN


@dataclass(frozen=True, slots=True, kw_only=True)
class WebSocketOptions:
    """What the settings say; times are seconds, 0 never pings or never times out."""

    max_size: int = 16 * 1024 * 1024
    max_queue: int = 32
    ping_interval: float = 20.0
    ping_timeout: float = 20.0
    deflate: bool = True


def upgrader(make_codec: MakeCodec, options: WebSocketOptions) -> Callable[[Http1Connection, Request], Cycle | None]:
    """Return what makes the cycle of a request that is to become a WebSocket, and None for another."""

    def upgrade(http: Http1Connection, request: Request) -> Cycle | None:
        if not asks_for_websocket(request):
            return None
        handshake = negotiate(request, deflate=options.deflate)

        def accept(cycle: WebSocketCycle, lines: bytes) -> WebSocketConnection:
            http.write(b"".join((STATUS_LINES[101], lines, b"\r\n")))
            kind = WebSocketConnection if http.context.secure is None else SecureWebSocketConnection
            connection = kind(http, cycle, make_codec(handshake, options.max_size), options)
            connection.begin(http.release())
            return connection

        return WebSocketCycle(http, request, handshake=handshake, max_queue=options.max_queue, accept=accept)

    return upgrade


class WebSocketConnection(Connection):
    """One connection that speaks WebSocket, in the place of the HTTP one it began as."""

    __slots__ = (
        "_at",
        "_close_by",
        "_code",
        "_codec",
        "_cycle",
        "_ended",
        "_opened",
        "_options",
        "_pending",
        "_ping",
        "_ping_at",
        "_pings",
        "_pong_by",
        "_received",
        "_sent",
        "_taken",
    )

    def __init__(
        self, http: Http1Connection, cycle: WebSocketCycle, codec: FrameCodec, options: WebSocketOptions
    ) -> None:
        super().__init__(http.context)
        self._cycle = cycle
        self._codec = codec
        self._options = options
        self._pending = b""
        self._at = 0
        self._close_by: float | None = None
        self._code = ABNORMAL
        self._ended = False
        self._received = self._sent = 0
        self._opened = self.context.loop.time()
        self._ping_at = self._opened + options.ping_interval
        self._ping: bytes | None = None
        self._pings = 0
        self._pong_by = 0.0
        self._taken = 0
        http.hand_over(self)

    def begin(self, data: bytes) -> None:
        """Begin with what came behind the handshake."""
        self.context.watch(self, self._opened + min(LOOK, self._options.ping_interval or LOOK))
        if data:
            self.data_received(data)
        else:
            self.resume_reading()
        if self.context.draining is not None:
            self.begin_drain(self.context.draining)

    # -- bytes in ------------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Take bytes from the socket."""
        if self.phase is _OPEN:
            self._pending = self._pending[self._at :] + data if self._pending else data
            self._at = 0
            self._advance()

    def _advance(self) -> None:
        """Read on, as long as what comes of it has a place."""
        data = self._pending
        while self._at < len(data):
            if self._stalled:
                self.pause_reading()
                return
            at = self._at
            self._at = at + max(SLICE, self._codec.reach(data, at))
            self._feed(data if not at and self._at >= len(data) else data[at : self._at])
            if self.phase is not _OPEN:
                break
        self._pending, self._at = b"", 0
        if self.eof:
            self._peer_left()
        elif not self.reading:
            self.resume_reading()

    @property
    def _stalled(self) -> bool:
        return self.write_paused or (self._close_by is None and self._cycle.full)

    def _feed(self, data: bytes) -> None:
        codec = self._codec
        closed = None
        for event in codec.receive(data):
            if isinstance(event, Closed):
                closed = event
            elif isinstance(event, Pong):
                self._on_pong(event)
            elif self._close_by is None:
                self._received += 1
                self._cycle.deliver(event)
        if codec.replies:
            self.write(b"".join(codec.replies))
            codec.replies.clear()
        if closed is not None:
            self._cycle.closed(closed.code, closed.reason)
            self._account(closed.code)
            self.close()

    def eof_received(self) -> bool:
        """Take the peer's end of file; returns whether to keep the socket open, for what is not read yet."""
        self.eof = True
        if self.phase is _OPEN and not self._pending:
            self._peer_left()
        return self.phase is _OPEN

    def _peer_left(self) -> None:
        self.lost()
        self.finish()

    def lost(self) -> None:
        """Note that the socket is gone."""
        self._cycle.closed(ABNORMAL, "")
        self._account(ABNORMAL)

    @property
    def idle(self) -> bool:
        """An open WebSocket is always in use."""
        return False

    @property
    def busy(self) -> bool:
        """An open WebSocket is always in use."""
        return True

    # -- what the cycle asks for ---------------------------------------------------------------------------------

    def send_text(self, text: str) -> None:
        """Send a text message. Raises `UnicodeEncodeError` for surrogates."""
        self.write(self._codec.text(text))
        self._sent += 1

    def send_binary(self, data: bytes) -> None:
        """Send a binary message."""
        self.write(self._codec.binary(data))
        self._sent += 1

    def taken(self) -> None:
        """Go on with what was read already, then with reading."""
        if self._pending and self.phase is _OPEN:
            self._advance()

    def shut(self, code: int, reason: str) -> None:
        """Send a close frame and wait for the peer's, bounded."""
        if self.phase is not _OPEN or self._close_by is not None:
            return
        self.write(self._codec.close(code, reason))
        self._cycle.closed(code, reason)
        self._code = code
        self._close_by = self.context.loop.time() + CLOSE
        if self.context.draining in {None, DrainMode.RETIRE}:
            self.bucket.discard(self)
            self.context.watch(self, self._close_by)
        else:
            self._close_soon()
        if self._pending:
            self._advance()  # what is in the way of the peer's close frame is not wanted any more

    def resume_writing(self) -> None:
        """Let senders go on, and the reader."""
        super().resume_writing()
        if self._pending and self.phase is _OPEN:
            self._advance()

    # -- deadlines -----------------------------------------------------------------------------------------------

    def busy_due(self, now: float) -> float | None:
        """Ping, miss a pong, or end a closing handshake; return when to look again."""
        if self._close_by is not None:
            if now >= self._close_by:
                self.abort()
            return min(self._close_by, now + LOOK)
        if self._options.ping_interval:
            if self._ping is not None and self._options.ping_timeout:
                if self._missed_pong(now):
                    self.shut(INTERNAL_ERROR, "keepalive ping timeout")
                    return None  # `shut` said when to look again
            elif now >= self._ping_at:
                self._send_ping(now)
            return min(now + LOOK, self._pong_by if self._ping is not None else self._ping_at)
        return now + LOOK

    def _missed_pong(self, now: float) -> bool:
        if now < self._pong_by:
            return False
        self._pong_by = now + self._options.ping_timeout
        return not self._excused()

    def _send_ping(self, now: float) -> None:
        options = self._options
        self._pings += 1
        self._ping = self._pings.to_bytes(8)
        self._taken = self.handed - self._untaken()
        self.write(self._codec.ping(self._ping))
        self._ping_at = now + options.ping_interval
        self._pong_by = now + (options.ping_timeout or options.ping_interval)

    def _excused(self) -> bool:
        """Whether a missing pong tells nothing: it may be unread, or the peer still takes what was before the ping."""
        if self._cycle.full and not self.reading:
            return True
        untaken, before = self._untaken(), self._taken
        self._taken = self.handed - untaken
        return untaken > 0 and self._taken > before

    def _untaken(self) -> int:
        """Return how much of what was handed over the peer has not acknowledged, in bytes."""
        return self.transport.get_write_buffer_size() + unacknowledged(self.transport)

    def _on_pong(self, pong: Pong) -> None:
        if pong.payload == self._ping:
            self._ping = None
            self._ping_at = self.context.now + self._options.ping_interval

    # -- the end -------------------------------------------------------------------------------------------------

    def begin_drain(self, mode: DrainMode) -> None:
        """Close, unless others serve on and there is time."""
        if mode is DrainMode.RETIRE or self.phase is not _OPEN:
            return
        if self._close_by is None:
            self.shut(RESTARTING, "")
        else:
            self._close_soon()

    def _close_soon(self) -> None:
        self.context.loop.call_later(CLOSE_DRAINING, self._close_over)

    def _close_over(self) -> None:
        if self.phase is _OPEN:
            self.abort()

    def _account(self, code: int) -> None:
        """Account for the WebSocket, once; who began to close it determines the code."""
        if self._ended:
            return
        self._ended = True
        if self._close_by is None:
            self._code = code
        context, request = self.context, self._cycle.request
        context.count_request(101)
        if context.access is not None:
            context.access.websocket(
                context.access.prefix(self._cycle.client),
                request,
                context.root_path,
                code=self._code,
                seconds=context.loop.time() - self._opened,
                received=self._received,
                sent=self._sent,
            )


class SecureWebSocketConnection(SecureConnection, WebSocketConnection):
    """One connection that speaks WebSocket over TLS."""

    __slots__ = ()

    @property
    def expecting(self) -> bool:
        """Whether the client may be in the midst of sending something: what it sends now is of no interest."""
        return False
