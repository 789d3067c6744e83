"""gunicorn: its settings, and what differs; with a uvicorn worker too."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from procmgr.config.peers.model import OWN, Option, Peer, Trait, reason
from procmgr.config.reference import spellings
from procmgr.config.settings import TABLE

if TYPE_CHECKING:
    from collections.abc import Mapping

_SETTINGS: Final = """
config -c --config
wsgi_app
bind -b --bind
backlog --backlog
workers -w --workers
worker_class -k --worker-class
threads --threads
worker_connections --worker-connections
max_requests --max-requests
max_requests_jitter --max-requests-jitter
timeout -t --timeout
graceful_timeout --graceful-timeout
keepalive --keep-alive
limit_request_line --limit-request-line
limit_request_fields --limit-request-fields
limit_request_field_size --limit-request-field_size
reload --reload
reload_engine --reload-engine
reload_extra_files --reload-extra-file
spew --spew
check_config --check-config
print_config --print-config
preload_app --preload
sendfile --no-sendfile
reuse_port --reuse-port
chdir --chdir
daemon -D --daemon
raw_env -e --env
pidfile -p --pid
worker_tmp_dir --worker-tmp-dir
user -u --user
group -g --group
umask -m --umask
initgroups --initgroups
tmp_upload_dir
secure_scheme_headers
forwarded_allow_ips --forwarded-allow-ips
accesslog --access-logfile
disable_redirect_access_to_syslog --disable-redirect-access-to-syslog
access_log_format --access-logformat
errorlog --error-logfile --log-file
loglevel --log-level
capture_output --capture-output
logger_class --logger-class
logconfig --log-config
logconfig_dict
logconfig_json --log-config-json
syslog_addr --log-syslog-to
syslog --log-syslog
syslog_prefix --log-syslog-prefix
syslog_facility --log-syslog-facility
enable_stdio_inheritance -R --enable-stdio-inheritance
statsd_host --statsd-host
dogstatsd_tags --dogstatsd-tags
statsd_prefix --statsd-prefix
enable_backlog_metric --enable-backlog-metric
proc_name -n --name
default_proc_name
pythonpath --pythonpath
paste --paste --paster
on_starting
on_reload
when_ready
pre_fork
post_fork
post_worker_init
worker_int
worker_abort
pre_exec
pre_request
post_request
child_exit
worker_exit
nworkers_changed
on_exit
ssl_context
proxy_protocol --proxy-protocol
proxy_allow_ips --proxy-allow-from
protocol --protocol
uwsgi_allow_ips --uwsgi-allow-from
keyfile --keyfile
certfile --certfile
ssl_version --ssl-version
cert_reqs --cert-reqs
ca_certs --ca-certs
suppress_ragged_eofs --suppress-ragged-eofs
do_handshake_on_connect --do-handshake-on-connect
ciphers --ciphers
http_protocols --http-protocols
http2_cleartext --http2-cleartext
http2_max_concurrent_streams --http2-max-concurrent-streams
http2_initial_window_size --http2-initial-window-size
http2_max_frame_size --http2-max-frame-size
http2_max_header_list_size --http2-max-header-list-size
raw_paste_global_conf --paste-global
permit_obsolete_folding --permit-obsolete-folding
strip_header_spaces --strip-header-spaces
permit_unconventional_http_method --permit-unconventional-http-method
permit_unconventional_http_version --permit-unconventional-http-version
casefold_http_method --casefold-http-method
forwarder_headers --forwarder-headers
header_map --header-map
asgi_loop --asgi-loop
asgi_lifespan --asgi-lifespan
asgi_disconnect_grace_period --asgi-disconnect-grace-period
websocket_max_message_size --websocket-max-message-size
http_parser --http-parser
root_path --root-path
dirty_apps --dirty-app
dirty_workers --dirty-workers
dirty_timeout --dirty-timeout
dirty_threads --dirty-threads
dirty_graceful_timeout --dirty-graceful-timeout
on_dirty_starting
dirty_post_fork
dirty_worker_init
dirty_worker_exit
control_socket --control-socket
control_socket_mode --control-socket-mode
control_socket_disable --no-control-socket
"""

SETTINGS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {name: tuple(flags) for name, *flags in (line.split() for line in _SETTINGS.strip().splitlines())}
)
"""Each setting of gunicorn with its flags."""

_DIRTY: Final = "all workers are alike"

HOOKS: Final[Mapping[str, tuple[str, str]]] = MappingProxyType(
    {
        "on_starting": ("on_start", "called once procmgr listens"),
        "on_reload": ("on_reload", "called when a reload has ended, well or not"),
        "when_ready": ("on_ready", "called once every worker has been ready"),
        "pre_fork": ("pre_fork", "called with `preload` only"),
        "post_fork": ("post_fork", "called in the worker"),
        "post_worker_init": ("worker_ready", "called in the worker, on a thread"),
        "child_exit": ("worker_exit", "called in a process of its own"),
        "worker_exit": ("worker_exit", "called in a process of its own; in the worker: lifespan shutdown"),
        "on_exit": ("on_stop", "called when a stop begins"),
        "worker_int": ("", "the application's lifespan shutdown runs"),
        "worker_abort": ("", "the stacks of a hung worker are logged; `worker_exit` is told why it went"),
        "pre_exec": ("", "`USR2` replaces the program in place"),
        "pre_request": ("", "ASGI middleware"),
        "post_request": ("", "ASGI middleware, or the access log"),
        "nworkers_changed": ("", "the log and `/metrics` tell the number"),
        **dict.fromkeys(
            ("on_dirty_starting", "dirty_post_fork", "dirty_worker_init", "dirty_worker_exit"), ("", _DIRTY)
        ),
        "ssl_context": (
            "ssl_context_factory",
            "called with the settings of TLS and with a function that makes the usual",
        ),
    }
)
"""Each hook of gunicorn's: procmgr's that comes nearest, or none, and what is to be known of it."""

NOTES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "config": "TOML, not Python: `--from-gunicorn` translates it",
        "check_config": "imports the application, too",
        "print_config": "with the origin of each value",
        "threads": "default 10, not 1; for WSGI applications, by `--interface wsgi`",
        "worker_connections": "others wait to be accepted; no limit by default",
        "reload_extra_files": "patterns",
        "wsgi_app": "`module:attribute`; a call is `--factory`",
        "bind": "needs its port; Unix sockets have 0666 less the umask, or `,mode=0660`",
        "timeout": "at least 2 s; stacks are logged; boots have `--timeout-boot`",
        "max_requests": "the replacement serves first",
        "keepalive": "default 5, not 2",
        "limit_request_line": "default 16384, not 4094",
        "limit_request_fields": "default 256, not 100",
        "preload_app": "a reload imports the new code",
        "pidfile": "locked while it runs",
        "user": "takes the user's groups, too",
        "umask": "default is inherited, not 0",
        "accesslog": "default standard output; none is `--no-access-log`",
        "access_log_format": "default uvicorn's; gunicorn's default is `combined`",
        "errorlog": "`-` is standard output; default standard error",
        "logconfig": "loggers are `procmgr`, `procmgr.error` and `procmgr.access`",
        "pythonpath": "one directory, instead of the working directory",
        "proxy_protocol": "on or off; both versions; trusts `--forwarded-allow-ips`",
        "ssl_version": "`tls1.2` or `tls1.3` too; none before 1.2",
        "control_socket": "off where there is no directory for it",
    }
)

_NONE: Final[Mapping[str, str]] = MappingProxyType(
    {
        "tmp_upload_dir": "bodies are streamed to the application",
        "secure_scheme_headers": "`X-Forwarded-Proto` or `Forwarded`, see `--forwarded-headers`",
        "logconfig_dict": "write it to a .json or .toml file for `--log-config`",
        "default_proc_name": "internal to gunicorn",
    }
)


def _option(name: str) -> Option:
    ours = tuple(entry.name for entry in TABLE.values() if name == entry.setting.gunicorn)
    ours = ours or tuple(each.name for each in TABLE.values() if {*SETTINGS[name]} & {*spellings(each)})
    label = " ".join((name, *SETTINGS[name]))
    if name in HOOKS:
        hook, note = HOOKS[name]
        return Option(name=label, ours=(hook,) if hook else (), note=note)
    own = next(iter(OWN.intersection(SETTINGS[name])), "")
    if ours or own:
        return Option(name=label, ours=ours, own=own, note=NOTES.get(name, ""))
    return Option(name=label, note=_NONE.get(name) or reason(*SETTINGS[name]))


OPTIONS: Final[Mapping[str, Option]] = MappingProxyType({name: _option(name) for name in SETTINGS})

TRAITS: Final = (
    Trait(
        what="`HUP`",
        theirs="old workers are told to go before new ones are ready",
        ours="an old one goes once a new one serves; if none does, the old stay",
    ),
    Trait(
        what="a broken configuration on `HUP`",
        theirs="the master exits",
        ours="the reload is refused, `procmgrctl reload` exits with 78",
    ),
    Trait(what="`TTIN`, `TTOU`", theirs="forgotten by the next `HUP`", ours="hold until the file says another number"),
    Trait(
        what="a worker's event loop is blocked",
        theirs="killed after the timeout, without a traceback",
        ours="its stacks are logged, and after `--timeout` it is replaced",
    ),
    Trait(
        what="a worker hangs while it imports",
        theirs="never found",
        ours="`--timeout-boot`, with its stacks",
    ),
    Trait(
        what="`READY=1` to systemd",
        theirs="before any worker has started",
        ours="once every worker serves",
    ),
    Trait(
        what="an idle connection during a stop",
        theirs="makes it last the whole graceful timeout",
        ours="closed after 0.2 s, in which a request is still answered",
    ),
    Trait(
        what="`-u nobody` alone",
        theirs="keeps the group and the further groups of root",
        ours="takes the groups of that user",
    ),
    Trait(
        what="`gunicorn.conf.py`",
        theirs="is a program that runs in the master",
        ours="TOML: a reload can check it before it changes anything",
    ),
)

PEER: Final = Peer(
    name="gunicorn",
    release="27.0.1, with its `asgi` worker or uvicorn-worker 0.4",
    before="gunicorn -k uvicorn_worker.UvicornWorker -w 4 -b :8000 main:api",
    after="procmgr -w 4 -b :8000 main:api",
    traits=TRAITS,
    options=tuple(OPTIONS.values()),
)
