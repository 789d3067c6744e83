"""An application with much data made at its import: half of it a numpy array, half of it Python objects.

`HEAVY_KIND` says of which kind the objects are: `records` (dicts, tuples, short strings, numbers) or `documents` (texts
of 16 KiB). A request reads all of it once. Run as a program it is the bare fork: a child that says its pid on the
socket given as argument, then reads all and says so, forked again whenever it dies.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys

import numpy as np

HALF = (int(os.environ.get("HEAVY_MIB", "100")) << 20) // 2


def record(number):
    """Make some small objects."""
    tags = (f"tag-{number % 97}-{number}", f"group-{number}")
    return {"id": number, "name": f"customer number {number}", "score": number / 7, "tags": tags}


def size(thing):
    """Count the bytes of an object and of what it holds."""
    held = thing.values() if isinstance(thing, dict) else thing if isinstance(thing, tuple) else ()
    return sys.getsizeof(thing) + sum(map(size, held))


def document(number):
    """Make one large object."""
    return f"{number:016}" * 1024


def fill(make):
    """Make objects until they are half of the data."""
    made, total = [], 0
    while total < HALF:
        made.append(make(len(made)))
        total += size(made[-1])
    return made


array = np.random.default_rng(1).random(HALF // 8)
objects = fill({"records": record, "documents": document}[os.environ.get("HEAVY_KIND", "records")])


def read():
    """Look at every object once."""
    total = float(array.sum())
    for each in objects:
        for value in each.values() if isinstance(each, dict) else (each,):
            total += sum(map(len, value)) if isinstance(value, tuple) else len(str(value)[:1])
    return total


async def app(scope, receive, send):
    """Read all and tell which process did."""
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": f"{message['type']}.complete"})
            if message["type"] == "lifespan.shutdown":
                return
    read()
    body = str(os.getpid()).encode()
    await send(
        {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]},
    )
    await send({"type": "http.response.body", "body": body})


def fork_for_ever(path):
    """Fork a child, and another whenever it dies, until the parent of all is gone."""
    gc.freeze()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.connect(path)
        while True:
            pid = os.fork()
            if pid == 0:
                sock.send(str(os.getpid()).encode())
                read()  # as the worker has that is killed: its own copies have to be torn down
                sock.send(b"read")
                signal.pause()
            os.waitpid(pid, 0)


if __name__ == "__main__":
    fork_for_ever(sys.argv[1])
