"""The zygote: a process that imports the application once, for one generation, and forks its workers.

Rules: it gives up its rights before it imports, holds no listener, and does nothing but import and fork. It is the
arbiter's child and its workers are too: it forks twice, and when the process between has ended the kernel gives the
worker to the arbiter, which is a subreaper (prctl(2), PR_SET_CHILD_SUBREAPER).

Theory of operation. Orders come as `Fork` messages, with everything a worker needs that was not inherited. The worker
waits until it was adopted and then announces itself, before all else, on its own channel: so nothing it says and no
death of it can overtake its pid, and whatever prevents its birth (a refused fork, a zygote that was killed, an arbiter
that died) shows as that channel's end. The arbiter believes a pid only if it is a child of its own.

After a fork CPython seeds `random` anew and OpenSSL mixes in the pid; uuid, secrets and tempfile draw from the kernel
or look at the pid. A generator that the application made itself at its import is the same in every worker.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from procmgr import logs, messages, process
from procmgr.arbiter import dumps
from procmgr.arbiter.signals import ignore
from procmgr.arbiter.spawn import fork
from procmgr.errors import ExitCode
from procmgr.worker import boot, hooks
from procmgr.worker.preload import preload

if TYPE_CHECKING:
    from collections.abc import Callable

    from procmgr.scoreboard import Scoreboard
    from procmgr.worker.boot import Birth
    from procmgr.worker.preload import Preloaded

TITLE: Final = "procmgr: zygote"
# Meant for the arbiter, but a terminal or a supervisor may signal the whole group.
_NEVER_OURS: Final = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTTIN, signal.SIGTTOU)
# An import ends at once on these. Later the channel alone says when to go.
_ENDING: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)

log = logging.getLogger("procmgr.error")


@dataclass(frozen=True, slots=True, kw_only=True)
class Zygote:
    """The arbiter's handle on one zygote."""

    pid: int
    generation: int
    channel: messages.Channel
    stacks_fd: int

    def order(self, birth: Birth, row: int) -> bool:
        """Have a worker forked; False if the zygote cannot be told. The worker's own copies of all stay open here."""
        fds = (birth.channel.fileno(), birth.stacks_fd, *(listener.sock.fileno() for listener in birth.listeners))
        return self.channel.send(messages.Fork(birth.worker_id, birth.slot, row, birth.workers), fds)

    def signal(self, signum: int) -> None:
        """Send a signal. The pid is ours until it is reaped."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signum)

    def stacks(self) -> str:
        """Return the Python stacks that it dumped; empty if it did not."""
        return dumps.read(self.stacks_fd)

    def close(self) -> None:
        """Let go of it: a zygote that is done importing ends then. In a forked child this only closes the copy."""
        self.channel.close()
        os.close(self.stacks_fd)


def fork_zygote(birth: Birth, board: Scoreboard, *, close_in_child: Callable[[], None]) -> Zygote:
    """Fork the zygote of a generation, of which `birth` is the first worker; raises `OSError`."""
    ours, theirs = messages.Channel.pair()
    stacks_fd = os.memfd_create("procmgr-stacks", os.MFD_CLOEXEC)

    def close_all() -> None:
        ours.close()
        birth.channel.close()
        close_in_child()

    try:
        pid = fork(lambda: _run(birth, board, theirs, stacks_fd), close_in_child=close_all)
    except OSError:
        ours.close()
        os.close(stacks_fd)
        raise
    finally:
        theirs.close()
    return Zygote(pid=pid, generation=birth.generation, channel=ours, stacks_fd=stacks_fd)


def _run(birth: Birth, board: Scoreboard, channel: messages.Channel, stacks_fd: int) -> int:
    boot.leave_arbiter(stacks_fd, birth.logs)
    for signum in _NEVER_OURS:
        signal.signal(signum, ignore)
    return boot.until_end(lambda _: _live(birth, board, channel, stacks_fd), channel=channel, setup=birth.logs)


def _live(birth: Birth, board: Scoreboard, channel: messages.Channel, stacks_fd: int) -> int:
    boot.prepare(birth.settings, birth.privileges, birth.environ, birth.cwd)
    process.set_title(TITLE)
    process.set_pdeathsig(signal.SIGKILL)
    if os.getppid() != birth.arbiter_pid:
        return ExitCode.OK
    preloaded = preload(birth.settings)
    channel.send(messages.Imported())
    _Brood(birth=birth, preloaded=preloaded, board=board, channel=channel, stacks_fd=stacks_fd).obey()
    return ExitCode.OK


class _Brood:
    """The zygote after its import: it forks workers until the arbiter closes the channel."""

    def __init__(
        self, *, birth: Birth, preloaded: Preloaded, board: Scoreboard, channel: messages.Channel, stacks_fd: int
    ) -> None:
        self._birth = birth
        self._preloaded = preloaded
        self._board = board
        self._channel = channel
        self._stacks_fd = stacks_fd
        self._hooked = True
        self._handlers = {signum: signal.signal(signum, ignore) for signum in _ENDING}

    def obey(self) -> None:
        """Execute the arbiter's messages until its end."""
        poller = select.poll()
        poller.register(self._channel.fileno(), select.POLLIN)
        with suppress(messages.ChannelClosed):
            while True:
                poller.poll()
                received = self._channel.receive()
                if received is not None:
                    self._execute(*received)

    def _execute(self, message: messages.Message, fds: tuple[int, ...]) -> None:
        match message:
            case messages.Fork():
                self._fork(message, fds)
            case messages.Configure(log_level=level):
                logs.set_level(level)
            case messages.ReopenLogs():
                logs.reopen_files()
                self._birth.logs.replace(fds)
            case messages.NewCertificates():
                boot.renew(self._birth, message, fds)
            case _:
                log.error("the arbiter sent a zygote %s", type(message).__name__)

    def _fork(self, order: messages.Fork, fds: tuple[int, ...]) -> None:
        if self._hooked:  # one that took too long is not called again: the workers to come have a deadline
            self._hooked = hooks.pre_fork(self._birth, worker_id=order.worker_id, slot=order.slot)
        try:
            middle = fork(lambda: self._run_middle(order, fds), close_in_child=_nothing, reset=self._restore_signals)
        except OSError as error:
            self._channel.send(messages.ForkFailed(order.worker_id, str(error)))
        else:
            with suppress(ChildProcessError):  # the application ignores SIGCHLD
                os.waitpid(middle, 0)
        finally:
            for fd in fds:
                os.close(fd)

    def _run_middle(self, order: messages.Fork, fds: tuple[int, ...]) -> int:
        middle = os.getpid()
        try:
            fork(lambda: self._run_worker(order, fds, middle), close_in_child=self._close_in_worker, reset=_nothing)
        except OSError as error:
            self._channel.send(messages.ForkFailed(order.worker_id, str(error)))
        return ExitCode.OK

    def _run_worker(self, order: messages.Fork, fds: tuple[int, ...], middle: int) -> int:
        birth = self._birth_of(order, fds)
        _outlive(middle)
        if os.getppid() != birth.arbiter_pid or not birth.channel.send(messages.Born(os.getpid())):
            return ExitCode.OK
        return self._preloaded.serve(birth)

    def _birth_of(self, order: messages.Fork, fds: tuple[int, ...]) -> Birth:
        channel, stacks_fd, *listeners = fds
        return replace(
            self._birth,
            worker_id=order.worker_id,
            slot=order.slot,
            workers=order.workers,
            listeners=tuple(
                replace(listener, sock=socket.socket(fileno=fd))
                for listener, fd in zip(self._birth.listeners, listeners, strict=True)
            ),
            channel=messages.Channel(socket.socket(fileno=channel)),
            row=self._board.row(order.row),
            records=self._board.records(order.row),
            stacks_fd=stacks_fd,
        )

    def _restore_signals(self) -> None:
        """Give a child the handlers that the import left; TERM, INT and QUIT end a worker until its loop runs."""
        for signum, handler in self._handlers.items():
            signal.signal(signum, signal.SIG_DFL if handler is None else handler)

    def _close_in_worker(self) -> None:
        self._channel.close()
        os.close(self._stacks_fd)


def _outlive(parent: int) -> None:
    """Wait until the parent has ended: by the time its pidfd is ready its children have been given away."""
    try:
        pidfd = os.pidfd_open(parent)
    except ProcessLookupError:
        return
    if os.getppid() == parent:  # else it ended before, and the pid may be somebody else's by now
        poller = select.poll()
        poller.register(pidfd, select.POLLIN)
        poller.poll()
    os.close(pidfd)


def _nothing() -> None:
    """There is nothing to undo."""
