"""Flags, variables and keys of uvicorn and gunicorn that procmgr does not have, and what to use instead."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

_LATER: Final = "is not available in this version"
_CAPTURE: Final = (
    "is not an option of procmgr: the application's own output stays where the arbiter's goes; redirect that"
)
_LOGGING: Final = "is not an option of procmgr: configure logging with --log-config"
_NEEDLESS: Final = "is not an option of procmgr, and not needed: leave it out"

ABSENT: Final[Mapping[str, str]] = MappingProxyType(
    {
        **dict.fromkeys(
            (
                *("--http2", "--http-protocols"),
                *("--http2-cleartext", "--http2-initial-window-size", "--http2-max-concurrent-streams"),
                *("--http2-max-frame-size", "--http2-max-header-list-size"),
            ),
            _LATER,
        ),
        "--limit-request-field_size": "is not an option of procmgr: use --limit-request-head",
        **dict.fromkeys(
            ("--statsd-host", "--statsd-prefix", "--dogstatsd-tags"),
            "is not an option of procmgr: Prometheus reads /metrics, see --admin-bind",
        ),
        "--forwarder-headers": "is not an option of procmgr: use --forwarded-headers",
        "--header-map": "is not an option of procmgr: use --underscore-headers",
        "--control-socket": "is not an option of procmgr: use --control",
        "--control-socket-mode": "is not an option of procmgr: only root and its own user may use the control socket",
        "--no-control-socket": "is not an option of procmgr: use --control off",
        "--asgi-disconnect-grace-period": "is not an option of procmgr: the application hears of a disconnect at once",
        **dict.fromkeys(
            ("-k", "--worker-class"),
            "is not an option of procmgr: it has one kind of worker; leave it out, and say --interface wsgi for WSGI",
        ),
        "--reload-engine": _NEEDLESS,
        "--do-handshake-on-connect": _NEEDLESS,
        "--suppress-ragged-eofs": _NEEDLESS,
        "--reload-extra-file": "is not an option of procmgr: use --reload-include",
        "--proxy-allow-from": "is not an option of procmgr: use --forwarded-allow-ips",
        "--worker-connections": "is not an option of procmgr: use --limit-connections",
        **dict.fromkeys(
            ("--dirty-app", "--dirty-workers", "--dirty-threads", "--dirty-timeout", "--dirty-graceful-timeout"),
            "is not an option of procmgr: all workers are alike",
        ),
        **dict.fromkeys(
            (
                *("--permit-obsolete-folding", "--permit-unconventional-http-method", "--strip-header-spaces"),
                *("--permit-unconventional-http-version", "--casefold-http-method"),
            ),
            "is not an option of procmgr: it takes no malformed requests",
        ),
        "--asgi-loop": "is not an option of procmgr: use --loop",
        "--asgi-lifespan": "is not an option of procmgr: use --lifespan",
        "--websocket-max-message-size": "is not an option of procmgr: use --ws-max-size",
        "--http-parser": "is not an option of procmgr: use --http",
        "--paste-global": "is not an option of procmgr: name the application as module:attribute",
        "--pythonpath": "is not an option of procmgr: use --app-dir",
        "--capture-output": _CAPTURE,
        **dict.fromkeys(
            (
                *("--logger-class", "--log-syslog", "--log-syslog-to", "--log-syslog-prefix"),
                *("--log-syslog-facility", "--disable-redirect-access-to-syslog"),
            ),
            _LOGGING,
        ),
        "--log-config-json": "is not an option of procmgr: use --log-config FILE.json",
        "-D": "is not an option of procmgr: it stays in the foreground; let systemd or a container run it",
        "--daemon": "is not an option of procmgr: it stays in the foreground; let systemd or a container run it",
        "--initgroups": "is not an option of procmgr: --user always takes the user's groups",
        "--worker-tmp-dir": "is not an option of procmgr: the heartbeat is in shared memory; leave it out",
        "--reuse-port": "is not an option of procmgr: all workers accept from one queue; leave it out",
        "--paste": "is not an option of procmgr: name the application as module:attribute",
        "--paster": "is not an option of procmgr: name the application as module:attribute",
        "--protocol": "is not an option of procmgr: it speaks HTTP/1.1",
        "--uwsgi-allow-from": "is not an option of procmgr: it speaks HTTP/1.1",
        "-R": _NEEDLESS,
        "--enable-stdio-inheritance": _NEEDLESS,
        "--no-sendfile": _NEEDLESS,
        "--enable-backlog-metric": _NEEDLESS,
        "--spew": "is not an option of procmgr: use a debugger, or procmgrctl stacks",
        "-v": "is not an option of procmgr: use --version",
    }
)


def explain(name: str) -> str | None:
    """Return what to say after the name of a flag, variable suffix or key of another program; None if unheard of."""
    return ABSENT.get(name) or ABSENT.get(f"--{name.lower().replace('_', '-')}")
