"""The fork of a worker, and the hygiene of the child before `worker.boot` takes over.

Rules: all signals are blocked across the fork, so none is lost and none runs the arbiter's handlers in the child. The
child closes what it inherited through the objects that own it (closing by number what a live Python object owns would
close somebody else's descriptor later), clears the wakeup descriptor and resets handlers before it restores the mask.
The child never returns into its parent's frames: it leaves by os._exit(2). A zygote forks by the same
rules.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from contextlib import suppress
from typing import TYPE_CHECKING

from procmgr.arbiter.signals import all_blocked, reset_in_child
from procmgr.errors import ExitCode
from procmgr.worker import boot

if TYPE_CHECKING:
    from collections.abc import Callable


def fork(
    run: Callable[[], int], *, close_in_child: Callable[[], None], reset: Callable[[], None] = reset_in_child
) -> int:
    """Fork a child that closes its parent's belongings, calls `run` and exits with what it returns.

    `reset` undoes the parent's signal setup in the child, before the mask is restored. Returns the child's pid. Raises
    `OSError` (EAGAIN, ENOMEM; fork(2)).
    """
    _flush_streams()  # what is buffered would be written twice
    with all_blocked() as mask:
        pid = os.fork()
        if pid == 0:
            _child(run, close_in_child, reset, mask)
    return pid


def fork_worker(birth: boot.Birth, *, close_in_child: Callable[[], None]) -> int:
    """Fork a worker; returns its pid, raises `OSError`."""
    return fork(lambda: boot.boot(birth), close_in_child=close_in_child)


def _child(
    run: Callable[[], int], close_in_child: Callable[[], None], reset: Callable[[], None], mask: set[int]
) -> None:
    status: int = ExitCode.CRASH
    try:
        reset()
        close_in_child()
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        status = run()
    except BaseException:  # noqa: BLE001 - nothing may unwind into the arbiter's frames; the reason is said, then we exit
        traceback.print_exc()
    finally:
        try:
            _flush_streams()
        finally:
            os._exit(status)


def _flush_streams() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # the reader left, the disk is full, the application closed it
            stream.flush()
