"""Calling hooks: the functions of the application's author that the settings name as "module:attribute".

A hook takes one dict that JSON can render. Here whatever it does is contained: it is found, called, bounded in time
and, if it fails, reported with its own traceback; its caller goes on. The bounds differ with the place:

- `post_fork` runs on the worker's main thread before there is a loop, as code that repairs a fork expects, and
  `pre_fork` on the zygote's. SIGALRM ends it, again and again should it catch that.
- `worker_ready` runs beside the loop, on a thread, which nobody can end: it is reported and left alone.
- The arbiter's hooks run in processes of their own, which it kills (`arbiter.hooks`).
"""

from __future__ import annotations

import atexit
import inspect
import logging
import os
import signal
import sys
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from procmgr import process
from procmgr.errors import AppError, ExitCode, ProcmgrError
from procmgr.worker.app import find, one_line, own_traceback

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Mapping
    from types import FrameType

    from procmgr.worker.boot import Birth

SECONDS: Final = 10.0
"""How long a hook may run."""

_AGAIN_SECONDS: Final = 1.0
_LAST_RESORT_SECONDS: Final = 15

log = logging.getLogger("procmgr.error")


class _TooLong(BaseException):
    """The hook's time is over; no error of its own, that its `except Exception` should catch."""


def pre_fork(birth: Birth, *, worker_id: int, slot: int) -> bool:
    """Call the hook of that name in a zygote, about to fork this worker; returns whether to do so again."""
    target = birth.settings.hooks.pre_fork
    if target is None:
        return False
    told = _told("pre_fork", replace(birth, worker_id=worker_id, slot=slot), pid=None)
    return run_before_loop("pre_fork", target, birth.settings.app.app_dir, told)


def post_fork(birth: Birth) -> None:
    """Call the hook of that name in a worker."""
    target = birth.settings.hooks.post_fork
    if target is not None:
        run_before_loop("post_fork", target, birth.settings.app.app_dir, _told("post_fork", birth, pid=os.getpid()))


def worker_ready(birth: Birth, loop: asyncio.AbstractEventLoop) -> None:
    """Call the hook of that name in a worker whose loop runs."""
    target = birth.settings.hooks.worker_ready
    if target is not None:
        told = _told("worker_ready", birth, pid=os.getpid())
        run_beside_loop(loop, "worker_ready", target, birth.settings.app.app_dir, told)


def _told(hook: str, birth: Birth, *, pid: int | None) -> dict[str, Any]:
    """Return what a hook that is about one worker is told; `pid` is the worker's, if it has one."""
    worker = {"slot": birth.slot, "worker": birth.worker_id, "pid": pid, "generation": birth.generation}
    return {"hook": hook, "name": birth.settings.process.name, "pid": birth.arbiter_pid, "worker": worker}


def call(target: str, app_dir: str, told: Mapping[str, Any]) -> None:
    """Call a hook. Raises `AppError` if it cannot be found or called, else whatever it raises."""
    hook = find(target, app_dir=app_dir, role="hook")
    if not callable(hook):
        raise AppError(f"hook {target!r} cannot be called: it is of type {type(hook).__name__}")
    result = hook(dict(told))
    if inspect.iscoroutine(result):
        result.close()
        raise AppError(f"hook {target!r} is a coroutine function; expected an ordinary one")


def run_alone(target: str, told: Mapping[str, Any], *, app_dir: str, prepare: Callable[[], None]) -> int:
    """Call a hook in a child that the arbiter forked for it; say on stderr why it failed, return the exit status.

    `prepare` gives the child the workers' environment, directory and rights.
    """
    process.set_title(f"procmgr: {told['hook']}")
    for signum in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
        signal.signal(signum, lambda _signum, _frame: None)  # what a terminal sends to the group is the arbiter's
    atexit._clear()  # noqa: SLF001 - what the arbiter registered is not ours to run
    try:
        prepare()
        process.set_pdeathsig(signal.SIGKILL)
        if os.getppid() != told["pid"]:
            return ExitCode.OK
        signal.alarm(_LAST_RESORT_SECONDS)  # for when the arbiter became another program meanwhile
        call(target, app_dir, told)
    except BaseException as error:  # noqa: BLE001 - SystemExit included: whatever it is, it is the hook's failure
        sys.stderr.write(f"{_reason(error)}\n")
        return ExitCode.CRASH
    return ExitCode.OK


def run_before_loop(name: str, target: str, app_dir: str, told: Mapping[str, Any]) -> bool:
    """Call a hook on the main thread, for at most `SECONDS`; log its failure. Returns whether it ended in time."""

    def over(_signum: int, _frame: FrameType | None) -> None:
        raise _TooLong

    before = signal.signal(signal.SIGALRM, over)
    try:
        signal.setitimer(signal.ITIMER_REAL, SECONDS, _AGAIN_SECONDS)
        try:
            call(target, app_dir, told)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except _TooLong as error:
        log.error("hook %s (%s) took longer than %g s and was cut short\n%s", name, target, SECONDS, _reason(error))
        return False
    except BaseException as error:  # noqa: BLE001 - SystemExit included: a hook does not end a worker
        _log_failure(name, target, error)
    finally:
        signal.signal(signal.SIGALRM, before)
    return True


def run_beside_loop(
    loop: asyncio.AbstractEventLoop, name: str, target: str, app_dir: str, told: Mapping[str, Any]
) -> None:
    """Call a hook on a thread that nobody waits for; log its failure, and if it still runs after `SECONDS`."""

    def run() -> None:
        try:
            call(target, app_dir, told)
        except BaseException as error:  # noqa: BLE001 - as above
            _log_failure(name, target, error)

    thread = threading.Thread(target=run, name=f"procmgr-{name}", daemon=True)
    thread.start()
    loop.call_later(SECONDS, lambda: _check(thread, name, target))


def _check(thread: threading.Thread, name: str, target: str) -> None:
    if thread.is_alive():
        log.error("hook %s (%s) still runs after %g s; it is left alone", name, target, SECONDS)


def _log_failure(name: str, target: str, error: BaseException) -> None:
    log.error("hook %s (%s) failed: %s", name, target, _reason(error))


def _reason(error: BaseException) -> str:
    if isinstance(error, AppError):
        return "\n".join(filter(None, (error.summary, error.detail)))
    if isinstance(error, ProcmgrError):
        return str(error)
    return "\n".join(filter(None, (one_line(error), own_traceback(error))))
