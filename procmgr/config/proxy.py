"""The settings that say which proxies are believed, and what."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_network
from typing import TYPE_CHECKING, Final

from procmgr.config.declare import Applies, setting
from procmgr.config.kind import Kind, quoted, string
from procmgr.config.types import switch

if TYPE_CHECKING:
    from collections.abc import Callable

X_FORWARDED: Final = tuple(f"x-forwarded-{what}" for what in ("for", "proto", "host", "port", "prefix"))
FORWARDED: Final = "forwarded"
_WORDS: Final = ("*", "unix")


def _peers(words: tuple[str, ...]) -> tuple[str, ...]:
    for word in words:
        if word not in _WORDS:
            try:
                ip_network(word)
            except ValueError:
                raise ValueError(
                    f"{word!r} is no address or network; expected them as in 127.0.0.1,10.0.0.0/8"
                ) from None
    return words


def _fields(words: tuple[str, ...]) -> tuple[str, ...]:
    words = tuple(word.lower() for word in words)
    if unknown := [word for word in words if word not in (*X_FORWARDED, FORWARDED)]:
        raise ValueError(f"{unknown[0]!r} is none of {', '.join(X_FORWARDED)} and {FORWARDED}")
    if FORWARDED in words and len(words) > 1:  # a proxy that sets the one passes on the other, as its client forged it
        raise ValueError(f"{FORWARDED} and the x-forwarded fields exclude each other; expected those your proxy sets")
    return words


def _commas(
    check: Callable[[tuple[str, ...]], tuple[str, ...]], *, metavar: str, wanted: str, example: str
) -> Kind[tuple[str, ...]]:
    """Return the kind of words in one text, parted by commas; in TOML a list of them too."""

    def read(text: str) -> tuple[str, ...]:
        return check(tuple(word.strip() for word in text.split(",") if word.strip()))

    def native(value: object) -> tuple[str, ...]:
        return check(tuple(map(string, value))) if isinstance(value, (list, tuple)) else read(string(value))

    return Kind(
        metavar=metavar,
        wanted=wanted,
        text=read,
        native=native,
        toml=lambda words: quoted(",".join(words)),
        schema={"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]},
        example=example,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxySettings:
    """Proxies."""

    proxy_headers: bool = setting(
        True,
        switch(),
        Applies.ROLL,
        "Believe the client's address and scheme that trusted proxies tell.",
        uvicorn="proxy_headers",
    )
    forwarded_allow_ips: tuple[str, ...] = setting(
        ("127.0.0.1", "::1"),
        _commas(
            _peers, metavar="PEERS", wanted="addresses and networks, unix, or *", example="10.0.0.0/8,2001:db8::1,unix"
        ),
        Applies.ROLL,
        "Trust these proxies: addresses and networks parted by commas, unix for all on Unix sockets, * for everybody.",
        variables=("FORWARDED_ALLOW_IPS",),
        uvicorn="forwarded_allow_ips",
        gunicorn="forwarded_allow_ips",
    )
    proxy_protocol: bool = setting(
        False,
        switch(),
        Applies.ROLL,
        "Every connection begins with a PROXY header, version 1 or 2, of a trusted proxy; others are closed.",
        gunicorn="proxy_protocol",
    )
    forwarded_headers: tuple[str, ...] = setting(
        ("x-forwarded-for", "x-forwarded-proto"),
        _commas(
            _fields,
            metavar="FIELDS",
            wanted=f"any of {', '.join(X_FORWARDED)}, or {FORWARDED}",
            example="x-forwarded-for,x-forwarded-proto,x-forwarded-host",
        ),
        Applies.ROLL,
        "The fields that the proxies set: x-forwarded-for, -proto, -host, -port, -prefix, or forwarded (RFC 7239).",
    )
