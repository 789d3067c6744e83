"""The groups of settings for development and for the application's own part in supervision; see `settings`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from procmgr.config.declare import Applies, setting
from procmgr.config.types import many, path, seconds, switch, target, text

_LIVE: Final = Applies.LIVE
_ROLL: Final = Applies.ROLL
_RESTART: Final = Applies.RESTART


@dataclass(frozen=True, slots=True, kw_only=True)
class DevelopmentSettings:
    """Development."""

    reload: bool = setting(
        False,
        switch(),
        _RESTART,
        "Reload when the code changes; meant for development, where nobody is to be served by old code.",
        uvicorn="reload",
        gunicorn="reload",
    )
    reload_dirs: tuple[str, ...] = setting(
        (),
        many(path("DIRECTORY", "src"), separator=":"),
        _RESTART,
        "With reload, look for changes in this directory and below.",
        flag="--reload-dir",
        default="the working directory",
        uvicorn="reload_dirs",
    )
    reload_includes: tuple[str, ...] = setting(
        (),
        many(text("PATTERN", "a pattern of file names", "*.html"), separator=None),
        _RESTART,
        "With reload, look at files that match this pattern too, or below this directory; *.py is always included.",
        flag="--reload-include",
        default="*.py",
        uvicorn="reload_includes",
        gunicorn="reload_extra_files",
    )
    reload_excludes: tuple[str, ...] = setting(
        (),
        many(text("PATTERN", "a pattern of file names", "test_*.py"), separator=None),
        _RESTART,
        "With reload, do not look at files that match this pattern or lie in this directory.",
        flag="--reload-exclude",
        default=".* .py[cod] .sw.* ~*",
        uvicorn="reload_excludes",
    )
    reload_delay: float = setting(
        0.25,
        seconds(3600),
        _RESTART,
        "With reload, wait so long after a change before looking for the next one.",
        uvicorn="reload_delay",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class HookSettings:
    """Hooks."""

    on_start: str | None = setting(None, target(), _LIVE, "Call this once procmgr listens, in a process of its own.")
    on_ready: str | None = setting(
        None, target(), _LIVE, "Call this once every worker has been ready, in a process of its own."
    )
    on_reload: str | None = setting(
        None, target(), _LIVE, "Call this when a reload has ended, well or not, in a process of its own."
    )
    on_stop: str | None = setting(None, target(), _LIVE, "Call this when a stop begins, in a process of its own.")
    worker_exit: str | None = setting(
        None, target(), _LIVE, "Call this when a worker is gone, in a process of its own."
    )
    pre_fork: str | None = setting(
        None, target(), _ROLL, "With preload, call this before each worker is forked, where the application is."
    )
    post_fork: str | None = setting(
        None, target(), _ROLL, "Call this in each new worker before the application is imported."
    )
    worker_ready: str | None = setting(
        None, target(), _ROLL, "Call this in each worker once it serves, on a thread of its own."
    )
