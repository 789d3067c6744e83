"""The plain ASGI application that most process tests serve.

Paths: `/` says who answered; `/stay` answers when the test says so and tells when it is cancelled; `/block` blocks the
event loop until the test says so; `/echo` answers with the request's body; `/pool` starts a process pool.
"""

from __future__ import annotations

import asyncio
import json
import os
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from support.stage import hold, identity, stay, tell

Message = dict[str, Any]
version = "base"
_pools: list[ProcessPoolExecutor] = []


async def app(scope: Message, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        await _lifespan(receive, send)
        return
    match scope["path"]:
        case "/stay":
            await _stay()
        case "/block":
            hold("blocked")
        case "/pool":
            pool = ProcessPoolExecutor(max_workers=2)
            _pools.append(pool)
            await asyncio.gather(*(asyncio.wrap_future(pool.submit(os.getpid)) for _ in range(4)))
            await _answer(send, json.dumps(sorted(pool._processes)).encode())
            return
        case "/echo":
            await _answer(send, await _body(receive))
            return
        case _:
            pass
    await _answer(send, json.dumps({**identity(), "version": version, "path": scope["path"]}).encode())


async def _stay() -> None:
    try:
        await stay("running")
    except asyncio.CancelledError:
        tell("cancelled")
        raise


async def _lifespan(receive: Any, send: Any) -> None:
    while True:
        message = await receive()
        if message["type"] == "lifespan.startup":
            tell("startup", version=version)
            await send({"type": "lifespan.startup.complete"})
        else:
            tell("shutdown")
            await send({"type": "lifespan.shutdown.complete"})
            return


async def _body(receive: Any) -> bytes:
    body = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ConnectionError("the client left in the middle of its body")
        body += message.get("body", b"")
        if not message.get("more_body"):
            return body


async def _answer(send: Any, body: bytes) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
