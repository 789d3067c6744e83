"""Simulated weeks of a pool in production: trouble of every kind, then somebody mends it, then a calm, and so on.

Each episode of trouble strikes workers, zygotes, the arbiter's clock and the code on disk, while an operator deploys,
scales and upgrades. Then whatever is still broken is mended, and by the bound that the policy implies the
pool has every desired worker ready and no reload open. Then nothing happens, and so the pool does nothing. Lives end by
a stop in any of these states or by giving up; another begins. The laws are checked at every step (`laws`).

    PYTHONPATH=tests python -m sim.month --days 30 --seed 1
"""

from __future__ import annotations

import argparse
from collections import Counter
from enum import Enum
from math import inf
from random import Random
from time import monotonic

from procmgr.arbiter.core import actions, events
from procmgr.arbiter.core.events import BootFailure, Exit, StopLevel
from procmgr.arbiter.core.policy import Backoff, Handover, Policy
from sim.host import TERMED, Host, Script

DAY = 86_400.0
DYING = 0.4  # a fork under way, the process being reaped


class Code(Enum):
    """What is on disk."""

    GOOD = "good"
    SLOW = "slow to start"
    MISSING = "not to be found"
    BROKEN = "fails to start"
    STUCK = "never gets ready"
    DOOMED = "dies soon after it is ready"
    FLAKY = "fails to start now and then"


class Month:
    """Lives of one pool after another, on one clock."""

    def __init__(self, *, seed):
        self.random = Random(seed)
        self.now = 0.0
        self.events, self.actions, self.incidents, self.ends = Counter(), Counter(), Counter(), Counter()
        self.outcomes, self.deaths = Counter(), Counter()
        self.recoveries = []
        self.host = None

    def run(self, days):
        while self.now < days * DAY:
            self.live(days * DAY)
        return self

    # One life.

    def live(self, end):
        """From the start to a stop, a surrender, or the end of the month."""
        self.code = self.random.choice([*[Code.GOOD] * 6, Code.BROKEN, Code.MISSING, Code.STUCK, Code.FLAKY])
        self.policy = self.any_policy(preload=self.random.random() < 0.3)
        self.imported = {1: self.code}
        self.refusing = False
        self.host = Host(self.policy, script=self.script, seed=self.random.random(), now=self.now)
        self.host.run(self.random.choice([0.0, 1.0, 60.0]))
        while self.now < end and self.alive():
            self.trouble()
            if self.alive() and self.random.random() < 0.03:
                self.stop("in trouble")
            if self.alive():
                self.recover()
                self.calm()
            if self.alive() and self.random.random() < 0.03:
                self.stop("in a calm")
        if self.host.exit_code is None:
            self.stop("at the end")
        self.count()

    def alive(self):
        self.now = self.host.now
        if self.host.view().gave_up:
            assert not self.host.view().ever_ready, "law 1: it gave up although it had served"
            assert self.host.run_until(lambda: self.host.exit_code is not None, self.stop_bound(StopLevel.GRACEFUL))
            self.ends["gave up"] += 1
        self.now = self.host.now
        return self.host.exit_code is None

    def any_policy(self, *, preload):
        choose = self.random.choice
        return Policy(
            workers=choose([1, 2, 4, 4, 6]),
            surge=choose([1, 1, 2, 8]),
            boot_timeout=20.0,
            beat_timeout=choose([0.0, 12.0, 30.0]),
            graceful_timeout=8.0,
            kill_grace=2.0,
            slow_loop=choose([0.0, 1.0]),
            core_grace=choose([0.0, 0.0, 5.0]),
            max_lifetime=choose([0.0, 0.0, 7200.0]),
            max_lifetime_jitter=600.0,
            max_memory=choose([0, 100]),
            max_memory_hard=choose([0, 200]),
            boot_attempts=choose([2, 3, 8]),
            refork=preload,
            handover=choose([Handover.ROLL, Handover.ROLL, Handover.ROLL, Handover.HOLD]),
            backoff=Backoff(cap=16.0, stable_after=choose([2.0, 10.0])),
        )

    def script(self, spawn):
        """What comes of a fork: from the zygote's import with --preload, else from what is on disk by now."""
        random = self.random
        code = self.imported.get(spawn.generation, self.code) if self.policy.refork else self.code
        if self.refusing:
            return Script(refused=True)
        fork = random.choice([0.0, 0.01, 0.3])
        drain = random.choice([0.05, 0.5, 4.0, 8.0, inf]) if random.random() < 0.2 else 0.1
        if code is Code.FLAKY:
            code = random.choice([Code.GOOD, Code.BROKEN])
        match code:
            case Code.BROKEN:
                return Script(
                    fork=fork, boot=1.0, boot_exit=Exit(code=3), tells=random.choice([None, BootFailure.FAILED])
                )
            case Code.MISSING:
                return Script(fork=fork, boot=0.3, boot_exit=Exit(code=4), tells=BootFailure.NOT_FOUND)
            case Code.STUCK:
                return Script(fork=fork, boot=inf, term=random.choice([0.01, inf]))
            case Code.DOOMED:
                return Script(fork=fork, drain=drain, life=((random.choice([0.0, 1.0, 3.0]), "crash"),))
            case Code.SLOW:
                return Script(fork=fork, boot=15.0, drain=drain)
        return Script(fork=fork, boot=random.choice([0.2, 1.0, 3.0]), drain=drain)

    # What goes wrong.

    def trouble(self):
        for _ in range(self.random.randint(1, 8)):
            kind = self.random.choice(INCIDENTS)
            self.incidents[kind.__name__] += 1
            kind(self)
            self.host.run(self.random.choice([0.0, 0.05, 0.4, 1.1, 3.0, 15.0, 60.0]))
            self.refusing = False
            if not self.alive():
                return

    def victim(self):
        return self.random.choice(list(self.host.processes.values())) if self.host.processes else None

    def strike(self, fate, *, ready=True):
        process = self.victim()
        if process and process.alive and (process.ready or not ready):
            self.host.fault(process, fate)
            return True
        return False

    def crash(self):
        self.strike("crash", ready=False)

    def kill(self):
        self.strike("killed", ready=False)

    def leave(self):
        self.strike("leave")

    def hang(self):
        self.strike("hang")

    def stall(self):
        self.strike("stall")

    def sigstop(self):
        self.strike("suspend", ready=False)

    def recycle(self):
        self.strike("recycle")

    def grow(self):
        self.strike("grow")

    def memory_short(self):
        used = ((worker_id, self.random.choice([60, 90, 150])) for worker_id in self.host.processes)
        self.host.send(events.MemoryShort(tuple(used)))

    def burst(self):
        self.strike("burst")

    def term(self):
        """TERM from outside; one that boots dies of it at once."""
        process = self.victim()
        if process and process.ready:
            self.host.fault(process, "term")
        elif process and process.alive:
            self.host.later(0.0, process, "exit", TERMED)

    def all_at_once(self):
        fate = self.random.choice(["killed", "suspend", "hang", "recycle", "leave"])
        for process in self.host.processes.values():
            if process.ready:
                self.host.fault(process, fate)

    def no_forks(self):
        self.refusing = True
        self.all_at_once() if self.random.random() < 0.5 else self.kill()

    def zygote_dies(self):
        """Its orders are refused, and the arbiter rebuilds it like a reload."""
        if self.policy.refork:
            generation = self.random.choice([self.host.view().generation, self.host.view().newest_generation])
            self.host.refuse_forks(generation)
            if self.alive():
                self.reload(self.policy)

    def clock_jumps(self):
        self.host.jump(self.random.choice([0.5, 2.1, 20.0, 400.0, 9000.0]), everyone=self.random.random() < 0.5)

    def upgrade(self):
        self.host.upgrade(self.random.choice([0.05, 0.3, 1.5, 4.0]))

    def scale_by(self):
        self.host.send(events.ScaleBy(self.random.choice([-2, -1, 1, 2])))

    def scale_to(self):
        self.host.send(events.ScaleTo(self.random.randint(1, 6)))

    def deploy(self):
        """New code without a word: only those that boot from now on see it."""
        self.code = self.random.choice(list(Code))

    def reload_good(self):
        self.code = self.random.choice([Code.GOOD, Code.SLOW])
        self.reload(self.policy if self.random.random() < 0.5 else self.any_policy(preload=self.policy.refork))

    def reload_bad(self):
        self.code = self.random.choice([Code.MISSING, Code.BROKEN, Code.STUCK, Code.DOOMED, Code.FLAKY])
        self.reload(self.policy)

    def reload_thrice(self):
        for _ in range(3):
            self.reload(self.policy)
            self.host.run(self.random.choice([0.0, 0.7]))

    def reload(self, policy):
        self.policy = policy
        self.host.send(events.Reload(policy))
        self.imported[self.host.view().newest_generation] = self.code

    # What comes of it.

    def recover(self):
        """Mend what is broken, and see that the pool is as desired within the bound."""
        view = self.host.view()
        used = {self.imported.get(g) for g in (view.generation, view.rolling, view.pending) if g is not None}
        self.code = Code.GOOD
        if self.random.random() < 0.5 or (self.policy.refork and used - {Code.GOOD, Code.SLOW}):
            self.reload(self.policy)
        self.host.heal(self.script)
        start = self.host.now
        assert self.host.run_until(self.settled, self.bound()), self.host.view()
        self.recoveries.append(self.host.now - start)
        assert not self.host.pool.open_reloads(), "law 6"

    def settled(self):
        view = self.host.pool.seen
        if view.starting or view.draining or view.rolling or view.pending or view.backoff_until:
            return False
        if any(process.hung for process in self.host.processes.values()) and self.watching():
            return False
        return view.ready == view.desired == len({worker.slot for worker in view.workers})

    def watching(self):
        return self.host.pool.pool._state.policy.beat_timeout

    def bound(self):
        """Every worker booted one after the other, each after the longest wait, and everything that hangs killed."""
        policy = self.host.pool.pool._state.policy
        each = policy.backoff.cap + policy.boot_timeout + policy.beat_timeout + policy.graceful_timeout
        each += policy.kill_grace + policy.dump_grace + policy.core_grace + policy.backoff.stable_after
        return each * (self.host.view().desired + 4)

    def calm(self):
        """Nothing happens: nobody is replaced but for age, and the pool never serves with fewer than desired."""
        self.host.forget()
        self.host.run(self.random.expovariate(1 / 900))
        assert self.host.lowest_ready >= self.host.view().desired
        recycled = len(self.host.notices(actions.WorkerRecycled))
        assert len(self.host.notices(actions.WorkerDied)) <= recycled
        assert len(self.host.notices(actions.Spawn)) <= recycled + self.host.view().surge

    def stop(self, when):
        level = self.random.choice(list(StopLevel))
        self.host.send(events.Stop(level))
        assert self.host.run_until(lambda: self.host.exit_code is not None, self.stop_bound(level)), self.host.view()
        assert self.host.exit_code == 0 or self.host.view().gave_up
        self.ends[f"{level.name.lower()} {when}"] += 1
        self.now = self.host.now

    def stop_bound(self, level):
        policy = self.host.pool.pool._state.policy
        drain = {StopLevel.GRACEFUL: policy.graceful_timeout, StopLevel.QUICK: policy.quick_timeout}
        return DYING + (0.0 if level is StopLevel.KILL else drain[level] + policy.kill_grace)

    def count(self):
        pool = self.host.pool
        self.events += self.host.events
        self.actions += pool.counts
        self.deaths += pool.deaths
        self.outcomes += Counter(ended.outcome.value for ended in pool.ended.values())


FAULTS = [Month.crash, Month.kill, Month.leave, Month.hang, Month.stall, Month.sigstop, Month.term]
LIMITS = [Month.recycle, Month.grow, Month.burst, Month.memory_short]
DISASTERS = [Month.all_at_once, Month.no_forks, Month.zygote_dies, Month.clock_jumps]
WISHES = [Month.upgrade, Month.scale_by, Month.scale_to]
DEPLOYS = [Month.deploy, Month.reload_good, Month.reload_bad, Month.reload_thrice]
INCIDENTS = [*FAULTS, *LIMITS, *DISASTERS, *WISHES, *DEPLOYS]


def table(title, counter):
    return f"{title} ({sum(counter.values()):,}): " + ", ".join(f"{key} {n:,}" for key, n in counter.most_common())


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--days", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    begin = monotonic()
    month = Month(seed=options.seed).run(options.days)
    print(f"seed {options.seed}: {month.now / DAY:.1f} simulated days in {monotonic() - begin:.0f} s, every law held")
    print(table("incidents", month.incidents))
    print(table("events", month.events))
    print(table("actions", month.actions))
    print(table("deaths", month.deaths))
    print(table("reloads", month.outcomes))
    print(table("lives", month.ends))
    recoveries = sorted(month.recoveries)
    median, worst = recoveries[len(recoveries) // 2], recoveries[-1]
    print(f"recoveries ({len(recoveries):,}): median {median:.1f} s, worst {worst:.1f} s")


if __name__ == "__main__":
    main()
