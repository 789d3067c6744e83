"""A simulated host: scripted workers and an arbiter's shell over a simulated clock.

Workers do what their `Script` says. The shell side is faithful in what the pool relies on: `Spawned` is the first word
about a worker, nothing follows `Exited`, and beats are read before every call that is made because of a deadline.
"""

from __future__ import annotations

import heapq
from collections import Counter
from dataclasses import dataclass, field
from math import inf
from random import Random

from procmgr.arbiter.core import actions, events
from procmgr.arbiter.core.events import BootFailure, Exit
from sim.laws import WatchedPool

OK, KILLED, TERMED, CRASHED = Exit(code=0), Exit(signal=9), Exit(signal=15), Exit(signal=11, core=True)


@dataclass(kw_only=True)
class Script:
    """What one worker will do; times in seconds. `life` has (seconds after ready, what happens)."""

    refused: bool = False
    fork: float = 0.0
    boot: float = 1.0
    boot_exit: Exit | None = None
    tells: BootFailure | None = None
    life: tuple[tuple[float, str], ...] = ()
    term: float = 0.01
    drain: float = 0.5
    drain_exit: Exit = OK


HEALTHY = Script()


@dataclass(eq=False)
class Process:
    worker_id: int
    generation: int
    script: Script
    alive: bool = False
    ready: bool = False
    hung: bool = False
    due: list = field(default_factory=list)


class Host:
    def __init__(self, policy, script=lambda spawn: HEALTHY, seed=1, now=0.0):
        random = Random(seed)
        self.pool = WatchedPool(policy, random=random.random, now=now)
        self.script = script
        self.now = now
        self.queue = []
        self.counter = 0
        self.processes = {}
        self.log = []
        self.exit_code = None
        self.lowest_ready = inf
        self.most_draining = 0
        self.calls = 0
        self.events = Counter()
        self.send(events.Tick())

    # What a test asks.

    def view(self):
        return self.pool.view()

    def notices(self, kind):
        return [action for _, action in self.log if isinstance(action, kind)]

    def at(self, kind):
        return [time for time, action in self.log if isinstance(action, kind)]

    def forget(self):
        self.log.clear()
        self.lowest_ready, self.most_draining = inf, 0

    def run(self, seconds):
        self.run_until(lambda: False, seconds)

    def run_until(self, condition, limit):
        """Let time pass until `condition` holds; whether it did within `limit` seconds."""
        end = self.now + limit
        while not condition():
            when = min(self.queue[0][0] if self.queue else inf, self.pool.deadline() or inf)
            if when > end or when == inf:
                self.now = end
                return condition()
            self.now = max(self.now, when)
            if self.queue and self.queue[0][0] <= self.now:
                self.dispatch(*heapq.heappop(self.queue)[2:])
            else:
                self.send(self.beats())
        return True

    def send(self, event):
        self.calls += 1
        self.events[type(event).__name__] += 1
        for action in self.pool.handle(event, self.now):
            self.log.append((self.now, action))
            self.execute(action)
        view = self.pool.seen
        self.lowest_ready = min(self.lowest_ready, view.ready)
        self.most_draining = max(self.most_draining, view.draining)

    def jump(self, seconds, *, everyone):
        """The arbiter does not run for `seconds`; with `everyone` no worker does either."""
        self.now += seconds
        if everyone:
            self.queue = [(when + seconds, *rest) for when, *rest in self.queue]
        self.send(self.beats())

    def upgrade(self, seconds):
        """The arbiter becomes another program, which takes up what this one wrote down; what happens then waits."""
        self.pool.restore()
        self.now += seconds
        self.send(self.beats())

    def refuse_forks(self, generation):
        """The zygote of `generation` is gone: what it was to fork will not be."""
        for process in [p for p in self.processes.values() if p.generation == generation and not p.alive]:
            self.dispatch(process, "refused", None)

    def fault(self, process, what):
        self.later(0, process, what)

    def heal(self, script=lambda spawn: HEALTHY):
        """From now on nothing new goes wrong; what hangs already hangs on."""
        self.script = script
        harmless = {"exit", "spawned", "refused", "ready", "wake"}
        self.queue = [entry for entry in self.queue if entry[3] in harmless and entry[4] is not CRASHED]
        heapq.heapify(self.queue)
        for process in self.processes.values():
            process.script = HEALTHY

    # The world.

    def beats(self):
        return events.Beats(tuple((p.worker_id, self.now) for p in self.processes.values() if p.ready and not p.hung))

    def later(self, seconds, process, what, exit_=None):
        if seconds != inf:
            self.counter += 1
            heapq.heappush(self.queue, (self.now + seconds, self.counter, process, what, exit_))

    def execute(self, action):
        process = self.processes.get(getattr(action, "worker_id", None))
        match action:
            case actions.Spawn():
                self.spawn(action)
            case actions.Drain():
                assert process.alive or process.worker_id not in self.processes
                if not process.hung:
                    seconds = min(process.script.drain, max(0.0, action.deadline - self.now))
                    seconds = inf if process.script.drain == inf else seconds
                    self.later(seconds, process, "exit", process.script.drain_exit)
            case actions.Terminate():
                assert process.alive, "TERM to a process that is not forked"
                self.later(process.script.term, process, "exit", TERMED)
            case actions.Abort():
                assert process.alive, "ABRT to a process that is not forked"
            case actions.Kill():
                assert process.alive, "KILL to a process that is not forked"
                self.later(0.005, process, "exit", KILLED)
            case actions.Finish():
                assert not self.processes, "finished with processes left"
                self.exit_code = action.exit_code

    def spawn(self, action):
        process = Process(action.worker_id, action.generation, self.script(action))
        self.processes[action.worker_id] = process
        self.later(process.script.fork, process, "refused" if process.script.refused else "spawned")

    def dispatch(self, process, what, exit_):
        if self.processes.get(process.worker_id) is not process:
            return
        worker_id, script = process.worker_id, process.script
        match what:
            case "refused":
                del self.processes[worker_id]
                self.send(events.SpawnFailed(worker_id, "EAGAIN"))
            case "spawned":
                process.alive = True
                if script.boot_exit:
                    self.later(script.boot, process, "exit", script.boot_exit)
                else:
                    self.later(script.boot, process, "ready")
                self.send(events.Spawned(worker_id, 1000 + worker_id))
            case "ready":
                process.ready = True
                self.send(events.Measured(worker_id, 50))
                for seconds, fate in script.life:
                    self.later(seconds, process, fate)
                self.send(events.Ready(worker_id))
            case "exit":
                if script.tells and not process.ready and exit_ is script.boot_exit:
                    self.send(events.BootFailed(worker_id, script.tells))
                del self.processes[worker_id]
                self.send(events.Exited(worker_id, exit_))
            case "crash":
                self.dispatch(process, "exit", CRASHED)
            case "killed":
                self.dispatch(process, "exit", KILLED)
            case "leave":
                self.dispatch(process, "exit", OK)
            case "hang":
                process.hung = True
                self.queue = [e for e in self.queue if not (e[2] is process and e[3] == "exit" and e[4] is OK)]
                heapq.heapify(self.queue)
            case "stall":
                process.hung = True
                self.later(2.5, process, "wake")
            case "wake":
                process.hung = False
            case "suspend":
                process.hung = True
                self.send(events.Suspended(worker_id))
            case "recycle":
                self.send(events.RecycleDue(worker_id, "1000 requests"))
            case "grow":
                self.send(events.Measured(worker_id, 150))
            case "press":
                self.send(events.MemoryShort(((worker_id, 90),)))
            case "burst":
                self.send(events.Measured(worker_id, 250))
            case "term":
                self.later(min(script.drain, 5.0), process, "exit", OK)
                self.send(events.DrainBegun(worker_id))
