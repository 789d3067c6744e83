"""The files that Python stacks are dumped to: what faulthandler wrote there, without the frames of the fork.

A worker and a zygote are forks that never return into their parent's frames, so those are still below their own: of an
arbiter's copy, and of a zygote's copy in between. What runs begins with `boot.until_end`; the main thread, which it
runs in, comes last in a dump.
"""

from __future__ import annotations

import os
import re
from typing import Final

_MAX_BYTES: Final = 32 * 1024
_FORK: Final = re.compile(r'(?s)(\n  File "[^"\n]*worker/boot\.py", line \d+ in until_end)\n.*\Z')


def read(fd: int) -> str:
    """Return the stacks behind `fd`, cut to 32 KiB; empty if nothing was dumped."""
    return own_frames(os.pread(fd, _MAX_BYTES, 0).decode("utf-8", "replace"))


def own_frames(dump: str) -> str:
    """Return a dump without the frames below the process's entry."""
    return _FORK.sub(r"\1\n", dump)
