"""Responses that may end with trailer fields: those to a client which said `TE: trailers` (RFC 9110 section 10.1.4).

They alone are offered `http.response.trailers`. If the application says `trailers` at the start, its body is chunked,
whatever Content-Length it gave: a length leaves no place for trailers (RFC 9112 section 6.2). The body is still held
against it. The response is complete with the last trailers message, not with the body; without a body, as for HEAD,
the fields are checked and dropped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from procmgr.worker.cycle import Cycle, TimedCycle, size_of
from procmgr.worker.protocols.response import FORBIDDEN_IN_TRAILERS

if TYPE_CHECKING:
    from procmgr.worker.cycle import Wire
    from procmgr.worker.protocols.context import App, Message, Scope
    from procmgr.worker.protocols.framing import Request


def takes_trailers(request: Request) -> bool:
    """Whether a client takes trailers; HTTP/1.0 has none."""
    if request.version != b"1.1":
        return False
    values = [value for name, value in request.headers if name == b"te"]
    return any(coding.strip(b" \t").lower() == b"trailers" for value in values for coding in value.split(b","))


_DUE: Final = "after the body: only 'http.response.trailers' is due"


class TrailingCycle(Cycle):
    """A request whose response may end with trailers. It has no slots, so that other kinds of cycle can be mixed in."""

    unannounced = ()

    def __init__(self, wire: Wire, request: Request) -> None:
        super().__init__(wire, request)
        self._promised = self._body_sent = False
        self._lines = b""

    async def run(self, app: App, scope: Scope) -> None:
        """Offer trailers to the application, and run it."""
        scope["extensions"]["http.response.trailers"] = {}
        await super().run(app, scope)

    def _send_start(self, message: Message) -> None:
        super()._send_start(message)
        self._promised = bool(message.get("trailers"))
        if self._promised and not self.bodyless:
            block, length, _, lacks, close = self.fields
            self.fields = block, length, b"", lacks, close

    def send_body(self, body: bytes, more: bool) -> None:  # noqa: FBT001 - as in Cycle
        """Send a part of the body, which leaves the response open if trailers are to come."""
        if self._body_sent:
            self.unexpected("http.response.body", _DUE)
        if self._promised and not more:
            self._measure(size_of(body), more=False)
            super().send_body(body, True)  # noqa: FBT003 - as in Cycle
            self._body_sent = True
        else:
            super().send_body(body, more)

    def announce(self, size: int, *, more: bool) -> None:
        """Account for a part of the body that the connection sends; chunked if trailers are to come."""
        if self._promised and not more:
            self._measure(size, more=False)
        super().announce(size, more=more or self._promised)

    async def _extend(self, kind: object, message: Message) -> None:
        if kind == "http.response.trailers" and self._body_sent:
            self._send_trailers(message)
        elif self._body_sent:
            self.unexpected(kind, _DUE)
        else:
            await super()._extend(kind, message)

    def _send_trailers(self, message: Message) -> None:
        self._lines += self._wire.fields.lines(message.get("headers", ()), FORBIDDEN_IN_TRAILERS)
        if not message.get("more_trailers"):
            if not self.bodyless:
                self._wire.write_trailers(self._lines)
            super().send_body(b"", False)  # noqa: FBT003 - the end


class TimedTrailingCycle(TrailingCycle, TimedCycle):
    """The same, with duration and size."""


def with_trailers(kind: type[Cycle]) -> type[Cycle]:
    """Return the kind of cycle that is `kind` and may end with trailers; nobody else pays for them."""
    return TimedTrailingCycle if issubclass(kind, TimedCycle) else TrailingCycle
