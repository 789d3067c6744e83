"""Configuring `logging` from the settings: procmgr's own loggers, or what the user's log configuration says.

Rules: without a log configuration procmgr touches only its own two loggers. With one, it is applied as it stands, and
what it says of `uvicorn`, `uvicorn.error` and `uvicorn.access` holds for `procmgr`, `procmgr.error` and
`procmgr.access` where it does not name those itself; uvicorn need not be installed for its formatters to be named.
"""

from __future__ import annotations

import configparser
import importlib
import json
import logging
import logging.config
import os
import tomllib
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from procmgr.errors import ConfigError
from procmgr.logs.formatters import TRACE, AccessFormatter, DefaultFormatter, parse_level, wants_colors
from procmgr.logs.journal import JournalHandler, journal_reads
from procmgr.logs.writer import GuardedHandler, LineWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from contextlib import AbstractContextManager

_STDERR: Final = 2
ERROR_LOGGER: Final = "procmgr.error"
ACCESS_LOGGER: Final = "procmgr.access"
_MIRRORED: Final = {"uvicorn": "procmgr", "uvicorn.error": ERROR_LOGGER, "uvicorn.access": ACCESS_LOGGER}
_FORMATTERS: Final = {
    "uvicorn.logging.ColourizedFormatter": "procmgr.logs.DefaultFormatter",
    "uvicorn.logging.DefaultFormatter": "procmgr.logs.DefaultFormatter",
    "uvicorn.logging.AccessFormatter": "procmgr.logs.AccessFormatter",
}
_OURS: Final = frozenset({"procmgr.logs.DefaultFormatter", "procmgr.logs.AccessFormatter"})


@dataclass(frozen=True, slots=True, kw_only=True)
class LogSetup:
    """Where log lines go.

    `access` is None if access lines are switched off. If `access_via_logging`, they are to be records of
    `procmgr.access`; otherwise they may be rendered straight to `access`, coloured if `access_colors`.
    """

    access: LineWriter | None
    access_via_logging: bool
    access_colors: bool
    error_writer: LineWriter
    journal: JournalHandler | None = None

    def identify(self, **fields: object) -> None:
        """Have each diagnostic of this process carry `fields`, where there are fields: in the journal."""
        if self.journal is not None:
            self.journal.identify(fields)

    def about(self, fields: Mapping[str, object]) -> AbstractContextManager[None]:
        """Have the diagnostics within carry `fields`, likewise."""
        return nullcontext() if self.journal is None else self.journal.about(fields)

    def replace(self, fds: Sequence[int]) -> None:
        """Write to other files from now on: `fds` are the new ones for diagnostics and access lines, and are consumed.

        Each takes over its predecessor's number, so whoever else holds that number in this process follows.
        """
        writers = (self.error_writer, self.access)
        for fd, writer in zip(fds, writers, strict=True):
            if writer is not None:
                os.dup2(fd, writer.fileno(), inheritable=writer.fileno() <= _STDERR)
            os.close(fd)

    def after_fork(self) -> None:
        """Give a child buffers of its own."""
        self.error_writer.after_fork()
        if self.access is not None:
            self.access.after_fork()


class _OwnHandler(GuardedHandler):
    """A handler that `configure` made, which can tell whether it is still as made."""

    def __init__(self, writer: LineWriter, formatter: logging.Formatter) -> None:
        super().__init__(writer)
        self.setFormatter(formatter)
        self._made_with = formatter

    @property
    def customised(self) -> bool:
        return self.formatter is not self._made_with or bool(self.filters) or self.level != logging.NOTSET


def configure(
    *,
    level: str | int | None = None,
    access: bool = True,
    use_colors: bool | None = None,
    log_config: str | Path | dict[str, Any] | None = None,
    stdout: int = 1,
    stderr: int = 2,
) -> LogSetup:
    """Set up `logging` and return the writers behind it; may be called again.

    `level` None means info, or whatever `log_config` says. `log_config` is a dict for `logging.config.dictConfig`, or a
    file: .json, .toml, .yaml and .yml hold such a dict, any other the ini format of `fileConfig`. Raises ConfigError.
    """
    logging.addLevelName(TRACE, "TRACE")
    number = None if level is None else parse_level(level)
    error_writer, access_writer = LineWriter(stderr), LineWriter(stdout)
    colors = wants_colors(stdout, use_colors=use_colors)
    _reset_loggers()
    to_journal = None
    if log_config is None:
        if journal_reads(stderr, os.environ):
            to_journal = JournalHandler(error_writer)
        error_colors = wants_colors(stderr, use_colors=use_colors)
        to_file = _OwnHandler(error_writer, DefaultFormatter(use_colors=error_colors))
        _attach(ERROR_LOGGER, to_journal or to_file)
        _attach(ACCESS_LOGGER, _OwnHandler(access_writer, AccessFormatter(use_colors=colors)))
        number = logging.INFO if number is None else number
    else:
        _apply(log_config, use_colors)
    if number is not None:
        set_level(number)
    if not access:
        _clear(logging.getLogger(ACCESS_LOGGER))
        logging.getLogger(ACCESS_LOGGER).propagate = False
    return LogSetup(
        access=access_writer if access else None,
        access_via_logging=log_config is not None,
        access_colors=colors,
        error_writer=error_writer,
        journal=to_journal,
    )


def set_level(level: str | int) -> None:
    """Set the level of procmgr's loggers; raises ConfigError for an unknown one."""
    number = parse_level(level)
    for name in (ERROR_LOGGER, ACCESS_LOGGER):
        logging.getLogger(name).setLevel(number)


def access_customised() -> bool:
    """Tell whether somebody, the application at its import say, has changed the access logger that `configure` made.

    Then access lines must be records of `procmgr.access`, whatever `LogSetup.access_via_logging` says.
    """
    logger = logging.getLogger(ACCESS_LOGGER)
    ours = [handler for handler in logger.handlers if isinstance(handler, _OwnHandler) and not handler.customised]
    return ours != logger.handlers or not ours or bool(logger.filters) or logger.propagate or logger.disabled


def reopen_files() -> None:
    """Open every file of a `logging.FileHandler` anew by its path, for whoever renamed it (logrotate(8))."""
    loggers = [logging.getLogger(), *logging.root.manager.loggerDict.values()]
    handlers = {handler for logger in loggers if isinstance(logger, logging.Logger) for handler in logger.handlers}
    for handler in handlers:
        if isinstance(handler, logging.FileHandler):
            _reopen(handler)


def _reopen(handler: logging.FileHandler) -> None:
    if handler.stream is None:  # opened with its first record
        return
    try:
        # Before the old one is closed: without the right to open it again, the old file is better than none.
        fresh = Path(handler.baseFilename).open("a", encoding=handler.encoding, errors=handler.errors)  # noqa: SIM115 - the handler's
    except OSError as error:
        reason = error.strerror
        logging.getLogger(ERROR_LOGGER).error(
            "cannot reopen log file %s: %s; keeping the old", handler.baseFilename, reason
        )
        return
    old = handler.setStream(fresh)
    if old is not None:
        old.close()


def _attach(name: str, handler: logging.Handler) -> None:
    logger = logging.getLogger(name)
    logger.addHandler(handler)
    logger.propagate = False


def _reset_loggers() -> None:
    """Make procmgr's loggers what `logging.getLogger` would have made them."""
    for name in _MIRRORED.values():
        logger = logging.getLogger(name)
        _clear(logger)
        logger.setLevel(logging.NOTSET)
        logger.propagate = True
        logger.disabled = False


def _clear(logger: logging.Logger) -> None:
    for handler in tuple(logger.handlers):
        logger.removeHandler(handler)
        if isinstance(handler, JournalHandler):  # it owns a descriptor
            handler.close()
    for log_filter in tuple(logger.filters):
        logger.removeFilter(log_filter)


def _apply(source: str | Path | dict[str, Any], use_colors: bool | None) -> None:  # noqa: FBT001 - three-valued
    origin = "log_config" if isinstance(source, dict) else f"log_config {source}"
    try:
        if isinstance(source, dict):
            named = _apply_dict(source, use_colors)
        elif Path(source).suffix in _DICT_FILES:
            named = _apply_dict(_load(Path(source)), use_colors)
        else:
            named = _apply_ini(Path(source))
    except OSError as error:
        where = error.filename if error.filename is not None else origin
        raise ConfigError(f"{origin}: {where}: {error.strerror or error}") from error
    except (ValueError, TypeError, AttributeError, ImportError, LookupError, RuntimeError, configparser.Error) as error:
        raise ConfigError(f"{origin}: {_one_line(error)}") from error
    _mirror(named)


def _one_line(error: BaseException) -> str:
    # dictConfig says "Unable to configure handler 'x'" and keeps the reason in the cause.
    said, cause = str(error), str(error.__cause__ or "")
    if isinstance(error, KeyError):  # whose text is the key alone
        said = f"there is no {said}"
    text = f"{said}: {cause}" if cause not in said else said
    return " ".join(text.split()) or type(error).__name__


def _load(path: Path) -> dict[str, Any]:
    loaded = _DICT_FILES[path.suffix](path.read_bytes())
    if not isinstance(loaded, dict):
        raise TypeError("the file holds no table of settings for logging.config.dictConfig")
    return loaded


def _load_toml(data: bytes) -> object:
    return tomllib.loads(data.decode())


def _load_yaml(data: bytes) -> object:
    try:
        yaml = importlib.import_module("yaml")
    except ImportError as error:
        raise ValueError("reading YAML needs PyYAML; install it, or write the file as JSON or TOML") from error
    try:
        return yaml.safe_load(data)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


_DICT_FILES: Final[dict[str, Callable[[bytes], object]]] = {
    ".json": json.loads,
    ".toml": _load_toml,
    ".yaml": _load_yaml,
    ".yml": _load_yaml,
}


def _apply_dict(given: dict[str, Any], use_colors: bool | None) -> set[str]:  # noqa: FBT001 - three-valued
    """Apply a dictConfig; return the names of the loggers in it."""
    config = deepcopy(given)
    for formatter in config.get("formatters", {}).values():
        for key in ("()", "class"):
            if isinstance(formatter.get(key), str):
                formatter[key] = _FORMATTERS.get(formatter[key], formatter[key])
        if formatter.get("()") in _OURS and use_colors is not None:
            formatter["use_colors"] = use_colors
    logging.config.dictConfig(config)
    return set(config.get("loggers", {}))


def _apply_ini(path: Path) -> set[str]:
    """Apply a fileConfig; return the names of the loggers in it."""
    parser = configparser.RawConfigParser()
    parser.read_string(path.read_text(encoding="utf-8"), source=str(path))
    for section in parser.sections():
        name = parser.get(section, "class", fallback="")
        if section.startswith("formatter_") and name in _FORMATTERS:
            parser.set(section, "class", _FORMATTERS[name])
    logging.config.fileConfig(parser, disable_existing_loggers=False)
    return {parser.get(section, "qualname", fallback="") for section in parser.sections()}


def _mirror(named: set[str]) -> None:
    """Give procmgr's loggers what the configuration says of uvicorn's, unless it names procmgr's own."""
    for theirs, ours in _MIRRORED.items():
        target = logging.getLogger(ours)
        target.disabled = False  # dictConfig disables loggers that it does not name
        if theirs not in named or ours in named:
            continue
        source = logging.getLogger(theirs)
        for handler in source.handlers:
            target.addHandler(handler)
        for log_filter in source.filters:
            target.addFilter(log_filter)
        target.setLevel(source.level)
        target.propagate = source.propagate
