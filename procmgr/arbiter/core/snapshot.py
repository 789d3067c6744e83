"""The pool as plain data and back, for the arbiter that follows this one in the same process.

Everything that the pool remembers is in its `State`, so that is what is written: whatever it was doing goes on. Times
are absolute and monotonic, and stay true since the clock is the machine's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from procmgr.arbiter.core import actions, events, model, pacing, policy
from procmgr.plain import dump, dump_fields, load, load_fields

_NOT_KEPT: Final = frozenset({"random", "out"})
_WAKE: Final = "wake"
# What the annotations refer to, which are never evaluated otherwise.
_NAMES: Final = {
    **vars(actions),
    **vars(events),
    **vars(pacing),
    **vars(policy),
    **vars(model),
    "Callable": Callable,
}


def write(state: model.State, wake: float | None) -> dict[str, Any]:
    """Return what `read` needs, as data for `json.dumps`; `wake` is the pool's deadline."""
    return {_WAKE: dump(wake), **dump_fields(state, but=_NOT_KEPT)}


def read(data: dict[str, Any], random: Callable[[], float]) -> tuple[model.State, float | None]:
    """Return the state and the deadline; raises `plain.PlainError`."""
    rest = {name: each for name, each in data.items() if name != _WAKE}
    known = load_fields(model.State, rest, names=_NAMES, but=_NOT_KEPT)
    wake = None if data.get(_WAKE) is None else load(float, data[_WAKE])
    return model.State(random=random, **known), wake
