"""procmgr: a supervisor daemon for Python ASGI applications.

From Python: `run`, or `Server(Config(...))` on a running loop. They are loaded when they are first asked for, so that
`import procmgr` costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from procmgr.embed import Config, Server, run

__all__ = ["Config", "Server", "__version__", "run"]

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from procmgr import embed  # noqa: PLC0415 - loads the server: only for who asks

    value: object = getattr(embed, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
