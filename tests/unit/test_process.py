"""What a process sets on itself, in forked children where it could not be undone; usable CPUs; the pid file."""

import ctypes
import errno
import fcntl
import grp
import os
import pwd
import resource
import signal
import stat
import tempfile
import traceback
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

from procmgr.errors import ConfigError, PrivilegeError, ProcmgrError
from procmgr.process import (
    PidFile,
    Privileges,
    allow_core,
    check_privileges,
    cpu_quota,
    drop_privileges,
    get_pdeathsig,
    raise_nofile_limit,
    resolve_privileges,
    set_pdeathsig,
    set_subreaper,
    set_title,
    usable_cpus,
)

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can change users")
NOBODY = 65534


def in_child(check):
    """Run `check` in a forked child and fail if it raises."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            check()
            code = 0
        except BaseException:  # noqa: BLE001 - the exit status tells the parent
            traceback.print_exc()
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


# Attributes


@root_only
def test_a_process_that_changed_its_user_may_leave_a_core_file_again():
    def check():
        _, hard = resource.getrlimit(resource.RLIMIT_CORE)
        resource.setrlimit(resource.RLIMIT_CORE, (0, hard))
        os.setresuid(NOBODY, NOBODY, NOBODY)
        prctl = ctypes.CDLL(None).prctl
        assert prctl(3, 0, 0, 0, 0) != 1, "PR_GET_DUMPABLE"
        allow_core()
        assert prctl(3, 0, 0, 0, 0) == 1
        assert resource.getrlimit(resource.RLIMIT_CORE)[0] == hard

    in_child(check)


def test_the_death_signal_is_set_and_switched_off():
    def check():
        set_pdeathsig(signal.SIGTERM)
        assert get_pdeathsig() == signal.SIGTERM
        set_pdeathsig(0)
        assert get_pdeathsig() == 0

    in_child(check)


def test_a_signal_that_does_not_exist_is_an_os_error():
    with pytest.raises(OSError, match="Invalid argument") as caught:
        set_pdeathsig(1000)
    assert caught.value.errno == errno.EINVAL


def test_the_death_signal_arrives_when_the_parent_dies():
    """The middle process dies; its child, waiting for nothing else, reports the signal and whose child it is now."""
    reader, writer = os.pipe()

    def middle():
        ready, told = os.pipe()
        if os.fork() == 0:
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
            set_pdeathsig(signal.SIGUSR1)
            os.write(told, b"x")
            received = signal.sigtimedwait({signal.SIGUSR1}, 10)
            os.write(writer, b"died" if received else b"lost")
            os._exit(0)
        os.read(ready, 1)

    in_child(middle)
    os.close(writer)
    assert os.read(reader, 4) == b"died"
    os.close(reader)


def test_a_subreaper_inherits_the_orphans_of_its_children():
    def check():
        set_subreaper()
        reader, writer = os.pipe()
        middle = os.fork()
        if middle == 0:
            orphan = os.fork()
            if orphan == 0:
                signal.pause()
            os.write(writer, b"%d" % orphan)
            os._exit(0)
        os.waitpid(middle, 0)
        orphan = int(os.read(reader, 20))
        os.kill(orphan, signal.SIGKILL)
        assert os.waitpid(orphan, 0)[0] == orphan

    in_child(check)


@pytest.mark.parametrize(
    ("title", "comm"), [("procmgr: guard", "procmgr: guard"), ("x" * 14 + "é", "x" * 14), ("", "")]
)
def test_the_title_is_cut_to_15_bytes_between_characters(title, comm):
    def check():
        set_title(title)
        assert Path("/proc/self/comm").read_text() == comm + "\n"

    in_child(check)


def test_the_soft_limit_of_descriptors_becomes_the_hard_one():
    def check():
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
        assert raise_nofile_limit() == hard
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)

    in_child(check)


@pytest.mark.parametrize("error", [ValueError("current limit exceeds maximum limit"), PermissionError(1, "no")])
def test_a_limit_that_cannot_be_raised_stays(monkeypatch, error):
    def refused(*args):
        raise error

    monkeypatch.setattr(resource, "getrlimit", lambda which: (256, resource.RLIM_INFINITY))
    monkeypatch.setattr(resource, "setrlimit", refused)
    assert raise_nofile_limit() == 256


# Privileges


@pytest.fixture
def accounts(monkeypatch):
    """User web (1000, group 1000, also in 50 and 60) and group www (33)."""
    web = SimpleNamespace(pw_name="web", pw_uid=1000, pw_gid=1000)

    def find(table, key):
        return table[key]

    monkeypatch.setattr(pwd, "getpwnam", lambda name: find({"web": web}, name))
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: find({1000: web}, uid))
    monkeypatch.setattr(grp, "getgrnam", lambda name: find({"www": SimpleNamespace(gr_gid=33)}, name))
    monkeypatch.setattr(os, "getgrouplist", lambda name, gid: [gid, 50, 60] if name == "web" else pytest.fail(name))
    monkeypatch.setattr(os, "geteuid", lambda: 7)


@pytest.mark.parametrize(
    ("user", "group", "expected"),
    [
        (None, None, None),
        ("web", None, Privileges(uid=1000, gid=1000, groups=(50, 60, 1000))),
        ("1000", None, Privileges(uid=1000, gid=1000, groups=(50, 60, 1000))),
        ("web", "www", Privileges(uid=1000, gid=33, groups=(33, 50, 60))),
        ("web", "44", Privileges(uid=1000, gid=44, groups=(44, 50, 60))),
        ("4711", "www", Privileges(uid=4711, gid=33, groups=(33,))),
        (None, "www", Privileges(uid=7, gid=33, groups=(33,))),
    ],
)
def test_user_and_group_by_name_or_number_become_ids(accounts, user, group, expected):
    assert resolve_privileges(user, group) == expected


@pytest.mark.parametrize(
    ("user", "group", "message"),
    [
        ("ghost", None, "user 'ghost': there is no such user"),
        ("web", "ghost", "group 'ghost': there is no such group"),
        ("4711", None, r"uid 4711 has no passwd entry .* add --group"),
        ("4294967295", "www", "user '4294967295': there is no such user"),
        ("web", "4294967295", "there is no such group"),
        ("-1", "www", "user '-1': there is no such user"),
    ],
)
def test_an_unknown_user_or_group_is_a_configuration_error(accounts, user, group, message):
    with pytest.raises(ConfigError, match=message):
        resolve_privileges(user, group)


@pytest.mark.parametrize(
    ("effective", "uid", "refused"),
    [
        ("000001ffffffffff", 4711, False),
        ("00000000000000c0", 4711, False),
        ("0000000000000040", 4711, True),
        ("0000000000000040", os.getuid(), False),
        ("0000000000000000", 4711, True),
    ],
)
def test_rights_that_cannot_be_had_are_refused_before_anybody_is_forked(tmp_path, effective, uid, refused):
    status = tmp_path / "status"
    status.write_text(f"Name:\tx\nCapPrm:\t0000000000000000\nCapEff:\t{effective}\nCapBnd:\t0000000000000000\n")
    wanted = Privileges(uid=uid, gid=4711, groups=(4711,))
    expected = "uid .*, gid 4711: Operation not permitted; needs root, or CAP_SETUID and CAP_SETGID"
    with pytest.raises(PrivilegeError, match=expected) if refused else nullcontext():
        check_privileges(wanted, status=status)
    check_privileges(wanted, status=tmp_path / "hidden")


@root_only
def test_user_group_and_supplementary_groups_are_dropped_together_and_for_good():
    def check():
        os.setgroups([0, 4, 5])
        drop_privileges(Privileges(uid=NOBODY, gid=NOBODY, groups=(NOBODY, 50)))
        assert os.getresuid() == os.getresgid() == (NOBODY,) * 3
        assert set(os.getgroups()) == {NOBODY, 50}
        with pytest.raises(PermissionError):
            os.setuid(0)
        with pytest.raises(PermissionError):
            os.setgid(0)

    in_child(check)


@root_only
def test_dropping_privileges_clears_the_death_signal_so_that_it_must_be_set_afterwards():
    def check():
        set_pdeathsig(signal.SIGTERM)
        drop_privileges(Privileges(uid=NOBODY, gid=NOBODY, groups=(NOBODY,)))
        assert get_pdeathsig() == 0
        set_pdeathsig(signal.SIGTERM)
        assert get_pdeathsig() == signal.SIGTERM

    in_child(check)


@root_only
def test_a_group_alone_gives_up_every_supplementary_group():
    def check():
        os.setgroups([0, 4])
        drop_privileges(Privileges(uid=0, gid=NOBODY, groups=(NOBODY,)))
        assert os.getresuid() == (0, 0, 0)
        assert os.getgroups() == [NOBODY]

    in_child(check)


@root_only
def test_whoever_has_no_right_to_change_user_is_refused():
    def check():
        drop_privileges(Privileges(uid=NOBODY, gid=NOBODY, groups=()))
        with pytest.raises(PrivilegeError, match=r"cannot become uid 0, gid 0: .* needs root"):
            drop_privileges(Privileges(uid=0, gid=0, groups=(0,)))

    in_child(check)


@root_only
def test_whoever_is_that_user_already_needs_no_right():
    def check():
        drop_privileges(Privileges(uid=NOBODY, gid=NOBODY, groups=()))
        drop_privileges(Privileges(uid=NOBODY, gid=NOBODY, groups=(NOBODY, 50)))

    in_child(check)


def test_a_drop_that_the_kernel_did_not_carry_out_is_refused(monkeypatch):
    for call in ("setgroups", "setresgid", "setresuid"):
        monkeypatch.setattr(os, call, lambda *args: None)
    with pytest.raises(PrivilegeError, match="kept other rights"):
        drop_privileges(Privileges(uid=12345, gid=12345, groups=()))


# CPUs


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A root directory whose files the test writes, on a machine that lets this process use 8 CPUs."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))

    def write(**files):
        for name, content in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        return tmp_path

    return write


V2, V1 = "sys/fs/cgroup", "sys/fs/cgroup/cpu,cpuacct"


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({}, 8),
        ({"proc/self/cgroup": "0::/\n"}, 8),
        ({"proc/self/cgroup": "0::/\n", f"{V2}/cpu.max": "max 100000\n"}, 8),
        ({"proc/self/cgroup": "0::/\n", f"{V2}/cpu.max": "200000 100000\n"}, 2),
        ({"proc/self/cgroup": "0::/\n", f"{V2}/cpu.max": "150000 100000\n"}, 2),
        ({"proc/self/cgroup": "0::/\n", f"{V2}/cpu.max": "10000 100000\n"}, 1),
        ({"proc/self/cgroup": "0::/\n", f"{V2}/cpu.max": "3200000 100000\n"}, 8),
        ({"proc/self/cgroup": "0::/a/b\n", f"{V2}/a/b/cpu.max": "max 100000", f"{V2}/a/cpu.max": "300000 100000"}, 3),
        ({"proc/self/cgroup": "0::/a\n", f"{V2}/a/cpu.max": "500000 100000", f"{V2}/cpu.max": "400000 100000"}, 4),
        ({"proc/self/cgroup": "0::/host/path\n", f"{V2}/cpu.max": "400000 100000\n"}, 4),
        ({"proc/self/cgroup": "0::/../x\n", f"{V2}/cpu.max": "400000 100000\n"}, 4),
        ({"proc/self/cgroup": "0::/\n", f"{V2}/cpu.max": "nonsense\n"}, 8),
        ({"proc/self/cgroup": "0::/\n", f"{V2}/cpu.max": "0 0\n"}, 8),
        ({"proc/self/cgroup": "garbage\n"}, 8),
        (
            {
                "proc/self/cgroup": "4:memory:/m\n3:cpu,cpuacct:/docker/x\n",
                f"{V1}/cpu.cfs_quota_us": "250000\n",
                f"{V1}/cpu.cfs_period_us": "100000\n",
            },
            3,
        ),
        (
            {
                "proc/self/cgroup": "3:cpu,cpuacct:/x\n",
                f"{V1}/x/cpu.cfs_quota_us": "-1\n",
                f"{V1}/x/cpu.cfs_period_us": "100000\n",
            },
            8,
        ),
        (
            {
                "proc/self/cgroup": "3:cpuacct,cpu:/x\n",
                f"{V2}/cpu/x/cpu.cfs_quota_us": "200000\n",
                f"{V2}/cpu/x/cpu.cfs_period_us": "100000\n",
            },
            2,
        ),
    ],
)
def test_usable_cpus_are_the_affinity_cut_by_every_cgroup_quota(machine, files, cpus):
    assert usable_cpus(root=machine(**files)) == cpus


def test_the_quota_is_the_strictest_and_not_rounded(machine):
    files = {"proc/self/cgroup": "0::/a\n", f"{V2}/a/cpu.max": "250000 100000\n", f"{V2}/cpu.max": "300000 100000\n"}
    assert cpu_quota(root=machine(**files)) == 2.5


def test_without_a_cgroup_there_is_no_quota(machine):
    assert cpu_quota(root=machine()) is None


def test_usable_cpus_here_are_at_least_one_and_at_most_the_affinity():
    assert 1 <= usable_cpus() <= len(os.sched_getaffinity(0))


# The pid file


@pytest.fixture
def path(tmp_path):
    return tmp_path / "app.pid"


def locked_by_other(path):
    """Tell, from another process, whether the file is locked."""
    reader, writer = os.pipe()

    def check():
        fd = os.open(path, os.O_RDWR)
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.write(writer, b"locked")
        os.write(writer, b".")

    in_child(check)
    os.close(writer)
    answer = os.read(reader, 10)
    os.close(reader)
    return answer == b"locked."


def test_the_pid_file_holds_the_pid_is_readable_by_all_and_locked_until_it_is_closed(path):
    previous = os.umask(0o077)
    try:
        pid_file = PidFile(path)
    finally:
        os.umask(previous)
    assert locked_by_other(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert path.read_text() == f"{os.getpid()}\n"  # last: closing it here ends the lock of this process
    assert [entry.name for entry in path.parent.iterdir()] == ["app.pid"]
    pid_file.close()
    assert not path.exists()


def test_a_live_instance_s_pid_file_is_refused_naming_its_pid(path):
    pid_file = PidFile(path)

    def check():
        with pytest.raises(ProcmgrError, match=f"already running as pid {os.getppid()}"):
            PidFile(path)
        assert [entry.name for entry in path.parent.iterdir()] == ["app.pid"]

    in_child(check)
    assert locked_by_other(path)
    pid_file.close()


@pytest.mark.parametrize("content", ["", "1\n", "99999999", f"{os.getpid()}\n"], ids=["empty", "init", "nobody", "us"])
def test_a_left_over_whose_lock_is_free_is_replaced_whatever_process_has_its_pid_now(path, content):
    path.write_text(content)
    inode = path.stat().st_ino
    pid_file = PidFile(path)
    assert path.stat().st_ino != inode
    assert locked_by_other(path)
    pid_file.close()


@pytest.mark.parametrize("content", ["import os\n", "12 13\n", "x" * 1000])
def test_a_file_that_is_no_pid_file_is_never_replaced(path, content):
    path.write_text(content)
    with pytest.raises(ConfigError, match="holds no pid"):
        PidFile(path)
    assert path.read_text() == content
    assert [entry.name for entry in path.parent.iterdir()] == ["app.pid"]


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo, lambda path: path.symlink_to("/dev/null")])
def test_what_is_not_a_regular_file_is_refused_at_once(path, make):
    make(path)
    with pytest.raises(ConfigError, match=f"pid file {path}"):
        PidFile(path)
    assert os.path.lexists(path)


def test_a_missing_directory_is_a_configuration_error(tmp_path):
    with pytest.raises(ConfigError, match=r"No such file or directory; its directory must exist"):
        PidFile(tmp_path / "missing" / "app.pid")


def test_a_directory_without_permission_is_a_privilege_error(path, monkeypatch):
    def denied(*args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(tempfile, "mkstemp", denied)
    with pytest.raises(PrivilegeError, match="Permission denied"):
        PidFile(path)


def test_a_pid_file_that_another_instance_has_replaced_is_left_alone(path):
    pid_file = PidFile(path)
    path.unlink()
    path.write_text("4711\n")
    pid_file.close()
    assert path.read_text() == "4711\n"


def test_a_pid_file_that_somebody_removed_closes_without_complaint(path):
    pid_file = PidFile(path)
    path.unlink()
    pid_file.close()


def test_the_lock_survives_a_child_s_end(path):
    """flock(2) would be shared with the child; POSIX locks are not."""
    pid_file = PidFile(path)
    in_child(lambda: os.close(pid_file.fileno()))
    assert locked_by_other(path)
    pid_file.close()


def test_of_two_instances_that_start_at_once_the_later_is_refused(path, monkeypatch):
    """The other one takes the name between our preparations and our link, and holds its lock until we are refused."""
    original = os.link
    taken, take = os.pipe()
    end, release = os.pipe()

    def overtaken(source, target):
        if not path.exists():
            pid = os.fork()
            if pid == 0:
                os.close(release)
                monkeypatch.undo()
                other = PidFile(path)
                os.write(take, b"x")
                os.read(end, 1)
                other.close()
                os._exit(0)
            os.close(end)
            os.read(taken, 1)
        return original(source, target)

    monkeypatch.setattr(os, "link", overtaken)
    with pytest.raises(ProcmgrError, match="already running as pid"):
        PidFile(path)
    assert [entry.name for entry in path.parent.iterdir()] == ["app.pid"]
    os.close(release)
    os.wait()
    assert not path.exists()
    os.close(taken)
    os.close(take)


def test_a_left_over_that_goes_away_while_it_is_looked_at_is_no_error(path, monkeypatch):
    path.write_text("1\n")
    original = fcntl.lockf

    def vanish(fd, operation):
        path.unlink(missing_ok=True)
        return original(fd, operation)

    monkeypatch.setattr(fcntl, "lockf", vanish)
    pid_file = PidFile(path)
    assert path.read_text() == f"{os.getpid()}\n"
    pid_file.close()
