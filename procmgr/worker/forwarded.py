"""What proxies say of the client: who is believed, and which of their fields (RFC 7239, and the older X-Forwarded-*).

Rules. A field counts only on a connection whose peer is trusted, and only if it was named: a proxy passes on what it
does not set itself, which is what the client forged. Each proxy adds its own peer at the right of `for`, so the list is
read from there: the first address that is not trusted itself is the client's, all to the left of it is hearsay. What
cannot be understood is not believed, and the connection's own address stays. Nothing is removed from the headers.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING, Final

from procmgr.worker.protocols.framing import FORWARDING_FIELDS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from ipaddress import IPv4Address, IPv6Address

    from procmgr.worker.protocols.base import Address
    from procmgr.worker.protocols.context import Scope
    from procmgr.worker.protocols.framing import Headers

EVERYBODY: Final = "*"
UNIX: Final = "unix"
"""The word by which peers on Unix sockets are trusted, which have no address."""

HOPS: Final = 64
"""As many nodes are read, from the right: thousands in one field would cost as much as hundreds of requests."""

_FOR, _PROTO, _HOST, _PORT, _PREFIX, _FORWARDED = FORWARDING_FIELDS
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_SECURE: Final = {"http": "ws", "https": "wss"}
_SCHEMES: Final = {"http": "http", "https": "https", "ws": "http", "wss": "https"}
_NODE: Final = re.compile(r"\[([0-9A-Fa-f:.]+)\](?::([0-9]{1,5}))?|([0-9.]+):([0-9]{1,5})")
_ZONE: Final = "%"
_HOST_PORT: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~%-]+)(?::([0-9]{1,5}))?")
_PATH: Final = re.compile(r"/[!-~]*")
_TOKEN: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]"  # noqa: S105 - RFC 9110's token, no secret
_PAIR: Final = re.compile(rf'[ \t]*({_TOKEN}+)=("(?:[^"\\]|\\.)*"|{_TOKEN}+)[ \t]*([;,]|\Z)')
_ESCAPED: Final = re.compile(r"\\(.)")
_MEMO: Final = 1024
_MEMO_BYTES: Final = 256


@dataclass(frozen=True, slots=True)
class Claim:
    """What is believed of a request's way here; None or "" where nothing was said."""

    client: Address | None = None
    scheme: str = ""
    host: str = ""
    port: int | None = None
    prefix: str = ""


class Forwarding:
    """Reads the fields of trusted proxies, the same for all connections of a worker."""

    __slots__ = ("_everybody", "_fields", "_known", "_networks", "_peers", "_unix")

    def __init__(self, *, trusted: Iterable[str] = (), fields: Iterable[str] = ()) -> None:
        """Take addresses, networks and the words above, and which of `FORWARDING_FIELDS` count. Raises `ValueError`."""
        words = set(trusted)
        self._everybody = EVERYBODY in words
        self._unix = self._everybody or UNIX in words
        self._networks = [ip_network(word) for word in sorted(words - {EVERYBODY, UNIX})]
        self._fields = frozenset(name.lower().encode() for name in fields)
        self._peers: dict[str, bool] = {}
        self._known: dict[tuple[tuple[bytes, bytes], ...], Claim] = {}

    def trusts(self, client: Address | None) -> bool:
        """Tell whether a connection's peer is believed; one on a Unix socket has no port."""
        if client is None or client[1] is None:
            return self._unix
        if self._everybody or not self._networks:
            return self._everybody
        peer = client[0]
        trusted = self._peers.get(peer)
        if trusted is None:
            if len(self._peers) >= _MEMO:
                self._peers.clear()
            trusted = self._peers[peer] = self._trusted(_address(peer))
        return trusted

    def apply(self, scope: Scope, headers: Headers) -> Address | None:
        """Write into `scope` what a trusted peer says of the client; return the client as it is now known."""
        said = tuple(pair for pair in headers if pair[0] in self._fields)
        claim = self._known.get(said)
        if claim is None:
            claim = self._judge(said)
        if claim.client is not None:
            scope["client"] = claim.client
        if claim.scheme:
            scope["scheme"] = claim.scheme if scope["type"] == "http" else _SECURE[claim.scheme]
        if claim.host or claim.port is not None:
            _set_server(scope, claim)
        if claim.prefix:
            scope["root_path"] = claim.prefix + scope["root_path"]
            scope["path"] = claim.prefix + scope["path"]
            scope["raw_path"] = claim.prefix.encode() + scope["raw_path"]
        client: Address | None = scope["client"]
        return client

    def _judge(self, said: tuple[tuple[bytes, bytes], ...]) -> Claim:
        values: dict[bytes, str] = {}
        for name, value in said:  # RFC 9110 section 5.3: lines of one name are one list
            text = value.decode("latin-1")
            values[name] = f"{values[name]},{text}" if name in values else text
        claim = self._read_forwarded(values[_FORWARDED]) if _FORWARDED in values else self._read_x(values)
        if sum(len(value) for _, value in said) <= _MEMO_BYTES:
            if len(self._known) >= _MEMO:
                self._known.clear()
            self._known[said] = claim
        return claim

    def _read_x(self, values: dict[bytes, str]) -> Claim:
        nodes = _list(values.get(_FOR, ""))
        client, index = self._client(nodes)
        schemes = _list(values.get(_PROTO, ""))
        # As many as there are proxies: each said its own. Otherwise the nearest one's word is the last.
        scheme = schemes[index if len(schemes) == len(nodes) else -1] if schemes else ""
        host, port = _host_port((_list(values.get(_HOST, "")) or [""])[-1])
        said_port = (_list(values.get(_PORT, "")) or [""])[-1]
        prefix = (_list(values.get(_PREFIX, "")) or [""])[-1].rstrip("/")
        return Claim(
            client,
            _SCHEMES.get(scheme.lower(), ""),
            host,
            _port(said_port) if said_port else port,
            prefix if _PATH.fullmatch(prefix) else "",
        )

    def _read_forwarded(self, text: str) -> Claim:
        elements = _elements(text)
        client, index = self._client([element.get("for", "") for element in elements])
        if not elements:
            return Claim()
        chosen = elements[index]
        host, port = _host_port(chosen.get("host", ""))
        return Claim(client, _SCHEMES.get(chosen.get("proto", "").lower(), ""), host, port)

    def _client(self, nodes: Sequence[str]) -> tuple[Address | None, int]:
        """Return the right-most node that is not trusted, or the left-most of `HOPS`, and where it is."""
        last = max(0, len(nodes) - HOPS)
        for index in range(len(nodes) - 1, last - 1, -1):
            found = _node(nodes[index])
            if found is None:
                return None, index
            if index == last or not (self._everybody or self._trusted(found[0])):
                return (str(found[0]), found[1]), index
        return None, -1

    def _trusted(self, address: IPv4Address | IPv6Address | None) -> bool:
        return address is not None and any(address in network for network in self._networks)


def _address(text: str) -> IPv4Address | IPv6Address | None:
    """Return an address; one of IPv4 that came through IPv6 (::ffff:a.b.c.d) is what it is."""
    try:
        address = ip_address(text)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def _node(text: str) -> tuple[IPv4Address | IPv6Address, int] | None:
    """Read an address with or without port; 0 stands for an unknown port. Obfuscated and unknown ones are None.

    So are those with a zone (RFC 4007 section 11), which has a meaning on one machine only and may be any text.
    """
    if _ZONE in text:
        return None
    match = _NODE.fullmatch(text)
    address = _address(text if match is None else match[1] or match[3])
    if address is None:
        return None
    return address, (_port((match and (match[2] or match[4])) or "0") or 0)


def _port(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 5 and int(text) < 1 << 16 else None


def _host_port(text: str) -> tuple[str, int | None]:
    match = _HOST_PORT.fullmatch(text)
    if match is None:
        return "", None
    return text, _port(match[2] or "")


def _set_server(scope: Scope, claim: Claim) -> None:
    name = claim.host
    if name:
        host = name.encode()
        scope["headers"] = [(b"host", host), *(pair for pair in scope["headers"] if pair[0] != b"host")]
        match = _HOST_PORT.fullmatch(name)
        assert match is not None  # it was checked when it was read
        name = match[1].strip("[]")
    server = scope["server"]
    port = _DEFAULT_PORTS[_SCHEMES[scope["scheme"]]] if claim.port is None else claim.port
    scope["server"] = (name or (server[0] if server else ""), port)


def _list(text: str) -> list[str]:
    return [item.strip(" \t") for item in text.split(",")] if text else []


def _elements(text: str) -> list[dict[str, str]]:
    """Read the elements of a Forwarded field (RFC 7239 section 4); none if it is malformed."""
    elements: list[dict[str, str]] = [{}]
    position = 0
    while position < len(text):
        match = _PAIR.match(text, position)
        if match is None or match[1].lower() in elements[-1]:
            return []
        value = match[2]
        elements[-1][match[1].lower()] = _ESCAPED.sub(r"\1", value[1:-1]) if value[0] == '"' else value
        position = match.end()
        if match[3] == ",":
            elements.append({})
    return elements if elements[-1] else []
