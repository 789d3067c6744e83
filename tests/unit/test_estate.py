"""The estate: what is written is read again, and what cannot be understood is refused before anything happens."""

from __future__ import annotations

import dataclasses

import pytest

from procmgr import messages, scoreboard
from procmgr.arbiter import estate
from procmgr.arbiter.core import events
from procmgr.arbiter.core.policy import Policy
from procmgr.arbiter.core.pool import Pool
from procmgr.arbiter.guard import GuardEstate
from procmgr.arbiter.history import Departure, HistoryEstate, LastReload
from procmgr.arbiter.host import HostEstate
from procmgr.arbiter.listeners import ListenersEstate
from procmgr.arbiter.logfiles import LogFilesEstate
from procmgr.arbiter.member import MemberEstate
from procmgr.arbiter.plans import PlanEstate, PlansEstate
from procmgr.arbiter.signals import SignalsEstate
from procmgr.config.resolve import build
from procmgr.config.types import Surge
from procmgr.errors import ExitCode
from procmgr.handover import Descriptor, HandoverError
from procmgr.process import PidFileEstate, Privileges
from procmgr.scoreboard import BoardEstate
from procmgr.sockets import TCP, ListenerEstate, Origin, Unix

SETTINGS = build(
    {"app": "main:app", "env": (("KEY", "sécret"),), "reload_surge": Surge(50, percent=True), "umask": 0o22}
)


def an_estate():
    """One with something in every place."""
    pool = Pool(Policy(workers=2), now=5.0, random=lambda: 0.5)
    pool.handle(events.Tick(), 5.0)
    pool.handle(events.Spawned(1, 4711), 5.0)
    web = ListenerEstate(
        fd=Descriptor(9), address=TCP("127.0.0.1", 80), requested=TCP("localhost", 80), origin=Origin.BOUND, inode=None
    )
    control = ListenerEstate(
        fd=Descriptor(10), address=Unix("/c,d"), requested=Unix("/c,d"), origin=Origin.INHERITED, inode=(1, 2)
    )
    words = messages.BootFailed(exit_code=3, summary="no", detail="Traceback\n")
    return estate.Estate(
        pool=pool.snapshot(),
        plans=PlansEstate(
            plans={1: PlanEstate(settings=SETTINGS, privileges=Privileges(uid=1, gid=2, groups=(2, 3)))},
            pending=PlanEstate(settings=dataclasses.replace(SETTINGS), privileges=None),
        ),
        listeners=ListenersEstate(open=(web,), inherited=(("web", Descriptor(11)),), strangers=(Descriptor(14),)),
        host=HostEstate(
            board=BoardEstate(fd=Descriptor(4), leased=(1, 2), totals={"requests": 2**63}),
            members=(
                MemberEstate(
                    worker_id=1,
                    pid=4711,
                    slot=0,
                    generation=1,
                    channel=Descriptor(12),
                    row_number=1,
                    stacks=Descriptor(13),
                    last_words=words,
                ),
            ),
        ),
        guard=GuardEstate(pid=7, channel=Descriptor(5)),
        log_files=LogFilesEstate(error=Descriptor(2), access=Descriptor(1)),
        signals=SignalsEstate(reader=Descriptor(6), writer=Descriptor(7)),
        pid_file=PidFileEstate(path="/run/\udcff.pid", fd=Descriptor(8)),
        control=control,
        history=HistoryEstate(
            recycled={1: "it served 5 requests"},
            departures={0: Departure(worker_id=1, reason="died", at=1.0)},
            last_reload=LastReload(
                generation=None, outcome=None, exit_code=ExitCode.CONFIG, text="refused", detail="", at=2.0
            ),
            upgrades=3,
        ),
        born=0.5,
    )


def test_what_is_written_is_read_again():
    assert estate.read(estate.write(an_estate())) == an_estate()


def test_every_descriptor_in_it_is_passed_but_for_the_standard_streams():
    assert an_estate().descriptors == tuple(range(4, 15))


def test_the_plan_that_waits_is_the_one_in_force():
    assert an_estate().plan_in_force == PlanEstate(settings=SETTINGS, privileges=None)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda data: data.update(version=2), "of version 2, this release reads version 1"),
        (lambda data: data.pop("guard"), "guard is missing"),
        (lambda data: data.update(zygote={}), "there is no zygote"),
        (lambda data: data["pool"].update(target="2"), "State.target"),
        (lambda data: data["host"].update(protocol=messages.PROTOCOL_VERSION + 1), "version 2 of messages"),
        (lambda data: data["host"]["board"].update(layout=scoreboard.LAYOUT_VERSION + 1), "of the scoreboard"),
        (lambda data: data["plans"]["plans"]["1"]["settings"]["app"].update(no_such_setting=1), "no_such_setting"),
    ],
)
def test_what_this_release_does_not_understand_is_refused_by_name(change, reason):
    data = estate.write(an_estate())
    change(data)
    with pytest.raises(HandoverError, match=reason):
        estate.read(data)


def test_what_this_release_could_not_read_again_is_not_handed_over():
    broken = dataclasses.replace(an_estate(), pool={"target": float("nan")})
    with pytest.raises(HandoverError, match="cannot be written"):
        estate.write(broken)
    with pytest.raises(HandoverError, match="cannot be read"):
        estate.write(dataclasses.replace(an_estate(), born="then"))
