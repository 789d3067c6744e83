"""The control socket: who may connect, how much a client may cost, and lines in and out. What they mean is not its job.

Rules: nothing here waits. A client that does not read, that sends nonsense or nothing, or that is one too many costs a
bounded amount and is let go; the others never notice, and nobody is told to come again later. Whoever may send signals
to the arbiter may connect: root, and the arbiter's own user, by SO_PEERCRED (unix(7)), whatever the permissions of the
file have become. The user that workers run as may not.

A request is handled when the one before it on its connection has ended, one a turn for each client. An operation that
takes time keeps its `Client` and sends events on it; that its client left cancels nothing.
"""

from __future__ import annotations

import logging
import os
import selectors
import socket
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Final

from procmgr import control, sockets
from procmgr.arbiter.accepting import Accepting, share
from procmgr.control import RequestError
from procmgr.errors import AddressInUseError, BindError, ExitCode, ProcmgrError

if TYPE_CHECKING:
    from collections.abc import Callable

    from procmgr.arbiter.loop import Loop
    from procmgr.control import Request
    from procmgr.sockets import Listener, ListenerEstate

MAX_CLIENTS: Final = 128
MAX_OUTPUT: Final = 1024 * 1024
"""Bytes that wait for a client to read them."""

IDLE_SECONDS: Final = 30.0
"""How long a client may say nothing, or not read what waits for it."""

_BACKLOG: Final = 128
_CREDENTIALS: Final = struct.Struct("=iII")  # struct ucred: pid, uid, gid (unix(7))
_SHOWN_REFUSALS: Final = 64

log = logging.getLogger("procmgr.error")


def open_socket(path: Path) -> Listener:
    """Bind the control socket, mode 0600; its directory is made, mode 0700, if it is not there.

    A stale socket is replaced. Raises `ProcmgrError` when a live instance has it or when it cannot be made.
    """
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise BindError(f"cannot make the directory {path.parent}: {error.strerror}") from error
    return sockets.bind(sockets.Unix(str(path), mode=0o600), backlog=_BACKLOG)


def try_open(setting: str | None, default: Path | None) -> Listener | None:
    """Return the socket that the setting `control` asks for; None, and a line that says why, if there is none.

    Whatever is wrong with it, the service itself is not kept from starting.
    """
    if setting == control.OFF:
        return None
    path = default if setting is None else Path(setting)
    if path is None:
        log.info("no control socket: neither RUNTIME_DIRECTORY nor XDG_RUNTIME_DIR is set; --control PATH gives one")
        return None
    try:
        return open_socket(path)
    except ProcmgrError as error:
        # Several of one name, as one program that a process manager starts four times, are no mistake.
        shared = setting is None and isinstance(error, AddressInUseError)
        log.log(
            logging.INFO if shared else logging.WARNING,
            "no control socket, procmgrctl will not find this instance: %s",
            error,
        )
        return None


class Client:
    """One connection: the line it is sending, what it has not read yet, and the request at hand."""

    def __init__(self, sock: socket.socket, server: Control) -> None:
        self.sock = sock
        self.received = bytearray()
        self.waiting = bytearray()
        self.busy = False
        self.eof = False
        self.gone = False
        self.last = 0.0
        self._server = server

    def event(self, name: str, **fields: object) -> None:
        """Send an event that is not the last."""
        self._server.send(self, control.encode({"event": name, **fields}))

    def attempt(self, step: Callable[[], object]) -> bool:
        """Take a step of answering the request at hand; what goes wrong ends the request, never the arbiter.

        Returns whether it went well.
        """
        try:
            step()
        except RequestError as error:
            self.end(ExitCode.USAGE, str(error))
        except ProcmgrError as error:
            self.end(error.exit_code, str(error))
        except Exception:
            log.exception("cannot answer a control request")
            self.end(ExitCode.CRASH, "procmgr failed to answer this; its log has the traceback")
        else:
            return True
        return False

    def end(self, exit_code: int, text: str = "", **fields: object) -> None:
        """Send the last event of the request at hand; its client is to exit with `exit_code`."""
        said = {"text": text} if text else {}
        self.busy = False
        self._server.send(self, control.encode({"event": control.END, "exit": int(exit_code), **said, **fields}))
        self._server.go_on(self)


class Control:
    """Serves `listener` on the arbiter's loop; `answer` is called with each request and its client."""

    def __init__(
        self,
        *,
        listener: Listener,
        loop: Loop,
        now: Callable[[], float],
        answer: Callable[[Request, Client], None],
    ) -> None:
        self.listener = listener
        self._loop = loop
        self._now = now
        self._answer = answer
        self._clients: dict[int, Client] = {}
        self._most = share(MAX_CLIENTS, 8)
        self._refused: set[int] = set()
        self._accepting = Accepting(listener, loop=loop, now=now, admit=self._admit, what="a control connection")

    @classmethod
    def begin(
        cls,
        estate: ListenerEstate | None,
        *,
        setting: str | None,
        default: Path | None,
        loop: Loop,
        now: Callable[[], float],
        answer: Callable[[Request, Client], None],
    ) -> Control | None:
        """Serve a predecessor's socket, or the one that the setting `control` asks for; None if there is none."""
        listener = try_open(setting, default) if estate is None else sockets.Listener.adopt(estate)
        return None if listener is None else cls(listener=listener, loop=loop, now=now, answer=answer)

    def sweep(self, now: float) -> None:
        """Let go of clients that were idle for too long; to be called about once a second."""
        for client in list(self._clients.values()):
            stuck = client.waiting or not client.busy
            if stuck and now - client.last > IDLE_SECONDS:
                self._drop(client)

    def leave(self) -> None:
        """Remove the socket if it is still ours, just before the process ends.

        Connections stay open until then, so that who asked for a stop sees by the end of the connection that the
        process is gone.
        """
        for client in self._clients.values():
            self._loop.unwatch(client.sock.fileno())
            client.sock.detach()
        self._clients.clear()
        self._accepting.end()
        sockets.unlink(self.listener)
        self.listener.sock.close()

    def part(self) -> None:
        """Tell every client to connect again, before an exec, and let go of it.

        What it has asked and nobody has read yet it asks again; what takes time it follows on its new connection.
        """
        for client in list(self._clients.values()):
            client.event(control.EXEC)
            self._drop(client)

    def close_in_child(self) -> None:
        """Close the descriptors in a forked child; the loop's epoll is the arbiter's and stays as it is."""
        self.listener.sock.close()
        for client in self._clients.values():
            client.sock.close()

    def send(self, client: Client, line: bytes) -> None:
        """Send `line` as far as the client takes it; the rest waits, within bounds."""
        if client.gone:
            return
        client.waiting += line
        self._flush(client)
        if len(client.waiting) > MAX_OUTPUT:
            log.info("closed a control connection whose client does not read")
            self._drop(client)

    def go_on(self, client: Client) -> None:
        """Come to the client's next request soon, or end the connection if there is none to come."""
        if not client.gone and (b"\n" in client.received or client.eof):
            self._loop.call_at(self._now(), lambda: self._next(client))

    def _admit(self, sock: socket.socket) -> None:
        if len(self._clients) >= self._most:  # the one that is idle for longest makes room, before any that waits
            self._drop(min(self._clients.values(), key=lambda client: (client.busy, client.last)))
        client = Client(sock, self)
        client.last = self._now()
        self._clients[sock.fileno()] = client
        uid = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))[1]
        if uid in {0, os.geteuid()}:
            self._watch(client)
            return
        if uid not in self._refused and len(self._refused) < _SHOWN_REFUSALS:
            self._refused.add(uid)
            log.warning("refused control to uid %d: only root and uid %d may", uid, os.geteuid())
        client.end(ExitCode.PERMISSION, f"uid {uid} may not control this instance; root and uid {os.geteuid()} may")
        self._drop(client)

    def _watch(self, client: Client) -> None:
        wanted = (0 if client.eof else selectors.EVENT_READ) | (selectors.EVENT_WRITE if client.waiting else 0)
        if wanted:
            self._loop.watch(client.sock.fileno(), lambda events: self._ready(client, events), wanted)
        else:
            self._loop.unwatch(client.sock.fileno())

    def _ready(self, client: Client, events: int) -> None:
        if events & selectors.EVENT_WRITE:
            self._flush(client)
        if events & selectors.EVENT_READ and not client.gone:
            self._receive(client)

    def _receive(self, client: Client) -> None:
        try:
            data = client.sock.recv(control.MAX_REQUEST)
        except BlockingIOError:
            return
        except OSError:
            self._drop(client)
            return
        client.last = self._now()
        client.received += data
        if not data:  # or it has only shut down its sending half: what it waits for is still sent, if it can be
            client.eof = True
            self._watch(client)
        self._next(client)

    def _next(self, client: Client) -> None:
        """Handle the client's next request, if it is there and none is at hand."""
        if client.gone:
            return
        if client.busy:
            if len(client.received) > control.MAX_REQUEST:
                self._drop(client)
            return
        line, newline, rest = bytes(client.received).partition(b"\n")
        if len(line) > control.MAX_REQUEST:
            client.end(ExitCode.USAGE, f"a request has at most {control.MAX_REQUEST} bytes")
            self._drop(client)
        elif newline:
            client.received[:] = rest
            client.busy = True
            client.attempt(lambda: self._answer(control.request(line), client))
        elif client.eof:
            self._finish(client)

    def _finish(self, client: Client) -> None:
        """Close a connection on which nothing more will be asked, once all is read; `sweep` bounds the wait."""
        client.received.clear()
        if not client.waiting:
            self._drop(client)

    def _flush(self, client: Client) -> None:
        try:
            sent = client.sock.send(client.waiting, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._drop(client)
            return
        if sent:
            del client.waiting[:sent]
            client.last = self._now()
        if client.eof and not (client.waiting or client.busy or client.received):
            self._drop(client)
        else:
            self._watch(client)

    def _drop(self, client: Client) -> None:
        """Close a connection; an operation that it waits for goes on."""
        if client.gone:
            return
        client.gone = True
        fd = client.sock.fileno()
        del self._clients[fd]
        self._loop.unwatch(fd)
        client.sock.close()
