"""The settings of WebSockets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, get_args

from procmgr.config.declare import Applies, setting
from procmgr.config.types import choice, count, seconds, truth

WebSocketName = Literal["auto", "none", "websockets", "wsproto"]

_WEEK: Final = 604_800
_ROLL: Final = Applies.ROLL


@dataclass(frozen=True, slots=True, kw_only=True)
class WebSocketSettings:
    """WebSockets."""

    ws: WebSocketName = setting(
        "auto",
        choice(get_args(WebSocketName), same={"websockets-sansio": "websockets"}),
        _ROLL,
        "The WebSocket library; auto is websockets, wsproto has to be installed, none serves handshakes as HTTP.",
        uvicorn="ws",
    )
    ws_max_size: int = setting(
        16_777_216,
        count(1, 1 << 30, metavar="BYTES"),
        _ROLL,
        "Close a WebSocket with 1009 on which a bigger message comes.",
        uvicorn="ws_max_size",
        gunicorn="websocket_max_message_size",
    )
    ws_max_queue: int = setting(
        32,
        count(1, 65_536),
        _ROLL,
        "Read no more from a WebSocket while so many messages, or 1 MiB of them, wait for the application.",
        unit="messages",
        uvicorn="ws_max_queue",
    )
    ws_ping_interval: float = setting(
        20.0,
        seconds(_WEEK),
        _ROLL,
        "Ping an open WebSocket so often, to the second; 0 never does.",
        uvicorn="ws_ping_interval",
    )
    ws_ping_timeout: float = setting(
        20.0,
        seconds(_WEEK),
        _ROLL,
        "Close a WebSocket with 1011 whose ping was not answered for so long; 0 never does.",
        uvicorn="ws_ping_timeout",
    )
    ws_per_message_deflate: bool = setting(
        True,
        truth(),
        _ROLL,
        "Compress WebSocket messages for clients that offer permessage-deflate.",
        uvicorn="ws_per_message_deflate",
    )
