"""The ASGI HTTP connection scope (ASGI HTTP specification, "Connection Scope")."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import unquote

if TYPE_CHECKING:
    from procmgr.worker.protocols.base import Address
    from procmgr.worker.protocols.context import Context, Scope
    from procmgr.worker.protocols.framing import Request


def http_scope(context: Context, request: Request, client: Address | None, server: Address | None) -> Scope:
    """Return the scope of one request, nothing in it shared with another but the state's values."""
    raw_path = request.path
    path = raw_path.decode("ascii")
    if "%" in path:
        path = unquote(path)  # what is not UTF-8 becomes U+FFFD
    root_path = context.root_path
    if root_path:
        path, raw_path = root_path + path, root_path.encode() + raw_path
    scope: Scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.5"},
        "http_version": "1.1" if request.version == b"1.1" else "1.0",
        "server": server,
        "client": client,
        "scheme": context.scheme,
        "method": request.method.decode("ascii"),
        "root_path": root_path,
        "path": path,
        "raw_path": raw_path,
        "query_string": request.query,
        "headers": request.headers.copy(),
    }
    if context.state is not None:
        scope["state"] = context.state.copy()
    return scope
