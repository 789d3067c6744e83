"""What a WebSocket connection asks of a frame codec, and what one tells: RFC 6455 without a socket or an application.

A codec takes bytes as they come and returns what they complete: a message, as text or bytes, or a `Pong`, or a
`Closed`, after which it is not fed again. What it has to answer by itself, pongs and close frames, is left in
`replies`. It holds a message against the size limit before it is whole and text against UTF-8 with every fragment.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from procmgr.worker.protocols.handshake import Handshake

NORMAL: Final = 1000
NO_STATUS: Final = 1005
ABNORMAL: Final = 1006
BAD_DATA: Final = 1007
TOO_BIG: Final = 1009
INTERNAL_ERROR: Final = 1011
RESTARTING: Final = 1012

_MAX_REASON: Final = 123


@dataclass(frozen=True, slots=True)
class Pong:
    """The answer to a ping."""

    payload: bytes


@dataclass(frozen=True, slots=True)
class Closed:
    """The end of what the peer says: its close frame, or a violation that the codec answered with `code`."""

    code: int
    reason: str


Event = str | bytes | Pong | Closed


class FrameCodec(Protocol):
    """One connection's frames."""

    replies: list[bytes]
    """What is to be sent in answer; whoever sends it clears the list."""

    @property
    def missing(self) -> int:
        """How many bytes the frame in progress lacks, as far as is known: with them comes one message at most."""

    def receive(self, data: bytes) -> list[Event]:
        """Return what `data` completes."""

    def text(self, text: str) -> bytes:
        """Return the frame of a text message. Raises `UnicodeEncodeError` for surrogates."""

    def binary(self, data: bytes) -> bytes:
        """Return the frame of a binary message."""

    def ping(self, payload: bytes) -> bytes:
        """Return a ping."""

    def close(self, code: int, reason: str) -> bytes:
        """Return the close frame; afterwards messages that still arrive may be returned, and nothing can be sent."""


MakeCodec = Callable[[Handshake, int], FrameCodec]
"""Makes the codec for what a handshake negotiated, with a message's greatest size in bytes."""


def sendable(code: int) -> bool:
    """Tell whether `code` may be in a close frame (RFC 6455 section 7.4, IANA's registry)."""
    return 1000 <= code <= 1003 or 1007 <= code <= 1014 or 3000 <= code <= 4999


def cut_reason(reason: str) -> str:
    """Return as much of a close reason as a frame takes (RFC 6455 section 5.5)."""
    return reason.encode()[:_MAX_REASON].decode(errors="ignore")
