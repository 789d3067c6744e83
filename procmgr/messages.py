"""Messages between the arbiter and its children: edges, one datagram each, over a SOCK_SEQPACKET pair.

Rules: a message is one JSON object of at most `MAX_BYTES`; its "t" names the type and "v" the protocol version. Sending
never blocks and never raises: a full or closed channel returns False, since neither side may wait for the other. What
arrives is checked field by field; anything else is a `MessageError`. File descriptors travel beside a message
(SCM_RIGHTS, unix(7)). That the peer is gone is `ChannelClosed`: to a worker it means that the arbiter died.
"""

from __future__ import annotations

import json
import os
import socket
from array import array
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Final, get_type_hints

if TYPE_CHECKING:
    from procmgr.handover import Descriptor

PROTOCOL_VERSION: Final = 1
MAX_BYTES: Final = 64 * 1024
MAX_FDS: Final = 253  # SCM_MAX_FD (unix(7)): a worker's channel, its stacks and all its listeners
_FDS_SPACE: Final = socket.CMSG_LEN(MAX_FDS * array("i").itemsize)
_TEXT_BUDGET: Final = 24 * 1024  # characters


@dataclass(frozen=True, slots=True)
class Born:
    """Worker that was forked by a zygote, first of all: it is a child of the arbiter now, under this pid."""

    pid: int


@dataclass(frozen=True, slots=True)
class Ready:
    """Worker: the lifespan startup is complete and connections are accepted."""


@dataclass(frozen=True, slots=True)
class BootFailed:
    """Worker: it cannot start; it exits with `exit_code` next. `summary` is one line, `detail` the traceback."""

    exit_code: int
    summary: str
    detail: str


@dataclass(frozen=True, slots=True)
class DrainBegun:
    """Worker: it began to drain without being told to by the arbiter."""


@dataclass(frozen=True, slots=True)
class RecycleDue:
    """Worker: it reached a limit and wants to be replaced; it goes on serving."""

    reason: str


@dataclass(frozen=True, slots=True)
class CodeNewer:
    """Worker: it imported `path`, which changed after its generation began."""

    path: str


@dataclass(frozen=True, slots=True)
class Drain:
    """Arbiter: drain in `mode` ("retire", "stop" or "quick") until `deadline`, CLOCK_MONOTONIC seconds."""

    mode: str
    deadline: float


@dataclass(frozen=True, slots=True)
class Pause:
    """Arbiter: accept no more for now, and let go of connections that wait for a next request."""


@dataclass(frozen=True, slots=True)
class Resume:
    """Arbiter: accept again."""


@dataclass(frozen=True, slots=True)
class Leave:
    """Arbiter: a stop is coming; serve on, but end connections with their next response."""


@dataclass(frozen=True, slots=True)
class ReopenLogs:
    """Arbiter: log files were reopened; with it come the descriptors for diagnostics and for access lines."""


@dataclass(frozen=True, slots=True)
class Configure:
    """Arbiter: settings that apply live changed."""

    log_level: str


@dataclass(frozen=True, slots=True)
class Scaled:
    """Arbiter: so many workers are to accept connections from now on."""

    workers: int


@dataclass(frozen=True, slots=True)
class NewCertificates:
    """Arbiter: certificates of this generation changed; with it come all pairs, in the order of the settings."""

    generation: int


@dataclass(frozen=True, slots=True)
class Imported:
    """Zygote: the application is imported, workers can be forked."""


@dataclass(frozen=True, slots=True)
class Fork:
    """Arbiter, to a zygote: fork a worker with scoreboard row `row`.

    With this message come its end of its channel, the file for its stacks, and its listeners in the order of the plan.
    """

    worker_id: int
    slot: int
    row: int
    workers: int


@dataclass(frozen=True, slots=True)
class ForkFailed:
    """Zygote: the operating system refused to fork this worker."""

    worker_id: int
    reason: str


@dataclass(frozen=True, slots=True)
class Watching:
    """Watcher: changes are noticed from now on; `trouble` says why by polling, if so. One line each."""

    where: str
    trouble: str


@dataclass(frozen=True, slots=True)
class Changed:
    """Watcher: files changed; `what` names the first of them, on one line."""

    what: str


FromWorker = Born | Ready | BootFailed | DrainBegun | RecycleDue | CodeNewer
FromZygote = Imported | BootFailed | ForkFailed
FromWatcher = Watching | Changed
FromArbiter = Drain | Pause | Resume | Leave | ReopenLogs | Configure | Scaled | NewCertificates | Fork
Message = FromWorker | FromZygote | FromWatcher | FromArbiter

_TYPES: Final[dict[str, type[Message]]] = {
    kind.__name__: kind
    for kind in (
        *(Born, Ready, BootFailed, DrainBegun, RecycleDue, CodeNewer),
        *(Imported, ForkFailed),
        *(Watching, Changed),
        *(Drain, Pause, Resume, Leave, ReopenLogs, Configure, Scaled, NewCertificates, Fork),
    )
}


class MessageError(ValueError):
    """The peer sent something that is not a message of this protocol."""


class ChannelClosed(EOFError):  # noqa: N818 - the kernel's word for it: end of file, not a fault
    """The peer closed its end or died."""


def encode(message: Message) -> bytes:
    """Return the datagram for `message`; texts that would make it too long lose their middle."""
    budget = _TEXT_BUDGET
    while len(data := _encode(message, budget)) > MAX_BYTES:
        budget //= 2  # JSON needs up to twelve bytes for a character
    return data


def _encode(message: Message, budget: int) -> bytes:
    body = {key: _cut(value, budget) if isinstance(value, str) else value for key, value in asdict(message).items()}
    return json.dumps({"v": PROTOCOL_VERSION, "t": type(message).__name__, **body}).encode("ascii")


def decode(data: bytes) -> Message:
    """Return the message in `data`; raises `MessageError`."""
    try:
        body = json.loads(data)
        kind = _TYPES[body.pop("t")]
        version = body.pop("v")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise MessageError(f"not a message: {data[:80]!r}") from error
    hints = get_type_hints(kind)
    if version != PROTOCOL_VERSION or body.keys() != {field.name for field in fields(kind)}:
        raise MessageError(f"{kind.__name__} with unexpected fields or version: {data[:80]!r}")
    if any(type(value) is not hints[name] for name, value in body.items()):
        raise MessageError(f"{kind.__name__} with a field of the wrong type: {data[:80]!r}")
    return kind(**body)


def _cut(text: str, budget: int) -> str:
    """Keep the first quarter and the last three of a long text: a traceback's end matters most."""
    if len(text) <= budget:
        return text
    quarter = budget // 4
    return f"{text[:quarter]}\n... {len(text) - budget} characters left out ...\n{text[-3 * quarter :]}"


def _ancillary(fds: tuple[int, ...]) -> list[tuple[int, int, array[int]]]:
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", fds))] if fds else []


def _fds_in(ancillary: list[tuple[int, int, bytes]]) -> tuple[int, ...]:
    found = array("i")
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            found.frombytes(data[: len(data) - len(data) % found.itemsize])
    return tuple(found)


class Channel:
    """One end of the pair, non-blocking and close-on-exec."""

    __slots__ = ("_sock", "gone")

    def __init__(self, sock: socket.socket) -> None:
        self.gone = False
        """Whether sending has shown that the peer is gone."""
        sock.settimeout(0.0)
        self._sock = sock

    @classmethod
    def adopt(cls, fd: Descriptor) -> Channel:
        """Take over an end that was handed over; raises `OSError`."""
        return cls(socket.socket(fileno=fd.number))

    @classmethod
    def pair(cls) -> tuple[Channel, Channel]:
        """Return two connected ends; raises `OSError` (EMFILE, ENFILE, ENOMEM)."""
        one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        return cls(one), cls(other)

    def fileno(self) -> int:
        """Return the descriptor, to be polled for reading."""
        return self._sock.fileno()

    def send(self, message: Message, fds: tuple[int, ...] = ()) -> bool:
        """Send without waiting; False when the channel is full or the peer is gone."""
        try:
            self._sock.sendmsg([encode(message)], _ancillary(fds), socket.MSG_NOSIGNAL)
        except OSError as error:
            self.gone = self.gone or isinstance(error, ConnectionError)
            return False
        return True

    def receive(self) -> tuple[Message, tuple[int, ...]] | None:
        """Return the next message and its descriptors, or None when there is none yet.

        Raises `ChannelClosed` when the peer is gone and `MessageError` for anything that is no message.
        """
        try:
            data, ancillary, flags = self._receive()
        except BlockingIOError:
            return None
        except OSError as error:
            raise ChannelClosed from error
        if not data:
            raise ChannelClosed
        fds = _fds_in(ancillary)
        try:
            if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
                raise MessageError("a message was longer than the protocol allows")
            return decode(data), fds
        except MessageError:
            for fd in fds:
                os.close(fd)
            raise

    def _receive(self) -> tuple[bytes, list[tuple[int, int, bytes]], int]:
        # Not socket.recv_fds(): it drops its flags argument, and with it MSG_CMSG_CLOEXEC.
        try:
            return self._sock.recvmsg(MAX_BYTES, _FDS_SPACE, socket.MSG_CMSG_CLOEXEC)[:3]
        except ConnectionResetError:
            # The peer died without reading all that we sent. The kernel says so once, ahead of the peer's last words.
            return self._sock.recvmsg(MAX_BYTES, _FDS_SPACE, socket.MSG_CMSG_CLOEXEC)[:3]

    def shut(self) -> None:
        """End it, whoever else holds an end: both sides see `ChannelClosed`, after what was sent before."""
        with suppress(OSError):  # the peer is gone already
            self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close this end; the peer sees `ChannelClosed`."""
        self._sock.close()
