"""Bytes to both parsers without a socket: what the application was given and what went back, a thousand times a second.

`hear` raises AssertionError if a connection crashes, hangs, or answers a request twice; `compare` also if what becomes
of the bytes depends on the parser, or on how they were cut into segments.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
from typing import TYPE_CHECKING, Any, NamedTuple

from procmgr.scoreboard import detached_row
from procmgr.worker.protocols.base import Context, Limits, http_factory
from support.wire import Records, read_body

if TYPE_CHECKING:
    from collections.abc import Sequence

CODECS = ("httptools", "h11")
CUT = 418
LOST = "the rest never came"
TURNS = 2_000
"""Turns of the loop in which everything has to be over: nothing here waits for more than the next one."""


class Verdict(NamedTuple):
    """What the application was given, and the answers: its own, then at most one refusal."""

    given: tuple[tuple[str, str, str], ...]
    statuses: tuple[int, ...]


class Transport(asyncio.Transport):
    """Takes everything at once; closed, it says so in the next turn, as a real one does."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._loop = loop
        self.protocol: Any = None
        self.sent = bytearray()
        self.ended = self._closing = False

    def write(self, data: bytes) -> None:
        assert not self.ended, "written after the end"
        self.sent += data

    def writelines(self, parts: Any) -> None:
        self.write(b"".join(parts))

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.ended = True

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return self._closing

    def pause_reading(self) -> None:
        """A paused transport still gets everything: the test decides what comes when."""

    def resume_reading(self) -> None:
        """See above."""

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            self._loop.call_soon(self.protocol.connection_lost, None)

    abort = close


async def hear(codec: str, pieces: Sequence[bytes], limits: Limits | None = None, *, upgrade: Any = None) -> Verdict:
    """Return what becomes of the bytes on one connection whose client then says that it sends no more."""
    loop = asyncio.get_running_loop()
    given: list[tuple[str, str, str]] = []
    running = 0

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal running
        running += 1
        assert running == 1, "two requests of one connection at once"
        status = 200
        try:
            body = await read_body(receive)
        except AssertionError:
            status, body = CUT, LOST.encode()
        query = "?" + scope["query_string"].decode() if scope["query_string"] else ""
        given.append((scope["method"], scope["path"] + query, body.decode("latin-1")))
        running -= 1
        await send({"type": "http.response.start", "status": status})
        await send({"type": "http.response.body", "body": json.dumps(len(given)).encode()})

    records = Records()
    log = logging.Logger("procmgr.error")  # noqa: LOG001 - one per connection, of no other test's concern
    log.addHandler(records)
    context = Context(app=app, loop=loop, row=detached_row(), error_log=log, limits=limits, upgrade=upgrade)
    connection: Any = http_factory(context, codec)()  # type: ignore[arg-type]
    transport = Transport(loop)
    transport.protocol = connection
    connection.connection_made(transport)
    for piece in pieces:
        if transport.ended or transport.is_closing():
            break
        connection.data_received(piece)
        await asyncio.sleep(0)
    await _until(lambda: not connection.busy or (connection._body_open and connection.cycle.waiting))
    await asyncio.sleep(0)
    if not transport.is_closing():
        if connection.eof_received():
            await _until(lambda: transport.is_closing() or transport.ended)
        transport.close()
    await _until(lambda: not context.connections and not context.tasks)
    assert context.active == 0
    assert not [record for record in records.records if record.exc_info], records.lines
    return _verdict(bytes(transport.sent), given, records.lines)


def _verdict(sent: bytes, given: list[tuple[str, str, str]], lines: list[str]) -> Verdict:
    statuses: list[int] = []
    rest = sent
    for number, (method, _, body) in enumerate(given, 1):
        before = rest
        status, length, rest = _head(rest)
        if status not in {200, CUT}:  # refused for its body, while the application had it
            assert (number, body) == (len(given), LOST), "an answer in another's turn"
            rest = before
            del given[-1]
            break
        if method != "HEAD":
            answer, rest = rest[:length], rest[length:]
            assert answer == b"%d" % number, sent
        statuses.append(status)
    if rest:
        status, length, rest = _head(rest)
        assert status >= 400, "more answers than requests"
        assert len(rest) in {0, length}, "a second response to one request"  # it may have been a HEAD
        statuses.append(status)
    assert len(lines) == len(statuses) - len(given), lines
    return Verdict(tuple(given), tuple(statuses))


def _head(sent: bytes) -> tuple[int, int, bytes]:
    """Return the next final answer's status and length, and what follows its head."""
    while True:
        head, end, rest = sent.partition(b"\r\n\r\n")
        match = re.match(rb"HTTP/1\.1 (\d{3}) ", head)
        assert match, sent
        assert end, sent
        if match[1] != b"100":
            length = re.search(rb"\r\ncontent-length: (\d+)", head)
            assert length, head
            return int(match[1]), int(length[1]), rest
        sent = rest


async def _until(holds: Any) -> None:
    for _ in range(TURNS):
        if holds():
            return
        await asyncio.sleep(0)
    raise AssertionError("it hangs")


async def compare(raw: bytes, cuts: Sequence[Sequence[bytes]], limits: Limits | None = None) -> Verdict:
    """Return what becomes of the bytes, cut in each way and read by each parser: always the same."""
    verdicts = {(codec, number): await hear(codec, cut, limits) for codec in CODECS for number, cut in enumerate(cuts)}
    (first, verdict), *others = verdicts.items()
    for other, different in others:
        assert different == verdict, (raw, first, verdict, other, different)
    return verdict


def cut(raw: bytes, places: Sequence[int]) -> list[bytes]:
    """Return the bytes in segments that end at these places."""
    ends = sorted({place for place in places if 0 < place < len(raw)} | {len(raw)})
    return [raw[begin:end] for begin, end in zip([0, *ends], ends, strict=False) if begin < end]
