"""uvicorn: its flags, and what differs."""

from __future__ import annotations

from typing import Final

from procmgr.config.peers.model import Peer, Trait, by_flag

_FLAGS: Final = """
--host --port --uds --fd --reload --reload-dir --reload-include --reload-exclude --reload-delay --workers --loop --http
--http2 --ws --ws-max-size --ws-max-queue --ws-ping-interval --ws-ping-timeout --ws-per-message-deflate --lifespan
--interface --env-file --log-config --log-level --access-log --no-access-log --use-colors --no-use-colors
--proxy-headers --no-proxy-headers --server-header --no-server-header --date-header --no-date-header
--forwarded-allow-ips --root-path --limit-concurrency --backlog --limit-max-requests --limit-max-requests-jitter
--timeout-keep-alive --timeout-graceful-shutdown --timeout-worker-healthcheck --ssl-keyfile --ssl-certfile
--ssl-keyfile-password --ssl-version --ssl-cert-reqs --ssl-ca-certs --ssl-ciphers --header --version --app-dir
--h11-max-incomplete-event-size --reset-contextvars --factory --help
"""

NOTES: Final = {
    "--host": "`::` takes IPv6 alone",
    "--uds": "mode 0666 less the umask; for others `--bind unix:PATH,mode=0660`",
    "--fd": "may be repeated, and comes beside other addresses",
    "--reload": "goes with `--workers`",
    "--reload-exclude": "a directory may be relative",
    "--loop": "no `zuvloop`",
    "--http": "no `zttp`, and no class of your own",
    "--ws": "`websockets-sansio` is `websockets`; no class of your own",
    "--ws-max-queue": "counts for both libraries, and 1 MiB is the bound too",
    "--ws-ping-interval": "0 is never",
    "--ws-ping-timeout": "0 is never",
    "--interface": "`auto` refuses WSGI and says so; `wsgi` needs `procmgr[wsgi]`, and no `--lifespan on`",
    "--env-file": "needs `procmgr[dotenv]`",
    "--log-config": "`.toml` too; what it says of `uvicorn.*` holds for `procmgr.*`",
    "--forwarded-allow-ips": "addresses, networks, `*`, and `unix` for all Unix sockets",
    "--limit-concurrency": "counts running requests, not connections; 0 is no limit",
    "--limit-max-requests": "the replacement serves first; 0 is never",
    "--timeout-graceful-shutdown": "default 30 s, not without end",
    "--timeout-worker-healthcheck": "default 30 s, not 5; asks the event loop, not a thread; 0 is never",
    "--ssl-keyfile": "may be repeated, for several names",
    "--ssl-certfile": "may be repeated, for several names",
    "--ssl-version": "`tls1.2` or `tls1.3` too; none before 1.2",
    "--h11-max-incomplete-event-size": "both parsers: `--limit-request-head`",
    "--help": "`-h` too",
}

TRAITS: Final = (
    Trait(
        what="a worker's event loop is blocked",
        theirs="a thread answers for it: nobody notices",
        ours="its stacks are logged, and after `--timeout` it is replaced",
    ),
    Trait(
        what="the application cannot start",
        theirs="with `--workers` it may end with 0: nobody starts it again",
        ours="`--boot-attempts` with growing pauses, then exit 3 or 4",
    ),
    Trait(
        what="`HUP`",
        theirs="a boot longer than 5 s ends it, a long drain keeps the parent from all else",
        ours="boots have `--timeout-boot`, drains go on beside",
    ),
    Trait(
        what="a request that does not end, at a stop",
        theirs="waited for without end",
        ours="cut after `--graceful-timeout`",
    ),
    Trait(what="kill -9 of the parent", theirs="workers stay, and hold the port", ours="workers finish and go"),
    Trait(
        what="malformed requests",
        theirs="no `Host`, two of it, `HTTP/2.0` and more are taken",
        ours="400: a proxy may read them otherwise",
    ),
    Trait(
        what="slow clients",
        theirs="half a head stays open for ever",
        ours="`--timeout-request-head`, `--min-transfer-rate`",
    ),
)

PEER: Final = Peer(
    name="uvicorn",
    release="0.54",
    before="uvicorn main:api --host 0.0.0.0 --port 80 --workers 4",
    after="procmgr --host 0.0.0.0 --port 80 --workers 4 main:api",
    traits=TRAITS,
    options=by_flag(_FLAGS.split(), NOTES),
)
