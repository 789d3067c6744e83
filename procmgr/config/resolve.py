"""From what was given, wherever it was given, to the settings in force.

`resolve` is a function of the invocation and of the configuration file as it is now: a reload calls it again.
"""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from procmgr.config import clashes, sources, tls
from procmgr.config.declare import Applies
from procmgr.config.settings import GROUPS, TABLE, Settings
from procmgr.config.sources import DEFAULT, Given, Layer, Level, Origin
from procmgr.errors import UsageError
from procmgr.process import immortal
from procmgr.scoreboard import MAX_ROWS

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

NO_APPLICATION: Final = "no application given; expected procmgr [OPTIONS] MODULE:ATTR, as in: procmgr main:app"

# What can be listened on besides descriptors: one form only, since each says where to listen.
_FORMS: Final = {"bind": "bind", "uds": "uds", "host": "host and port", "port": "host and port"}
_LISTENING: Final = frozenset({*_FORMS, "fd"})

# Settings, their values that need something else installed, its module, and procmgr's extra for it.
_EXTRAS: Final = (("ws", "wsproto", "wsproto", "wsproto"), ("interface", "wsgi", "a2wsgi", "wsgi"))


@dataclass(frozen=True, slots=True)
class Invocation:
    """How procmgr was started.

    `values` is the command line by setting names: text, tuples of text for what may be repeated, bools for switches;
    `environ` the environment and `cwd` the working directory as they were then. What may hold secrets is not in the
    repr.
    """

    values: Mapping[str, object] = field(repr=False)
    config: Path | None
    environ: Mapping[str, str] = field(repr=False)
    cwd: Path


@dataclass(frozen=True, slots=True)
class Resolved:
    """Settings in force, where each came from, the file that was read, and what a person should know about it."""

    settings: Settings
    origins: Mapping[str, Origin]
    config_path: Path | None
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Changes:
    """Names of the settings that differ, by what a reload does with them."""

    live: frozenset[str]
    roll: frozenset[str]
    restart: frozenset[str]


def resolve(invocation: Invocation) -> Resolved:
    """Return the settings in force; raises `UsageError` (command line) or `ConfigError` (environment or file)."""
    file = sources.find(invocation.config, invocation.environ, invocation.cwd)
    variables, notes = sources.environment(invocation.environ)
    layers = [sources.command_line(invocation.values), *variables, sources.file_layer(file) if file else {}]
    layers, set_aside = _one_form(layers)
    given = {name: value for layer in reversed(layers) for name, value in layer.items()}
    given |= _platform_port(given, invocation.environ)
    if "app" not in given:
        raise UsageError(NO_APPLICATION)
    given.setdefault("name", Given(_name(str(given["app"].value), file), DEFAULT))
    _check_paths(given, invocation.cwd)
    settings = build({name: each.value for name, each in given.items()})
    _check_rows(settings, given)
    _check_logs(given)
    _check_installed(given)
    _check_interface(settings, given)
    _check_interpreter(settings, given)
    _check_tls(settings, given)
    clashes.check(settings, given, invocation.cwd)
    return Resolved(
        settings=settings,
        origins=MappingProxyType({name: given[name].origin if name in given else DEFAULT for name in TABLE}),
        config_path=file.path if file else None,
        notes=(*notes, *set_aside, *_pointless(settings)),
    )


def changes(old: Settings, new: Settings) -> Changes:
    """Return which settings differ between `old` and `new`."""
    before, after = flat(old), flat(new)
    changed = [name for name in TABLE if before[name] != after[name]]
    live, roll, restart = (
        frozenset(name for name in changed if TABLE[name].setting.applies is applies)
        for applies in (Applies.LIVE, Applies.ROLL, Applies.RESTART)
    )
    return Changes(live, roll, restart)


def flat(settings: Settings) -> dict[str, object]:
    """Return every value by its setting's name, in the table's order."""
    return {name: getattr(getattr(settings, entry.group), name) for name, entry in TABLE.items()}


def build(values: Mapping[str, object]) -> Settings:
    """Return the settings with `values` by name, the others at their defaults; `app` has to be among them."""
    groups: dict[str, dict[str, object]] = {group: {} for group in GROUPS}
    for name, value in values.items():
        groups[TABLE[name].group][name] = value
    return Settings(**{group: declared(**groups[group]) for group, declared in GROUPS.items()})


def _one_form(layers: list[Layer]) -> tuple[list[Layer], list[str]]:
    """Keep one form of address: that of the highest layer which has any; two in one layer are a mistake."""
    chosen: tuple[str, Given] | None = None
    notes: list[str] = []
    kept: list[Layer] = []
    for layer in layers:
        forms = {name: given for name, given in layer.items() if name in _FORMS and given.value != ()}
        chosen = chosen or next(iter(forms.items()), None)
        others = {name for name in forms if chosen and _FORMS[name] != _FORMS[chosen[0]]}
        for name in sorted(others):
            assert chosen is not None  # there are others only beside a chosen one
            if chosen[1].origin.level is forms[name].origin.level:
                raise forms[name].origin.refuse(_exclusive(chosen, (name, forms[name])))
            notes.append(f"{name} from {forms[name].origin} is set aside by {chosen[0]} from {chosen[1].origin}")
        kept.append({name: given for name, given in layer.items() if name not in others})
    return kept, notes


def _exclusive(one: tuple[str, Given], other: tuple[str, Given]) -> str:
    if one[1].origin == other[1].origin:  # one file
        return f"{one[0]} and {other[0]} in {one[1].origin} exclude each other; expected only one of them"
    return f"{one[1].origin} and {other[1].origin} exclude each other; expected only one of them"


def _platform_port(given: Mapping[str, Given], environ: Mapping[str, str]) -> dict[str, Given]:
    """Return what PORT means: every interface, since a platform that sets it connects from outside."""
    if not environ.get("PORT") or any(given[name].value != () for name in _LISTENING & given.keys()):
        return {}
    origin = Origin(Level.SHARED, "PORT")
    return {"host": Given("0.0.0.0", origin), "port": sources.read(TABLE["port"], environ["PORT"], origin)}  # noqa: S104 - see above


def _name(app: str, file: sources.File | None) -> str:
    module = app.partition(":")[0]
    # The stem of a pyproject.toml would be the same for everybody.
    stem = file.path.stem if file and file.path.name != "pyproject.toml" else module
    return re.sub(r"[^A-Za-z0-9_.@:-]", "-", stem).lstrip(".@:-")[:64] or "procmgr"


def _check_paths(given: Mapping[str, Given], cwd: Path) -> None:
    inside = cwd / str(given["chdir"].value) if "chdir" in given else cwd
    bases = {"chdir": cwd, "app_dir": inside, "reload_dirs": inside, "env_file": cwd, "log_config": cwd}
    bases |= dict.fromkeys(("ssl_certfile", "ssl_keyfile", "ssl_ca_certs"), cwd)
    for name, base in bases.items():
        if name in given:
            sources.check_paths(TABLE[name], given[name], base)


def _check_rows(settings: Settings, given: Mapping[str, Given]) -> None:
    """Refuse a pool for which there may be no scoreboard row: desired + surge live, and as many drain."""
    workers = settings.pool.workers
    surge = settings.pool.reload_surge.count(workers)
    if 2 * workers + surge > MAX_ROWS:
        origin = given["reload_surge"].origin if "reload_surge" in given else given["workers"].origin
        wanted = f"expected at most {MAX_ROWS - 2 * workers} with {workers} workers"
        raise origin.refuse(f"reload_surge: {surge} from {origin}: {wanted}")


def _check_logs(given: Mapping[str, Given]) -> None:
    """Refuse a file for what a log configuration already sends elsewhere."""
    for name in ("log_file", "access_log_file"):
        if name in given and given[name].value is not None and "log_config" in given:
            raise given[name].origin.refuse(_exclusive((name, given[name]), ("log_config", given["log_config"])))


def _check_installed(given: Mapping[str, Given]) -> None:
    """Refuse a library that is an extra and not there: no worker could start."""
    for name, value, module, extra in _EXTRAS:
        if name in given and given[name].value == value and importlib.util.find_spec(module) is None:
            origin = given[name].origin
            raise origin.refuse(f"{name}: {value} from {origin}: needs {module}: pip install 'procmgr[{extra}]'")


def _check_interface(settings: Settings, given: Mapping[str, Given]) -> None:
    if settings.app.interface == "wsgi" and settings.app.lifespan == "on":
        origin = given["lifespan"].origin
        raise origin.refuse(f"lifespan: on from {origin}: WSGI applications have none; expected auto or off")


def _check_interpreter(settings: Settings, given: Mapping[str, Given]) -> None:
    if settings.app.preload_immortal and (reason := immortal.unavailable()):
        origin = given["preload_immortal"].origin
        raise origin.refuse(f"preload_immortal from {origin}: {reason}")


def _check_tls(settings: Settings, given: Mapping[str, Given]) -> None:
    if wrong := tls.mistake(settings.tls):
        name, text = wrong
        raise given[name].origin.refuse(text)


def _pointless(settings: Settings) -> list[str]:
    pool, health, development = settings.pool, settings.health, settings.development
    notes = []
    if pool.max_requests_jitter and pool.max_requests is None:
        notes.append("max_requests_jitter means nothing without max_requests")
    if health.max_lifetime_jitter and not health.max_lifetime:
        notes.append("max_lifetime_jitter means nothing without max_lifetime")
    if 0 < health.max_memory_hard <= health.max_memory:
        notes.append("max_memory means nothing where max_memory_hard is not above it")
    if health.core_on_hang and not pool.timeout:
        notes.append("core_on_hang means nothing where timeout is 0")
    if settings.app.threads != TABLE["threads"].value and settings.app.interface != "wsgi":
        notes.append("threads means nothing without interface wsgi")
    if settings.app.preload_immortal and not settings.app.preload:
        notes.append("preload_immortal means nothing without preload")
    if not development.reload:
        names = ("reload_dirs", "reload_includes", "reload_excludes")
        notes += [f"{name} means nothing without reload" for name in names if getattr(development, name)]
    return [*notes, *tls.pointless(settings.tls)]
