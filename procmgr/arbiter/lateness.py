"""What a late loop is busy with: the stacks of its worker and its requests in flight, in one log event.

The worker cannot say it: its stacks are dumped by a signal whose C-level handler works with the loop blocked and the
GIL held. They come a moment later, and the requests are those of the moment the loop was found late.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from procmgr.arbiter.report import in_flight, name_of

if TYPE_CHECKING:
    from procmgr.arbiter.core.actions import LoopLate
    from procmgr.arbiter.host import LinuxHost
    from procmgr.arbiter.stacks import StackReader, Stacks

log = logging.getLogger("procmgr.error")


class LateLoops:
    """Says of a late loop what it does."""

    def __init__(self, *, host: LinuxHost, stacks: StackReader) -> None:
        self._host = host
        self._stacks = stacks

    def look(self, late: LoopLate) -> None:
        """Have the stacks dumped, and log them when they are there."""
        member = self._host.members[late.worker_id]
        line = f"{name_of(late.worker_id, member)}: its event loop is late by {late.seconds:.1f} s"
        line += in_flight(member, self._host.now())
        self._stacks.ask(late.worker_id, lambda stacks: _say(line, stacks))


def _say(line: str, stacks: Stacks) -> None:
    if stacks.reason:
        log.warning("%s; %s", line, stacks.reason)
    else:
        log.warning("%s; its stacks:\n%s", line, stacks.text.rstrip())
