"""Listeners: what an address may look like, what is bound, adopted, refused and removed."""

import contextlib
import errno
import fcntl
import os
import socket
import stat
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from procmgr.errors import BindError, ConfigError, PrivilegeError
from procmgr.sockets import (
    TCP,
    Abstract,
    Address,
    Inherited,
    Listener,
    Origin,
    SystemdName,
    Unix,
    adopt,
    bind,
    parse_address,
    somaxconn,
    unlink,
    url,
)
from procmgr.sockets import bind as bind_function
from procmgr.sockets.holders import holder

LOOPBACK = TCP("127.0.0.1", 0)


@pytest.fixture
def keep():
    """Closes at the end whatever the test hands it."""
    kept = []

    def remember(thing):
        kept.append(thing)
        return thing

    yield remember
    for thing in kept:
        (thing.sock if isinstance(thing, Listener) else thing).close()


def open_descriptors():
    """Return the numbers of this process's open descriptors, without the one that lists them."""
    return [int(path.name) for path in list(Path("/proc/self/fd").iterdir()) if path.exists()]


# The grammar


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:8000", TCP("127.0.0.1", 8000)),
        ("localhost:0", TCP("localhost", 0)),
        ("my_host-1.example:65535", TCP("my_host-1.example", 65535)),
        ("[::1]:8000", TCP("::1", 8000)),
        ("[fe80::1%lo]:80", TCP("fe80::1%lo", 80)),
        (":8000", TCP("", 8000)),
        ("unix:/run/app.sock", Unix("/run/app.sock")),
        ("unix:app.sock", Unix("app.sock")),
        ("unix:///run/app.sock", Unix("/run/app.sock")),
        ("unix:/a b,mode=0660,owner=web,group=33", Unix("/a b", 0o660, "web", "33")),
        ("unix:/a,group=g,mode=600", Unix("/a", 0o600, None, "g")),
        ("unix:/a,mode=0o666", Unix("/a", 0o666)),
        ("unix:@name", Abstract("name")),
        ("fd://0", Inherited(0)),
        ("fd://17", Inherited(17)),
        ("systemd:web.socket", SystemdName("web.socket")),
    ],
)
def test_an_address_is_parsed(text, address):
    assert parse_address(text) == address


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("", "unix:/run/app.sock"),
        ("8000", "127.0.0.1:8000"),
        ("localhost", "write localhost:8000"),
        ("[::1]", "write [::1]:8000"),
        ("::1", "brackets"),
        ("::1:8000", "brackets"),
        ("[::1:8000", "brackets"),
        ("[localhost]:80", "no IPv6 address"),
        ("a:65536", "from 0 to 65535"),
        ("a:-1", "from 0 to 65535"),
        ("a:8_0", "from 0 to 65535"),
        ("a:٨٠", "from 0 to 65535"),
        ("a:", "from 0 to 65535"),
        ("a b:80", "no host"),
        ("a/b:80", "no host"),
        ("http://127.0.0.1:80/", "write 127.0.0.1:80"),
        ("tcp://", "write 127.0.0.1:8000"),
        ("unix:", "unix:/run/app.sock"),
        ("unix:/run/", "unix:/run/app.sock"),
        ("unix://run/a", "unix:/run/app.sock"),
        ("unix:/a\0b", "unix:/run/app.sock"),
        ("unix:/a,mode=888", "octal"),
        ("unix:/a,mode=1777", "octal"),
        ("unix:/a,mod=0660", "mode=0660"),
        ("unix:/a,mode", "mode=0660"),
        ("unix:/a,mode=0600,mode=0666", "each once"),
        ("unix:/a,owner=", "owner=USER"),
        ("unix:@", "unix:@name"),
        ("unix:@n,mode=0600", "no mode"),
        ("fd:3", "fd://3"),
        ("fd://", "fd://3"),
        ("fd://-1", "fd://3"),
        ("fd://9999999", "fd://3"),
        ("systemd:", "systemd:web"),
        ("systemd:a:b", "systemd:web"),
    ],
)
def test_a_bad_address_is_refused_in_one_line_that_says_what_would_be_right(text, hint):
    with pytest.raises(ValueError, match=r"^bad address ") as caught:
        parse_address(text)
    message = str(caught.value)
    assert repr(text) in message
    assert hint in message
    assert "\n" not in message


hosts = st.from_regex(r"\A[a-z0-9][a-z0-9.-]{0,20}\Z") | st.ip_addresses().map(str) | st.just("")
words = st.from_regex(r"\A[a-z][a-z0-9]{0,8}\Z")
addresses = st.one_of(
    st.builds(TCP, hosts, st.integers(0, 65535)),
    st.builds(
        Unix,
        st.from_regex(r"\A/[a-z. ]{0,10}[a-z]\Z"),
        st.none() | st.integers(0, 0o777),
        st.none() | words,
        st.none() | words,
    ),
    st.builds(Abstract, words),
    st.builds(Inherited, st.integers(0, 1000)),
    st.builds(SystemdName, words),
)


@given(addresses)
def test_an_address_spells_itself_so_that_parsing_gives_it_back(address):
    assert parse_address(str(address)) == address


@given(st.text(max_size=40) | st.from_regex(r"\A(unix|fd|systemd|\[)?[:@/,=a0-9\]]{0,12}\Z"))
def test_whatever_is_typed_is_an_address_or_a_value_error(text):
    with contextlib.suppress(ValueError):
        assert isinstance(parse_address(text), Address)


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        (TCP("127.0.0.1", 8000), "http://127.0.0.1:8000"),
        (TCP("::1", 8000), "http://[::1]:8000"),
        (TCP("", 80), "http://0.0.0.0:80"),
        (Unix("/a", 0o660), "unix:/a,mode=0660"),
        (SystemdName("web"), "systemd:web"),
    ],
)
def test_the_start_up_line_shows_a_url_for_tcp_and_the_spelling_for_the_rest(address, shown):
    assert url(address) == shown


def test_the_start_up_line_takes_the_scheme():
    assert url(TCP("a", 1), scheme="https") == "https://a:1"


# Binding TCP


def test_a_tcp_listener_is_non_blocking_close_on_exec_and_carries_the_protocol_number_of_tcp(keep):
    listener = keep(bind(LOOPBACK, backlog=5))
    sock = listener.sock
    assert (sock.family, sock.type, sock.proto) == (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    assert not sock.getblocking()
    assert not sock.get_inheritable()
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)
    assert listener.origin is Origin.BOUND


def test_port_0_becomes_the_port_the_kernel_chose_while_the_name_stays(keep):
    listener = keep(bind(LOOPBACK, backlog=5))
    assert listener.address == TCP("127.0.0.1", listener.sock.getsockname()[1])
    assert listener.address.port != 0
    assert listener.name == "127.0.0.1:0"


def test_localhost_is_bound_on_ipv4_whatever_order_the_resolver_has(keep, monkeypatch):
    found = [
        (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", 0, 0, 0)),
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0)),
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: found)
    assert keep(bind(TCP("localhost", 0), backlog=5)).address.host == "127.0.0.1"


def test_an_empty_host_is_every_ipv4_interface(keep):
    assert keep(bind(TCP("", 0), backlog=5)).address.host == "0.0.0.0"


def test_an_ipv6_listener_leaves_the_ipv4_port_free(keep):
    try:
        six = keep(bind(TCP("::", 0), backlog=5))
    except BindError:
        pytest.skip("no IPv6 here")
    four = keep(bind(TCP("", six.address.port), backlog=5))
    assert str(six.address) == f"[::]:{four.address.port}"


def test_a_port_in_use_names_the_process_that_holds_it(keep):
    held = keep(bind(LOOPBACK, backlog=5))
    with pytest.raises(BindError, match=rf"already in use by pid {os.getpid()} \(.*\), this procmgr itself$") as caught:
        bind(held.address, backlog=5)
    assert str(held.address) in str(caught.value)
    assert caught.value.exit_code == 71


def test_a_port_bound_but_not_listening_is_in_use_too(keep):
    held = keep(socket.create_server(("127.0.0.1", 0)))
    with pytest.raises(BindError, match="already in use"):
        bind(TCP(*held.getsockname()), backlog=5)


def test_a_host_that_does_not_resolve_is_named():
    with pytest.raises(BindError, match=r"host 'no-such-host\.invalid' does not resolve"):
        bind(TCP("no-such-host.invalid", 80), backlog=5)


def test_a_host_that_cannot_be_encoded_does_not_resolve():
    with pytest.raises(BindError, match="does not resolve"):
        bind(TCP("a" * 64 + ".invalid", 80), backlog=5)


def test_an_address_of_another_machine_is_refused():
    with pytest.raises(BindError, match="no such address"):
        bind(TCP("192.0.2.1", 0), backlog=5)


def test_a_privileged_port_is_refused_with_what_would_help(monkeypatch):
    def denied(self, address):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(socket.socket, "bind", denied)
    with pytest.raises(PrivilegeError, match="CAP_NET_BIND_SERVICE") as caught:
        bind(TCP("127.0.0.1", 80), backlog=5)
    assert caught.value.exit_code == 77


def test_a_family_the_kernel_lacks_is_one_line(monkeypatch):
    def missing(*args, **kwargs):
        raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")

    monkeypatch.setattr(bind_function.__globals__["socket"], "socket", missing)
    with pytest.raises(BindError, match=r"cannot bind \[::1\]:80: Address family not supported"):
        bind(TCP("::1", 80), backlog=5)


def test_a_refused_bind_leaves_no_descriptor_open(keep):
    held = keep(bind(LOOPBACK, backlog=5))
    before = len(open_descriptors())
    for _ in range(3):
        with pytest.raises(BindError):
            bind(held.address, backlog=5)
    assert len(open_descriptors()) == before


def test_the_limit_of_the_listen_queue_is_read_where_proc_shows_it(tmp_path):
    assert somaxconn(proc=tmp_path) is None
    (tmp_path / "sys/net/core").mkdir(parents=True)
    (tmp_path / "sys/net/core/somaxconn").write_text("4096\n")
    assert somaxconn(proc=tmp_path) == 4096


# Who holds it


@pytest.fixture
def proc(tmp_path):
    """A /proc with two TCP listeners on port 8000 of which pid 12 and 7 hold the second."""
    (tmp_path / "net").mkdir()
    row = "   0: {local} 00000000:0000 0A 00000000:00000000 00:00000000 00000000  0  0 {inode} 1 0\n"
    rows = [row.format(local=f"{local}:1F40", inode=inode) for local, inode in (("0100007F", 41), ("0200007F", 42))]
    (tmp_path / "net/tcp").write_text("header\n" + "".join(rows))
    v6 = row.format(local="00000000000000000000000001000000:1F41", inode=43)
    (tmp_path / "net/tcp6").write_text("header\n" + v6)
    for pid, inode in ((12, 42), (7, 42), (3, 40), (9, 43)):
        (tmp_path / f"{pid}/fd").mkdir(parents=True)
        (tmp_path / f"{pid}/fd/5").symlink_to(f"socket:[{inode}]")
        (tmp_path / f"{pid}/comm").write_text(f"proc{pid}\n")
    return tmp_path


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        (TCP("127.0.0.2", 8000), "pid 7 (proc7)"),
        (TCP("0.0.0.0", 8000), "pid 7 (proc7)"),
        (TCP("::", 8000), "pid 7 (proc7)"),
        (TCP("::1", 8001), "pid 9 (proc9)"),
        (TCP("localhost", 8001), "pid 9 (proc9)"),
        (TCP("127.0.0.3", 8000), None),
        (TCP("127.0.0.1", 8000), None),
        (TCP("127.0.0.1", 8002), None),
    ],
)
def test_the_holder_is_the_lowest_pid_whose_listener_conflicts(proc, address, expected):
    assert holder(address, proc=proc) == expected


def test_a_holder_without_a_name_is_its_pid(proc):
    (proc / "7/comm").unlink()
    assert holder(TCP("127.0.0.2", 8000), proc=proc) == "pid 7"


def test_the_holder_is_unknown_where_proc_is_hidden(tmp_path):
    assert holder(TCP("127.0.0.1", 8000), proc=tmp_path) is None
    assert holder(TCP("127.0.0.1", 8000), proc=tmp_path / "missing") is None


# Binding Unix sockets


@pytest.fixture
def path(tmp_path, monkeypatch):
    """A short path: tmp_path may be too long for sun_path."""
    monkeypatch.chdir(tmp_path)
    return tmp_path / "s"


def permissions(path):
    return stat.S_IMODE(path.lstat().st_mode)


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_a_unix_socket_has_0666_without_the_umask(path, keep, umask):
    keep(bind(Unix(str(path)), backlog=5, umask=umask))
    assert permissions(path) == 0o666 & ~umask


def test_without_a_umask_given_the_process_s_own_holds_and_stays(path, keep):
    previous = os.umask(0o027)
    try:
        keep(bind(Unix(str(path)), backlog=5))
        assert permissions(path) == 0o640
    finally:
        assert os.umask(previous) == 0o027


def test_a_mode_given_is_exact_whatever_the_umask(path, keep):
    keep(bind(Unix(str(path), 0o662), backlog=5, umask=0o077))
    assert permissions(path) == 0o662


def test_the_socket_file_never_has_wider_permissions_than_asked_for(path, keep, monkeypatch):
    seen = []
    original = socket.socket.listen
    monkeypatch.setattr(socket.socket, "listen", lambda self, n: (seen.append(permissions(path)), original(self, n)))
    monkeypatch.setattr(os, "chmod", lambda *args, **kwargs: pytest.fail("bind(2) alone is to set the mode"))
    keep(bind(Unix(str(path), 0o600), backlog=5, umask=0))
    assert seen == [0o600]


def test_a_relative_path_is_bound_absolute_and_keeps_its_name(path, keep):
    listener = keep(bind(Unix("s"), backlog=5))
    assert listener.address.path == str(path)
    assert listener.name == "unix:s"


def test_owner_and_group_are_applied(path, keep, monkeypatch):
    calls = []
    monkeypatch.setattr(os, "chown", lambda *args, **kwargs: calls.append((args, kwargs)))
    keep(bind(Unix(str(path), None, "root", "0"), backlog=5))
    assert calls == [((str(path), 0, 0), {"follow_symlinks": False})]


@pytest.mark.parametrize("address", [Unix("s", None, "no-such-user"), Unix("s", None, None, "no-such-group")])
def test_an_unknown_owner_or_group_is_a_configuration_error_and_binds_nothing(path, address):
    with pytest.raises(ConfigError, match="no-such"):
        bind(address, backlog=5)
    assert not path.exists()


def test_a_refused_chown_leaves_no_file_behind(path, monkeypatch):
    def denied(*args, **kwargs):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "chown", denied)
    with pytest.raises(PrivilegeError, match="owner"):
        bind(Unix(str(path), None, "root"), backlog=5)
    assert not path.exists()


def test_a_stale_socket_file_is_replaced(path, keep):
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    listener = keep(bind(Unix(str(path)), backlog=5))
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    assert listener.inode == (path.lstat().st_dev, path.lstat().st_ino)


def test_a_live_socket_is_refused_naming_its_holder_and_keeps_serving(path, keep):
    live = keep(bind(Unix(str(path)), backlog=5))
    with pytest.raises(BindError, match=rf"already in use by pid {os.getpid()} "):
        bind(Unix(str(path)), backlog=5)
    assert live.inode == (path.lstat().st_dev, path.lstat().st_ino)


def test_of_several_that_find_a_stale_file_at_once_one_has_the_path_and_keeps_it(path):
    for _ in range(10):
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(path))
        assert sorted(race(lambda: bind(Unix(str(path)), backlog=5), runners=6)) == [0, *[71] * 5]
        path.unlink()


def race(attempt, *, runners):
    """Return the exit codes of so many processes that call `attempt` at once and live until all have."""
    codes = []
    go, gate = os.pipe()
    done_reader, done = os.pipe()
    stay, leave = os.pipe()
    pids = []
    for _ in range(runners):
        pid = os.fork()
        if pid == 0:
            code, kept = 1, []
            try:
                os.close(gate)
                os.close(leave)
                os.read(go, 1)
                try:
                    kept.append(attempt())
                    code = 0
                except BindError as error:
                    code = int(error.exit_code)
                os.write(done, b"x")
                os.read(stay, 1)  # the winner listens until all have tried
            finally:
                os._exit(code)
        pids.append(pid)
    os.close(gate)
    waited = 0
    while waited < runners:
        waited += len(os.read(done_reader, runners))
    os.close(leave)
    for pid in pids:
        codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    for fd in (go, done_reader, done, stay):
        os.close(fd)
    return codes


def test_a_directory_that_somebody_keeps_locked_does_not_keep_from_binding(path, keep):
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        keep(bind(Unix(str(path)), backlog=5))
    finally:
        os.close(directory)


def test_a_live_socket_with_a_full_queue_is_not_taken_for_stale(path, keep):
    keep(bind(Unix(str(path)), backlog=0))
    client = keep(socket.socket(socket.AF_UNIX))
    client.connect(str(path))
    with pytest.raises(BindError, match="already in use"):
        bind(Unix(str(path)), backlog=5)


def test_a_live_datagram_socket_is_refused(path, keep):
    keep(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)).bind(str(path))
    with pytest.raises(BindError, match="already in use"):
        bind(Unix(str(path)), backlog=5)


@pytest.mark.parametrize(
    "make", [lambda path: path.write_text("precious"), os.mkdir, lambda path: path.symlink_to("x")]
)
def test_a_file_that_is_no_socket_is_refused_and_left_alone(path, make):
    make(path)
    with pytest.raises(BindError, match="no socket"):
        bind(Unix(str(path)), backlog=5)
    assert os.path.lexists(path)


def test_a_path_longer_than_the_kernel_takes_is_refused():
    with pytest.raises(BindError, match="at most 107 bytes"):
        bind(Unix("/tmp/" + "x" * 103), backlog=5)


def test_a_path_as_long_as_the_kernel_takes_is_bound(path, keep):
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        prefix = f"/proc/self/fd/{directory}/"
        listener = keep(bind(Unix(prefix + "x" * (107 - len(prefix))), backlog=5))
        assert unlink(listener)
    finally:
        os.close(directory)


def test_a_missing_directory_is_one_line(path):
    with pytest.raises(BindError, match="No such file or directory"):
        bind(Unix(str(path / "x")), backlog=5)


def test_a_directory_without_write_permission_is_a_privilege_error(path, monkeypatch):
    def denied(self, address):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(socket.socket, "bind", denied)
    with pytest.raises(PrivilegeError, match="write permission"):
        bind(Unix(str(path)), backlog=5)


def test_a_socket_that_may_not_be_probed_is_not_replaced(path, monkeypatch):
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    monkeypatch.setattr(socket.socket, "connect_ex", lambda self, address: errno.EACCES)
    with pytest.raises(PrivilegeError):
        bind(Unix(str(path)), backlog=5)
    assert path.exists()


def test_an_abstract_socket_is_bound_once(keep):
    name = f"procmgr-test-{os.getpid()}"
    listener = keep(bind(Abstract(name), backlog=5))
    assert listener.sock.getsockname() == b"\0" + name.encode()
    with pytest.raises(BindError, match=rf"unix:@{name}: already in use by pid {os.getpid()} "):
        bind(Abstract(name), backlog=5)


# Adopting


def test_an_inherited_listener_keeps_its_real_family_type_and_protocol(keep):
    made = socket.create_server(("127.0.0.1", 0))
    port = made.getsockname()[1]
    listener = keep(adopt(made.detach()))
    sock = listener.sock
    assert (sock.family, sock.type, sock.proto) == (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    assert listener.address == TCP("127.0.0.1", port)
    assert listener.origin is Origin.INHERITED


def test_an_inherited_listener_becomes_non_blocking_and_close_on_exec(keep):
    made = socket.create_server(("127.0.0.1", 0))
    made.set_inheritable(True)
    fd = made.detach()
    listener = keep(adopt(fd))
    assert listener.sock.fileno() == fd
    assert not os.get_blocking(fd)
    assert not os.get_inheritable(fd)


def test_an_adopted_listener_is_named_as_the_configuration_names_it(keep):
    one, other = socket.create_server(("127.0.0.1", 0)).detach(), socket.create_server(("127.0.0.1", 0)).detach()
    assert keep(adopt(one)).name == f"fd://{one}"
    assert keep(adopt(other, name="web")).name == "systemd:web"


def test_unix_and_abstract_listeners_are_adopted_with_their_address(path, keep):
    for target, expected in ((str(path), Unix(str(path))), (b"\0procmgr-adopt", Abstract("procmgr-adopt"))):
        made = socket.socket(socket.AF_UNIX)
        made.bind(target)
        made.listen()
        assert keep(adopt(made.detach())).address == expected


def test_a_bound_socket_that_does_not_listen_is_made_to(keep):
    made = socket.socket()
    made.bind(("127.0.0.1", 0))
    listener = keep(adopt(made.detach(), backlog=7))
    with socket.create_connection(listener.sock.getsockname()):
        pass


def test_the_queue_length_its_maker_chose_is_kept(keep):
    made = socket.create_server(("127.0.0.1", 0), backlog=7)
    listener = keep(adopt(made.detach(), backlog=100))
    info = listener.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 32)
    assert int.from_bytes(info[28:32], "little") == 7


def socket_pair_end():
    one, other = socket.socketpair()
    other.close()
    return one


def connected_tcp():
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection(server.getsockname())
        server.accept()[0].close()  # otherwise closing the server would reset the client
        return client


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda: socket.socket(type=socket.SOCK_DGRAM), "a UDP socket"),
        (lambda: socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET), "family AF_UNIX and type SOCK_SEQPACKET"),
        (lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW), "family AF_NETLINK and type SOCK_RAW"),
        (socket.socket, "a TCP socket that is not bound"),
        (lambda: socket.socket(socket.AF_UNIX), "a Unix socket that is not bound"),
        (socket_pair_end, "a connected Unix socket"),
        (connected_tcp, "a connected TCP socket"),
    ],
)
def test_a_socket_that_cannot_listen_is_refused_by_what_it_is_and_left_open(keep, make, what):
    sock = keep(make())
    with pytest.raises(BindError, match=what) as caught:
        adopt(sock.fileno())
    assert str(caught.value).startswith(f"fd {sock.fileno()} is ")
    assert os.fstat(sock.fileno())
    assert sock.getblocking()


def test_a_regular_file_is_refused_with_its_path(tmp_path):
    with (tmp_path / "data").open("w") as file, pytest.raises(BindError, match=f"a regular file {tmp_path}/data"):
        adopt(file.fileno())


def test_pipe_directory_and_device_are_refused_by_what_they_are(tmp_path):
    reader, writer = os.pipe()
    directory, null = os.open(tmp_path, os.O_RDONLY), os.open("/dev/null", os.O_RDONLY)
    try:
        for fd, what in ((reader, "a pipe"), (directory, "a directory"), (null, "a character device /dev/null")):
            with pytest.raises(BindError, match=what):
                adopt(fd)
    finally:
        for fd in (reader, writer, directory, null):
            os.close(fd)


def test_a_closed_descriptor_is_refused_by_number_and_name():
    reader, writer = os.pipe()
    os.close(reader)
    os.close(writer)
    with pytest.raises(BindError, match=rf"fd {reader} \(systemd:web\) is not open"):
        adopt(reader, name="web")


def test_a_listen_that_the_kernel_refuses_leaves_the_descriptor_alone(keep, monkeypatch):
    made = keep(socket.socket())
    made.bind(("127.0.0.1", 0))

    def refused(self, backlog):
        raise OSError(errno.EADDRINUSE, "Address already in use")

    monkeypatch.setattr(socket.socket, "listen", refused)
    with pytest.raises(BindError, match="is bound but cannot listen"):
        adopt(made.fileno())
    assert os.fstat(made.fileno())


def test_a_listener_on_standard_input_moves_away_and_leaves_dev_null():
    """In a child, since it is about this process's descriptor 0."""
    made = socket.create_server(("127.0.0.1", 0))
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.dup2(made.detach(), 0)
            listener = adopt(0)
            moved = listener.sock.fileno() > 2 and listener.name == "fd://0" and os.read(0, 1) == b""
            inodes = [os.fstat(fd).st_ino for fd in open_descriptors() if fd != 0]
            own = os.fstat(listener.sock.fileno()).st_ino
            code = 0 if moved and os.fstat(0).st_ino != own and inodes.count(own) == 2 else 2
        finally:
            os._exit(code)
    made.close()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


# Removing


def test_a_path_that_procmgr_bound_is_removed_once(path, keep):
    listener = keep(bind(Unix(str(path)), backlog=5))
    assert unlink(listener)
    assert not path.exists()
    assert not unlink(listener)


def test_a_path_that_another_instance_has_replaced_is_left_alone(path, keep):
    listener = keep(bind(Unix(str(path)), backlog=5))
    path.rename(path.with_name("old"))
    keep(bind(Unix(str(path)), backlog=5))
    assert not unlink(listener)
    assert path.exists()


def test_an_inherited_path_is_never_removed(path, keep):
    made = socket.socket(socket.AF_UNIX)
    made.bind(str(path))
    made.listen()
    listener = keep(adopt(made.detach()))
    assert not unlink(listener)
    assert not unlink(replace(listener, inode=(path.lstat().st_dev, path.lstat().st_ino)))
    assert path.exists()


def test_tcp_and_abstract_listeners_have_nothing_to_remove(keep):
    assert not unlink(keep(bind(LOOPBACK, backlog=5)))
    assert not unlink(keep(bind(Abstract(f"procmgr-unlink-{os.getpid()}"), backlog=5)))
