"""Behind the real nginx and HAProxy, on the configurations that etc/ ships."""

from __future__ import annotations

import grp
import json
import os
import pwd
import signal
import socket
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from support import proc
from support.ctl import ctl
from support.daemon import PATIENCE
from support.load import Load
from support.proxies import HAPROXY_CFG, NGINX_CONF, HAProxy, Nginx, check, client, missing, ports
from support.tls import Authority
from websockets.sync.client import connect

if TYPE_CHECKING:
    from support.daemon import Daemon
    from support.proxies import Front

APP = "support.apps.proxied_app:app"
BODY = int(os.environ.get("PROCMGR_TEST_BODY_MIB", "128")) << 20
"""Bytes of the long bodies; make it 1024 where there is time."""

NO_NGINX, NO_HAPROXY = missing("nginx", "www-data"), missing("haproxy", "haproxy")
with_nginx = pytest.mark.skipif(NO_NGINX is not None, reason=str(NO_NGINX))
with_haproxy = pytest.mark.skipif(NO_HAPROXY is not None, reason=str(NO_HAPROXY))
FRONTS = [
    pytest.param("nginx", marks=with_nginx),
    pytest.param("nginx, unix", marks=with_nginx),
    pytest.param("haproxy", marks=with_haproxy),
]
SPOOFED = {
    "X-Forwarded-For": "203.0.113.9",
    "X-Forwarded-Proto": "https",
    "X-Forwarded-Host": "evil.example",
    "X-Forwarded-Port": "1",
    "X-Forwarded-Prefix": "/evil",
    "X_Forwarded_For": "203.0.113.9",
    "Forwarded": "for=203.0.113.9;proto=https;host=evil.example",
}


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def files(authority):
    """A certificate and its key, and one file of both, as HAProxy wants it."""
    files = authority.write("site", authority.issue("localhost", "127.0.0.1", "::1"))
    both = files.certificate.with_name("both.pem")
    both.write_bytes(files.certificate.read_bytes() + files.key.read_bytes())
    return files, both


@pytest.fixture
def closing_all():
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def plain(launch):
    """A function that starts a daemon with nothing but these options."""
    return lambda *options: launch(*options, bind=None, app=APP).ready()


@pytest.fixture
def lingering(launch, closing_all):
    """A function that starts a daemon which would serve on for long after TERM, and does not at the end of the test."""

    def start(*options):
        daemon = launch("--shutdown-delay", "600", *options, bind=None, app=APP)
        closing_all.callback(lambda: daemon.process.poll() is None and daemon.signal(signal.SIGINT))
        return daemon.ready()

    return start


@pytest.fixture
def nginx(closing_all, files):
    """A function that starts nginx in front of a port and of its own `socket`."""

    def start(port):
        front = Nginx(port, certificate=files[0].certificate, key=files[0].key)
        closing_all.callback(front.close)
        return front

    return start


@pytest.fixture
def haproxy(closing_all, files):
    """A function that starts HAProxy in front of two daemons."""

    def start(one, two):
        front = HAProxy(one, two, certificate=files[1])
        closing_all.callback(front.close)
        return front.run()

    return start


@dataclass
class Behind:
    """A daemon and the proxy before it, with its ports."""

    daemon: Daemon
    front: Front
    port: int
    tls: int


@pytest.fixture
def behind(plain, nginx, haproxy):
    """A function that starts a daemon behind one of the `FRONTS`."""

    def start(kind, *options):
        if kind == "haproxy":
            front, daemon = haproxied(plain, haproxy, *options)
            return Behind(daemon, front, front.tcp, front.tls)
        front = nginx(proc.free_port())
        if kind == "nginx":
            daemon = plain(*options, "-b", front.address)
            return Behind(daemon, front.run(), front.tcp, front.tcp_tls)
        daemon = plain(*options, *on_unix(front))
        return Behind(daemon, front.run(), front.unix, front.unix_tls)

    return start


def on_unix(front):
    """Return the options that etc/nginx.conf tells for the Unix socket."""
    address = f"unix:{front.socket},mode=0660,group=www-data"
    return ["-b", address, "--forwarded-allow-ips", "unix", "--forwarded-headers", "forwarded"]


def proxied(numbers, *options):
    """Return the options that etc/haproxy.cfg tells, with the ports of a daemon."""
    own, admin, agent = (f"127.0.0.1:{number}" for number in numbers)
    return [*options, "-b", own, "--proxy-protocol", "--admin-bind", admin, "--agent-bind", agent]


def haproxied(start, haproxy, *options):
    """Start a daemon, and HAProxy before it, whose other server does not exist; return both once HAProxy knows that."""
    numbers = ports(6)
    daemon = start(*proxied(numbers[:3], *options))
    front = haproxy(numbers[:3], numbers[3:])
    front.until("one", status="UP", check_status="L7OK")
    front.until("two", status="DOWN")
    return front, daemon


def ask(port, path="/who", *, tls=None, source="127.0.0.2", **headers):
    """Return the JSON that a GET from another address is answered with."""
    with closing(client(port, source=source)) as connection:
        if tls is not None:
            connection.sock = tls.wrap_socket(connection.sock, server_hostname="localhost")
        connection.request("GET", path, headers=headers)
        response, body = connection.answer()
    assert response.status == 200, body
    return json.loads(body)


# -- the files themselves --------------------------------------------------------------------------------------------


@with_nginx
def test_nginx_takes_the_configuration_as_it_is_shipped():
    done = check("nginx", "-t", "-c", str(NGINX_CONF))
    assert done.returncode == 0, done.stdout
    assert "warn" not in done.stdout


@with_haproxy
def test_haproxy_takes_the_configuration_as_it_is_shipped():
    done = check("haproxy", "-c", "-f", str(HAPROXY_CFG))
    assert done.returncode == 0, done.stdout
    assert "WARNING" not in done.stdout


# -- who the client is -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FRONTS)
def test_client_and_scheme_are_the_real_ones_whatever_the_client_says_of_them(kind, behind, authority):
    site, over_tls = behind(kind), authority.client()
    over_tls.set_alpn_protocols(["http/1.1"])
    for port, tls in ((site.port, None), (site.tls, over_tls)):
        told = ask(port, tls=tls, **SPOOFED)
        assert told["client"][0] == "127.0.0.2"
        assert told["scheme"] == ("http" if tls is None else "https")
        names = [name.replace("_", "-") for name, _ in told["headers"]]
        assert len(names) == len(set(names))
        assert "203.0.113.9" not in str(told)
        assert "evil" not in str(told)


@with_nginx
def test_a_client_of_ip_version_6_is_told_in_forwarded(behind):
    site = behind("nginx, unix")
    told = ask(site.port, source="::1", **SPOOFED)
    assert told["client"] == ["::1", 0]
    assert dict(told["headers"])["forwarded"] == 'for="[::1]";proto=http'


@with_nginx
def test_a_unix_socket_lets_in_nginx_and_no_other_user(plain, nginx):
    front = nginx(proc.free_port())
    daemon = plain("-b", f"unix:{front.socket},group=www-data", "--umask", "007")
    front.run()
    assert ask(front.unix)["client"] is None
    assert (front.socket.stat().st_mode & 0o777, front.socket.group()) == (0o660, "www-data")
    with acting_as("nobody"), socket.socket(socket.AF_UNIX) as sock, pytest.raises(PermissionError):
        sock.connect(str(front.socket))
    assert daemon.workers()


@contextmanager
def acting_as(name):
    user, group = pwd.getpwnam(name), grp.getgrgid(os.getegid())
    os.setegid(user.pw_gid)
    os.seteuid(user.pw_uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(group.gr_gid)


# -- bodies and streams ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FRONTS)
def test_long_bodies_pass_as_they_come_and_the_worker_does_not_keep_them(kind, behind):
    site = behind(kind)
    (worker,) = site.daemon.workers()
    before = peak(worker)
    with closing(client(site.port)) as connection:
        upload(connection, site.daemon.probe)
        download(connection, site.daemon.probe)
    assert peak(worker) - before < 24 << 20
    assert "buffered to a temporary file" not in site.front.story(), "nor does the proxy"


def upload(connection, probe):
    """Send a body whose second part does not leave before the application has the first."""
    part = bytes(1 << 20)
    connection.putrequest("POST", "/upload")
    connection.putheader("Content-Length", str(BODY))
    connection.endheaders(part)
    probe.wait("first part").release()
    for _ in range(BODY // len(part) - 1):
        connection.sock.sendall(part)
    response, body = connection.answer()
    assert (response.status, json.loads(body)) == (200, {"length": BODY})


def download(connection, probe):
    """Read a body whose second part is not there before the first has arrived."""
    connection.request("GET", f"/download?{BODY}")
    response = connection.getresponse()
    first = probe.wait("first part")
    assert response.read(1) == b"1"
    first.release()
    buffer, length = bytearray(1 << 20), 1
    while length < BODY // 2:
        length += response.readinto(buffer)
    assert not probe.take("all sent"), "nobody keeps what the client has not read"
    while read := response.readinto(buffer):
        length += read
    assert length == BODY
    probe.wait("all sent")


def peak(pid):
    """Return the most memory that a process ever had resident, in bytes."""
    return int(proc.status(pid)["VmHWM"][0]) << 10


@pytest.mark.parametrize("kind", FRONTS)
def test_an_event_arrives_before_the_next_is_made(kind, behind):
    site = behind(kind)
    with closing(client(site.port)) as connection:
        connection.request("GET", "/events")
        response = connection.getresponse()
        held = site.daemon.probe.wait("first event")
        assert response.read1() == b"data: first\n\n"
        held.release()
        assert response.read() == b"data: second\n\n"


@pytest.mark.parametrize("kind", FRONTS)
def test_a_websocket_passes(kind, behind, authority):
    site, over_tls = behind(kind), authority.client()
    over_tls.set_alpn_protocols(["http/1.1"])
    for url, tls in ((f"ws://127.0.0.1:{site.port}/echo", None), (f"wss://127.0.0.1:{site.tls}/echo", over_tls)):
        with connect(url, proxy=None, open_timeout=PATIENCE, ssl=tls, compression="deflate") as websocket:
            for text in ("hello", "x" * 300_000):
                websocket.send(text)
                assert websocket.recv(timeout=PATIENCE).partition(" ")[2] == text
        assert site.daemon.probe.wait("disconnected").told["code"] == "1000"


# -- nobody is lost --------------------------------------------------------------------------------------------------


def churn(daemon, control, loads):
    """Reload twenty times, become a new program, and have four workers, one, and four again, all under load."""
    for _ in range(20):
        daemon.reload()
        for load in loads:
            load.wait_answers(20)
    daemon.upgrade()
    for number in (4, 1, 4):
        assert ctl("-s", str(control), "scale", str(number)).returncode == 0
        daemon.until(lambda number=number: len(daemon.workers()) == number, f"it has {number} workers")
        for load in loads:
            load.wait_answers(100)


@with_nginx
def test_no_request_through_nginx_fails_by_reloads_an_upgrade_and_scaling(plain, nginx, tmp_path):
    control = tmp_path / "control.sock"
    front = nginx(proc.free_port())
    more = ["-b", front.address, "--control", str(control)]
    daemon = plain("-w", "2", *on_unix(front), *more)
    front.run()
    with Load(front.tcp, keep_alive=5, fresh=3) as tcp, Load(front.unix, keep_alive=5, fresh=3) as unix:
        churn(daemon, control, [tcp, unix])
    assert tcp.result.failures == unix.result.failures == []
    assert "upstream" not in front.errors


@with_haproxy
def test_no_request_through_haproxy_fails_by_reloads_an_upgrade_and_scaling(plain, haproxy, tmp_path):
    control = tmp_path / "control.sock"
    front, daemon = haproxied(plain, haproxy, "-w", "2", "--control", str(control))
    with Load(front.tcp) as load:
        churn(daemon, control, [load])
    assert load.result.failures == []
    row = front.server("one")
    assert {name: row[name] for name in ("econ", "eresp", "wretr", "wredis", "hrsp_5xx")} == dict.fromkeys(
        ("econ", "eresp", "wretr", "wredis", "hrsp_5xx"), "0"
    )


# -- HAProxy and the state of procmgr --------------------------------------------------------------------------------


@with_haproxy
def test_a_procmgr_that_is_stopped_behind_haproxy_loses_no_request(plain, lingering, haproxy):
    numbers = ports(6)
    one, two = lingering(*proxied(numbers[:3], "-w", "2")), plain(*proxied(numbers[3:], "-w", "2"))
    front = haproxy(numbers[:3], numbers[3:])
    for name in ("one", "two"):
        front.until(name, status="UP", check_status="L7OK")
    with Load(front.tcp) as load:
        load.wait_answers(100)
        assert load.answering() >= {*one.workers(), *two.workers()}
        one.signal(signal.SIGTERM)
        front.until("one", status="DOWN", check_status="L7STS", check_code="503")
        load.wait_answers(100)
        assert len(one.workers()) == 2, "it serves on, for those who do not know yet"
        one.signal(signal.SIGTERM)
        assert one.join() == 0
        load.wait_answers(100)
    assert load.result.failures == []
    assert front.server("one")["wretr"] == front.server("two")["wretr"] == "0"


@with_haproxy
def test_the_agent_check_tells_load_drain_and_return(plain, lingering, haproxy):
    front, daemon = haproxied(lingering, haproxy)
    front.until("one", weight="9[0-9]|100")
    with closing(client(front.tcp)) as connection:
        connection.request("GET", "/spin")
        spinning = daemon.probe.wait("spinning")
        front.until("one", weight="[1-8]?[0-9]")
        spinning.release()
        connection.answer()
    front.until("one", weight="9[0-9]|100")
    daemon.signal(signal.SIGTERM)
    assert proc.eventually(lambda: front.drains("one")), front.story()
    daemon.signal(signal.SIGINT)
    assert daemon.join() == 0
    front.until("one", status="DOWN")
    again = plain(*daemon.args[2:-1])
    front.until("one", status="UP", weight="9[0-9]|100", check_status="L7OK")
    assert not front.drains("one")
    assert ask(front.tcp)["client"][0] == "127.0.0.2"
    assert again.workers()
