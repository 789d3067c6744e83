"""WSGI applications (PEP 3333) behind the ASGI 3 signature: a2wsgi makes their environ and runs them in its threads.

Theory of operation. A `_Call` stands for one request. In a thread it is the application that a2wsgi calls, and does
there what PEP 3333 asks of a server: the head waits for the first part of the body, and may be replaced until then;
input is read as it is asked for, so a body is never in memory beyond what the connection buffers. Parts do not go by
a2wsgi's queue, which costs a thread three waits for the loop in every request, and in which it waits for ever once
`send` has failed. They are handed to the loop one by one: who brings the next part waits for the one before, and is
told by an exception that the client is gone, or what was wrong with it. So a2wsgi must not send an end of its own: the
call ends with `_Sent`.

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
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar, cast
from urllib.parse import unquote_to_bytes

from procmgr.errors import ClientDisconnected, ConfigError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator, MutableMapping
    from concurrent.futures import Future
    from types import TracebackType

    Scope = MutableMapping[str, Any]
    Message = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[Message]]
    Send = Callable[[Message], Awaitable[None]]
    Environ = dict[str, Any]
    Write = Callable[[bytes], object]
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

    `on_stuck` is called when every thread was left behind by requests that were cancelled. Raises `ConfigError` if
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
        if not call.freed:
            log.warning(
                "the thread of %s %s goes on, though the request was cancelled, at\n%s",
                scope["method"],
                ascii(scope["path"][:200])[1:-1],
                _stack(call.thread),
            )
        if self._left_behind >= self._threads:
            # Not at once: slow clients hold all threads too, and those come back as soon as they are told.
            asyncio.get_running_loop().call_later(_PATIENCE, self._judge)

    def _judge(self) -> None:
        if self._left_behind >= self._threads and self.on_stuck is not None:
            self.on_stuck()

    def _came_back(self, _: object) -> None:
        self._left_behind -= 1

    def _say_busy(self, loop: asyncio.AbstractEventLoop) -> None:
        if loop.time() >= self._said + _QUIET or not self._said:
            self._said = loop.time()
            log.warning("all %d threads are busy: a request has waited %g s for one", self._threads, _PATIENCE)


class _Sent(Exception):  # noqa: N818 - no error
    """The application has ended, and all that it sent is on its way."""


class _Call:
    """One request, in the loop and in its thread."""

    __slots__ = (
        "_app",
        "_begun",
        "_complete",
        "_head",
        "_left",
        "_loop",
        "_receive",
        "_send",
        "_sending",
        "error",
        "freed",
        "gone",
        "thread",
        "waiting",
    )

    def __init__(
        self, app: Callable[..., Iterable[bytes]], receive: Receive, send: Send, loop: asyncio.AbstractEventLoop
    ) -> None:
        self._app = app
        self._receive = receive
        self._send = send
        self._loop = loop
        self._head: Message | None = None
        self._left: int | None = None
        self._begun = self._complete = False
        self._sending: Future[None] | None = None
        self.error: BaseException | None = None
        self.gone: BaseException | None = None
        """Why nothing more can be sent; the thread is to end by it."""
        self.thread: int | None = None
        self.freed = False
        """Whether the thread has ended or waits for the loop, which lets it go on once the request is cancelled."""
        self.waiting: asyncio.TimerHandle | None = None

    # -- in the loop ---------------------------------------------------------------------------------------------

    async def run(self, bridge: Bridge, scope: Scope) -> None:
        """Run to the thread's end; what was raised is in `error`: SystemExit must not reach the loop."""
        try:
            try:
                with suppress(_Sent):
                    await bridge(scope, self._receive, self._send)
            finally:
                if self._sending is not None:  # before it is told how the application ended
                    await asyncio.wrap_future(self._sending)
        except BaseException as error:  # noqa: BLE001 - see above
            self.error = error
        self._started()

    async def _deliver(self, head: Message | None, part: bytes, more: bool) -> None:  # noqa: FBT001 - hot path
        self._go_on()
        if head is not None:
            await self._send(head)
        await self._send({"type": "http.response.body", "body": part, "more_body": more})

    async def _next(self) -> Message:
        return await self._receive()

    def _started(self) -> None:
        if self.waiting is not None:
            self.waiting.cancel()

    # -- in the thread -------------------------------------------------------------------------------------------

    def respond(self, environ: Environ) -> NoReturn:
        """Run the application; raises what it raises, in the end `_Sent`."""
        self.thread = threading.get_ident()  # first: who cancels sets `gone` and then looks here
        self._go_on()
        if self.waiting is not None:
            self._loop.call_soon_threadsafe(self._started)
        environ["wsgi.input"] = io.BufferedReader(_Body(self))
        try:
            self._send_all(self._app(environ, self.start_response))
        except StopIteration as error:  # as in generators (PEP 479): a future takes any but that, and hangs
            raise RuntimeError("the application raised StopIteration") from error
        finally:
            self.freed = True
        raise _Sent

    def _send_all(self, parts: Iterable[bytes]) -> None:
        """Send the body; tell the application in any case that it is over."""
        try:
            for part in parts:
                if not isinstance(part, bytes):
                    raise TypeError(f"the application gave {type(part).__name__} as a part of its body, not bytes")
                if part:
                    self.write(part)
            if not self._complete:
                self._hand_over(b"", more=False)
        finally:
            if (close := getattr(parts, "close", None)) is not None:
                close()

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
        fields = [(name.encode("latin-1").lower(), value.encode("latin-1")) for name, value in headers]
        length = next((value for name, value in fields if name == b"content-length"), b"")
        self._left = int(length) if length.isdigit() else None
        self._head = {"type": "http.response.start", "status": int(status[:3]), "headers": fields}
        return self.write

    def write(self, data: bytes) -> None:
        """Send a part of the body; the one that is the last by Content-Length ends the response."""
        if self._left is not None:
            self._left -= len(data)
        self._hand_over(data, more=self._left != 0)

    def more(self) -> tuple[bytes, bool]:
        """Return a further part of the request's body, and whether it was the last; raises `ClientDisconnected`."""
        self._go_on()
        message = self._result(asyncio.run_coroutine_threadsafe(self._next(), self._loop))
        if message["type"] == "http.disconnect":
            raise ClientDisconnected("the client went in the middle of its request")
        return message["body"], not message["more_body"]

    def _hand_over(self, part: bytes, *, more: bool) -> None:
        """Give a part to the loop, with the head if it is the first, once the part before has been sent."""
        if self._head is None:
            raise RuntimeError("the application did not call start_response() before its body")
        if self._complete:
            raise RuntimeError("more bytes of body than content-length says")
        if self._sending is not None:
            sending, self._sending = self._sending, None
            self._result(sending)
        self._go_on()
        head = None if self._begun else self._head
        self._begun, self._complete = True, not more
        self._sending = asyncio.run_coroutine_threadsafe(self._deliver(head, part, more), self._loop)

    def _result(self, future: Future[T]) -> T:
        self.freed = True
        try:
            return future.result()
        finally:
            self.freed = False

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


def _call(environ: Environ, _start_response: Callable[..., Write]) -> NoReturn:
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
    call.respond(environ)


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
