"""The channel's promises: what is sent arrives whole or not at all, and nonsense is refused."""

import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from procmgr import messages
from procmgr.messages import BootFailed, Channel, ChannelClosed, Configure, Drain, MessageError, Ready, decode, encode

TEXT = st.text(max_size=200)
MESSAGES = st.one_of(
    st.just(Ready()),
    st.just(messages.DrainBegun()),
    st.just(messages.ReopenLogs()),
    st.builds(BootFailed, st.integers(0, 255), TEXT, TEXT),
    st.builds(messages.RecycleDue, TEXT),
    st.builds(Drain, TEXT, st.floats(allow_nan=False, allow_infinity=False)),
    st.builds(Configure, TEXT),
    st.builds(messages.Born, st.integers()),
    st.just(messages.Imported()),
    st.builds(messages.Fork, st.integers(), st.integers(), st.integers()),
    st.builds(messages.ForkFailed, st.integers(), TEXT),
)


@pytest.fixture
def pair():
    one, other = Channel.pair()
    yield one, other
    one.close()
    other.close()


@given(MESSAGES)
def test_every_message_survives_encoding(message):
    assert decode(encode(message)) == message


@pytest.mark.parametrize("character", ["a", "\n", "\x00", "\U0001f600"])
def test_no_text_makes_a_message_too_long_and_the_end_of_a_traceback_is_kept(character):
    data = encode(BootFailed(3, 50_000 * character, 50_000 * character + "the cause"))
    assert len(data) <= messages.MAX_BYTES
    assert decode(data).detail.endswith("the cause")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"7",
        b"null",
        b'{"v":1}',
        b'{"t":"Ready"}',
        b'{"v":2,"t":"Ready"}',
        b'{"v":1,"t":"Nothing"}',
        b'{"v":1,"t":"Ready","more":1}',
        b'{"v":1,"t":"Drain","mode":"stop"}',
        b'{"v":1,"t":"Drain","mode":1,"deadline":1.0}',
        b'{"v":1,"t":"Drain","mode":"stop","deadline":"soon"}',
        b'{"v":1,"t":["Ready"]}',
        b"[" * 100_000,
        b"\xff\xfe",
    ],
)
def test_what_is_no_message_is_refused(data):
    with pytest.raises(MessageError):
        decode(data)


@given(st.binary(max_size=200))
def test_no_bytes_make_decoding_fail_in_another_way(data):
    with pytest.raises(MessageError):
        decode(data)


@given(st.recursive(st.none() | st.booleans() | st.integers() | TEXT, lambda x: st.lists(x) | st.dictionaries(TEXT, x)))
def test_no_json_makes_decoding_fail_in_another_way(value):
    with pytest.raises(MessageError):
        decode(json.dumps(value).encode())


def test_messages_arrive_in_order_and_receive_never_waits(pair):
    one, other = pair
    assert other.receive() is None
    assert one.send(Ready())
    assert one.send(Configure("debug"))
    assert other.receive() == (Ready(), ())
    assert other.receive() == (Configure("debug"), ())
    assert other.receive() is None


def test_a_full_channel_refuses_instead_of_waiting(pair):
    one, _ = pair
    sent = 0
    while one.send(Configure("x" * 1000)):
        sent += 1
    assert 0 < sent < 10_000
    assert not one.gone


def test_a_closed_peer_is_reported_and_sending_to_it_is_false(pair):
    one, other = pair
    other.close()
    assert not one.send(Ready())
    assert one.gone
    with pytest.raises(ChannelClosed):
        one.receive()


def test_what_was_sent_before_the_end_is_read_before_the_end(pair):
    one, other = pair
    one.send(Ready())
    one.close()
    assert other.receive() == (Ready(), ())
    with pytest.raises(ChannelClosed):
        other.receive()


def test_descriptors_travel_beside_a_message(pair):
    one, other = pair
    reader, writer = os.pipe()
    assert one.send(messages.ReopenLogs(), (writer,))
    os.close(writer)
    _, (received,) = other.receive()
    os.write(received, b"hello")
    assert os.read(reader, 10) == b"hello"
    assert not os.get_inheritable(received)
    os.close(received)
    os.close(reader)


def test_descriptors_beside_nonsense_are_closed(pair):
    one, other = pair
    reader, writer = os.pipe()
    import socket

    socket.send_fds(one._sock, [b"nonsense"], [writer])
    os.close(writer)
    with pytest.raises(MessageError):
        other.receive()
    assert os.read(reader, 1) == b""  # end of file: no copy of the writing end is left
    os.close(reader)


def test_the_last_words_of_a_peer_that_died_without_reading_are_received(pair):
    one, other = pair
    other.send(Ready())
    other.send(BootFailed(3, "why", ""))
    one.send(Configure("debug"))
    other.close()
    assert one.receive() == (Ready(), ())
    assert one.receive() == (BootFailed(3, "why", ""), ())
    with pytest.raises(ChannelClosed):
        one.receive()


def test_a_channel_that_is_shut_ends_for_both_after_what_was_sent(pair):
    one, other = pair
    other.send(Ready())
    one.shut()
    assert one.receive() == (Ready(), ())
    for end in pair:
        with pytest.raises(ChannelClosed):
            end.receive()
    assert not other.send(Ready())
