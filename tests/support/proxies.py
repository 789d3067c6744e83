"""The real nginx and HAProxy, each on the configuration that etc/ ships, started for a test and ended with it.

Only addresses and paths of the shipped file are replaced, and the lines uncommented that it says to uncomment for
HTTPS; whatever is to be replaced has to be there.
"""

from __future__ import annotations

import csv
import os
import pwd
import re
import shutil
import socket
import subprocess
import tempfile
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from support import proc
from support.daemon import PATIENCE, ROOT, Connection

if TYPE_CHECKING:
    from collections.abc import Mapping

NGINX_CONF = ROOT / "etc/nginx.conf"
HAPROXY_CFG = ROOT / "etc/haproxy.cfg"


def missing(program: str, user: str) -> str | None:
    """Return why a proxy that runs as `user` cannot be tested here, None if it can."""
    if shutil.which(program) is None:
        return f"{program} is not installed (apt-get install {program})"
    if os.geteuid() != 0:
        return f"{program} as it is configured changes its user, which needs root"
    try:
        pwd.getpwnam(user)
    except KeyError:
        return f"{program} as it is configured needs Debian's user {user}"
    return None


def check(*command: str) -> subprocess.CompletedProcess[str]:
    """Run what a proxy offers to check a configuration."""
    return subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def ports(number: int) -> list[int]:
    """Return that many different free ports."""
    found: set[int] = set()
    while len(found) < number:
        found.add(proc.free_port())
    return list(found)


def derive(source: Path, target: Path, replacements: Mapping[str, str]) -> None:
    """Write a configuration with other addresses, each replaced once it was found."""
    text = source.read_text()
    for old in replacements:
        assert old in text, f"{source.name} has no {old!r} any more"
    pattern = "|".join(re.escape(old) for old in sorted(replacements, key=len, reverse=True))
    target.write_text(re.sub(pattern, lambda match: replacements[match[0]], text))


class Proxy:
    """A proxy in the foreground and in a session of its own; both outputs go to a file."""

    def __init__(self, *command: str, room: Path) -> None:
        self.command = command
        self._output = room / "output"
        with self._output.open("wb") as output:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )

    @property
    def output(self) -> str:
        """Everything that it wrote to its standard outputs."""
        return self._output.read_text(errors="replace")

    def listening(self, *numbers: int) -> None:
        """Wait until it listens on all these ports."""
        ready = proc.eventually(lambda: all(map(_accepts, numbers)) or self.process.poll() is not None)
        assert ready, f"it does not listen\n{self.output}"
        assert self.process.poll() is None, f"it ended\n{self.output}"

    def close(self) -> None:
        """End it, and make sure that nothing remains."""
        with suppress(ProcessLookupError):
            self.process.terminate()
        try:
            self.process.wait(PATIENCE)
            left = proc.wait_dead([each.pid for each in proc.in_session(self.process.pid)], PATIENCE)
            assert not left, f"it left {left} behind\n{self.output}"
        finally:
            proc.kill_session(self.process.pid)
            self.process.wait(PATIENCE)


def _accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), PATIENCE).close()
    except OSError:
        return False
    return True


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as sock:
        return sock.connect_ex(str(path)) == 0


class Front:
    """What a test sees of a proxy: a room that the proxy's own user can pass through, and its ports for clients."""

    def __init__(self) -> None:
        self._room = tempfile.TemporaryDirectory(prefix="procmgr-proxy-")
        self.room = Path(self._room.name)
        self.room.chmod(0o755)
        self.proxy: Proxy | None = None

    def start(self, *command: str, listens: tuple[int, ...]) -> None:
        """Start the proxy and wait until it listens."""
        self.proxy = Proxy(*command, room=self.room)
        self.proxy.listening(*listens)

    def close(self) -> None:
        """End what runs."""
        try:
            if self.proxy is not None:
                print(self.story())  # pytest shows it for a test that failed
                self.proxy.close()
        finally:
            self._room.cleanup()

    def story(self) -> str:
        """Return what the proxy wrote."""
        if self.proxy is None:
            return "it never started"
        code = self.proxy.process.poll()
        state = "it runs" if code is None else f"it exited with {code}"
        return f"{' '.join(self.proxy.command)}: {state}\n{self.output[-10_000:]}"

    @property
    def output(self) -> str:
        """What it wrote to its standard outputs."""
        return "" if self.proxy is None else self.proxy.output


class Nginx(Front):
    """nginx in front of `address` (TCP, X-Forwarded-*) and of the Unix socket `socket` (Forwarded).

    `tcp` and `unix` are its ports for each, `tcp_tls` and `unix_tls` the same over TLS with `certificate` and `key`.
    """

    def __init__(self, port: int, *, certificate: Path, key: Path) -> None:
        super().__init__()
        self.address = f"127.0.0.1:{port}"
        self.socket = self.room / "app.sock"
        self.tcp, self.unix, self.tcp_tls, self.unix_tls = ports(4)
        self._replacements = {
            "/run/nginx.pid": str(self.room / "nginx.pid"),
            "/var/log/nginx/error.log": str(self.room / "error.log"),
            "/var/log/nginx/access.log": str(self.room / "access.log"),
            "127.0.0.1:8000;": f"{self.address};",
            "unix:/run/procmgr/app.sock;": f"unix:{self.socket};",
            "listen 80;": f"listen 127.0.0.1:{self.tcp};",
            "listen 8080;": f"listen 127.0.0.1:{self.unix}; listen [::1]:{self.unix};",
            "# listen 443 ssl;": f"listen 127.0.0.1:{self.tcp_tls} ssl;",
            "# listen 8443 ssl;": f"listen 127.0.0.1:{self.unix_tls} ssl;",
            "# ssl_certificate /etc/nginx/site.pem;": f"ssl_certificate {certificate};",
            "# ssl_certificate_key /etc/nginx/site.key;": f"ssl_certificate_key {key};",
        }

    def run(self) -> Nginx:
        """Start it."""
        config = self.room / "nginx.conf"
        derive(NGINX_CONF, config, self._replacements)
        listens = (self.tcp, self.unix, self.tcp_tls, self.unix_tls)
        self.start("nginx", "-c", str(config), "-g", "daemon off;", listens=listens)
        return self

    def story(self) -> str:
        """Return what nginx wrote, its log of errors too."""
        return super().story() + self.errors

    @property
    def errors(self) -> str:
        """The log of what went wrong, a request that procmgr did not answer say; warnings are in it too."""
        log = self.room / "error.log"
        return log.read_text(errors="replace") if log.exists() else ""


class HAProxy(Front):
    """HAProxy in front of `one` and `two`, each the ports of a daemon: its own, its admin pages', its agent's."""

    def __init__(self, one: list[int], two: list[int], *, certificate: Path) -> None:
        super().__init__()
        self.tcp, self.tls = ports(2)
        self._stats = self.room / "stats.sock"
        self._replacements = {
            "/run/haproxy.sock": str(self._stats),
            "bind :80\n": f"bind 127.0.0.1:{self.tcp}\n",
            "# bind :443 ssl crt /etc/haproxy/site.pem": f"bind 127.0.0.1:{self.tls} ssl crt {certificate}",
            "one 127.0.0.1:8000 port 9000 agent-port 9001": "one 127.0.0.1:{} port {} agent-port {}".format(*one),
            "two 127.0.0.1:8010 port 9010 agent-port 9011": "two 127.0.0.1:{} port {} agent-port {}".format(*two),
        }

    def run(self) -> HAProxy:
        """Start it."""
        config = self.room / "haproxy.cfg"
        derive(HAPROXY_CFG, config, self._replacements)
        self.start("haproxy", "-db", "-f", str(config), listens=(self.tcp, self.tls))
        # The file of the socket has its name before somebody listens there.
        assert proc.eventually(lambda: _answers(self._stats)), f"it cannot be asked\n{self.story()}"
        return self

    @property
    def output(self) -> str:
        """What it logged, but for requests that were answered."""
        return "\n".join(line for line in super().output.splitlines() if not re.search(r" web app/.* 200 ", line))

    def ask(self, command: str) -> str:
        """Return what its stats socket answers."""
        with closing(socket.socket(socket.AF_UNIX)) as sock:
            sock.settimeout(PATIENCE)
            sock.connect(str(self._stats))
            sock.sendall(command.encode() + b"\n")
            return b"".join(iter(lambda: sock.recv(65_536), b"")).decode()

    def server(self, name: str) -> dict[str, str]:
        """Return what it knows of a server of procmgr."""
        rows = csv.DictReader(self.ask("show stat").removeprefix("# ").splitlines())
        return next(row for row in rows if (row["pxname"], row["svname"]) == ("app", name))

    def drains(self, name: str) -> bool:
        """Tell whether the agent has forced a server to drain (management.txt, show servers state)."""
        lines = self.ask("show servers state app").splitlines()
        names = lines[1].removeprefix("# ").split()
        row = next(
            row
            for row in (dict(zip(names, line.split(), strict=False)) for line in lines[2:])
            if row["srv_name"] == name
        )
        return bool(int(row["srv_admin_state"]) & 0x08)

    def until(self, name: str, **fields: str) -> None:
        """Wait until what it knows of a server is as the regular expressions say."""

        def holds() -> bool:
            row = self.server(name)
            return all(re.fullmatch(pattern, row[field]) for field, pattern in fields.items())

        assert proc.eventually(holds), f"never {fields}: {self.server(name)}\n{self.story()}"


def client(port: int, *, source: str = "127.0.0.2") -> Connection:
    """Open a connection from another address of this machine, whose word nobody has a reason to believe."""
    connection = Connection(port)
    connection.sock.close()
    connection.sock = socket.create_connection((source_peer(source), port), PATIENCE, source_address=(source, 0))
    return connection


def source_peer(source: str) -> str:
    """Return the loopback address of the family of `source`."""
    return "::1" if ":" in source else "127.0.0.1"
