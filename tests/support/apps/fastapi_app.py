"""A FastAPI application: validation, dependencies with clean-up, sync endpoints in threads, background tasks."""

from __future__ import annotations

import contextlib
import threading
from typing import Annotated

from fastapi import BackgroundTasks, Depends, FastAPI, Header, HTTPException, Request, WebSocket, WebSocketDisconnect
from fastapi.responses import PlainTextResponse, StreamingResponse
from pydantic import BaseModel


@contextlib.asynccontextmanager
async def lifespan(app):
    app.state.sessions = []
    yield {"greeting": "hello"}


app = FastAPI(lifespan=lifespan)


class Item(BaseModel):
    name: str
    price: float


async def session(request: Request):
    sessions = request.app.state.sessions
    sessions.append("open")
    try:
        yield sessions
    finally:
        sessions.append("closed")


@app.get("/")
async def home(request: Request):
    return {"greeting": request.state.greeting}


@app.post("/items/{number}")
async def create(number: int, item: Item, x_token: Annotated[str, Header()]):
    return {"number": number, "name": item.name, "price": item.price, "token": x_token}


@app.get("/sync")
def sync():
    return {"main_thread": threading.current_thread() is threading.main_thread()}


@app.get("/session")
async def with_session(sessions: Annotated[list, Depends(session)]):
    return {"sessions": len(sessions)}


@app.get("/sessions")
async def sessions(request: Request):
    return request.app.state.sessions


@app.get("/teapot")
async def teapot():
    raise HTTPException(418, "short and stout")


@app.get("/later")
async def later(request: Request, tasks: BackgroundTasks):
    tasks.add_task(request.app.state.sessions.append, "task")
    return {"accepted": True}


@app.get("/stream")
def stream():
    return StreamingResponse((f"{number}\n" for number in range(100)), media_type="text/plain")


@app.websocket("/chat/{room}")
async def chat(websocket: WebSocket, room: str, name: str = ""):
    """Greet, send back, deny two rooms, and break in one."""
    if room == "secret":
        await websocket.close()
        return
    if room == "reasons":
        await websocket.send_denial_response(PlainTextResponse("pay first", 402))
        return
    await websocket.accept("v2" if "v2" in websocket.scope["subprotocols"] else None)
    if room == "broken":
        raise RuntimeError("broken on purpose")
    await websocket.send_text(f"{name} in {room}")
    with contextlib.suppress(WebSocketDisconnect):
        while (text := await websocket.receive_text()) != "!close":
            await websocket.send_text(f"said {text}")
        await websocket.close(4001)
