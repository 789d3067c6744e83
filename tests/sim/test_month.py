"""Simulated days in production, the laws checked at every step. `make month` runs thirty of them."""

from __future__ import annotations

import pytest

from procmgr.arbiter.core.actions import ReloadOutcome
from sim.month import INCIDENTS, Month


@pytest.mark.parametrize("seed", range(1, 6))
def test_in_a_simulated_day_of_trouble_every_law_holds_and_the_pool_recovers_each_time(seed):
    """Crashes, hangs, stops, bad code, jumps, upgrades; once all is mended it is as desired within its bound."""
    month = Month(seed=seed).run(days=1)
    assert set(month.incidents) == {kind.__name__ for kind in INCIDENTS}
    assert month.outcomes.keys() >= {ReloadOutcome.DONE.value, ReloadOutcome.ROLLED_BACK.value}
    assert month.deaths["lost"] > 50
    assert len(month.recoveries) > 20
