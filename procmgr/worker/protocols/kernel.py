"""What the kernel is asked of a connection, past the transport."""

from __future__ import annotations

import fcntl
import select
import socket
import sys
import termios
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio


def without_nagle(transport: asyncio.BaseTransport) -> None:
    """Send what is written at once (tcp(7))."""
    sock = transport.get_extra_info("socket")
    if sock is not None and sock.family != socket.AF_UNIX:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def polled(transport: asyncio.Transport, events: int) -> int:
    """Return which of `events` the socket has, and errors (poll(2)); POLLNVAL if it is closed."""
    sock = transport.get_extra_info("socket")
    if sock is None or sock.fileno() < 0:
        return select.POLLNVAL
    poller = select.poll()
    poller.register(sock.fileno(), events)
    return sum(each for _, each in poller.poll(0))


def unacknowledged(transport: asyncio.BaseTransport) -> int:
    """Return how many bytes lie in the socket's send queue (SIOCOUTQ, tcp(7) and unix(7)).

    The kernel says that it takes more only once a third of a queue of megabytes is free: in between a client that
    takes tens of kilobytes a second seems to take nothing.
    """
    sock = transport.get_extra_info("socket")
    if sock is None or sock.fileno() < 0:
        return 0
    return int.from_bytes(fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)), sys.byteorder)
