"""The rows of the bench: what is asked of every server, and by how much procmgr has to be ahead."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from bench.hello import BODY
from bench.parts import LARGE, STREAMED


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One kind of load on servers of one worker."""

    name: str
    title: str
    app: str = "hello:app"
    path: str = "/"
    answer: bytes = BODY
    how: str = "plain"  # what load.lua does
    access_log: bool = False
    bare: bool = False  # whether the bare protocol can take part
    bar: float | None = None  # procmgr / uvicorn, at least


ROWS: Final = (
    Row(name="hello", title="hello world, no access log", bare=True, bar=1.8),
    Row(name="varied", title="the same, another URL every time", how="varied", bare=True),
    Row(name="log", title="hello world, access log", access_log=True, bar=3.0),
    Row(name="fields", title="20 header fields in the request", how="fields", bare=True, bar=1.2),
    Row(name="changing", title="a header field that changes every time", how="changing", bare=True),
    Row(name="echo", title="10 KiB POST, echoed", app="parts:app", path="/echo", answer=b"", how="post", bar=1.2),
    Row(name="large", title="100 KiB response", app="parts:app", path="/large", answer=LARGE, bar=1.2),
    Row(name="stream", title="50 x 1 KiB streamed", app="parts:app", path="/stream", answer=STREAMED, bar=1.5),
    Row(name="fastapi", title="FastAPI, JSON", app="fast:app", answer=b'{"hello":"world"}', bar=1.05),
    Row(name="fresh", title="a new connection for every request", how="fresh", bar=1.2),
    Row(name="pipelined", title="16 requests at a time, pipelined", how="pipelined", bare=True, bar=1.2),
)
BY_NAME: Final = {row.name: row for row in ROWS}
IDLE: Final = "idle"
"""A row of its own kind: no load at all."""
NAMES: Final = (*BY_NAME, IDLE)
