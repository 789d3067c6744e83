"""What `procmgr` prints: settings with their origins, and errors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from procmgr.config.reference import members, title
from procmgr.config.resolve import flat
from procmgr.config.settings import GROUPS
from procmgr.config.sources import DEFAULT
from procmgr.errors import AppError

if TYPE_CHECKING:
    from procmgr.config.declare import Entry
    from procmgr.config.resolve import Resolved
    from procmgr.errors import ProcmgrError


def error_text(error: ProcmgrError) -> str:
    """Return what a refusal prints: the application's traceback if there is one, then one line."""
    detail = f"{error.detail.rstrip()}\n" if isinstance(error, AppError) and error.detail else ""
    return f"{detail}procmgr: error: {' '.join(str(error).splitlines())}\n"


def configuration(resolved: Resolved) -> str:
    """Return every setting with its origin, as a configuration file that means the same."""
    values = flat(resolved.settings)
    lines = [f"# {note}" for note in resolved.notes]
    for group in GROUPS:
        listening = ", ".join(map(str, resolved.settings.bind.addresses)) if group == "bind" else ""
        lines += ["", f"# {title(group)}{': ' if listening else ''}{listening}"]
        lines += [_line(entry, values[entry.name], resolved) for entry in members(group)]
    return "\n".join(lines).lstrip("\n") + "\n"


def _line(entry: Entry, value: object, resolved: Resolved) -> str:
    origin = resolved.origins[entry.name]
    if value in (None, (), "") and origin == DEFAULT:
        return f"#{entry.name} =  # {'not given' if entry.group == 'bind' else f'default: {entry.default}'}"
    return f"{entry.name} = {entry.setting.kind.toml(value)}  # {origin}"
