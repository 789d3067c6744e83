"""The preflight of an upgrade: the new program in a child, asked whether it could adopt this arbiter's state.

Rules: the child gets a copy of the state and none of the descriptors in it. It dies with the arbiter, and its whole
process group dies when the answer is not wanted any more or too late. Its output is what a person will read of a
refusal; it is kept to a bounded tail. The answer is written into the copy, so that no output of an application can
be taken for it, and neither can the success of a program that knows nothing of upgrades.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from typing import TYPE_CHECKING, Final, NoReturn

from procmgr import handover, process
from procmgr.arbiter import spawn
from procmgr.errors import ExitCode
from procmgr.handover import Role

if TYPE_CHECKING:
    from procmgr.arbiter.core.events import Exit
    from procmgr.handover import Envelope, Program

_TAIL_BYTES: Final = 16 * 1024
_READ_BYTES: Final = 64 * 1024


class Preflight:
    """One child. Raises `OSError` when it cannot be started."""

    def __init__(self, program: Program, envelope: Envelope) -> None:
        self._tail = b""
        self._arbiter = os.getpid()
        self._copy = envelope.write()
        self._reader, writer = os.pipe2(os.O_CLOEXEC)
        try:
            os.set_blocking(self._reader, False)
            run = lambda: self._run(program, envelope.cwd, writer)  # noqa: E731 - it is called in the child only
            self.pid = spawn.fork(run, close_in_child=_nothing)
        except BaseException:
            self.close()
            raise
        finally:
            os.close(writer)
        self._lead_group()

    def fileno(self) -> int:
        """Return the descriptor of its output, to be polled for reading."""
        return self._reader

    def read(self) -> bool:
        """Read what it wrote since the last call, as far as 64 KiB go; False once there will be no more."""
        try:
            data = os.read(self._reader, _READ_BYTES)
        except BlockingIOError:
            return True
        self._tail = (self._tail + data)[-_TAIL_BYTES:]
        return bool(data)

    def verdict(self, exit_: Exit) -> tuple[str | None, str]:
        """Return, once it is reaped, the release that can take over, None if it cannot; and the end of its output."""
        self.read()  # as much as a pipe holds (pipe(7)); more can only come from what it left behind
        release = handover.answered(self._copy) if exit_.code == ExitCode.OK else None
        return release, self._tail.decode(errors="replace").strip()

    def kill(self) -> None:
        """End it, with whatever it started. To be called before it is reaped, as long as the pid is its own."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    def close(self) -> None:
        """Let go of it; to be called once it is not watched any more."""
        os.close(self._reader)
        os.close(self._copy)

    def _lead_group(self) -> None:
        # Both sides do it, or a kill could come before there is a group; EACCES once the child is the new program.
        with suppress(ProcessLookupError, PermissionError):
            os.setpgid(self.pid, self.pid)

    def _run(self, program: Program, cwd: str, output: int) -> NoReturn:
        os.setpgid(0, 0)
        process.set_pdeathsig(signal.SIGKILL)
        if os.getppid() != self._arbiter:
            raise ProcessLookupError("the arbiter died")
        null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        for source, standard in ((null, 0), (output, 1), (output, 2)):
            os.dup2(source, standard)
        os.chdir(cwd)
        handover.enter(program, self._copy, (), Role.CHECK)


def _nothing() -> None:
    """There is nothing to close in the child: all the arbiter has is close-on-exec."""
