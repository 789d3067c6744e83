"""The settings of what the arbiter tells those who watch it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from procmgr.config.declare import Applies, setting
from procmgr.config.types import address, many
from procmgr.sockets import Inherited, SystemdName, parse_address

if TYPE_CHECKING:
    from procmgr.config.kind import Kind

_RESTART: Final = Applies.RESTART


def _own_address() -> Kind[str]:
    """Return the kind of an address that procmgr binds itself."""
    kind = address()

    def read(text: str) -> str:
        if isinstance(parse_address(kind.text(text)), (Inherited, SystemdName)):
            raise ValueError(  # noqa: TRY004 - it is the text's value that is wrong
                "expected HOST:PORT, [V6]:PORT or unix:/PATH, which procmgr binds itself"
            )
        return text

    return replace(kind, text=read)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdminSettings:
    """Observation."""

    admin_bind: tuple[str, ...] = setting(
        (),
        many(_own_address(), separator=None),
        _RESTART,
        "Answer /livez, /readyz, /status.json, /metrics and a page for people here; for nobody but those you trust.",
        default="nowhere",
    )
    agent_bind: tuple[str, ...] = setting(
        (),
        many(_own_address(), separator=None),
        _RESTART,
        "Answer HAProxy's agent-check here.",
        default="nowhere",
    )
