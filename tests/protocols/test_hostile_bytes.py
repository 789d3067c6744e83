"""Whatever bytes come, however they are cut: no crash, no hang, no second answer, and both parsers see the same."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from protocols.corpus import CASES, FRAGMENTS, NEXT
from support.unwired import CODECS, compare, cut, hear

from procmgr.config.websocket import WebSocketSettings
from procmgr.worker.protocols.base import Limits
from procmgr.worker.protocols.bodies import ChunkedBody
from procmgr.worker.protocols.framing import Refused
from procmgr.worker.protocols.upgrade import upgrade_for

SMALL = [case.raw for case in CASES if len(case.raw) < 600]
NARROW = Limits(
    request_line=64, head=256, fields=6, chunk_framing=40, trailers=40, body_size=60, pipelined=100, discard=20
)
places = st.lists(st.integers(0, 2_000), max_size=8)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """One to three requests of the corpus with pieces lost, repeated, exchanged or put in."""
    raw = b"".join(draw(st.lists(st.sampled_from(SMALL), min_size=1, max_size=3)))
    for _ in range(draw(st.integers(0, 4))):
        begin = draw(st.integers(0, len(raw)))
        end = min(len(raw), begin + draw(st.sampled_from([0, 0, 1, 2, 5, 20])))
        piece = draw(st.sampled_from(FRAGMENTS) | st.binary(max_size=3) | st.just(raw[begin:end] * 2))
        raw = raw[:begin] + piece + raw[end:]
    return raw


@pytest.fixture(scope="module")
def runner():
    with asyncio.Runner() as runner:
        yield runner


@settings(max_examples=300)
@given(raw=damaged(), places=places, limits=st.sampled_from([None, NARROW]))
def test_what_becomes_of_bytes_depends_neither_on_the_parser_nor_on_the_cut(runner, raw, places, limits):
    single = [raw[i : i + 1] for i in range(len(raw))] if len(raw) < 300 else []
    cuts = [cut(raw, []), cut(raw, places), *([single] if single else [])]
    runner.run(compare(raw, cuts, limits))


def test_what_becomes_of_requests_is_the_same_where_websockets_are_served(runner):
    upgrade = upgrade_for(WebSocketSettings())
    for raw in SMALL:
        for codec in CODECS:
            with_them = runner.run(hear(codec, cut(raw, []), upgrade=upgrade))
            assert with_them == runner.run(hear(codec, cut(raw, []))), raw


@settings(max_examples=100)
@given(raw=st.binary(max_size=200), places=places)
def test_noise_is_survived(runner, raw, places):
    runner.run(compare(raw, [cut(raw, []), cut(raw, places)]))


extension = st.sampled_from([b"", b";a", b";a=b", b'; a="b;\\" c"', b" ;a", b";"])
line_end = st.sampled_from([b"\r\n"] * 12 + [b"\n", b"\r", b"\n\r", b""])
data = st.binary(max_size=40)


@settings(max_examples=200)
@given(parts=st.lists(data.filter(bool), max_size=5), zeros=st.integers(0, 10), places=places)
def test_chunks_are_read_back_as_they_were_made(parts, zeros, places):
    raw = b"".join(b"%b%x;a=b\r\n%b\r\n" % (b"0" * zeros, len(part), part) for part in parts)
    raw += b"0\r\nA: b\r\n\r\n" + NEXT
    reader = ChunkedBody(max_framing=0, max_trailers=8)
    body, rest = b"", b""
    ended = False
    for piece in cut(raw, places):
        if ended:
            rest += piece
        else:
            part, rest, ended = reader.read(piece)
            body += part
    assert (body, rest, ended) == (b"".join(parts), NEXT, True)


@settings(max_examples=200)
@given(
    chunks=st.lists(st.tuples(data, extension, line_end, line_end), max_size=4),
    tail=st.binary(max_size=20),
    places=places,
)
def test_what_becomes_of_chunks_depends_not_on_the_cut(chunks, tail, places):
    raw = b"".join(b"%x%b%b%b%b" % (len(part), more, end, part, after) for part, more, end, after in chunks) + tail

    def read(pieces):
        reader = ChunkedBody(max_framing=16, max_trailers=16, max_body=50)
        body = b""
        for number, piece in enumerate(pieces):
            try:
                part, rest, ended = reader.read(piece)
            except Refused as refusal:
                return refusal.status
            body += part
            if ended:
                return body, rest + b"".join(pieces[number + 1 :])
        return body

    assert read(cut(raw, places)) == read([raw]) == read([raw[i : i + 1] for i in range(len(raw))])
