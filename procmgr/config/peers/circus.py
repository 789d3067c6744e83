"""Circus: the options of a watcher and of a socket. It keeps procmgr alive, which has the workers."""

from __future__ import annotations

from typing import Final

from procmgr.config.peers.model import Peer, Trait, listed

# NAME | settings of procmgr that do the same, or stays | what differs, or what to do instead
_OPTIONS: Final = """
cmd | stays | `procmgr --bind :8000 --workers 4 main:api`
args | stays |
shell | stays | `False`: a shell would get the signals
shell_args | stays |
executable | stays |
working_dir | chdir | either; `--chdir` follows a symlink that a deploy moves
uid | user | either; procmgr's keeps the arbiter's right to bind and to read keys
gid | group | either
copy_env | stays | `True`
copy_path | stays |
virtualenv | stays | or `cmd` names procmgr by its path
virtualenv_py_ver | stays |
numprocesses | workers | `numprocesses = 1`
warmup_delay | | workers start together; a roll goes by `--reload-surge`
autostart | stays |
on_demand | stays | with `use_sockets`
respawn | stays |
max_retry | stays |
singleton | stays | `True`
priority | stays |
graceful_timeout | graceful_timeout | 10 more than procmgr's, so that KILL never comes first
stop_signal | stays | `SIGTERM`; `SIGINT` is the quick stop
stop_children | stays | `False`: procmgr tells its workers itself
send_hup | stays | `True`: `circusctl reload` then reloads without loss
prereload_fn | on_reload | called when the reload has ended
max_age | max_lifetime | of workers, each with its successor
max_age_variance | max_lifetime_jitter |
rlimit_* | stays | workers inherit them
stdin_socket | fd | `--fd 0`
close_child_stdin | stays |
close_child_stdout | stays |
close_child_stderr | stays |
stdout_stream.* | access_log_file | either; procmgr's is opened anew on `USR1`
stderr_stream.* | log_file | either; procmgr's is opened anew on `USR1`
hooks.* | on_start on_ready on_reload on_stop worker_exit | or stay, for the arbiter
use_sockets | fd | or leave it out, and `--bind`
socket: host | bind | or keep it, with `--fd $(circus.sockets.NAME)`
socket: port | bind | or keep it
socket: path | bind | `unix:PATH`
socket: family | bind |
socket: type | | streams
socket: proto | | TCP
socket: interface | bind | its address
socket: backlog | backlog |
socket: umask | bind | `unix:PATH,mode=0660`
socket: replace | bind | a stale socket is always replaced, a live one never
socket: so_reuseport | | all workers accept from one queue
socket: blocking | | never
"""

TRAITS: Final = (
    Trait(
        what="new code",
        theirs="`circusctl restart`: some requests fail meanwhile",
        ours="`send_hup`, and `circusctl reload x`: nobody is cut off; broken code changes nothing",
    ),
    Trait(
        what="a process that hangs",
        theirs="is never found",
        ours="its stacks are logged, and after `--timeout` it is replaced",
    ),
    Trait(
        what="an application that cannot start",
        theirs="is imported again and again",
        ours="with growing pauses; after `--boot-attempts` procmgr ends with 3 or 4",
    ),
)

PEER: Final = Peer(
    name="Circus",
    release="0.19",
    before="""\
[watcher:api]
cmd = uvicorn --fd $(circus.sockets.web) main:api
use_sockets = True
numprocesses = 4

[socket:web]
host = 127.0.0.1
port = 8000""",
    after="""\
[watcher:api]
cmd = procmgr --fd $(circus.sockets.web) --workers 4 main:api
use_sockets = True
numprocesses = 1
graceful_timeout = 40
send_hup = True

[socket:web]
host = 127.0.0.1
port = 8000""",
    language="ini",
    traits=TRAITS,
    options=listed(_OPTIONS),
)
