"""The command line of `procmgr`, made from the table of settings."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
from click.core import ParameterSource

from procmgr.config.foreign import explain
from procmgr.config.kind import Shape
from procmgr.config.reference import members, spellings, title
from procmgr.config.settings import GROUPS, TABLE
from procmgr.config.sources import did_you_mean
from procmgr.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from procmgr.config.declare import Entry

_ABOUT: Final = (
    "Serve an ASGI application with supervised workers. The application is a module and an attribute in it, as in: "
    "procmgr --workers 8 main:app"
)
UNIT_FLAG: Final = "--print-unit"
GUNICORN_FLAG: Final = "--from-gunicorn"
GUNICORN_SECONDS: Final = 10
_GUNICORN_HELP: Final = (
    "Print what this configuration file of gunicorn means as TOML, with what has no equivalent in comments. "
    f"The file is executed, for at most {GUNICORN_SECONDS} seconds."
)
_WIDTH: Final = 80
_COLUMN: Final = 32


class Action(Enum):
    """What is asked for."""

    SERVE = "serve"
    CHECK = "check"
    PRINT = "print"
    UNIT = "unit"
    GUNICORN = "gunicorn"
    HELP = "help"
    VERSION = "version"


@dataclass(frozen=True, slots=True, kw_only=True)
class Parsed:
    """A command line: what is asked for, the settings it gives by name, the configuration files it names."""

    action: Action
    values: dict[str, object]
    config: Path | None
    gunicorn: Path | None = None


def parse(arguments: Sequence[str]) -> Parsed:
    """Return what `arguments` say, values unchecked; raises `UsageError`."""
    command = _Procmgr()
    try:
        with command.make_context("procmgr", list(arguments)) as context:
            return _parsed(context)
    except click.NoSuchOption as error:
        raise UsageError(_no_such_option(error.option_name, command)) from None
    except click.UsageError as error:
        message = error.format_message().rstrip(".")
        raise UsageError(f"{message[:1].lower()}{message[1:]}; see procmgr --help") from None


def help_text() -> str:
    """Return the text of --help, at most 80 columns wide."""
    command = _Procmgr()
    return command.get_help(click.Context(command, info_name="procmgr", max_content_width=_WIDTH))


def _parsed(context: click.Context) -> Parsed:
    given = {
        name: value
        for name, value in context.params.items()
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE
    }
    actions = [action for action in Action if given.pop(f"_{action.value}", False)]
    urgent = [action for action in actions if action in (Action.HELP, Action.VERSION)]
    if len(actions) > 1 and not urgent:
        names = "--check-config, --print-config and --print-unit"
        raise UsageError(f"{names} exclude each other; expected only one of them")
    config, gunicorn = given.pop("_config", None), given.pop("_from_gunicorn", None)
    if gunicorn is not None and not urgent:
        if actions or given or config is not None:
            raise UsageError(f"{GUNICORN_FLAG} takes a file and nothing else; expected it alone")
        return Parsed(action=Action.GUNICORN, values={}, config=None, gunicorn=Path(str(gunicorn)))
    return Parsed(
        action=[*urgent, *actions, Action.SERVE][0],
        values=given,
        config=None if config is None else Path(str(config)),
    )


class _Procmgr(click.Command):
    """The command, whose help is grouped as the table is."""

    def __init__(self) -> None:
        options: list[click.Parameter] = [_option(entry) for entry in TABLE.values() if spellings(entry)]
        application = click.Argument(["app"], required=False, metavar="MODULE:ATTR")
        super().__init__("procmgr", params=[application, *options, *_own_options()], help=_ABOUT, add_help_option=False)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options by group, with defaults and further names."""
        del ctx
        for group in GROUPS:
            with formatter.section(title(group)):
                formatter.write("".join(_help(entry) for entry in members(group) if spellings(entry)))
        with formatter.section("procmgr itself"):
            formatter.write("".join(_row(_own_term(each), each.help or "") for each in _own_options()))


def _option(entry: Entry) -> click.Option:
    names = spellings(entry)
    kind = entry.setting.kind
    if kind.shape is Shape.SWITCH:
        on, off = names
        return click.Option([f"{on}/{off}", entry.name], default=None)
    return click.Option([*names, entry.name], type=str, multiple=kind.shape is Shape.MANY)


def _own_options() -> list[click.Option]:
    about = {
        Action.CHECK: (["--check-config"], "Check settings and application, serve nothing."),
        Action.PRINT: (["--print-config"], "Print every setting in force and where it comes from."),
        Action.UNIT: ([UNIT_FLAG], "Print a systemd unit that starts this, from this virtualenv and directory."),
        Action.VERSION: (["--version"], "Print the version."),
        Action.HELP: (["-h", "--help"], "Print this."),
    }
    config = click.Option(["-c", "--config", "_config"], type=str, help=_config_help())
    gunicorn = click.Option([GUNICORN_FLAG, "_from_gunicorn"], type=str, help=_GUNICORN_HELP)
    return [
        config,
        gunicorn,
        *(click.Option([*names, f"_{each.value}"], is_flag=True, help=text) for each, (names, text) in about.items()),
    ]


def _own_term(option: click.Option) -> str:
    return ", ".join(option.opts) + ("" if option.is_flag else " FILE")


def _config_help() -> str:
    return (
        "Read settings from this TOML file. [default: ./procmgr.toml, else pyproject.toml [tool.procmgr], "
        "else /etc/procmgr/procmgr.toml]"
    )


def _help(entry: Entry) -> str:
    kind = entry.setting.kind
    names = spellings(entry)
    further = [name for name in entry.setting.flags if name.startswith("--")]
    joint = " / " if kind.shape is Shape.SWITCH else ", "
    term = f"{joint.join(name for name in names if name not in further)} {kind.metavar}".rstrip()
    repeat = "May be repeated. " if kind.shape is Shape.MANY else ""
    also = [f"also {name}" for name in (*further, *entry.setting.variables)]
    return _row(term, f"{entry.setting.help} {repeat}[{'; '.join([f'default: {entry.default}', *also])}]")


def _row(term: str, about: str) -> str:
    """Return two columns; click's own would break flags at their hyphens."""
    margin = " " * _COLUMN
    lines = textwrap.wrap(about, _WIDTH - _COLUMN, break_on_hyphens=False, break_long_words=False)
    head = f"  {term}".ljust(_COLUMN)
    first = [head + lines.pop(0)] if len(head) <= _COLUMN and head.endswith(" ") else [head]
    return "\n".join([*first, *(margin + line for line in lines)]) + "\n"


def _no_such_option(name: str, command: click.Command) -> str:
    if why := explain(name):
        return f"{name} {why}"
    known = [flag for each in command.params for flag in (*each.opts, *each.secondary_opts) if flag.startswith("-")]
    return f"no such option: {name}{did_you_mean(name, known) or '; see procmgr --help'}"
