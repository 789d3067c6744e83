"""Answers with what it was asked, as JSON: method, target, headers and the body's length and digest.

`/stream` answers in 50 parts. A WebSocket sends back what comes.
"""

from __future__ import annotations

import hashlib
import json


async def app(scope, receive, send):
    match scope["type"]:
        case "websocket":
            await _converse(receive, send)
        case "http":
            await _answer(scope, receive, send)
        case _:
            raise RuntimeError("no lifespan")


async def _answer(scope, receive, send):
    digest, length = hashlib.sha256(), 0
    while True:
        message = await receive()
        digest.update(message.get("body", b""))
        length += len(message.get("body", b""))
        if not message.get("more_body"):
            break
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
    if scope["path"] == "/stream":
        for number in range(50):
            await send({"type": "http.response.body", "body": b"%d\n" % number, "more_body": True})
        await send({"type": "http.response.body"})
        return
    told = {
        "method": scope["method"],
        "path": scope["path"],
        "query": scope["query_string"].decode(),
        "version": scope["http_version"],
        "headers": [[name.decode("latin-1"), value.decode("latin-1")] for name, value in scope["headers"]],
        "length": length,
        "digest": digest.hexdigest(),
    }
    await send({"type": "http.response.body", "body": json.dumps(told).encode()})


async def _converse(receive, send):
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        await send({**message, "type": "websocket.send"})
