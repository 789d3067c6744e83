"""What the command lines of the benches share: readers of options, the interpreters, an end that cleans up."""

from __future__ import annotations

import argparse
import signal
from typing import TYPE_CHECKING

from bench.environment import VERSIONS, BenchError, find_interpreter

if TYPE_CHECKING:
    from collections.abc import Callable

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def count(text: str) -> int:
    """Read a number of at least one."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 1")
    return int(text)


def some_of(known: tuple[str, ...]) -> Callable[[str], tuple[str, ...]]:
    """Make a reader of comma-separated names."""

    def read(text: str) -> tuple[str, ...]:
        given = text.split(",")
        for one in given:
            if one not in known:
                raise argparse.ArgumentTypeError(f"{one!r} is none of {', '.join(known)}")
        return tuple(one for one in known if one in given)

    return read


def interpreters(wanted: str | None) -> list[str]:
    """Find the interpreters asked for; of the default ones, those that this machine has."""
    found = {one: find_interpreter(one) for one in (wanted.split(",") if wanted else VERSIONS)}
    for one in (one for one, path in found.items() if path is None):
        if wanted:
            raise BenchError(f"--python {one}: no such interpreter; give a version such as 3.13, or a path")
        print(f"no Python {one} on this machine: not measured")
    return [path for path in found.values() if path is not None]


def interrupt_on_stops() -> None:
    """Have each signal that asks for an end leave through every finally, once: a second must not cut it short."""
    for number in STOPS:
        signal.signal(number, _interrupt)


def _interrupt(_signal: int, _frame: object) -> None:
    for number in STOPS:
        signal.signal(number, lambda *_: None)
    raise KeyboardInterrupt
