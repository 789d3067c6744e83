"""What attackers want of an application, for process tests.

`/endless` answers without end, and tells how much was taken once nothing more is for a while; `/unread` tells that it
began, and answers without reading its body when the test says so; `/large` is 64 MiB; everything else is
`support.testapp`'s.
"""

from __future__ import annotations

import asyncio

from support import testapp
from support.stage import stay, tell

PART = bytes(64 * 1024)
STANDSTILL = 0.5
MOST = 512 << 20


async def app(scope, receive, send):
    match scope.get("path"):
        case "/endless":
            await _endless(send)
        case "/unread":
            await stay("unread")
            await send({"type": "http.response.start", "status": 200})
            await send({"type": "http.response.body", "body": b"unread"})
        case "/large":
            await send({"type": "http.response.start", "status": 200})
            for _ in range(1024):
                await send({"type": "http.response.body", "body": PART, "more_body": True})
            await send({"type": "http.response.body"})
        case _:
            await testapp.app(scope, receive, send)


async def _endless(send):
    await send({"type": "http.response.start", "status": 200})
    taken = 0
    try:
        while taken < MOST:
            sending = asyncio.ensure_future(send({"type": "http.response.body", "body": PART, "more_body": True}))
            await asyncio.wait({sending}, timeout=STANDSTILL)
            if not sending.done():
                tell("stuck", taken=taken)
            await sending
            taken += len(PART)
    finally:
        tell("over", taken=taken)
