"""The kind of the setting that names an event loop."""

from __future__ import annotations

from typing import Final

from procmgr.config.kind import Kind
from procmgr.config.types import choice, target

_LOOPS: Final = ("auto", "asyncio", "uvloop")
_WINDOWS: Final = "that is for Windows, procmgr runs on Linux"


def loop() -> Kind[str]:
    """Return the kind that is the name of a loop, or the place of a function that makes one."""
    refused = dict.fromkeys(("iocp", "winloop", "proactor"), _WINDOWS) | {
        "zuvloop": "that is not available in this version"
    }
    words, place = choice(_LOOPS, refused), target()

    def read(text: str) -> str:
        return place.text(text) if ":" in text else words.text(text)

    return Kind(
        metavar="[auto|asyncio|uvloop|MODULE:ATTR]",
        wanted="auto, asyncio, uvloop, or a function that makes a loop, as in main:make_loop",
        text=read,
        toml=place.toml,
        schema={"anyOf": [words.schema, place.schema]},
        example="asyncio",
    )
