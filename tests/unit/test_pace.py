"""Bytes that move too slowly are found, and only while somebody waits for them."""

from __future__ import annotations

from itertools import pairwise

import pytest

from procmgr.worker.protocols.pace import Pace

RATE = 240


def looks(*seen, rate=RATE):
    """Return what each look says; a look is (now, total, waiting), the first begins at 0 with 0 bytes."""
    pace = Pace(0.0, 0)
    return [pace.too_slow(now, total, waiting=waiting, rate=rate) for now, total, waiting in seen]


def test_a_standstill_is_found_after_the_window():
    assert looks((5, 0, True), (10, 0, True)) == [False, True]


def test_the_rate_itself_is_fast_enough_and_a_byte_less_is_not():
    assert looks((5, 0, True), (10, 2400, True)) == [False, False]
    assert looks((5, 0, True), (10, 2399, True)) == [False, True]


def test_time_in_which_nobody_waits_does_not_count():
    assert looks((5, 0, True), (500, 0, False), (504, 0, True), (505, 0, True)) == [False, False, False, True]


def test_a_fast_beginning_excuses_no_standstill():
    assert looks((5, 1 << 30, True), (10, 1 << 30, True), (15, 1 << 30, True), (20, 1 << 30, True)) == [
        *(False, False, False),
        True,
    ]


@pytest.mark.parametrize("step", [1, 2, 5, 20])
def test_however_often_one_looks_a_trickle_is_found_within_two_windows_and_a_steady_stream_never(step):
    times = range(step, 200, step)
    trickle = looks(*((now, now * (RATE - 1), True) for now in times))
    found = [now for now, slow in zip(times, trickle, strict=True) if slow]
    assert found
    assert all(later - earlier <= 20 for earlier, later in pairwise([0, *found]))
    assert not any(looks(*((now, now * RATE, True) for now in times)))
