"""hypercorn: its flags, and what differs."""

from __future__ import annotations

from typing import Final

from procmgr.config.peers.model import Peer, Trait, listed

# NAME | settings of procmgr that do the same | what differs, or what to do instead
_OPTIONS: Final = """
--bind -b | bind | needs its port
--insecure-bind | | one of TLS or none for all; a second procmgr, or the proxy in front, redirects
--quic-bind | | HTTP/1.1 over TCP; HTTP/3 ends in a proxy
--workers -w | workers | roll and are replaced under load without loss
--worker-class -k | loop | `auto`, `asyncio` or `uvloop`; no trio
--backlog | backlog | default 2048, not 100
--graceful-timeout | graceful_timeout | default 30 s, not 3
--read-timeout | timeout_request_head timeout_request | one for the head, one for the whole
--keep-alive | keep_alive |
--max-requests | max_requests | the replacement serves first
--max-requests-jitter | max_requests_jitter |
--websocket-ping-interval | ws_ping_interval | default 20 s, not never
--root-path | root_path |
--server-name | | any host; the proxy or a middleware chooses
--certfile | ssl_certfile | may be repeated, for several names
--keyfile | ssl_keyfile | may be repeated, for several names
--keyfile-password | ssl_keyfile_password |
--ca-certs | ssl_ca_certs |
--cert-reqs | ssl_cert_reqs |
--verify-mode | ssl_cert_reqs | `none`, `optional` or `required`
--ciphers | ssl_ciphers | default Python's
--access-log --access-logfile | access_log_file | default standard output; none is `--no-access-log`
--access-logformat | access_log_format | `R`, `S`, `st`, `Uq` and `{name}e` are unknown
--error-log --error-logfile --log-file | log_file | `-` is standard output; default standard error
--log-config | log_config | the suffix tells the format, no `json:` or `toml:`
--log-level | log_level |
--statsd-host | | Prometheus' `/metrics` on `--admin-bind`
--statsd-prefix | | Prometheus' `/metrics` on `--admin-bind`
--user -u | user | of the workers; a socket's: `--bind unix:PATH,owner=USER`
--group -g | group | of the workers; a socket's: `--bind unix:PATH,group=GROUP`
--umask -m | umask | of the workers; a socket's: `--bind unix:PATH,mode=0660`
--pid -p | pid | locked while it runs
--daemon -D | | stays in the foreground; let systemd or a container run it
--reload | reload |
--debug | log_level | `--log-level debug`, and `PYTHONASYNCIODEBUG=1`
--config -c | --config | TOML alone, with procmgr's names; no Python
--help -h | --help |
"""

TRAITS: Final = (
    Trait(
        what="a worker dies",
        theirs="the whole server exits, with 0",
        ours="it is replaced; the others serve on",
    ),
    Trait(
        what="new code",
        theirs="no reload in production",
        ours="`HUP` or `procmgrctl reload`: an old worker goes once a new one serves",
    ),
    Trait(
        what="`TERM` with `-w 2`", theirs="running requests are cut", ours="they finish, within `--graceful-timeout`"
    ),
    Trait(
        what="exit status",
        theirs="0 on nearly every failure: `Restart=on-failure` does nothing",
        ours="a number for each cause; 2, 4, 77 and 78 are pointless to retry",
    ),
    Trait(
        what="malformed requests",
        theirs="`Content-Length` beside `Transfer-Encoding`, folded lines, bare line feeds are taken",
        ours="400",
    ),
    Trait(what="HTTP/2, HTTP/3, trio", theirs="yes", ours="no: a proxy in front speaks them to clients"),
)

PEER: Final = Peer(
    name="hypercorn",
    release="0.18",
    before="hypercorn -k uvloop -w 4 -b 0.0.0.0:8000 main:api",
    after="procmgr -w 4 -b 0.0.0.0:8000 main:api",
    traits=TRAITS,
    options=listed(_OPTIONS),
)
