"""A person at a terminal who debugs the only worker: its loop stands still for as long as he thinks.

So the row is marked *debugging*, and from then on the arbiter takes this worker for alive, whatever its beat. For good,
since a debugger that steps through a coroutine lets the loop turn between two of its prompts.

A hook of ours in place of `sys.breakpointhook` would be the frame that the debugger stops in; an audit hook leaves no
frame, and hears of `pdb.set_trace()` as well (PEP 578; the audit events table of the Python library reference).
"""

from __future__ import annotations

import logging
import os
import sys
from typing import TYPE_CHECKING, Final

from procmgr.scoreboard import DEBUGGING

if TYPE_CHECKING:
    from procmgr.scoreboard import Row

_BEGINS: Final = frozenset({"builtins.breakpoint", "pdb.Pdb"})

log = logging.getLogger("procmgr.error")


def watch_for_debugger(row: Row, *, workers: int) -> None:
    """Mark `row` once a debugger is entered, if this is the only worker and its standard input is a terminal."""
    if workers != 1 or not os.isatty(0):
        return

    def hear(event: str, _arguments: object) -> None:
        if event in _BEGINS and not row[DEBUGGING]:
            row[DEBUGGING] = 1
            log.warning("a debugger was entered: this worker is not taken for blocked any more")

    sys.addaudithook(hear)
