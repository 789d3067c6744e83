"""The console command `procmgrctl`: ask a running instance, print what it says, exit as it says.

Every command is one request of the control protocol. Its events are printed as they come: as text, or with --json as
one JSON object a line. Interrupting procmgrctl cancels nothing in the daemon.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from procmgr import __version__, control, process
from procmgr.cli import tables
from procmgr.cli.link import converse, running
from procmgr.cli.tables import Paper, Style
from procmgr.errors import ExitCode, PrivilegeError, ProcmgrError, UnavailableError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from procmgr.cli.link import Event, Instance

_ABOUT: Final = "Control a running procmgr. Without -s and -n it is the only one that runs."
_UPGRADE: Final = (
    "Become the program that the daemon's command line starts now. Its pid, workers and connections stay; a reload "
    "afterwards moves the workers. If the new program cannot take over, nothing changes."
)
_WORKERS: Final = re.compile(r"[+-]?[0-9]{1,6}")
_GOES_ON: Final = frozenset({"reload", "restart", "stop", "upgrade"})


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `procmgrctl` with `arguments`, by default those of the process; returns the exit code."""
    process.open_standard_streams()
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given:
        sys.stderr.write(f"{_command().get_help(click.Context(_command(), info_name='procmgrctl'))}\n")
        return ExitCode.USAGE
    try:
        # Only parsed by click: it has answers of its own to an interrupt and to a closed pipe.
        run = _command().main(given, "procmgrctl", standalone_mode=False)
        return run() if callable(run) else ExitCode.OK
    except click.UsageError as error:
        return _fail(UsageError(_one_line(error)), given)
    except ProcmgrError as error:
        return _fail(error, given)
    except BrokenPipeError:  # the reader has seen enough
        return ExitCode.OK
    except KeyboardInterrupt:
        # A shell has to see that it was the signal that ended us.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
        return ExitCode.CRASH


def _one_line(error: click.UsageError) -> str:
    message = " ".join(error.format_message().split()).rstrip(".")
    return f"{message[:1].lower()}{message[1:]}; see procmgrctl --help"


def _fail(error: ProcmgrError, given: Sequence[str]) -> int:
    """Say a refusal on stderr, and to a program on stdout in its own form."""
    if "--json" in given:
        _put(json.dumps({"event": control.END, "exit": int(error.exit_code), "text": str(error)}))
    else:
        sys.stderr.write(f"procmgrctl: error: {error}\n")
    return error.exit_code


def _put(text: str) -> None:
    _write(f"{text}\n")


def _write(text: str) -> None:
    """Write to standard output; raises `BrokenPipeError`, and `ProcmgrError` for a full disk and the like."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        # The interpreter's own flush at exit must not complain, too.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            raise
        raise ProcmgrError(f"cannot write to standard output: {error.strerror}") from None


def _command() -> click.Group:
    group = click.Group("procmgrctl", help=_ABOUT, params=[*_where(), _version_option()], no_args_is_help=True)
    for command in (
        _simple("status", "Show the pool, the last reload and every worker.", say=_Status),
        _reload(),
        _scale(),
        _restart(),
        _stop(),
        _simple("upgrade", _UPGRADE),
        _simple("reopen-logs", "Open the log files anew. For when they were rotated."),
        _stacks(),
        _simple("version", "Show the release that the daemon runs."),
    ):
        group.add_command(command)
    return group


def _where() -> list[click.Parameter]:
    return [
        click.Option(["-s", "--socket"], metavar="PATH", help="The control socket of the instance."),
        click.Option(["-n", "--name"], metavar="NAME", help="The instance's name, looked for where sockets are."),
    ]


def _version_option() -> click.Option:
    def show(context: click.Context, _option: click.Parameter, value: bool) -> None:  # noqa: FBT001 - click calls it so
        if value:
            _put(f"procmgrctl {__version__}")
            context.exit()

    return click.Option(
        ["--version"],
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=show,
        help="Show the release of procmgrctl.",
    )


def _made(
    name: str,
    about: str,
    *params: click.Parameter,
    request: Callable[[dict[str, Any]], Event] = dict,
    say: Callable[[], _Text] | None = None,
    **settings: Any,  # noqa: ANN401 - context settings are click's own
) -> click.Command:
    """Return a command that sends operation `name` with the arguments that `request` makes of its parameters."""

    def parsed(socket: str | None, name_: str | None, as_json: bool, **given: Any) -> Callable[[], int]:  # noqa: ANN401, FBT001 - click calls it so
        outer = click.get_current_context().find_root().params
        where = socket or outer.get("socket"), name_ or outer.get("name")
        arguments = request(given)

        def run() -> int:
            events = converse(_find(*where), name, arguments)
            return _json(events) if as_json else (say or _Text)().tell(events, name)

        return run

    options = [
        click.Option(["-s", "--socket"], hidden=True),
        click.Option(["-n", "--name", "name_"], hidden=True),
        click.Option(["--json", "as_json"], is_flag=True, help="Print one JSON object a line."),
    ]
    return click.Command(name, callback=parsed, params=[*params, *options], help=about, context_settings=settings)


def _simple(name: str, about: str, say: Callable[[], _Text] | None = None) -> click.Command:
    return _made(name, about, say=say)


def _reload() -> click.Command:
    wait = click.Option(["--wait/--no-wait"], default=True, help="Wait until the new generation serves or has failed.")
    about = (
        "Replace every worker, one after the other. The configuration is read anew. Exits with 0 only if the new "
        "generation serves; else the old one does, and the application's traceback is shown."
    )
    return _made("reload", about, wait)


def _scale() -> click.Command:
    def request(given: dict[str, Any]) -> Event:
        text = given["workers"]
        if not _WORKERS.fullmatch(text) or not int(text):
            raise UsageError(f"{text!r} is no number of workers; expected N, +N or -N")
        return {"by" if text[0] in "+-" else "to": int(text)}

    about = "Set or change the number of workers. It stays so across reloads."
    workers = click.Argument(["workers"], metavar="N|+N|-N")
    return _made("scale", about, workers, request=request, ignore_unknown_options=True)


def _restart() -> click.Command:
    about = "Replace the worker in SLOT. Its successor serves before it is retired."
    return _made("restart", about, click.Argument(["slot"], type=click.IntRange(min=0)))


def _stop() -> click.Command:
    about = "Stop the daemon, and wait until it is gone. Requests finish first, within the graceful timeout."
    quick = click.Option(["--quick"], is_flag=True, help="Give requests a second, then cancel them.")
    return _made("stop", about, quick)


def _stacks() -> click.Command:
    def request(given: dict[str, Any]) -> Event:
        return {} if given["slot"] is None else given

    about = "Show the Python stacks of running workers. Only that of the worker in SLOT, if it is given."
    slot = click.Argument(["slot"], type=click.IntRange(min=0), required=False)
    return _made("stacks", about, slot, request=request)


def _find(socket: str | None, name: str | None) -> Path:
    """Return the socket that is meant; raises `UsageError` where several could be, else `UnavailableError`."""
    if socket and name:
        raise UsageError("-s and -n exclude each other; expected only one of them")
    given = socket or ("" if name else os.environ.get("PROCMGR_CONTROL", ""))
    if given and given.lower() not in {control.OFF, "none"}:
        return Path(given)
    found, forbidden = running(control.candidates(os.environ, os.getuid(), name))
    mine = [instance for instance in found if name in {None, instance.name}]
    if len(mine) == 1:
        return mine[0].path
    if mine:
        _list(mine)
        raise UsageError(f"{len(mine)} instances run; choose one with -s PATH{'' if name else ' or -n NAME'}")
    if forbidden:
        raise PrivilegeError(f"{forbidden[0]}: only root and the user that the daemon runs as may control it")
    called = f" called {name}" if name else ""
    raise UnavailableError(f"found no running instance{called}; -s PATH names its control socket")


def _list(found: Sequence[Instance]) -> None:
    rows = [{"name": each.name, "pid": each.pid, "path": str(each.path)} for each in found]
    sys.stderr.write(tables.instances(rows, Paper.of(sys.stderr, os.environ)))


def _json(events: Iterator[Event]) -> int:
    status: int = ExitCode.CRASH
    for event in events:
        _put(json.dumps(event))
        status = event.get("exit", status)
    return status


class _Text:
    """Prints events for a person."""

    def __init__(self) -> None:
        self.paper = Paper.of(sys.stdout, os.environ)
        self._blocks = 0

    def tell(self, events: Iterator[Event], op: str) -> int:
        """Print each event as it comes and return the exit code that the last one says."""
        status: int = ExitCode.CRASH
        accepted = False
        try:
            for event in events:
                accepted = accepted or event["event"] == control.ACCEPTED
                if event["event"] == control.END:
                    status = int(event["exit"])
                    self.last(event)
                else:
                    self.one(event)
        except KeyboardInterrupt:
            if accepted and op in _GOES_ON:
                sys.stderr.write(f"\nprocmgrctl: the {op} goes on without procmgrctl; `procmgrctl status` shows it\n")
            raise
        return status

    def one(self, event: Event) -> None:
        """Print an event that is not the last."""
        if event["event"] == control.STACKS:
            self._stacks(event)
        elif text := event.get("text"):
            _put(self.paper.wrapped(text, "  "))

    def last(self, event: Event) -> None:
        """Print the last event: its text, on stderr after the application's own words if it tells of a failure."""
        text = event.get("text", "")
        if event["exit"] == ExitCode.OK:
            if text:
                _put(self.paper.wrapped(text, "  "))
            return
        detail = event.get("detail", "").rstrip()
        sys.stderr.write(f"{detail}\n" if detail else "")
        sys.stderr.write(f"procmgrctl: error: {text}\n")

    def _stacks(self, event: Event) -> None:
        if self._blocks:
            _put("")
        self._blocks += 1
        name = f"worker {event['worker']} (slot {event['slot']}, pid {event['pid']})"
        if reason := event.get("reason"):
            _put(self.paper.styled(f"{name}: {reason}", Style.YELLOW))
            return
        _put(self.paper.styled(name, Style.BOLD))
        _put(event["stacks"].rstrip())


class _Status(_Text):
    """Prints the status."""

    def last(self, event: Event) -> None:
        """Print the document as tables."""
        if event["exit"] == ExitCode.OK:
            _write(tables.status(event, self.paper))
        else:
            super().last(event)


if __name__ == "__main__":
    sys.exit(main())
