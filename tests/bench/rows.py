"""The rows of the bench: what is asked of every server, and by how much procmgr has to be ahead."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from bench.hello import BODY
from bench.parts import LARGE, STREAMED
from bench.servers import YARDSTICK, Transport

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One kind of load on servers of one worker."""

    name: str
    title: str
    app: str = "hello:app"
    path: str = "/"
    answer: bytes = BODY
    how: str = "plain"  # what load.lua does
    transport: Transport = Transport.TCP
    message: int = 0  # bytes of a WebSocket message; driver.py makes the load, as it does over Unix sockets
    deflate: bool = False
    access_log: bool = False
    bars: Mapping[str, float] = field(default_factory=dict)  # procmgr / that peer, at least
    others: tuple[str, ...] = ()  # servers in this row alone
    lack: tuple[str, ...] = ("bare",)  # servers that cannot take part
    yardstick: str = YARDSTICK  # what all are compared with


def bars(uvicorn: float, **others: float) -> dict[str, float]:
    """Give the least ratio to each peer; no Python server may be faster anywhere."""
    return {"uvicorn": uvicorn, "gunicorn": 1.0, **others}


NO_DEFLATE: Final = ("bare", "gunicorn", "granian")

ROWS: Final = (
    Row(
        name="hello",
        title="hello world, no access log",
        lack=(),
        bars=bars(2.0, gunicorn=2.5, granian=1.2, bare=0.55),
    ),
    Row(name="varied", title="the same, another URL every time", how="varied", lack=(), bars=bars(1.2)),
    Row(name="log", title="hello world, access log", access_log=True, bars=bars(3.5)),
    Row(name="fields", title="20 header fields in the request", how="fields", lack=(), bars=bars(1.2)),
    Row(name="changing", title="a header field that changes every time", how="changing", lack=(), bars=bars(1.2)),
    Row(
        name="echo", title="10 KiB POST, echoed", app="parts:app", path="/echo", answer=b"", how="post", bars=bars(1.2)
    ),
    Row(name="large", title="100 KiB response", app="parts:app", path="/large", answer=LARGE, bars=bars(1.2)),
    Row(name="stream", title="50 x 1 KiB streamed", app="parts:app", path="/stream", answer=STREAMED, bars=bars(1.5)),
    Row(name="fastapi", title="FastAPI, JSON", app="fast:app", answer=b'{"hello":"world"}', bars=bars(1.05)),
    Row(
        name="file",
        title="1 MiB file, by Starlette",
        app="filed:app",
        answer=bytes(range(256)) * 4096,
        bars=bars(1.2),
    ),
    Row(name="fresh", title="a new connection for every request", how="fresh", bars=bars(1.2)),
    Row(name="pipelined", title="16 requests at a time, pipelined", how="pipelined", lack=(), bars=bars(1.2)),
    Row(name="tls", title="TLS, kept-alive", transport=Transport.TLS, bars=bars(1.2)),
    Row(name="unix", title="hello world, over a Unix socket", transport=Transport.UNIX, bars=bars(1.2)),
    Row(
        name="fd",
        title="hello world, on an inherited socket",
        transport=Transport.FD,
        bars={"procmgr-tcp": 0.97},
        others=("procmgr-tcp",),
        lack=("bare", "gunicorn", "granian"),  # the one takes sockets of systemd alone, the other none
        yardstick="procmgr-tcp",
    ),
    Row(name="ws", title="WebSocket echo, 64 B", app="talk:app", message=64, bars=bars(1.2)),
    Row(
        name="ws-deflate",
        title="the same, deflated",
        app="talk:app",
        message=64,
        deflate=True,
        lack=NO_DEFLATE,
        bars=bars(1.2),
    ),
    Row(name="ws-large", title="WebSocket echo, 64 KiB", app="talk:app", message=65536, bars=bars(0.95)),
    Row(
        name="ws-large-deflate",
        title="the same, deflated",
        app="talk:app",
        message=65536,
        deflate=True,
        lack=NO_DEFLATE,
        bars=bars(0.95),
    ),
)
BY_NAME: Final = {row.name: row for row in ROWS}
IDLE: Final = "idle"
HELD: Final = "held"
WAITS: Final = "waits"
"""Rows of their own kinds: no load at all, many connections without any, and a load that leaves half of the time."""
NAMES: Final = (*BY_NAME, WAITS, HELD, IDLE)
