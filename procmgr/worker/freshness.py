"""Whether a worker imported code that is newer than its generation: half of a deploy that no reload has announced.

A crash or a recycle between a deploy and its reload imports the new files while the other workers run the old ones.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet


def changed_since(began: float, *, but: AbstractSet[str]) -> str | None:
    """Return the file of an imported module that changed after `began` (time.time()), the latest; None if none did.

    Modules named in `but` do not count. By the change of the inode, which unlike that of the content cannot be set back
    (inode(7)): a deploy often restores the times of its files.
    """
    newest, found = began, None
    for name in sys.modules.keys() - but:
        path = getattr(sys.modules[name], "__file__", None)
        if isinstance(path, str):
            try:
                changed = os.stat(path).st_ctime  # noqa: PTH116 - thousands of them while a client may wait
            except OSError:  # in an archive, or removed meanwhile
                continue
            if changed > newest:
                newest, found = changed, path
    return found
