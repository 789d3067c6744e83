"""HTTP on the arbiter's loop, for probes and people: one small request, one page, and the connection ends.

Rules: nothing here waits, and everything is bounded: connections, the head of a request, and the time of the whole. A
visitor that is one too many takes the place of the one that has been here for longest. One page is made in a turn of
the loop, however many ask: with many workers it takes milliseconds, and their supervision must not wait for a crowd.
Only GET and HEAD are answered, and a body is never read. Connections linger after the page (RFC 9112 section 9.6),
within their time.

Where the listener is bound to the loopback interface, a request has to name it so in Host: a page in somebody's browser
whose name was made to point here could read what is meant for this machine alone.
"""

from __future__ import annotations

import logging
import selectors
import socket
from collections import deque
from dataclasses import dataclass
from http import HTTPStatus
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final

import h11

from procmgr import __version__
from procmgr.arbiter.accepting import Accepting, share
from procmgr.sockets import TCP

if TYPE_CHECKING:
    from collections.abc import Callable

    from procmgr.arbiter.loop import Loop
    from procmgr.sockets import Listener

MAX_VISITORS: Final = 64
MAX_HEAD: Final = 16 * 1024
SECONDS: Final = 10.0
"""How long a connection may last."""

_READ: Final = 64 * 1024

log = logging.getLogger("procmgr.error")


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """What is answered to a path."""

    status: int = 200
    kind: str = "text/plain; charset=utf-8"
    text: str
    headers: tuple[tuple[str, str], ...] = ()


class Visitor:
    """One connection."""

    __slots__ = ("answered", "end", "http", "local", "sock", "waiting")

    def __init__(self, sock: socket.socket, *, end: float, local: bool) -> None:
        self.sock = sock
        self.end = end
        self.local = local
        self.http = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD)
        self.waiting = b""
        self.answered = False


class Visitors:
    """Serves `listener`; `page` gives the page of a path."""

    def __init__(
        self, listener: Listener, *, loop: Loop, now: Callable[[], float], page: Callable[[str], Page]
    ) -> None:
        self.listener = listener
        self._loop = loop
        self._now = now
        self._page = page
        self._visitors: dict[int, Visitor] = {}
        self._most = share(MAX_VISITORS, 16)
        self._asking: deque[tuple[Visitor, h11.Request]] = deque()
        self._local = isinstance(listener.address, TCP) and ip_address(listener.address.host).is_loopback
        self._accepting = Accepting(listener, loop=loop, now=now, admit=self._admit, what="an admin connection")

    def sweep(self, now: float) -> None:
        """Let go of connections whose time is over; to be called about once a second."""
        for visitor in list(self._visitors.values()):
            if now >= visitor.end:
                self._drop(visitor)

    def leave(self) -> None:
        """Let go of all, and accept no more."""
        self._accepting.end()
        for visitor in list(self._visitors.values()):
            self._drop(visitor)

    def close_in_child(self) -> None:
        """Close the descriptors in a forked child; the loop's epoll is the arbiter's and stays as it is."""
        self.listener.sock.close()
        for visitor in self._visitors.values():
            visitor.sock.close()

    def _admit(self, sock: socket.socket) -> None:
        if len(self._visitors) >= self._most:
            self._drop(min(self._visitors.values(), key=lambda one: one.end))
        visitor = Visitor(sock, end=self._now() + SECONDS, local=self._local)
        self._visitors[sock.fileno()] = visitor
        self._loop.watch(sock.fileno(), lambda events: self._ready(visitor, events))

    def _ready(self, visitor: Visitor, events: int) -> None:
        if events & selectors.EVENT_WRITE:
            self._flush(visitor)
        elif events & selectors.EVENT_READ:
            self._receive(visitor)

    def _receive(self, visitor: Visitor) -> None:
        try:
            data = visitor.sock.recv(_READ)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if visitor.answered:
            if not data:
                self._drop(visitor)
            return  # lingering: what it sends is thrown away
        try:
            visitor.http.receive_data(data)
            event = visitor.http.next_event()
        except h11.RemoteProtocolError as error:
            self._refuse(visitor, error)
            return
        if isinstance(event, h11.Request):
            self._line_up(visitor, event)
        elif event is not h11.NEED_DATA:
            self._drop(visitor)

    def _refuse(self, visitor: Visitor, error: h11.RemoteProtocolError) -> None:
        if visitor.http.our_state is h11.SEND_RESPONSE or visitor.http.our_state is h11.IDLE:
            self._send(visitor, Page(status=error.error_status_hint, text="this is no request\n"), head=False)
        else:
            self._drop(visitor)

    def _line_up(self, visitor: Visitor, request: h11.Request) -> None:
        self._loop.unwatch(visitor.sock.fileno())
        self._asking.append((visitor, request))
        if len(self._asking) == 1:
            self._loop.call_at(self._now(), self._answer_next)

    def _answer_next(self) -> None:
        while self._asking and self._asking[0][0].sock.fileno() < 0:  # dropped while it waited
            self._asking.popleft()
        if self._asking:
            self._answer(*self._asking[0])
            self._asking.popleft()
        if self._asking:
            self._loop.call_at(self._now(), self._answer_next)

    def _answer(self, visitor: Visitor, request: h11.Request) -> None:
        if request.method not in {b"GET", b"HEAD"}:
            page = Page(status=405, text="only GET and HEAD\n", headers=(("allow", "GET, HEAD"),))
        elif visitor.local and not _names_loopback(dict(request.headers).get(b"host", b"localhost")):
            page = Page(status=421, text="this is answered as localhost, 127.0.0.1 or [::1] only\n")
        else:
            try:
                page = self._page(request.target.decode().partition("?")[0])
            except Exception:
                log.exception("cannot make an admin page")
                page = Page(status=500, text="the log says why\n")
        self._send(visitor, page, head=request.method == b"HEAD")

    def _send(self, visitor: Visitor, page: Page, *, head: bool) -> None:
        body = page.text.encode("utf-8", "backslashreplace")
        headers = [
            ("content-type", page.kind),
            ("content-length", str(len(body))),
            ("cache-control", "no-store"),
            ("x-content-type-options", "nosniff"),
            ("server", f"procmgr/{__version__}"),
            ("connection", "close"),
            *page.headers,
        ]
        http = visitor.http
        visitor.answered = True
        reason = HTTPStatus(page.status).phrase
        visitor.waiting = http.send(h11.Response(status_code=page.status, reason=reason, headers=headers)) or b""
        if not head:
            visitor.waiting += http.send(h11.Data(data=body)) or b""
        self._flush(visitor)

    def _flush(self, visitor: Visitor) -> None:
        """Send what the visitor takes, then shut the sending side and read on until it ends too."""
        try:
            sent = visitor.sock.send(visitor.waiting, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._drop(visitor)
            return
        visitor.waiting = visitor.waiting[sent:]
        if not visitor.waiting:
            try:
                visitor.sock.shutdown(socket.SHUT_WR)
            except OSError:
                self._drop(visitor)
                return
        wanted = selectors.EVENT_WRITE if visitor.waiting else selectors.EVENT_READ
        self._loop.watch(visitor.sock.fileno(), lambda events: self._ready(visitor, events), wanted)

    def _drop(self, visitor: Visitor) -> None:
        fd = visitor.sock.fileno()
        del self._visitors[fd]
        self._loop.unwatch(fd)
        visitor.sock.close()


def _names_loopback(host: bytes) -> bool:
    name = host.decode("latin-1").lower()
    name = name[1:].partition("]")[0] if name.startswith("[") else name.partition(":")[0]
    try:
        return name == "localhost" or ip_address(name).is_loopback
    except ValueError:
        return False
