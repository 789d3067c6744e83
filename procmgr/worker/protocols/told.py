"""The scheme of connections whose proxy tells it before all else, in a PROXY header (`worker.proxy_protocol`)."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from procmgr.worker.protocols.base import Address
    from procmgr.worker.protocols.context import Context, Scope
    from procmgr.worker.protocols.framing import Request
    from procmgr.worker.protocols.http1 import Http1Connection


@cache
def with_told_scheme(kind: type[Http1Connection]) -> type[Http1Connection]:
    """Return the kind of connection that is `kind` and heeds what it was told; without a proxy nobody pays for it."""

    class ToldConnection(kind):  # type: ignore[valid-type, misc] # a class is made of the one that is in use
        __slots__ = ()

        def scope(self, context: Context, request: Request, client: Address | None, server: Address | None) -> Scope:
            scope: Scope = super().scope(context, request, client, server)
            if self.told is not None and self.told.secure:
                scope["scheme"] = "https"
            return scope

    return ToldConnection
