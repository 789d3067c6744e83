"""Logging: the guarded writer to file descriptors, uvicorn's look, and the configuration of `logging`.

Diagnostics go to the logger `procmgr.error` (stderr), access lines to `procmgr.access` (stdout).
"""

from procmgr.logs.formatters import TRACE, AccessFormatter, DefaultFormatter, parse_level, wants_colors
from procmgr.logs.setup import (
    ACCESS_LOGGER,
    ERROR_LOGGER,
    LogSetup,
    access_customised,
    configure,
    reopen_files,
    set_level,
)
from procmgr.logs.writer import GuardedHandler, LineWriter

__all__ = [
    "ACCESS_LOGGER",
    "ERROR_LOGGER",
    "TRACE",
    "AccessFormatter",
    "DefaultFormatter",
    "GuardedHandler",
    "LineWriter",
    "LogSetup",
    "access_customised",
    "configure",
    "parse_level",
    "reopen_files",
    "set_level",
    "wants_colors",
]
