"""A pool driven by hand: every fact is said by the test, at a time the test sets."""

from __future__ import annotations

from procmgr.arbiter.core import actions, events
from procmgr.arbiter.core.events import Exit
from procmgr.arbiter.core.policy import Policy
from sim.laws import WatchedPool

OK = Exit(code=0)


class Drive:
    def __init__(self, *, chance=0.0, **policy):
        self.policy = Policy(**policy)
        self.pool = WatchedPool(self.policy, random=lambda: chance)
        self.now = 0.0
        self.out = []
        self.send(events.Tick())

    @property
    def view(self):
        return self.pool.view()

    def send(self, event):
        self.out = self.pool.handle(event, self.now)
        return self.out

    def wait(self, seconds, *, beating=True):
        """Let time pass as the shell does: wake at every deadline, with the beats of all who serve."""
        end, collected = self.now + seconds, []
        while (deadline := self.pool.deadline()) is not None and deadline <= end:
            self.now = deadline
            collected += self.beat() if beating else self.send(events.Tick())
        self.now = end
        self.out = collected + (self.beat() if beating else self.send(events.Tick()))
        return self.out

    def beat(self, *but):
        ids = [worker.worker_id for worker in self.view.workers if worker.worker_id not in but]
        return self.send(events.Beats(tuple((worker_id, self.now) for worker_id in ids)))

    def spawned(self, *ids):
        return [action for i in ids for action in self.send(events.Spawned(i, 100 + i))]

    def ready(self, *ids):
        """Fork, boot and become ready at once."""
        out = []
        for i in ids:
            if i in {worker.worker_id for worker in self.view.workers if worker.pid is None}:
                out += self.send(events.Spawned(i, 100 + i))
            out += self.send(events.Ready(i))
        self.out = out
        return out

    def died(self, worker_id, exit_=OK):
        return self.send(events.Exited(worker_id, exit_))

    def reload(self, **changes):
        values = {name: getattr(self.policy, name) for name in Policy.__dataclass_fields__}
        self.policy = Policy(**values | changes)
        return self.send(events.Reload(self.policy))

    def ids(self, state=None):
        return [w.worker_id for w in self.view.workers if state is None or w.state.value == state]

    def of(self, kind):
        return [action for action in self.out if isinstance(action, kind)]

    def spawns(self):
        return [(a.worker_id, a.slot, a.generation) for a in self.of(actions.Spawn)]


def serving(workers, **policy):
    """A pool whose workers 1 … n have been ready for 60 s."""
    drive = Drive(workers=workers, **policy)
    drive.ready(*range(1, workers + 1))
    drive.wait(60)
    return drive
