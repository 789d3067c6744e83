"""Where settings come from: the command line, the environment, a file; each read into a layer of checked values.

Layers, highest first: command line, `PROCMGR_*`, `UVICORN_*`, the variables that platforms share (`WEB_CONCURRENCY`),
file. An empty variable counts as unset. A relative path in a file counts from the working directory, as everywhere.
"""

from __future__ import annotations

import difflib
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import tomli

from procmgr.config.foreign import explain
from procmgr.config.kind import BadValue, show
from procmgr.config.settings import TABLE
from procmgr.errors import ConfigError, ProcmgrError, UsageError

if TYPE_CHECKING:
    from procmgr.config.declare import Entry
    from procmgr.config.kind import Kind

CONFIG_VARIABLE: Final = "PROCMGR_CONFIG"
SYSTEM_FILE: Final = Path("/etc/procmgr/procmgr.toml")
# Set by procmgr in its workers, and so in whatever they start.
_IDENTITY: Final = frozenset({"PROCMGR_SLOT", "PROCMGR_WORKER_ID", "PROCMGR_GENERATION"})
_PLACE: Final = re.compile(r"(.*?) \(at line (\d+), column (\d+)\)", re.DOTALL)
_MAX_FILE_BYTES: Final = 1 << 20


class Level(IntEnum):
    """How near to the user a value was given; the lowest number wins."""

    COMMAND_LINE = 0
    ENVIRONMENT = 1
    UVICORN = 2
    SHARED = 3
    FILE = 4
    DEFAULT = 5


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a value came from; `where` is the flag, the variable or the file."""

    level: Level
    where: str

    def refuse(self, text: str) -> ProcmgrError:
        """Return the error for a mistake that was made here."""
        return UsageError(text) if self.level is Level.COMMAND_LINE else ConfigError(text)

    def __str__(self) -> str:
        return self.where


DEFAULT: Final = Origin(Level.DEFAULT, "default")


@dataclass(frozen=True, slots=True)
class Given:
    """A checked value and where it came from."""

    value: object
    origin: Origin


Layer = Mapping[str, Given]


@dataclass(frozen=True, slots=True)
class File:
    """A configuration file: its path, what it is called in messages, and its keys as they are spelt there."""

    path: Path
    shown: str
    keys: Mapping[str, object]


def command_line(values: Mapping[str, object]) -> Layer:
    """Return the layer of what was typed; raises `UsageError`."""
    return {
        name: read(
            TABLE[name], value, Origin(Level.COMMAND_LINE, "the command line" if name == "app" else TABLE[name].flag)
        )
        for name, value in values.items()
    }


def environment(environ: Mapping[str, str]) -> tuple[list[Layer], list[str]]:
    """Return the layers of the environment, highest first, and what there is to say; raises `ConfigError`."""
    own = {entry.name: entry.variable for entry in TABLE.values()}
    uvicorn = {
        entry.name: f"UVICORN_{entry.setting.uvicorn.upper()}" for entry in TABLE.values() if entry.setting.uvicorn
    }
    shared = {entry.name: variable for entry in TABLE.values() for variable in entry.setting.variables}
    levels = {Level.ENVIRONMENT: own, Level.UVICORN: uvicorn, Level.SHARED: shared}
    layers = [_variables(environ, names, level) for level, names in levels.items()]
    return layers, [*_borrowed(layers[1]), *_not_read(environ, {*own.values(), *uvicorn.values()})]


def _variables(environ: Mapping[str, str], names: Mapping[str, str], level: Level) -> Layer:
    return {
        name: read(TABLE[name], environ[variable], Origin(level, variable))
        for name, variable in names.items()
        if environ.get(variable)
    }


def _borrowed(layer: Layer) -> list[str]:
    if not layer:
        return []
    theirs = ", ".join(str(given.origin) for given in layer.values())
    return [f"read {theirs}; procmgr's own names are {', '.join(TABLE[name].variable for name in layer)}"]


def _not_read(environ: Mapping[str, str], known: set[str]) -> list[str]:
    notes = []
    for variable in sorted(environ):
        program, _, name = variable.partition("_")
        if program == "PROCMGR" and variable not in known | _IDENTITY | {CONFIG_VARIABLE}:
            notes.append(f"{variable} is not a setting{did_you_mean(variable, sorted(known))}")
        elif program == "UVICORN" and variable not in known and environ[variable] and (why := explain(name)):
            notes.append(f"{variable} is not read: it {why}")
    return notes


def find(config: Path | None, environ: Mapping[str, str], cwd: Path, *, system: Path = SYSTEM_FILE) -> File | None:
    """Return the configuration file in force, read; None if there is none.

    Raises `UsageError` for a bad --config, `ConfigError` for anything else that is wrong with it.
    """
    if config is not None:
        return _named(config, cwd, Origin(Level.COMMAND_LINE, "--config"))
    if environ.get(CONFIG_VARIABLE):
        return _named(Path(environ[CONFIG_VARIABLE]), cwd, Origin(Level.ENVIRONMENT, CONFIG_VARIABLE))
    if (own := cwd / "procmgr.toml").is_file():
        return File(own, own.name, _load(own, own.name))
    project = cwd / "pyproject.toml"
    if project.is_file() and (keys := _tool_table(_load(project, project.name))) is not None:
        return File(project, project.name, keys)
    return File(system, str(system), _load(system, str(system))) if system.is_file() else None


def _named(config: Path, cwd: Path, origin: Origin) -> File:
    path, shown = cwd / config, str(config)
    if config.suffix == ".py":
        raise origin.refuse(
            f"{origin}: {shown} is Python; expected a TOML file, as --from-gunicorn makes of gunicorn's"
        )
    try:
        regular = not stat.S_ISDIR(path.stat().st_mode)
    except OSError as error:
        raise origin.refuse(f"{origin}: {shown}: {error.strerror}; expected a TOML file") from None
    if not regular:
        raise origin.refuse(f"{origin}: {shown} is a directory; expected a TOML file")
    document = _load(path, shown)
    if path.name != "pyproject.toml":
        return File(path, shown, document)
    keys = _tool_table(document)
    if keys is None:
        raise origin.refuse(f"{origin}: {shown} has no table [tool.procmgr]")
    return File(path, shown, keys)


def _tool_table(document: Mapping[str, object]) -> Mapping[str, object] | None:
    tool = document.get("tool")
    table = tool.get("procmgr") if isinstance(tool, dict) else None
    return table if isinstance(table, dict) else None


def _load(path: Path, shown: str) -> Mapping[str, object]:
    try:
        with path.open("rb") as file:
            raw = file.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{shown}: {error.strerror}") from None
    if len(raw) > _MAX_FILE_BYTES:
        raise ConfigError(f"{shown} has more than {_MAX_FILE_BYTES} bytes, which is no configuration")
    try:
        return tomli.loads(raw.decode())
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{shown}:{line}: not UTF-8, as TOML must be") from None
    except ValueError as error:  # TOMLDecodeError, or int() on too many digits
        raise ConfigError(_syntax_error(shown, str(error), raw.count(b"\n") + 1)) from None
    except RecursionError:
        raise ConfigError(f"{shown} is nested too deeply") from None


def _syntax_error(shown: str, text: str, last_line: int) -> str:
    placed = _PLACE.fullmatch(text)
    if placed is None:  # "(at end of document)"
        return f"{shown}:{last_line}: {text}"
    return f"{shown}:{placed[2]}: {placed[1]} at column {placed[3]}"


def file_layer(file: File) -> Layer:
    """Return the layer of a configuration file; raises `ConfigError`."""
    origin = Origin(Level.FILE, file.shown)
    layer: dict[str, Given] = {}
    for key, value in file.keys.items():
        name = key.replace("-", "_")
        if name not in TABLE:
            raise ConfigError(f"{file.shown}: {_unknown(key, name, value)}")
        if name in layer:
            raise ConfigError(f"{file.shown}: {name} is given twice, with - and with _")
        layer[name] = read(TABLE[name], value, origin)
    return layer


def _unknown(key: str, name: str, value: object) -> str:
    if why := explain(name):
        return f"{key} {why}"
    theirs = {
        other: entry.name
        for entry in TABLE.values()
        for other in (entry.setting.uvicorn, entry.setting.gunicorn, *_flag_names(entry))
    }
    if name in theirs:
        return f"unknown key {show(key)}; procmgr calls it {theirs[name]}"
    flat = "; keys stand at the top level, not in tables" if isinstance(value, dict) else ""
    return f"unknown key {show(key)}{flat or did_you_mean(name, [*TABLE])}"


def _flag_names(entry: Entry) -> list[str]:
    return [flag.lstrip("-").replace("-", "_") for flag in (entry.flag, *entry.setting.flags)]


def did_you_mean(name: str, names: list[str]) -> str:
    """Return "; did you mean ...?" if one of `names` is close to `name`, else nothing."""
    close = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def read(entry: Entry, value: object, origin: Origin) -> Given:
    """Return what `value`, text or not, means for a setting; raises `UsageError` or `ConfigError` by its origin."""
    kind = entry.setting.kind
    try:
        if origin.level is Level.FILE:
            return Given(kind.of(value), origin)
        if kind.item and isinstance(value, tuple | list):
            return Given(tuple(_from_text(kind.item, each) for each in value), origin)
        return Given(_from_text(kind, value), origin)
    except BadValue as error:
        raise origin.refuse(f"{entry.name}: {show(error.value)} from {origin}: {error.reason}") from None


def _from_text(kind: Kind[Any], value: object) -> object:
    return kind.parse(value) if isinstance(value, str) else kind.of(value)


def check_paths(entry: Entry, given: Given, base: Path) -> None:
    """Refuse a path, counted from `base`, at which there is not the file or directory that the setting needs."""
    for path in given.value if isinstance(given.value, tuple) else (given.value,):
        _check_path(entry, str(path), given.origin, base)


def _check_path(entry: Entry, text: str, origin: Origin, base: Path) -> None:
    wants_directory = entry.setting.kind.metavar == "DIRECTORY"
    wrong = ""
    try:
        mode = os.stat(base / text).st_mode  # noqa: PTH116 - the text is what a person typed
        if stat.S_ISDIR(mode) is not wants_directory:
            wrong = f"that is {'no' if wants_directory else 'a'} directory"
    except (OSError, ValueError) as error:
        wrong = getattr(error, "strerror", None) or "that is no path"
    if wrong:
        raise origin.refuse(f"{entry.name}: {show(text)} from {origin}: {wrong}")
