"""Access lines in other formats than uvicorn's: Apache's combined, JSON, or a template of gunicorn's atoms.

Rules: a format is compiled once, into one function for each of its parts. Nothing a client sends can end a line, a
quoted string in it or a JSON value: text is escaped as Apache escapes it, JSON is written by an encoder. Every value is
bounded, and so is the line, which fits in PIPE_BUF.

These lines tell durations and sizes, so the requests they are about are `TimedCycle`s. A client that went before its
response began has the status 499, as in nginx.
"""

from __future__ import annotations

import base64
import binascii
import json
import logging
import os
import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from procmgr.logs import ACCESS_LOGGER, COMBINED, Atom, read_template
from procmgr.worker.access import client_text, quoted_target
from procmgr.worker.cycle import TimedCycle

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from procmgr.logs import LineWriter
    from procmgr.worker.cycle import Cycle
    from procmgr.worker.protocols.base import Address
    from procmgr.worker.protocols.framing import Request

_MAX_VALUE: Final = 256
_MAX_LINE: Final = 4096
_PLAIN: Final = re.compile(r'[^\x20-\x7e]|["\\]')
_TRACEPARENT: Final = re.compile(rb"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}.*")
_REQUEST_ID: Final = b"x-request-id"
_NO_TRACE: Final = b"0" * 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What a line tells of one response, or of one WebSocket: then `code` is its close code and `sent` are messages."""

    client: str
    request: Request
    root_path: str
    status: int
    seconds: float
    sent: int
    lines: bytes = b""
    code: int | None = None
    received: int = 0

    @property
    def size(self) -> int:
        """The size of the response's body; a WebSocket has none."""
        return self.sent if self.code is None else 0

    def field(self, name: bytes) -> bytes:
        """Return the first value of a field of the request, cut."""
        for key, value in self.request.headers:
            if key == name:
                return value[:_MAX_VALUE]
        return b""

    def response_field(self, name: bytes) -> bytes:
        """Return the first value of a field of the application's response, cut."""
        for line in self.lines.split(b"\r\n"):
            key, _, value = line.partition(b":")
            if key.lower() == name:
                return value.strip()[:_MAX_VALUE]
        return b""


class FormattedAccessLog:
    """Renders lines in one format, to `writer` or, if that is None, as records of `procmgr.access`."""

    __slots__ = ("_lines", "_loop", "_render", "_writer")

    cycle: Final = TimedCycle

    def __init__(self, template: str, *, writer: LineWriter | None, loop: asyncio.AbstractEventLoop) -> None:
        """Take a word or a template that `read_template` takes."""
        self._writer = writer
        self._loop = loop
        self._lines: list[bytes] = []
        self._render: Callable[[Entry], str] = render_json if template == "json" else _compile(template)

    def prefix(self, client: Address | None) -> bytes:
        """Return the client as text."""
        return client_text(client).encode() or b"-"

    def record(self, prefix: bytes, cycle: Cycle, root_path: str) -> None:
        """Collect one line."""
        assert isinstance(cycle, TimedCycle)  # `cycle` above sees to it
        self._add(
            Entry(
                client=prefix.decode(),
                request=cycle.request,
                root_path=root_path,
                status=cycle.status,
                seconds=time.perf_counter() - cycle.began,
                sent=cycle.sent,
                lines=cycle.response_lines,
            )
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
        """Collect the line of a WebSocket."""
        self._add(
            Entry(
                client=prefix.decode(),
                request=request,
                root_path=root_path,
                status=101,
                seconds=seconds,
                sent=sent,
                code=code,
                received=received,
            )
        )

    def _add(self, entry: Entry) -> None:
        line = self._render(entry)
        if self._writer is None:
            logging.getLogger(ACCESS_LOGGER).info("%s", line)
            return
        if not self._lines:
            self._loop.call_soon(self.flush)
        self._lines.append(line.encode("ascii", "backslashreplace")[: _MAX_LINE - 1] + b"\n")

    def flush(self) -> None:
        """Write the collected lines, and what earlier ones left."""
        if self._writer is None:
            return
        if self._lines:
            self._writer.write(b"".join(self._lines))
            self._lines.clear()
        self._writer.flush()


# -- JSON ----------------------------------------------------------------------------------------------------------


def render_json(entry: Entry) -> str:
    """Return one JSON object; what there is none of is left out."""
    request = entry.request
    shown: dict[str, Any] = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "client": entry.client,
        "method": request.method.decode(),
        "target": quoted_target(request, entry.root_path),
        "http_version": request.version.decode(),
        "status": entry.status,
        "duration_seconds": round(entry.seconds, 6),
    }
    if entry.code is None:
        shown["response_bytes"] = entry.sent
    else:
        shown["websocket"] = {"code": entry.code, "received": entry.received, "sent": entry.sent}
    if request_id := entry.field(_REQUEST_ID) or entry.response_field(_REQUEST_ID):  # a framework may have made one up
        shown["request_id"] = request_id.decode("latin-1")
    for name, field in (("user_agent", b"user-agent"), ("referer", b"referer")):
        if value := entry.field(field):
            shown[name] = value.decode("latin-1")
    if trace := trace_id(entry.field(b"traceparent")):
        shown["trace_id"] = trace
    shown["pid"] = os.getpid()
    return _fitting(shown)


def _fitting(shown: dict[str, Any]) -> str:
    """Return JSON that fits in a line: half an object is none, so the texts that are longest in it are shortened."""
    while len(line := json.dumps(shown)) >= _MAX_LINE:
        longest = max(shown, key=lambda name: len(json.dumps(shown[name])))
        shown[longest] = f"{shown[longest][: len(shown[longest]) * 3 // 4]}..."
    return line


def trace_id(traceparent: bytes) -> str:
    """Return the trace id of a valid `traceparent` (W3C Trace Context section 3.2.2), else ""."""
    match = _TRACEPARENT.fullmatch(traceparent)
    valid = match is not None and not traceparent.startswith(b"ff") and match[1] != _NO_TRACE
    return match[1].decode() if match is not None and valid else ""


# -- templates -----------------------------------------------------------------------------------------------------


def _compile(template: str) -> Callable[[Entry], str]:
    parts = read_template(COMBINED if template == "combined" else template)
    pieces = [_constant(part) if isinstance(part, str) else _piece(part) for part in parts]
    return lambda entry: "".join([piece(entry) for piece in pieces])


def _constant(text: str) -> Callable[[Entry], str]:
    return lambda _: text


def _piece(atom: Atom) -> Callable[[Entry], str]:
    name = atom.field.lower().encode()
    match atom.kind:
        case "i":
            return lambda entry: _shown(entry.field(name))
        case "o":
            return lambda entry: _shown(entry.response_field(name))
        case _:
            return _PIECES[atom.kind]


def _shown(value: bytes) -> str:
    r"""Return a value that is safe within quotes, as Apache writes it: `\"`, `\\`, `\xhh`; "-" for none."""
    return _safe(value.decode("latin-1")) or "-"


def _safe(text: str) -> str:
    return _PLAIN.sub(_escaped, text)


def _escaped(match: re.Match[str]) -> str:
    character = match[0]
    return f"\\{character}" if character in {'"', "\\"} else f"\\x{ord(character):02x}"


def _user(entry: Entry) -> str:
    """Return the name that a client gives (RFC 7617), never its password."""
    scheme, _, credentials = entry.field(b"authorization").partition(b" ")
    if scheme.lower() != b"basic":
        return "-"
    try:
        name, colon, _ = base64.b64decode(credentials.strip() + b"=" * (-len(credentials.strip()) % 4)).partition(b":")
    except binascii.Error:
        return "-"
    return _shown(name) if colon else "-"


def _host(entry: Entry) -> str:
    return entry.client.rpartition(":")[0] or entry.client


def _line(entry: Entry) -> str:
    request = entry.request
    return f"{request.method.decode()} {_target(entry)} HTTP/{request.version.decode()}"


def _target(entry: Entry) -> str:
    return _safe(quoted_target(entry.request, entry.root_path))


def _now(_: Entry) -> str:
    now = time.localtime()
    month = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")[now.tm_mon - 1]
    return time.strftime(f"[%d/{month}/%Y:%H:%M:%S %z]", now)


_PIECES: Final[dict[str, Callable[[Entry], str]]] = {
    "h": _host,
    "l": lambda _: "-",
    "u": _user,
    "t": _now,
    "r": _line,
    "m": lambda entry: entry.request.method.decode(),
    "U": lambda entry: _target(entry).partition("?")[0],
    "q": lambda entry: _target(entry).partition("?")[2],
    "H": lambda entry: f"HTTP/{entry.request.version.decode()}",
    "s": lambda entry: str(entry.status),
    "B": lambda entry: str(entry.size),
    "b": lambda entry: str(entry.size or "-"),
    "f": lambda entry: _shown(entry.field(b"referer")),
    "a": lambda entry: _shown(entry.field(b"user-agent")),
    "T": lambda entry: str(int(entry.seconds)),
    "M": lambda entry: str(int(entry.seconds * 1e3)),
    "D": lambda entry: str(int(entry.seconds * 1e6)),
    "L": lambda entry: f"{entry.seconds:.6f}",
    "p": lambda _: f"<{os.getpid()}>",
}
