"""HTTP/1.1 on one connection: cuts the byte stream into requests, serves them in order, frames the responses.

Theory of operation. What arriving bytes are depends on two facts:

    no cycle                 the head of a request; an incomplete one is kept in `_pending`
    a cycle, body open       its body, as long as its length or its chunks say
    a cycle, body ended      later requests, kept in `_pending` as they came

A pipelined request is not even parsed before its turn (RFC 9112 section 9.3.2): so a bad one cannot answer an earlier
one's turn, and what is kept of the future is bounded in bytes, above which the socket is not read. The next request
starts from the loop, never from within the application's last `send()`, and an application starts once the parser has
returned.

A head is read whole. The common case, one whole request without a body in one segment, takes no copy and no buffer;
everything else goes through `_pending`.
"""

from __future__ import annotations

import contextvars
from typing import TYPE_CHECKING, Final

from procmgr.scoreboard import STATUS_1XX
from procmgr.worker.cycle import COMPLETE, SENT
from procmgr.worker.protocols.base import LOOK, Phase
from procmgr.worker.protocols.extensions import ExtendedConnection
from procmgr.worker.protocols.framing import END, Refused, check_partial, excerpt
from procmgr.worker.protocols.heads import HeadReader
from procmgr.worker.protocols.pace import Pace
from procmgr.worker.protocols.response import STATUS_LINES, bodyless_length, chunk, error_response
from procmgr.worker.protocols.scope import http_scope
from procmgr.worker.trailers import takes_trailers, with_trailers

if TYPE_CHECKING:
    from collections.abc import Callable

    from procmgr.worker.cycle import Cycle
    from procmgr.worker.protocols.bodies import Body
    from procmgr.worker.protocols.context import Context
    from procmgr.worker.protocols.framing import Codec, Request

_OPEN: Final = Phase.OPEN
_CR: Final = ord("\r")
_COPY: Final = 16 * 1024
"""Up to this size a body is copied behind its head into one buffer; a larger one goes beside it in one writev(2)."""


class Http1Connection(ExtendedConnection):
    """One connection that speaks HTTP/1.1 or 1.0."""

    __slots__ = (
        "_access_prefix",
        "_body",
        "_body_left",
        "_body_open",
        "_body_pace",
        "_body_total",
        "_heads",
        "_keep",
        "_pending",
        "_scanned",
        "cycle",
    )

    def __init__(self, context: Context, codec: Callable[[], Codec]) -> None:
        super().__init__(context)
        self._heads = HeadReader(codec(), limits=context.limits, hosts=context.hosts)
        self._body: Body
        self.cycle: Cycle | None = None
        self._pending = bytearray()
        self._scanned = 0
        self._body_open = False
        self._body_left = self._body_total = 0
        self._body_pace: Pace | None = None
        self._keep = True
        self._access_prefix = b""

    # -- bytes in ------------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Take bytes from the socket."""
        if self.phase is not _OPEN:
            return  # lingering: read and thrown away
        if self.cycle is not None:
            self._received_early(self.cycle, data)
        elif self._pending:
            self._pending += data
            self._advance()
        elif (request := self._heads.repeated(data)) is not None:
            self.cycle = cycle = self.context.cycle(self, request)
            self._start(cycle)
        elif data[0] != _CR and (end := data.find(END) + 4) > 3:
            self._begin(data[:end], data[end:])
        else:
            self._pending += data
            self._advance()

    def _received_early(self, cycle: Cycle, data: bytes) -> None:
        """Take bytes that arrived while a request is in progress."""
        if self._body_open:
            self._feed(cycle, data)
        else:
            self._pending += data
            if len(self._pending) > self.context.limits.pipelined:
                self.pause_reading()

    def eof_received(self) -> bool:
        """Take the client's end of file: what it is still owed is sent; returns whether to keep the socket open."""
        self.eof = True
        if not self.is_open():
            return False
        if self.cycle is None:
            self._advance()
        elif self.busy:
            self.cycle.client_ended()
        elif self._body_open:  # an unread rest that will never be complete
            self.close()
        return self.is_open()

    def lost(self) -> None:
        """Tell the request in progress that its client is gone."""
        if self.cycle is not None:
            self.cycle.client_lost()

    def half_closed(self) -> None:
        """Tell the request in progress; what is still unread of later ones is answered in its turn."""
        if self.cycle is not None:
            self.cycle.client_ended()

    def busy_due(self, now: float) -> float | None:
        """Cut off a client whose body comes too slowly for the application that waits for it."""
        cycle, rate = self.cycle, self.context.limits.rate
        if cycle is None or not self._body_open or not rate:
            return super().busy_due(now)
        if self._body_pace is None:
            self._body_pace = Pace(now, self._body_total)
        if self._body_pace.too_slow(now, self._body_total, waiting=cycle.waiting, rate=rate):
            self._refuse(Refused(408, "the body comes too slowly"), cycle.request.head)
            return None
        return now + LOOK

    def too_late(self) -> None:
        """Close a connection whose request did not come in time, with an answer if it began."""
        if self._pending:
            self._refuse(Refused(408, "the head did not come in time"), bytes(self._pending))
        else:
            self.close()

    @property
    def idle(self) -> bool:
        """Whether nothing is in progress and nothing unread has arrived."""
        return self.cycle is None and not self._pending

    @property
    def busy(self) -> bool:
        """Whether a response is owed."""
        return self.cycle is not None and self.cycle.state != COMPLETE

    def release(self) -> bytes:
        """Return what arrived behind the request with which another protocol takes over."""
        rest, self.cycle = bytes(self._pending), None
        self._pending.clear()
        return rest

    # -- requests ------------------------------------------------------------------------------------------------

    def _advance(self) -> None:
        """Begin the next request if its head is there."""
        pending, limits = self._pending, self.context.limits
        if self.cycle is not None or self.phase is not _OPEN:
            return
        while pending.startswith(b"\r\n"):  # RFC 9112 section 2.2
            del pending[:2]
            self._scanned = 0
        end = pending.find(END, max(0, self._scanned - 3), limits.head)
        if end < 0:
            self._wait_for_head()
            return
        head = bytes(pending[: end + 4])
        del pending[: end + 4]
        self._scanned = 0
        self._begin(head)

    def _begin(self, head: bytes, rest: bytes = b"") -> None:
        """Start the request with this head; behind it came `rest`, or else what is pending."""
        cycle, pending = self._open(head), self._pending
        if cycle is None:
            return
        if not self._body_open:
            pending += rest
        elif rest or pending:
            rest = rest or bytes(pending)
            pending.clear()
            self._feed(cycle, rest)
        if self.is_open():
            if self.eof:
                cycle.client_ended()
            if len(pending) > self.context.limits.pipelined:
                self.pause_reading()  # applications that never wait would be fed more than they serve
            elif cycle.buffered <= self.context.limits.body and (self._body_open or self.context.draining is None):
                self.resume_reading()
            self._start(cycle)
        elif cycle.refused:  # for its body, before an application heard of it
            cycle.status = cycle.refused
            self._account(cycle)

    def _wait_for_head(self) -> None:
        """Hold what is there of a head against the limits; refuse what cannot become one."""
        pending, limits = self._pending, self.context.limits
        if pending:
            try:
                check_partial(pending, self._scanned, limits.request_line, limits.head)
            except Refused as refusal:
                self._refuse(refusal, bytes(pending))
                return
        if self.eof:
            self.close()
        if not pending or not self.is_open():
            return
        self._scanned = len(pending)
        if self.context.draining is None and self.idle_since is not None:
            self.idle_since = None  # a request is on its way
            self.head_since = self.context.now
        self.resume_reading()

    def _open(self, head: bytes) -> Cycle | None:
        """Parse a head; return its cycle, or None if it was refused."""
        cycle: Cycle | None = None
        try:
            request = self._heads.repeated(head)
            if request is None:
                request = self._heads.parse(head)
                if request.content_length and request.content_length > self.context.limits.body_size > 0:
                    raise Refused(413, "body too large")
                if not request.plain:
                    if self.context.upgrade is not None:
                        cycle = self.context.upgrade(self, request)
                    if cycle is None and takes_trailers(request):
                        cycle = with_trailers(self.context.cycle)(self, request)
        except Refused as refusal:
            self._refuse(refusal, head, head_only=head.startswith(b"HEAD "))
            return None
        self._body_open = body_open = request.chunked or bool(request.content_length)
        if body_open:
            self._body = self._heads.body(request)
            self._body_left = request.content_length or 0
            self._body_total, self._body_pace = 0, None
        self.cycle = cycle = cycle or self.context.cycle(self, request)
        cycle.body_ended = not body_open
        return cycle

    def _feed(self, cycle: Cycle, data: bytes) -> None:
        """Take bytes that begin inside the body."""
        try:
            body, rest, ended = self._body.read(data)
        except Refused as refusal:
            self._refuse(refusal, cycle.request.head)
            return
        if rest:
            self._pending += rest
        self._body_total += len(body)
        self._body_left -= len(body)
        self._body_open = not ended
        if cycle.state != COMPLETE:
            if body or ended:
                cycle.feed(body, ended=ended)
            if cycle.buffered > self.context.limits.body or len(self._pending) > self.context.limits.pipelined:
                self.pause_reading()
        elif cycle.request.chunked and -self._body_left > self.context.limits.discard:
            self.close()
        elif ended:
            self._next()

    scope = staticmethod(http_scope)

    def _start(self, cycle: Cycle) -> None:
        """Run the application."""
        context = self.context
        if context.aborting:
            self._turn_away(cycle, "the worker ends")
            return
        if context.active >= context.limits.concurrency > 0:
            context.say_overloaded()
            self._turn_away(cycle, "too many requests at once")
            return
        request = cycle.request
        cycle.record = context.began(request)
        scope = self.scope(context, request, self.client, self.server)
        if request.forwarded and context.forwarding.trusts(self.client):
            client = context.forwarding.apply(scope, request.headers)
            if context.access is not None:
                self._access_prefix = context.access.prefix(client)
        coroutine = cycle.run(context.app, scope)
        if context.reset_contextvars:
            task = context.start(coroutine, context=contextvars.Context())
        else:
            task = context.start(coroutine)
        if not task.done():
            cycle.task = task
            context.tasks.add(task)

    # -- responses -----------------------------------------------------------------------------------------------

    def respond(self, cycle: Cycle, body: bytes, more: bool) -> None:  # noqa: FBT001 - hot path
        """Write the head and the first part of the body."""
        request, context = cycle.request, self.context
        line: bytes | None
        block, _, line, lacks, close = cycle.fields
        if cycle.bodyless:
            line = bodyless_length(line, cycle.status, body, more=more)
            body = b""
        elif not line:
            line = self._delimit(request, body, more=more)
        keep = request.keep_alive and not close and line is not None
        if keep and context.parting:
            keep = self._another()
        if keep and self._body_open and not more:
            keep = self._discardable(cycle)
        self._keep = keep
        if not keep:
            line = (line or b"") + b"connection: close\r\n"
        elif request.version == b"1.0":
            line = (line or b"") + b"connection: keep-alive\r\n"
        if self._chunked and body:
            body = chunk(body)
        beside = len(body) > _COPY
        begin = b"" if beside else body
        self.write(b"".join((STATUS_LINES[cycle.status], context.head[lacks], block, line or b"", b"\r\n", begin)))
        if beside:
            self.write(body)

    def _another(self) -> bool:
        """While connections end with responses: whether a further request has arrived. What comes later is not read."""
        if self._body_open or END not in self._pending.lstrip(b"\r\n"):  # which may precede it, section 2.2
            self.resume_reading()
            return False
        self.pause_reading()
        return True

    def _delimit(self, request: Request, body: bytes, *, more: bool) -> bytes | None:
        """Return the line by which the body ends (RFC 9112 section 6.3), None for the end of the connection."""
        if not more:
            return b"content-length: %d\r\n" % len(body)
        if request.version == b"1.1":
            self._chunked = True
            return b"transfer-encoding: chunked\r\n"
        return None

    def completed(self, cycle: Cycle) -> None:
        """Account for a complete response; go on to the next request, or close."""
        self._account(cycle)
        if not self._keep:
            if cycle.request.keep_alive or self._body_open:
                self.close()
            else:
                self.finish()  # the client said that it sends no more
        elif not self._body_open:
            self._next()
        elif self._discardable(cycle) and not self.eof:
            self.idle_since = self.context.now  # which bounds the wait for the rest of the body
            if cycle.request.chunked:
                self._body_left = 0  # from here on it counts down what is thrown away
            self.resume_reading()
        else:
            self.close()

    def failed(self, cycle: Cycle, *, answer: bool) -> None:
        """Answer if nothing is on the wire, and close: cut short, a body tells the client that something went wrong."""
        if answer:
            cycle.passed_on(self._answer(cycle.status, head_only=cycle.request.method == b"HEAD"))
        self._account(cycle)
        self.close()

    def _discardable(self, cycle: Cycle) -> bool:
        """Whether the unread rest of the body is worth the connection; one in doubt is never used again."""
        return not cycle.awaits_continue and self._body_left <= self.context.limits.discard

    def _next(self) -> None:
        """Wait for the next request, or begin it if it is there."""
        context = self.context
        self.cycle = None
        self._chunked = False
        self.idle_since = context.now
        if self._pending:
            context.loop.call_soon(self._advance)
        elif self.eof:
            self.close()
        else:
            if not self.reading:
                self.resume_reading()
            if context.draining is not None:
                self.open_window()
            elif context.paused:
                self.close_if_idle()

    def _account(self, cycle: Cycle) -> None:
        context = self.context
        context.count_request(cycle.status)
        access = context.access
        if access is not None:
            if not self._access_prefix:
                self._access_prefix = access.prefix(self.client)
            access.record(self._access_prefix, cycle, context.root_path)
            if cycle.request.forwarded:
                self._access_prefix = b""  # the next request of the proxy is another client's

    def ask_for_body(self) -> None:
        """Send `100 Continue` (RFC 9110 section 10.1.1)."""
        self.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def body_taken(self) -> None:
        """Read on, if it was for the body that reading paused."""
        if len(self._pending) <= self.context.limits.pipelined:
            self.resume_reading()

    # -- refusals ------------------------------------------------------------------------------------------------

    def _answer(self, status: int, reason: str = "", extra: bytes = b"", *, head_only: bool = False) -> int:
        """Write a whole response; returns how long its body is."""
        response = error_response(self.context.head[0], status, reason, extra, head_only=head_only)
        self.write(response)
        return len(response.partition(END)[2])

    def _refuse(self, refusal: Refused, head: bytes, *, head_only: bool = False) -> None:
        """Answer a request that is not served, unless a response to it has begun, and close."""
        context, cycle = self.context, self.cycle
        begun = cycle is not None and cycle.state >= SENT
        answer = "cut" if begun else refusal.status
        context.error_log.log(refusal.level, "%s: %s, %s: '%s'", self.peer, answer, refusal.reason, excerpt(head))
        if not begun:
            self._answer(refusal.status, refusal.reason, refusal.lines, head_only=head_only)
        if cycle is None:
            context.row[STATUS_1XX - 1 + refusal.status // 100] += 1
        else:
            cycle.refused = refusal.status  # it is accounted for when the application has heard of it
            cycle.client_lost()
            self.cycle = None
        self.close()

    def _turn_away(self, cycle: Cycle, reason: str) -> None:
        """Answer 503 (RFC 9110 section 15.6.4)."""
        cycle.status = 503
        cycle.state = COMPLETE
        cycle.passed_on(self._answer(503, reason, b"retry-after: 1\r\n", head_only=cycle.bodyless))
        self._account(cycle)
        self.close()
