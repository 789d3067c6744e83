"""A FastAPI application: validation, dependencies with clean-up, sync endpoints in threads, background tasks."""

from __future__ import annotations

import contextlib
import threading
from typing import Annotated

from fastapi import BackgroundTasks, Depends, FastAPI, Header, HTTPException, Request
from fastapi.responses import StreamingResponse
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
