"""A FastAPI application, for the row in which the framework does most of the work."""

from __future__ import annotations

from fastapi import FastAPI

app = FastAPI()


@app.get("/")
async def hello() -> dict[str, str]:
    """Answer a little JSON."""
    return {"hello": "world"}
