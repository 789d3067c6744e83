"""The numbers by which the pool decides. All times are seconds; `arbiter.main` derives them from the settings."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """How long a spawn waits after young deaths: `first` · 2ⁿ up to `cap`, each shortened at random by up to `jitter` of it.

    A worker that stays ready for `stable_after` seconds ends the row of failures.
    """

    first: float = 0.5
    cap: float = 30.0
    jitter: float = 0.25
    stable_after: float = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """One immutable set of bounds for the pool."""

    workers: int
    surge: int = 1
    boot_timeout: float = 60.0
    beat_timeout: float = 30.0
    graceful_timeout: float = 30.0
    quick_timeout: float = 1.0
    kill_grace: float = 5.0
    dump_grace: float = 0.5
    boot_attempts: int = 3
    backoff: Backoff = Backoff()
