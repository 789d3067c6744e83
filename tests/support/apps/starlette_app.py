"""A Starlette application with what tends to break under a server: middleware, streams, files, background tasks."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import tempfile
from pathlib import Path

from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, StreamingResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.websockets import WebSocketDisconnect

FILE_BYTES = 300_000
_FILE = b"0123456789" * (FILE_BYTES // 10)


class Stamp(BaseHTTPMiddleware):
    async def dispatch(self, request, call_next):
        response = await call_next(request)
        response.headers["x-stamp"] = request.method
        return response


async def home(request):
    return PlainTextResponse("hello")


async def echo(request):
    body = await request.body()
    return JSONResponse(
        {
            "method": request.method,
            "path": request.url.path,
            "query": request.url.query,
            "body": body.decode("latin-1"),
            "client": request.client.host,
            "started": request.state.started,
        }
    )


async def upload(request):
    """Count a body chunk by chunk."""
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
    return PlainTextResponse(str(size))


async def form(request):
    """Tell what a form has: its fields, and of its files the name, the type, the size and a digest."""
    told = []
    async with request.form() as fields:
        for name, value in fields.multi_items():
            if isinstance(value, str):
                told.append([name, value])
            else:
                digest = hashlib.sha256(await value.read()).hexdigest()
                told.append([name, value.filename, value.content_type, value.size, digest])
    return JSONResponse(told)


async def stream(request):
    async def numbers():
        for number in range(100):
            yield f"{number}\n"
            await asyncio.sleep(0)

    return StreamingResponse(numbers(), media_type="text/plain")


async def endless(request):
    """Stream until the client goes; say so through the state."""
    gone = request.app.state.client_gone

    async def forever():
        try:
            while True:
                yield b"x" * 1000
                await asyncio.sleep(0)
        finally:
            gone.set()

    return StreamingResponse(forever())


async def gone(request):
    """Answer once the client of /endless has gone."""
    await request.app.state.client_gone.wait()
    return PlainTextResponse("gone")


async def background(request):
    """Answer at once and work afterwards."""
    state = request.app.state
    return PlainTextResponse("accepted", background=BackgroundTask(state.worked.set))


async def worked(request):
    """Answer once the background task of /background has run."""
    await request.app.state.worked.wait()
    return PlainTextResponse("worked")


async def file(request):
    return FileResponse(request.state.file, filename="numbers.bin")


async def broken(request):
    raise RuntimeError("broken on purpose")


async def inner(request):
    return PlainTextResponse(f"{request.scope['root_path']}|{request.url_for('inner')}")


async def chat(websocket):
    """Greet, send back, deny two rooms, and break in one."""
    room = websocket.path_params["room"]
    if room == "secret":
        await websocket.close()
        return
    if room == "reasons":
        await websocket.send_denial_response(PlainTextResponse("pay first", 402))
        return
    await websocket.accept("v2" if "v2" in websocket.scope["subprotocols"] else None)
    if room == "broken":
        raise RuntimeError("broken on purpose")
    await websocket.send_text(f"{websocket.query_params['name']} in {room}")
    with contextlib.suppress(WebSocketDisconnect):
        while (text := await websocket.receive_text()) != "!close":
            await websocket.send_text(f"said {text}")
        await websocket.close(4001)


@contextlib.asynccontextmanager
async def lifespan(app):
    app.state.client_gone = asyncio.Event()
    app.state.worked = asyncio.Event()
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "numbers.bin"
        path.write_bytes(_FILE)
        yield {"started": True, "file": str(path)}


app = Starlette(
    lifespan=lifespan,
    middleware=[Middleware(Stamp)],
    routes=[
        Route("/", home),
        Route("/echo", echo, methods=["GET", "POST", "PUT"]),
        Route("/upload", upload, methods=["POST"]),
        Route("/form", form, methods=["POST"]),
        Route("/stream", stream),
        Route("/endless", endless),
        Route("/gone", gone),
        Route("/background", background),
        Route("/worked", worked),
        Route("/file", file),
        Route("/broken", broken),
        WebSocketRoute("/chat/{room}", chat),
        Mount("/sub", routes=[Route("/inner", inner, name="inner")]),
    ],
)
