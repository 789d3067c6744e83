"""What workers left behind: processes that the arbiter, as a subreaper, adopted when their parent died.

A killed worker cannot end the children of its process pool; they would keep memory, and whatever they inherited, for
ever. At the end of a stop they get TERM, a second, then KILL (prctl(2), PR_SET_CHILD_SUBREAPER).
"""

from __future__ import annotations

import os
import select
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

_GRACE_SECONDS: Final = 1.0


def end_all(*, except_pids: frozenset[int]) -> int:
    """End every child of this process except those given; returns how many there were.

    Children of an ended child are adopted in turn, so this looks again until none is left, for at most two seconds.
    """
    start = time.monotonic()
    ended: set[int] = set()
    while children := _children() - except_pids:
        waited = time.monotonic() - start
        if waited >= 2 * _GRACE_SECONDS:
            break  # not even KILL ends a process in uninterruptible sleep
        late = waited >= _GRACE_SECONDS
        _signal(children if late else children - ended, signal.SIGKILL if late else signal.SIGTERM)
        ended |= children
        _reap_one(children, (2 if late else 1) * _GRACE_SECONDS - waited)
    return len(ended)


def bury(pid: int) -> None:
    """Reap a child that is about to end; for at most a second, since even a killed one may be in the kernel."""
    with suppress(ProcessLookupError):  # it is reaped already
        _reap_one({pid}, _GRACE_SECONDS)


def _children() -> set[int]:
    """Return the pids of this process's children; empty where /proc does not say (proc(5), task/TID/children)."""
    pid = os.getpid()
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return set()
    return {int(child) for child in text.split()}


def _signal(pids: set[int], signum: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signum)


def _reap_one(pids: set[int], seconds: float) -> None:
    """Wait until one of `pids` died or `seconds` passed, then reap what is dead."""
    poller = select.poll()
    pidfds = []
    try:
        for pid in pids:
            pidfds.append(os.pidfd_open(pid))  # our own children: a pid is not reused before we reap it
            poller.register(pidfds[-1], select.POLLIN)
    except ProcessLookupError:
        raise
    except OSError:
        pass  # out of descriptors: they have all of the time, as if none of them would end
    poller.poll(max(0.0, seconds) * 1000)
    for pidfd in pidfds:
        os.close(pidfd)
    for pid in pids:
        with suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
