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
from procmgr.logs.template import ACCESS_FORMATS, ATOMS, COMBINED, Atom, access_format, read_template
from procmgr.logs.writer import GuardedHandler, LineWriter

__all__ = [
    "ACCESS_FORMATS",
    "ACCESS_LOGGER",
    "ATOMS",
    "COMBINED",
    "ERROR_LOGGER",
    "TRACE",
    "AccessFormatter",
    "Atom",
    "DefaultFormatter",
    "GuardedHandler",
    "LineWriter",
    "LogSetup",
    "access_customised",
    "access_format",
    "configure",
    "parse_level",
    "read_template",
    "reopen_files",
    "set_level",
    "wants_colors",
]
