"""The console command `procmgr`: read the command line, resolve the settings, hand over to the arbiter."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NoReturn, assert_never

import click

from procmgr import __version__, handover
from procmgr.cli.options import GUNICORN_SECONDS, UNIT_FLAG, Action, Parsed, help_text, parse
from procmgr.cli.render import configuration, error_text
from procmgr.cli.unit import for_application
from procmgr.config.resolve import Invocation, resolve
from procmgr.errors import ConfigError, ExitCode, ProcmgrError
from procmgr.systemd import told_of_failure

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `procmgr` with `arguments`, by default those of the process; returns the exit code."""
    try:
        return _run(sys.argv[1:] if arguments is None else arguments)
    except ProcmgrError as error:
        with suppress(OSError):  # nobody reads it: the exit code still says it
            click.echo(error_text(error), nl=False, err=True)
        return error.exit_code
    except KeyboardInterrupt:
        # Before the arbiter's handlers are in place; a shell has to see that it was the signal that ended us.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
        return ExitCode.CRASH


def _run(arguments: Sequence[str]) -> int:
    ticket = handover.claim(os.environ)
    if ticket is not None:
        return _succeed(ticket, arguments)
    parsed = parse(arguments)
    with told_of_failure(os.environ) if parsed.action is Action.SERVE else nullcontext():
        return _perform(parsed, arguments)


def _perform(parsed: Parsed, arguments: Sequence[str]) -> int:
    match parsed.action:
        case Action.HELP:
            return _print(f"{help_text()}\n")
        case Action.VERSION:
            return _print(f"procmgr {__version__}\n")
        case Action.GUNICORN:
            return _from_gunicorn(parsed)
        case action:
            return _configured(action, parsed, arguments)


def _configured(
    action: Literal[Action.PRINT, Action.UNIT, Action.CHECK, Action.SERVE], parsed: Parsed, arguments: Sequence[str]
) -> int:
    invocation = Invocation(
        values=parsed.values, config=parsed.config, environ=dict(os.environ), cwd=working_directory()
    )
    resolved = resolve(invocation)
    match action:
        case Action.PRINT:
            return _print(configuration(resolved))
        case Action.UNIT:
            given = [each for each in arguments if each != UNIT_FLAG]
            return _print(for_application(given, invocation, resolved))
        case Action.CHECK:
            from procmgr.arbiter.main import check  # noqa: PLC0415 - what only prints or refuses loads no server

            name = resolved.settings.app.app
            return check(invocation, resolved) or _print(f"the configuration is valid and {name} can be imported\n")
        case Action.SERVE:
            if os.getpid() == 1:
                # Process 1 never gets a signal that it has no handler for, but one that it blocks waits for it
                # (pid_namespaces(7)): a stop of a container that has only just started.
                signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGQUIT})
            from procmgr.arbiter.main import main as serve  # noqa: PLC0415 - as above

            return serve(invocation, resolved)
        case _:
            assert_never(action)


def _from_gunicorn(parsed: Parsed) -> int:
    """Print what a configuration file of gunicorn's means; what is to be done about it is told beside, in one line."""
    from procmgr.cli import from_gunicorn  # noqa: PLC0415 - as above

    assert parsed.gunicorn is not None
    text, told = from_gunicorn.read(parsed.gunicorn, working_directory(), limit=GUNICORN_SECONDS)
    for line in told:
        with suppress(OSError):
            click.echo(f"procmgr: {line}", err=True)
    return _print(text)


def _succeed(ticket: handover.Ticket, arguments: Sequence[str]) -> int:
    """Take over from the arbiter that this process was a moment ago, or say as its child whether that could be done."""
    with ticket:
        from procmgr.arbiter import main as arbiter  # noqa: PLC0415 - as above

        given = ticket.envelope
        parsed = parse(arguments)
        invocation = Invocation(
            values=parsed.values, config=parsed.config, environ=dict(given.environ), cwd=Path(given.cwd)
        )
        if ticket.role is handover.Role.CHECK:
            _leave(arbiter.could_take_over(invocation, ticket))
        go_on = arbiter.take_over(invocation, given)
    return go_on()


def _leave(code: int) -> NoReturn:
    """Exit, but not by way of what an application left behind: its threads and exit functions."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def working_directory() -> Path:
    """Return the working directory by the name the user knows.

    The kernel's name has symlinks resolved, and would stay at the old release after a deploy that switches one. Raises
    `ConfigError` if the directory is gone.
    """
    logical = Path(os.environ.get("PWD", ""))
    try:
        if logical.is_absolute() and logical.samefile("."):
            return logical
    except OSError:
        pass  # $PWD is gone or not ours to see: the kernel's name is left
    try:
        return Path.cwd()
    except OSError as error:
        raise ConfigError(f"working directory: {error.strerror}; start procmgr in one that exists") from None


def _print(text: str) -> int:
    try:
        # TOML is UTF-8 whatever the locale; a path that is not is shown escaped.
        click.echo(text.encode("utf-8", "backslashreplace"), nl=False)
    except OSError as error:
        # The interpreter's own flush at exit must not complain, too.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):  # that reader has seen enough
            raise ProcmgrError(f"cannot write to standard output: {error.strerror}") from None
    return ExitCode.OK
