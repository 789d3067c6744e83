"""The limit on the time of a whole request, where one is set: from its head to the end of its response.

A client that has not sent its body by then is answered with 408, an application that has not begun its response with
503; what has begun is cut. Either way the application is cancelled. A WebSocket has no such limit once it is open.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from procmgr.worker.cycle import SENT
from procmgr.worker.protocols.framing import Refused

if TYPE_CHECKING:
    from procmgr.worker.cycle import Cycle
    from procmgr.worker.protocols.http1 import Http1Connection


@cache
def limit_requests(kind: type[Http1Connection]) -> type[Http1Connection]:
    """Return the kind of connection that is `kind` with the limit; without one, nobody pays for it."""

    class LimitedConnection(kind):  # type: ignore[valid-type, misc] # a class is made of the one that is in use
        __slots__ = ("_over_at",)

        def _start(self, cycle: Cycle) -> None:
            self._over_at = self.context.now + self.context.limits.request_time
            self.bucket.discard(self)
            self.context.watch(self, self._over_at)
            super()._start(cycle)

        def busy_due(self, now: float) -> float | None:
            if now < self._over_at:
                again = super().busy_due(now)
                return None if again is None else min(again, self._over_at)
            cycle = self.cycle
            late = Refused(503, "the response took too long") if cycle.body_ended else Refused(408, "the body is late")
            begun = cycle.state >= SENT
            self._refuse(late, cycle.request.head)
            if begun and self.unsent():
                self.reset()  # it would take the rest as slowly
            if cycle.task is not None:
                # Not at once: cancelled before its first step it would not account for its end.
                self.context.loop.call_soon(cycle.task.cancel)
            return None

    return LimitedConnection
