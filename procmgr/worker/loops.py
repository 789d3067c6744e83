"""Event loops: the one that is named, or one that the user's own function makes."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from procmgr.errors import AppError
from procmgr.worker.app import find, one_line, own_traceback

if TYPE_CHECKING:
    from collections.abc import Callable

    from procmgr.config.settings import AppSettings


def loop_factory(settings: AppSettings) -> Callable[[], asyncio.AbstractEventLoop]:
    """Return what makes the loop; that, and calling it, raises `AppError` if it is the user's and cannot be used."""
    name = settings.loop
    if ":" in name:
        return _own(find(name, app_dir=settings.app_dir, role="loop"), name)
    if name == "asyncio":
        return asyncio.new_event_loop
    import uvloop  # noqa: PLC0415 - only where it is used; the arbiter has imported it then

    return uvloop.new_event_loop


def _own(factory: object, name: str) -> Callable[[], asyncio.AbstractEventLoop]:
    if not callable(factory):
        raise AppError(f"loop {name!r} cannot be called")

    def make() -> asyncio.AbstractEventLoop:
        try:
            made: object = factory()
        except Exception as error:
            raise AppError(f"loop {name!r} failed: {one_line(error)}", own_traceback(error)) from error
        if not isinstance(made, asyncio.AbstractEventLoop):
            raise AppError(f"loop {name!r} returned a {type(made).__name__}; expected an event loop")
        return made

    return make
