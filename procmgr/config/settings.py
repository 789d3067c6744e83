"""The table of settings: every one is declared here, once, and everywhere else is derived from this.

A group is a frozen dataclass of `setting`s. From `TABLE` come the command line, the `PROCMGR_*` variables, the TOML
keys, the JSON Schema, `etc/procmgr.toml` and `docs/settings.md`.

The values of a `Settings` are resolved and checked (see `resolve`): who has one just reads them. Times are seconds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Literal, get_args, get_type_hints

from procmgr import control, process
from procmgr.config.admin import AdminSettings
from procmgr.config.declare import Applies, Entry, entries, required, setting
from procmgr.config.development import DevelopmentSettings, HookSettings
from procmgr.config.health import HealthSettings
from procmgr.config.limits import LimitSettings
from procmgr.config.log import LogSettings
from procmgr.config.loops import loop
from procmgr.config.proxy import ProxySettings
from procmgr.config.tls import TLSSettings
from procmgr.config.types import (
    Pair,
    Surge,
    account,
    address,
    choice,
    count,
    header,
    host,
    instance_name,
    limit,
    many,
    octal,
    path,
    path_or_off,
    seconds,
    surge,
    switch,
    target,
    text,
    variable,
)
from procmgr.config.websocket import WebSocketSettings
from procmgr.sockets import TCP, Address, Inherited, Unix, parse_address

if TYPE_CHECKING:
    from collections.abc import Mapping

Interface = Literal["auto", "asgi3", "asgi2", "wsgi"]
Lifespan = Literal["auto", "on", "off"]
HTTPName = Literal["auto", "h11", "httptools"]

DEFAULT_HOST: Final = "127.0.0.1"
DEFAULT_PORT: Final = 8000
MAX_WORKERS: Final = 500
_WEEK: Final = 604_800
_MILLIARD: Final = 1_000_000_000
_LIVE: Final = Applies.LIVE
_ROLL: Final = Applies.ROLL
_RESTART: Final = Applies.RESTART
_ABSENT: Final = "that is not available in this version"


@dataclass(frozen=True, slots=True, kw_only=True)
class AppSettings:
    """Application."""

    app: str = field(
        metadata=required(target(), _ROLL, "The application, as in main:app.", uvicorn="app", gunicorn="wsgi_app")
    )
    app_dir: str = setting(
        ".",
        text("DIRECTORY", "a path", "src", empty=True),
        _ROLL,
        "Look for the application here first; a relative path counts from the working directory.",
        uvicorn="app_dir",
        gunicorn="pythonpath",
    )
    factory: bool = setting(
        False,
        switch(),
        _ROLL,
        "The attribute is a function without arguments that returns the application.",
        uvicorn="factory",
    )
    interface: Interface = setting(
        "auto",
        choice(get_args(Interface)),
        _ROLL,
        "How the application is called; auto tells asgi3 and asgi2 by its signature, wsgi has to be installed.",
        uvicorn="interface",
    )
    threads: int = setting(
        10,
        count(1, 1000),
        _ROLL,
        "How many requests of a WSGI application run at a time in each worker; others wait.",
        unit="threads",
        gunicorn="threads",
    )
    lifespan: Lifespan = setting(
        "auto",
        choice(get_args(Lifespan)),
        _ROLL,
        "Run the application's startup and shutdown; auto goes on without if it has none.",
        uvicorn="lifespan",
        gunicorn="asgi_lifespan",
    )
    root_path: str = setting(
        "",
        text("PATH", "some text", "/api", empty=True),
        _ROLL,
        "The path under which a proxy has mounted the application (ASGI root_path).",
        uvicorn="root_path",
        gunicorn="root_path",
    )
    preload: bool = setting(
        False,
        switch(),
        _ROLL,
        "Import the application once, in a process that the workers are forked from and share their memory with.",
        gunicorn="preload_app",
    )
    preload_immortal: bool = setting(
        False,
        switch(),
        _ROLL,
        "With preload, never free what was imported: reading it then copies no memory. Needs Python 3.12.",
    )
    loop: str = setting(
        "auto",
        loop(),
        _ROLL,
        "The event loop; auto is uvloop, MODULE:ATTR a function that makes another.",
        uvicorn="loop",
        gunicorn="asgi_loop",
    )
    reset_contextvars: bool = setting(
        False,
        switch(),
        _ROLL,
        "Run each request in an empty context, without the variables that lifespan startup set.",
        uvicorn="reset_contextvars",
    )
    env: tuple[Pair, ...] = setting(
        (),
        many(variable(), table=True),
        _ROLL,
        "Set an environment variable for the application.",
        flags=("-e",),
        gunicorn="raw_env",
        secret=True,
    )
    env_file: str | None = setting(
        None,
        path("FILE", ".env"),
        _ROLL,
        "Read environment variables for the application from this file; those that are set already win.",
        uvicorn="env_file",
    )
    chdir: str | None = setting(
        None,
        path("DIRECTORY", "/srv/app"),
        _ROLL,
        "Change to this directory before the application is imported.",
        default="the working directory",
        gunicorn="chdir",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class BindSettings:
    """Sockets. A field that is None was not given; `addresses` is what is really bound."""

    bind: tuple[str, ...] = setting(
        (),
        many(address(), separator=None),
        _ROLL,
        "Listen here: HOST:PORT, [V6]:PORT, unix:/PATH, unix:@NAME, fd://N or systemd:NAME.",
        flags=("-b",),
        default=f"{DEFAULT_HOST}:{DEFAULT_PORT}",
        gunicorn="bind",
    )
    host: str | None = setting(
        None,
        host(),
        _ROLL,
        "Listen on this address.",
        default=DEFAULT_HOST,
        uvicorn="host",
    )
    port: int | None = setting(
        None,
        count(0, 65535, metavar="PORT"),
        _ROLL,
        "Listen on this TCP port; 0 takes a free one.",
        default=str(DEFAULT_PORT),
        uvicorn="port",
    )
    uds: str | None = setting(
        None,
        path("FILE", "/run/app.sock"),
        _ROLL,
        "Listen on a Unix socket at this path.",
        uvicorn="uds",
    )
    fd: tuple[int, ...] = setting(
        (),
        many(count(0, (1 << 20) - 1, metavar="FD"), separator=None),
        _ROLL,
        "Take over the listening socket that the parent process left open under this number.",
        uvicorn="fd",
    )
    backlog: int = setting(
        2048,
        count(1, 65535),
        _RESTART,
        "How many connections the kernel may queue before they are accepted.",
        unit="connections",
        uvicorn="backlog",
        gunicorn="backlog",
    )

    @property
    def addresses(self) -> tuple[Address, ...]:
        """What is to be bound or taken over, without repetition; descriptors come beside all else."""
        found: list[Address] = [parse_address(text) for text in self.bind]
        if self.uds is not None:
            found.append(Unix(self.uds))
        if self.host is not None or self.port is not None or not (found or self.fd):
            host = DEFAULT_HOST if self.host is None else self.host
            found.append(TCP(host, DEFAULT_PORT if self.port is None else self.port))
        found += [Inherited(number) for number in self.fd]
        return tuple(dict.fromkeys(found))


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSettings:
    """Workers."""

    workers: int = setting(
        1,
        count(1, MAX_WORKERS, auto=process.usable_cpus),
        _LIVE,
        "How many workers serve; auto is one for each CPU that this process may use.",
        flags=("-w",),
        variables=("WEB_CONCURRENCY",),
        uvicorn="workers",
        gunicorn="workers",
    )
    timeout: float = setting(
        30.0,
        seconds(_WEEK, least=2),  # the sign of life comes once a second, and may come late under load
        _LIVE,
        "Replace a worker whose event loop gave no sign of life for so long; 0 never does.",
        flags=("-t", "--timeout-worker-healthcheck"),
        uvicorn="timeout_worker_healthcheck",
        gunicorn="timeout",
    )
    timeout_boot: float = setting(
        60.0,
        seconds(_WEEK, zero=False),
        _LIVE,
        "Give a new worker so long to import the application and get ready.",
    )
    graceful_timeout: float = setting(
        30.0,
        seconds(_WEEK),
        _ROLL,
        "Give a worker that stops so long to finish its requests.",
        flags=("--timeout-graceful-shutdown",),
        uvicorn="timeout_graceful_shutdown",
        gunicorn="graceful_timeout",
    )
    shutdown_delay: float = setting(
        0.0,
        seconds(_WEEK),
        _LIVE,
        "After TERM serve on for so long, not ready any more for those who ask, before the stop begins.",
    )
    reload_surge: Surge = setting(
        Surge(1),
        surge(MAX_WORKERS),
        _LIVE,
        "How many workers a reload may start before it retires old ones: a number, or a percentage.",
    )
    boot_attempts: int = setting(
        3, count(1, 1000), _LIVE, "Give up when so many starts failed in a row and no worker was ever ready."
    )
    max_requests: int | None = setting(
        None,
        limit(_MILLIARD),
        _ROLL,
        "Replace a worker after so many requests; 0 never does.",
        flags=("--limit-max-requests",),
        unit="requests",
        default="0",
        uvicorn="limit_max_requests",
        gunicorn="max_requests",
    )
    max_requests_jitter: int = setting(
        0,
        count(0, _MILLIARD),
        _ROLL,
        "Add up to so many requests to max_requests, at random for each worker.",
        flags=("--limit-max-requests-jitter",),
        unit="requests",
        uvicorn="limit_max_requests_jitter",
        gunicorn="max_requests_jitter",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class HTTPSettings:
    """HTTP."""

    http: HTTPName = setting(
        "auto",
        choice(get_args(HTTPName), {"zttp": _ABSENT}),
        _ROLL,
        "The HTTP/1.1 parser; auto is httptools.",
        uvicorn="http",
    )
    keep_alive: float = setting(
        5.0,
        seconds(_WEEK),
        _ROLL,
        "Close a connection on which no further request came for so long; 0 closes it after each response.",
        flags=("--timeout-keep-alive",),
        uvicorn="timeout_keep_alive",
        gunicorn="keepalive",
    )
    limit_concurrency: int | None = setting(
        None,
        limit(_MILLIARD),
        _ROLL,
        "Answer 503 to a request that comes while a worker runs so many; 0 is no limit.",
        default="0",
        uvicorn="limit_concurrency",
    )
    server_header: bool = setting(True, switch(), _ROLL, "Send a Server header.", uvicorn="server_header")
    date_header: bool = setting(True, switch(), _ROLL, "Send a Date header.", uvicorn="date_header")
    headers: tuple[Pair, ...] = setting(
        (),
        many(header(), table=True),
        _ROLL,
        "Add this header to every response.",
        flag="--header",
        uvicorn="headers",
    )
    h11_max_incomplete_event_size: int = setting(
        65_536,
        count(1024, 1 << 24, metavar="BYTES"),
        _ROLL,
        "How much of a request's head the h11 parser buffers at most.",
        uvicorn="h11_max_incomplete_event_size",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessSettings:
    """Process."""

    name: str = setting(
        "",
        instance_name(),
        _RESTART,
        "What this instance is called in the process list.",
        flags=("-n",),
        default="the configuration file's stem, else the application's module",
        gunicorn="proc_name",
    )
    pid: str | None = setting(
        None,
        path("FILE", "/run/app.pid"),
        _RESTART,
        "Write the arbiter's process id to this file, locked while it runs.",
        flags=("-p",),
        gunicorn="pidfile",
    )
    control: str | None = setting(
        None,
        path_or_off("PATH", "/run/procmgr/control.sock", control.OFF),
        _RESTART,
        "Answer procmgrctl on a Unix socket at this path; off does not.",
        default="$RUNTIME_DIRECTORY/control.sock, else $XDG_RUNTIME_DIR/procmgr/NAME.sock, else off",
        gunicorn="control_socket",
    )
    user: str | None = setting(
        None,
        account("USER", "www-data"),
        _ROLL,
        "Run the workers as this user, with its groups.",
        flags=("-u",),
        default="the user who starts procmgr",
        gunicorn="user",
    )
    group: str | None = setting(
        None,
        account("GROUP", "www-data"),
        _ROLL,
        "Run the workers as this group.",
        flags=("-g",),
        default="the user's own",
        gunicorn="group",
    )
    umask: int | None = setting(
        None,
        octal(),
        _ROLL,
        "The permissions that files made by the workers do not get, in octal, as in 022.",
        flags=("-m",),
        default="inherited",
        gunicorn="umask",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All settings of one configuration."""

    app: AppSettings
    bind: BindSettings = BindSettings()
    pool: PoolSettings = PoolSettings()
    http: HTTPSettings = HTTPSettings()
    limits: LimitSettings = LimitSettings()  # noqa: RUF009 - frozen, as its siblings are
    proxy: ProxySettings = ProxySettings()  # noqa: RUF009 - frozen, as its siblings are
    websocket: WebSocketSettings = WebSocketSettings()  # noqa: RUF009 - frozen, as its siblings are
    tls: TLSSettings = TLSSettings()  # noqa: RUF009 - frozen, as its siblings are
    health: HealthSettings = HealthSettings()  # noqa: RUF009 - frozen, as its siblings are
    admin: AdminSettings = AdminSettings()  # noqa: RUF009 - frozen, as its siblings are
    logs: LogSettings = LogSettings()  # noqa: RUF009 - frozen, as its siblings are
    process: ProcessSettings = ProcessSettings()
    development: DevelopmentSettings = DevelopmentSettings()
    hooks: HookSettings = HookSettings()


GROUPS: Final[Mapping[str, type[Any]]] = MappingProxyType(get_type_hints(Settings))

TABLE: Final[Mapping[str, Entry]] = MappingProxyType(
    {entry.name: entry for group, declared in GROUPS.items() for entry in entries(group, declared)}
)
