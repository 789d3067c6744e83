"""The log files that the settings name: opened, and on USR1 opened anew, by the arbiter alone.

A worker without privileges may not open them, so it inherits the descriptors and is sent the new ones on its channel.
Writes of several processes do not mix since the files are opened with O_APPEND (open(2)).
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

from procmgr.errors import ConfigError, PrivilegeError
from procmgr.handover import Descriptor
from procmgr.plain import record

if TYPE_CHECKING:
    from collections.abc import Callable

    from procmgr.config.log import LogSettings

_MODE: Final = 0o640
_STDOUT: Final = 1
_STDERR: Final = 2


@record
class LogFilesEstate:
    """The log files as they are handed over, open."""

    error: Descriptor
    access: Descriptor


class LogFiles:
    """Where diagnostics and access lines go, as the descriptors `error` and `access`.

    Raises `ConfigError` or `PrivilegeError` when a file cannot be opened. With `estate` the files are open already.
    """

    def __init__(self, settings: LogSettings, estate: LogFilesEstate | None = None) -> None:
        self._settings = settings
        if estate is None:
            self.error, self.access = self._open_all()
        else:
            self.error, self.access = estate.error.number, estate.access.number

    def hand_over(self) -> LogFilesEstate:
        """Return what a successor needs."""
        return LogFilesEstate(error=Descriptor(self.error), access=Descriptor(self.access))

    def reopen(self) -> tuple[int, int]:
        """Return new descriptors for diagnostics and access lines, all of them the caller's to close.

        Raises as the constructor does; then nothing changed.
        """
        return self._open_all(os.dup)

    def _open_all(self, of_standard: Callable[[int], int] = lambda fd: fd) -> tuple[int, int]:
        """Open both files; in place of one that is a standard stream return what `of_standard` makes of that."""
        with ExitStack() as undo:
            error = _open("log_file", self._settings.log_file, _STDERR, of_standard, undo)
            access = _open("access_log_file", self._settings.access_log_file, _STDOUT, of_standard, undo)
            undo.pop_all()
        return error, access


def _open(setting: str, path: str | None, standard: int, of_standard: Callable[[int], int], undo: ExitStack) -> int:
    try:
        if path is None or path == "-":
            fd = of_standard(_STDOUT if path else standard)
        else:
            fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY, _MODE)
    except OSError as error:
        refusal = PrivilegeError if isinstance(error, PermissionError) else ConfigError
        raise refusal(f"{setting}: cannot open {path or 'a standard stream'}: {error.strerror}") from error
    if fd <= _STDERR:
        return fd
    undo.callback(os.close, fd)
    return fd
