"""Formatters in uvicorn's look, usable from a log configuration by their dotted path, and the names of levels."""

from __future__ import annotations

import http
import logging
import os
import sys
from copy import copy
from typing import IO, Final, Literal

from procmgr.errors import ConfigError

TRACE: Final = 5
LEVELS: Final = {
    "critical": logging.CRITICAL,
    "error": logging.ERROR,
    "warning": logging.WARNING,
    "info": logging.INFO,
    "debug": logging.DEBUG,
    "trace": TRACE,
}
_RESET: Final = "\x1b[0m"
_BOLD: Final = "\x1b[1m"
_LEVEL_COLORS: Final = {
    TRACE: "\x1b[34m",
    logging.DEBUG: "\x1b[36m",
    logging.INFO: "\x1b[32m",
    logging.WARNING: "\x1b[33m",
    logging.ERROR: "\x1b[31m",
    logging.CRITICAL: "\x1b[91m",
}
_STATUS_COLORS: Final = {1: "\x1b[97m", 2: "\x1b[32m", 3: "\x1b[33m", 4: "\x1b[31m", 5: "\x1b[91m"}

Style = Literal["%", "{", "$"]


def parse_level(level: str | int) -> int:
    """Return the number of a level given by name, in any case, or by number; raises ConfigError."""
    if isinstance(level, int):
        return level
    number = LEVELS.get(level.lower())
    if number is None:
        raise ConfigError(f"log level {level!r} is unknown; write one of {', '.join(LEVELS)}")
    return number


def wants_colors(fd: int, *, use_colors: bool | None = None) -> bool:
    """Tell whether to colour what goes to `fd`: as asked, else only on a terminal that NO_COLOR does not silence."""
    if use_colors is not None:
        return use_colors
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return False
    try:
        return os.isatty(fd)
    except OSError:
        return False


def _stream_fd(stream: IO[str] | None) -> int:
    try:
        return -1 if stream is None else stream.fileno()
    except (OSError, ValueError):  # replaced by an object without a descriptor, or closed
        return -1


class DefaultFormatter(logging.Formatter):
    """`%(levelprefix)s` is the level's name with a colon, padded to line up; coloured where that is wanted."""

    _stream_name = "stderr"
    _format = "%(levelprefix)s %(message)s"

    def __init__(
        self,
        fmt: str | None = None,
        datefmt: str | None = None,
        style: Style = "%",
        use_colors: bool | None = None,  # noqa: FBT001 - a log configuration passes it by name
    ) -> None:
        super().__init__(fmt=fmt or self._format, datefmt=datefmt, style=style)
        self.use_colors = wants_colors(self._default_fd(), use_colors=use_colors)

    def _default_fd(self) -> int:
        return _stream_fd(getattr(sys, self._stream_name))

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - overrides logging's
        """Add this class's fields to a copy: other handlers get the same record."""
        extended = copy(record)
        self.extend(extended)
        return super().formatMessage(extended)

    def extend(self, record: logging.LogRecord) -> None:
        """Set the additional fields on `record`."""
        name = record.levelname
        record.levelprefix = self.paint(name, _LEVEL_COLORS.get(record.levelno)) + ":" + " " * (8 - len(name))

    def paint(self, text: str, color: str | None) -> str:
        """Return `text` in `color` (an SGR sequence) if this formatter colours."""
        return f"{color}{text}{_RESET}" if self.use_colors and color else text


class AccessFormatter(DefaultFormatter):
    """Adds `client_addr`, `request_line` and `status_code` to records with uvicorn's five access arguments."""

    _stream_name = "stdout"
    _format = '%(levelprefix)s %(client_addr)s - "%(request_line)s" %(status_code)s'

    def extend(self, record: logging.LogRecord) -> None:
        """Set the fields; a record without the five arguments has its message as request line."""
        super().extend(record)
        arguments = record.args
        if not (isinstance(arguments, tuple) and len(arguments) == 5):
            arguments = ("-", "", record.getMessage(), "", 0)
        client, method, path, version, status = arguments
        line = f"{method} {path} HTTP/{version}" if method else str(path)
        record.client_addr = client
        record.request_line = self.paint(line, _BOLD)
        record.status_code = self._status(status)

    def _status(self, status: object) -> str:
        if not isinstance(status, int) or not status:
            return str(status or "-")
        try:
            phrase = http.HTTPStatus(status).phrase
        except ValueError:
            phrase = ""
        return self.paint(f"{status} {phrase}", _STATUS_COLORS.get(status // 100))
