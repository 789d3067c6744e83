"""Constant load without retries: every request that was not answered is a failure with its reason.

Keep-alive clients hold one connection each, fresh clients open one per request; every third request is a POST of
16 KiB whose body must come back. A connection may be closed only by an answer that announced it (`Connection: close`)
or before a request was sent on it; whatever else ends a request is recorded. The load is bounded in clients, in
requests per second and in time.
"""

from __future__ import annotations

import asyncio
import json
import select
import time
from array import array
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from threading import Condition, Thread
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

_BODY = bytes(range(256)) * 64
_PAUSE_SECONDS = 0.01


@dataclass(slots=True, kw_only=True)
class Failure:
    """A request that was not answered as it should be; `pid` is who had answered on this connection before.

    `begun` and `at` are when it was begun and when it failed (monotonic seconds).
    """

    reason: str
    request: str
    served_before: int
    pid: int | None
    begun: float
    at: float


@dataclass(slots=True, kw_only=True)
class Result:
    """What became of the requests; `times` is when each answer was complete, `pids` counts those of each worker."""

    answered: int = 0
    times: array[float] = field(default_factory=lambda: array("d"))
    failures: list[Failure] = field(default_factory=list)
    pids: Counter[int] = field(default_factory=Counter)


class Load:
    """A context manager: load runs on a thread of its own from entry to exit; `result` is complete afterwards.

    `pause` is the clients' think time in seconds, which bounds the rate. `seconds` bounds the load should its exit
    never come: a test on a busy machine takes long. `enter` is called first on its thread.
    With `tls` the clients speak it, to a.test.
    """

    def __init__(
        self,
        port: int,
        *,
        keep_alive: int = 8,
        fresh: int = 4,
        seconds: float = 900.0,
        pause: float = _PAUSE_SECONDS,
        enter: Callable[[], None] = lambda: None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.result = Result()
        self.pause = pause
        self._port = port
        self.tls = tls
        self._clients = [*(True for _ in range(keep_alive)), *(False for _ in range(fresh))]
        self._seconds = seconds
        self._stop = False
        self._changed = Condition()
        self._enter = enter
        self._thread = Thread(target=self._work, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self.wait_answers(len(self._clients))
        return self

    def __exit__(self, *_: object) -> None:
        self._stop = True
        self._thread.join(timeout=30)
        assert not self._thread.is_alive(), "a client waits for ever for its answer"

    def wait_answers(self, more: int, timeout: float = 30.0) -> None:
        """Wait until `more` requests were answered from now on."""
        with self._changed:
            goal = self.result.answered + more
            reached = self._changed.wait_for(lambda: self.result.answered >= goal, timeout)
        assert reached, f"no {more} answers in {timeout} s; failures: {self.result.failures[:5]}"

    def answering(self) -> set[int]:
        """Return the pids that have answered so far."""
        with self._changed:
            return set(self.result.pids)

    def _work(self) -> None:
        self._enter()
        asyncio.run(self._main())

    async def _main(self) -> None:
        end = time.monotonic() + self._seconds
        await asyncio.gather(*(_Client(self, keep).run(number, end) for number, keep in enumerate(self._clients)))

    def running(self, end: float) -> bool:
        """Tell whether clients go on."""
        return not self._stop and time.monotonic() < end

    def record(self, failure: Failure | None, pid: int | None) -> None:
        """Count one request."""
        with self._changed:
            if failure is not None:
                self.result.failures.append(failure)
            else:
                self.result.answered += 1
                self.result.times.append(time.monotonic())
                if pid is not None:
                    self.result.pids[pid] += 1
            self._changed.notify_all()

    @property
    def port(self) -> int:
        """Where the load goes."""
        return self._port


class _Client:
    """One client, with at most one connection."""

    def __init__(self, load: Load, keep_alive: bool) -> None:
        self._load = load
        self._keep_alive = keep_alive
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._served = 0
        self._pid: int | None = None

    async def run(self, number: int, end: float) -> None:
        count = number
        while self._load.running(end):
            count += 1
            await self._request(post=count % 3 == 0)
            await asyncio.sleep(self._load.pause)
        await self._close()

    async def _request(self, *, post: bool) -> None:
        what, begun = "connect", time.monotonic()
        try:
            reader, writer = await self._connection()
            what = "POST" if post else "GET"
            writer.write(self._render(post))
            status, headers, body = await asyncio.wait_for(_response(reader), 20)
            if status != 200 or (post and body != _BODY):
                raise ValueError(f"answered {status} with {body[:200]!r}")
            if not post:
                self._pid = int(json.loads(body)["pid"])
        except (OSError, ValueError, asyncio.IncompleteReadError, TimeoutError) as error:
            reason = f"{type(error).__name__}: {error}"
            failure = Failure(
                reason=reason,
                request=what,
                served_before=self._served,
                pid=self._pid,
                begun=begun,
                at=time.monotonic(),
            )
            self._load.record(failure, None)
            await self._close()
            return
        self._served += 1
        self._load.record(None, self._pid)
        if not self._keep_alive or headers.get("connection", "").lower() == "close":
            await self._close()

    async def _connection(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._streams is not None and _ended(*self._streams):
            await self._close()  # closed while idle, before this request was sent
        if self._streams is None:
            name = None if self._load.tls is None else "a.test"
            self._streams = await asyncio.open_connection(
                "127.0.0.1", self._load.port, ssl=self._load.tls, server_hostname=name
            )
        return self._streams

    async def _close(self) -> None:
        self._served, self._pid = 0, None
        if self._streams is not None:
            writer, self._streams = self._streams[1], None
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    def _render(self, post: bool) -> bytes:
        close = "" if self._keep_alive else "Connection: close\r\n"
        if not post:
            return f"GET / HTTP/1.1\r\nHost: test\r\n{close}\r\n".encode()
        head = f"POST /echo HTTP/1.1\r\nHost: test\r\n{close}Content-Length: {len(_BODY)}\r\n\r\n"
        return head.encode() + _BODY


def _ended(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    """Tell whether the server has closed, by the kernel too: on a busy machine the loop hears of it late."""
    if reader.at_eof() or writer.is_closing():
        return True
    poll = select.poll()
    poll.register(writer.get_extra_info("socket"), select.POLLRDHUP)
    return bool(poll.poll(0))


async def _response(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
    body = await reader.readexactly(int(headers["content-length"]))
    return int(head[0].split()[1]), headers, body
