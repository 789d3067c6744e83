"""A real systemd for the tests, as PID 1 of namespaces that are thrown away; see box.sh.

The checkout, the interpreter and its packages are visible inside below /opt, read-only, where a service may see them
whatever home directories are hidden from it. `procmgr` and `procmgrctl` are installed as commands.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any, Self

from support import proc
from support.daemon import PATIENCE, ROOT, Connection

if TYPE_CHECKING:
    from collections.abc import Callable

_SCRIPT = Path(__file__).with_name("box.sh")
_SYSTEMD = Path("lib/systemd/systemd")
_CLONE_NEWNET = 0x40000000
_PYTHON = Path(sys.executable).resolve()
_PREFIX = Path(sys.base_prefix).resolve()
_OPT_PYTHON = Path("/opt/python") / _PYTHON.relative_to(_PREFIX)

_COMMAND = """\
#!/bin/sh
export PYTHONPATH=/opt/procmgr:/opt/packages PYTHONDONTWRITEBYTECODE=1 LD_LIBRARY_PATH=/opt/python/lib
exec {python} -m {module} "$@"
"""

APPLICATION = """\
import asyncio, json, os

release = "{release}"

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        await asyncio.sleep(float(os.environ.get("BOOT_SECONDS", 0)))
        await send({{"type": "lifespan.startup.complete"}})
        await receive()
        await send({{"type": "lifespan.shutdown.complete"}})
        return
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    await asyncio.sleep(float(scope["path"].removeprefix("/sleep/")) if "/sleep/" in scope["path"] else 0)
    if scope["method"] == "GET":
        told = {{"pid": os.getpid(), "uid": os.getuid(), "release": release, "environ": dict(os.environ)}}
        told["server"] = scope["server"]
        if scope["path"] == "/secret":
            with open(os.environ["SECRET_FILE"]) as file:
                told["secret"] = file.read()
        body = json.dumps(told).encode()
    headers = [(b"content-length", str(len(body)).encode())]
    await send({{"type": "http.response.start", "status": 200, "headers": headers}})
    await send({{"type": "http.response.body", "body": body}})
"""


def missing(root: str = "/") -> str | None:
    """Return why there can be no box on this machine, None if there can."""
    if os.geteuid() != 0:
        return "needs root"
    if not (Path(root) / _SYSTEMD).exists():
        return "needs systemd: apt-get install systemd"
    if tools := [name for name in ("bash", "unshare", "nsenter", "ip") if shutil.which(name) is None]:
        return f"needs {', '.join(tools)}"
    environ = {**os.environ, "BOX_TRY": "1"}
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [_SCRIPT, root], stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT, env=environ, text=True, errors="replace"
    ) as tried:
        assert tried.stdout is not None
        said = tried.stdout.read().strip()
        return None if tried.wait(PATIENCE) == 0 else f"this machine allows no namespaces: {said[-500:]}"


class Box:
    """The box, and what a test does in it. `room` is a directory for its console log, `root` the file system below."""

    def __init__(self, room: Path, root: str = "/") -> None:
        self._console = room / "console.log"
        binds = [
            f"{ROOT}:opt/procmgr",
            f"{_PREFIX}:opt/python",
            f"{sysconfig.get_path('purelib')}:opt/packages",
        ]
        with self._console.open("wb") as console:
            self._outer = subprocess.Popen(
                [_SCRIPT, root, *binds],
                stdin=subprocess.PIPE,
                stdout=console,
                stderr=console,
                env={"PATH": os.environ["PATH"]},
            )
        try:
            self._init = self._find_init()
            self._prepare()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End everything in it."""
        assert self._outer.stdin is not None
        self._outer.stdin.close()
        self._outer.wait(PATIENCE)

    # Commands and files

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command inside to its end."""
        namespaces = ("--pid", "--mount", "--cgroup", "--uts", "--ipc", "--net")
        done = subprocess.run(
            ["nsenter", "-t", str(self._init), *namespaces, *command],
            env={"PATH": "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert not check or done.returncode == 0, (
            f"{' '.join(command)}: {done.returncode}\n{done.stdout}{done.stderr}\n{self.story()}"
        )
        return done

    def path(self, path: str) -> Path:
        """Return where a file inside is found from outside."""
        return Path(f"/proc/{self._init}/root") / path.lstrip("/")

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        """Write a file inside."""
        file = self.path(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(mode)

    def story(self) -> str:
        """Return what the journal has, for a failing test."""
        with suppress(subprocess.TimeoutExpired):
            done = subprocess.run(
                ["nsenter", "-t", str(self._init), "--pid", "--mount", "journalctl", "--no-pager", "-n", "150"],
                capture_output=True,
                text=True,
                timeout=20,
                check=False,
            )
            return f"-- journal --\n{done.stdout[-15_000:]}"
        return "-- journal -- (no answer)"

    def version(self) -> int:
        """Return the release of systemd."""
        return int(self.run("systemctl", "--version").stdout.split()[1])

    # Services

    def instance(self, name: str, settings: str = "", *, drop_in: str = "", release: str = "one") -> str:
        """Configure an instance of procmgr@.service with an application of its own; return the unit's name."""
        unit = f"procmgr@{name}.service"
        self.deploy(name, release)
        base = f'app = "{name}_app:app"\napp-dir = "/srv/{name}"\n'
        self.write(f"/etc/procmgr/{name}.toml", base + settings)
        if drop_in:
            self.write(f"/run/systemd/system/{unit}.d/test.conf", drop_in)
            self.run("systemctl", "daemon-reload")
        return unit

    def deploy(self, name: str, release: str, source: str | None = None) -> None:
        """Put a release of an instance's application in place."""
        self.write(f"/srv/{name}/{name}_app.py", APPLICATION.format(release=release) if source is None else source)

    def control(self, name: str, *command: str) -> subprocess.CompletedProcess[str]:
        """Run procmgrctl against an instance."""
        return self.run("procmgrctl", "-s", f"/run/procmgr/{name}/control.sock", *command)

    def show(self, unit: str) -> dict[str, str]:
        """Return a unit's properties."""
        lines = self.run("systemctl", "show", unit).stdout.splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line)

    def main_pid(self, unit: str) -> int:
        """Return the service's main process, by its number inside."""
        return int(self.show(unit)["MainPID"])

    def processes(self, unit: str) -> set[int]:
        """Return every process of the service, by its number inside."""
        inside = self.run("cat", f"/sys/fs/cgroup{self.show(unit)['ControlGroup']}/cgroup.procs", check=False)
        return {int(line) for line in inside.stdout.split()}

    def journal(self, unit: str) -> list[dict[str, Any]]:
        """Return the unit's journal entries."""
        self.run("journalctl", "--sync")
        lines = self.run("journalctl", "-u", unit, "-o", "json", "--no-pager").stdout.splitlines()
        return [json.loads(line) for line in lines]

    # The network inside

    def enter_network(self) -> None:
        """Move the calling thread into the box's network."""
        fd = os.open(f"/proc/{self._init}/ns/net", os.O_RDONLY)
        try:
            if ctypes.CDLL(None, use_errno=True).setns(fd, _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")
        finally:
            os.close(fd)

    def connect(self, port: int, host: str = "127.0.0.1") -> Connection:
        """Open a connection to a port of the box's loopback."""
        made: list[Connection] = []
        self._inside(lambda: made.append(Connection(port, host=host)))
        return made[0]

    def connect_unix(self, path: str) -> Connection:
        """Open a connection to a Unix socket inside."""
        return Connection(self.path(path))

    def get(self, port: int, path: str = "/") -> Any:
        """Return the JSON that a GET is answered with."""
        connection = self.connect(port)
        response, body = connection.get(path)
        connection.close()
        assert response.status == 200, f"answered {response.status}: {body!r}\n{self.story()}"
        return json.loads(body)

    def free_port(self) -> int:
        """Return a port of the box's loopback that nobody has."""
        made: list[int] = []
        self._inside(lambda: made.append(proc.free_port()))
        return made[0]

    def _inside(self, what: Callable[[], None]) -> None:
        failed: list[OSError] = []

        def enter() -> None:
            try:
                self.enter_network()
                what()
            except OSError as error:
                failed.append(error)

        thread = Thread(target=enter)
        thread.start()
        thread.join()
        if failed:
            raise failed[0]

    # How it comes up

    def _find_init(self) -> int:
        found: list[int] = []

        def look() -> bool:
            assert self._outer.poll() is None, f"the box did not come up:\n{self._console.read_text(errors='replace')}"
            for child in proc.children(self._outer.pid):
                for each in proc.children(child.pid):
                    if each.comm == "systemd":
                        found.append(each.pid)
            return bool(found)

        assert proc.eventually(look), f"the box has no systemd:\n{self._console.read_text(errors='replace')}"
        return found[0]

    def _prepare(self) -> None:
        assert proc.eventually(
            lambda: self.run("systemctl", "is-system-running", check=False).stdout.strip() in {"running", "degraded"}
        ), self._console.read_text(errors="replace")
        for name, module in (("procmgr", "procmgr"), ("procmgrctl", "procmgr.cli.ctl")):
            self.write(f"/usr/local/bin/{name}", _COMMAND.format(python=_OPT_PYTHON, module=module), 0o755)
        units = ROOT / "systemd"
        for each in ("procmgr@.service", "procmgr@.socket"):
            self.write(f"/usr/lib/systemd/system/{each}", (units / each).read_text())
        self.run("systemd-sysusers", "/opt/procmgr/systemd/sysusers.d/procmgr.conf")
        self.run("systemd-tmpfiles", "--create", "/opt/procmgr/systemd/tmpfiles.d/procmgr.conf")
        self.run("systemctl", "daemon-reload")
