"""The exception tree and the one table of exit codes.

Whatever ends procmgr deliberately is a `ProcmgrError`: its text is the one line a person reads, its `exit_code` is what
the shell, systemd and an orchestrator see. Anything else that escapes is a bug and exits with `ExitCode.CRASH`.
"""

from __future__ import annotations

from enum import IntEnum
from typing import ClassVar


class ExitCode(IntEnum):
    """Every status procmgr exits with. From 64 on the numbers are those of sysexits.h."""

    OK = 0
    CRASH = 1
    USAGE = 2
    APP_FAILED = 3
    APP_NOT_FOUND = 4
    UNREACHABLE = 69
    OS_ERROR = 71
    TIMED_OUT = 75
    PERMISSION = 77
    CONFIG = 78


class ProcmgrError(Exception):
    """A refusal with a reason: one line for a person, one exit code for a program."""

    exit_code: ClassVar[ExitCode] = ExitCode.CRASH


class UsageError(ProcmgrError):
    """The command line is wrong."""

    exit_code = ExitCode.USAGE


class ConfigError(ProcmgrError):
    """A configuration file or an environment variable is wrong."""

    exit_code = ExitCode.CONFIG


class AppError(ProcmgrError):
    """The application was found but did not start: its import raised, or its lifespan startup failed.

    `summary` is the one line, `detail` the application's own traceback or words; empty when the line says it all.
    """

    exit_code = ExitCode.APP_FAILED

    def __init__(self, summary: str, detail: str = "") -> None:
        super().__init__(summary)
        self.summary = summary
        self.detail = detail


class AppNotFoundError(AppError):
    """The application could not be found: ImportError, SyntaxError, or no such attribute."""

    exit_code = ExitCode.APP_NOT_FOUND


class TooSlowError(ProcmgrError):
    """Something was not done in the time that it had."""

    exit_code = ExitCode.TIMED_OUT


class BindError(ProcmgrError):
    """A listener could not be bound or taken over."""

    exit_code = ExitCode.OS_ERROR


class AddressInUseError(BindError):
    """Somebody else listens there."""


class PrivilegeError(ProcmgrError):
    """The operating system refused a right: a privileged port, a user switch, a file."""

    exit_code = ExitCode.PERMISSION


class UnavailableError(ProcmgrError):
    """There is no daemon to be reached, or it is about to end."""

    exit_code = ExitCode.UNREACHABLE


class ClientDisconnected(OSError):  # noqa: N818 - an event in the application's eyes, not a fault; the ASGI spec asks for an OSError
    """Raised by `send()` once the client is gone (ASGI HTTP spec_version 2.4 and later)."""
