"""procmgr as process 1 of a PID namespace, on the command line of etc/Dockerfile; its image; and CPU quotas.

There is no container engine here: unshare(1) makes what of a container matters to procmgr, as root.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from signal import SIGINT, SIGKILL, SIGTERM, SIGTTIN, SIGTTOU

import pytest
from process.conftest import as_root
from support import manifests, proc
from support.daemon import PATIENCE, ROOT, WORKER_COMM, Daemon, environment

APPLICATION = """
import asyncio, os
from support import testapp

async def app(scope, receive, send):
    if scope["type"] == "http" and scope["path"] == "/orphan":
        # The shell ends at once: what it leaves behind is process 1's.
        shell = await asyncio.create_subprocess_exec("sh", "-c", "sleep 600 >/dev/null 2>&1 &")
        await shell.wait()
    await testapp.app(scope, receive, send)
"""
ISOLATED = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", "--"]

# The interpreter may lie in root's home, so the one capability left is to read.
CONFINED = """
mount -o remount,bind,ro / &&
exec setpriv --reuid 10001 --regid 10001 --clear-groups --no-new-privs --bounding-set=-all,+dac_read_search \
    --inh-caps=-all,+dac_read_search --ambient-caps=-all,+dac_read_search -- "$@"
"""

STOPPED_EARLY = """
import os, signal, sys
from procmgr.arbiter import main as arbiter
from procmgr.cli import main as cli

serve = arbiter.main

def stopped_early(*parts):
    os.kill(1, signal.SIGTERM)
    return serve(*parts)

arbiter.main = stopped_early
sys.exit(cli.main(sys.argv[1:]))
"""

LIMITED = """
mount -t tmpfs none /sys/fs/cgroup && mkdir /sys/fs/cgroup/cpu &&
echo 150000 100000 >/sys/fs/cgroup/cpu.max &&
echo 150000 >/sys/fs/cgroup/cpu/cpu.cfs_quota_us && echo 100000 >/sys/fs/cgroup/cpu/cpu.cfs_period_us &&
exec "$@"
"""


class Container(Daemon):
    """The daemon as process 1: signals go to it, as a container engine sends them, and not to its wrapper."""

    @property
    def init(self) -> int:
        """The pid, outside, of process 1."""
        return next(each.pid for each in proc.children(self.pid))

    def signal(self, signum: signal.Signals) -> None:
        os.kill(self.init, signum)

    def workers(self) -> list[int]:
        return sorted(each.pid for each in proc.children(self.init) if each.comm == WORKER_COMM)


@pytest.fixture
def contain(daemons, tmp_path):
    """A function that runs the container's command line, with `args` in place of the image's."""

    def start(args=None, *, wrapper=ISOLATED):
        (tmp_path / "app.py").write_text(APPLICATION)
        tmp_path.chmod(0o755)
        port = proc.free_port()
        words = manifests.command(args, {8000: port, 9000: proc.free_port()})
        previous = os.umask(0)  # another user, too, may write to the sockets that wait for its word
        try:
            container = Container(*words, app=None, bind=None, cwd=tmp_path, wrapper=wrapper)
        finally:
            os.umask(previous)
        container.port = port
        daemons.append(container)
        return container

    return start


@as_root
def test_process_1_finishes_what_runs_and_exits_with_0(contain):
    container = contain().ready()
    assert proc.status(container.init)["NSpid"][-1] == "1"
    waiting = container.connect()
    waiting.request("GET", "/stay")
    visit = container.probe.wait("running")
    container.signal(getattr(signal, manifests.last("STOPSIGNAL").text))
    container.logged("stopping: finishing")
    visit.release()
    assert waiting.answer()[0].status == 200
    assert container.join() == 0


@as_root
def test_process_1_reaps_what_others_leave_behind_and_ends_it_with_itself(contain):
    container = contain().ready()
    for _ in range(2):
        container.get("/orphan")
    found = lambda: [each.pid for each in proc.children(container.init) if each.comm == "sleep"]  # noqa: E731 - twice
    assert proc.eventually(lambda: len(found()) == 2)
    os.kill(found()[0], SIGKILL)
    assert proc.eventually(lambda: len(found()) == 1 and not proc.zombies_of(container.init))
    container.signal(SIGTERM)
    assert container.join() == 0


@as_root
def test_signals_mean_in_a_container_what_they_mean_elsewhere(contain):
    container = contain(["--workers=2", "app:app"]).ready()
    old = container.workers()
    container.try_reload()
    container.until(lambda: not set(old) & set(container.workers()), "the old workers are gone")
    assert container.get()["generation"] == "2"
    container.signal(SIGTTIN)
    container.until(lambda: len(container.workers()) == 3, "there are three workers")
    container.signal(SIGINT)
    assert container.join() == 0


@as_root
def test_a_stop_that_comes_before_process_1_listens_to_signals_is_not_lost():
    words = manifests.command(["support.testapp:app"], {8000: proc.free_port(), 9000: proc.free_port()})
    command = [*ISOLATED, sys.executable, "-c", STOPPED_EARLY, *words]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stderr
    assert "stopping" in done.stderr


@as_root
@pytest.mark.parametrize(("args", "code"), [(["app:nothing"], 4), (["--no-such-option", "app:app"], 2)])
def test_the_exit_code_of_process_1_says_what_was_wrong(contain, args, code):
    container = contain(args)
    assert container.join() == code


@as_root
def test_nothing_outlives_process_1(contain, daemons):
    container = contain().ready()
    container.get("/orphan")
    container.signal(SIGKILL)
    container.join()
    assert container.left() == []
    daemons.remove(container)
    container._destroy()


@as_root
def test_it_serves_with_a_read_only_root_and_no_right_to_speak_of(contain):
    wrapper = [*ISOLATED[:-1], "--mount", "--", "sh", "-c", CONFINED, "sh"]
    container = contain(["--workers=2", "app:app"], wrapper=wrapper).ready()
    user, _, group = manifests.last("USER").text.partition(":")
    for pid in (container.init, *container.workers()):
        status = proc.status(pid)
        assert (set(status["Uid"]), set(status["Gid"])) == ({user}, {group})
        assert status["NoNewPrivs"] == ["1"]
    container.try_reload()
    assert container.get()
    assert "Read-only" not in container.log
    container.signal(SIGTERM)
    assert container.join() == 0


def test_the_images_install_line_installs_a_procmgr_that_serves(tmp_path):
    """Each COPY and RUN of the build stage, with its two places below a directory of the test's."""
    places = {"/venv": str(tmp_path / "venv"), "/app": str(tmp_path / "app")}
    source = tmp_path / "src"
    source.mkdir()
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    for each in manifests.dockerfile()[1:]:
        if each.name == "FROM":
            break
        text = each.text
        for inner, outer in places.items():
            text = text.replace(inner, outer)
        if each.name == "COPY":
            *names, target = text.split()
            for name in names:
                copy(ROOT / name, source / target)
        elif each.name == "RUN":
            done = subprocess.run(
                ["sh", "-c", text],
                cwd=source,
                env={**os.environ, "PATH": path, "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
                capture_output=True,
                text=True,
                timeout=300,
                check=False,
            )
            assert done.returncode == 0, done.stdout + done.stderr
    program = tmp_path / "venv/bin/procmgr"
    words = manifests.command(None, {8000: proc.free_port(), 9000: proc.free_port()})
    checked = subprocess.run(
        [program, "--check-config", *words], cwd=tmp_path / "app", capture_output=True, timeout=PATIENCE, check=False
    )
    assert checked.returncode == 0, checked.stderr


def copy(source, target):
    """Copy as COPY does: a directory's content into the directory, a file into it or to it."""
    if source.is_dir():
        shutil.copytree(source, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy(source, target)


# CPU quotas


def said(daemon):
    return daemon.log.count("CPU quota of")


@as_root
def test_more_workers_than_the_quota_are_told_once_and_again_when_it_becomes_so_anew(serve):
    daemon = serve("-w", "3", wrapper=["unshare", "--mount", "--", "sh", "-c", LIMITED, "sh"])
    usable = min(2, len(os.sched_getaffinity(0)))
    line = f"3 workers are more than the cgroup's CPU quota of 1.5 can keep busy; --workers {usable} or auto suits it"
    assert f"WARNING:  {line}\n" in daemon.log
    daemon.try_reload()
    daemon.signal(SIGTTIN)
    daemon.logged("scaling to 4 workers")
    daemon.upgrade()
    daemon.signal(SIGTTIN)
    daemon.until(lambda: len(daemon.workers()) == 5, "there are five workers")
    assert said(daemon) == 1
    for workers in (4, 3, 2):
        daemon.signal(SIGTTOU)  # one at a time: a signal that is pending already is not queued again
        daemon.until(lambda workers=workers: len(daemon.workers()) == workers, f"there are {workers} workers")
    daemon.signal(SIGTTIN)
    daemon.until(lambda: said(daemon) == 2, "it is said again")


@pytest.fixture
def cgroup():
    """A CPU cgroup with a quota of one CPU, as its directory."""
    v1 = Path("/sys/fs/cgroup/cpu/cgroup.procs").exists()
    made = Path("/sys/fs/cgroup", *(["cpu"] if v1 else []), f"procmgr-test-{os.getpid()}")
    try:
        made.mkdir()
    except OSError as error:
        pytest.skip(f"no cgroup can be made: {error}")
    try:
        with suppress(OSError):  # of cgroup v1, or of a parent that does not pass the controller on
            (made / "cpu.cfs_quota_us").write_text("100000") if v1 else (made / "cpu.max").write_text("100000 100000")
        if not any((made / name).exists() for name in ("cpu.cfs_quota_us", "cpu.max")):
            pytest.skip("the cgroup has no CPU controller")
        yield made
    finally:
        assert proc.eventually(lambda: not (made / "cgroup.procs").read_text())
        made.rmdir()


@as_root
def test_the_quota_of_a_real_cgroup_is_seen_and_auto_keeps_within_it(cgroup, serve, daemons):
    inside = ["sh", "-c", f'echo $$ >{cgroup}/cgroup.procs && exec "$@"', "sh"]
    daemon = serve("-w", "2", wrapper=inside)
    assert (
        "2 workers are more than the cgroup's CPU quota of 1 can keep busy; --workers 1 or auto suits it" in daemon.log
    )
    suited = serve("-w", "auto", wrapper=inside)
    assert len(suited.workers()) == 1
    assert said(suited) == 0
    for each in (daemon, suited):
        assert each.stop() == 0
