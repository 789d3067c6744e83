"""The messages of a response beside start and body: early hints and files (ASGI extensions), and how a body is framed.

A file is a part of the body whose bytes the application never sees: its head, its place against Content-Length and its
end go through the cycle as those of any other part. A small one is read and sent as if the application had. What is
wrong with a file is found before its head is sent, so it is answered with 500; a file that is cut while it is sent
leaves nothing but to close.

A hint goes out at once. As the head is held until the first part of the body, there may be hints after
`http.response.start`; those that come too late, or for HTTP/1.0, whose clients know no interim responses (RFC 9110
section 15.2), are dropped, as hints may be.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, ClassVar, Final

from procmgr.errors import ClientDisconnected
from procmgr.worker.cycle import COMPLETE, HELD, SENT, WAITING
from procmgr.worker.protocols.base import Connection
from procmgr.worker.protocols.files import SMALL, FilePart, open_file, open_path
from procmgr.worker.protocols.outflow import Outflow
from procmgr.worker.protocols.response import chunk

if TYPE_CHECKING:
    from procmgr.worker.cycle import Cycle
    from procmgr.worker.protocols.base import Phase
    from procmgr.worker.protocols.context import Context, Message

_HINTS: Final = b"HTTP/1.1 103 Early Hints\r\n"


class ExtendedConnection(Connection):
    """A connection that frames bodies, be they of the application's bytes or of files."""

    __slots__ = ("_chunked", "outflow")

    sendfile: ClassVar[bool] = True
    """Whether what the kernel sends from a file is what the peer is to get: not over TLS."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._chunked = False
        self.outflow: Outflow | None = None

    # -- framing -------------------------------------------------------------------------------------------------

    def write_body(self, body: bytes, *, more: bool) -> None:
        """Write a further part of the body."""
        if self._chunked:
            body = chunk(body) if body else b""
            if not more:
                body += b"0\r\n\r\n"
        if body:
            self.write(body)

    def write_trailers(self, lines: bytes) -> None:
        """End the body with trailer fields, if it is chunked (RFC 9112 section 7.1.2)."""
        if self._chunked:
            self.write(b"0\r\n%b\r\n" % lines)
            self._chunked = False

    async def _write_file(self, part: FilePart, outflow: Outflow) -> None:
        if self._chunked:
            self.write(b"%x\r\n" % part.left)
        await outflow.send(part, by_kernel=self.sendfile)
        if self._chunked:
            self.write(b"\r\n")

    # -- messages ------------------------------------------------------------------------------------------------

    async def extend(self, cycle: Cycle, kind: object, message: Message) -> None:
        """Take a message of an extension; raises as `Cycle.send`, and `OSError` for a file that cannot be read."""
        if kind == "http.response.early_hint":
            self._hint(cycle, message["links"])
        elif kind == "http.response.pathsend" and cycle.state == HELD:
            await self._send_path(cycle, message["path"])
        elif kind == "http.response.zerocopysend" and cycle.state != WAITING:
            await self._send_file(cycle, message)
        else:
            cycle.unexpected(kind)

    def _hint(self, cycle: Cycle, links: Any) -> None:  # noqa: ANN401 - whatever the application sends is checked here
        lines = self.fields.lines((b"link", link) for link in links)
        if lines and cycle.state < SENT and cycle.request.version == b"1.1":
            self.write(b"%b%b\r\n" % (_HINTS, lines))

    async def _send_path(self, cycle: Cycle, path: object) -> None:
        if not isinstance(path, str):
            raise TypeError(f"path must be str, not {type(path).__name__}")
        with Outflow(self) as outflow:
            found = await open_path(self.context.loop, path)
            if isinstance(found, FilePart):
                await self._send_part(cycle, found, outflow, more=False)
            elif _goes_on(cycle):
                cycle.send_body(found, False)  # noqa: FBT003 - as from the application

    async def _send_file(self, cycle: Cycle, message: Message) -> None:
        part = open_file(self.context.loop, message["file"], message.get("offset"), message.get("count"))
        with Outflow(self) as outflow:
            await self._send_part(cycle, part, outflow, more=bool(message.get("more_body")))

    async def _send_part(self, cycle: Cycle, part: FilePart, outflow: Outflow, *, more: bool) -> None:
        """Send a part of a file in its place in the body; closes it."""
        try:
            if part.left <= SMALL and not cycle.bodyless:
                content = b""
                while part.left:
                    content += await part.read(part.left)
                if _goes_on(cycle):
                    cycle.send_body(content, more)
            elif _goes_on(cycle):
                await self._send_large(cycle, part, outflow, more=more)
        finally:
            part.close()

    async def _send_large(self, cycle: Cycle, part: FilePart, outflow: Outflow, *, more: bool) -> None:
        size = part.left
        cycle.announce(size, more=more)
        if not cycle.bodyless:
            try:
                await self._write_file(part, outflow)
            except (Exception, asyncio.CancelledError):
                cycle.passed_on(size - part.left)
                if not cycle.lost:  # whose application is told so whatever it sends
                    cycle.broken()
                raise
            cycle.passed_on(size)
        if not more:
            cycle.send_body(b"", False)  # noqa: FBT003 - the end

    # -- what the transport and the connection tell of output ----------------------------------------------------

    def pause_writing(self) -> None:
        """Let senders wait, be it the application or a file."""
        if self.outflow is None:
            super().pause_writing()
        else:
            self.outflow.paused = True

    def resume_writing(self) -> None:
        """Let senders go on; while a file is sent, it alone."""
        if self.outflow is None:
            super().resume_writing()
        else:
            self.outflow.resumed()

    def unsent(self) -> int:
        """Return how much of what was written has not left this process; of a file that waits for the peer, 1."""
        waiting = super().unsent()
        return waiting or int(self.outflow is not None and self.outflow.blocked)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop a file, and wake everybody."""
        if self.outflow is not None:
            self.outflow.stop()
        super().connection_lost(exc)

    def _shut(self, phase: Phase) -> None:
        if self.outflow is not None:
            self.outflow.stop()
        super()._shut(phase)


def _goes_on(cycle: Cycle) -> bool:
    """Whether a response goes on whose file a thread has opened or read meanwhile; raises `ClientDisconnected`."""
    if cycle.lost:
        raise ClientDisconnected("the client is gone")
    return cycle.state != COMPLETE
