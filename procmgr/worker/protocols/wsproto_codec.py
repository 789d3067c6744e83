"""WebSocket frames through `wsproto`.

wsproto passes on parts of messages as they come and knows no limits: messages are put together here. Its own
extension for compression forgets, at a control frame between fragments, that the message is compressed, so inflating
and deflating is done here too, with the streams that the handshake agreed on.
"""

from __future__ import annotations

import zlib
from io import BytesIO
from typing import TYPE_CHECKING, Final

from wsproto.connection import SERVER, Connection, ConnectionState
from wsproto.events import BytesMessage, CloseConnection, Ping, TextMessage
from wsproto.events import Pong as PongEvent
from wsproto.extensions import Extension
from wsproto.frame_protocol import CloseReason, FrameDecoder, FrameProtocol, Opcode, RsvBits

from procmgr.worker.protocols.frames import NO_STATUS, TOO_BIG, Closed, Event, Pong, cut_reason

if TYPE_CHECKING:
    from websockets.extensions.permessage_deflate import PerMessageDeflate
    from wsproto.events import Event as WireEvent

    from procmgr.worker.protocols.handshake import Handshake

_TAIL: Final = b"\x00\x00\xff\xff"
_PLAIN: Final = RsvBits(rsv1=False, rsv2=False, rsv3=False)


class WsprotoCodec:
    """One connection's frames."""

    __slots__ = ("_connection", "_max_size", "_parts", "replies")

    def __init__(self, handshake: Handshake, max_size: int) -> None:
        self.replies: list[bytes] = []
        self._max_size = max_size
        self._parts = BytesIO()
        extensions: list[Extension] = [_Deflate(handshake.deflate)] if handshake.deflate else []
        self._connection = Connection(SERVER, extensions)

    def reach(self, data: bytes, at: int) -> int:  # noqa: ARG002 - wsproto passes payloads on as they come
        """Tell nothing."""
        return 0

    def receive(self, data: bytes) -> list[Event]:
        """Return what `data` completes."""
        self._connection.receive_data(data)
        events: list[Event] = []
        for wire in self._connection.events():
            event = self._event(wire)
            if event is not None:
                events.append(event)
            if isinstance(event, Closed):
                break
        return events

    def _event(self, event: WireEvent) -> Event | None:
        match event:
            case TextMessage() | BytesMessage():
                return self._message(event)
            case Ping():
                if self._connection.state is ConnectionState.OPEN:
                    self.replies.append(bytes(self._connection.send(event.response())))
            case PongEvent():
                return Pong(bytes(event.payload))
            case CloseConnection():
                return self._closed(event.code, event.reason or "")
            case _:
                pass
        return None

    def _message(self, part: TextMessage | BytesMessage) -> Event | None:
        text = isinstance(part, TextMessage)
        if part.message_finished and not self._parts.tell():
            whole = part.data.encode() if isinstance(part.data, str) and not part.data.isascii() else part.data
            if len(whole) > self._max_size:
                return self._closed(TOO_BIG, "message too big")
            return part.data if isinstance(part.data, str) else bytes(part.data)
        # As bytes: a string takes up to four for each, and much more in small pieces. BytesIO gives its buffer away.
        self._parts.write(part.data.encode() if isinstance(part.data, str) else part.data)
        if self._parts.tell() > self._max_size:
            return self._closed(TOO_BIG, "message too big")
        if not part.message_finished:
            return None
        message, self._parts = self._parts.getvalue(), BytesIO()
        return message.decode() if text else message

    def _closed(self, code: int, reason: str) -> Closed:
        """Answer the peer's close frame with its own code, its violation with ours, unless a close frame was sent."""
        if self._connection.state in {ConnectionState.OPEN, ConnectionState.REMOTE_CLOSING}:
            answer = CloseConnection(CloseReason.NO_STATUS_RCVD if code == NO_STATUS else code, cut_reason(reason))
            self.replies.append(bytes(self._connection.send(answer)))
        return Closed(int(code), reason)

    def text(self, text: str) -> bytes:
        """Return the frame of a text message. Raises `UnicodeEncodeError` for surrogates."""
        return self._frame(TextMessage(data=text))

    def binary(self, data: bytes) -> bytes:
        """Return the frame of a binary message."""
        return self._frame(BytesMessage(data=data))

    def ping(self, payload: bytes) -> bytes:
        """Return a ping."""
        return self._frame(Ping(payload=payload))

    def close(self, code: int, reason: str) -> bytes:
        """Return the close frame."""
        return self._frame(CloseConnection(code=code, reason=cut_reason(reason)))

    def _frame(self, event: TextMessage | BytesMessage | Ping | CloseConnection) -> bytes:
        return bytes(self._connection.send(event))


class _Deflate(Extension):
    """permessage-deflate (RFC 7692) as negotiated; `agreed` tells its parameters."""

    name = "permessage-deflate"

    def __init__(self, agreed: PerMessageDeflate) -> None:
        self._agreed = agreed
        self._inflating = False
        self._data_frame = False
        self._inflate = zlib.decompressobj(-agreed.remote_max_window_bits)
        self._deflate = self._new_deflate()

    def _new_deflate(self) -> zlib._Compress:
        return zlib.compressobj(wbits=-self._agreed.local_max_window_bits, **self._agreed.compress_settings)

    def enabled(self) -> bool:
        """Say that it was negotiated."""
        return True

    def offer(self) -> bool | str:
        """Offer nothing: it is a server's."""
        return False

    def frame_inbound_header(
        self,
        proto: FrameDecoder | FrameProtocol,  # noqa: ARG002 - the library's interface
        opcode: Opcode,
        rsv: RsvBits,
        payload_length: int,  # noqa: ARG002 - likewise
    ) -> CloseReason | RsvBits:
        """Note whether the message that begins is compressed (section 6)."""
        self._data_frame = not opcode.iscontrol()
        if opcode in {Opcode.TEXT, Opcode.BINARY}:
            self._inflating = rsv.rsv1
        elif rsv.rsv1:
            return CloseReason.PROTOCOL_ERROR
        return RsvBits(rsv1=True, rsv2=False, rsv3=False)

    def frame_inbound_payload_data(self, proto: FrameDecoder | FrameProtocol, data: bytes) -> bytes | CloseReason:  # noqa: ARG002 - likewise
        """Inflate a part of a message; what is fed at once bounds what comes out, a thousandfold."""
        if not (self._inflating and self._data_frame):
            return data
        try:
            return self._inflate.decompress(data)
        except zlib.error:
            return CloseReason.PROTOCOL_ERROR

    def frame_inbound_complete(self, proto: FrameDecoder | FrameProtocol, fin: bool) -> bytes | CloseReason | None:  # noqa: ARG002, FBT001 - likewise
        """Inflate the end of a message (section 7.2.2)."""
        if not (fin and self._inflating and self._data_frame):
            return None
        try:
            rest = self._inflate.decompress(_TAIL)
        except zlib.error:
            return CloseReason.PROTOCOL_ERROR
        if self._agreed.remote_no_context_takeover:
            self._inflate = zlib.decompressobj(-self._agreed.remote_max_window_bits)
        return rest

    def frame_outbound(
        self,
        proto: FrameDecoder | FrameProtocol,  # noqa: ARG002 - likewise
        opcode: Opcode,
        rsv: RsvBits,
        data: bytes,
        fin: bool,  # noqa: ARG002, FBT001 - likewise, and every message is one frame
    ) -> tuple[RsvBits, bytes]:
        """Deflate a message (section 7.2.1)."""
        if opcode.iscontrol():
            return rsv, data
        data = self._deflate.compress(data) + self._deflate.flush(zlib.Z_SYNC_FLUSH)
        if self._agreed.local_no_context_takeover:
            self._deflate = self._new_deflate()
        return _PLAIN._replace(rsv1=True), data[: -len(_TAIL)]
