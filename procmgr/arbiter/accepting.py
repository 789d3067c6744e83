"""Accepting connections on the arbiter's loop, a few a turn, without waiting and without spinning.

Who accepts keeps no more connections than `share` says: workers cannot be replaced without descriptors.
"""

from __future__ import annotations

import logging
import resource
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from procmgr.arbiter.loop import Loop
    from procmgr.sockets import Listener

_A_TURN: Final = 16
_PAUSE_SECONDS: Final = 0.1
_COMPLAIN_EVERY: Final = 60.0

log = logging.getLogger("procmgr.error")


def share(most: int, part: int) -> int:
    """Return `most`, or a `part`th of the descriptors that this process may have open, whichever is less."""
    return min(most, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // part)


class Accepting:
    """Hands each connection to `listener`, non-blocking, to `admit`; `what` names the connections in the log."""

    def __init__(
        self,
        listener: Listener,
        *,
        loop: Loop,
        now: Callable[[], float],
        admit: Callable[[socket.socket], None],
        what: str,
    ) -> None:
        self.listener = listener
        self._loop = loop
        self._now = now
        self._admit = admit
        self._what = what
        self._ended = False
        self._complained = float("-inf")
        loop.watch(listener.sock.fileno(), self._accept)

    def end(self) -> None:
        """Accept no more; the listener stays open."""
        self._ended = True
        self._loop.unwatch(self.listener.sock.fileno())

    def _accept(self, _events: int) -> None:
        for _ in range(_A_TURN):
            try:
                sock, _ = self.listener.sock.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:  # EMFILE, ENFILE, ENOMEM: the listener stays readable, and the loop would spin
                self._complain(error)
                self._pause()
                return
            sock.settimeout(0.0)
            self._admit(sock)

    def _complain(self, error: OSError) -> None:
        if self._now() - self._complained >= _COMPLAIN_EVERY:
            self._complained = self._now()
            log.warning("cannot accept %s: %s", self._what, error.strerror)

    def _pause(self) -> None:
        self._loop.unwatch(self.listener.sock.fileno())
        self._loop.call_at(self._now() + _PAUSE_SECONDS, self._resume)

    def _resume(self) -> None:
        if not self._ended:
            self._loop.watch(self.listener.sock.fileno(), self._accept)
