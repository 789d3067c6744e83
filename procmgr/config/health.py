"""The settings that say when a worker is no longer well: how late its loop, how long its life, how big its memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, get_args

from procmgr.config.declare import Applies, setting
from procmgr.config.types import choice, seconds, size, switch

MemoryMeasure = Literal["auto", "rss", "pss"]

_YEAR: Final = 366 * 86_400
_LIVE: Final = Applies.LIVE


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthSettings:
    """Health of a worker."""

    slow_loop: float = setting(
        1.0,
        seconds(_YEAR),
        _LIVE,
        "Log the stacks of a worker whose event loop is late by so much, once each time; 0 never does.",
    )
    core_on_hang: bool = setting(
        False,
        switch(),
        Applies.ROLL,
        "Let a worker that is killed for its timeout leave a core file first, within 10 seconds.",
    )
    max_lifetime: float = setting(0.0, seconds(_YEAR), _LIVE, "Replace a worker that served for so long; 0 never does.")
    max_lifetime_jitter: float = setting(
        0.0, seconds(_YEAR), _LIVE, "Add up to so much to max_lifetime, at random for each worker."
    )
    max_memory: int = setting(0, size(), _LIVE, "Replace a worker that uses more memory; 0 never does.")
    max_memory_hard: int = setting(
        0, size(), _LIVE, "Start the replacement of a worker that uses more memory and kill it; 0 never does."
    )
    memory_measure: MemoryMeasure = setting(
        "auto",
        choice(get_args(MemoryMeasure)),
        _LIVE,
        "What counts as a worker's memory: rss, or pss, which divides shared pages; auto is pss with preload.",
    )
