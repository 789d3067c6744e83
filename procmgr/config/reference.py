"""What is generated from the table: the example configuration file, its JSON Schema, the page of the documentation.

`python -m procmgr.config.reference toml|schema|markdown` prints one of them; a test holds the files in the tree to it.
"""

from __future__ import annotations

import json
import sys
import textwrap
from typing import TYPE_CHECKING, Final

from procmgr.config.declare import Applies
from procmgr.config.kind import Shape
from procmgr.config.settings import GROUPS, TABLE

if TYPE_CHECKING:
    from collections.abc import Callable

    from procmgr.config.declare import Entry
    from procmgr.config.kind import Schema

_RELOAD: Final = {Applies.LIVE: "at once", Applies.ROLL: "in new workers", Applies.RESTART: "refused: restart"}

_PAGE: Final = """\
# Settings

A setting is taken from the first of these that has it:

1. the command line,
2. its variable, which is its name in capitals after `PROCMGR_`; then uvicorn's variable for the same thing,
   `UVICORN_...`; then, for `workers`, `WEB_CONCURRENCY`,
3. the configuration file: `--config` or `PROCMGR_CONFIG`, else `./procmgr.toml`, else the table `[tool.procmgr]` of
   `./pyproject.toml`, else `/etc/procmgr/procmgr.toml`; the first that is found, and no other,
4. its default.

`procmgr --print-config` shows every value with its origin, in a form that can be used as a configuration file;
`procmgr --check-config` also imports the application.

- An empty variable counts as unset. A variable with several values has them in lines; addresses, descriptors and
  patterns may be parted by any white space, the directories of `reload_dirs` are parted by `:`.
- A file is TOML, its keys are the names below, with `_` or `-`, at the top level. An unknown key is an error. `env` and
  `headers` may also be tables.
- A relative path, in a file too, counts from the working directory in which procmgr was started.
- `bind`, `uds` and `host` with `port` exclude each other. Given in different places, the nearer one wins; given in one
  place, it is an error. `fd` comes beside any of them.
- `PORT` is used only if none of `bind`, `host`, `port`, `uds` and `fd` is given, and then means `0.0.0.0:$PORT`.
- A reload (SIGHUP) reads the file again. The column *Reload* says what becomes of a changed value; *at once* is for
  all workers, once the first new one is ready.
"""

_DIFFERENCES: Final = """
## Differences

Every flag of uvicorn and of gunicorn that procmgr has means here what it means there, but for what
[Migrating](migrating.md) says, flag by flag. Beside flags:

- `ssl_context_factory` is called with the settings of TLS, not with uvicorn's `Config`.
- `WEB_CONCURRENCY` wins over the configuration file, as every variable does; not so in gunicorn.
"""

_FILE: Final = """\
#:schema ./procmgr.schema.json
#
# Settings of procmgr, each with its default or, where there is none, an example. Put it at ./procmgr.toml or
# /etc/procmgr/procmgr.toml, or name it with --config. The command line and PROCMGR_* variables win over it.
# A reload (SIGHUP) reads it again.
"""


def title(group: str) -> str:
    """Return the heading of a group, by its attribute in `Settings`."""
    return (GROUPS[group].__doc__ or group).partition(".")[0]


def members(group: str) -> list[Entry]:
    """Return the rows of a group, in the order of the table."""
    return [entry for entry in TABLE.values() if entry.group == group]


def toml() -> str:
    """Return a configuration file that sets nothing and shows everything."""
    sections = [
        f"\n# --- {title(group)} ---\n{''.join(_toml_entry(entry) for entry in members(group))}" for group in GROUPS
    ]
    return _FILE + "".join(sections)


def _toml_entry(entry: Entry) -> str:
    comment = textwrap.fill(_about(entry), 120, initial_indent="# ", subsequent_indent="# ", break_long_words=False)
    return f"\n{comment}\n#{entry.name} = {example(entry)}\n"


def _about(entry: Entry) -> str:
    return f"{entry.setting.help} [default: {entry.default}]"


def example(entry: Entry) -> str:
    """Return a value in TOML: the default, or an example where the default is that nothing is set."""
    kind = entry.setting.kind
    if entry.value in (None, (), "") or entry.default == "required":
        return kind.toml(kind.parse(kind.example))
    return kind.toml(entry.value)


def schema() -> str:
    """Return the JSON Schema of a configuration file."""
    properties: Schema = {
        entry.name: {"description": _about(entry), **entry.setting.kind.schema} for entry in TABLE.values()
    }
    document: Schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "procmgr.toml",
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
    }
    return json.dumps(document, indent=2) + "\n"


def markdown() -> str:
    """Return the documentation page."""
    return _PAGE + "".join(_section(group) for group in GROUPS) + _DIFFERENCES


def _section(group: str) -> str:
    head = "| Setting | Command line | Default | Reload | Meaning |\n|---|---|---|---|---|\n"
    return f"\n## {title(group)}\n\n{head}{''.join(_row(entry) for entry in members(group))}"


def _row(entry: Entry) -> str:
    setting = entry.setting
    flags = ", ".join(f"`{spelling}`" for spelling in spellings(entry)) or "first argument"
    metavar = f" `{setting.kind.metavar}`" if setting.kind.metavar and entry.name != "app" else ""
    cells = (f"`{entry.name}`", flags + metavar, entry.default, _RELOAD[setting.applies], setting.help)
    row = " | ".join(cell.replace("|", r"\|") for cell in cells)
    return f"| {row} |\n"


def spellings(entry: Entry) -> list[str]:
    """Return how a setting is spelt on the command line, short first; the application is an argument."""
    if entry.name == "app":
        return []
    short = [flag for flag in entry.setting.flags if not flag.startswith("--")]
    long = [flag for flag in entry.setting.flags if flag.startswith("--")]
    no = [f"--no-{entry.flag.removeprefix('--')}"] if entry.setting.kind.shape is Shape.SWITCH else []
    return [*short, entry.flag, *no, *long]


RENDERERS: Final[dict[str, Callable[[], str]]] = {"toml": toml, "schema": schema, "markdown": markdown}

if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in RENDERERS:
        sys.exit(f"usage: python -m procmgr.config.reference {'|'.join(RENDERERS)}")
    sys.stdout.write(RENDERERS[sys.argv[1]]())
