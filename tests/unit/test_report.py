"""What the log says of how a reload ended: the truth about who serves what."""

from __future__ import annotations

import pytest

from procmgr.arbiter.core.actions import ReloadEnded, ReloadOutcome
from procmgr.arbiter.report import partial


@pytest.mark.parametrize(
    ("replaced", "desired", "kept", "said"),
    [
        (0, 1, 0, "failed: generation 3 does not serve, and no older one either"),
        (1, 4, 3, "partial: 1 of 4 workers is of generation 3, 3 keep the old code"),
        (2, 3, 1, "partial: 2 of 3 workers are of generation 3, 1 keeps the old code"),
        (2, 3, 0, "partial: 2 of 3 workers are of generation 3, no old one is left"),
    ],
)
def test_what_is_said_of_a_partial_reload_counts_who_serves(replaced, desired, kept, said):
    ended = ReloadEnded(3, ReloadOutcome.PARTIAL, replaced, desired, None, kept)
    assert partial(ended) == said
