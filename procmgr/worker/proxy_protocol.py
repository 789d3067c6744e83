"""The PROXY protocol, versions 1 and 2 (haproxy.org, proxy-protocol.txt): who the client is, told before all else.

Of what version 2 tells beside the addresses, one thing counts: whether the client came to the proxy over TLS.

Rules. The header comes once, before TLS, and only from peers that are trusted; who is not, or sends none, or sends what
is none, is closed. Exactly the header is taken from the socket, since what follows belongs to whoever comes next: a TLS
handshake cannot be begun with bytes that somebody else has read. So the socket is read before it has a transport: bytes
that are surely of the header are taken, the rest of a line of version 1 is looked at first (MSG_PEEK, recv(2)) and
taken up to its end. What was looked at is always taken, lest a part of a header keep the loop awake.

`LOCAL` and `UNKNOWN`, a balancer's own health checks say, leave the connection its real addresses.
"""

from __future__ import annotations

import asyncio
import re
import socket
import struct
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TYPE_CHECKING, Final

from procmgr.worker.protocols.base import Connection, Told, address

if TYPE_CHECKING:
    import logging
    from collections.abc import Callable

    from procmgr.worker.acceptor import Opener
    from procmgr.worker.forwarded import Forwarding
    from procmgr.worker.protocols.base import Address

SIGNATURE: Final = b"\r\n\r\n\x00\r\nQUIT\n"
MAX_LINE: Final = 107
"""Bytes of a header of version 1 with its end (section 2.1)."""

MAX_BLOCK: Final = 4096
"""Bytes of addresses and further values in a header of version 2; real ones have some hundred."""

_SAFE: Final = 12  # of either version, and of the signature: no header is shorter
_LINE: Final = re.compile(rb"PROXY (TCP4|TCP6) ([0-9A-Fa-f.:]+) ([0-9A-Fa-f.:]+) ([0-9]{1,5}) ([0-9]{1,5})\r\n")
_UNKNOWN: Final = re.compile(rb"PROXY UNKNOWN(?: [^\r\n]*)?\r\n")
_HEADER: Final = struct.Struct("!12sBBH")
_INET: Final = struct.Struct("!4s4sHH")
_INET6: Final = struct.Struct("!16s16sHH")
_VALUE: Final = struct.Struct("!BH")
_LOCAL, _PROXY = 0x20, 0x21
_UNSPEC, _TCP4, _TCP6, _UNIX_STREAM = 0x00, 0x11, 0x21, 0x31
_NAMELESS: Final = {_UNSPEC: 0, _UNIX_STREAM: 216}  # the size of addresses that say nothing of use
_SSL: Final = 0x20  # the type of a value, section 2.2.6
_CLIENT_SSL: Final = 0x01
_COMPLAINTS: Final = 64


class ProxyError(OSError):
    """What a peer sent is no PROXY header, or nobody trusts it."""


def read_line(line: bytes) -> Told | None:
    """Return what a whole header of version 1 tells, None for UNKNOWN. Raises `ProxyError`."""
    if _UNKNOWN.fullmatch(line):
        return None
    match = _LINE.fullmatch(line)
    if match is None:
        raise ProxyError("malformed PROXY header")
    family, client, server, client_port, server_port = (part.decode() for part in match.groups())
    kind = IPv4Address if family == "TCP4" else IPv6Address
    try:
        addresses = [ip_address(client), ip_address(server)]
    except ValueError:
        raise ProxyError("malformed address in a PROXY header") from None
    ports = [int(client_port), int(server_port)]
    if not all(isinstance(each, kind) for each in addresses) or max(ports) > 0xFFFF:
        raise ProxyError("malformed address in a PROXY header")
    return Told(((str(addresses[0]), ports[0]), (str(addresses[1]), ports[1])))


def block_size(header: bytes) -> int:
    """Return how many bytes follow the 16 with which a header of version 2 begins. Raises `ProxyError`."""
    signature, command, _, size = _HEADER.unpack(header)
    if signature != SIGNATURE or command not in {_LOCAL, _PROXY}:
        raise ProxyError("malformed PROXY header")
    if size > MAX_BLOCK:
        raise ProxyError("a PROXY header that is too long")
    return int(size)


def read_block(header: bytes, block: bytes) -> Told | None:
    """Return what a header of version 2 tells, None for LOCAL. Raises `ProxyError`."""
    _, command, family, _ = _HEADER.unpack(header)
    if command == _LOCAL:
        return None
    if family in _NAMELESS:
        return Told(None, secure=_over_tls(block[_NAMELESS[family] :]))
    layout = {_TCP4: _INET, _TCP6: _INET6}.get(family)
    if layout is None or len(block) < layout.size:
        raise ProxyError("malformed address in a PROXY header")
    client, server, client_port, server_port = layout.unpack_from(block)
    addresses = (str(ip_address(client)), client_port), (str(ip_address(server)), server_port)
    return Told(addresses, secure=_over_tls(block[layout.size :]))


def _over_tls(values: bytes) -> bool:
    """Tell whether the values behind the addresses say that the client speaks TLS; cut short, they say nothing."""
    while len(values) > _VALUE.size:
        kind, size = _VALUE.unpack_from(values)
        value, values = values[_VALUE.size :][:size], values[_VALUE.size + size :]
        if kind == _SSL:
            return len(value) == size > 0 and bool(value[0] & _CLIENT_SSL)
    return False


class ProxyOpener:
    """Opens accepted connections once their PROXY header was read, with `opener` and the addresses it tells.

    `seconds` bounds the wait for the header; None does not.
    """

    def __init__(self, opener: Opener, *, trusted: Forwarding, seconds: float | None, log: logging.Logger) -> None:
        self._opener = opener
        self._trusted = trusted
        self._seconds = seconds
        self._log = log
        self._complained: set[str] = set()

    async def __call__(self, connection: socket.socket, factory: Callable[[], asyncio.BaseProtocol]) -> None:
        """Make a connection of what was accepted; raises `OSError`."""
        try:
            peer = address(connection.getpeername())
            told = await self._read(connection, peer)
        except BaseException:
            connection.close()
            raise
        await self._opener(connection, factory if told is None else lambda: _knowing(factory(), told))

    async def _read(self, connection: socket.socket, peer: Address | None) -> Told | None:
        try:
            if not self._trusted.trusts(peer):
                raise ProxyError("not trusted to tell who its clients are")
            async with asyncio.timeout(self._seconds):
                return await _read_header(connection)
        except TimeoutError:
            self._complain(peer, "no PROXY header in time")
            raise ProxyError("no PROXY header in time") from None
        except ProxyError as error:
            self._complain(peer, str(error))
            raise

    def _complain(self, peer: Address | None, what: str) -> None:
        """Log what is wrong with a peer; once as a warning, since anybody can have it said again and again."""
        who = "a Unix socket" if peer is None else peer[0]
        log = self._log.debug
        if who not in self._complained and len(self._complained) < _COMPLAINTS:
            self._complained.add(who)
            log = self._log.warning
        log("%s: closed: %s", who, what)


def _knowing(protocol: asyncio.BaseProtocol, told: Told) -> asyncio.BaseProtocol:
    assert isinstance(protocol, Connection)
    protocol.told = told
    return protocol


async def _read_header(connection: socket.socket) -> Told | None:
    """Take a header, and nothing behind it, from a non-blocking socket. Raises `OSError`."""
    begin = await _take(connection, _SAFE)
    if begin == SIGNATURE:
        header = begin + await _take(connection, _HEADER.size - _SAFE)
        return read_block(header, await _take(connection, block_size(header)))
    if not begin.startswith(b"PROXY "):
        raise ProxyError("no PROXY header")
    return read_line(begin + await _take_line(connection, MAX_LINE - _SAFE))


async def _take(connection: socket.socket, size: int) -> bytes:
    """Take exactly `size` bytes."""
    data = b""
    while len(data) < size:
        data += await _receive(connection, size - len(data))
    return data


async def _take_line(connection: socket.socket, most: int) -> bytes:
    """Take bytes up to the end of the line."""
    line = b""
    while not line.endswith(b"\r\n"):
        seen = await _receive(connection, most - len(line), socket.MSG_PEEK)
        end = (line + seen).find(b"\r\n")
        line += connection.recv(len(seen) if end < 0 else end + 2 - len(line))
        if len(line) >= most and not line.endswith(b"\r\n"):
            raise ProxyError("a PROXY header that is too long")
    return line


async def _receive(connection: socket.socket, size: int, flags: int = 0) -> bytes:
    """Wait for bytes and return at most `size` of them."""
    while True:
        try:
            data = connection.recv(size, flags)
        except BlockingIOError:
            await _readable(connection)
            continue
        if not data:
            raise ProxyError("closed before the end of the PROXY header")
        return data


async def _readable(connection: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready = loop.create_future()
    loop.add_reader(connection, _done, ready)
    try:
        await ready
    finally:
        loop.remove_reader(connection)


def _done(ready: asyncio.Future[None]) -> None:
    if not ready.done():  # the reader is called as long as there is something to read
        ready.set_result(None)
