"""WSGI applications (PEP 3333) behind the ASGI 3 signature: a2wsgi runs each request in one of its threads.

Theory of operation. A `_Call` stands for one request, and on both sides of a2wsgi. On the loop's side it is what a2wsgi
sends to, and takes everything to the end: a thread waits for room in a queue that would else be emptied no more once
`send` has failed. That the client is gone, or what was wrong with a message, is told the thread when it comes with its
next part. On the thread's side it is the application that a2wsgi calls, and holds what PEP 3333 asks of a server: the
head waits for the first part of the body, and may be replaced until then; input is read as it is asked for, so a body
is never in memory beyond what the connection buffers.

A thread cannot be cancelled. A request that is, at the end of a drain or of its time, leaves its thread behind, which
learns of it with its next part, or never: where it hangs is logged. When no thread is left the worker is of no use.

Field names with `_` are dropped: in an environ they could not be told from those with `-`, which proxies set.
"""

from __future__ import annotations

import asyncio
import io
import logging
import re
import sys
import threading
import traceback
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast
from urllib.parse import unquote_to_bytes

from procmgr.errors import ClientDisconnected, ConfigError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator, MutableMapping
    from types import TracebackType

    Scope = MutableMapping[str, Any]
    Message = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[Message]]
    Send = Callable[[Message], Awaitable[None]]
    Environ = dict[str, Any]
    Write = Callable[[bytes], object]
    Head = tuple[str, list[tuple[str, str]]]
    Bridge = Callable[[Scope, Receive, Send], Awaitable[None]]
    ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None]

T = TypeVar("T")
INSTALL: Final = "pip install 'procmgr[wsgi]'"
_CALL: Final = "procmgr.call"
_BLOCK: Final = 64 * 1024
_PATIENCE: Final = 1.0
"""Seconds that a request may wait for a thread before it is said that all are busy."""

_QUIET: Final = 10.0
"""Seconds between two such lines."""

_STATUS: Final = re.compile("[0-9]{3}( |$)")

log = logging.getLogger("procmgr.error")


class WSGI:
    """The WSGI application `app`, of which `threads` requests run at a time and others wait.

    `on_stuck` is called when every thread was left behind by a request that was cancelled. Raises `ConfigError` if
    a2wsgi is not installed.
    """

    def __init__(self, app: Callable[..., Iterable[bytes]], *, threads: int) -> None:
        try:
            from a2wsgi import WSGIMiddleware  # noqa: PLC0415 - an extra
        except ImportError:
            raise ConfigError(f"interface: wsgi needs a2wsgi: {INSTALL}") from None
        self.on_stuck: Callable[[], None] | None = None
        self._app = app
        self._threads = threads
        make = cast("Callable[..., Bridge]", WSGIMiddleware)  # its types know one kind of environ
        self._make = partial(make, _call, workers=threads)
        self._bridge: Bridge | None = None
        self._running: set[asyncio.Task[None]] = set()
        self._left_behind = 0
        self._said = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request; raises what the application raised."""
        if self._bridge is None:
            self._bridge = self._make()  # in the worker, not in a zygote, where no thread may be
        loop = asyncio.get_running_loop()
        call = _Call(self._app, receive, send, loop)
        if len(self._running) >= self._threads:
            call.waiting = loop.call_later(_PATIENCE, self._say_busy, loop)
        task = loop.create_task(call.run(self._bridge, {**scope, "headers": _fields(scope["headers"]), _CALL: call}))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            self._leave(call, task, scope)
            raise
        if call.error is not None:
            raise call.error

    def _leave(self, call: _Call, task: asyncio.Task[None], scope: Scope) -> None:
        """Go on without the call's thread; say where that is."""
        call.gone = ClientDisconnected("the request was cancelled")
        if task.done() or call.thread is None:
            return
        self._left_behind += 1
        task.add_done_callback(self._came_back)
        log.warning(
            "the thread of %s %s goes on, though the request was cancelled, at\n%s",
            scope["method"],
            ascii(scope["path"][:200])[1:-1],
            _stack(call.thread),
        )
        if self._left_behind == self._threads and self.on_stuck is not None:
            self.on_stuck()

    def _came_back(self, _: object) -> None:
        self._left_behind -= 1

    def _say_busy(self, loop: asyncio.AbstractEventLoop) -> None:
        if loop.time() >= self._said + _QUIET or not self._said:
            self._said = loop.time()
            log.warning("all %d threads are busy: a request has waited %g s for one", self._threads, _PATIENCE)


class _Call:
    """One request: what a2wsgi sends to in the loop, and what it calls and iterates in a thread."""

    __slots__ = (
        "_app",
        "_begun",
        "_head",
        "_loop",
        "_parts",
        "_receive",
        "_send",
        "_start",
        "_write",
        "error",
        "gone",
        "thread",
        "waiting",
    )

    _parts: Iterable[bytes]
    _start: Callable[..., Write]
    _write: Write

    def __init__(
        self, app: Callable[..., Iterable[bytes]], receive: Receive, send: Send, loop: asyncio.AbstractEventLoop
    ) -> None:
        self._app = app
        self._receive = receive
        self._send = send
        self._loop = loop
        self._head: Head | None = None
        self._begun = False
        self.error: BaseException | None = None
        self.gone: BaseException | None = None
        """Why nothing more can be sent; the thread is to end by it."""
        self.thread: int | None = None
        self.waiting: asyncio.TimerHandle | None = None

    # -- in the loop ---------------------------------------------------------------------------------------------

    async def run(self, bridge: Bridge, scope: Scope) -> None:
        """Run to the thread's end; what was raised is in `error`: SystemExit must not reach the loop."""
        try:
            await bridge(scope, self._receive, self.send)
        except BaseException as error:  # noqa: BLE001 - see above
            self.error = error
        if self.error is None:
            self.error = self.gone
        if self.waiting is not None:
            self.waiting.cancel()

    async def send(self, message: Message) -> None:
        """Send on, as long as that can be done."""
        if self.gone is None:
            try:
                await self._send(message)
            except Exception as error:  # noqa: BLE001 - it is raised in the thread
                self.gone = error

    async def _next(self) -> Message:
        return await self._receive()

    def _started(self) -> None:
        if self.waiting is not None:
            self.waiting.cancel()

    # -- in the thread -------------------------------------------------------------------------------------------

    def respond(self, environ: Environ, start: Callable[..., Write]) -> _Call:
        """Call the application; `start` is a2wsgi's start_response. What is returned is iterated, then closed."""
        self.thread = threading.get_ident()  # first: who cancels sets `gone` and then looks here
        self._go_on()
        if self.waiting is not None:
            self._loop.call_soon_threadsafe(self._started)
        self._start = start
        environ["wsgi.input"] = io.BufferedReader(_Body(self))
        self._parts = _result(self._app, environ, self.start_response)
        return self

    def __iter__(self) -> Iterator[bytes]:
        for part in self._parts:
            if not isinstance(part, bytes):
                raise TypeError(f"the application gave {type(part).__name__} as a part of its body; expected bytes")
            if part:
                self._begin()
                yield part
        self._begin()

    def close(self) -> None:
        """Tell the application that the response is over (PEP 3333: always)."""
        if (close := getattr(self._parts, "close", None)) is not None:
            _result(close)

    def start_response(self, status: str, headers: list[tuple[str, str]], exc_info: ExcInfo | None = None) -> Write:
        """Take the head, or with `exc_info` another; that is raised if the first is on its way."""
        if exc_info is not None:
            try:
                if self._begun:
                    raise exc_info[1].with_traceback(exc_info[2])
            finally:
                exc_info = None  # its traceback refers to this frame
        elif self._head is not None:
            raise RuntimeError("start_response() was called again without exc_info")
        if not _STATUS.match(status):
            raise ValueError(f"bad status {status!r:.100}; expected a code and a reason, as in '200 OK'")
        self._head = status[:3], list(headers)
        return self.write

    def write(self, data: bytes) -> None:
        """Send a part of the body, as old applications do."""
        self._begin()
        if data:
            self._write(data)

    def more(self) -> tuple[bytes, bool]:
        """Return a further part of the request's body, and whether it was the last; raises `ClientDisconnected`."""
        self._go_on()
        message = asyncio.run_coroutine_threadsafe(self._next(), self._loop).result()
        if message["type"] == "http.disconnect":
            raise ClientDisconnected("the client went in the middle of its request")
        return message["body"], not message["more_body"]

    def _begin(self) -> None:
        """Send the head if that was not done, and go on only if somebody waits for more."""
        self._go_on()
        if self._begun:
            return
        if self._head is None:
            raise RuntimeError("the application did not call start_response() before its body")
        self._begun = True
        status, headers = self._head
        self._write = self._start(f"{status} -", headers)

    def _go_on(self) -> None:
        if self.gone is not None:
            raise self.gone


class _Body(io.RawIOBase):
    """The body of a request, read as it is asked for."""

    def __init__(self, call: _Call) -> None:
        self._call = call
        self._part = memoryview(b"")
        self._ended = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401 - there is no type for it before Python 3.12
        """Fill `buffer` with what there is, at least a byte but at the end; raises `ClientDisconnected`."""
        while not self._part and not self._ended:
            part, self._ended = self._call.more()
            self._part = memoryview(part)
        size = min(len(buffer), len(self._part))
        buffer[:size] = self._part[:size]
        self._part = self._part[size:]
        return size


class _FileWrapper:
    """An iterable over a file, in blocks that are worth a change of threads (PEP 3333, wsgi.file_wrapper)."""

    def __init__(self, file: Any, size: int = _BLOCK) -> None:  # noqa: ANN401 - whatever has read()
        self._file = file
        self._size = max(size, _BLOCK)
        if hasattr(file, "close"):
            self.close = file.close

    def __iter__(self) -> Iterator[bytes]:
        while block := self._file.read(self._size):
            yield block


def _call(environ: Environ, start: Callable[..., Write]) -> _Call:
    """Be the application that a2wsgi knows, for the call in the scope."""
    scope = environ["asgi.scope"]
    call = cast("_Call", scope.pop(_CALL))
    query = f"?{environ['QUERY_STRING']}" if environ["QUERY_STRING"] else ""
    environ["RAW_URI"] = environ["REQUEST_URI"] = f"{scope['raw_path'].decode('latin-1')}{query}"
    if "\ufffd" in scope["path"]:
        environ["PATH_INFO"] = _exact_path(scope)
    environ["SERVER_SOFTWARE"] = "procmgr"
    environ["wsgi.errors"] = sys.stderr
    environ["wsgi.file_wrapper"] = _FileWrapper
    environ["wsgi.input_terminated"] = True
    return call.respond(environ, start)


def _result(function: Callable[..., T], *arguments: object) -> T:
    """Call; StopIteration becomes another error, as in generators (PEP 479): a future takes any but that, and hangs."""
    try:
        return function(*arguments)
    except StopIteration as error:
        raise RuntimeError("the application raised StopIteration") from error


def _exact_path(scope: Scope) -> str:
    """Return the bytes of a path that is not UTF-8 as PEP 3333 wants them, without the root path."""
    root = scope.get("root_path", "").encode()
    return unquote_to_bytes(scope["raw_path"]).removeprefix(root).decode("latin-1")


def _fields(fields: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Return the fields of a request that an environ can tell apart, with all cookies in one (RFC 9113 8.2.3)."""
    kept = [field for field in fields if b"_" not in field[0]]
    cookies = [value for name, value in kept if name == b"cookie"]
    if len(cookies) > 1:
        kept = [(name, value) for name, value in kept if name != b"cookie"]
        kept.append((b"cookie", b"; ".join(cookies)))
    return kept


def _stack(thread: int) -> str:
    frame = sys._current_frames().get(thread)  # noqa: SLF001 - documented, and meant for this
    return "it has ended" if frame is None else "".join(traceback.format_stack(frame, 20)[-20:]).rstrip("\n")
