"""The control protocol, and where its sockets are: what the arbiter and `procmgrctl` have in common.

Rules: a line is one JSON object in ASCII that ends with a newline; "v" is the version. A request names an operation as
"op", its arguments stand beside it, and is at most `MAX_REQUEST` bytes long. It is answered by events, one object each
with "event" as its name; the last is `END`, with the "exit" status that a program should leave with (see
`errors.ExitCode`) and, where there is something to say, one line of "text" and further lines of "detail". A connection
takes one request after the other.

A request that takes time is announced by `ACCEPTED` with its "operation", an id made of what the pool remembers anyway
(`reload:GENERATION`, `restart:WORKER`, `upgrade:NUMBER`): it can be followed again on another connection, also after a
re-exec. That a `stop` is complete, the process gone, is told by the end of the connection, after `END`.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

VERSION: Final = 1
MAX_REQUEST: Final = 4096

ACCEPTED: Final = "accepted"
STEP: Final = "step"
STACKS: Final = "stacks"
STOP: Final = "stop"
EXEC: Final = "exec"
"""The daemon re-executes itself: connect again and follow the operation."""
END: Final = "end"

OFF: Final = "off"
_SOCKET: Final = "control.sock"
_SHOWN: Final = 80


@dataclass(frozen=True, slots=True)
class Request:
    """What a client asks for."""

    op: str
    arguments: Mapping[str, object]


class RequestError(ValueError):
    """A request that cannot be answered; the text says what would be right."""


def encode(fields: Mapping[str, object]) -> bytes:
    """Return the line for `fields`."""
    return json.dumps({"v": VERSION, **fields}, separators=(",", ":")).encode("ascii") + b"\n"


def decode(line: bytes) -> dict[str, object]:
    """Return the fields of `line`, without the version; raises `RequestError`."""
    try:
        body = json.loads(line)
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        raise RequestError(f"not a JSON object: {line[:_SHOWN]!r}")
    version = body.pop("v", None)
    if version != VERSION:
        raise RequestError(f"version {version!r} of the protocol; this program speaks version {VERSION}")
    return body


def request(line: bytes) -> Request:
    """Return the request in `line`; raises `RequestError`."""
    body = decode(line)
    op = body.pop("op", None)
    if not isinstance(op, str):
        raise RequestError("a request names its operation as a string, op")
    return Request(op, body)


def default_path(environ: Mapping[str, str], name: str) -> Path | None:
    """Return where an instance called `name` has its socket if nothing else is asked for; None is nowhere.

    RUNTIME_DIRECTORY is a list parted by colons (systemd.exec(5)); XDG_RUNTIME_DIR has to be absolute (XDG Base
    Directory Specification).
    """
    first = environ.get("RUNTIME_DIRECTORY", "").partition(":")[0]
    if first.startswith("/"):
        return Path(first) / _SOCKET
    user = environ.get("XDG_RUNTIME_DIR", "")
    return Path(user) / "procmgr" / f"{name}.sock" if user.startswith("/") else None


def candidates(environ: Mapping[str, str], uid: int, name: str | None, *, run: Path = Path("/run")) -> Iterator[Path]:
    """Yield the paths at which an instance may have its socket, those of `name` or all; each once.

    The run-time directories are those that this process has, those of user `uid`, and the system's under `run`.
    """
    own = default_path(environ, name) if name else None
    found = [own] if own else []
    first = environ.get("RUNTIME_DIRECTORY", "").partition(":")[0]
    user = environ.get("XDG_RUNTIME_DIR", "")
    if first.startswith("/"):
        found.append(Path(first) / _SOCKET)
    for root in (*([Path(user)] if user.startswith("/") else []), run / "user" / str(uid), run):
        found += _within(root, name)
    seen: set[str] = set()
    for path in found:
        real = os.path.realpath(path)
        if real not in seen and _is_socket(path):
            seen.add(real)
            yield path


def _is_socket(path: Path) -> bool:
    try:
        return path.is_socket()
    except PermissionError:  # a directory of somebody else's
        return False


def _within(root: Path, name: str | None) -> list[Path]:
    """Return what one run-time directory has: user instances by name, and services by their RuntimeDirectory=."""
    patterns = ("procmgr/*.sock", f"procmgr/*/{_SOCKET}", f"procmgr-*/{_SOCKET}", f"procmgr@*/{_SOCKET}")
    found = [path for pattern in patterns for path in sorted(root.glob(pattern))]
    return [*found, root / name / _SOCKET] if name else found
