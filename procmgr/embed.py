"""procmgr from Python: `run`, and `Config` and `Server` for who has a loop already; uvicorn's keyword names.

Rules: an application given as an import string is run by the daemon, in a process of its own: whoever calls `run` may
have imported the application already, and a fork of that would serve stale code after a reload. An application given
as an object is served in this process and without an arbiter; what needs one is refused. Nothing of the caller's is
changed unasked: not the logging configuration, not the environment, not signal handlers.
"""

from __future__ import annotations

import asyncio
import difflib
import logging
import os
import signal
import sys
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, assert_never

from procmgr import logs, sockets
from procmgr.arbiter.core.events import StopLevel
from procmgr.arbiter.signals import StopLadder
from procmgr.config.foreign import explain
from procmgr.config.kind import BadValue
from procmgr.config.resolve import build
from procmgr.config.settings import TABLE, Settings
from procmgr.daemon import arguments, by_name, handlers, log_file, secrets, supervise
from procmgr.errors import AppError, ExitCode, ProcmgrError, UsageError
from procmgr.scoreboard import detached_row
from procmgr.sockets.listener import local_address
from procmgr.worker import server as worker
from procmgr.worker.app import adapt, how, load
from procmgr.worker.loops import loop_factory
from procmgr.worker.tls import context_alone

if TYPE_CHECKING:
    import socket
    import ssl
    from collections.abc import Iterator, Mapping, Sequence
    from types import FrameType

    from procmgr.worker.app import ASGIApp

QUICK_SECONDS: Final = 1.0
"""What running requests get on Ctrl-C."""

_FLUSH_SECONDS: Final = 1.0
_STOPPING: Final = (signal.SIGTERM, signal.SIGINT)
_ARBITERS: Final = frozenset(
    {
        *(name for name, entry in TABLE.items() if entry.group in {"pool", "process", "development", "hooks"}),
        *("env", "env_file", "chdir"),
    }
) - {"graceful_timeout", "max_requests", "max_requests_jitter"}
_FORMS: Final = (frozenset({"bind"}), frozenset({"uds"}), frozenset({"host", "port"}))
_NEVER: Final = ("ws_ping_interval", "ws_ping_timeout")  # what None is to uvicorn, which is 0 here
_NEEDS_STRING: Final = (
    "workers and reload need the application as an import string, such as 'main:app': "
    "other processes cannot import an object"
)

log = logging.getLogger("procmgr.error")


def run(app: Any, **keywords: Any) -> int:  # noqa: ANN401 - an import string, or whatever the application is
    """Serve `app` until it is stopped and return the exit status; `keywords` are the settings, by uvicorn's names too.

    An import string is run as `python -m procmgr` in a child, to which signals are forwarded. An object is served in
    this process; a status other than 0 has been explained in the log then.

    Raises TypeError for an unknown keyword and `UsageError` for a bad value. Exits with 3, as uvicorn does, if an
    object is to be served with `workers` or `reload`.
    """
    if "PROCMGR_WORKER_ID" in os.environ and "procmgr.worker.boot" in sys.modules:
        raise UsageError("procmgr.run was called by what procmgr imports; put it under if __name__ == '__main__'")
    if isinstance(app, str):
        return _run_daemon(app, keywords)
    if keywords.get("reload") or (keywords.get("workers") or 1) != 1:
        log.error(_NEEDS_STRING)
        sys.exit(ExitCode.APP_FAILED)
    config = Config(app, install_signal_handlers=True, **keywords)
    if keywords.get("log_config") is None:
        config.logs = _configure(config.settings, None)
    try:
        Server(config).run()
    except ProcmgrError as error:
        log.error("%s", _whole(error))
        return error.exit_code
    return ExitCode.OK


class Config:
    """What to serve and how; `keywords` are the settings, by uvicorn's names too. Applies to serving in this process.

    `log_config` configures `logging`; without it procmgr's loggers are left as they are, but for `log_level`. Signal
    handlers are installed, while serving on the main thread, only with `install_signal_handlers`. What
    `ssl_context_factory` is called with are the settings of TLS and a function that makes the usual context.

    Raises TypeError for an unknown keyword, `UsageError` for a bad value or one that only the daemon can honour.
    """

    def __init__(self, app: Any, *, install_signal_handlers: bool = False, **keywords: Any) -> None:  # noqa: ANN401 - as for `run`
        log_config = keywords.pop("log_config", None)
        named = isinstance(keywords.get("ssl_context_factory"), str)
        self._make_tls = None if named else keywords.pop("ssl_context_factory", None)
        values = _values(keywords)
        for name in values:
            if name in _ARBITERS and values[name] != TABLE[name].value:
                raise UsageError(f"{name} is for the daemon: give procmgr.run the application as an import string")
        if sum(bool(form & values.keys()) for form in _FORMS) > 1:
            raise UsageError("bind, uds, and host and port exclude each other; expected only one of them")
        self.app = app
        self.install_signal_handlers = install_signal_handlers
        self.settings = build({**values, "app": app if isinstance(app, str) else f"{type(app).__name__} object"})
        self.logs = _borrow(self.settings) if log_config is None else _configure(self.settings, log_config)

    def load(self) -> ASGIApp:
        """Return the application as an ASGI 3 callable; raises `AppError`."""
        app = self.settings.app
        if isinstance(self.app, str):
            return load(self.app, app_dir=app.app_dir, **how(app))
        return adapt(self.app, name=app.app, **how(app))

    @property
    def secure(self) -> bool:
        """Whether HTTPS is spoken."""
        return self.settings.tls.enabled or self._make_tls is not None

    def load_tls(self) -> ssl.SSLContext | None:
        """Return what TLS connections begin with, None for plain HTTP; raises `ConfigError` or `AppError`."""
        return context_alone(self.settings, self._make_tls)


class Server:
    """Serves a `Config` once, in this process.

    `started` is true from the moment connections are accepted. Setting `should_exit`, from any thread, stops the
    server gracefully.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.started = False
        self._should_exit = False
        self._handle_signals = config.install_signal_handlers
        self._loop: asyncio.AbstractEventLoop | None = None
        self._server: worker.Server | None = None
        self._listeners: tuple[sockets.Listener, ...] = ()
        self._finished = asyncio.Event()

    @property
    def should_exit(self) -> bool:
        """Whether the server is to stop, or has been."""
        return self._should_exit

    @should_exit.setter
    def should_exit(self, value: bool) -> None:
        self._should_exit = value
        if value and self._loop is not None:
            with suppress(RuntimeError):  # the loop was closed meanwhile: it has stopped
                self._loop.call_soon_threadsafe(self._stop)

    @property
    def urls(self) -> tuple[str, ...]:
        """Where it listens: a URL for TCP, port 0 resolved, and `unix:/path` for a Unix socket."""
        scheme = "https" if self.config.secure else "http"
        return tuple(sockets.url(listener.address, scheme=scheme) for listener in self._listeners)

    def run(self, sockets: Sequence[socket.socket] | None = None) -> None:
        """Serve in a loop of its own until stopped, on the main thread by TERM or INT. Raises as `serve`."""
        self._handle_signals = True
        with asyncio.Runner(loop_factory=loop_factory(self.config.settings.app)) as runner:
            runner.run(self.serve(sockets))

    async def serve(self, sockets: Sequence[socket.socket] | None = None) -> None:
        """Serve on the running loop until stopped; `sockets`, which belong to the server then, or what is configured.

        Cancelled, it cancels running requests, gives the application's shutdown its time, and ends. Raises `AppError`
        if the application does not start, `BindError` and `PrivilegeError` if it cannot listen.
        """
        if self._loop is not None or self._finished.is_set():
            raise RuntimeError("a Server serves once; make another")
        self._loop = asyncio.get_running_loop()
        try:
            app = self.config.load()
            tls = self.config.load_tls()
            self._listeners = _listen(self.config.settings, sockets)
            with self._signals(self._loop):
                await self._live(self._make(app, tls))
        finally:
            self._close()

    async def shutdown(self) -> None:
        """Stop gracefully and wait until all is done; returns at once if nothing is served."""
        self.should_exit = True
        if self._loop is not None:
            await self._finished.wait()

    def _make(self, app: ASGIApp, tls: ssl.SSLContext | None) -> worker.Server:
        self._server = worker.Server(
            app=app,
            settings=self.config.settings,
            listeners=self._listeners,
            row=detached_row(),
            logs=self.config.logs,
            tls=tls,
            on_request_limit=self._on_request_limit,
        )
        return self._server

    async def _live(self, server: worker.Server) -> None:
        """Run the server in a task of its own: a drain must outlive the cancellation of the caller's."""
        life = asyncio.ensure_future(self._start_and_serve(server))
        try:
            await asyncio.shield(life)
        except asyncio.CancelledError:
            if life.done():
                return  # stopped while it started: there was nothing to drain
            server.request_drain("quick", time.monotonic())
            await asyncio.wait({life})
            raise

    async def _start_and_serve(self, server: worker.Server) -> None:
        if self._should_exit:
            return
        await server.start()
        self.started = True
        log.info("serving on %s", ", ".join(self.urls))
        await server.serve_until_drained()

    def _close(self) -> None:
        for listener in self._listeners:
            sockets.unlink(listener)
            listener.sock.close()
        _flush(self.config.logs)
        self._loop = None
        self._finished.set()

    def _stop(self) -> None:
        self._drain("stop", self.config.settings.pool.graceful_timeout)

    def _drain(self, mode: str, seconds: float) -> None:
        self._should_exit = True
        if self._server is not None:
            self._server.request_drain(mode, time.monotonic() + seconds)

    def _on_request_limit(self, served: int) -> None:
        log.info("stopping after %d requests", served)
        self._stop()

    @contextmanager
    def _signals(self, loop: asyncio.AbstractEventLoop) -> Iterator[None]:
        if not self._handle_signals or threading.current_thread() is not threading.main_thread():
            yield
            return
        ladder = StopLadder()

        def handler(signum: int, _frame: FrameType | None) -> None:
            loop.call_soon_threadsafe(self._climb, ladder, signal.Signals(signum))

        # Not loop.add_signal_handler: it could not put back the handlers that it replaced.
        with handlers(_STOPPING, handler):
            yield

    def _climb(self, ladder: StopLadder, signum: signal.Signals) -> None:
        match ladder.climb(signum, time.monotonic()):
            case StopLevel.GRACEFUL:
                self._stop()
            case StopLevel.QUICK:
                self._drain("quick", QUICK_SECONDS)
            case StopLevel.KILL:
                self._drain("quick", 0.0)
            case None:
                pass
            case level:
                assert_never(level)


def _values(keywords: Mapping[str, object]) -> dict[str, object]:
    """Return checked settings by name; keywords that are None are left out, as most of uvicorn's defaults are that."""
    names = {entry.setting.uvicorn: name for name, entry in TABLE.items() if entry.setting.uvicorn}
    names |= {name: name for name in TABLE}
    del names["app"]
    values: dict[str, object] = {}
    for keyword, value in keywords.items():
        if keyword not in names:
            _refuse_foreign(keyword, value, [*names])
        elif value is not None:
            values[names[keyword]] = _value(keyword, names[keyword], value)
        elif keyword in _NEVER:
            values[keyword] = 0.0
    return values


def _value(keyword: str, name: str, value: object) -> object:
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    elif isinstance(value, list | tuple):
        value = [os.fspath(each) if isinstance(each, os.PathLike) else each for each in value]
    if name == "log_level":
        value = (logging.getLevelName(value) if isinstance(value, int) else str(value)).lower()
    try:
        checked: object = TABLE[name].setting.kind.of(value)
    except BadValue as error:
        raise UsageError(f"{keyword}={error}") from None
    return checked


def _refuse_foreign(keyword: str, value: object, known: list[str]) -> None:
    """Refuse what is no setting; what uvicorn knows and procmgr does not is fine as long as it asks for nothing."""
    why = explain(keyword) or explain(f"{keyword.removesuffix('s')}")
    if why is None:
        close = difflib.get_close_matches(keyword, known, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise TypeError(f"procmgr got an unexpected keyword argument {keyword!r}{hint}")
    if value and value != "none":
        raise UsageError(f"{keyword} {why}")


def _run_daemon(app: str, keywords: Mapping[str, object]) -> int:
    try:
        target = TABLE["app"].setting.kind.of(app)
    except BadValue as error:
        raise UsageError(f"app={error}") from None
    with log_file(keywords) as settings:
        values = _values(by_name(settings))
        command = [sys.executable, "-m", "procmgr", *arguments(values), target]
        return supervise(command, {**os.environ, **secrets(values)})


def _listen(settings: Settings, given: Sequence[socket.socket] | None) -> tuple[sockets.Listener, ...]:
    made: list[sockets.Listener] = []
    backlog = settings.bind.backlog
    try:
        if given is not None:
            made += [_take(sock, backlog) for sock in given]
        else:
            for address in settings.bind.addresses:
                made.append(_bind(address, backlog))
    except ProcmgrError:
        for listener in made:
            sockets.unlink(listener)
            listener.sock.close()
        raise
    return tuple(made)


def _bind(address: sockets.Address, backlog: int) -> sockets.Listener:
    match address:
        case sockets.Inherited(fd):
            return sockets.adopt(fd, backlog=backlog)
        case sockets.SystemdName():
            raise UsageError(f"{address}: sockets from systemd are for the daemon")
        case _:
            return sockets.bind(address, backlog=backlog)


def _take(sock: socket.socket, backlog: int) -> sockets.Listener:
    """Return the caller's socket as a listener; it counts as bound here, since nobody else is known to hold it."""
    address = local_address(sock)
    if address is None:
        raise UsageError(f"socket {sock.fileno()} is not bound")
    sock.settimeout(0.0)
    sock.listen(backlog)
    return sockets.Listener(sock=sock, address=address, requested=address, origin=sockets.Origin.BOUND)


def _configure(settings: Settings, log_config: Any) -> logs.LogSetup:  # noqa: ANN401 - checked by `logs.configure`
    given = settings.logs
    return logs.configure(
        level=given.log_level, access=given.access_log, use_colors=given.use_colors, log_config=log_config
    )


def _borrow(settings: Settings) -> logs.LogSetup:
    """Log through the caller's own configuration of `logging`, whatever it is."""
    if settings.logs.log_level is not None:
        logs.set_level(settings.logs.log_level)
    return logs.LogSetup(
        access=logs.LineWriter(1) if settings.logs.access_log else None,
        access_via_logging=True,
        access_colors=False,
        error_writer=logs.LineWriter(2),
    )


def _flush(setup: logs.LogSetup) -> None:
    setup.error_writer.close(_FLUSH_SECONDS)
    if setup.access is not None:
        setup.access.close(_FLUSH_SECONDS)


def _whole(error: ProcmgrError) -> str:
    detail = error.detail if isinstance(error, AppError) else ""
    return "\n".join(filter(None, (str(error), detail)))
