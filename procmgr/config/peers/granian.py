"""granian: its flags, and what differs."""

from __future__ import annotations

from typing import Final

from procmgr.config.peers.model import Peer, Trait, listed

# NAME | settings of procmgr that do the same | what differs, or what to do instead
_OPTIONS: Final = """
--host | host |
--port | port |
--uds | uds |
--uds-permissions | bind | `--bind unix:PATH,mode=0660`
--interface | interface | `wsgi` too; no `rsgi`, no `asginl`: that is `--lifespan off`
--http | | HTTP/1.1; a proxy in front speaks HTTP/2
--ws --no-ws | ws | off is `--ws none`
--workers | workers |
--blocking-threads | threads | for WSGI; of ASGI applications asyncio's own thread pool
--blocking-threads-idle-timeout | | asyncio's own thread pool
--runtime-threads | | one event loop in a worker; more `--workers`
--runtime-blocking-threads | | one event loop in a worker; more `--workers`
--runtime-mode | | one event loop in a worker; more `--workers`
--loop | loop | no `rloop`
--task-impl | | asyncio's
--backlog | backlog | default 2048, not 1024
--backpressure | limit_connections | bounds connections; no limit by default
--http1-buffer-size | limit_request_head | default 64 KiB
--http1-header-read-timeout | timeout_request_head | in seconds; default 10
--http1-keep-alive --no-http1-keep-alive | keep_alive | seconds; off is 0
--http1-pipeline-flush --no-http1-pipeline-flush | | what is written in one turn of the loop leaves together
--http2-adaptive-window --no-http2-adaptive-window | | HTTP/1.1
--http2-initial-connection-window-size | | HTTP/1.1
--http2-initial-stream-window-size | | HTTP/1.1
--http2-keep-alive-interval | | HTTP/1.1
--http2-keep-alive-timeout | | HTTP/1.1
--http2-max-concurrent-streams | | HTTP/1.1
--http2-max-frame-size | | HTTP/1.1
--http2-max-headers-size | | HTTP/1.1
--http2-max-send-buffer-size | | HTTP/1.1
--log --no-log | log_level | off is `--log-level critical`
--log-level | log_level | `warn` is `warning`, `notset` is `trace`
--log-config | log_config | JSON and more; loggers are `procmgr`, `procmgr.error`, `procmgr.access`
--access-log --no-access-log | access_log | on by default
--access-log-fmt | access_log_format | other atoms, see logging.md
--ssl-certificate | ssl_certfile | may be repeated, for several names
--ssl-keyfile | ssl_keyfile | any PEM, not PKCS#8 alone
--ssl-keyfile-password | ssl_keyfile_password |
--ssl-protocol-min | ssl_version | default is 1.2 and 1.3, not 1.3 alone
--ssl-ca | ssl_ca_certs |
--ssl-crl | ssl_context_factory | a context of your own with `load_verify_locations`
--ssl-client-verify --no-ssl-client-verify | ssl_cert_reqs | on is `required`
--url-path-prefix | root_path |
--respawn-failed-workers --no-respawn-failed-workers | | always
--respawn-interval | | as soon as the new one serves
--rss-sample-interval | | the arbiter chooses
--rss-samples | | the arbiter chooses
--workers-lifetime | max_lifetime | seconds; `--max-lifetime-jitter` spreads them
--workers-max-rss | max_memory | a size: 512 is `512M`; the replacement serves first
--workers-kill-timeout | graceful_timeout | always there; default 30 s
--factory --no-factory | factory |
--working-dir | chdir |
--env-files | env_file | one; needs `procmgr[dotenv]`
--static-path-route | | the proxy's, or the application's
--static-path-mount | | the proxy's, or the application's
--static-path-dir-to-file | | the proxy's, or the application's
--static-path-expires | | the proxy's, or the application's
--metrics --no-metrics | admin_bind | by naming an address; `/metrics` of all workers together
--metrics-scrape-interval | | read when asked
--metrics-address | admin_bind | `--admin-bind 127.0.0.1:9090`
--metrics-port | admin_bind | `--admin-bind 127.0.0.1:9090`
--reload --no-reload | reload |
--reload-paths | reload_dirs | directories
--reload-ignore-dirs | reload_excludes | directories or patterns
--reload-ignore-patterns | reload_excludes | patterns as of a shell, not regular expressions
--reload-ignore-paths | reload_excludes |
--reload-tick | reload_delay | in seconds
--reload-ignore-worker-failure --no-reload-ignore-worker-failure | | always: what does not start waits for the next save
--process-name | name |
--pid-file | pid | locked while it runs
--version | --version |
--help | --help | `-h` too
"""

TRAITS: Final = (
    Trait(
        what="a worker dies",
        theirs="everything stops, unless told otherwise; a second death soon after always",
        ours="it is replaced; the others serve on",
    ),
    Trait(
        what="a worker hangs", theirs="never found", ours="its stacks are logged, and after `--timeout` it is replaced"
    ),
    Trait(
        what="reload",
        theirs="waits a fixed time for each worker, ready or not",
        ours="waits until the new one serves; if none does, the old stay",
    ),
    Trait(
        what="listening",
        theirs="a socket for each worker: what waits in it is lost with the worker",
        ours="one queue for all, held by the arbiter",
    ),
    Trait(
        what="a second instance on the same port",
        theirs="starts, and says nothing",
        ours="is refused, with 71",
    ),
    Trait(what="`USR1`, `USR2`", theirs="kill it", ours="reopen the log files; upgrade in place"),
    Trait(what="HTTP/2, static files, RSGI", theirs="yes", ours="no: a proxy in front, or the application"),
)

PEER: Final = Peer(
    name="granian",
    release="2.8.9",
    before="granian --interface asgi --workers 4 --host 0.0.0.0 --port 8000 main:api",
    after="procmgr --workers 4 --host 0.0.0.0 --port 8000 main:api",
    traits=TRAITS,
    options=listed(_OPTIONS),
)
