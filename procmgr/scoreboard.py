"""The scoreboard: levels in shared memory, a row of 8-byte cells per worker; the worker writes, the arbiter reads.

Beside its row each worker has records of the requests it runs: a worker whose loop is blocked cannot tell any more.

Theory of operation: the arbiter creates one sealed memfd and maps it; workers inherit the mapping across the fork. A
row is leased to a worker id and handed out again only after that worker was reaped, so a row has one writer at any
time. An aligned 8-byte store does not tear, hence neither side locks. What a worker writes is untrusted: cells are
numbers and never sizes or offsets, and what a record says is escaped before it is shown. A record may be read while it
is written: at worst it shows the age of one request with the target of another. Counters of a released row are folded
into totals, so sums never go backwards.

The memfd is sealed against shrinking, growing and further seals: otherwise an unprivileged worker's ftruncate(2) would
kill the arbiter with SIGBUS (memfd_create(2), fcntl(2) "File Sealing").
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
from dataclasses import dataclass
from enum import Enum
from time import monotonic_ns
from typing import Final, Self

from procmgr.handover import Descriptor
from procmgr.plain import record

LAYOUT_VERSION: Final = 2
MAX_ROWS: Final = 1024
ROW_CELLS: Final = 64
CELL_BYTES: Final = 8
ROW_BYTES: Final = ROW_CELLS * CELL_BYTES
RECORDS: Final = 64
RECORD_BYTES: Final = 128
RECORDS_BYTES: Final = RECORDS * RECORD_BYTES
BEAT_SECONDS: Final = 1.0
"""How often a worker stamps its BEAT."""

_RECORD: Final = struct.Struct("=Q120s")  # when it began, CLOCK_MONOTONIC ns, 0 in a free record; its head, cut
_pack_record: Final = _RECORD.pack_into
_RECORDS_AT: Final = (MAX_ROWS + 1) * ROW_BYTES  # row 0 of the memory is the header
_SIZE: Final = _RECORDS_AT + MAX_ROWS * RECORDS_BYTES
_MAGIC: Final = 0x70726F636D6772  # "procmgr"


class Kind(Enum):
    """How a value is read: a counter only grows, a gauge is a current level, a stamp is CLOCK_MONOTONIC in ns."""

    COUNTER = "counter"
    GAUGE = "gauge"
    STAMP = "stamp"


@dataclass(frozen=True, slots=True)
class CellSpec:
    """One cell of a row: its position, its name in metrics and status, and what it counts (unit in the text)."""

    index: int
    name: str
    kind: Kind
    help: str


BEAT: Final = 0
LAG: Final = 1
CONNECTIONS: Final = 2
ACTIVE: Final = 3
ACCEPTED: Final = 4
REQUESTS: Final = 5
STATUS_1XX: Final = 6
STATUS_2XX: Final = 7
STATUS_3XX: Final = 8
STATUS_4XX: Final = 9
STATUS_5XX: Final = 10
APP_ERRORS: Final = 11
LOG_DROPPED: Final = 12
DEBUGGING: Final = 13
TLS_FAILED: Final = 14
CPU: Final = 15

LAYOUT: Final = (
    CellSpec(BEAT, "beat", Kind.STAMP, "when the event loop last turned, CLOCK_MONOTONIC nanoseconds"),
    CellSpec(LAG, "lag", Kind.GAUGE, "how late the last beat was, nanoseconds"),
    CellSpec(CONNECTIONS, "connections", Kind.GAUGE, "open connections"),
    CellSpec(ACTIVE, "active", Kind.GAUGE, "requests running in the application"),
    CellSpec(ACCEPTED, "accepted", Kind.COUNTER, "connections accepted"),
    CellSpec(REQUESTS, "requests", Kind.COUNTER, "requests whose response ended"),
    CellSpec(STATUS_1XX, "status_1xx", Kind.COUNTER, "responses with an informational status"),
    CellSpec(STATUS_2XX, "status_2xx", Kind.COUNTER, "responses with a successful status"),
    CellSpec(STATUS_3XX, "status_3xx", Kind.COUNTER, "responses with a redirecting status"),
    CellSpec(STATUS_4XX, "status_4xx", Kind.COUNTER, "responses with a client error status"),
    CellSpec(STATUS_5XX, "status_5xx", Kind.COUNTER, "responses with a server error status"),
    CellSpec(APP_ERRORS, "app_errors", Kind.COUNTER, "requests in which the application misbehaved"),
    CellSpec(LOG_DROPPED, "log_dropped", Kind.COUNTER, "log lines dropped because their reader stalled"),
    CellSpec(DEBUGGING, "debugging", Kind.GAUGE, "1 once a person debugs this worker on its terminal"),
    CellSpec(TLS_FAILED, "tls_failed", Kind.COUNTER, "connections whose TLS handshake failed"),
    CellSpec(CPU, "cpu", Kind.COUNTER, "processor time of the process as of its last beat, nanoseconds"),
)

COUNTERS: Final = tuple(spec.index for spec in LAYOUT if spec.kind is Kind.COUNTER)

Row = memoryview
"""A row is a writable memoryview of ROW_CELLS unsigned 64-bit integers: `row[BEAT] = now_ns`."""


def detached_row() -> Row:
    """Return a row in private memory, for a worker that runs without an arbiter."""
    return memoryview(bytearray(ROW_BYTES)).cast("Q")


Records = memoryview
"""A worker's records of requests in flight are a writable memoryview of RECORDS_BYTES bytes."""


class InFlight:
    """The worker's side of its records: which requests run in the application. Without `records` nobody reads them."""

    __slots__ = ("_free", "_memory", "_stamps")

    def __init__(self, records: Records | None = None) -> None:
        self._memory = memoryview(bytearray(RECORDS_BYTES)) if records is None else records
        self._stamps = self._memory.cast("Q")
        self._free = list(range(0, RECORDS_BYTES, RECORD_BYTES))

    def begin(self, head: bytes) -> int:
        """Record a request by its head as it came: what is shown of it, the reader takes out.

        Returns what `end` wants. Of more than RECORDS at a time the rest is not recorded.
        """
        try:
            place = self._free.pop()
        except IndexError:
            return -1
        _pack_record(self._memory, place, monotonic_ns(), head)
        return place

    def end(self, place: int) -> None:
        """Clear the record of a request that left the application."""
        if place >= 0:
            self._stamps[place >> 3] = 0
            self._free.append(place)


def running(records: Records, most: int = RECORDS) -> list[tuple[int, str]]:
    """Return the `most` oldest requests in flight: when each began (CLOCK_MONOTONIC ns) and "METHOD /path", escaped.

    Oldest first; without the query and the fields, which may have secrets.
    """
    found = sorted(record for record in _RECORD.iter_unpack(records) if record[0])
    return [(began, _method_and_path(head)) for began, head in found[:most]]


def _method_and_path(head: bytes) -> str:
    method, _, rest = head.rstrip(b"\0").partition(b" ")
    path = rest.partition(b" ")[0].partition(b"?")[0]
    return ascii(b"%b %b" % (method, path))[2:-1]


@record
class BoardEstate:
    """A scoreboard as it is handed over; totals by the names of their cells, whose positions belong to `layout`."""

    fd: Descriptor
    leased: tuple[int, ...]
    totals: dict[str, int]
    layout: int = LAYOUT_VERSION


class Scoreboard:
    """The arbiter's side: creates the memory, leases rows, folds counters.

    Raises `OSError` when the memfd cannot be created or sealed, `RuntimeError` when all rows are leased.
    """

    def __init__(self, *, fd: int | None = None) -> None:
        """Create the memory, or map what is behind `fd`."""
        self.fd = _create(_SIZE) if fd is None else fd
        self._map = mmap.mmap(self.fd, _SIZE)
        self._memory = memoryview(self._map)
        self._cells = self._memory.cast("Q")
        if fd is None:
            self._cells[0], self._cells[1] = _MAGIC, LAYOUT_VERSION
        elif (self._cells[0], self._cells[1]) != (_MAGIC, LAYOUT_VERSION):
            raise ValueError(f"not a scoreboard of layout {LAYOUT_VERSION}")
        self._free = list(range(MAX_ROWS, 0, -1))
        self.totals = dict.fromkeys(COUNTERS, 0)

    @classmethod
    def adopt(cls, estate: BoardEstate) -> Self:
        """Take over a scoreboard to whose rows workers write; raises `ValueError` for another layout."""
        board = cls(fd=estate.fd.number)
        board._free = sorted(set(board._free).difference(estate.leased), reverse=True)
        board.totals |= {spec.index: estate.totals.get(spec.name, 0) for spec in LAYOUT if spec.index in COUNTERS}
        return board

    def hand_over(self) -> BoardEstate:
        """Return what `adopt` needs."""
        leased = sorted(set(range(1, MAX_ROWS + 1)).difference(self._free))
        totals = {spec.name: self.totals[spec.index] for spec in LAYOUT if spec.index in COUNTERS}
        return BoardEstate(fd=Descriptor(self.fd), leased=tuple(leased), totals=totals)

    def lease(self) -> int:
        """Return the number of a zeroed row that nobody else writes."""
        if not self._free:
            raise RuntimeError(f"all {MAX_ROWS} scoreboard rows are leased")
        number = self._free.pop()
        self._zero(number)
        return number

    def row(self, number: int) -> Row:
        """Return the cells of row `number`."""
        start = number * ROW_CELLS
        return self._cells[start : start + ROW_CELLS]

    def records(self, number: int) -> Records:
        """Return the records of requests in flight that belong to row `number`."""
        start = _RECORDS_AT + (number - 1) * RECORDS_BYTES
        return self._memory[start : start + RECORDS_BYTES]

    def release(self, number: int) -> None:
        """Take a row back after its worker was reaped; its counters go into `totals`."""
        row = self.row(number)
        for index in COUNTERS:
            self.totals[index] += row[index]
        self._zero(number)
        self._free.append(number)

    def sum(self, index: int) -> int:
        """Return a counter over every row that is leased, and that ever was."""
        leased = set(range(1, MAX_ROWS + 1)).difference(self._free)
        return self.totals[index] + sum(self._cells[number * ROW_CELLS + index] for number in leased)

    def close(self) -> None:
        """Unmap the memory and close the memfd; rows handed out must not be used afterwards."""
        self._cells.release()
        self._memory.release()
        self._map.close()
        os.close(self.fd)

    def _zero(self, number: int) -> None:
        start = number * ROW_BYTES
        self._map[start : start + ROW_BYTES] = bytes(ROW_BYTES)
        self.records(number)[:] = bytes(RECORDS_BYTES)


def _create(size: int) -> int:
    fd = os.memfd_create("procmgr-scoreboard", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    return fd
