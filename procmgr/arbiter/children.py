"""What the kernel says of this process's children: who died and how, who is one, who is stopped."""

from __future__ import annotations

import os
from pathlib import Path

from procmgr.arbiter.core.events import Exit


def dead_child() -> int | None:
    """Return the pid of a child that died, without reaping it; None if there is none."""
    try:
        found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return None
    return None if found is None else found.si_pid


def is_child(pid: int) -> bool:
    """Return whether `pid` is a child of this process that was not reaped yet."""
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except (OSError, OverflowError, ValueError):
        return False
    return True


def exit_of(status: int) -> Exit:
    """Translate a wait status (waitpid(2))."""
    if os.WIFSIGNALED(status):
        return Exit(signal=os.WTERMSIG(status), core=os.WCOREDUMP(status))
    return Exit(code=os.waitstatus_to_exitcode(status))


def is_stopped(pid: int) -> bool:
    """Tell whether the process is in state T (proc(5), field 3 of stat); False where /proc does not say."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return False
    return stat.rpartition(b")")[2].split()[:1] == [b"T"]


def killed_by(pid: int) -> int | None:
    """Return the signal that ended a child which was not reaped yet; None if it lives, or ended otherwise."""
    try:
        found = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return None
    if found is None or found.si_code not in {os.CLD_KILLED, os.CLD_DUMPED}:
        return None
    return found.si_status
