"""WebSocket frames through the sans-I/O layer of `websockets`.

Theory of operation. The protocol object starts in state OPEN: one that has seen the handshake would go on reading its
request. It hands over every frame of what it was fed at once, and answers those behind a bad one too. So text is
decoded where the library calls extensions, inside its parser, which stops there and closes with 1007.

Nearly all messages are one frame, whole in what was read, and the library's parser costs more than all the rest of what
becomes of them. So these are cut out here, where nothing is in progress; the library, which is never told of them,
reads what is left, from the first frame that is anything else, or wrong. Both inflate with the same extension.
"""

from __future__ import annotations

import codecs
from collections import deque
from io import BytesIO
from typing import TYPE_CHECKING, Final

from websockets.exceptions import PayloadTooBig, ProtocolError
from websockets.extensions import Extension
from websockets.frames import Frame, Opcode, apply_mask  # type: ignore[attr-defined] # the fastest that there is
from websockets.protocol import OPEN, SERVER
from websockets.protocol import Protocol as WebSocket
from websockets.streams import StreamReader

from procmgr.worker.protocols.frames import (
    BAD_DATA,
    PROTOCOL_ERROR,
    TOO_BIG,
    Closed,
    Event,
    Pong,
    client_frame,
    cut_reason,
    server_head,
)
from procmgr.worker.protocols.handshake import SILENT

if TYPE_CHECKING:
    from collections.abc import Generator

    from websockets.typing import BytesLike

    from procmgr.worker.protocols.handshake import Handshake

_new_decoder: Final = codecs.getincrementaldecoder("utf-8")
_VIOLATIONS: Final = (ProtocolError, PayloadTooBig, UnicodeDecodeError)
"""What the library's parser raises for mistakes of the peer; for any other error it closes with 1011."""

_FINAL: Final = 0x80
_COMPRESSED: Final = 0x40
_WHOLE: Final = {_FINAL | opcode: opcode for opcode in (Opcode.TEXT, Opcode.BINARY)}
_MAYBE_COMPRESSED: Final = _WHOLE | {_COMPRESSED | first: opcode for first, opcode in _WHOLE.items()}
"""How messages of one frame begin (RFC 6455 section 5.2), and where compression is agreed on (RFC 7692 section 6)."""


class WebsocketsCodec:
    """One connection's frames."""

    __slots__ = ("_deflate", "_is_text", "_max_size", "_parts", "_protocol", "_reader", "_texts", "replies")

    def __init__(self, handshake: Handshake, max_size: int) -> None:
        self.replies: list[bytes] = []
        self._deflate = handshake.deflate
        self._max_size = max_size
        self._texts: deque[str] = deque()
        self._parts: BytesIO | None = None
        self._is_text = False
        self._protocol = protocol = WebSocket(SERVER, state=OPEN, max_size=max_size, logger=SILENT)
        protocol.reader = self._reader = _Reader()
        protocol.parser = protocol.parse()
        next(protocol.parser)
        # Applied from the last to the first to what arrives: text is looked at once it is inflated.
        protocol.extensions = [_Watch(protocol, self._texts), *([handshake.deflate] if handshake.deflate else [])]

    def reach(self, data: bytes, at: int) -> int:
        """Return how many bytes of `data` from `at` belong to one frame, as far as is known."""
        return client_frame(data, at)[1] - at if self._reader.between else self._reader.missing

    def receive(self, data: bytes) -> list[Event]:
        """Return what `data` completes."""
        protocol = self._protocol
        events: list[Event] = []
        if self._parts is None and self._reader.between:
            data = self._cut_out(data, events)
        if data and protocol.parser_exc is None:
            protocol.receive_data(data)
            events += [event for frame in protocol.events_received() if (event := self._event(frame)) is not None]  # type: ignore[arg-type] # in state OPEN there are frames only
        if protocol.writes:
            self.replies += filter(None, protocol.data_to_send())  # an empty one asks for the end of the connection
        if protocol.parser_exc is not None:
            sent = protocol.close_sent
            if sent is None or not isinstance(protocol.parser_exc, _VIOLATIONS):
                raise protocol.parser_exc  # no mistake of the peer's: the loop reports it and ends the connection
            events.append(Closed(sent.code, sent.reason))
        return events

    def _cut_out(self, data: bytes, events: list[Event]) -> bytes:
        """Take the messages at the beginning of `data` that are one whole frame each; return the rest."""
        at, size, deflate = 0, len(data), self._deflate
        known = _WHOLE if deflate is None else _MAYBE_COMPRESSED
        while at < size:
            begin, end = client_frame(data, at)
            opcode = known.get(data[at])
            if opcode is None or not 0 < begin <= end <= size or end - begin > self._max_size:
                break
            payload: BytesLike = apply_mask(data[begin:end], data[begin - 4 : begin])
            try:
                if deflate is not None and data[at] & _COMPRESSED:
                    payload = deflate.decode(Frame(opcode, payload, rsv1=True), max_size=self._max_size).data
                events.append(str(payload, "utf-8") if opcode is Opcode.TEXT else bytes(payload))
            except (PayloadTooBig, ProtocolError, UnicodeDecodeError) as error:
                self._fail(error)
                return b""
            at = end
        return data[at:] if at else data

    def _fail(self, error: PayloadTooBig | ProtocolError | UnicodeDecodeError) -> None:
        """Close as the library's parser does."""
        code = PROTOCOL_ERROR
        if isinstance(error, UnicodeDecodeError):
            code = BAD_DATA
        elif isinstance(error, PayloadTooBig):
            code = TOO_BIG
        self._protocol.fail(code, cut_reason(str(error)))
        self._protocol.parser_exc = error

    def _event(self, frame: Frame) -> Event | None:
        match frame.opcode:
            case Opcode.TEXT if frame.fin:
                return self._texts.popleft()
            case Opcode.BINARY if frame.fin:
                return bytes(frame.data)
            case Opcode.TEXT | Opcode.BINARY:
                self._is_text = frame.opcode is Opcode.TEXT
                self._parts = BytesIO()
                self._parts.write(frame.data)
            case Opcode.CONT if self._parts is not None:
                return self._continued(self._parts, frame)
            case Opcode.PONG:
                return Pong(bytes(frame.data))
            case Opcode.CLOSE if (close := self._protocol.close_rcvd) is not None:
                return Closed(close.code, close.reason)
            case _:
                pass  # a ping is answered already
        return None

    def _continued(self, parts: BytesIO, frame: Frame) -> str | bytes | None:
        """Add to a fragmented message; kept as bytes, since many small strings would weigh many times as much."""
        parts.write(frame.data)
        if not frame.fin:
            return None
        self._parts = None
        return parts.getvalue().decode() if self._is_text else parts.getvalue()

    def text(self, text: str) -> bytes:
        """Return the frame of a text message. Raises `UnicodeEncodeError` for surrogates."""
        return self._message(Opcode.TEXT, text.encode())

    def binary(self, data: bytes) -> bytes:
        """Return the frame of a binary message."""
        return self._message(Opcode.BINARY, data)

    def _message(self, opcode: Opcode, data: BytesLike) -> bytes:
        first = _FINAL | opcode
        if self._deflate is not None:
            data = self._deflate.encode(Frame(opcode, data)).data
            first |= _COMPRESSED
        return b"".join((server_head(first, len(data)), data))

    def ping(self, payload: bytes) -> bytes:
        """Return a ping."""
        self._protocol.send_ping(payload)
        return self._sent()

    def close(self, code: int, reason: str) -> bytes:
        """Return the close frame."""
        self._protocol.send_close(code, cut_reason(reason))
        return self._sent()

    def _sent(self) -> bytes:
        writes = self._protocol.data_to_send()
        return writes[0] if len(writes) == 1 else b"".join(writes)


class _Reader(StreamReader):
    """Tells what its parser waits for, and gives its buffer away instead of a copy."""

    wanted = 0

    between = True
    """Whether the parser is between two frames; in a frame, too, there may be nothing in the buffer."""

    @property
    def missing(self) -> int:
        """How many bytes of the part of a frame that the parser is in have not come."""
        return self.wanted - len(self.buffer)

    def at_eof(self) -> Generator[None, None, bool]:
        """Wait for a byte or the end; the parser asks for it before every frame, and in none."""
        self.between = True
        return (yield from super().at_eof())

    def read_exact(self, n: int) -> Generator[None, None, bytearray]:
        """Read `n` bytes. Raises `EOFError` if there will not be as many."""
        self.wanted = n
        self.between = False
        while len(self.buffer) < n and not self.eof:
            yield
        if n != len(self.buffer):
            return (yield from super().read_exact(n))
        whole, self.buffer = self.buffer, bytearray()
        return whole


class _Watch(Extension):
    """Decodes text, and refuses what is not UTF-8 as soon as it is seen (RFC 6455 section 8.1)."""

    __slots__ = ("_decoder", "_protocol", "_texts")

    def __init__(self, protocol: WebSocket, texts: deque[str]) -> None:
        self._protocol = protocol
        self._texts = texts
        self._decoder: codecs.IncrementalDecoder | None = None

    def decode(self, frame: Frame, *, max_size: int | None = None) -> Frame:  # noqa: ARG002 - the library's interface
        """Look at the text in a frame that arrived; whether frames may follow each other so is the parser's to say."""
        if frame.rsv1 or frame.rsv2 or frame.rsv3:
            return frame  # which no extension explains: the parser refuses it next
        if frame.opcode is Opcode.TEXT:
            if frame.fin:
                self._texts.append(str(frame.data, "utf-8"))
            else:
                self._decoder = _new_decoder()
                self._decoder.decode(frame.data)
        elif frame.opcode is Opcode.CONT and self._decoder is not None:
            self._decoder.decode(frame.data, frame.fin)
            if frame.fin:
                self._decoder = None
        elif frame.opcode is Opcode.CLOSE:
            self._protocol.current_size = None  # it may come between fragments (section 5.4), which the library refuses
        return frame

    def encode(self, frame: Frame) -> Frame:
        """Leave what is sent as it is."""
        return frame
