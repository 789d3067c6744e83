"""One WebSocket as the application sees it: `receive()`, `send()`, and every way to get them wrong.

Theory of operation. It begins as a request, so it is a `Cycle`, and until it is accepted or denied all of a request's
rules hold: its place in the accounts and its limits, 500 for an application that fails, an HTTP response where the
application denies it (ASGI extension `websocket.http.response`; `websocket.close` is a 403).

    handshake   nothing came from the application; the 101 is held until `websocket.accept`
    open        the 101 is on the wire, under a `Socket`; messages go both ways
    closed      a close frame was sent or came, or the socket is gone: `receive()` gives what had arrived, then
                `websocket.disconnect`, and `send()` raises `ClientDisconnected` (ASGI WebSocket specification)

How the socket closes, and how long that may take, is the socket's. If the application returns, the WebSocket closes
with 1000; if it fails, with 1011; if it is cancelled because the worker ends, with 1012.

What arrives is queued for the application, bounded in messages and in bytes of memory; `full` stops the reader.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Final, Protocol

from procmgr.errors import ClientDisconnected
from procmgr.scoreboard import APP_ERRORS
from procmgr.worker.cycle import COMPLETE, SENT, WAITING, TimedCycle, Wire
from procmgr.worker.protocols.frames import ABNORMAL, INTERNAL_ERROR, NORMAL, RESTARTING, Closed, sendable
from procmgr.worker.protocols.scope import websocket_scope
from procmgr.worker.waiters import Waiters

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from procmgr.worker.protocols.base import Address
    from procmgr.worker.protocols.context import App, Message, Scope
    from procmgr.worker.protocols.framing import Request
    from procmgr.worker.protocols.handshake import Handshake

QUEUE_BYTES: Final = 1024 * 1024
"""Above this much memory of messages that wait for the application no more are read."""

_EXCERPT: Final = 80


class Socket(Protocol):
    """What an open WebSocket needs of the connection below it."""

    write_paused: bool

    async def drain_writes(self) -> None:
        """Wait until the transport takes more, or is gone."""

    def send_text(self, text: str) -> None:
        """Send a text message."""

    def send_binary(self, data: bytes) -> None:
        """Send a binary message."""

    def shut(self, code: int, reason: str) -> None:
        """Send a close frame and wait for the peer's, bounded."""

    def taken(self) -> None:
        """Note that the application took a message."""


class WebSocketCycle(TimedCycle):
    """The machine for one WebSocket. `accept` sends a 101 response with the given lines and makes the socket."""

    __slots__ = (
        "_accept",
        "_closed",
        "_connected",
        "_handshake",
        "_max_queue",
        "_queue",
        "_queued",
        "_socket",
        "client",
    )

    client: Address | None
    """Who the peer is, behind a trusted proxy too."""

    def __init__(
        self,
        wire: Wire,
        request: Request,
        *,
        handshake: Handshake,
        max_queue: int,
        accept: Callable[[WebSocketCycle, bytes], Socket],
    ) -> None:
        super().__init__(wire, request)
        self._handshake = handshake
        self._max_queue = max_queue
        self._accept = accept
        self._socket: Socket | None = None
        self._connected = False
        self._closed: Closed | None = None
        self._queue: deque[str | bytes] = deque()
        self._queued = 0

    def run(self, app: App, scope: Scope) -> Coroutine[Any, Any, None]:
        """Run the application to its end; `scope` is the request's."""
        self.client = scope["client"]
        return super().run(app, websocket_scope(scope, self._handshake.subprotocols))

    # -- what the application calls ------------------------------------------------------------------------------

    async def receive(self) -> Message:
        """Return `websocket.connect`, then each message, and `websocket.disconnect` once there will be no more."""
        if not self._connected:
            self._connected = True
            return {"type": "websocket.connect"}
        while True:
            if self._queue:
                return self._take()
            if self._closed is not None:
                self._told = True
                return {"type": "websocket.disconnect", "code": self._closed.code, "reason": self._closed.reason}
            if self._readers is None:
                self._readers = Waiters(self._wire.context.loop)
            await self._readers.wait()

    def _take(self) -> Message:
        message = self._queue.popleft()
        self._queued -= message.__sizeof__()
        assert self._socket is not None  # nothing arrives before there is one
        self._socket.taken()
        return {"type": "websocket.receive", "text" if type(message) is str else "bytes": message}

    async def send(self, message: Message) -> None:
        """Take one message.

        Raises `ClientDisconnected` once the WebSocket is closed, by whichever side; `KeyError`, `RuntimeError`,
        `TypeError` or `ValueError` for a message that is wrong or not due.
        """
        kind = message["type"]
        socket = self._socket
        if socket is None:
            await self._send_early(kind, message)
            return
        if socket.write_paused and self._closed is None:
            await socket.drain_writes()
        if self._closed is not None:
            raise ClientDisconnected("the WebSocket is closed")
        if kind == "websocket.send":
            self._send_message(socket, message)
        elif kind == "websocket.close":
            self._send_close(message)
        else:
            raise RuntimeError(f"unexpected message {_cut(kind)} after 'websocket.accept'")

    async def _send_early(self, kind: object, message: Message) -> None:
        """Take a message before there is a socket; a denial is an HTTP response."""
        match kind:
            case "websocket.accept" if self.state == WAITING:
                self._accept_with(message)
            case "websocket.close" if self.state == WAITING:
                await super().send({"type": "http.response.start", "status": 403})
                await super().send({"type": "http.response.body"})
            case "websocket.http.response.start" | "websocket.http.response.body":
                await super().send({**message, "type": kind.removeprefix("websocket.")})
            case _ if self.state == COMPLETE:
                self._ignore(kind)
            case _:
                raise RuntimeError(f"unexpected message {_cut(kind)} before the WebSocket is accepted, or once denied")

    def _accept_with(self, message: Message) -> None:
        if self.ended:
            raise ClientDisconnected("the client is gone")
        lines = self._handshake.lines
        subprotocol = message.get("subprotocol")
        if subprotocol is not None:
            if subprotocol not in self._handshake.subprotocols:
                raise ValueError(f"subprotocol {_cut(subprotocol)} is none that the client offered")
            lines += f"sec-websocket-protocol: {subprotocol}\r\n".encode()
        headers = [*message.get("headers", ())]
        block, _, _, lacks, _ = self._wire.fields.encode(headers)
        for name, _ in headers:
            if name.lower() == b"upgrade" or name.lower().startswith(b"sec-websocket-"):
                raise ValueError(f"header {_cut(name)} belongs to the handshake, which is the server's")
        self.state, self.status = SENT, 101
        self._socket = self._accept(self, lines + self._wire.context.head[lacks] + block)

    @staticmethod
    def _send_message(socket: Socket, message: Message) -> None:
        data, text = message.get("bytes"), message.get("text")
        if data is not None:
            if not isinstance(data, (bytes, bytearray, memoryview)):
                raise TypeError(f"bytes must be bytes, not {type(data).__name__}")
            socket.send_binary(data if type(data) is bytes else bytes(data))
        elif isinstance(text, str):
            socket.send_text(text)
        else:
            raise TypeError(f"one of bytes and text is required, and text must be a string, not {type(text).__name__}")

    def _send_close(self, message: Message) -> None:
        code, reason = message.get("code"), message.get("reason") or ""
        code = NORMAL if code is None else code
        if not isinstance(code, int) or not sendable(code):
            raise ValueError(f"not a code that a WebSocket may be closed with: {_cut(code)}")
        if not isinstance(reason, str):
            raise TypeError(f"reason must be a string, not {type(reason).__name__}")
        self._shut(code, reason)

    # -- what the connection tells it ----------------------------------------------------------------------------

    @property
    def full(self) -> bool:
        """Whether as much waits for the application as may."""
        return len(self._queue) >= self._max_queue or self._queued >= QUEUE_BYTES

    def deliver(self, message: str | bytes) -> None:
        """Queue a message."""
        self._queue.append(message)
        self._queued += message.__sizeof__()
        if self._readers is not None:
            self._readers.wake()

    def closed(self, code: int, reason: str) -> None:
        """Note that no more will come, and that nothing can be sent."""
        if self._closed is None:
            self._closed = Closed(code, reason)
        if self._readers is not None:
            self._readers.wake()

    def client_ended(self) -> None:
        """Note that the client went during the handshake."""
        self.closed(ABNORMAL, "")
        super().client_ended()

    # -- how the application ends --------------------------------------------------------------------------------

    def _returned(self, result: object) -> None:
        context = self._wire.context
        if self._socket is None:
            super()._returned(result)
        elif result is not None:
            context.row[APP_ERRORS] += 1
            where = self._wire.describe(self.request)
            context.error_log.error("%s: the application returned %s instead of None", where, _cut(result))
            self._fail(500)
        else:
            self._shut(RESTARTING if context.aborting else NORMAL, "")
            self.state = COMPLETE

    def _fail(self, status: int) -> None:
        if self._socket is None:
            super()._fail(status)
            self.closed(ABNORMAL, "")
        else:
            self._shut(RESTARTING if status == 503 else INTERNAL_ERROR, "")
            self.state = COMPLETE

    def _shut(self, code: int, reason: str) -> None:
        """Close from this side, unless it is closed: what waits for the application is not wanted any more."""
        self._queue.clear()
        self._queued = 0
        if self._closed is None and self._socket is not None:
            self.closed(code, reason)
            self._socket.shut(code, reason)


def _cut(value: object) -> str:
    """Return a bounded, escaped excerpt of what the application gave."""
    text = ascii(value)
    return text if len(text) <= _EXCERPT else f"{text[:_EXCERPT]}..."
