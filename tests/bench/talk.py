"""The application of the WebSocket rows: sends every message back; HTTP gets the answer of hello."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hello import app as hello

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


async def app(
    scope: dict[str, Any], receive: Callable[[], Awaitable[Any]], send: Callable[[dict[str, Any]], Awaitable[None]]
) -> None:
    """Answer all three kinds of scope."""
    if scope["type"] != "websocket":
        await hello(scope, receive, send)
        return
    while True:
        message = await receive()
        if message["type"] == "websocket.connect":
            await send({"type": "websocket.accept"})
        elif message["type"] == "websocket.receive":
            await send({"type": "websocket.send", "text": message["text"]})
        else:
            return
