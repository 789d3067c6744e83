"""Which protocol a connection may change to, as the settings say; loads what that needs and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

from procmgr.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from procmgr.config.websocket import WebSocketSettings
    from procmgr.worker.cycle import Cycle
    from procmgr.worker.protocols.frames import MakeCodec
    from procmgr.worker.protocols.framing import Request
    from procmgr.worker.protocols.http1 import Http1Connection


def upgrade_for(settings: WebSocketSettings) -> Callable[[Http1Connection, Request], Cycle | None] | None:
    """Return a context's `upgrade`; raises `ConfigError` if the library is not installed."""
    if settings.ws == "none":
        return None
    from procmgr.worker.protocols.websocket_connection import WebSocketOptions, upgrader  # noqa: PLC0415 - see above

    options = WebSocketOptions(
        max_size=settings.ws_max_size,
        max_queue=settings.ws_max_queue,
        ping_interval=settings.ws_ping_interval,
        ping_timeout=settings.ws_ping_timeout,
        deflate=settings.ws_per_message_deflate,
    )
    return upgrader(_codec(settings), options)


def _codec(settings: WebSocketSettings) -> MakeCodec:
    if settings.ws != "wsproto":
        from procmgr.worker.protocols.websockets_codec import WebsocketsCodec  # noqa: PLC0415 - see above

        return WebsocketsCodec
    try:
        from procmgr.worker.protocols.wsproto_codec import WsprotoCodec  # noqa: PLC0415 - see above
    except ImportError:
        raise ConfigError("ws: wsproto is not installed; install procmgr[wsproto]") from None
    return WsprotoCodec
