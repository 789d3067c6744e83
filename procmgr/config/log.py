"""The settings of logs: how much is logged, where to, and in what shape."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal, get_args

from procmgr.config.declare import Applies, setting
from procmgr.config.kind import Kind, quoted
from procmgr.config.types import choice, many, path, switch, text
from procmgr.logs import ACCESS_FORMATS, access_format

LogLevel = Literal["critical", "error", "warning", "info", "debug", "trace"]

_LIVE: Final = Applies.LIVE
_ROLL: Final = Applies.ROLL
_RESTART: Final = Applies.RESTART
_PATH: Final = re.compile(r"/[!-~]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class LogSettings:
    """Logs."""

    log_level: LogLevel | None = setting(
        None,
        choice(get_args(LogLevel)),
        _LIVE,
        "Log what is at least this serious.",
        default="info, or what log_config says",
        uvicorn="log_level",
        gunicorn="loglevel",
    )
    log_config: str | None = setting(
        None,
        path("FILE", "logging.toml"),
        _RESTART,
        "Configure Python's logging from this file: .json, .toml, .yaml, or else fileConfig's ini format.",
        uvicorn="log_config",
        gunicorn="logconfig",
    )
    log_file: str | None = setting(
        None,
        path("FILE", "/var/log/procmgr.log"),
        _RESTART,
        "Write diagnostics to this file, opened anew on USR1; - is standard output.",
        flags=("--error-logfile",),
        default="standard error",
        gunicorn="errorlog",
    )
    access_log_file: str | None = setting(
        None,
        path("FILE", "/var/log/access.log"),
        _RESTART,
        "Write access lines to this file, opened anew on USR1; - is standard output.",
        flags=("--access-logfile",),
        default="standard output",
        gunicorn="accesslog",
    )
    access_log: bool = setting(
        True, switch(), _RESTART, "Write a line for each request to standard output.", uvicorn="access_log"
    )
    access_log_format: str = setting(
        "uvicorn",
        Kind(
            metavar="FORMAT",
            wanted=f"{', '.join(ACCESS_FORMATS)} or a template of atoms such as %(h)s",
            text=access_format,
            toml=quoted,
            schema={"type": "string", "minLength": 1},
            example="combined",
        ),
        _ROLL,
        "Write access lines in this shape: uvicorn's, Apache's combined, JSON, or a template of gunicorn's atoms.",
        flags=("--access-logformat",),
        gunicorn="access_log_format",
    )
    access_log_exclude: tuple[str, ...] = setting(
        (),
        many(text("PATH", "a path that begins with /, and may end with *", "/healthz", pattern=_PATH)),
        _ROLL,
        "Write no access line for this path; with * at its end, for all that begin so. May be repeated.",
    )
    use_colors: bool | None = setting(
        None, switch(), _RESTART, "Colour the log.", default="on a terminal", uvicorn="use_colors"
    )
