"""The envelope: who may open it, what comes through, and the way back."""

from __future__ import annotations

import json
import os
import signal
import socket
from pathlib import Path

import pytest

from procmgr import handover
from procmgr.handover import VARIABLE, Envelope, HandoverError, Program, answered, claim

PROGRAM = Program(executable="/usr/bin/python3", arguments=("python3", "-m", "procmgr"), environ={"A": "\udcff"})


def envelope(**more):
    given = {"estate": {"version": 1}, "descriptors": (), "mask": (), "environ": {"A": "b"}, "cwd": "/", "release": "1"}
    return Envelope(**{**given, "back": PROGRAM, **more})


def for_me(role, fd):
    return {VARIABLE: f"{role}:{os.getpid()}:{fd}", "OTHER": "stays"}


class Became(BaseException):
    """What execve(2) would have done."""


@pytest.fixture
def execve(monkeypatch):
    """Have execve(2) raise `Became` with what it was called with, and which descriptors it would have passed on."""

    others = {fd for fd in open_descriptors() if os.get_inheritable(fd)}

    def become(path, arguments, environ):
        passed = {fd for fd in open_descriptors() if os.get_inheritable(fd)} - others
        raise Became(path, arguments, environ, passed)

    monkeypatch.setattr(os, "execve", become)


def open_descriptors():
    with os.scandir("/proc/self/fd") as entries:
        numbers = [int(entry.name) for entry in entries]
    return {number for number in numbers if is_open(number)}  # not that of the listing itself


def is_open(fd):
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


@pytest.fixture
def memfd():
    fd = envelope(environ={"A": "\udcff"}).write()
    yield fd
    if is_open(fd):
        os.close(fd)


def test_what_was_put_in_comes_out(memfd):
    assert Envelope.read(memfd) == envelope(environ={"A": "\udcff"})


@pytest.mark.parametrize(
    "value", ["", "adopt", "adopt:1:3", "adopt:x:3", "other:{pid}:3", "adopt:{pid}:", "adopt:{pid}:-1"]
)
def test_a_variable_that_is_not_for_this_process_means_nothing_and_is_removed(value):
    environ = {VARIABLE: value.format(pid=os.getpid()), "OTHER": "stays"}
    assert claim(environ) is None
    assert environ == {"OTHER": "stays"}


def test_an_announced_envelope_that_is_not_there_is_refused():
    with Path(os.devnull).open() as file, pytest.raises(HandoverError, match="holds no state"):
        claim(for_me("adopt", file.fileno()))
    with pytest.raises(HandoverError, match="holds no state"):
        claim(for_me("adopt", 1_000_000))


def test_the_answer_is_in_the_copy_and_in_nothing_else(memfd):
    assert answered(memfd) is None
    with claim(for_me("check", memfd)) as ticket:
        ticket.answer("2.0")
    assert answered(memfd) == "2.0"


def test_leaving_in_order_restores_the_mask_and_keeps_only_what_was_handed_over():
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    with socket.socket() as sock:
        fd = envelope(descriptors=(sock.fileno(),), mask=tuple(before)).write()
        os.set_inheritable(sock.fileno(), True)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
        open_before = open_descriptors()
        with claim(for_me("adopt", fd)):
            assert not os.get_inheritable(sock.fileno())
            assert signal.SIGUSR1 in signal.pthread_sigmask(signal.SIG_BLOCK, ())
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before
        assert open_descriptors() == open_before - {fd}


def test_a_failure_leads_back_to_the_old_program_with_every_descriptor_under_its_number(execve):
    one, other = socket.socketpair()
    number = one.fileno()
    fd = envelope(descriptors=(number,)).write()
    with pytest.raises(Became) as became, claim(for_me("adopt", fd)), one:
        raise RuntimeError("broken")  # and the socket is closed by the object that owns it
    path, arguments, environ, passed = became.value.args
    assert (path, arguments) == (PROGRAM.executable, PROGRAM.arguments)
    assert environ == {**PROGRAM.environ, VARIABLE: f"return:{os.getpid()}:{fd}"}
    assert passed == {number, fd}
    assert not os.get_inheritable(number), "had it failed, nothing would be passed on by accident"
    other.send(b"x")
    with socket.socket(fileno=number) as again:
        assert again.recv(1) == b"x", "it is the same socket"
    failure = Envelope.read(fd).failure
    assert "RuntimeError: broken" in failure
    assert "Traceback" in failure
    os.close(fd)
    other.close()


def test_a_refusal_on_purpose_is_handed_back_as_one_line(execve, memfd):
    with pytest.raises(Became), claim(for_me("adopt", memfd)):
        raise HandoverError("not this version")
    assert Envelope.read(memfd).failure == "not this version"


def test_a_descriptor_that_is_missing_leads_back_too(execve):
    fd = envelope(descriptors=(1_000_000,)).write()
    with pytest.raises((Became, HandoverError)), claim(for_me("adopt", fd)):
        pytest.fail("there is nothing to adopt")
    os.close(fd)


def test_there_is_no_way_back_from_the_way_back(execve, memfd):
    with (
        pytest.raises(HandoverError, match="cannot be taken over: ") as gave_up,
        claim(for_me("return", memfd)),
    ):
        raise RuntimeError
    assert isinstance(gave_up.value.__context__, RuntimeError)


def test_an_old_program_that_is_gone_is_named(memfd):
    missing = Program(executable="/no/such/python", arguments=("python",), environ={})
    envelope(back=missing).overwrite(memfd)
    with pytest.raises(HandoverError, match="no way back to /no/such/python"), claim(for_me("adopt", memfd)):
        raise RuntimeError


def test_a_child_that_checks_reports_its_own_error(memfd):
    with pytest.raises(ZeroDivisionError), claim(for_me("check", memfd)):
        raise ZeroDivisionError


def test_this_program_is_named_by_where_it_is_and_not_by_links(tmp_path, monkeypatch):
    release = tmp_path / "release"
    release.mkdir()
    (release / "python").symlink_to("/usr/bin/env")
    (tmp_path / "current").symlink_to("release")
    monkeypatch.setattr(handover.sys, "executable", str(tmp_path / "current" / "python"))
    this = Program.this({"PYTHONPATH": "/elsewhere"})
    assert this.executable == str(release.resolve() / "python")
    assert this.environ["PYTHONPATH"].endswith(f"{os.pathsep}/elsewhere")


def test_the_envelope_is_plain_json(memfd):
    assert json.loads(os.pread(memfd, 1 << 20, 0))["estate"] == {"version": 1}
