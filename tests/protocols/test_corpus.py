"""Both parsers, one corpus: what becomes of a request depends neither on the parser nor on how it was cut up."""

from __future__ import annotations

import asyncio
import json
import time

import pytest
from protocols.corpus import CASES, CUT, Case
from support.wire import PATIENCE, read_body, run, serving, split_replies

from procmgr.worker.protocols.framing import Refused, classify, read_fields, read_line
from procmgr.worker.protocols.h11_codec import H11Codec
from procmgr.worker.protocols.httptools_codec import HttptoolsCodec

CODECS = ["httptools", "h11"]
CUTS = ["at once", "by line", "by three bytes", "by byte"]
LONG = 20_000
"""A request of so many bytes has its size tested, and is not cut up smaller than by lines."""


def pieces(raw: bytes, how: str) -> list[bytes]:
    match how:
        case "at once":
            return [raw] if raw else []
        case "by line":
            return raw.splitlines(keepends=True)
        case _:
            size = 3 if how == "by three bytes" else 1
            return [raw[i : i + size] for i in range(0, len(raw), size)]


async def echo(scope, receive, send):
    try:
        body = await read_body(receive)
    except AssertionError:  # the client ended in the middle
        await send({"type": "http.response.start", "status": CUT})
        await send({"type": "http.response.body"})
        return
    query = "?" + scope["query_string"].decode() if scope["query_string"] else ""
    answer = json.dumps([scope["method"], scope["path"] + query, body.decode("latin-1")]).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"x-method", scope["method"].encode())]})
    await send({"type": "http.response.body", "body": answer})


async def outcome(raw: bytes, codec: str, how: str) -> tuple[bytes, list[str]]:
    """Return what comes back until the server or, with nothing more to say, the client closes; and what was logged."""
    async with serving(echo, codec) as server:
        client = await server.connect()
        connection = await server.connection()
        for piece in pieces(raw, how):
            if connection.transport.is_closing():
                break
            connection.data_received(piece)
            await asyncio.sleep(0)
        await server.until(lambda: not connection.busy or (connection._body_open and connection.cycle.waiting))
        client.shut()
        data = await asyncio.wait_for(client.reader.read(-1), PATIENCE)
    return data, server.records.lines


def answers(data: bytes) -> list[object]:
    return [tuple(json.loads(reply.body)) if reply.status == 200 else reply.status for reply in split_replies(data, [])]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_each_request_has_the_outcome_its_clause_demands(case: Case) -> None:
    refused = [answer for answer in case.outcome if isinstance(answer, int) and answer != CUT]

    async def every_way() -> list[tuple[str, str, bytes, list[str]]]:
        cuts = CUTS if len(case.raw) <= LONG else CUTS[:2]
        return [(codec, how, *await outcome(case.raw, codec, how)) for codec in CODECS for how in cuts]

    for codec, how, data, lines in run(every_way()):
        assert answers(data) == case.outcome, (case.clause, codec, how, data[:500], lines)
        assert len(lines) == len(refused), (codec, how, lines)


def test_the_corpus_is_as_large_as_it_is_meant_to_be_and_says_nothing_twice() -> None:
    assert len(CASES) >= 400
    assert len({case.name for case in CASES}) == len({case.raw for case in CASES}) == len(CASES)


SHAPES = {
    "blanks inside a length": lambda size: b"Host: a\r\nContent-Length: 1" + b" " * size + b"1\r\n",
    "blanks around a length": lambda size: b"Host: a\r\nContent-Length:" + b"\t" * size + b"1" + b" " * size + b"\r\n",
    "blanks inside a value": lambda size: b"Host: a\r\nA: 1" + b" " * size + b"1\r\n",
    "commas in Connection": lambda size: b"Host: a\r\nConnection: " + b"a ," * size + b"\r\n",
    "codings": lambda size: b"Host: a\r\nTransfer-Encoding: " + b"a ," * size + b"a\r\n",
    "a long Host": lambda size: b"Host: " + b"a" * size + b"/\r\n",
    "many fields": lambda size: b"Host: a\r\n" + b"A:1\r\n" * size,
}


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_time_for_a_head_grows_no_faster_than_the_head(shape: str, codec: str) -> None:
    few, many = 1_000, 16_000

    def seconds(size: int) -> float:
        head = b"GET / HTTP/1.1\r\n" + SHAPES[shape](size) + b"\r\n"

        def once() -> float:
            parser = (HttptoolsCodec if codec == "httptools" else H11Codec)()
            begin = time.process_time()
            request = read_line(head, 1024)
            try:
                read_fields(request, parser.read_head(request), set())
            except Refused as refusal:
                classify(request, set(), 256, refusal)
            return time.process_time() - begin

        return min(once() for _ in range(5))

    assert seconds(many) < 4 * (many / few) * seconds(few)
