"""What a SIGKILL from nowhere is taken for, by the kernel's counters in a control group made by the test."""

from __future__ import annotations

import os
import signal
from itertools import pairwise

import pytest

from procmgr import messages, scoreboard
from procmgr.arbiter.core.actions import WorkerDied
from procmgr.arbiter.core.events import Exit, Exited
from procmgr.arbiter.host import LinuxHost
from procmgr.arbiter.member import Member
from procmgr.arbiter.oom import OomKills
from procmgr.arbiter.report import Report

V2 = ("0::/system.slice/web.service\n", "sys/fs/cgroup/system.slice/web.service/memory.events")
V2_IN_CONTAINER = ("0::/\n", "sys/fs/cgroup/memory.events")
V2_HOST_NAMESPACE = ("0::/docker/4711\n", "sys/fs/cgroup/memory.events")
V1 = ("4:memory:/web\n0::/\n", "sys/fs/cgroup/memory/web/memory.oom_control")
V1_IN_CONTAINER = ("4:memory:/docker/4711\n", "sys/fs/cgroup/memory/memory.oom_control")
LAYOUTS = {
    "v2": V2,
    "v2 in a container": V2_IN_CONTAINER,
    "v2 with the host's namespace": V2_HOST_NAMESPACE,
    "v1": V1,
    "v1 in a container": V1_IN_CONTAINER,
}


class Kernel:
    """A root directory with a control group in it."""

    def __init__(self, root, layout):
        cgroup, counter = layout
        self.root = root
        self.counter = root / counter
        self.counter.parent.mkdir(parents=True)
        (root / "proc/self").mkdir(parents=True)
        (root / "proc/self/cgroup").write_text(cgroup)
        self.killed(0)

    def killed(self, count):
        self.counter.write_text(f"low 0\nhigh 3\noom_kill_disable 0\noom 7\noom_kill {count}\noom_group_kill 9\n")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_rise_is_seen_once(tmp_path, layout):
    kernel = Kernel(tmp_path, LAYOUTS[layout])
    kernel.killed(2)
    kills = OomKills(root=tmp_path)
    assert not kills.rose()
    kernel.killed(3)
    assert kills.rose()
    assert not kills.rose()


def test_where_nothing_can_be_read_nothing_is_claimed(tmp_path):
    assert not OomKills(root=tmp_path).rose()
    kernel = Kernel(tmp_path, V2)
    kernel.counter.write_text("oom_kill many\nnonsense\n\xff")
    kills = OomKills(root=tmp_path)
    assert not kills.rose()
    kernel.killed(1)
    assert not kills.rose(), "there is nothing to compare the first number with"
    kernel.counter.unlink()
    assert not kills.rose()


class Workers:
    """A host with children of ours as its members."""

    def __init__(self, root):
        self.host = LinuxHost(birth=None, close_in_child=None, oom_kills=OomKills(root=root))
        self.report = Report(members=self.host.members)

    def fork(self, worker_id):
        pid = os.fork()
        if pid == 0:
            signal.pause()
            os._exit(0)
        ours, theirs = messages.Channel.pair()
        theirs.close()
        number = self.host.board.lease()
        row, records = self.host.board.row(number), self.host.board.records(number)
        self.host.members[worker_id] = Member(pid, 0, 1, ours, number, row, records, os.memfd_create("stacks"))

    def kill(self, worker_id, signum=signal.SIGKILL):
        """A signal that the host knows nothing of."""
        os.kill(self.host.members[worker_id].pid, signum)

    def deaths(self, count):
        """Bury the members that die in one sweep and return what is logged of each."""
        pids = [member.pid for member in self.host.members.values()]
        for pid in pids[:count]:
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        for event in self.host.reap():
            assert isinstance(event, Exited)
            self.report.say(
                WorkerDied(
                    worker_id=event.worker_id,
                    slot=0,
                    generation=1,
                    exit=event.exit,
                    age_seconds=5.0,
                    was_ready=True,
                    expected=False,
                    killed=None,
                    failure=None,
                )
            )
            self.host.bury(event.worker_id)


@pytest.fixture
def kernel(tmp_path):
    return Kernel(tmp_path, V2)


@pytest.fixture
def workers(kernel):
    workers = Workers(kernel.root)
    yield workers
    for worker_id, member in list(workers.host.members.items()):
        workers.kill(worker_id)
        os.waitpid(member.pid, 0)
        workers.host.bury(worker_id)
    os.close(workers.host.board.fd)  # the mapping goes with the last view of it


def test_one_sigkill_that_nobody_sent_and_a_rise_is_probably_out_of_memory(kernel, workers, caplog):
    workers.fork(1)
    kernel.killed(1)
    workers.kill(1)
    workers.deaths(1)
    assert "died of SIGKILL, probably out of memory after 5.0 s" in caplog.text


def test_a_sigkill_without_a_rise_has_an_unknown_sender(kernel, workers, caplog):
    kernel.killed(0)
    workers.fork(1)
    workers.kill(1)
    workers.deaths(1)
    assert "died of SIGKILL, sender unknown after 5.0 s" in caplog.text


def test_two_sigkills_at_once_have_an_unknown_sender(kernel, workers, caplog):
    for worker_id in (1, 2):
        workers.fork(worker_id)
    kernel.killed(1)
    for worker_id in (1, 2):
        workers.kill(worker_id)
    workers.deaths(2)
    assert caplog.text.count("died of SIGKILL, sender unknown after") == 2


def test_a_rise_belongs_to_the_next_death_only(kernel, workers, caplog):
    for worker_id in (1, 2):
        workers.fork(worker_id)
    kernel.killed(1)
    workers.kill(1, signal.SIGTERM)
    workers.deaths(1)
    workers.kill(2)
    workers.deaths(1)
    assert "died of SIGTERM after" in caplog.text
    assert "died of SIGKILL, sender unknown after" in caplog.text


def test_a_kill_of_our_own_is_never_taken_for_the_kernels(kernel, workers, caplog):
    for worker_id in (1, 2):
        workers.fork(worker_id)
    kernel.killed(1)
    workers.host.kill(1)
    workers.kill(2)
    workers.deaths(2)
    lines = sorted(record.getMessage() for record in caplog.records)
    assert "died of SIGKILL after" in lines[0]
    assert "died of SIGKILL, probably out of memory after" in lines[1]


def test_the_ages_of_requests_in_flight_are_told_the_newest_first_and_bounded(workers, caplog):
    workers.fork(1)
    member = workers.host.members[1]
    inflight = scoreboard.InFlight(member.records)
    for number in range(20):
        inflight.begin(b"GET /%d?token=secret HTTP/1.1\r\n" % number)
    member.row[scoreboard.ACTIVE] = 30
    workers.kill(1, signal.SIGTERM)
    workers.deaths(1)
    line = caplog.records[0].getMessage()
    shown = [int(part.partition("GET /")[2].partition(" ")[0]) for part in line.partition("in flight: ")[2].split(", ")]
    assert len(shown) == 8
    assert all(one > other for one, other in pairwise(shown))
    assert line.endswith(" and 22 more")
    assert "secret" not in line


def test_a_worker_that_is_debugged_counts_as_beating(workers):
    workers.fork(1)
    member = workers.host.members[1]
    member.row[scoreboard.BEAT] = 1
    assert workers.host.beats().beats[0][1] < 1.0
    member.row[scoreboard.DEBUGGING] = 1
    assert workers.host.beats().beats[0][1] == pytest.approx(workers.host.now(), abs=5.0)


def test_an_exit_is_what_waitpid_says(workers):
    workers.fork(1)
    workers.kill(1, signal.SIGTERM)
    os.waitid(os.P_PID, workers.host.members[1].pid, os.WEXITED | os.WNOWAIT)
    assert list(workers.host.reap()) == [Exited(1, Exit(signal=signal.SIGTERM))]
    workers.host.bury(1)
