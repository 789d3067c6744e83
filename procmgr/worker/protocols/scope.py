"""The ASGI connection scopes (ASGI HTTP & WebSocket specification, "Connection Scope")."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote

from procmgr.worker.protocols.framing import METHODS

if TYPE_CHECKING:
    from procmgr.worker.protocols.base import Address
    from procmgr.worker.protocols.context import Context, Scope
    from procmgr.worker.protocols.framing import Request


_ASGI: Final = {"version": "3.0", "spec_version": "2.5"}


def scope_template(*, scheme: str, root_path: str, state: dict[str, Any] | None) -> dict[str, Any]:
    """Return what the scopes of a worker's requests have in common, all keys in place: to copy it is cheap."""
    per_request = ("asgi", "server", "client", "method", "path", "raw_path", "query_string", "headers", "extensions")
    template = {"type": "http", "http_version": "1.1", "scheme": scheme, "root_path": root_path}
    return template | dict.fromkeys(per_request if state is None else (*per_request, "state"))


def http_scope(context: Context, request: Request, client: Address | None, server: Address | None) -> Scope:
    """Return the scope of one request, nothing in it shared with another but the state's and extensions' values."""
    raw_path = request.path
    path = request.text
    if "%" in path:
        path = unquote(path)  # what is not UTF-8 becomes U+FFFD
    root_path = context.root_path
    if root_path:
        path, raw_path = root_path + path, root_path.encode() + raw_path
    scope = context.scope_template.copy()
    scope["asgi"] = _ASGI.copy()
    scope["server"] = server
    scope["client"] = client
    scope["method"] = METHODS[request.method]
    scope["path"] = path
    scope["raw_path"] = raw_path
    scope["query_string"] = request.query
    scope["headers"] = request.headers.copy()
    scope["extensions"] = context.extensions.copy()
    if request.version != b"1.1":
        scope["http_version"] = "1.0"
        del scope["extensions"]["http.response.early_hint"]
    if context.state is not None:
        scope["state"] = context.state.copy()
    return scope


def websocket_scope(scope: Scope, subprotocols: tuple[str, ...]) -> Scope:
    """Return the scope of a WebSocket, made of that of the request which opens it."""
    del scope["method"]
    extensions = {name: value for name, value in scope["extensions"].items() if not name.startswith("http.")}
    scope["type"] = "websocket"
    scope["scheme"] = "wss" if scope["scheme"] == "https" else "ws"
    scope["subprotocols"] = [*subprotocols]
    scope["extensions"] = {**extensions, "websocket.http.response": {}}
    return scope
