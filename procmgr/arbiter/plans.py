"""Plans: what the workers of each generation are made of.

A reload makes the next plan of the configuration as it is now, or is refused as a whole if any of it is wrong. The plan
waits until the pool begins its generation, and is never forked from after a rollback. Listeners are bound, and
certificates read, before a plan is accepted; both are closed when the last plan that has them is gone.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from math import inf
from typing import TYPE_CHECKING, Self

from procmgr import process
from procmgr.arbiter.certificates import Certificates, CertificatesEstate
from procmgr.arbiter.core.view import WorkerState
from procmgr.config.resolve import changes, resolve
from procmgr.config.settings import Settings
from procmgr.errors import ConfigError
from procmgr.plain import record
from procmgr.process import Privileges

if TYPE_CHECKING:
    from procmgr.arbiter.core.view import View
    from procmgr.arbiter.listeners import Listeners
    from procmgr.config.resolve import Invocation
    from procmgr.sockets import Listener


@dataclass(frozen=True, slots=True)
class Plan:
    """What workers of one generation are made of, and when that began, time.time(); `inf` is unknown."""

    settings: Settings
    listeners: tuple[Listener, ...]
    privileges: Privileges | None
    certificates: Certificates | None = None
    began: float = inf


@record
class PlanEstate:
    """A plan as it is handed over: what it was made of, since the configuration may have changed after that."""

    settings: Settings
    privileges: Privileges | None
    began: float = inf
    certificates: CertificatesEstate | None = None


@record
class PlansEstate:
    """The plans as they are handed over, by generation, and the one that waits."""

    plans: dict[int, PlanEstate]
    pending: PlanEstate | None


class Plans:
    """The plan of each generation that serves or may, and the one of an accepted reload that has not begun."""

    def __init__(self, *, invocation: Invocation, listeners: Listeners) -> None:
        self._invocation = invocation
        self._listeners = listeners
        self._plans: dict[int, Plan] = {}
        self._pending: Plan | None = None
        self._certificates: list[Certificates] = []

    @classmethod
    def adopt(cls, estate: PlansEstate, *, invocation: Invocation, listeners: Listeners) -> Self:
        """Take over the plans of living generations, whose listeners `listeners` has; raises `KeyError` if not."""
        plans = cls(invocation=invocation, listeners=listeners)
        held: dict[CertificatesEstate, Certificates] = {}
        plans._plans = {number: plans._adopt(each, held) for number, each in estate.plans.items()}
        plans._pending = None if estate.pending is None else plans._adopt(estate.pending, held)
        plans._certificates = [*held.values()]
        return plans

    def _adopt(self, estate: PlanEstate, held: dict[CertificatesEstate, Certificates]) -> Plan:
        """Take over one plan; what two of them share is one object again."""
        found, settings = estate.certificates, estate.settings
        if found is not None and found not in held:
            held[found] = Certificates.adopt(found, settings.tls, self._invocation.cwd)
        certificates = None if found is None else held[found]
        listeners = self._listeners.held(settings.bind.addresses)
        return Plan(settings, listeners, estate.privileges, certificates, estate.began)

    def hand_over(self) -> PlansEstate:
        """Return what `adopt` needs."""
        return PlansEstate(
            plans={number: _hand_over(plan) for number, plan in self._plans.items()},
            pending=None if self._pending is None else _hand_over(self._pending),
        )

    def make(self, settings: Settings) -> Plan:
        """Return the plan for `settings`, its listeners bound; raises `ProcmgrError`."""
        privileges = process.resolve_privileges(settings.process.user, settings.process.group)
        if privileges is not None:
            process.check_privileges(privileges)
        certificates = Certificates.open(settings.tls, self._invocation.cwd)
        if certificates is not None:
            self._certificates.append(certificates)
        listeners = self._listeners.open(
            settings.bind.addresses, backlog=settings.bind.backlog, umask=settings.process.umask
        )
        return Plan(settings, listeners, privileges, certificates)

    def propose(self, generation: int) -> Plan:
        """Make the next plan of the configuration as it is now and let it wait for the pool to begin its generation.

        `generation` is the one in force. Raises `ProcmgrError`, and nothing has changed then.
        """
        settings = resolve(self._invocation).settings
        changed = changes(self.in_force(generation).settings, settings)
        if changed.restart:
            raise ConfigError(f"a change of {', '.join(sorted(changed.restart))} needs a restart")
        self._pending = self.make(settings)
        return self._pending

    def again(self, generation: int) -> Plan:
        """Let the plan of `generation` wait for one more; to be called while none waits."""
        self._pending = self._plans[generation]
        return self._pending

    def start(self, generation: int, plan: Plan) -> None:
        """Have workers of `generation` made by `plan`."""
        self._plans[generation] = replace(plan, began=time.time())

    def begin(self, generation: int) -> None:
        """Have workers of `generation` made by the plan that waits."""
        assert self._pending is not None  # every generation after the first is begun by a reload
        self.start(generation, self._pending)
        self._pending = None

    def of(self, generation: int) -> Plan:
        """Return the plan that workers of `generation` are made by."""
        return self._plans[generation]

    def serving(self) -> dict[int, Plan]:
        """Return the plan of each generation that has workers, or may get some."""
        return dict(self._plans)

    def in_force(self, generation: int) -> Plan:
        """Return the newest plan that was accepted and not rolled back; `generation` is the pool's own."""
        return self._pending or self._plans[generation]

    def forget(self, view: View) -> None:
        """Drop plans that no worker serves by and none will, and close the listeners that only they had.

        A worker that drains accepts no more: an address that is gone must refuse at once, not queue for nobody.
        """
        serving = {worker.generation for worker in view.workers if worker.state is not WorkerState.DRAINING}
        alive = serving | {view.generation, view.rolling}
        for generation in [number for number in self._plans if number not in alive]:
            del self._plans[generation]
        plans = [*self._plans.values(), *([self._pending] if self._pending else [])]
        self._listeners.keep({listener.requested for plan in plans for listener in plan.listeners})
        self._keep_certificates(plans)

    def close_in_child(self) -> None:
        """Close, in a forked child, the certificates' descriptors: their contexts are made already."""
        for certificates in self._certificates:
            certificates.close()

    def _keep_certificates(self, plans: list[Plan]) -> None:
        """Let go of certificates that no plan has: of proposals that were refused or overtaken, too."""
        kept = [each for each in self._certificates if any(plan.certificates is each for plan in plans)]
        for certificates in self._certificates:
            if certificates not in kept:
                certificates.close()
        self._certificates = kept


def _hand_over(plan: Plan) -> PlanEstate:
    certificates = None if plan.certificates is None else plan.certificates.hand_over()
    return PlanEstate(settings=plan.settings, privileges=plan.privileges, began=plan.began, certificates=certificates)
