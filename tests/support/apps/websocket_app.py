"""A plain ASGI application of WebSockets, for process tests.

`/echo` sends back what comes, prefixed with this worker's pid as text; `/deaf` accepts and takes nothing until the test
says so, then everything; both tell the test the code they are closed with. HTTP is answered by `support.testapp`.
"""

from __future__ import annotations

import os

from support import testapp
from support.stage import stay, tell


async def app(scope, receive, send):
    if scope["type"] != "websocket":
        await testapp.app(scope, receive, send)
        return
    await receive()
    await send({"type": "websocket.accept"})
    if scope["path"] == "/deaf":
        await stay("deaf")
    taken = 0
    while (message := await receive())["type"] == "websocket.receive":
        taken += 1
        if scope["path"] == "/echo":
            await send({"type": "websocket.send", "text": f"{os.getpid()} {message.get('text')}"})
    tell("disconnected", code=message["code"], taken=taken)


async def autobahn(scope, receive, send):
    """Send everything back as it came, as Autobahn's fuzzing client wants it."""
    if scope["type"] == "lifespan":
        raise RuntimeError("no lifespan")
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        await send({**message, "type": "websocket.send"})
