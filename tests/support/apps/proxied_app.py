"""What tests of proxies ask for; everything else is answered by `support.apps.websocket_app`.

`/who` tells the scope; `/upload` tells the length of the request's body, and the test when its first part is here;
`/download?N` answers with N bytes, of which it sends one alone until the test says so; `/events` sends one event, and
the second when the test says so; `/spin` uses all of the processor until the test says so.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from support.apps import websocket_app
from support.stage import stay, tell

Message = dict[str, Any]
_PART = bytes(256 * 1024)


async def app(scope: Message, receive: Any, send: Any) -> None:
    match scope.get("path"):
        case "/who":
            await _answer(send, _described(scope))
        case "/upload":
            await _answer(send, {"length": await _length(receive)})
        case "/download":
            await _download(send, int(scope["query_string"]))
        case "/events":
            await _events(send)
        case "/spin":
            await _spin()
            await _answer(send, {})
        case _:
            await websocket_app.app(scope, receive, send)


def _described(scope: Message) -> Message:
    headers = [(name.decode(), value.decode()) for name, value in scope["headers"]]
    return {"client": scope["client"], "server": scope["server"], "scheme": scope["scheme"], "headers": headers}


async def _length(receive: Any) -> int:
    length, more = 0, True
    while more:
        message = await receive()
        assert message["type"] == "http.request", message
        if not length:
            await stay("first part")
        length += len(message["body"])
        more = message["more_body"]
    return length


async def _download(send: Any, length: int) -> None:
    headers = [(b"content-length", str(length).encode()), (b"content-type", b"application/octet-stream")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"1", "more_body": True})
    await stay("first part")
    length -= 1
    while length:
        part = _PART[:length]
        length -= len(part)
        await send({"type": "http.response.body", "body": part, "more_body": bool(length)})
    tell("all sent")


async def _events(send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
    await send({"type": "http.response.body", "body": b"data: first\n\n", "more_body": True})
    await stay("first event")
    await send({"type": "http.response.body", "body": b"data: second\n\n"})


async def _spin() -> None:
    released = asyncio.ensure_future(stay("spinning"))
    while not released.done():
        sum(range(50_000))
        await asyncio.sleep(0)


async def _answer(send: Any, content: Message) -> None:
    body = json.dumps(content).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
