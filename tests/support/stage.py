"""The application's side of `support.probe`: tell the test where this worker is, and stay there until it says go."""

from __future__ import annotations

import asyncio
import json
import os
import socket


def tell(name: str, **fields: object) -> None:
    """Tell the test, and go on."""
    _say(name, fields).close()


def hold(name: str, **fields: object) -> None:
    """Tell the test, and block the whole thread (and so the event loop) until it says go."""
    with _say(name, fields) as sock:
        sock.recv(1)


async def stay(name: str, **fields: object) -> None:
    """Tell the test, and wait until it says go; the event loop runs on."""
    sock = _say(name, fields)
    try:
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_recv(sock, 1)
    finally:
        sock.close()


def identity() -> dict[str, object]:
    """Return who this worker is."""
    names = {"slot": "PROCMGR_SLOT", "worker_id": "PROCMGR_WORKER_ID", "generation": "PROCMGR_GENERATION"}
    return {"pid": os.getpid(), **{key: os.environ.get(name, "") for key, name in names.items()}}


def _say(name: str, fields: dict[str, object]) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.connect(os.environ["PROBE"])
    sock.sendall(json.dumps({"name": name, **identity(), **fields}).encode() + b"\n")
    return sock
