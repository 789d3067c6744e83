"""The estate: all that one arbiter hands to the next, part by part.

Every part of the arbiter has a record that describes it, a `hand_over` that makes one and a way to be made of it; the
`Estate` composes them. A field that comes later has a default, so that the state of an older release can be read.
"""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, Any, Final

from procmgr import messages, plain, process, scoreboard, sockets
from procmgr.arbiter.admin import AdminEstate
from procmgr.arbiter.core.pool import Pool
from procmgr.arbiter.guard import GuardEstate
from procmgr.arbiter.history import HistoryEstate
from procmgr.arbiter.host import HostEstate
from procmgr.arbiter.listeners import ListenersEstate
from procmgr.arbiter.logfiles import LogFilesEstate
from procmgr.arbiter.nursery import NurseryEstate
from procmgr.arbiter.plans import PlanEstate, PlansEstate
from procmgr.arbiter.signals import SignalsEstate
from procmgr.handover import Descriptor, HandoverError

if TYPE_CHECKING:
    from collections.abc import Mapping

VERSION: Final = 1
_STANDARD_STREAMS: Final = 3


@plain.record
class Estate:
    """All that one arbiter hands to the next."""

    pool: dict[str, Any]
    plans: PlansEstate
    listeners: ListenersEstate
    host: HostEstate
    guard: GuardEstate
    log_files: LogFilesEstate
    signals: SignalsEstate
    pid_file: process.PidFileEstate | None
    control: sockets.ListenerEstate | None
    history: HistoryEstate
    born: float
    nursery: NurseryEstate = NurseryEstate()
    admin: AdminEstate = AdminEstate()
    version: int = VERSION

    @property
    def descriptors(self) -> tuple[int, ...]:
        """Every descriptor in it; the standard streams need no handing over."""
        numbers = {each.number for each in plain.find(self, Descriptor)}
        return tuple(sorted(number for number in numbers if number >= _STANDARD_STREAMS))

    @property
    def plan_in_force(self) -> PlanEstate:
        """What the next worker is made of, or will be once the reload begins that waits."""
        return self.plans.pending or self.plans.plans[self.restore_pool().view().generation]

    def restore_pool(self) -> Pool:
        """Return the pool; raises `plain.PlainError`."""
        return Pool.restore(self.pool, random=random.random)


def write(estate: Estate) -> dict[str, Any]:
    """Return `estate` as data for `json.dumps`, having read it again: this release is the one to come back to.

    Raises `HandoverError`.
    """
    try:
        data: dict[str, Any] = json.loads(json.dumps(plain.dump(estate), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise HandoverError(f"the state cannot be written: {error}") from error
    read(data)
    return data


def read(data: Mapping[str, Any]) -> Estate:
    """Return what `data` describes, checked as far as that goes without the descriptors; raises `HandoverError`."""
    found = data.get("version")
    if found != VERSION:
        raise HandoverError(f"the state is of version {found}, this release reads version {VERSION}")
    try:
        estate = plain.load(Estate, data)
        estate.restore_pool()
    except plain.PlainError as error:
        raise HandoverError(f"the state cannot be read: {error}") from error
    _expect("messages", estate.host.protocol, messages.PROTOCOL_VERSION)
    _expect("the scoreboard", estate.host.board.layout, scoreboard.LAYOUT_VERSION)
    return estate


def _expect(what: str, found: int, known: int) -> None:
    """Refuse what the workers, which stay as they are, would not understand."""
    if found != known:
        raise HandoverError(f"the workers use version {found} of {what}, this release version {known}")
