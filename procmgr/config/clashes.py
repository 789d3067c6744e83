"""Settings that are right each for itself and cannot hold together: who is to listen where, and whom to believe."""

from __future__ import annotations

import os
from ipaddress import ip_address
from typing import TYPE_CHECKING

from procmgr.config.sources import DEFAULT
from procmgr.control import OFF
from procmgr.sockets import TCP, Abstract, Unix, parse_address

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from ipaddress import IPv4Address, IPv6Address
    from pathlib import Path

    from procmgr.config.settings import Settings
    from procmgr.config.sources import Given, Origin
    from procmgr.sockets import Address


def check(settings: Settings, given: Mapping[str, Given], cwd: Path) -> None:
    """Refuse what clashes; raises `UsageError` or `ConfigError` by where the later of the two was given."""
    _check_addresses(settings, given, cwd)
    if settings.proxy.proxy_protocol and not settings.proxy.forwarded_allow_ips:
        origin = given["proxy_protocol"].origin
        nobody = f"forwarded_allow_ips from {given['forwarded_allow_ips'].origin} trusts nobody"
        raise origin.refuse(
            f"proxy_protocol from {origin}: {nobody}, so every connection would be closed; expected your proxies there"
        )


def _check_addresses(settings: Settings, given: Mapping[str, Given], cwd: Path) -> None:
    """Refuse an address that is named twice; what the name of a host means is seen only when it is bound."""
    seen: list[tuple[str, Address, Origin]] = []
    for name, address in _named(settings):
        origin = given[name].origin if name in given else DEFAULT
        for other, known, where in seen:
            if _same(address, known, cwd):
                raise (origin if origin is not DEFAULT else where).refuse(
                    f"{name}: {str(address)!r} from {origin}: "
                    f"{other} from {where} has {str(known)!r} already; expected an address of its own for each"
                )
        seen.append((name, address, origin))


def _named(settings: Settings) -> Iterator[tuple[str, Address]]:
    """Yield every address that is to be bound, and the setting that asks for it."""
    bind, control = settings.bind, settings.process.control
    single = "uds" if bind.uds is not None else "host" if bind.host is not None else "port"
    for address in bind.addresses:
        yield "bind" if bind.bind else single, address
    for name, texts in (("admin_bind", settings.admin.admin_bind), ("agent_bind", settings.admin.agent_bind)):
        for text in texts:
            yield name, parse_address(text)
    if control not in {None, OFF}:
        yield "control", Unix(str(control))


def _same(one: Address, other: Address, cwd: Path) -> bool:
    """Tell whether only one of two addresses can be bound."""
    match one, other:
        case TCP(port=port), TCP(port=known) if port == known != 0:
            return _overlap(one.host, other.host)
        case Unix(path=path), Unix(path=known_path):
            return os.path.normpath(cwd / path) == os.path.normpath(cwd / known_path)
        case Abstract(), Abstract():
            return one == other
        case _:
            return False


def _overlap(one: str, other: str) -> bool:
    """Tell whether two hosts share an interface: the same one, or one of them with all of the other's family."""
    left, right = _ip(one), _ip(other)
    if left is None or right is None:
        return one == other
    unspecified = left.is_unspecified or right.is_unspecified
    return left == right or (left.version == right.version and unspecified)


def _ip(host: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(host or "0.0.0.0")  # noqa: S104 - compared, not bound
    except ValueError:
        return None  # a name
