"""An application that tells, while it is imported, which rights it has.

It imports nothing that the daemon has not imported already: without rights the interpreter's own library may be out of
reach.
"""

from __future__ import annotations

import os

from support.stage import tell

tell("rights", uids=os.getresuid(), gids=os.getresgid(), groups=os.getgroups())


async def app(scope, receive, send):
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})


def told(event):
    """A hook: what it has to say was said by the import."""
