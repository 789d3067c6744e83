"""One request and its response, as the application sees them: `receive()`, `send()`, and every way to get them wrong.

Theory of operation. A cycle knows ASGI and no wire; under it is a `Wire`, a protocol's connection, which frames bytes.
The response goes through four states, in order and never back:

    WAITING   nothing came from the application
    HELD      `http.response.start` was accepted; it is held until the first body message, so that head and first
              chunk leave in one write, and a failure in between can still be answered with 500
    SENT      the head is on the wire
    COMPLETE  the last message is on the wire; the connection may be serving its next request already

Start and body are this machine's; what extensions add, hints and files, the wire sends, and trailers a cycle of their
own: a response without them passes none of it.

"Sent" means on the wire: an application that misbehaves in WAITING or HELD is answered with 500; in SENT the connection
is closed, which is the only way left to tell the client. Every misbehaviour is one log record.

Two things may happen to the client. Its end of file (`client_ended`) may be a half-close: `receive()` says
`http.disconnect`, what the application still sends is written. When the socket is gone (`client_lost`), `send()` raises
`ClientDisconnected`, one that waits for the transport to drain included: as of ASGI HTTP spec_version 2.4 applications
rely on it.
"""

from __future__ import annotations

import asyncio
from time import perf_counter
from typing import TYPE_CHECKING, Final, NoReturn, Protocol

from procmgr.errors import ClientDisconnected
from procmgr.scoreboard import APP_ERRORS
from procmgr.worker.waiters import Waiters

if TYPE_CHECKING:
    from collections.abc import Container

    from procmgr.worker.protocols.context import App, Context, Message, Scope
    from procmgr.worker.protocols.framing import Request
    from procmgr.worker.protocols.response import FieldEncoder, Fields

WAITING: Final = 0
HELD: Final = 1
SENT: Final = 2
COMPLETE: Final = 3
GONE: Final = 499
"""The status of a request whose client went before a response began: nobody is sent it, logs and counters have it."""

_DUE: Final = (
    "before 'http.response.start'",
    "after 'http.response.start': the body is due",
    "in the middle of the body: more of it is due",
)
_RETURNED: Final = ("without a response", "without a body for its response", "in the middle of its response")
_EXCERPT: Final = 200


class Wire(Protocol):
    """What a cycle needs of the connection below it."""

    context: Context
    fields: FieldEncoder
    write_paused: bool

    async def drain_writes(self) -> None:
        """Wait until the transport takes more, or is gone."""

    def respond(self, cycle: Cycle, body: bytes, more: bool) -> None:  # noqa: FBT001 - hot path
        """Write the head and the first part of the body."""

    def write_body(self, body: bytes, *, more: bool) -> None:
        """Write a further part of the body."""

    def write_trailers(self, lines: bytes) -> None:
        """End the body with trailer fields, if its framing has a place for them."""

    async def extend(self, cycle: Cycle, kind: object, message: Message) -> None:
        """Take a message of an extension; raises as `Cycle.send`."""

    def completed(self, cycle: Cycle) -> None:
        """Account for a complete response and go on with the connection."""

    def failed(self, cycle: Cycle, *, answer: bool) -> None:
        """Give up the response: `answer` with the cycle's status if nothing is on the wire; close. Account for it."""

    def ask_for_body(self) -> None:
        """Send `100 Continue`."""

    def body_taken(self) -> None:
        """Note that the application took what was buffered of the body."""

    def describe(self, request: Request) -> str:
        """Return method, target and peer for a log record, bounded and escaped."""


class Cycle:
    """The machine for one request; the wire feeds it the body and says what became of the client."""

    __slots__ = (
        "_buffer",
        "_delivered",
        "_expect",
        "_late",
        "_left",
        "_readers",
        "_told",
        "_wire",
        "body_ended",
        "bodyless",
        "ended",
        "fields",
        "lost",
        "record",
        "refused",
        "request",
        "state",
        "status",
        "task",
    )

    fields: Fields
    record: int
    status: int
    _left: int

    unannounced: Container[object] = ("http.response.trailers",)
    """Messages that are dropped after the response: no client said that it takes them, or no start that they come."""

    def __init__(self, wire: Wire, request: Request) -> None:
        """Begin without a body; the wire sets `body_ended` to False if there is one."""
        self._wire = wire
        self.request = request
        self.state = WAITING
        self.body_ended = True
        self.bodyless = request.method == b"HEAD"
        self.ended = self.lost = self._delivered = self._told = self._late = False
        self.task: asyncio.Task[None] | None = None
        self._expect = request.expect
        self._buffer: bytes | bytearray = b""
        self._readers: Waiters | None = None
        self.refused = 0

    async def run(self, app: App, scope: Scope) -> None:
        """Run the application to its end. Nothing it raises passes: a worker outlives a request's SystemExit."""
        try:
            result: object = await app(scope, self.receive, self.send)  # type: ignore[func-returns-value] # it should not
        except BaseException as error:
            if isinstance(error, GeneratorExit) and not self._wire.context.loop.is_running():
                raise  # the loop ended under the request: nobody is left to answer
            self._raised(error)  # whatever it is, it is the application's misbehaviour
        else:
            if self.state != COMPLETE or result is not None:
                self._returned(result)
        finally:
            self._wire.context.ended(self.task, self.record)

    # -- what the application calls ------------------------------------------------------------------------------

    async def receive(self) -> Message:
        """Return the next part of the body, or `http.disconnect` once the client or the response has ended."""
        if self._expect:
            self._expect = False
            if self.state < SENT and not self.lost and not self._buffer and not self.body_ended:
                self._wire.ask_for_body()
        while self.state != COMPLETE:
            if not self._delivered and (self.body_ended or self._buffer):
                return self._take()
            if self.ended:
                break
            if self._readers is None:
                self._readers = Waiters(self._wire.context.loop)
            await self._readers.wait()
        self._told = True
        return {"type": "http.disconnect"}

    def _take(self) -> Message:
        body, self._buffer = self._buffer, b""
        self._delivered = self.body_ended
        if body:
            self._wire.body_taken()
        return {"type": "http.request", "body": bytes(body), "more_body": not self._delivered}

    async def send(self, message: Message) -> None:
        """Take one message of the response.

        Raises `ClientDisconnected` once the socket is gone; `KeyError`, `RuntimeError`, `TypeError` or `ValueError` for
        a message that is wrong or not due.
        """
        kind = message["type"]
        if self._wire.write_paused and self.state != COMPLETE:
            await self._wire.drain_writes()
        state = self.state
        if state == COMPLETE:
            self._ignore(kind)
        elif self.lost:
            raise ClientDisconnected("the client is gone")
        elif kind == "http.response.body" and state != WAITING:
            self.send_body(message.get("body", b""), bool(message.get("more_body")))
        elif kind == "http.response.start" and state == WAITING:
            self._send_start(message)
        else:
            await self._extend(kind, message)

    async def _extend(self, kind: object, message: Message) -> None:
        await self._wire.extend(self, kind, message)

    def unexpected(self, kind: object, when: str = "") -> NoReturn:
        """Refuse a message that is not due."""
        raise RuntimeError(f"unexpected message {_cut(kind)} {when or _DUE[self.state]}")

    def _send_start(self, message: Message) -> None:
        status = message["status"]
        if not isinstance(status, int) or not 200 <= status <= 599:
            raise ValueError(f"status must be an integer from 200 to 599, not {_cut(status)}")
        self.fields = fields = self._wire.fields.encode(message.get("headers", ()))
        self._left = fields[1]
        self.status = status
        if status in (204, 304):  # RFC 9110 sections 15.3.5 and 15.4.5
            self.bodyless = True
        self.state = HELD

    def send_body(self, body: bytes, more: bool) -> None:  # noqa: FBT001 - hot path
        """Send a part of the body, with the head before the first. Raises `RuntimeError` or `TypeError`."""
        if type(body) is not bytes:
            if not isinstance(body, (bytes, bytearray, memoryview)):
                raise TypeError(f"body must be bytes, not {type(body).__name__}")
            body = bytes(body)
        if self._left >= 0 and not self.bodyless:
            left = self._left - len(body)  # as `_measure` does, without the call
            if left < 0 or (left and not more):
                self._misfit(left)
            self._left = left
        if self.state == HELD:
            self.state = SENT
            self._wire.respond(self, body, more)
        elif not self.bodyless and (body or not more):
            self._wire.write_body(body, more=more)
        if not more:
            self.state = COMPLETE
            if self._readers is not None:
                self._readers.wake()
            self._wire.completed(self)

    def announce(self, size: int, *, more: bool) -> None:
        """Account for `size` bytes of body that the connection sends itself, and send the head if it is held."""
        left = self._measure(size, more=more)
        if self.state == HELD:
            block, _, line, lacks, close = self.fields
            if not line and not more:
                self.fields = block, size, b"content-length: %d\r\n" % size, lacks, close
            self.state = SENT
            self._wire.respond(self, b"", more)
        self._left = left

    def _measure(self, size: int, *, more: bool) -> int:
        """Return what Content-Length leaves after `size` further bytes, -1 if it leaves that open."""
        left = self._left
        if left >= 0 and not self.bodyless:
            left -= size
            if left < 0 or (left and not more):
                self._misfit(left)
        return left

    @staticmethod
    def _misfit(left: int) -> NoReturn:
        """Refuse a body that is not as long as Content-Length says (RFC 9110 section 8.6)."""
        raise RuntimeError(f"{abs(left)} bytes {'more' if left < 0 else 'less'} of body than content-length says")

    def _ignore(self, kind: object) -> None:
        if not self._late and kind not in self.unannounced:
            self._late = True
            where = self._wire.describe(self.request)
            self._wire.context.error_log.error("%s: %s after the response was complete, ignored", where, _cut(kind))

    # -- what the wire tells it ----------------------------------------------------------------------------------

    @property
    def buffered(self) -> int:
        """How many bytes of the body the application has not taken."""
        return len(self._buffer)

    @property
    def waiting(self) -> bool:
        """Whether the application waits for more of the body."""
        return self._readers is not None and self._readers.waiting

    @property
    def awaits_continue(self) -> bool:
        """Whether the client waits for `100 Continue` and was not sent it."""
        return self._expect

    def feed(self, body: bytes, *, ended: bool) -> None:
        """Take what arrived of the request body; once the response is complete nobody wants it."""
        if self.state == COMPLETE or not self._buffer:
            self._buffer = b"" if self.state == COMPLETE else body
        else:
            if isinstance(self._buffer, bytes):
                self._buffer = bytearray(self._buffer)
            self._buffer += body
        self.body_ended = ended
        if self._readers is not None:
            self._readers.wake()

    def client_ended(self) -> None:
        """Note that the client shut its sending side down."""
        self.ended = True
        if self._readers is not None:
            self._readers.wake()

    def client_lost(self) -> None:
        """Note that the socket is gone, or that what the client sends cannot be followed any more."""
        self.lost = True
        self.client_ended()

    # -- how the application can get it wrong --------------------------------------------------------------------

    def _raised(self, error: BaseException) -> None:
        context = self._wire.context
        where = self._wire.describe(self.request)
        status = 500
        self._late = True  # what it had under way when it was cancelled, say in a thread, is no further mistake
        if _is_disconnect(error):
            pass
        elif self.refused and isinstance(error, asyncio.CancelledError):
            pass  # because of that, which was said
        elif context.aborting and isinstance(error, asyncio.CancelledError):
            context.error_log.warning("%s: cancelled, the worker ends", where)
            status = 503
        else:
            context.row[APP_ERRORS] += 1
            context.error_log.error("%s: the application raised", where, exc_info=error)
        self._fail(status)

    def _returned(self, result: object) -> None:
        if self.state == COMPLETE:
            problem = f"{_cut(result)} instead of None"
        elif self._told or self.lost:  # it was told, or would have been, that nobody waits for its response
            self._fail(500)
            return
        else:
            problem = _RETURNED[self.state]
        context = self._wire.context
        context.row[APP_ERRORS] += 1
        context.error_log.error("%s: the application returned %s", self._wire.describe(self.request), problem)
        self._fail(500)

    def _fail(self, status: int) -> None:
        state = self.state
        if state == COMPLETE:
            return
        if state < SENT:
            self.status = (self.refused or GONE) if self.lost else status
        self.state = COMPLETE
        if self._readers is not None:
            self._readers.wake()
        self._wire.failed(self, answer=state < SENT and not self.lost)

    def broken(self) -> None:
        """Give up a response of which the connection sent part of a file and could not go on."""
        self._fail(500)

    def passed_on(self, size: int) -> None:
        """Note that the connection sends `size` bytes of a body in the application's place."""


class TimedCycle(Cycle):
    """A request whose duration and size are told at its end."""

    __slots__ = ("began", "sent")

    def __init__(self, wire: Wire, request: Request) -> None:
        super().__init__(wire, request)
        self.began = perf_counter()
        self.sent = 0

    def send_body(self, body: bytes, more: bool) -> None:  # noqa: FBT001 - hot path
        """Count a part of the body, and send it."""
        sent = self.sent
        if not self.bodyless:
            self.sent = sent + size_of(body)  # before the response can be complete, and be accounted for
        try:
            super().send_body(body, more)
        except BaseException:
            self.sent = sent
            raise

    def passed_on(self, size: int) -> None:
        """Count what the connection sends in the application's place."""
        self.sent += size

    @property
    def response_lines(self) -> bytes:
        """The fields that the application sent, as lines."""
        if not hasattr(self, "fields"):
            return b""
        block, _, length, _, _ = self.fields
        return block + length


def size_of(body: object) -> int:
    """Return the size of what an application sent as body, 0 for what cannot be one."""
    return memoryview(body).nbytes if isinstance(body, (bytes, bytearray, memoryview)) else 0


def _is_disconnect(error: BaseException) -> bool:
    """Whether `ClientDisconnected` is anywhere among the causes and contexts of `error`, groups included."""
    todo: list[BaseException | None] = [error]
    seen: set[int] = set()
    while todo:
        one = todo.pop()
        if one is None or id(one) in seen:
            continue
        if isinstance(one, ClientDisconnected):
            return True
        seen.add(id(one))
        todo += (one.__cause__, one.__context__)
        if isinstance(one, BaseExceptionGroup):
            todo += one.exceptions
    return False


def _cut(value: object) -> str:
    """Return a bounded, escaped excerpt of what the application gave."""
    text = ascii(value)
    return text if len(text) <= _EXCERPT else f"{text[:_EXCERPT]}..."
