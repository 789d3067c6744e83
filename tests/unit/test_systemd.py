"""systemd's protocols: notifications against a real datagram socket, watchdog, sockets passed by activation."""

import os
import socket
import time

import pytest

from procmgr.errors import BindError, ProcmgrError
from procmgr.systemd import (
    FIRST_FD,
    MAX_VALUE,
    Notifier,
    inherited_sockets,
    is_stored,
    stored_name,
    told_of_failure,
)


@pytest.fixture
def manager(tmp_path, monkeypatch):
    """The service manager's end, bound by a short path."""
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
        sock.bind("notify")
        yield sock


@pytest.fixture
def notifier(manager, tmp_path):
    return Notifier(address=str(tmp_path / "notify"))


def received(manager):
    """Return the fields of the next message."""
    return dict(line.split("=", 1) for line in manager.recv(65536).decode().split("\n"))


# Notifications


@pytest.mark.parametrize(
    ("call", "fields"),
    [
        (lambda n: n.ready("serving"), {"READY": "1", "MAINPID": str(os.getpid()), "STATUS": "serving"}),
        (lambda n: n.ready(), {"READY": "1", "MAINPID": str(os.getpid())}),
        (lambda n: n.main_pid(), {"MAINPID": str(os.getpid())}),
        (lambda n: n.stopping("bye"), {"STOPPING": "1", "STATUS": "bye"}),
        (lambda n: n.status("3 of 4 workers ready"), {"STATUS": "3 of 4 workers ready"}),
        (lambda n: n.watchdog(), {"WATCHDOG": "1"}),
        (lambda n: n.extend_timeout(1.5), {"EXTEND_TIMEOUT_USEC": "1500000"}),
        (lambda n: n.failed(PermissionError(13, "no")), {"STATUS": "cannot start: [Errno 13] no", "ERRNO": "13"}),
        (lambda n: n.failed(ProcmgrError("bad")), {"STATUS": "cannot start: bad"}),
        (lambda n: n.forget("procmgr-x"), {"FDSTOREREMOVE": "1", "FDNAME": "procmgr-x"}),
        (lambda n: n.send(MAINPID=42, STATUS="x"), {"MAINPID": "42", "STATUS": "x"}),
        (lambda n: n.send(STATUS=""), {"STATUS": ""}),
    ],
)
def test_each_notification_is_one_datagram_of_its_fields(manager, notifier, call, fields):
    assert call(notifier) is True
    assert received(manager) == fields
    assert notifier.error is None


def test_a_reload_carries_the_monotonic_time_at_which_it_began(manager, notifier):
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    notifier.reloading("reloading")
    after = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    fields = received(manager)
    assert before <= int(fields.pop("MONOTONIC_USEC")) <= after
    assert fields == {"RELOADING": "1", "STATUS": "reloading"}


def test_a_line_break_in_a_value_cannot_smuggle_another_field(manager, notifier):
    notifier.status("failed:\r\nREADY=1\0x")
    assert received(manager) == {"STATUS": "failed: READY=1 x"}


def test_a_long_value_is_cut(manager, notifier):
    notifier.status("x" * 100_000)
    assert received(manager) == {"STATUS": "x" * MAX_VALUE}


def test_text_that_is_no_unicode_is_sent_all_the_same(manager, notifier):
    notifier.status("bad \udcff name")
    assert received(manager) == {"STATUS": "bad ? name"}


def test_an_abstract_address_is_reached():
    name = f"procmgr-notify-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as manager:
        manager.bind(f"\0{name}")
        assert Notifier(address=f"@{name}").ready("up")
        assert received(manager) == {"READY": "1", "MAINPID": str(os.getpid()), "STATUS": "up"}


def test_without_a_service_manager_every_call_does_nothing():
    notifier = Notifier(address=None)
    assert not notifier.enabled
    assert notifier.ready("up") is False
    assert notifier.error is None


def test_a_full_queue_neither_blocks_nor_raises_and_the_next_success_forgets_it(manager, notifier):
    sent = 0
    while notifier.watchdog():
        sent += 1
        assert sent < 100_000
    assert isinstance(notifier.error, BlockingIOError)
    manager.recv(100)
    assert notifier.watchdog()
    assert notifier.error is None


@pytest.mark.parametrize("address", ["/nowhere/notify", "vsock:2:1234", "relative", "/" + "x" * 200])
def test_an_address_that_cannot_be_reached_is_remembered_and_never_raises(address):
    notifier = Notifier(address=address)
    assert notifier.enabled
    assert notifier.ready("up") is False
    assert isinstance(notifier.error, OSError)


def test_a_notification_leaves_no_descriptor_behind(manager, notifier):
    lowest = os.dup(0)
    os.close(lowest)
    notifier.ready("up")
    again = os.dup(0)
    os.close(again)
    assert again == lowest


def test_a_stored_descriptor_goes_along_under_its_name(manager, notifier):
    reader, writer = os.pipe()
    assert notifier.store(writer, "procmgr-x")
    message, fds, _, _ = socket.recv_fds(manager, 4096, 4)
    os.write(fds[0], b"same pipe")
    assert os.read(reader, 100) == b"same pipe"
    assert message == b"FDSTORE=1\nFDNAME=procmgr-x"
    for fd in (reader, writer, *fds):
        os.close(fd)


@pytest.mark.parametrize(
    "address", ["127.0.0.1:8000", "[::1]:8000", "unix:/run/a b,mode=0600", "unix:/" + "\u00fc" * 100, "unix:@\udcff"]
)
def test_the_name_of_a_stored_listener_is_one_that_systemd_takes(address):
    name = stored_name(address)
    assert is_stored(name)
    assert len(name) <= 255
    assert name.isascii()
    assert name.isprintable()
    assert ":" not in name
    assert name == stored_name(address)


def test_listeners_with_long_addresses_have_names_of_their_own():
    assert stored_name("unix:/" + "\u00fc" * 99 + "a") != stored_name("unix:/" + "\u00fc" * 99 + "b")


def test_a_refused_start_is_told_with_the_errno_behind_it(manager, tmp_path):
    environ = {"NOTIFY_SOCKET": str(tmp_path / "notify")}

    def start():
        environ.clear()
        raise BindError("cannot bind :80: in use") from OSError(98, "in use")

    with pytest.raises(BindError), told_of_failure(environ):
        start()
    assert received(manager) == {"STATUS": "cannot start: cannot bind :80: in use", "ERRNO": "98"}


# The environment


@pytest.mark.parametrize(
    ("environ", "stores"),
    [({}, False), ({"FDSTORE": "8"}, True), ({"FDSTORE": "0"}, False), ({"FDSTORE": "x"}, False)],
)
def test_descriptors_are_stored_only_where_a_store_is_announced(environ, stores):
    environ = {"NOTIFY_SOCKET": "/run/n", **environ}
    assert Notifier.from_environ(environ).stores is stores
    assert environ == {}
    assert not Notifier(address=None, stores=True).stores


def test_the_variables_are_taken_out_of_the_environment():
    environ = {"NOTIFY_SOCKET": "/run/n", "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid()), "HOME": "/"}
    notifier = Notifier.from_environ(environ)
    assert notifier.enabled
    assert notifier.watchdog_interval == 15.0
    assert environ == {"HOME": "/"}


@pytest.mark.parametrize(
    ("environ", "interval"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "5000000"}, 2.5),
        ({"WATCHDOG_USEC": "5000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "5000000", "WATCHDOG_PID": "x"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "-5"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_the_watchdog_is_fed_twice_per_period_and_only_if_it_watches_this_process(environ, interval):
    assert Notifier.from_environ({**environ, "NOTIFY_SOCKET": "/run/n"}).watchdog_interval == interval


@pytest.mark.parametrize("environ", [{}, {"NOTIFY_SOCKET": ""}])
def test_without_an_address_nobody_listens(environ):
    assert not Notifier.from_environ(environ).enabled


# Sockets passed by activation


def activated(check):
    """Run `check` in a forked child whose descriptors 3 and 4 are open and inheritable and 5 to 9 are closed."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            for fd in (3, 4):
                os.dup2(0, fd)
                os.set_inheritable(fd, True)
            os.closerange(5, 10)
            code = 0 if check({"LISTEN_PID": str(os.getpid())}) else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"LISTEN_FDS": "2", "LISTEN_FDNAMES": "web:admin"}, (("web", 3), ("admin", 4))),
        ({"LISTEN_FDS": "2", "LISTEN_FDNAMES": "web:web"}, (("web", 3), ("web", 4))),
        ({"LISTEN_FDS": "2"}, (("unknown", 3), ("unknown", 4))),
        ({"LISTEN_FDS": "2", "LISTEN_FDNAMES": "web"}, (("web", 3), ("unknown", 4))),
        ({"LISTEN_FDS": "2", "LISTEN_FDNAMES": ":b:c:d"}, (("unknown", 3), ("b", 4))),
        ({"LISTEN_FDS": "1", "LISTEN_FDNAMES": "web:extra"}, (("web", 3),)),
        ({"LISTEN_FDS": "0"}, ()),
    ],
)
def test_passed_sockets_are_named_and_nothing_is_ignored(variables, expected):
    def check(environ):
        ignored = []
        environ.update(variables)
        return inherited_sockets(environ, on_ignored=ignored.append) == expected and not ignored and environ == {}

    activated(check)


def test_passed_sockets_become_close_on_exec():
    activated(lambda environ: inherited_sockets({**environ, "LISTEN_FDS": "1"}) and not os.get_inheritable(FIRST_FD))


def test_a_promised_socket_that_is_not_open_is_left_out_and_said():
    def check(environ):
        ignored = []
        found = inherited_sockets({**environ, "LISTEN_FDS": "3"}, on_ignored=ignored.append)
        return [fd for _, fd in found] == [3, 4] and ignored == ["LISTEN_FDS=3 promises fd 5, which is not open"]

    activated(check)


def test_nothing_passed_is_nothing_to_say():
    ignored = []
    assert inherited_sockets({"HOME": "/"}, on_ignored=ignored.append) == ()
    assert ignored == []


@pytest.mark.parametrize(
    ("environ", "reason"),
    [
        ({"LISTEN_FDS": "1", "LISTEN_PID": "1"}, "LISTEN_PID is '1', not this process"),
        ({"LISTEN_FDS": "1", "LISTEN_PID": "me"}, "LISTEN_PID is 'me', not this process"),
        ({"LISTEN_FDS": "1"}, "LISTEN_PID is unset, not this process"),
        ({"LISTEN_FDS": "many", "LISTEN_PID": str(os.getpid())}, "LISTEN_FDS='many' ignored"),
        ({"LISTEN_FDS": "-1", "LISTEN_PID": str(os.getpid())}, "LISTEN_FDS='-1' ignored"),
        ({"LISTEN_FDS": "1000000000", "LISTEN_PID": str(os.getpid())}, "LISTEN_FDS='1000000000' ignored"),
    ],
)
def test_sockets_meant_for_another_process_are_ignored_with_a_reason_and_taken_out_all_the_same(environ, reason):
    ignored = []
    environ = {**environ, "LISTEN_FDNAMES": "web", "LISTEN_PIDFDID": "7"}
    assert inherited_sockets(environ, on_ignored=ignored.append) == ()
    assert len(ignored) == 1
    assert reason in ignored[0]
    assert environ == {}
    assert inherited_sockets({"LISTEN_FDS": "1", "LISTEN_PID": "1"}) == ()
