"""The access log: uvicorn's line for every response, straight to bytes or as records of `procmgr.access`.

Rules: a line costs next to nothing and never blocks. Lines of one loop iteration are collected and handed to the
`LineWriter` in one piece by a callback at its end; what the reader does not take is retried with the next piece or the
next beat, at the latest. Nothing a client sends can break a line or reach a terminal as a control character: a target
is printable ASCII by the time it gets here (RFC 9112 section 3.2), its path is quoted as uvicorn quotes it, and it is
cut to 2 KiB so that a line fits in PIPE_BUF.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final, Protocol
from urllib.parse import quote, unquote

from procmgr.logs import ACCESS_LOGGER
from procmgr.worker.cycle import Cycle
from procmgr.worker.protocols.response import phrase

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterable

    from procmgr.logs import LineWriter
    from procmgr.worker.protocols.base import Address
    from procmgr.worker.protocols.framing import Request

_MAX_TARGET: Final = 2048
_UNQUOTED: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-~/"
_SLASH: Final = ord("/")
_GREEN, _BOLD, _RESET = "\x1b[32m", "\x1b[1m", "\x1b[0m"
_STATUS_COLORS: Final = {1: "\x1b[97m", 2: "\x1b[32m", 3: "\x1b[33m", 4: "\x1b[31m", 5: "\x1b[91m"}


class AccessLog(Protocol):
    """What the connections of a worker log their responses to."""

    @property
    def cycle(self) -> type[Cycle]:
        """The kind of cycle that knows what is logged."""

    def prefix(self, client: Address | None) -> bytes:
        """Return what all lines of a connection begin with; rendered once per connection."""

    def record(self, prefix: bytes, cycle: Cycle, root_path: str) -> None:
        """Log one response, at its end."""

    def websocket(
        self,
        prefix: bytes,
        request: Request,
        root_path: str,
        *,
        code: int,
        seconds: float,
        received: int,
        sent: int,
    ) -> None:
        """Log one WebSocket at its end: its close code, how long it was open, and messages in and out."""

    def flush(self) -> None:
        """Write what waits, as far as the reader takes it."""


def access_wanted() -> bool:
    """Return whether responses are to be logged at the present log level."""
    return logging.getLogger(ACCESS_LOGGER).isEnabledFor(logging.INFO)


class LineAccessLog:
    """Renders lines without `logging`."""

    cycle: Final = Cycle

    __slots__ = ("_end", "_end_of_request", "_lead", "_lines", "_loop", "_open", "_statuses", "_writer")

    def __init__(self, *, writer: LineWriter, loop: asyncio.AbstractEventLoop, colors: bool) -> None:
        self._writer = writer
        self._loop = loop
        self._lines: list[bytes] = []
        self._lead = f"{_GREEN}INFO{_RESET}:     " if colors else "INFO:     "
        self._open = f'"{_BOLD}' if colors else '"'
        self._end_of_request = end = _RESET if colors else ""
        self._end = {version: f' HTTP/{version}{end}" '.encode() for version in ("1.0", "1.1")}
        self._statuses = {status: _status(status, colors=colors) for status in range(100, 600)}

    def prefix(self, client: Address | None) -> bytes:
        """Return the line up to its method."""
        return f"{self._lead}{client_text(client)} - {self._open}".encode()

    def record(self, prefix: bytes, cycle: Cycle, root_path: str) -> None:
        """Collect one line; the first of a loop iteration schedules the writing of all."""
        request = cycle.request
        target = request.target
        if root_path or target[0] != _SLASH or len(target) > _MAX_TARGET or request.path.translate(None, _UNQUOTED):
            target = quoted_target(request, root_path).encode()
        end = self._end["1.1" if request.version == b"1.1" else "1.0"]
        lines = self._lines
        if not lines:
            self._loop.call_soon(self.flush)
        lines.append(b"".join((prefix, request.method, b" ", target, end, self._statuses[cycle.status])))

    def websocket(
        self,
        prefix: bytes,
        request: Request,
        root_path: str,
        *,
        code: int,
        seconds: float,
        received: int,
        sent: int,
    ) -> None:
        """Collect the line of a WebSocket."""
        if not self._lines:
            self._loop.call_soon(self.flush)
        summary = _summary(code, seconds, received, sent)
        line = f'WebSocket {quoted_target(request, root_path)}{self._end_of_request}" {summary}\n'
        self._lines.append(prefix + line.encode())

    def flush(self) -> None:
        """Write the collected lines, and what earlier ones left."""
        lines = self._lines
        if lines:
            self._writer.write(b"".join(lines))
            lines.clear()
        self._writer.flush()


class RecordAccessLog:
    """Makes records with uvicorn's five arguments, for whoever configured `logging`."""

    cycle: Final = Cycle

    __slots__ = ("_logger",)

    def __init__(self, *, logger: logging.Logger) -> None:
        self._logger = logger

    def prefix(self, client: Address | None) -> bytes:
        """Return the client as text."""
        return client_text(client).encode() or b" "

    def record(self, prefix: bytes, cycle: Cycle, root_path: str) -> None:
        """Log one record."""
        request = cycle.request
        self._logger.info(
            '%s - "%s %s HTTP/%s" %d',
            prefix.decode().strip(),
            request.method.decode(),
            quoted_target(request, root_path),
            request.version.decode(),
            cycle.status,
        )

    def websocket(
        self,
        prefix: bytes,
        request: Request,
        root_path: str,
        *,
        code: int,
        seconds: float,
        received: int,
        sent: int,
    ) -> None:
        """Log one record, whose arguments are those of a response with status 101."""
        self._logger.info(
            f'%s - "%s %s HTTP/%s" %d {_summary(code, seconds, received, sent)}',  # noqa: G004 - uvicorn's formatter takes five arguments
            prefix.decode().strip(),
            "WebSocket",
            quoted_target(request, root_path),
            request.version.decode(),
            101,
        )

    def flush(self) -> None:
        """Do nothing: records are written by their handlers."""


class ExcludingAccessLog:
    """Leaves out the requests for some paths, health checks say."""

    __slots__ = ("_exact", "_log", "_prefixes", "cycle", "flush", "prefix")

    def __init__(self, log: AccessLog, paths: Iterable[str]) -> None:
        """Take exact paths, and beginnings of paths that end with `*`; as they are on the wire, without the query."""
        self._log = log
        self.cycle, self.prefix, self.flush = log.cycle, log.prefix, log.flush
        encoded = [path.encode() for path in paths]
        self._exact = frozenset(path for path in encoded if not path.endswith(b"*"))
        self._prefixes = tuple(path[:-1] for path in encoded if path.endswith(b"*"))

    def record(self, prefix: bytes, cycle: Cycle, root_path: str) -> None:
        """Log one response, unless nobody wants to know."""
        if not self._excludes(cycle.request):
            self._log.record(prefix, cycle, root_path)

    def websocket(
        self,
        prefix: bytes,
        request: Request,
        root_path: str,
        *,
        code: int,
        seconds: float,
        received: int,
        sent: int,
    ) -> None:
        """Log one WebSocket, unless nobody wants to know."""
        if not self._excludes(request):
            self._log.websocket(prefix, request, root_path, code=code, seconds=seconds, received=received, sent=sent)

    def _excludes(self, request: Request) -> bool:
        return request.path in self._exact or request.path.startswith(self._prefixes)


def client_text(client: Address | None) -> str:
    """Return a peer as uvicorn writes it: `host:port`, "" for an unnamed one (a Unix socket's)."""
    return "" if client is None else f"{client[0]}:{client[1]}"


def quoted_target(request: Request, root_path: str) -> str:
    """Return the target as the application saw it, quoted again, at most 2 KiB."""
    text = quote(root_path + unquote(request.path.decode()))
    if request.query:
        text = f"{text}?{request.query.decode()}"
    return text if len(text) <= _MAX_TARGET else f"{text[: _MAX_TARGET - 3]}..."


def _summary(code: int, seconds: float, received: int, sent: int) -> str:
    return f"closed {code} after {seconds:.3f}s, {received} in, {sent} out"


def _status(status: int, *, colors: bool) -> bytes:
    text = f"{status} {phrase(status)}"
    return (f"{_STATUS_COLORS[status // 100]}{text}{_RESET}\n" if colors else f"{text}\n").encode()
