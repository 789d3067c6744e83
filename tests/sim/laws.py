"""The pool under watch: after every `handle` the laws at the top of `pool.py` are checked, by number."""

from __future__ import annotations

import json
from collections import Counter

from procmgr.arbiter.core import actions, events
from procmgr.arbiter.core.actions import DrainMode, KillReason, ReloadOutcome
from procmgr.arbiter.core.events import StopLevel
from procmgr.arbiter.core.policy import Handover
from procmgr.arbiter.core.pool import Pool
from procmgr.arbiter.core.view import WorkerState, status_line

STRICTNESS = [DrainMode.RETIRE, DrainMode.STOP, DrainMode.QUICK]


class WatchedPool:
    """A `Pool` of the same surface that asserts the laws."""

    def __init__(self, policy, *, random=lambda: 0.5, now=0.0):
        self.pool = Pool(policy, now=now, random=random)
        self.random = random
        self.seen = self.pool.view()
        self.now = now
        self.stable_after = policy.backoff.stable_after
        self.known = {}
        self.terminated, self.killed, self.dumped, self.aborted = set(), set(), set(), set()
        self.drains = {}
        self.paused = set()
        self.waits = Counter()
        self.asked, self.ended, self.rolled_back = set(), {}, set()
        self.once = Counter()
        self.counts, self.deaths = Counter(), Counter()
        self.finished = False
        self.last_id = 0

    def view(self):
        return self.pool.view()

    def deadline(self):
        return self.pool.deadline()

    def restore(self):
        """Go on with what the pool's snapshot restores."""
        restored = Pool.restore(json.loads(json.dumps(self.pool.snapshot(), allow_nan=False)), random=self.random)
        assert (restored.view(), restored.deadline()) == (self.pool.view(), self.pool.deadline()), "law 9"
        self.pool = restored

    def handle(self, event, now):
        if isinstance(event, events.Reload):
            self.stable_after = min(self.stable_after, event.policy.backoff.stable_after)
        before, wake = self.seen, self.pool.deadline()
        was_known = dict(self.known)
        out = self.pool.handle(event, now)
        after = self.seen = self.pool.view()
        now = self.now = max(self.now, now)
        self.counts.update(type(action).__name__ for action in out)
        if self.finished:
            assert out == [], "law 8: after Finish there is nothing more"
            return out
        if isinstance(event, events.Reload) and before.stop is None:
            self.asked.add(after.newest_generation)
        self.check_capacity(before, after, event, out)
        self.check_signals(before, out)
        self.check_spawns(before, after, event, out, now)
        self.check_clock(event, out, now, wake)
        self.check_pauses(after, out)
        self.check_notices(event, was_known, after, out)
        assert status_line(after)
        return out

    def check_capacity(self, before, after, event, out):
        if after.stop is None:
            assert after.starting + after.ready <= after.desired + after.surge, (
                f"law 2: surge bound\n{before}\n{out}\n{after}"
            )
        gone = event.worker_id if isinstance(event, events.DrainBegun) else None  # it retires itself, and hears by when
        if any(isinstance(a, actions.Drain) and a.mode is DrainMode.RETIRE and a.worker_id != gone for a in out):
            assert after.ready >= after.desired, "laws 1 and 2: retired below desired"
        ready = {w.worker_id for w in before.workers if w.state is WorkerState.READY}
        for action in out:
            if isinstance(action, actions.Terminate):
                assert action.worker_id not in ready, "laws 1 and 2: a serving worker was terminated"
            if isinstance(action, actions.Kill) and action.worker_id in ready:
                assert action.reason in {
                    *(KillReason.HUNG, KillReason.SUSPENDED, KillReason.MEMORY, KillReason.STOPPING)
                }

    def check_signals(self, before, out):
        for action in out:
            worker_id = getattr(action, "worker_id", None)
            match action:
                case actions.ClockJumped():
                    self.drains = {key: (mode, at + action.seconds) for key, (mode, at) in self.drains.items()}
                case actions.Terminate():
                    assert worker_id not in self.terminated | self.killed, "law 3: TERM at most once, none after KILL"
                    self.terminated.add(worker_id)
                case actions.DumpStacks():
                    assert worker_id not in self.dumped | self.killed
                    self.dumped.add(worker_id)
                case actions.Abort():
                    assert worker_id in self.dumped, "law 3: ABRT only after the dump"
                    assert worker_id not in self.aborted | self.killed, "law 3: ABRT at most once, none after KILL"
                    self.aborted.add(worker_id)
                case actions.Kill():
                    assert worker_id not in self.killed, "law 3: KILL at most once"
                    self.killed.add(worker_id)
                case actions.Drain():
                    assert worker_id not in self.killed | self.terminated
                    mode, deadline = self.drains.get(worker_id, (None, float("inf")))
                    assert mode is None or STRICTNESS.index(action.mode) > STRICTNESS.index(mode), "law 3: milder drain"
                    assert action.deadline <= deadline, "law 3: a drain's deadline was put off"
                    self.drains[worker_id] = (action.mode, action.deadline)

    def check_spawns(self, before, after, event, out, now):
        spawns = [a for a in out if isinstance(a, actions.Spawn)]
        self.rolled_back |= {
            a.generation for a in out if isinstance(a, actions.ReloadEnded) and a.outcome is ReloadOutcome.ROLLED_BACK
        }
        for spawn in spawns:
            assert spawn.worker_id > self.last_id, "law 8: ids are never reused"
            self.last_id = spawn.worker_id
            self.known[spawn.worker_id] = spawn
            assert spawn.generation in {after.generation, after.rolling}, "law 4: of no generation there is"
            assert spawn.generation not in self.rolled_back, "law 4: of a generation that was rolled back"
            assert 0 <= spawn.slot <= len(after.workers)
        if spawns:
            assert after.stop is None, "law 4: spawn after stop"
            assert not after.failures or after.starting == 1, "one trial at a time"
            if before.backoff_until is not None and now < before.backoff_until:
                assert self.may_cut(before, after, out, now), "law 4: spawn before its back-off"

    def may_cut(self, before, after, out, now):
        """A wait ends early only for new code or for the loss of a worker that had served."""
        still = {w.worker_id for w in after.workers if w.state is WorkerState.READY}
        served = [w for w in before.workers if w.state is WorkerState.READY and w.since + self.stable_after <= now]
        begun = any(isinstance(a, actions.ReloadBegun) for a in out)
        return begun or any(w.worker_id not in still for w in served)

    def check_clock(self, event, out, now, wake):
        deadline = self.pool.deadline()
        assert deadline is None or deadline > now, f"law 5: {deadline} is not later than {now}"
        if any(isinstance(a, actions.ClockJumped) for a in out):
            assert wake is not None
            assert now > wake
            for action in out:
                if isinstance(
                    action, actions.Kill | actions.DumpStacks
                ):  # a fork may be reported after its boot is over
                    asked = isinstance(event, events.Suspended | events.Measured | events.Stop | events.Spawned)
                    assert asked, "law 7: killed or given up for a clock jump"
                assert not isinstance(action, actions.LoopLate), "law 7: called late for a clock jump"

    def check_pauses(self, after, out):
        for action in out:
            match action:
                case actions.Pause():
                    assert action.worker_id not in self.paused, "law 10: paused twice"
                    self.paused.add(action.worker_id)
                case actions.Resume():
                    assert action.worker_id in self.paused, "law 10: resumed without a pause"
                    self.paused.remove(action.worker_id)
        if after.stop is not None:
            return
        awaited = after.pending or after.rolling if self.holds() else None
        ready = [w for w in after.workers if w.state is WorkerState.READY]
        wanted = {w.worker_id for w in ready if awaited is not None and w.generation != awaited}
        assert wanted == self.paused & {w.worker_id for w in ready}, "law 10: who accepts"

    def holds(self):
        return self.pool._state.policy.handover is Handover.HOLD

    def check_notices(self, event, was_known, after, out):
        died = [a for a in out if isinstance(a, actions.WorkerDied)]
        if isinstance(event, events.Exited) and event.worker_id in was_known:
            assert [a.worker_id for a in died] == [event.worker_id], "one WorkerDied per death"
            del self.known[event.worker_id]
        else:
            assert died == []
        left = {w.worker_id for w in after.workers}
        if isinstance(event, events.SpawnFailed) and event.worker_id in was_known.keys() - left:
            del self.known[event.worker_id]
        assert left == set(self.known), "law 8: lost or invented a worker"
        for action in out:
            match action:
                case actions.WorkerDied():
                    self.deaths[self.cause(action)] += 1
                case actions.PoolReady() | actions.GaveUp() | actions.Finish():
                    self.once[type(action)] += 1
                    assert self.once[type(action)] == 1, f"{action} twice"
                case actions.LoopLate():
                    assert isinstance(event, events.Beats), "nobody is late by an old beat"
                case actions.BackingOff():
                    assert after.backoff_until is not None
                    wait = after.backoff_until, action.failures
                    self.waits[wait] += 1
                    assert self.waits[wait] == 1, "the same wait was reported twice"
                case actions.ReloadEnded():
                    assert action.generation in self.asked
                    assert action.generation not in self.ended, "a reload ended twice"
                    self.ended[action.generation] = action
        if any(isinstance(a, actions.Finish) for a in out):
            assert not after.workers
            self.finished = True
        open_ = self.open_reloads()
        assert open_ == {g for g in (after.rolling, after.pending) if g is not None}, "a reload was forgotten"
        if after.stop is not None:
            assert not open_
            assert self.finished or after.workers, "law 6: a stop that nobody finishes"
        if after.stop is StopLevel.KILL:
            forked = {w.worker_id for w in after.workers if w.pid is not None}
            assert forked <= self.killed

    def open_reloads(self):
        """The generations whose reload was accepted and has not ended."""
        return self.asked - set(self.ended)

    def cause(self, died):
        if died.killed:
            return died.killed.name.lower()
        return "asked to end" if died.expected else "lost"
