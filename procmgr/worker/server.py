"""One worker's serving: the application's start, connections from all listeners, the beat, and the drain.

The same class serves under an arbiter (`worker.boot`) and embedded in somebody's loop (`procmgr.embed`); it knows
neither signals nor the channel. Order: the application starts first, then connections are accepted, so that a client
never waits inside a worker that is not ready; what arrives before is queued in the listener, for whoever is.
"""

from __future__ import annotations

import asyncio
import logging
import random
from typing import TYPE_CHECKING, Any

from procmgr.logs import ACCESS_LOGGER, access_customised
from procmgr.scoreboard import LOG_DROPPED, InFlight
from procmgr.worker.acceptor import Acceptor, Room, open_plain
from procmgr.worker.access import ExcludingAccessLog, LineAccessLog, RecordAccessLog, access_wanted
from procmgr.worker.access_formats import FormattedAccessLog
from procmgr.worker.beat import Beat
from procmgr.worker.drain import Drain
from procmgr.worker.forwarded import Forwarding
from procmgr.worker.lifespan import Lifespan, Mode
from procmgr.worker.protocols.base import http_factory
from procmgr.worker.protocols.context import Context, DrainMode, Limits
from procmgr.worker.protocols.secure import Secure
from procmgr.worker.protocols.upgrade import upgrade_for
from procmgr.worker.proxy_protocol import ProxyOpener
from procmgr.worker.tls import Handshake

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Sequence

    from procmgr.config.limits import LimitSettings
    from procmgr.config.log import LogSettings
    from procmgr.config.proxy import ProxySettings
    from procmgr.config.settings import HTTPSettings, Settings
    from procmgr.logs import LogSetup
    from procmgr.scoreboard import Records, Row
    from procmgr.sockets import Listener
    from procmgr.worker.acceptor import Opener
    from procmgr.worker.access import AccessLog
    from procmgr.worker.app import ASGIApp
    from procmgr.worker.protocols.base import CodecName

log = logging.getLogger("procmgr.error")


class Server:
    """Serves one application on the running loop, once: start, serve until drained.

    The listeners' sockets in this process belong to the server, which closes them when it drains. `on_request_limit`
    is called with the number of requests served when `max_requests` is reached; the server goes on serving. With `tls`
    every connection begins with a handshake. `alone` says that no other worker accepts from the listeners.
    """

    def __init__(
        self,
        *,
        app: ASGIApp,
        settings: Settings,
        listeners: Sequence[Listener],
        row: Row,
        logs: LogSetup,
        on_request_limit: Callable[[int], None],
        records: Records | None = None,
        tls: ssl.SSLContext | None = None,
        alone: bool = True,
    ) -> None:
        self._app = app
        self._settings = settings
        self._listeners = listeners
        self._row = row
        self._records = records
        self._logs = logs
        self._tls = tls
        self._alone = alone
        self._acceptors: list[Acceptor] = []
        self._on_request_limit = on_request_limit
        self._state: dict[str, Any] = {}
        self._wsgi = settings.app.interface == "wsgi"
        mode: Mode = "off" if self._wsgi else settings.app.lifespan
        self._lifespan = Lifespan(app=app, mode=mode, state=self._state, log=log)
        self._access: AccessLog | None = None
        self._context: Context | None = None
        self._starting: asyncio.Task[Any] | None = None
        self._beat: Beat | None = None
        self._drain: Drain | None = None
        self._early: list[tuple[DrainMode, float]] = []

    async def start(self) -> None:
        """Start the application and accept connections.

        Raises `AppError` if the application does not start, and `asyncio.CancelledError` if a drain was requested
        meanwhile: there is nothing to drain then.
        """
        self._starting = asyncio.current_task()
        try:
            await self._lifespan.startup()
        finally:
            self._starting = None
        loop = asyncio.get_running_loop()
        self._access = _access_log(self._settings.logs, self._logs, loop)
        context = self._context = self._new_context(loop)
        self.apply_log_level()
        codec: CodecName = "h11" if self._settings.http.http == "h11" else "httptools"
        factory = http_factory(context, codec, told=self._settings.proxy.proxy_protocol)
        opener, room, alone = self._opener(), Room(context), self._alone
        acceptors = self._acceptors = [
            Acceptor(loop=loop, listener=listener, factory=factory, log=log, opener=opener, alone=alone, room=room)
            for listener in self._listeners
        ]
        self._drain = Drain(context=context, acceptors=acceptors, lifespan=self._lifespan, log=log)
        self._beat = Beat(loop=loop, row=self._row, on_beat=lambda now: self._on_beat(context, now))
        self._beat.start()
        for acceptor in acceptors:
            acceptor.start()
        for mode, deadline in self._early:  # asked for between the application's word and our hearing it
            self._drain.request(mode, deadline)

    def request_drain(self, mode: str, deadline: float) -> None:
        """Begin to drain, or to drain quicker; `mode` is a `DrainMode` value, `deadline` CLOCK_MONOTONIC seconds."""
        if self._drain is not None:
            self._drain.request(DrainMode(mode), deadline)
        elif self._lifespan.serving:
            self._early.append((DrainMode(mode), deadline))
        elif self._starting is not None:
            self._starting.cancel()

    def share(self, *, alone: bool) -> None:
        """Accept beside other workers from now on, or `alone`."""
        self._alone = alone
        for acceptor in self._acceptors:
            acceptor.share(alone=alone)

    def pause(self) -> None:
        """Accept no more for now: what is queued waits for newer code, or for `resume`."""
        if self._drain is not None:
            self._drain.pause()

    def apply_log_level(self) -> None:
        """Log responses, or do so no longer: the level of the access logger is looked at here, not per response."""
        if self._context is not None:
            self._context.access = self._access if access_wanted() else None

    def resume(self) -> None:
        """Accept again."""
        if self._drain is not None:
            self._drain.resume()

    def leave(self) -> None:
        """Serve on, but end each connection with its next response: a stop is coming."""
        if self._context is not None:
            self._context.leave()

    async def serve_until_drained(self) -> None:
        """Serve until a requested drain is done, the application's shutdown included."""
        assert self._drain is not None
        assert self._beat is not None
        try:
            await self._drain.run()
        finally:
            self._beat.stop()

    def _on_beat(self, context: Context, now: float) -> None:
        context.tick(now)
        self._logs.error_writer.flush()
        if self._access is not None:
            self._access.flush()  # what is left of it, though the level may have changed since
        access = self._logs.access
        self._row[LOG_DROPPED] = self._logs.error_writer.dropped + (access.dropped if access is not None else 0)

    def _opener(self) -> Opener:
        opener: Opener = open_plain
        if self._tls is not None:
            timeout = self._settings.tls.ssl_handshake_timeout
            opener = Handshake(context=self._tls, timeout=timeout, row=self._row, log=log)
        proxy = self._settings.proxy
        if proxy.proxy_protocol:
            trusted = Forwarding(trusted=proxy.forwarded_allow_ips)
            seconds = self._settings.limits.timeout_request_head or None
            opener = ProxyOpener(opener, trusted=trusted, seconds=seconds, log=log)
        return opener

    def _new_context(self, loop: asyncio.AbstractEventLoop) -> Context:
        http = self._settings.http
        limit = self._request_limit()
        return Context(
            app=self._app,
            loop=loop,
            row=self._row,
            inflight=InFlight(self._records),
            error_log=log,
            state=self._state,
            root_path=self._settings.app.root_path,
            forwarding=_forwarding(self._settings.proxy),
            limits=_limits(http, self._settings.limits),
            access=self._access,
            secure=None if self._tls is None else Secure.of(self._tls),
            keep_alive=http.keep_alive,
            server_header=http.server_header,
            date_header=http.date_header,
            headers=[(name.encode("latin-1"), value.encode("latin-1")) for name, value in http.headers],
            max_requests=limit,
            on_request_limit=lambda: self._on_request_limit(limit),
            reset_contextvars=self._settings.app.reset_contextvars,
            upgrade=None if self._wsgi else upgrade_for(self._settings.websocket),
        )

    def _request_limit(self) -> int:
        """Return after how many requests this worker is due; drawn, lest all workers be due at once. 0 is never."""
        pool = self._settings.pool
        if pool.max_requests is None:
            return 0
        return pool.max_requests + random.randint(0, pool.max_requests_jitter)  # noqa: S311 - spreads load, guards nothing


def _access_log(settings: LogSettings, setup: LogSetup, loop: asyncio.AbstractEventLoop) -> AccessLog | None:
    """Return the access log the settings ask for, whatever the level; None for none.

    Ask after the application was imported: it may have configured `logging`.
    """
    if setup.access is None:
        return None
    as_records = setup.access_via_logging or access_customised()
    logger = logging.getLogger(ACCESS_LOGGER)
    if as_records and not logger.hasHandlers():
        return None
    log: AccessLog
    if settings.access_log_format != "uvicorn":
        log = FormattedAccessLog(settings.access_log_format, writer=None if as_records else setup.access, loop=loop)
    elif as_records:
        log = RecordAccessLog(logger=logger)
    else:
        log = LineAccessLog(writer=setup.access, loop=loop, colors=setup.access_colors)
    return ExcludingAccessLog(log, settings.access_log_exclude) if settings.access_log_exclude else log


def _forwarding(proxy: ProxySettings) -> Forwarding:
    if not proxy.proxy_headers:
        return Forwarding()
    return Forwarding(trusted=proxy.forwarded_allow_ips, fields=proxy.forwarded_headers)


def _limits(http: HTTPSettings, limits: LimitSettings) -> Limits:
    head = limits.limit_request_head
    if http.http == "h11":
        head = min(head, http.h11_max_incomplete_event_size)
    return Limits(
        concurrency=http.limit_concurrency or 0,
        request_line=limits.limit_request_line,
        fields=limits.limit_request_fields,
        head=head,
        body_size=limits.limit_request_body,
        chunk_framing=limits.limit_chunk_framing,
        trailers=limits.limit_request_trailers,
        pipelined=limits.limit_pipelined,
        discard=limits.limit_unread_body,
        head_time=limits.timeout_request_head,
        request_time=limits.timeout_request,
        underscores=limits.underscore_headers == "pass",
        connections=limits.limit_connections,
        rate=limits.min_transfer_rate,
    )
