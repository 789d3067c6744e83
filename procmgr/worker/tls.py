"""A worker's side of TLS: the context that connections begin with, and their handshakes.

A handshake runs beside the loop's other work and is bounded in time; one that fails is counted, is one line at level
debug, since anybody can have it fail, and nothing else.

Theory of operation of the end. A TLS transport is closed for good by the connection (`protocols.secure`), which knows
what is still to be sent. asyncio would cut it after `ssl_shutdown_timeout`, in the midst of a long response to a slow
client, hence a day.
"""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Final

from procmgr.config.tls import options
from procmgr.errors import AppError
from procmgr.scoreboard import TLS_FAILED
from procmgr.tls import Contexts, Material
from procmgr.worker.access import client_text
from procmgr.worker.app import find, own_traceback
from procmgr.worker.protocols.base import address

if TYPE_CHECKING:
    import logging
    import socket
    from collections.abc import Callable

    from procmgr.config.settings import Settings
    from procmgr.config.tls import TLSSettings
    from procmgr.scoreboard import Row

    Factory = Callable[[TLSSettings, Callable[[], ssl.SSLContext]], ssl.SSLContext]

_DAY: Final = 86_400.0
_SHOWN_CHARACTERS: Final = 200


def context_of(settings: Settings, contexts: Contexts | None) -> ssl.SSLContext | None:
    """Return what connections begin with, None for plain HTTP; raises `AppError` if the user's factory fails."""
    target = settings.tls.ssl_context_factory
    if target is None:
        return contexts.front if contexts else None
    factory = find(target, app_dir=settings.app.app_dir, role="ssl_context_factory")
    if not callable(factory):
        raise AppError(f"ssl_context_factory {target!r} cannot be called")
    return made_by(factory, target, settings.tls, contexts)


def made_by(factory: Factory, name: str, settings: TLSSettings, contexts: Contexts | None) -> ssl.SSLContext:
    """Return what `factory` makes; raises `AppError`."""

    def usual() -> ssl.SSLContext:
        if contexts is None:
            raise ValueError("the usual SSLContext needs ssl_certfile")
        return contexts.default

    try:
        made: object = factory(settings, usual)
    except Exception as error:
        raise AppError(f"ssl_context_factory {name!r} raised {type(error).__name__}", own_traceback(error)) from error
    if not isinstance(made, ssl.SSLContext):
        raise AppError(f"ssl_context_factory {name!r} returned a {type(made).__name__}; expected an ssl.SSLContext")
    return made


def context_alone(settings: Settings, factory: Factory | None) -> ssl.SSLContext | None:
    """Return as `context_of` for a server without an arbiter; raises `ConfigError`, too."""
    found = options(settings.tls, Path.cwd())
    contexts = None
    if found is not None:
        material = Material.read(found.pairs, found.authorities)
        try:
            contexts = Contexts(found, material)
        finally:
            material.close()
    if factory is None:
        return context_of(settings, contexts)
    return made_by(factory, getattr(factory, "__qualname__", "object"), settings.tls, contexts)


class Handshake:
    """Opens accepted connections by a handshake of at most `timeout` seconds."""

    def __init__(self, *, context: ssl.SSLContext, timeout: float, row: Row, log: logging.Logger) -> None:
        self._context = context
        self._timeout = timeout
        self._row = row
        self._log = log

    async def __call__(self, connection: socket.socket, factory: Callable[[], asyncio.BaseProtocol]) -> None:
        """Make a connection of what was accepted; raises `OSError`."""
        peer = connection.getpeername()
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                factory,
                connection,
                ssl=self._context,
                ssl_handshake_timeout=self._timeout,
                ssl_shutdown_timeout=_DAY,
            )
        except OSError as error:
            self._row[TLS_FAILED] += 1
            who = client_text(address(peer)) or "a Unix socket"
            self._log.debug("%s: no TLS: %s", who, _reason(error))
            raise


def _reason(error: OSError) -> str:
    if isinstance(error, ssl.SSLError) and error.reason:
        return error.reason.lower().replace("_", " ")
    return str(error)[:_SHOWN_CHARACTERS] or type(error).__name__
