"""The application of the fault bench: it boots as slowly, and breaks, as the bench says, and keeps a journal.

`VICTIM_ROOM` is the directory of the journal; a file `broken` in it makes every later import raise. `VICTIM_BOOT` is
how many seconds an import waits, `VICTIM_BURN` how many it computes. Each line of the journal is a word, a pid and a
monotonic time: `ready` when the lifespan has started, `broken` before a failing import raises, `blocked` before
`/block` blocks the event loop. `/` answers with the pid, `/echo` with the request's body.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

ROOM = Path(os.environ["VICTIM_ROOM"])
BLOCK_SECONDS = 60  # the bench ends a worker before


def tell(word):
    with (ROOM / "journal").open("a") as journal:
        journal.write(f"{word} {os.getpid()} {time.monotonic()}\n")


def boot():
    end = time.process_time() + float(os.environ["VICTIM_BURN"])
    while time.process_time() < end:
        pass
    time.sleep(float(os.environ["VICTIM_BOOT"]))
    if (ROOM / "broken").exists():
        tell("broken")
        raise RuntimeError("broken, as the bench wants it")


async def app(scope, receive, send):
    match scope:
        case {"type": "lifespan"}:
            await lifespan(receive, send)
            return
        case {"path": "/echo"}:
            answer = await body_of(receive)
        case {"path": "/block"}:
            tell("blocked")
            time.sleep(BLOCK_SECONDS)
            answer = b""
        case _:
            answer = json.dumps({"pid": os.getpid()}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(answer)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": answer})


async def lifespan(receive, send):
    while True:
        message = await receive()
        if message["type"] == "lifespan.startup":
            tell("ready")
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return


async def body_of(receive):
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    return body


boot()
