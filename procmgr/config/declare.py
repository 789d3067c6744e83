"""How a setting is declared: the mechanism behind the table in `settings`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, TypedDict, TypeVar, Unpack

if TYPE_CHECKING:
    from collections.abc import Mapping

    from procmgr.config.kind import Kind

T = TypeVar("T")
D = TypeVar("D")
_KEY: Final = "procmgr"


class Applies(Enum):
    """What a reload does with a changed setting."""

    LIVE = "live"  # takes effect at once, in the arbiter
    ROLL = "roll"  # takes effect in the workers that the reload starts
    RESTART = "restart"  # refused by a reload: the arbiter has to be started anew


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What is known of a setting beside its name and its default value.

    `flag` replaces the flag made of the name, `flags` are further ones. `default` says in words what the default value
    means. `variables` are environment variables that other programs share; `uvicorn` and `gunicorn` are what those call
    a setting of the same meaning. The repr of the settings leaves out what is `secret`.
    """

    kind: Kind[Any]
    applies: Applies
    help: str
    flag: str = ""
    flags: tuple[str, ...] = ()
    unit: str = ""
    default: str = ""
    variables: tuple[str, ...] = ()
    uvicorn: str = ""
    gunicorn: str = ""
    secret: bool = False


class More(TypedDict, total=False):
    """What else a `Setting` may say."""

    flag: str
    flags: tuple[str, ...]
    unit: str
    default: str
    variables: tuple[str, ...]
    uvicorn: str
    gunicorn: str
    secret: bool


def setting(value: D, kind: Kind[T], applies: Applies, about: str, **more: Unpack[More]) -> D | T:
    """Declare a field of a group: its default value, its kind, what a reload does, its help; see `Setting`."""
    shown = not more.get("secret", False)
    return dataclasses.field(default=value, metadata=required(kind, applies, about, **more), repr=shown)


def required(kind: Kind[T], applies: Applies, about: str, **more: Unpack[More]) -> Mapping[str, Setting]:
    """Return the `dataclasses.field` metadata of a setting that has no default value."""
    return {_KEY: Setting(kind=kind, applies=applies, help=about, **more)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A row of the table: a setting, its name, the attribute of its group in `Settings`, and its default value."""

    name: str
    group: str
    value: object
    setting: Setting

    @property
    def flag(self) -> str:
        """The setting's own flag on the command line."""
        return self.setting.flag or f"--{self.name.replace('_', '-')}"

    @property
    def variable(self) -> str:
        """The setting's own environment variable."""
        return f"PROCMGR_{self.name.upper()}"

    @property
    def default(self) -> str:
        """The default as --help and the documentation show it."""
        if self.value is dataclasses.MISSING:
            return "required"
        if self.value in (None, (), ""):
            return self.setting.default or "none"
        return self.setting.default or " ".join([self.setting.kind.toml(self.value).strip('"'), self.unit]).rstrip()

    @property
    def unit(self) -> str:
        """What a number of it counts; empty where there is nothing to say."""
        return self.setting.unit or {"SECONDS": "seconds", "BYTES": "bytes"}.get(self.setting.kind.metavar, "")


def entries(group: str, declared: type) -> list[Entry]:
    """Return the rows that the fields of a group's dataclass declare."""
    return [
        Entry(name=each.name, group=group, value=each.default, setting=each.metadata[_KEY])
        for each in dataclasses.fields(declared)
    ]
