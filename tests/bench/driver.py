"""Load that wrk cannot make: over a Unix socket, over WebSockets, at a given rate, or none on many connections.

Started as ``python driver.py HOW ADDRESS …`` (see `options`) with the interpreter of a bench environment, for its
uvloop. It writes its result as one line of JSON; `hold` writes a line when all connections are open and were answered,
and holds them until its standard input ends.

A client does as little as possible: it sends one prepared request, and counts the bytes of its answer, all answers of a
server being as long as its first. So it stays faster than every server, also on one core.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import statistics
import sys
import time
from collections import deque
from typing import TYPE_CHECKING

import uvloop

if TYPE_CHECKING:
    from collections.abc import Callable

GET = b"GET %b HTTP/1.1\r\nHost: bench\r\n\r\n"
UPGRADE = (
    b"GET %b HTTP/1.1\r\nHost: bench\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n%b\r\n"
)
DEFLATE = b"Sec-WebSocket-Extensions: permessage-deflate\r\n"
END = b"\r\n\r\n"
PATIENCE = 20.0


class WrongError(Exception):
    """The server did not answer as it should."""


class Client(asyncio.Protocol):
    """One connection: sends `request`, counts the answer, tells `answered`."""

    def __init__(self, request: bytes, answered: Callable[[Client], None]) -> None:
        self.request, self._answered = request, answered
        self.begun = 0.0
        self._length = self._have = 0
        self._first = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask for the first answer, by which the length of all is known."""
        self.transport = transport
        self.ask()

    def ask(self) -> None:
        """Send the request."""
        self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        """Count the answer; whoever answers more than was asked for is found out by the next count."""
        if not self._length:
            self._first += data
            head, found, body = self._first.partition(END)
            if not found:
                return
            if not head.startswith(b"HTTP/1.1 200 "):
                raise WrongError(f"{head[:80]!r}")
            lines = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
            self._length = len(head) + len(END) + int(lines[b"content-length"])
            self._have = len(head) + len(END) + len(body)
        else:
            self._have += len(data)
        if self._have == self._length:
            self._have = 0
            self._answered(self)
        elif self._have > self._length:
            raise WrongError(f"{self._have} bytes instead of {self._length}")


class SocketClient(Client):
    """One WebSocket: sends the same message again and again, and counts the frames that come back."""

    message: bytes
    _open = False

    def data_received(self, data: bytes) -> None:
        """Take frames of the server: final, of one message each, not masked (RFC 6455 section 5.2)."""
        self._first += data
        if not self._open:
            head, found, rest = self._first.partition(END)
            if not found:
                return
            if not head.startswith(b"HTTP/1.1 101 "):
                raise WrongError(f"{head[:80]!r}")
            self._open, self._first = True, rest
            self.request = self.message_for(head)
            self._answered(self)
        while (end := _frame_end(self._first)) is not None:
            opcode = self._first[0] & 0x0F
            self._first = self._first[end:]
            if opcode in (1, 2):
                self._answered(self)
            elif opcode == 8:
                raise WrongError("the WebSocket was closed")

    def message_for(self, head: bytes) -> bytes:
        """Give the message as one frame, compressed if the server agreed."""
        compressed = b"permessage-deflate" in head.lower()
        if self.compress and not compressed:
            raise WrongError("the server did not agree to permessage-deflate")
        return _frame(self.payload, compress=compressed)

    payload = b""
    compress = False


def _frame(payload: bytes, *, compress: bool) -> bytes:
    """Render a text message as a client's frame, masked with zeros (which change nothing); RFC 7692 section 7.2.1."""
    first = 0x81
    if compress:
        import zlib

        deflate = zlib.compressobj(wbits=-15)
        payload = (deflate.compress(payload) + deflate.flush(zlib.Z_SYNC_FLUSH))[:-4]
        first |= 0x40
    size = len(payload)
    if size < 126:
        head = bytes((first, 0x80 | size))
    elif size < 65536:
        head = bytes((first, 0x80 | 126)) + size.to_bytes(2, "big")
    else:
        head = bytes((first, 0x80 | 127)) + size.to_bytes(8, "big")
    return head + bytes(4) + payload


def _frame_end(data: bytes) -> int | None:
    """Give where the frame at the beginning of `data` ends, None if it is not whole."""
    if len(data) < 2:
        return None
    size, at = data[1] & 0x7F, 2
    if size >= 126:
        at = 4 if size == 126 else 10
        size = int.from_bytes(data[2:at], "big")
    return at + size if len(data) >= at + size and at <= len(data) else None


class Load:
    """All clients, and what they saw."""

    def __init__(self, chosen: argparse.Namespace) -> None:
        self._chosen = chosen
        self._ready = asyncio.Event()
        self._asleep: deque[Client] = deque()
        self._due: deque[float] = deque()
        self._waiting = chosen.connections
        self.latencies: list[float] = []
        self.answers = 0
        self.begin = self._begun
        self.problem: Exception | None = None
        self._ending = False

    def _begun(self, client: Client) -> None:
        """Take a client's first answer."""
        self._asleep.append(client)
        self._waiting -= 1
        if not self._waiting:
            self._ready.set()

    def answered(self, client: Client) -> None:
        """Take an answer."""
        self.begin(client)

    def _again(self, client: Client) -> None:
        self.answers += 1
        client.ask()

    def _timed(self, client: Client) -> None:
        self.latencies.append(time.perf_counter() - client.begun)
        if self._due:
            client.begun = self._due.popleft()
            client.ask()
        else:
            self._asleep.append(client)

    def failed(self, context: dict[str, object]) -> None:
        """Take what went wrong in a client."""
        error = context.get("exception")
        if self.problem is None:  # the first is the cause of the others
            self.problem = error if isinstance(error, Exception) else WrongError(str(context.get("message")))
        self._ready.set()

    async def connect(self) -> None:
        """Open all connections, and have the first answer of each."""
        loop, chosen = asyncio.get_running_loop(), self._chosen
        loop.set_exception_handler(lambda _, context: self.failed(context))
        for _ in range(chosen.connections):
            if chosen.address.startswith("/"):
                await loop.create_unix_connection(self._client, chosen.address)
            else:
                host, _, port = chosen.address.rpartition(":")
                await loop.create_connection(self._client, host, int(port))
        await asyncio.wait_for(self._ready.wait(), PATIENCE)
        self.check()

    def _client(self) -> Client:
        chosen = self._chosen
        target = chosen.path.encode()
        if not chosen.message:
            client = Client(GET % target, self.answered)
        else:
            client = SocketClient(UPGRADE % (target, DEFLATE if chosen.deflate else b""), self.answered)
            client.payload, client.compress = _text(chosen.message), chosen.deflate
        lost = client.connection_lost
        client.connection_lost = lambda exc: (lost(exc), self._lost())  # type: ignore[method-assign] # told to the load
        return client

    def _lost(self) -> None:
        if not self._ending:
            self.failed({"message": "the server closed a connection"})

    def check(self) -> None:
        """Raise what went wrong."""
        if self.problem is not None:
            raise self.problem

    async def closed(self, seconds: float) -> dict[str, float]:
        """Ask again as soon as each is answered."""
        self.begin = self._again
        for client in tuple(self._asleep):
            client.ask()
        begin = time.perf_counter()
        await asyncio.sleep(seconds)
        self.check()
        return {"per_second": self.answers / (time.perf_counter() - begin), "answers": self.answers}

    async def paced(self, seconds: float, rate: float) -> dict[str, float]:
        """Ask at a rate; time counts from when a request was due, whether or not a connection was free then."""
        self.begin = self._timed
        begin = now = time.perf_counter()
        number = 0
        while now < begin + seconds:
            while begin + number / rate <= now:
                due, number = begin + number / rate, number + 1
                if self._asleep:
                    client = self._asleep.popleft()
                    client.begun = due
                    client.ask()
                else:
                    self._due.append(due)
            await asyncio.sleep(0.0005)
            now = time.perf_counter()
        self.check()
        if len(self.latencies) < number / 2:
            raise WrongError(f"{len(self.latencies)} answers to {number} requests")
        cuts = statistics.quantiles(self.latencies, n=100)
        return {"p50": cuts[49], "p99": cuts[98], "answers": len(self.latencies)}

    def end(self) -> None:
        """Let connections close from now on."""
        self._ending = True


def _text(size: int) -> bytes:
    """Make a text that compresses as texts do."""
    words = b"".join(
        b'{"id":%d,"name":"customer number %d","tags":["a%d","b"]},' % (n, n * 7, n % 13) for n in range(2000)
    )
    return (words * (size // len(words) + 1))[:size]


def options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="bench.driver")
    parser.add_argument("how", choices=("closed", "paced", "hold"))
    parser.add_argument("address", help="HOST:PORT, or the path of a Unix socket")
    parser.add_argument("--path", default="/")
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--rate", type=float, default=1000.0, help="of all connections together, per second")
    parser.add_argument("--message", type=int, default=0, help="bytes of a WebSocket message; 0 is plain HTTP")
    parser.add_argument("--deflate", action="store_true", help="insist on permessage-deflate")
    return parser.parse_args()


async def main(chosen: argparse.Namespace) -> dict[str, float]:
    """Make the load."""
    load = Load(chosen)
    await load.connect()
    match chosen.how:
        case "closed":
            result = await load.closed(chosen.seconds)
        case "paced":
            result = await load.paced(chosen.seconds, chosen.rate)
        case _:
            print(json.dumps({"open": chosen.connections}), flush=True)
            await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
            load.check()  # none was closed meanwhile
            result = {"open": chosen.connections}
    load.end()
    return result


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    try:
        print(json.dumps(uvloop.run(main(options()))))
    except (WrongError, OSError, TimeoutError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
