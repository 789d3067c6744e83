"""What the arbiter tells those who watch it: probes, metrics, a page for people, and HAProxy's agent check.

It is answered from the arbiter's own loop, so it is answered while every worker hangs. `/livez` proves that this loop
turns, `/readyz` that somebody serves and is going to.
"""

from __future__ import annotations

import json
import logging
import socket
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from procmgr import scoreboard, sockets
from procmgr.arbiter import metrics, pages
from procmgr.arbiter.accepting import Accepting
from procmgr.arbiter.rate import Rate
from procmgr.arbiter.tally import Tally, TallyEstate
from procmgr.arbiter.visitors import Page, Visitors
from procmgr.plain import record
from procmgr.sockets import Listener, ListenerEstate, parse_address

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from procmgr.arbiter.core.actions import Notice
    from procmgr.arbiter.core.view import View
    from procmgr.arbiter.loop import Loop
    from procmgr.arbiter.member import Member
    from procmgr.config.admin import AdminSettings
    from procmgr.scoreboard import Scoreboard

_BACKLOG: Final = 128
_NO_PAGE: Final = "there are /livez /readyz /status.json /metrics and /\n"

log = logging.getLogger("procmgr.error")


@record
class AdminEstate:
    """The listeners and the counts as they are handed over."""

    pages: tuple[ListenerEstate, ...] = ()
    agents: tuple[ListenerEstate, ...] = ()
    tally: TallyEstate | None = None


class Admin:
    """Binds and serves what `settings` ask for, or goes on with `estate`. Raises `ProcmgrError` if it cannot bind."""

    def __init__(
        self,
        *,
        settings: AdminSettings,
        estate: AdminEstate | None,
        loop: Loop,
        now: Callable[[], float],
        view: Callable[[], View],
        summary: Callable[[], str],
        document: Callable[[], dict[str, Any]],
        members: Mapping[int, Member],
        board: Scoreboard,
        born: float,
    ) -> None:
        self._now = now
        self._view = view
        self._summary = summary
        self._document = document
        self._members = members
        self._board = board
        self._started = time.time() - (now() - born)
        self._busy = Rate()
        self._tally = Tally(estate.tally if estate else None)
        bound = _adopt(estate.pages) if estate else _bind(settings.admin_bind)
        self._visitors = [Visitors(one, loop=loop, now=now, page=self.page) for one in bound]
        bound = _adopt(estate.agents) if estate else _bind(settings.agent_bind)
        self._agents = [
            Accepting(one, loop=loop, now=now, admit=self._tell_agent, what="an agent check") for one in bound
        ]

    @property
    def addresses(self) -> list[str]:
        """Where the pages are, as URLs."""
        return [sockets.url(one.listener.address, scheme="http") for one in self._visitors]

    def hear(self, notice: Notice) -> None:
        """Count a notice."""
        self._tally.hear(notice)

    def sample(self, now: float) -> None:
        """Look at how busy the workers are, and let go of visitors whose time is over; about once a second."""
        self._busy.look(now, self._board.sum(scoreboard.CPU))
        for visitors in self._visitors:
            visitors.sweep(now)

    def leave(self) -> None:
        """Close everything, at the end."""
        for visitors in self._visitors:
            visitors.leave()
        for agent in self._agents:
            agent.end()
        for listener in self._listeners:
            sockets.unlink(listener)
            listener.sock.close()

    def close_in_child(self) -> None:
        """Close the descriptors in a forked child."""
        for visitors in self._visitors:
            visitors.close_in_child()
        for agent in self._agents:
            agent.listener.sock.close()

    def hand_over(self) -> AdminEstate:
        """Return what a successor needs; who is connected now has to come again."""
        return AdminEstate(
            pages=tuple(one.listener.hand_over() for one in self._visitors),
            agents=tuple(one.listener.hand_over() for one in self._agents),
            tally=self._tally.hand_over(),
        )

    @property
    def _listeners(self) -> list[Listener]:
        return [*(one.listener for one in self._visitors), *(one.listener for one in self._agents)]

    # -- what is told --------------------------------------------------------------------------------------------

    def page(self, path: str) -> Page:
        """Return the page at a path."""
        match path:
            case "/livez":
                return Page(text="ok\n")
            case "/readyz":
                trouble = self.trouble()
                return Page(status=503 if trouble else 200, text=f"{trouble or 'ok'}: {self._summary()}\n")
            case "/status.json":
                return Page(kind="application/json", text=json.dumps(self._document()) + "\n")
            case "/metrics":
                return Page(kind=metrics.KIND, text=self._metrics())
            case "/":
                kind = "text/html; charset=utf-8"
                return Page(kind=kind, text=pages.page(self._document()), headers=pages.HEADERS)
            case _:
                return Page(status=404, text=_NO_PAGE)

    def trouble(self) -> str:
        """Return why requests should go elsewhere; empty if they are welcome."""
        view = self._view()
        if view.stop is not None:
            return "stopping"
        if view.leaving:
            return "leaving"
        return "" if view.ready else "no worker is ready"

    def utilisation(self) -> float:
        """Return the share of the processor time that the ready workers could use and did, in the last seconds."""
        used = self._busy.per_second() / 1e9
        return min(1.0, used / max(1, self._view().ready))

    def agent_line(self) -> str:
        """Return what HAProxy's agent-check asks for: a weight by what is left of the workers' time, or why not."""
        view = self._view()
        if view.stop is not None or view.leaving:
            return "drain\n"
        if not view.ready:
            return "down #no worker is ready\n"
        return f"up ready {max(1, round(100 * (1 - self.utilisation())))}%\n"

    def _metrics(self) -> str:
        return metrics.render(
            view=self._view(),
            members=self._members,
            board=self._board,
            tally=self._tally,
            ready=not self.trouble(),
            utilisation=self.utilisation(),
            started=self._started,
            now=self._now(),
        )

    def _tell_agent(self, sock: socket.socket) -> None:
        """Say the line and close: it always fits into an empty send buffer."""
        with sock, suppress(OSError):
            sock.send(self.agent_line().encode(), socket.MSG_NOSIGNAL)
            sock.shutdown(socket.SHUT_WR)


def _bind(addresses: Iterable[str]) -> list[Listener]:
    bound: list[Listener] = []
    try:
        for each in addresses:
            address = parse_address(each)
            assert not isinstance(address, (sockets.Inherited, sockets.SystemdName))  # the setting's kind sees to it
            bound.append(sockets.bind(address, backlog=_BACKLOG))
    except BaseException:
        for listener in bound:
            sockets.unlink(listener)
            listener.sock.close()
        raise
    return bound


def _adopt(estates: Iterable[ListenerEstate]) -> list[Listener]:
    return [Listener.adopt(each) for each in estates]
