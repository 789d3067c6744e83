"""What is said of another program: its options one by one, and in what it behaves differently."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from procmgr.config.foreign import explain
from procmgr.config.reference import spellings
from procmgr.config.settings import TABLE

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_FLAG: Final = re.compile(r"(?<![\w`])--[a-z][a-z-]*")
_OURS: Final = "is not an option of procmgr"
OWN: Final = frozenset({"--help", "--version", "--config", "--check-config", "--print-config"})
"""Flags of procmgr's that are no settings, and that other programs have as well."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """An option of another program, as it is spelt there.

    `ours` are the settings that do the same, `own` a flag of procmgr's which is no setting; without either there is no
    equivalent. `note` says what differs, or what to do instead. An option that `stays` is one of a service manager
    which goes on as before.
    """

    name: str
    ours: tuple[str, ...] = ()
    own: str = ""
    note: str = ""
    stays: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Trait:
    """A behaviour that differs: what is looked at, what the other program does, what procmgr does, and why."""

    what: str
    theirs: str
    ours: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """Another program at one release: how a command or file of it becomes one of procmgr, and all its options."""

    name: str
    release: str
    before: str
    after: str
    language: str = "sh"
    traits: tuple[Trait, ...]
    options: tuple[Option, ...]


def by_flag(flags: Iterable[str], notes: Mapping[str, str]) -> tuple[Option, ...]:
    """Return the options of a program whose flags are spelt as procmgr's, or explained in `foreign`."""
    owner = {spelling: entry.name for entry in TABLE.values() for spelling in spellings(entry)}
    found = []
    for flag in flags:
        own = flag if flag in OWN else ""
        ours = (owner[flag],) if flag in owner else ()
        found.append(Option(name=flag, ours=ours, own=own, note=notes.get(flag, "" if ours or own else reason(flag))))
    return tuple(found)


def reason(*flags: str) -> str:
    """Return what to do instead of a flag of another program's that procmgr does not have."""
    found = next(filter(None, map(explain, flags)), "")
    return _FLAG.sub(r"`\g<0>`", found.removeprefix(_OURS).removeprefix("is ").lstrip(":, ").removeprefix("and "))


def listed(text: str) -> tuple[Option, ...]:
    """Return the options that `text` lists, one a line: NAME | SETTINGS | NOTE.

    Instead of settings there may be `stays`, or a flag of procmgr's that is none.
    """
    found = []
    for line in text.strip().splitlines():
        name, ours, note = (cell.strip() for cell in line.split("|"))
        own = ours if ours.startswith("--") else ""
        stays = ours == "stays"
        found.append(
            Option(name=name, ours=() if stays or own else tuple(ours.split()), own=own, note=note, stays=stays)
        )
    return tuple(found)
