"""The child's entry after the fork: from a copy of the arbiter to a serving worker, and out again by a typed exit.

Order matters: the stack dump handler first (its signal would kill a process without it), then everything that decides
what code is imported (environment, directory), then the loss of privileges, then the application's import, then the
loop. PR_SET_PDEATHSIG is cleared by setresuid(2), so it is set after that, and the parent is looked at again since it
may have died in between (prctl(2)).

Until the loop runs TERM, INT and QUIT keep their default action: a worker that is importing ends at once. Afterwards
TERM asks for a drain, and the signals that are meant for the arbiter (a terminal sends INT to the whole group) do
nothing here.
"""

from __future__ import annotations

import asyncio
import atexit
import faulthandler
import importlib
import logging
import os
import signal
import sys
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from procmgr import logs, messages, process
from procmgr.errors import AppError, ConfigError, ExitCode, ProcmgrError
from procmgr.worker import hooks
from procmgr.worker.app import how, load
from procmgr.worker.debugging import watch_for_debugger
from procmgr.worker.freshness import changed_since
from procmgr.worker.loops import loop_factory
from procmgr.worker.protocols.upgrade import upgrade_for
from procmgr.worker.server import Server
from procmgr.worker.tls import context_of
from procmgr.worker.wsgi import WSGI

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Mapping
    from pathlib import Path
    from types import FrameType

    from procmgr.config.settings import Settings
    from procmgr.logs import LogSetup
    from procmgr.process import Privileges
    from procmgr.scoreboard import Records, Row
    from procmgr.sockets import Listener
    from procmgr.tls import Contexts
    from procmgr.worker.app import ASGIApp

_FLUSH_SECONDS: Final = 0.5
_END_SECONDS: Final = 0.75  # after the drain's own bounds, and still before the arbiter's KILL
STACKS_SIGNAL: Final = signal.SIGRTMIN + 6
_NOT_OURS: Final = (
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGTTIN,
    signal.SIGTTOU,
)
_KEPT_FROM_WORKERS: Final = frozenset(
    {
        "NOTIFY_SOCKET",
        "FDSTORE",
        "WATCHDOG_USEC",
        "WATCHDOG_PID",
        "LISTEN_FDS",
        "LISTEN_PID",
        "LISTEN_PIDFDID",
        "LISTEN_FDNAMES",
        "PROCMGR_SSL_KEYFILE_PASSWORD",
        "UVICORN_SSL_KEYFILE_PASSWORD",
    }
)

log = logging.getLogger("procmgr.error")


@dataclass(frozen=True, slots=True, kw_only=True)
class Birth:
    """What a worker is born with: one of `workers` that accept. `began` is when its generation did, time.time()."""

    worker_id: int
    slot: int
    generation: int
    workers: int
    arbiter_pid: int
    settings: Settings
    listeners: tuple[Listener, ...]
    privileges: Privileges | None
    environ: Mapping[str, str]
    cwd: Path
    began: float
    channel: messages.Channel
    row: Row
    records: Records
    stacks_fd: int
    logs: LogSetup
    tls: Contexts | None = None


def preimport(settings: Settings) -> None:
    """Import, in the arbiter, what every worker needs, so that a fork is quick and the memory is shared.

    All of the server, too: an upgrade on disk must not reach it in parts, by the workers that start later. No loop is
    created: its epoll instance would be shared by all children.
    """
    importlib.invalidate_caches()  # imports a module itself, which a worker without rights may be unable to
    for module in ("http1", "httptools_codec", "h11_codec", "patience", "secure", "told"):
        importlib.import_module(f"procmgr.worker.protocols.{module}")
    upgrade_for(settings.websocket)
    if settings.app.interface == "wsgi":
        importlib.import_module("a2wsgi")
    if settings.app.loop in {"auto", "uvloop"}:
        import uvloop  # noqa: F401, PLC0415 - only where it will be used


def boot(birth: Birth) -> int:
    """Run a worker to its end; returns its exit status. Called once, in a child that the arbiter forked."""
    leave_arbiter(birth.stacks_fd, birth.logs)
    return until_end(lambda ending: _run(birth, ending), channel=birth.channel, setup=birth.logs)


def hatch(birth: Birth, app: ASGIApp) -> int:
    """Run a worker to its end with the `app` that its zygote imported; as `boot`, but in a child of the zygote.

    The caller has waited until the arbiter adopted it.
    """
    faulthandler.register(STACKS_SIGNAL, file=birth.stacks_fd, all_threads=True)
    birth.logs.after_fork()
    return until_end(lambda ending: _serve(birth, ending, lambda: app), channel=birth.channel, setup=birth.logs)


def leave_arbiter(stacks_fd: int, setup: LogSetup) -> None:
    """Make a fork of the arbiter a process of its own, which dumps its stacks to `stacks_fd` when asked."""
    faulthandler.register(STACKS_SIGNAL, file=stacks_fd, all_threads=True)
    process.enlarge_signal_stack()
    setup.after_fork()
    atexit._clear()  # noqa: SLF001 - what the arbiter registered is not ours to run


def until_end(run: Callable[[Ending], int], *, channel: messages.Channel, setup: LogSetup) -> int:
    """Return what `run` returns, or tell the arbiter why it cannot start and return the exit status that says so."""
    ending = Ending(setup)
    status: int = ExitCode.CRASH
    try:
        status = run(ending)
    except AppError as error:
        status = _cannot_start(channel, error, error.detail)
    except ProcmgrError as error:
        status = _cannot_start(channel, error, "")
    finally:
        ending.run(status)
    return status


class Ending:
    """What the interpreter does at its end and os._exit(2) would skip, bounded.

    In its order: the event loop, then threads, since that is where executors end their processes, then exit functions,
    where multiprocessing waits for those. An application's task or thread may go on for ever, so at `until` (monotonic
    seconds), but not before it had `_END_SECONDS`, the process leaves without it.
    """

    def __init__(self, setup: LogSetup) -> None:
        self.until = 0.0
        self.stack = ExitStack()
        self._logs = setup
        self.stack.callback(atexit._run_exitfuncs)  # noqa: SLF001 - there is no other way to run them
        self.stack.callback(threading._shutdown)  # type: ignore[attr-defined] # noqa: SLF001 - as multiprocessing does in its children

    def run(self, status: int) -> None:
        """Run it all, or leave with `status`."""

        def leave(_signum: int, _frame: FrameType | None) -> None:
            log.warning("the application's tasks, threads or exit functions still run: leaving without them")
            _flush_logs(self._logs)
            os._exit(status)

        signal.signal(signal.SIGALRM, leave)
        signal.setitimer(signal.ITIMER_REAL, max(_END_SECONDS, self.until - time.monotonic()))
        self.stack.close()
        signal.setitimer(signal.ITIMER_REAL, 0)
        _flush_logs(self._logs)


def check(settings: Settings, privileges: Privileges | None, environ: Mapping[str, str], cwd: Path) -> int:
    """Import the application as a worker would and say on stderr why it cannot be; returns the exit code."""
    try:
        prepare(settings, privileges, environ, cwd)
        process.set_pdeathsig(signal.SIGKILL)  # who asked is gone: nobody waits for the answer
        load_app(settings)
        loop_factory(settings.app)
    except AppError as error:
        detail = f"{error.detail.rstrip()}\n" if error.detail else ""
        sys.stderr.write(f"{detail}procmgr: error: {error}\n")
        return error.exit_code
    except ProcmgrError as error:
        sys.stderr.write(f"procmgr: error: {error}\n")
        return error.exit_code
    return ExitCode.OK


def prepare(settings: Settings, privileges: Privileges | None, environ: Mapping[str, str], cwd: Path) -> None:
    """Give this process the environment, directory, umask and rights that the application is to be imported with.

    `cwd` is the directory of the start by its name, from which relative paths count: the one this process was forked
    in may be the old release by now. Raises `ConfigError` for a bad directory or env file and `PrivilegeError` when the
    rights cannot be given up.
    """
    os.environ.clear()
    os.environ.update(environment(settings, environ, cwd))
    _rename_start_directory(cwd)
    _enter(cwd / (settings.app.chdir or ""))
    if settings.process.umask is not None:
        os.umask(settings.process.umask)
    if privileges is not None:
        process.drop_privileges(privileges)


def environment(settings: Settings, environ: Mapping[str, str], cwd: Path) -> dict[str, str]:
    """Return the application's environment: the arbiter's own at its start, then --env-file, then --env.

    As with uvicorn a variable that exists already wins over the file.
    """
    result = {name: value for name, value in environ.items() if name not in _KEPT_FROM_WORKERS}
    if settings.app.env_file is not None:
        result = {**_env_file(cwd / settings.app.env_file), **result}
    return {**result, **dict(settings.app.env)}


def _env_file(path: Path) -> dict[str, str]:
    try:
        from dotenv import dotenv_values  # noqa: PLC0415 - an extra: only who asks for a file needs it
    except ImportError:
        raise ConfigError("env_file: reading it needs python-dotenv; install procmgr[dotenv]") from None
    try:
        with path.open(encoding="utf-8") as file:  # dotenv itself passes over a file that is not there
            values = dotenv_values(stream=file)
    except OSError as error:
        raise ConfigError(f"env_file: cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError:
        raise ConfigError(f"env_file: {path} is not UTF-8") from None
    return {name: value for name, value in values.items() if value is not None}


def _rename_start_directory(cwd: Path) -> None:
    """Call what `python -m` put first on sys.path by its name: with its symlinks resolved it stays an old release."""
    if sys.path and sys.path[0] in {"", os.getcwd()}:  # noqa: PTH109 - compared with a str
        sys.path[0] = str(cwd)


def _enter(directory: Path) -> None:
    """Change to `directory` by its path: an inode kept from the start would be the old release after a deploy."""
    try:
        os.chdir(directory)
        os.environ["PWD"] = str(directory)
    except OSError as error:
        raise ConfigError(f"cannot change to {directory}: {error.strerror}") from error


def load_app(settings: Settings) -> ASGIApp:
    """Import the application that `settings` name; raises `AppError`."""
    app = settings.app
    return load(app.app, app_dir=app.app_dir, **how(app))


def _run(birth: Birth, ending: Ending) -> int:
    prepare(birth.settings, birth.privileges, birth.environ, birth.cwd)
    return _serve(birth, ending, lambda: load_app(birth.settings))


def _serve(birth: Birth, ending: Ending, find: Callable[[], ASGIApp]) -> int:
    os.environ.update(_identity(birth))
    birth.logs.identify(slot=birth.slot, worker_id=birth.worker_id, generation=birth.generation)
    process.set_title(f"procmgr: worker {birth.slot}")
    process.set_pdeathsig(signal.SIGTERM)
    if os.getppid() != birth.arbiter_pid:
        return ExitCode.OK
    if birth.settings.health.core_on_hang:
        process.allow_core()
    watch_for_debugger(birth.row, workers=birth.settings.pool.workers)
    known = frozenset(sys.modules)
    hooks.post_fork(birth)
    app = find()
    tls = context_of(birth.settings, birth.tls)
    if (newer := changed_since(birth.began, but=known)) is not None:
        birth.channel.send(messages.CodeNewer(newer))
    os.register_at_fork(after_in_child=lambda: _leave_to_parent(birth))
    runner = ending.stack.enter_context(asyncio.Runner(loop_factory=loop_factory(birth.settings.app)))
    worker = _Worker(birth, app, tls)
    try:
        return _run_to_its_end(runner.get_loop(), worker)
    finally:
        ending.until = worker.deadline


def _run_to_its_end(loop: asyncio.AbstractEventLoop, worker: _Worker) -> int:
    """Run the worker although a task of the application may raise SystemExit, which asyncio lets out of the loop."""
    task = loop.create_task(worker.main())
    while not task.done():
        try:
            loop.run_until_complete(task)
        except (SystemExit, KeyboardInterrupt) as error:
            log.error("a task of the application raised %s; the worker goes on", type(error).__name__, exc_info=error)
    return task.result()


def _identity(birth: Birth) -> dict[str, str]:
    return {
        "PROCMGR_SLOT": str(birth.slot),
        "PROCMGR_WORKER_ID": str(birth.worker_id),
        "PROCMGR_GENERATION": str(birth.generation),
    }


def _leave_to_parent(birth: Birth) -> None:
    """In a child of the worker (a process pool): hold neither the port nor the channel after the worker's death."""
    for listener in birth.listeners:
        if listener.sock.fileno() >= 0:
            os.close(listener.sock.detach())  # close() waits for the event loop, which uses the socket, to let go of it
    birth.channel.close()


def _cannot_start(channel: messages.Channel, error: ProcmgrError, detail: str) -> int:
    channel.send(messages.BootFailed(int(error.exit_code), str(error), detail))
    return error.exit_code


def _flush_logs(setup: LogSetup) -> None:
    setup.error_writer.close(_FLUSH_SECONDS)
    if setup.access is not None:
        setup.access.close(_FLUSH_SECONDS)


def renew(birth: Birth, order: messages.NewCertificates, fds: tuple[int, ...]) -> None:
    """Use the certificates in these memfds for connections from now on, if they are for this generation."""
    try:
        if birth.tls is not None and birth.generation == order.generation:
            birth.tls.use(fds)
    except ConfigError as error:  # the arbiter has tried them
        log.error("the certificates stay as they are: %s", error)
    finally:
        for fd in fds:
            os.close(fd)


class _Worker:
    """The running worker: its server, and its ears for the arbiter and for TERM."""

    def __init__(self, birth: Birth, app: ASGIApp, tls: ssl.SSLContext | None) -> None:
        self._birth = birth
        self._channel = birth.channel
        self._server = Server(
            app=app,
            settings=birth.settings,
            listeners=birth.listeners,
            row=birth.row,
            records=birth.records,
            logs=birth.logs,
            tls=tls,
            alone=birth.workers == 1,
            on_request_limit=self._on_request_limit,
        )
        self._ready = False
        if isinstance(app, WSGI):
            app.on_stuck = self._on_stuck
        self.deadline = 0.0
        """When the newest drain has to be over, monotonic seconds."""

    async def main(self) -> int:
        """Start, say so, serve until drained; returns the exit status."""
        self._listen()
        try:
            await self._server.start()
        except asyncio.CancelledError:
            return ExitCode.OK
        self._ready = True
        self._channel.send(messages.Ready())
        hooks.worker_ready(self._birth, asyncio.get_running_loop())
        await self._server.serve_until_drained()
        return ExitCode.OK

    def _listen(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._on_term)
        for signum in _NOT_OURS:
            loop.add_signal_handler(signum, _nothing)
        loop.add_reader(self._channel.fileno(), self._on_channel)

    def _on_term(self) -> None:
        """Drain because somebody outside said so, and let the arbiter replace this worker; or stop starting."""
        if self._ready:
            self._channel.send(messages.DrainBegun())
        self._drain("retire", self._own_deadline())

    def _on_channel(self) -> None:
        try:
            while (received := self._channel.receive()) is not None:
                self._obey(*received)
        except messages.ChannelClosed:
            asyncio.get_running_loop().remove_reader(self._channel.fileno())
            log.warning("the arbiter died: draining")
            self._drain("stop", self._own_deadline())

    def _obey(self, message: messages.Message, fds: tuple[int, ...]) -> None:
        match message:
            case messages.Drain(mode=mode, deadline=deadline):
                self._drain(mode, deadline)
            case messages.Pause():
                self._server.pause()
            case messages.Resume():
                self._server.resume()
            case messages.Leave():
                self._server.leave()
            case messages.Scaled(workers=workers):
                self._server.share(alone=workers == 1)
            case messages.Configure(log_level=level):
                logs.set_level(level)
                self._server.apply_log_level()
            case messages.ReopenLogs():
                logs.reopen_files()
                self._birth.logs.replace(fds)
            case messages.NewCertificates():
                renew(self._birth, message, fds)
            case _:
                log.error("the arbiter sent a worker's message: %s", type(message).__name__)

    def _drain(self, mode: str, deadline: float) -> None:
        self.deadline = deadline
        self._server.request_drain(mode, deadline)

    def _own_deadline(self) -> float:
        return time.monotonic() + self._birth.settings.pool.graceful_timeout

    def _on_request_limit(self, served: int) -> None:
        self._channel.send(messages.RecycleDue(f"it served {served} requests"))

    def _on_stuck(self) -> None:
        self._channel.send(messages.RecycleDue("none of its threads came back from requests that were cancelled"))


def _nothing() -> None:
    """Answer a signal that was for the arbiter and reached the whole process group."""
