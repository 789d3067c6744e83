"""The upgrade in place: the arbiter becomes a new program without a worker, a listener or a request noticing.

Theory of operation. USR2 starts a preflight (see `preflight`), and the loop goes on supervising. Once the new program
has answered that it can adopt the state, the state as it is *then* is put into an envelope (see `handover`) and the
arbiter execs itself. The state is complete, so the pool may be in any state: a worker that boots, a drain and a reload
under way go on in the new program. Only a stop excludes an upgrade: it overtakes the preflight, and refuses another.

What is lost, and why it may be: who is waiting for a timer of the arbiter's own, samples, the tracebacks that were
said once already, and log lines that wait for a reader who does not read.
"""

from __future__ import annotations

import logging
import os
import platform
from contextlib import contextmanager
from enum import Enum
from typing import TYPE_CHECKING

from procmgr import __version__
from procmgr.arbiter.estate import write
from procmgr.arbiter.preflight import Preflight
from procmgr.arbiter.signals import all_blocked
from procmgr.errors import ExitCode
from procmgr.handover import Envelope, HandoverError, Program, Role, enter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from procmgr.arbiter.core.events import Exit
    from procmgr.arbiter.core.view import View
    from procmgr.arbiter.estate import Estate
    from procmgr.arbiter.history import History
    from procmgr.arbiter.loop import Loop, Timer
    from procmgr.config.resolve import Invocation

log = logging.getLogger("procmgr.error")


class Refusal(Enum):
    """Why an upgrade does not begin."""

    STOPPING = "the service is stopping"
    UNDER_WAY = "another one is under way"


class Upgrade:
    """From the wish for an upgrade to the exec, or to the reason why nothing happened.

    `hand_over` is called when the pool has answered every event, at the exec with all signals blocked; `part` right
    before it; `changed` whenever `status` has changed.
    """

    def __init__(
        self,
        *,
        invocation: Invocation,
        loop: Loop,
        history: History,
        hand_over: Callable[[], Estate],
        part: Callable[[], None],
        changed: Callable[[], None],
    ) -> None:
        self._invocation = invocation
        self._loop = loop
        self._history = history
        self._hand_over = hand_over
        self._part = part
        self._changed = changed
        self._this = Program.this(invocation.environ)
        self._preflight: Preflight | None = None
        self._killed: set[int] = set()
        self._timer: Timer | None = None
        self.status: str | None = None
        """How the upgrade under way goes, or how the last one ended, in a few words."""

    @property
    def pids(self) -> frozenset[int]:
        """The pids of its children."""
        return frozenset(self._killed | ({self._preflight.pid} if self._preflight else set()))

    def begin(self, view: View, *, now: float, seconds: float) -> Refusal | None:
        """Start the preflight, which has `seconds` from `now`, and return; or return why not."""
        if view.stop is not None:
            return Refusal.STOPPING
        if self._preflight is not None:
            return Refusal.UNDER_WAY
        self._history.upgrades += 1
        program = self._successor()
        log.info("upgrade: asking %s whether it can take over", program.executable)
        try:
            preflight = Preflight(program, self._envelope(self._hand_over(), ()))
        except (OSError, HandoverError) as error:
            self._fail(ExitCode.OS_ERROR, f"{program.executable} cannot be asked: {error}")
            return None
        self._preflight = preflight
        self._loop.watch(preflight.fileno(), lambda _events: self._read(preflight))
        late = f"the new program did not answer within {seconds:g} s"
        self._timer = self._loop.call_at(now + seconds, lambda: self._give_up(ExitCode.TIMED_OUT, late))
        self._say("upgrade: checking the new program")
        return None

    def cancel(self) -> None:
        """Give up what is under way, if anything, since the service stops."""
        if self._timer is not None:
            self._timer.cancelled = True
        self._give_up(ExitCode.UNREACHABLE, Refusal.STOPPING.value)

    def on_death(self, pid: int, exit_: Exit) -> bool:
        """Hear of a child that died; returns whether it was one of this object's."""
        if pid in self._killed:
            self._killed.remove(pid)
            return True
        preflight = self._preflight
        if preflight is None or preflight.pid != pid:
            return False
        release, said = preflight.verdict(exit_)
        self._let_go(preflight)
        if release is None:
            self._fail(
                exit_.code or ExitCode.CRASH, said or f"the new program ended with {_ending(exit_)} and did not say why"
            )
        else:
            # Later in this turn of the loop: the caller is in the midst of reaping.
            self._timer = self._loop.call_at(float("-inf"), lambda: self._exec(release))
        return True

    def ended(self, envelope: Envelope) -> None:
        """Say, in the new program or in the old one that is back, how the upgrade went."""
        if envelope.failure:
            log.error("upgrade failed, release %s is back: %s", __version__, envelope.failure)
            why = f"upgrade failed, the old program is back: {_last_line(envelope.failure)}"
            self._conclude(ExitCode.CRASH, why, envelope.failure)
        else:
            python = platform.python_version()
            log.info("upgraded from release %s to %s, on Python %s", envelope.release, __version__, python)
            self._conclude(ExitCode.OK, f"upgraded to {__version__}")

    def forget(self) -> None:
        """Forget how the last upgrade ended: something newer is of interest."""
        if self._preflight is None:
            self.status = None

    def close_in_child(self) -> None:
        """Close, in a forked child, what belongs to the arbiter."""
        if self._preflight is not None:
            self._preflight.close()

    def _exec(self, release: str) -> None:
        """Become the new program; returns only if that fails."""
        log.info("upgrade: handing over to release %s", release)
        program = self._successor()
        try:
            with all_blocked() as mask, _directory(self._invocation.cwd):
                estate = self._hand_over()
                envelope = self._envelope(estate, mask).write()
                try:
                    self._part()
                    enter(program, envelope, estate.descriptors, Role.ADOPT)
                finally:
                    os.close(envelope)
        except (OSError, HandoverError) as error:
            self._fail(ExitCode.OS_ERROR, f"cannot become {program.executable}: {error}")

    def _successor(self) -> Program:
        return Program.same(self._invocation.environ)

    def _envelope(self, estate: Estate, mask: Iterable[int]) -> Envelope:
        return Envelope(
            estate=write(estate),
            descriptors=estate.descriptors,
            mask=tuple(mask),
            environ=self._invocation.environ,
            cwd=str(self._invocation.cwd),
            back=self._this,
            release=__version__,
        )

    def _read(self, preflight: Preflight) -> None:
        if not preflight.read():
            self._loop.unwatch(preflight.fileno())

    def _give_up(self, exit_code: int, why: str) -> None:
        if self._preflight is not None:
            self._preflight.kill()
            self._killed.add(self._preflight.pid)
            self._let_go(self._preflight)
            self._fail(exit_code, why)

    def _let_go(self, preflight: Preflight) -> None:
        self._preflight = None
        if self._timer is not None:
            self._timer.cancelled = True
        self._loop.unwatch(preflight.fileno())
        preflight.close()

    def _fail(self, exit_code: int, why: str) -> None:
        log.error("upgrade refused, nothing changed: %s", why)
        self._conclude(exit_code, f"upgrade refused: {_last_line(why)}", why)

    def _conclude(self, exit_code: int, text: str, detail: str = "") -> None:
        self._history.note_upgrade(exit_code, text, detail if "\n" in detail else "")
        self._say(text)

    def _say(self, status: str) -> None:
        self.status = status
        self._changed()


def _last_line(text: str) -> str:
    return text.strip().rpartition("\n")[2].removeprefix("procmgr: error: ")


def _ending(exit_: Exit) -> str:
    return f"status {exit_.code}" if exit_.signal is None else f"signal {exit_.signal}"


@contextmanager
def _directory(path: Path) -> Iterator[None]:
    """Be in the directory that `path` leads to now: an inode kept from the start would be the old release."""
    before = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.chdir(path)
        try:
            yield
        finally:
            os.fchdir(before)
    finally:
        os.close(before)
