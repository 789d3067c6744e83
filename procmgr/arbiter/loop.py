"""The arbiter's loop: descriptors, signals and time become events; what the pool answers is executed.

Rules: it waits in one place only, `select`, and never for one worker. Signals are handled before channels, so that a
worker's "I drain" after a TERM to the whole group is already known to be part of our own stop. Deaths are handled after
channels, so last words come first. Facts are recorded before deadlines are looked at, so that a late arbiter does not
kill a worker whose message was waiting.
"""

from __future__ import annotations

import heapq
import selectors
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

from procmgr import messages
from procmgr.arbiter.core import actions
from procmgr.arbiter.core.events import Event, Exited, SpawnFailed, Tick

if TYPE_CHECKING:
    import signal
    from collections.abc import Callable, Iterable, Iterator

    from procmgr.arbiter.core.events import Beats, Spawned, Suspended
    from procmgr.arbiter.core.pool import Pool
    from procmgr.arbiter.signals import SignalQueue

_SAMPLE_SECONDS: Final = 1.0


class Host(Protocol):
    """What the loop needs from the operating system: the whole seam between the pool's decisions and Linux."""

    def now(self) -> float:
        """Return CLOCK_MONOTONIC in seconds."""
        ...

    def spawn(self, order: actions.Spawn) -> Spawned | SpawnFailed | None:
        """Fork a worker; None when the answer comes later, from `receive`."""
        ...

    def channel(self, worker_id: int) -> messages.Channel:
        """Return the arbiter's end of a worker's channel."""
        ...

    def drain(self, order: actions.Drain) -> None:
        """Tell a worker to drain."""
        ...

    def pause(self, worker_id: int) -> None:
        """Tell a worker to accept no more for now."""
        ...

    def resume(self, worker_id: int) -> None:
        """Tell a worker to accept again."""
        ...

    def terminate(self, worker_id: int) -> None:
        """Send TERM."""
        ...

    def abort(self, worker_id: int) -> None:
        """Send ABRT."""
        ...

    def kill(self, worker_id: int) -> None:
        """Send KILL."""
        ...

    def dump_stacks(self, worker_id: int) -> Suspended | None:
        """Ask for the worker's stacks; `Suspended` when it is stopped and cannot answer."""
        ...

    def receive(self, worker_id: int) -> list[Event]:
        """Return what a worker sent, as events."""
        ...

    def reap(self) -> Iterator[Event]:
        """Yield the last words and the `Exited` of every child that died."""
        ...

    def bury(self, worker_id: int) -> None:
        """Forget a worker whose `Exited` was handled."""
        ...

    def beats(self) -> Beats:
        """Return the newest beat of each worker."""
        ...


class Observer(Protocol):
    """Who hears what the loop does not decide itself."""

    def on_signal(self, signum: signal.Signals) -> None:
        """Answer a signal (SIGCHLD excepted, which is the loop's own)."""
        ...

    def on_notice(self, notice: actions.Notice) -> None:
        """Hear what the pool decided or learned."""
        ...

    def on_sample(self, now: float) -> None:
        """Do what is due about once a second."""
        ...


@dataclass(slots=True, order=True)
class Timer:
    """A callback to come. Set `cancelled` to have it forgotten."""

    when: float
    callback: Callable[[], None] = field(compare=False)
    cancelled: bool = field(default=False, compare=False)


class Loop:
    """Runs the pool against a host until the pool finishes."""

    def __init__(self, *, pool: Pool, host: Host, signals: SignalQueue, observer: Observer) -> None:
        self._pool = pool
        self._host = host
        self._signals = signals
        self._observer = observer
        self._selector = selectors.EpollSelector()
        self._selector.register(signals, selectors.EVENT_READ, None)
        self._queue: deque[Event] = deque()
        self._timers: list[Timer] = []
        self._next_sample = host.now()
        self._exit_code: int | None = None

    def adopt(self, worker_ids: Iterable[int]) -> None:
        """Listen to workers that were spawned before this loop."""
        for worker_id in worker_ids:
            self._selector.register(self._host.channel(worker_id), selectors.EVENT_READ, worker_id)

    def run(self) -> int:
        """Supervise until every worker is gone and none will come; returns the exit code."""
        self.post(Tick())
        while self._exit_code is None:
            self._turn()
        return self._exit_code

    def linger(self, done: Callable[[], bool], until: float) -> None:
        """Go on, after `run`, with what is not the pool's, until `done()` or `until`, monotonic seconds."""
        while not done() and self._host.now() < until:
            self._turn()

    def post(self, event: Event) -> None:
        """Give the pool an event and execute what it answers, and so on for the events that follow from that."""
        self._queue.append(event)
        if len(self._queue) > 1:
            return  # posted from within an action: the call below in the stack comes to it
        while self._queue:
            for action in self._pool.handle(self._queue[0], self._host.now()):
                self._execute(action)
            self._queue.popleft()

    def watch(self, fd: int, callback: Callable[[int], None], events: int = selectors.EVENT_READ) -> None:
        """Call `callback(events)` whenever `fd` is ready for one of `events`; called again, it changes them."""
        if fd in self._selector.get_map():
            self._selector.modify(fd, events, callback)
        else:
            self._selector.register(fd, events, callback)

    def unwatch(self, fd: int) -> None:
        """Stop watching `fd`; to be called before it is closed. Does nothing if it is not watched."""
        if fd in self._selector.get_map():
            self._selector.unregister(fd)

    def call_at(self, when: float, callback: Callable[[], None]) -> Timer:
        """Call `callback` once at `when`, monotonic seconds, unless the timer is cancelled before."""
        timer = Timer(when, callback)
        heapq.heappush(self._timers, timer)
        return timer

    def close_in_child(self) -> None:
        """Close what a forked child must not keep: the epoll is shared with it, so nothing may be unregistered."""
        self._selector.close()
        self._signals.close()

    def _turn(self) -> None:
        ready = self._selector.select(max(0.0, self._wake() - self._host.now()))
        self._read_signals()
        for worker_id in sorted(key.data for key, _ in ready if isinstance(key.data, int)):
            self._read_channel(worker_id)
        for event in self._host.reap():
            self._deliver(event)
        for key, events in ready:
            if callable(key.data) and self._selector.get_map().get(key.fd) == key:  # else unwatched a moment ago
                key.data(events)
        self._keep_time()

    def _keep_time(self) -> None:
        now = self._host.now()
        while self._timers and self._timers[0].when <= now:
            timer = heapq.heappop(self._timers)
            if not timer.cancelled:
                timer.callback()
        if now < self._wake():
            return
        self.post(self._host.beats())  # in place of a tick: nobody is judged by a stale beat
        if now >= self._next_sample:
            self._next_sample = now + _SAMPLE_SECONDS
            self._observer.on_sample(now)

    def _wake(self) -> float:
        wake = min(self._next_sample, self._timers[0].when) if self._timers else self._next_sample
        deadline = self._pool.deadline()
        return wake if deadline is None else min(deadline, wake)

    def _read_signals(self) -> None:
        for signum in self._signals.read():
            if signum.name != "SIGCHLD":
                self._observer.on_signal(signum)

    def _read_channel(self, worker_id: int) -> None:
        try:
            events = self._host.receive(worker_id)
        except messages.ChannelClosed:
            # Not a death: only waitpid(2) says that. A worker that closed its channel is watched by its beat.
            self._selector.unregister(self._host.channel(worker_id))
            return
        for event in events:
            self._deliver(event)

    def _deliver(self, event: Event) -> None:
        self.post(event)
        if isinstance(event, Exited | SpawnFailed):
            self._bury(event.worker_id)

    def _bury(self, worker_id: int) -> None:
        channel = self._host.channel(worker_id)
        if channel.fileno() in self._selector.get_map():
            self._selector.unregister(channel)
        self._host.bury(worker_id)

    def _execute(self, action: actions.Action) -> None:
        match action:
            case actions.Spawn():
                self._spawn(action)
            case actions.Drain():
                self._host.drain(action)
            case actions.Pause(worker_id=worker_id):
                self._host.pause(worker_id)
            case actions.Resume(worker_id=worker_id):
                self._host.resume(worker_id)
            case actions.Terminate(worker_id=worker_id):
                self._host.terminate(worker_id)
            case actions.DumpStacks(worker_id=worker_id):
                self._dump_stacks(worker_id)
            case actions.Abort(worker_id=worker_id):
                self._host.abort(worker_id)
            case actions.Kill(worker_id=worker_id):
                self._host.kill(worker_id)
            case actions.Finish(exit_code=exit_code):
                self._exit_code = exit_code
            case _:
                self._observer.on_notice(action)

    def _dump_stacks(self, worker_id: int) -> None:
        suspended = self._host.dump_stacks(worker_id)
        if suspended is not None:
            self._queue.append(suspended)

    def _spawn(self, order: actions.Spawn) -> None:
        answer = self._host.spawn(order)
        if answer is not None:
            self._queue.append(answer)
        if not isinstance(answer, SpawnFailed):
            self._selector.register(self._host.channel(order.worker_id), selectors.EVENT_READ, order.worker_id)
