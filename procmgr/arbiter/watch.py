"""The watcher: a process of its own that looks for changed files under --reload and reports them to the arbiter.

Why a process: watchfiles runs threads, which do not go with fork(2), and its code reads what the application's author
wrote; so it is imported there alone, and there without the arbiter's rights. The watcher holds nothing but its channel,
has no say in what follows from a change, and dies with the arbiter.

Theory of operation. One burst of changes is one report: watchfiles waits until nothing more changes for `_STEP`, at
most `_DEBOUNCE`; after a report the watcher waits for the delay of the settings. Where inotify refuses (its watches or
its instances are used up, see inotify(7)) it goes on by polling. A watcher that dies is replaced, more and more slowly,
and `_ATTEMPTS` times in a row at most; since files may have changed while nobody looked, its successor begins with a
report.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from procmgr import messages, process
from procmgr.arbiter import descendants
from procmgr.arbiter.patterns import directories_of, patterns_of
from procmgr.arbiter.spawn import fork
from procmgr.errors import ExitCode, ProcmgrError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from procmgr.arbiter.loop import Loop, Timer
    from procmgr.config.development import DevelopmentSettings

_STEP: Final = 50  # milliseconds
_DEBOUNCE: Final = 1600  # milliseconds
_ATTEMPTS: Final = 5
_FIRST_DELAY: Final = 0.5  # seconds
_STABLE_SECONDS: Final = 10.0
_SHOWN_PATHS: Final = 3
_SHOWN_CHARACTERS: Final = 200

log = logging.getLogger("procmgr.error")


class Watcher:
    """The arbiter's handle on its watcher.

    `prepare` gives the child the application's directory and rights. `entrust` is called with the pid of each watcher.
    `on_change` is called with one line that says what changed.
    """

    def __init__(
        self,
        *,
        loop: Loop,
        settings: DevelopmentSettings,
        prepare: Callable[[], None],
        close_in_child: Callable[[], None],
        entrust: Callable[[int], None],
        on_change: Callable[[str], None],
    ) -> None:
        self._loop = loop
        self._settings = settings
        self._prepare = prepare
        self._close_arbiter = close_in_child
        self._entrust = entrust
        self._on_change = on_change
        self._channel: messages.Channel | None = None
        self._pid: int | None = None
        self._born = 0.0
        self._deaths = 0
        self._retry: Timer | None = None
        self._said: set[str] = set()

    def start(self) -> None:
        """Fork the watcher."""
        self._retry = None
        self._born = time.monotonic()
        try:
            self._fork()
        except OSError as error:
            self._lost(f"could not be started: {error.strerror}")

    def entrust(self) -> None:
        """Entrust the living watcher to a guard that was forked after it."""
        if self._pid is not None:
            self._entrust(self._pid)

    def buried(self, pid: int) -> bool:
        """Return whether `pid`, which died and was reaped, was the watcher; then another is forked."""
        if pid != self._pid:
            return False
        self._read()
        self._pid = None
        self._hang_up()
        self._lost(f"(pid {pid}) died")
        return True

    def close(self) -> None:
        """End the watcher at the arbiter's end."""
        if self._retry is not None:
            self._retry.cancelled = True
        self._hang_up()
        if self._pid is not None:
            with suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)
            descendants.bury(self._pid)
            self._pid = None

    def close_in_child(self) -> None:
        """Close, in a forked child, what belongs to the arbiter."""
        if self._channel is not None:
            self._channel.close()

    def _fork(self) -> None:
        ours, theirs = messages.Channel.pair()
        parent = os.getpid()
        try:
            self._pid = fork(
                lambda: _run(theirs, self._settings, self._prepare, parent),
                close_in_child=lambda: self._leave(ours),
            )
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        self._channel = ours
        self._loop.watch(ours.fileno(), lambda _events: self._read())
        self._entrust(self._pid)

    def _leave(self, ours: messages.Channel) -> None:
        ours.close()
        self._close_arbiter()

    def _read(self) -> None:
        channel = self._channel
        if channel is None:
            return
        try:
            while (received := channel.receive()) is not None:
                self._hear(received[0])
        except messages.ChannelClosed:
            self._loop.unwatch(channel.fileno())  # its death follows, or is known already
        except messages.MessageError as error:
            log.error("the watcher sent nonsense: %s", error)

    def _hear(self, message: messages.Message) -> None:
        match message:
            case messages.Watching(where=where, trouble=trouble):
                log.info("watching %s", where)
                if trouble and trouble not in self._said:
                    self._said.add(trouble)
                    log.warning("changes are looked for by polling: %s", trouble)
                if self._deaths:
                    self._on_change("something, maybe, while nobody watched,")
            case messages.Changed(what=what):
                self._on_change(what)
            case _:
                log.error("the watcher sent what no watcher says: %s", type(message).__name__)

    def _hang_up(self) -> None:
        if self._channel is not None:
            self._loop.unwatch(self._channel.fileno())
            self._channel.close()
            self._channel = None

    def _lost(self, how: str) -> None:
        """Fork another in a while, unless that was in vain too often."""
        now = time.monotonic()
        self._deaths = self._deaths + 1 if now - self._born < _STABLE_SECONDS else 1
        if self._deaths > _ATTEMPTS:
            log.error("the watcher %s; that is %d times in a row: reload with HUP from now on", how, self._deaths)
            return
        log.warning("the watcher %s; starting another", how)
        self._retry = self._loop.call_at(now + _FIRST_DELAY * 2.0 ** (self._deaths - 1), self.start)


def _run(channel: messages.Channel, settings: DevelopmentSettings, prepare: Callable[[], None], parent: int) -> int:
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(signum, signal.SIG_IGN)  # what a terminal sends to the whole group is the arbiter's to answer
    process.set_title("procmgr: watch")
    try:
        prepare()
    except ProcmgrError as error:
        sys.stderr.write(f"procmgr: watcher: {error}\n")
        return error.exit_code
    process.set_pdeathsig(signal.SIGKILL)
    if os.getppid() == parent:
        _watch(channel, settings, parent)
    return ExitCode.OK


class _Lifeline:
    """What watchfiles asks at each step whether to stop: so it also tells when watching has begun."""

    def __init__(self, channel: messages.Channel, where: str, parent: int) -> None:
        self._channel = channel
        self._where = where
        self._parent = parent
        self._poller = select.poll()
        self._poller.register(channel, 0)  # POLLHUP is always reported (poll(2))
        self.trouble = ""
        self.told = False

    def is_set(self) -> bool:
        """Return whether the arbiter is gone, or became another program, which forks a watcher of its own."""
        if not self.told:
            self.told = self._channel.send(messages.Watching(self._where, self.trouble))
        return os.getppid() != self._parent or bool(self._poller.poll(0))


def _watch(channel: messages.Channel, settings: DevelopmentSettings, parent: int) -> None:
    """Report changes until the arbiter is gone: as inotify tells, or if it cannot, by polling."""
    cwd = Path.cwd()
    where = ", ".join(_line(str(each)) for each in directories_of(settings, cwd))
    lifeline = _Lifeline(channel, where, parent)
    try:
        _report_inotify(channel, settings, cwd, lifeline)
    except (OSError, RuntimeError) as error:  # watchfiles.WatchfilesRustInternalError is a RuntimeError
        lifeline.trouble, lifeline.told = _line(str(error)), False
        _report(channel, settings, cwd, lifeline, polling=True, lenient=True)


def _report_inotify(channel: messages.Channel, settings: DevelopmentSettings, cwd: Path, lifeline: _Lifeline) -> None:
    # Told to ignore what may not be read, watchfiles ignores also that inotify's watches are used up. So that is only
    # for when there is such a thing, another user's data directory say.
    try:
        _report(channel, settings, cwd, lifeline, polling=None, lenient=False)
    except PermissionError:
        _report(channel, settings, cwd, lifeline, polling=None, lenient=True)


def _report(
    channel: messages.Channel,
    settings: DevelopmentSettings,
    cwd: Path,
    lifeline: _Lifeline,
    *,
    polling: bool | None,
    lenient: bool,
) -> None:
    from watchfiles import watch  # noqa: PLC0415 - in this process alone, see above

    patterns = patterns_of(settings, cwd)
    for changes in watch(
        *directories_of(settings, cwd),
        watch_filter=None,
        debounce=_DEBOUNCE,
        step=_STEP,
        stop_event=lifeline,
        force_polling=polling,
        ignore_permission_denied=lenient,
    ):
        changed = sorted({path for _, path in changes if patterns.match(Path(path))})
        if changed:
            channel.send(messages.Changed(describe(changed, cwd)))
            time.sleep(settings.reload_delay)


def describe(paths: Iterable[str], cwd: Path) -> str:
    """Return one bounded line that names the first of `paths`, relative to `cwd` where they are below it."""
    names = [_line(path.removeprefix(f"{cwd}/")) for path in paths]
    more = len(names) - _SHOWN_PATHS
    return ", ".join(names[:_SHOWN_PATHS]) + (f" and {more} more" if more > 0 else "")


def _line(text: str) -> str:
    shown = text if text.isprintable() else ascii(text)
    return shown if len(shown) <= _SHOWN_CHARACTERS else f"{shown[:_SHOWN_CHARACTERS]}..."
