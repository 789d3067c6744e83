"""Frame codecs: what they tell does not depend on how the bytes were cut."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.frames import BINARY, CLOSE, CONT, PING, PONG, TEXT, closing, deflated, frame
from websockets.extensions.permessage_deflate import PerMessageDeflate

from procmgr.worker.protocols.frames import Closed, client_frame, server_head
from procmgr.worker.protocols.websockets_codec import WebsocketsCodec

MAX = 300
BAD_TEXT = b"caf\xe9"


def new(*, deflate):
    agreed = PerMessageDeflate(False, False, 12, 12, {"memLevel": 5}) if deflate else None
    return WebsocketsCodec(SimpleNamespace(deflate=agreed), MAX)


def told(codec, pieces):
    """Return all events up to the end, of a close its code alone, and the replies, of close frames opcode and code."""
    events = []
    for piece in pieces:
        for event in codec.receive(piece):
            if isinstance(event, Closed):
                codes = [reply[:1] + reply[2:4] if reply[0] == 0x80 | CLOSE else reply for reply in codec.replies]
                return [*events, event.code], codes
            events.append(event)
    return events, codec.replies


payloads = st.one_of(
    st.binary(max_size=130),
    st.text(max_size=40).map(str.encode),
    st.sampled_from([b"", BAD_TEXT, b"x" * 126, b"x" * MAX, b"x" * (MAX + 1)]),
)
frames = st.builds(
    frame,
    st.sampled_from([TEXT, TEXT, BINARY, CONT, PING, PONG, 3]),
    payloads,
    fin=st.sampled_from([True, True, True, False]),
    rsv=st.sampled_from([0, 0, 0, 0, 4, 2]),
    mask=st.sampled_from([b"\x01\x02\x03\x04", b"\x01\x02\x03\x04", b"\0\0\0\0", b""]),
)
compressed = st.builds(
    lambda opcode, payload: frame(opcode, deflated(payload), rsv=4), st.sampled_from([1, 2]), payloads
)
closes = st.sampled_from([closing(1000), closing(1001, b"bye"), frame(CLOSE), closing(1004), frame(CLOSE, b"x")])


@given(st.lists(st.one_of(frames, compressed, closes), max_size=6), st.booleans(), st.integers(1, 64))
def test_whole_frames_in_pieces_and_byte_by_byte_are_the_same(sent, deflate, size):
    data = b"".join(sent)
    whole = told(new(deflate=deflate), [data])
    assert told(new(deflate=deflate), sent) == whole
    assert told(new(deflate=deflate), [data[at : at + size] for at in range(0, len(data), size)]) == whole
    assert told(new(deflate=deflate), [data[at : at + 1] for at in range(len(data))]) == whole


@pytest.mark.parametrize("deflate", [True, False])
@pytest.mark.parametrize("size", [20, 200])
def test_what_looks_like_a_frame_inside_of_one_is_not_taken_for_it(deflate, size):
    """A segment may end with a part of a head: then nothing is buffered, but the parser is in a frame."""
    mask = b"\x81\x80ab"
    inner = frame(BINARY, b"inner", mask=b"\0\0\0\0")
    for sent in (
        frame(TEXT, "y" * size, mask=mask),
        frame(BINARY, inner + bytes(size), mask=b"\0\0\0\0"),
        frame(BINARY, inner, fin=False, mask=b"\0\0\0\0") + frame(CONT, inner + bytes(size), mask=mask),
    ):
        whole = told(new(deflate=deflate), [sent])
        for cut in range(1, len(sent)):
            codec = new(deflate=deflate)
            assert codec.receive(sent[:cut]) == []
            assert codec.reach(sent, cut) <= len(sent) - cut
            assert told(codec, [sent[cut:]]) == whole


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (frame(TEXT, deflated(BAD_TEXT), rsv=4), 1007),
        (frame(TEXT, deflated(b"x" * 9000), rsv=4), 1009),
        (frame(TEXT, b"\xff\xff\xff", rsv=4), 1002),
        (frame(TEXT, BAD_TEXT), 1007),
        (frame(BINARY, b"x" * (MAX + 1)), 1009),
        (frame(BINARY, mask=b""), 1002),
    ],
)
def test_a_whole_message_that_is_wrong_ends_the_socket_behind_what_was_right(sent, code):
    events, replies = told(new(deflate=True), [frame(TEXT, "before") + sent + frame(TEXT, "behind")])
    assert events == ["before", code]
    assert replies == [b"\x88" + code.to_bytes(2)]


@pytest.mark.parametrize("code", [1000, 1011])
@pytest.mark.parametrize(
    "wrong",
    [frame(3), frame(CONT), frame(TEXT, BAD_TEXT), frame(TEXT, b"\xff", fin=False), frame(BINARY, bytes(MAX + 1))],
)
def test_a_mistake_of_the_peer_is_his_whatever_the_code_with_which_the_socket_closes(code, wrong):
    """The application raised, or no pong came, and then the peer is wrong: that is no error of this process."""
    codec = new(deflate=False)
    codec.close(code, "")
    assert codec.receive(frame(TEXT, "before") + wrong) == ["before", Closed(code, "")]


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65535, 65536])
def test_heads_are_written_and_read_at_every_length(size):
    sent = frame(BINARY, bytes(size))
    begin, end = client_frame(b"--" + sent, 2)
    assert (end - begin, end) == (size, len(sent) + 2)
    assert b"".join((server_head(0x82, size), bytes(size))) == frame(BINARY, bytes(size), mask=b"")
    assert client_frame(sent[: begin - 3], 0) == (0, 0), "the head is not whole"
    assert client_frame(frame(BINARY, bytes(size), mask=b""), 0) == (0, 0), "and this one is a server's"


def test_a_compressed_message_may_follow_one_that_the_library_read():
    """Both inflate with one window: what came in fragments explains what comes whole."""
    sender, codec = PerMessageDeflate(False, False, 12, 12, {}), new(deflate=True)
    stream = sender.encoder
    first, second = (deflated(b"the same words", stream) for _ in range(2))
    assert len(second) < len(first)
    events, _ = told(
        codec, [frame(TEXT, first[:4], fin=False, rsv=4), frame(CONT, first[4:]), frame(TEXT, second, rsv=4)]
    )
    assert events == ["the same words"] * 2
