"""Workers that another process forks: the arbiter believes what the kernel confirms and loses no death."""

from __future__ import annotations

import os

import pytest

from procmgr import messages
from procmgr.arbiter.core.events import BootFailure, Exit, Exited, Ready, Spawned, SpawnFailed
from procmgr.arbiter.host import LinuxHost
from procmgr.arbiter.member import Member
from procmgr.arbiter.oom import OomKills


@pytest.fixture
def host():
    made = LinuxHost(birth=None, close_in_child=lambda _: None, oom_kills=OomKills())
    yield made
    for worker_id in list(made.members):
        made.bury(worker_id)
    made.board.close()


def expect(host, worker_id):
    """Have the host wait for a worker; return the worker's end of its channel."""
    ours, theirs = messages.Channel.pair()
    number = host.board.lease()
    stacks = os.memfd_create("stacks")
    host.members[worker_id] = Member(
        None, 0, 1, ours, number, host.board.row(number), host.board.records(number), stacks
    )
    return theirs


def child(run):
    """Fork a child of this process that calls `run` and exits with 7."""
    pid = os.fork()
    if pid == 0:
        try:
            run()
        finally:
            os._exit(7)
    return pid


def wait_zombie(pid):
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


def test_a_death_that_is_met_before_the_announcement_is_not_lost(host):
    theirs = expect(host, 1)
    pid = child(lambda: theirs.send(messages.Born(os.getpid())))
    theirs.close()
    wait_zombie(pid)
    assert list(host.reap()) == [Spawned(1, pid), Exited(1, Exit(code=7))]


def test_what_a_worker_said_before_it_died_comes_before_its_death(host):
    theirs = expect(host, 1)
    pid = child(lambda: theirs.send(messages.Born(os.getpid())) and theirs.send(messages.Ready()))
    theirs.close()
    wait_zombie(pid)
    assert list(host.reap()) == [Spawned(1, pid), Ready(1), Exited(1, Exit(code=7))]


def test_a_worker_that_dies_before_it_announces_itself_was_never_born(host):
    theirs = expect(host, 1)
    pid = child(lambda: None)
    theirs.close()
    wait_zombie(pid)
    events = list(host.reap())
    assert [type(event) for event in events] == [SpawnFailed]
    assert events[0].failure is BootFailure.FAILED


@pytest.mark.parametrize(
    "pid",
    [0, 1, -1, os.getpid(), os.getppid(), 2**31 - 1, 2**80],
    ids=["none", "init", "negative", "itself", "its parent", "large", "no pid at all"],
)
def test_a_pid_that_is_no_child_of_the_arbiter_is_not_believed(host, pid):
    theirs = expect(host, 1)
    theirs.send(messages.Born(pid))
    assert host.receive(1) == []
    assert host.members[1].pid is None
    theirs.close()
    assert [type(event) for event in host.receive(1)] == [SpawnFailed]


def test_nobody_can_be_born_twice_or_as_somebody_else(host):
    reader, writer = os.pipe()
    pid = child(lambda: os.read(reader, 1))
    one, other = expect(host, 1), expect(host, 2)
    one.send(messages.Born(pid))
    other.send(messages.Born(pid))
    assert host.receive(1) == [Spawned(1, pid)]
    one.send(messages.Born(pid))
    assert host.receive(1) == []
    assert host.receive(2) == []
    os.write(writer, b"!")
    wait_zombie(pid)
    assert Exited(1, Exit(code=7)) in list(host.reap())
    for each in (one, other):
        each.close()
    os.close(reader)
    os.close(writer)


def test_before_its_birth_a_worker_has_no_say(host):
    theirs = expect(host, 1)
    theirs.send(messages.Ready())
    assert host.receive(1) == []
    theirs.close()


def test_a_refused_birth_ends_with_its_reason_whoever_holds_the_channel(host):
    theirs = expect(host, 1)
    refusal = SpawnFailed(1, "no memory", BootFailure.REFUSED)
    host.refuse(refusal)
    host.refuse(SpawnFailed(1, "the first reason stands", BootFailure.FAILED))
    assert host.receive(1) == [refusal]
    assert not theirs.send(messages.Born(os.getpid())), "one that comes late learns that nobody waits for it"
    theirs.close()
