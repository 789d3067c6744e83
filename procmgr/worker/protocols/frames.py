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
PROTOCOL_ERROR: Final = 1002
NO_STATUS: Final = 1005
ABNORMAL: Final = 1006
BAD_DATA: Final = 1007
TOO_BIG: Final = 1009
INTERNAL_ERROR: Final = 1011
RESTARTING: Final = 1012

_MAX_REASON: Final = 123
_MASKED: Final = 0x80
_LENGTH_IN_2: Final = 126
_LENGTH_IN_8: Final = 127


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

    def reach(self, data: bytes, at: int) -> int:
        """Return how many bytes of `data` from `at` belong to one frame, as far as is known.

        With them comes one message at most; 0 or less tells nothing.
        """

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


def client_frame(data: bytes, at: int) -> tuple[int, int]:
    """Return where the payload of the frame that begins at `at` begins and ends (RFC 6455 section 5.2).

    Both are 0 if the head of the frame is not whole, or not a client's: those mask what they send.
    """
    have = len(data) - at
    if have < 6:
        return 0, 0
    length = data[at + 1] - _MASKED
    if length < _LENGTH_IN_2:
        begin = at + 6
    elif length == _LENGTH_IN_2:
        begin = at + 8
        length = data[at + 2] << 8 | data[at + 3]
    else:
        begin = at + 14
        length = int.from_bytes(data[at + 2 : at + 10])
    return (begin, begin + length) if length >= 0 and begin - at <= have else (0, 0)


def server_head(first: int, length: int) -> bytes:
    """Return the head of a frame with this first byte and this much payload."""
    if length < _LENGTH_IN_2:
        return bytes((first, length))
    if length < 1 << 16:
        return bytes((first, _LENGTH_IN_2)) + length.to_bytes(2)
    return bytes((first, _LENGTH_IN_8)) + length.to_bytes(8)


def sendable(code: int) -> bool:
    """Tell whether `code` may be in a close frame (RFC 6455 section 7.4, IANA's registry)."""
    return 1000 <= code <= 1003 or 1007 <= code <= 1014 or 3000 <= code <= 4999


def cut_reason(reason: str) -> str:
    """Return as much of a close reason as a frame takes (RFC 6455 section 5.5)."""
    return reason.encode()[:_MAX_REASON].decode(errors="ignore")
