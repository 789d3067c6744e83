"""Units for systemd: the one that `--print-unit` writes for an application, and the template in `systemd/`.

`python -m procmgr.cli.unit` prints `systemd/procmgr@.service`; a test holds the file in the tree to it.
"""

from __future__ import annotations

import os
import pwd
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from procmgr import __version__
from procmgr.config.sources import Level
from procmgr.control import OFF
from procmgr.errors import ExitCode

if TYPE_CHECKING:
    from collections.abc import Sequence

    from procmgr.config.resolve import Invocation, Resolved

_PLAIN: Final = re.compile(r"[A-Za-z0-9_@%+=:,./~-]+")
_ESCAPES: Final = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n", "\t": r"\t", "\r": r"\r", "%": "%%", "$": "$$"})
_HOMES: Final = (Path("/home"), Path("/root"), Path("/run/user"))
_PASSING: Final = (Path("/tmp"), Path("/var/tmp"))  # noqa: S108 - what PrivateTmp= has others in place of
_NO_RESTART: Final = " ".join(
    str(int(code)) for code in (ExitCode.USAGE, ExitCode.APP_NOT_FOUND, ExitCode.PERMISSION, ExitCode.CONFIG)
)
_STORED: Final = 64

_UNIT: Final = """\
{head}
[Unit]
Description={description}
After=network.target
# Nobody has to reset a service that was restarted often; Restart= below says what is pointless to try again.
StartLimitIntervalSec=0

[Service]
# READY comes once every worker serves. While they start, roll or drain, procmgr asks for the time it may take.
Type=notify
WorkingDirectory={place}
ExecStart={start}
# Exits with an error, and so does systemctl reload, if the new code or configuration does not serve.
ExecReload={reload}
{user}
Restart=on-failure
RestartSec=1
# The command line, the application's name, a right or the configuration is wrong.
RestartPreventExitStatus={no_restart}
# TERM to procmgr alone, which lets its workers finish; what is left after it gets KILL.
KillMode=mixed
# A worker that the kernel kills for want of memory is procmgr's to replace; by default systemd would end the service.
OOMPolicy=continue
WatchdogSec=20
# Listeners stay open across a restart. systemd before 254 does not say so itself, hence the variable.
FileDescriptorStoreMax={stored}
Environment=FDSTORE={stored}
RuntimeDirectory={directory}
RuntimeDirectoryPreserve=restart

# Nothing that an application seldom needs. A port below 1024: CAP_NET_BIND_SERVICE in both, or a .socket unit.
# Files to write: StateDirectory=, LogsDirectory= or ReadWritePaths=.
CapabilityBoundingSet=
AmbientCapabilities=
NoNewPrivileges=yes
UMask=0027
ProtectSystem=strict
ProtectHome={protect_home}
PrivateTmp=yes
PrivateDevices=yes
ProtectProc=invisible
ProcSubset=pid
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
RemoveIPC=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallErrorNumber=EPERM

[Install]
WantedBy=multi-user.target
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """What differs between units; every text is in systemd's own syntax already."""

    head: str
    description: str
    place: str
    start: str
    reload: str
    user: str
    directory: str
    protect_home: str = "yes"

    def __str__(self) -> str:
        """Return the file."""
        values = {name: getattr(self, name) for name in self.__slots__}
        return _UNIT.format(**values, no_restart=_NO_RESTART, stored=_STORED)


def template() -> str:
    """Return the unit of which every instance serves what its file in /etc/procmgr describes."""
    return str(
        Unit(
            head="# procmgr@NAME.service serves the application that /etc/procmgr/NAME.toml describes.\n"
            "# An application with a virtualenv of its own: see procmgr --print-unit.",
            description="procmgr: %i",
            place="/",
            start="procmgr --config /etc/procmgr/%i.toml",
            reload="procmgrctl --socket %t/procmgr/%i/control.sock reload",
            user="User=procmgr\nGroup=procmgr",
            directory="procmgr/%i",
        )
    )


def for_application(arguments: Sequence[str], invocation: Invocation, resolved: Resolved) -> str:
    """Return a unit that starts what `arguments` start here: this application, virtualenv and directory."""
    settings = resolved.settings
    name, control = settings.process.name, settings.process.control
    directory = quoted(name)
    socket = f"%t/{directory}/control.sock" if control in {None, OFF} else quoted(str(invocation.cwd / str(control)))
    places = _places(invocation, resolved)
    return str(
        Unit(
            head=_head(name, invocation, resolved),
            description=_value(f"procmgr: {settings.app.app}"),
            place=_value(str(invocation.cwd)),
            start=" ".join([*map(quoted, [*_program("procmgr", "procmgr"), *arguments]), *_control(control, socket)]),
            reload=" ".join([*map(quoted, _program("procmgrctl", "procmgr.cli.ctl")), "--socket", socket, "reload"]),
            user=_user(),
            directory=directory,
            protect_home="read-only" if _within(places, _HOMES) else "yes",
        )
    )


def quoted(word: str) -> str:
    """Return `word` as one that systemd reads back unchanged from a command line (systemd.service(5))."""
    text = word.translate(_ESCAPES)
    return text if _PLAIN.fullmatch(word) else f'"{text}"'


def _value(text: str) -> str:
    """Return `text` as a value that is no command line: there only specifiers mean anything (systemd.unit(5))."""
    return text.replace("%", "%%")


def _places(invocation: Invocation, resolved: Resolved) -> list[Path]:
    """Return the directories that the service has to see."""
    inside = invocation.cwd / (resolved.settings.app.chdir or "")
    return [invocation.cwd, Path(sys.prefix), inside, inside / resolved.settings.app.app_dir]


def _within(places: Sequence[Path], roots: Sequence[Path]) -> list[Path]:
    return [place for place in places if any(root == place or root in place.parents for root in roots)]


def _head(name: str, invocation: Invocation, resolved: Resolved) -> str:
    lines = [
        f"# Written by procmgr {__version__}, for /etc/systemd/system/{name}.service; then:",
        f"#   systemctl daemon-reload && systemctl enable --now {name}.service",
    ]
    levels = {Level.ENVIRONMENT, Level.UVICORN, Level.SHARED}
    given = {str(each) for each in resolved.origins.values() if each.level in levels}
    left_out = sorted(given & invocation.environ.keys())
    if left_out:
        lines.append(
            f"# Set where this was written, and not here; add Environment= if it matters: {', '.join(left_out)}"
        )
    if hidden := _within(_places(invocation, resolved), _PASSING):
        lines.append(f"# It will not start: PrivateTmp= hides {hidden[0]}; move the application elsewhere first.")
    return "\n".join(lines)


def _control(control: str | None, socket: str) -> list[str]:
    """Return the option for the control socket that the reload needs, where the settings say that there is none."""
    return ["--control", socket] if control == OFF else []


def _program(script: str, module: str) -> list[str]:
    """Return how to start a program of this virtualenv."""
    path = Path(sys.executable).parent / script
    return [str(path)] if path.exists() else [sys.executable, "-m", module]


def _user() -> str:
    """Return whom to run as: who asks, since the application's files are theirs; for root, nobody in particular."""
    uid = os.geteuid()
    if uid == 0:
        return "# A user of its own, for as long as it runs; it must be able to read the application.\nDynamicUser=yes"
    try:
        return f"User={pwd.getpwuid(uid).pw_name}"
    except KeyError:
        return f"User={uid}"


if __name__ == "__main__":
    sys.stdout.write(template())
