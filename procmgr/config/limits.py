"""The settings that bound what a client may cost a worker: sizes, times and rates of its requests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from procmgr.config.declare import Applies, setting
from procmgr.config.types import choice, count, seconds, size

_DAY: Final = 86_400


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitSettings:
    """Limits on clients."""

    limit_request_line: int = setting(
        16_384,
        count(64, 1 << 20, metavar="BYTES"),
        Applies.ROLL,
        "Answer 414 to a longer request line.",
        gunicorn="limit_request_line",
    )
    limit_request_fields: int = setting(
        256,
        count(1, 32_768),
        Applies.ROLL,
        "Answer 431 to a request with more header fields.",
        unit="fields",
        gunicorn="limit_request_fields",
    )
    limit_request_head: int = setting(
        65_536,
        count(1024, 1 << 24, metavar="BYTES"),
        Applies.ROLL,
        "Answer 431 to a request whose line and header fields are longer.",
    )
    limit_request_body: int = setting(
        0, size(), Applies.ROLL, "Answer 413 to a request with a longer body; 0 never does."
    )
    limit_chunk_framing: int = setting(
        65_536,
        count(0, 1 << 24, metavar="BYTES"),
        Applies.ROLL,
        "Answer 413 to a chunked body whose chunk sizes and extensions take more, beyond 32 bytes for each chunk.",
    )
    limit_request_trailers: int = setting(
        8192, count(64, 1 << 24, metavar="BYTES"), Applies.ROLL, "Answer 431 to longer fields after a chunked body."
    )
    limit_unread_body: int = setting(
        65_536,
        count(0, 1 << 30, metavar="BYTES"),
        Applies.ROLL,
        "Close a connection after the response if more of a body is left that the application did not read.",
    )
    limit_pipelined: int = setting(
        65_536,
        count(0, 1 << 24, metavar="BYTES"),
        Applies.ROLL,
        "Read no more of a connection while so much of its next requests is there before their turn.",
    )
    timeout_request_head: float = setting(
        10.0,
        seconds(_DAY),
        Applies.ROLL,
        "Close a connection whose request head is not complete after so long, with 408 if it began; 0 never does.",
    )
    timeout_request: float = setting(
        0.0,
        seconds(_DAY),
        Applies.ROLL,
        "Cut a request that is not answered whole after so long, with 503, or 408 if its body is late; 0 never does.",
    )
    limit_connections: int = setting(
        0,
        count(0, 1 << 20),
        Applies.ROLL,
        "Have at most so many connections in a worker; others wait to be accepted. 0 is no limit.",
        unit="connections",
        gunicorn="worker_connections",
    )
    underscore_headers: Literal["pass", "drop"] = setting(
        "pass",
        choice(("pass", "drop")),
        Applies.ROLL,
        "Drop every header field with an underscore in its name, or only those that could pass for one of a proxy.",
    )
    min_transfer_rate: int = setting(
        240,
        count(0, 1 << 30),
        Applies.ROLL,
        "Cut off a client that sends a body more slowly for 10 seconds, or takes a response so for 30; 0 never does.",
        unit="bytes per second",
    )
