"""Where the daemon listens: its own sockets, inherited ones, systemd's; who may unlink them; and who is in the way."""

from __future__ import annotations

import errno
import json
import os
import re
import socket
import stat
import sys

import pytest
from support import proc
from support.daemon import PATIENCE, run

ACTIVATE = """
import os, sys
count, names = int(sys.argv[1]), sys.argv[2]
fds = [int(fd) for fd in sys.argv[3].split(",")]
high = [os.dup2(fd, 100 + at, inheritable=False) for at, fd in enumerate(fds)]  # out of the way of 3, 4, ...
for fd in fds:
    os.close(fd)
for at, fd in enumerate(high):
    os.dup2(fd, 3 + at, inheritable=True)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(count), LISTEN_FDNAMES=names)
os.execvp(sys.argv[4], sys.argv[4:])
"""


@pytest.fixture
def tcp():
    """A listening TCP socket as another program would hand it over: made without a protocol number."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1", 0))
        sock.listen(128)
        yield sock


@pytest.fixture
def unix(tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.bind(str(tmp_path / "inherited.sock"))
        sock.listen(128)
        yield sock


def port_of(sock):
    return sock.getsockname()[1]


def nodelay_of_an_accepted_connection(daemon, connection):
    """Return TCP_NODELAY of the worker's end of `connection`, which must be open and idle."""
    host, port = connection.sock.getsockname()
    for pid in daemon.workers():
        for inode in proc.sockets_of(pid):
            with borrow(pid, inode) as sock:
                if sock.family == socket.AF_INET and _peer(sock) == (host, port):
                    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    raise AssertionError("no worker holds the other end")


def borrow(pid, inode):
    try:
        return proc.borrow(pid, inode)
    except OSError as error:
        if error.errno in {errno.EPERM, errno.ENOSYS}:
            pytest.skip("looking into another process needs pidfd_getfd(2)")
        raise


def _peer(sock):
    try:
        return sock.getpeername()
    except OSError:
        return None


def test_a_port_in_use_is_refused_with_its_holder(tcp):
    refused = run("-b", f"127.0.0.1:{port_of(tcp)}", "support.testapp:app")
    assert refused.returncode == 71
    assert f"127.0.0.1:{port_of(tcp)}" in refused.stderr
    assert f"pid {os.getpid()}" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1


def test_several_addresses_are_served_by_the_same_workers(serve, tmp_path):
    path = tmp_path / "own.sock"
    daemon = serve("-b", f"unix:{path}")
    assert json.loads(daemon.connect(path).get()[1])["pid"] == daemon.get()["pid"]


def test_a_unix_socket_has_its_mode_and_is_removed_at_the_end(serve, tmp_path):
    path = tmp_path / "own.sock"
    daemon = serve(bind=f"unix:{path},mode=0600")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert daemon.connect(path).get()[0].status == 200
    assert daemon.stop() == 0
    assert not path.exists()


def test_a_port_that_the_kernel_chose_is_said_and_kept_across_reloads(serve):
    daemon = serve(bind="127.0.0.1:0")
    port = int(re.search(r"on http://127\.0\.0\.1:(\d+)", daemon.log)[1])
    assert daemon.connect(port).get()[0].status == 200
    daemon.reload()
    assert daemon.connect(port).get()[0].status == 200
    assert len(proc.sockets_of(daemon.pid) & proc.listening(port)) == 1


def test_uds_is_uvicorns_spelling_of_a_unix_socket(serve, tmp_path):
    path = tmp_path / "own.sock"
    daemon = serve("--uds", str(path), bind=None)
    assert daemon.connect(path).get()[0].status == 200


def test_a_stale_unix_socket_is_replaced(serve, tmp_path):
    path = tmp_path / "own.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stale:
        stale.bind(str(path))
    daemon = serve(bind=f"unix:{path}")
    assert daemon.connect(path).get()[0].status == 200


def test_a_live_unix_socket_is_refused_and_left_alone(unix):
    path = unix.getsockname()
    refused = run("-b", f"unix:{path}", "support.testapp:app")
    assert refused.returncode == 71
    assert path in refused.stderr
    assert f"pid {os.getpid()}" in refused.stderr
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.connect(path)


def test_a_file_that_is_no_socket_is_never_replaced(tmp_path):
    path = tmp_path / "precious"
    path.write_text("data")
    refused = run("-b", f"unix:{path}", "support.testapp:app")
    assert refused.returncode == 71
    assert path.read_text() == "data"


def test_an_inherited_tcp_socket_is_served(serve, tcp):
    daemon = serve("--fd", str(tcp.fileno()), bind=None, pass_fds=[tcp.fileno()])
    assert json.loads(daemon.connect(port_of(tcp)).get()[1])["pid"] in daemon.workers()


def test_an_inherited_unix_socket_is_served_and_never_unlinked_or_shut_down(serve, unix, tmp_path):
    path = tmp_path / "inherited.sock"
    daemon = serve("-b", f"fd://{unix.fileno()}", bind=None, pass_fds=[unix.fileno()])
    assert daemon.connect(path).get()[0].status == 200
    daemon.reload()
    assert daemon.connect(path).get()[0].status == 200
    assert daemon.stop() == 0
    assert path.exists()
    daemon.connect(path)
    unix.settimeout(PATIENCE)
    unix.accept()[0].close()


def test_several_inherited_sockets_are_served(serve, tcp, unix, tmp_path):
    fds = [tcp.fileno(), unix.fileno()]
    daemon = serve("--fd", str(fds[0]), "--fd", str(fds[1]), bind=None, pass_fds=fds)
    assert daemon.connect(port_of(tcp)).get()[0].status == 200
    assert daemon.connect(tmp_path / "inherited.sock").get()[0].status == 200


def test_small_answers_are_not_delayed_however_the_listener_came(serve, tcp):
    daemon = serve("--fd", str(tcp.fileno()), pass_fds=[tcp.fileno()])
    for port in (daemon.port, port_of(tcp)):
        connection = daemon.connect(port)
        assert connection.get()[0].status == 200
        assert nodelay_of_an_accepted_connection(daemon, connection)


def describe_regular_file(tmp_path):
    return os.open(tmp_path / "plain", os.O_CREAT | os.O_RDWR), "a regular file"


def describe_pipe(tmp_path):
    reader, writer = os.pipe()
    os.close(writer)
    return reader, "a pipe"


def describe_udp(tmp_path):
    return socket.socket(socket.AF_INET, socket.SOCK_DGRAM).detach(), "a UDP socket"


def describe_unbound(tmp_path):
    return socket.socket(socket.AF_INET, socket.SOCK_STREAM).detach(), "not bound"


@pytest.mark.parametrize("make", [describe_regular_file, describe_pipe, describe_udp, describe_unbound])
def test_a_descriptor_that_is_no_listener_is_refused_with_what_it_is(launch, tmp_path, make):
    fd, what = make(tmp_path)
    try:
        daemon = launch("--fd", str(fd), bind=None, pass_fds=[fd])
        assert daemon.join() == 71
    finally:
        os.close(fd)
    assert f"fd {fd} is" in daemon.log
    assert what in daemon.log
    assert "Traceback" not in daemon.log


def test_a_descriptor_that_is_not_open_is_refused(launch):
    daemon = launch("--fd", "77", bind=None)
    assert daemon.join() == 71
    assert "fd 77 is not open" in daemon.log


def activated(names, *socks):
    fds = ",".join(str(sock.fileno()) for sock in socks)
    return {
        "wrapper": [sys.executable, "-c", ACTIVATE, str(len(socks)), names, fds],
        "pass_fds": [sock.fileno() for sock in socks],
    }


def test_systemds_sockets_are_found_by_name(serve, tcp, unix, tmp_path):
    daemon = serve("-b", "systemd:web", "-b", "systemd:local", bind=None, **activated("local:web", unix, tcp))
    assert daemon.connect(port_of(tcp)).get()[0].status == 200
    assert daemon.connect(tmp_path / "inherited.sock").get()[0].status == 200
    daemon.reload()
    assert daemon.connect(port_of(tcp)).get()[0].status == 200
    assert daemon.stop() == 0
    assert (tmp_path / "inherited.sock").exists()


def test_a_systemd_name_that_was_not_passed_is_refused_with_those_that_were(launch, tcp):
    daemon = launch("-b", "systemd:wbe", bind=None, **activated("web", tcp))
    assert daemon.join() == 71
    assert "systemd:wbe" in daemon.log


def test_a_descriptor_that_two_addresses_name_is_refused(launch, tcp):
    daemon = launch("-b", "fd://3", "-b", "systemd:web", bind=None, **activated("web", tcp))
    assert daemon.join() == 78
    (line,) = re.findall(r"^procmgr: error: .*$", daemon.log, re.MULTILINE)
    assert line == "procmgr: error: bad address systemd:web: it is descriptor 3, as fd://3 is; name it only once"


def test_a_reload_that_gives_a_descriptor_another_name_is_refused_and_it_serves_on(serve, tcp, tmp_path):
    config = tmp_path / "site.toml"
    config.write_text('bind = ["fd://3"]\n')
    daemon = serve("-c", str(config), bind=None, **activated("web", tcp))
    config.write_text('bind = ["systemd:web"]\n')
    daemon.try_reload()
    assert "reload refused, nothing changed: bad address systemd:web" in daemon.log
    assert daemon.connect(port_of(tcp)).get()[0].status == 200
    assert "web" in daemon.log.replace("wbe", "")


def test_systemds_socket_keeps_what_is_queued_across_a_restart(serve, tcp):
    first = serve("-b", "systemd:web", bind=None, **activated("web", tcp))
    assert first.stop() == 0
    waiting = first.connect(port_of(tcp))
    waiting.request("GET", "/")
    serve("-b", "systemd:web", bind=None, **activated("web", tcp))
    assert waiting.answer()[0].status == 200


def test_the_applications_environment_has_nothing_of_the_service_manager(serve, write_app, tmp_path, tcp):
    app = write_app(
        "import os\nfrom support.stage import tell\nfrom support.testapp import app\n"
        "service = ('LISTEN_', 'NOTIFY_', 'WATCHDOG_')\n"
        "tell('names', names=sorted(name for name in os.environ if name.startswith(service)))\n"
    )
    daemon = serve("-b", "systemd:web", "--app-dir", str(tmp_path), bind=None, app=app, **activated("web", tcp))
    assert daemon.probe.wait("names").told["names"] == "[]"
