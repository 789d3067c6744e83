"""The bundled example: a plain ASGI application that shows which worker answered.

Start it with ``make demo``. Load the page a few times to see the workers take
turns; change GREETING, send the arbiter HUP, and see the next page say it.
"""

from __future__ import annotations

import asyncio
import html
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping

    Message = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[Message]]
    Send = Callable[[Message], Awaitable[None]]

GREETING = "Hello from procmgr"

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{greeting}</title>
<style>
  :root {{ color-scheme: light dark; --slot: hsl({hue} 70% 45%) }}
  body {{ font: 1.05rem/1.6 system-ui, sans-serif; max-width: 40rem; margin: 12vh auto; padding: 0 1.5rem }}
  h1 {{ font-weight: 600; letter-spacing: -.02em; border-left: .5rem solid var(--slot); padding-left: 1rem }}
  h1 small {{ display: block; font-size: 1rem; font-weight: 400; color: var(--slot) }}
  dl {{ display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1.5rem; font-variant-numeric: tabular-nums }}
  dt {{ opacity: .65 }} dd {{ margin: 0 }}
  code {{ background: hsl({hue} 40% 50% / .14); padding: .1em .4em; border-radius: .3em }}
</style>
<h1>{greeting}<small>worker slot {slot}</small></h1>
<dl>
  <dt>worker pid</dt><dd>{pid}</dd>
  <dt>requests it answered</dt><dd>{count}</dd>
  <dt>arbiter pid</dt><dd>{arbiter}</dd>
</dl>
<p>Reload this page: the workers take turns.</p>
<p>Change <code>GREETING</code> in <code>etc/demo/app.py</code>, run <code>kill -HUP {arbiter}</code> and reload.</p>
<p>Run <code>curl -N {base}/stream</code>, send the HUP meanwhile: the stream ends as if nothing had happened.</p>
</html>
"""


class Demo:
    """One worker's application; its count starts again with each new worker."""

    def __init__(self) -> None:
        self.answered = 0

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] == "lifespan":
            await lifespan(receive, send)
        elif scope["type"] == "http":
            await self.respond(scope, send)
        else:
            raise NotImplementedError(scope["type"])

    async def respond(self, scope: Message, send: Send) -> None:
        """Answer one request."""
        self.answered += 1
        match scope["path"]:
            case "/" if accepts_html(scope):
                await answer(send, 200, "text/html", self.page(scope))
            case "/":
                await answer(send, 200, "text/plain", self.line())
            case "/arbiter":
                await answer(send, 200, "text/plain", f"{os.getppid()}\n")
            case "/stream":
                await stream(send, self.seconds())
            case _:
                await answer(send, 404, "text/plain", "try /, /stream or /arbiter\n")

    def facts(self) -> dict[str, object]:
        """Collect what a reader may see change from one request to the next."""
        slot = os.environ.get("PROCMGR_SLOT", "-")
        return {"slot": slot, "pid": os.getpid(), "count": self.answered, "arbiter": os.getppid()}

    def line(self) -> str:
        """One line for a terminal."""
        return GREETING + ": slot {slot}, pid {pid}, request {count} of this worker\n".format(**self.facts())

    def page(self, scope: Message) -> str:
        """Build the page for a browser, in the colour of the worker's slot."""
        facts = self.facts()
        hue = 210 + 97 * int(str(facts["slot"])) % 360 if str(facts["slot"]).isdigit() else 0
        host = header(scope, b"host") or "127.0.0.1:8000"
        return PAGE.format(greeting=html.escape(GREETING), hue=hue, base=html.escape(f"http://{host}"), **facts)

    async def seconds(self) -> AsyncIterator[str]:
        """Yield one line a second, ten times."""
        for second in range(1, 11):
            yield f"{second:2d} of 10 s, slot {self.facts()['slot']}, pid {os.getpid()}\n"
            await asyncio.sleep(1)


def header(scope: Message, name: bytes) -> str:
    """Give a request header's value, or nothing."""
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name), "")


def accepts_html(scope: Message) -> bool:
    """Tell a browser from a terminal."""
    return "text/html" in header(scope, b"accept")


async def answer(send: Send, status: int, kind: str, body: str) -> None:
    """Send a whole response; the connection closes so that the next request may reach another worker."""
    headers = [(b"content-type", f"{kind}; charset=utf-8".encode()), (b"connection", b"close")]
    content = body.encode()
    headers.append((b"content-length", str(len(content)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content})


async def stream(send: Send, lines: AsyncIterator[str]) -> None:
    """Send a response piece by piece."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    async for line in lines:
        await send({"type": "http.response.body", "body": line.encode(), "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def lifespan(receive: Receive, send: Send) -> None:
    """Answer the server's startup and shutdown."""
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return


app = Demo()
