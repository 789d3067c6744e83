"""Supervisor: the options of a program in supervisord.conf. It keeps procmgr alive, which has the workers."""

from __future__ import annotations

from typing import Final

from procmgr.config.peers.model import Peer, Trait, listed

# NAME | settings of procmgr that do the same, or stays | what differs, or what to do instead
_OPTIONS: Final = """
command | stays | `procmgr --bind :8000 --workers 4 main:api`
process_name | stays | without `%(process_num)`
numprocs | workers | leave it out: one program, whose workers procmgr has
numprocs_start | | slots count from 0, as `PROCMGR_SLOT`
priority | stays |
autostart | stays |
autorestart | stays | `unexpected`
startsecs | stays | longer than a boot that fails takes
startretries | stays |
exitcodes | stays | `0,2,4,77,78`: the last four are pointless to try again
stopsignal | stays | `TERM`; `INT` is the quick stop
stopwaitsecs | graceful_timeout | 10 more than it, so that KILL never comes first
stopasgroup | stays | `false`: procmgr tells its workers itself
killasgroup | stays | `true`, so that KILL leaves nobody
user | user | either; procmgr's keeps the arbiter's right to bind and to read keys
umask | umask | either
directory | chdir | either; `--chdir` follows a symlink that a deploy moves
environment | env | either
redirect_stderr | stays | else access lines and diagnostics are apart
stdout_logfile | access_log_file | either; procmgr's is opened anew on `USR1`
stdout_logfile_maxbytes | stays |
stdout_logfile_backups | stays |
stdout_capture_maxbytes | stays |
stdout_events_enabled | stays |
stdout_syslog | stays |
stderr_logfile | log_file | either; procmgr's is opened anew on `USR1`
stderr_logfile_maxbytes | stays |
stderr_logfile_backups | stays |
stderr_capture_maxbytes | stays |
stderr_events_enabled | stays |
stderr_syslog | stays |
serverurl | stays |
socket | bind | of `[fcgi-program:x]`; or keep it, with `--fd 0`
socket_backlog | backlog | of `[fcgi-program:x]`
socket_owner | bind | `unix:PATH,owner=USER,group=GROUP`
socket_mode | bind | `unix:PATH,mode=0660`
"""

TRAITS: Final = (
    Trait(
        what="new code",
        theirs="`supervisorctl restart`: requests fail meanwhile",
        ours="`supervisorctl signal HUP x`: nobody is cut off; broken code changes nothing",
    ),
    Trait(
        what="a process that hangs",
        theirs="is never found",
        ours="its stacks are logged, and after `--timeout` it is replaced",
    ),
    Trait(
        what="a crash",
        theirs="found after a second or two; gives up after `startretries`",
        ours="replaced at once, then with growing pauses, without end once it has served",
    ),
)

PEER: Final = Peer(
    name="Supervisor",
    release="4.3",
    before="""\
[fcgi-program:api]
socket = tcp://127.0.0.1:8000
command = uvicorn --fd 0 main:api
numprocs = 4
process_name = %(program_name)s-%(process_num)d""",
    after="""\
[program:api]
command = procmgr --bind 127.0.0.1:8000 --workers 4 main:api
stopwaitsecs = 40
killasgroup = true""",
    language="ini",
    traits=TRAITS,
    options=listed(_OPTIONS),
)
