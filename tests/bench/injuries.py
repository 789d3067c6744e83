"""The faults: what each does to a server, and how it sees that the server has got over it.

Each takes the scene and how often (or how long) to do it, and appends an `Event` to the scene for every time.
"""

from __future__ import annotations

import os
import random
import socket
import time
from signal import SIGCONT, SIGHUP, SIGKILL, SIGSTOP, SIGTERM, SIGTTIN, SIGTTOU, SIGUSR2
from typing import TYPE_CHECKING

from support import proc

from bench.scene import GRACE_SECONDS, SETTLE_SECONDS, Event
from bench.servers import HOST

if TYPE_CHECKING:
    from signal import Signals

    from bench.scene import Scene

PATIENCE = 40.0  # for a whole reload with 1 s of boot
HANG_SECONDS = 3  # the servers' time-out in the rows of a hung worker
BREAK_SECONDS = 3.0  # how long a server with broken code is watched
UPGRADED = b"upgraded from release"  # what procmgr logs


def steady(scene: Scene, seconds: int) -> None:
    """Do nothing: what a row shows without a fault."""
    scene.wait(lambda: False, seconds)


def reload(scene: Scene, times: int) -> None:
    """HUP, and wait until every worker was replaced and the old ones are gone."""
    for _ in range(times):
        roll(scene)


def roll(scene: Scene) -> None:
    """Reload once."""
    old = set(scene.alive())
    event = _begin(scene, scene.signal(SIGHUP))
    if scene.wait(lambda: scene.whole() and not old & set(scene.alive()), PATIENCE):
        event.recovered = scene.ready_after(event.at, scene.plan.workers)


def leaks(scene: Scene, times: int) -> None:
    """Reload many times; what it leaves in the arbiter is counted by the caller."""
    reload(scene, times)


def recycle(scene: Scene, times: int) -> None:
    """Let the load reach `--max-requests` until so many workers were replaced."""
    begun = time.monotonic()
    for number in range(1, times + 1):
        event = _begin(scene, time.monotonic())
        if not scene.wait(lambda n=number: scene.ready_after(begun, n) is not None, PATIENCE):
            return
        event.recovered = time.monotonic() - event.at


def scale(scene: Scene, times: int) -> None:
    """TTOU down to one worker, TTIN up again; each step is awaited, since waiting signals of one number are one."""
    full = scene.plan.workers
    for _ in range(times):
        event = _begin(scene, time.monotonic())
        if not all(_step(scene, SIGTTOU, workers) for workers in range(full - 1, 0, -1)):
            return
        up = time.monotonic()
        if all(_step(scene, SIGTTIN, workers) for workers in range(2, full + 1)):
            event.recovered = time.monotonic() - up


def kill(scene: Scene, times: int) -> None:
    """KILL a worker, and wait for the next."""
    for _ in range(times):
        victim = random.choice(scene.alive())
        event = _begin(scene, time.monotonic(), victim)
        os.kill(victim, SIGKILL)
        _await_successor(scene, event, PATIENCE)


def stop(scene: Scene, times: int) -> None:
    """STOP a worker, and wait until it was found out and replaced."""
    for _ in range(times):
        victim = random.choice(scene.alive())
        event = _begin(scene, time.monotonic(), victim)
        os.kill(victim, SIGSTOP)
        _await_successor(scene, event, 2 * HANG_SECONDS + SETTLE_SECONDS)


def block(scene: Scene, times: int) -> None:
    """Block the event loop of a worker, and wait until it was found out and replaced."""
    for number in range(1, times + 1):
        with socket.create_connection((HOST, scene.server.port), timeout=5) as request:
            request.sendall(b"GET /block HTTP/1.1\r\nHost: bench\r\n\r\n")
            if not scene.wait(lambda n=number: len(scene.journal.of("blocked")) >= n, PATIENCE):
                return
            victim, at = scene.journal.of("blocked")[-1]
            _await_successor(scene, _begin(scene, at, victim), 2 * HANG_SECONDS + SETTLE_SECONDS)


def broken(scene: Scene, times: int) -> None:
    """Reload into code that fails to import: the old serves on; then reload into code that works again."""
    for number in range(1, times + 1):
        old = set(scene.alive())
        scene.breaks()
        before = len(scene.journal.of("broken"))
        event = _begin(scene, scene.signal(SIGHUP))
        if not scene.wait(lambda n=before: len(scene.journal.of("broken")) > n, PATIENCE):
            scene.notes.append("never tried the broken code")
        scene.wait(lambda: False, BREAK_SECONDS)
        if left := len(old - set(scene.alive())):
            scene.notes.append(f"{left} of {len(old)} old workers gone ({number})")
        scene.mends()
        scene.events.remove(event)
        roll(scene)


def upgrade(scene: Scene, times: int) -> None:
    """USR2: a new program takes over, without a worker replaced (procmgr) or with a second set of them (gunicorn)."""
    for number in range(1, times + 1):
        old = set(scene.alive())
        event = _begin(scene, scene.signal(SIGUSR2))
        if scene.name == "procmgr":
            if scene.wait(lambda n=number: scene.server.log.read_bytes().count(UPGRADED) >= n, PATIENCE):
                event.recovered = time.monotonic() - event.at
            if lost := len(old - set(scene.alive())):
                scene.notes.append(f"{lost} workers lost in upgrade {number}")
        elif scene.wait(lambda was=old: len(set(scene.alive()) - was) >= scene.plan.workers, PATIENCE):
            new = (set(scene.alive()) - old).pop()
            successor = proc.process(new)
            assert successor is not None
            os.kill(scene.arbiter, SIGTERM)
            scene.arbiter = successor.parent
            if scene.wait(lambda gone=old: not gone & set(scene.alive()), PATIENCE):
                event.recovered = time.monotonic() - event.at


def crash(scene: Scene, seconds: int, settle: float = 60.0) -> None:
    """KILL every worker once the code is broken; after the first minute, see what trying again costs."""
    scene.breaks()
    event = _begin(scene, time.monotonic())
    for victim in scene.alive():
        os.kill(victim, SIGKILL)
    scene.wait(lambda: False, settle)
    tries, cpu, begun = len(scene.journal.of("broken")), scene.cpu_seconds(), time.monotonic()
    scene.wait(lambda: False, seconds)
    spent = scene.cpu_seconds() - cpu
    tries = len(scene.journal.of("broken")) - tries
    scene.loop_cpu = 100 * spent / (time.monotonic() - begun)
    scene.notes.append(f"{tries} boots in {seconds} s, {settle:.0f} s after the crash")
    scene.mends()
    mended = time.monotonic()
    if scene.wait(scene.whole, PATIENCE):
        event.recovered = time.monotonic() - mended


def arbiter(scene: Scene, _times: int) -> None:
    """KILL the arbiter, and see whether its workers finish and go."""
    event = _begin(scene, time.monotonic(), scene.arbiter)
    os.kill(scene.arbiter, SIGKILL)
    left = [each.pid for each in proc.in_session(scene.server.pid)]
    if not proc.wait_dead(left, GRACE_SECONDS + SETTLE_SECONDS):
        scene.notes.append(f"all gone after {time.monotonic() - event.at:.1f} s")
    if not proc.port_is_free(scene.server.port):
        scene.notes.append("the port is held")


def _begin(scene: Scene, at: float, victim: int | None = None) -> Event:
    event = Event(at=at, victim=victim)
    scene.events.append(event)
    return event


def _await_successor(scene: Scene, event: Event, seconds: float) -> None:
    """Wait until the victim is dead and the pool whole; a victim that outlives this is killed by the bench."""
    victim = event.victim
    assert victim is not None
    end = event.at + seconds
    if proc.wait_dead([victim], seconds):
        os.kill(victim, SIGKILL)
        os.kill(victim, SIGCONT)
        scene.notes.append(f"not found out in {seconds:.0f} s")
        proc.wait_dead([victim], SETTLE_SECONDS)
        event.dead_at = time.monotonic()
        scene.wait(scene.whole, PATIENCE)
        return
    event.dead_at = time.monotonic()
    if scene.wait(scene.whole, max(0.0, end - time.monotonic())):
        event.recovered = scene.ready_after(event.at, 1)


def _step(scene: Scene, number: Signals, workers: int) -> bool:
    """Signal, and wait until there are so many workers."""
    scene.signal(number)
    return scene.wait(lambda: len(scene.alive()) == workers, PATIENCE)
