"""The scoreboard: levels in shared memory, a row of 8-byte cells per worker; the worker writes, the arbiter reads.

Theory of operation: the arbiter creates one sealed memfd and maps it; workers inherit the mapping across the fork. A
row is leased to a worker id and handed out again only after that worker was reaped, so a row has one writer at any
time. An aligned 8-byte store does not tear, hence neither side locks. What a worker writes is untrusted: cells are
numbers and never sizes or offsets. Counters of a released row are folded into totals, so sums never go backwards.

The memfd is sealed against shrinking, growing and further seals: otherwise an unprivileged worker's ftruncate(2) would
kill the arbiter with SIGBUS (memfd_create(2), fcntl(2) "File Sealing").
"""

from __future__ import annotations

import fcntl
import mmap
import os
from dataclasses import dataclass
from enum import Enum
from typing import Final, Self

from procmgr.handover import Descriptor
from procmgr.plain import record

LAYOUT_VERSION: Final = 1
MAX_ROWS: Final = 1024
ROW_CELLS: Final = 64
CELL_BYTES: Final = 8
ROW_BYTES: Final = ROW_CELLS * CELL_BYTES
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
)

COUNTERS: Final = tuple(spec.index for spec in LAYOUT if spec.kind is Kind.COUNTER)

Row = memoryview
"""A row is a writable memoryview of ROW_CELLS unsigned 64-bit integers: `row[BEAT] = now_ns`."""


def detached_row() -> Row:
    """Return a row in private memory, for a worker that runs without an arbiter."""
    return memoryview(bytearray(ROW_BYTES)).cast("Q")


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
        size = ROW_BYTES * (MAX_ROWS + 1)  # row 0 of the memory is the header
        self.fd = _create(size) if fd is None else fd
        self._map = mmap.mmap(self.fd, size)
        self._cells = memoryview(self._map).cast("Q")
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

    def release(self, number: int) -> None:
        """Take a row back after its worker was reaped; its counters go into `totals`."""
        row = self.row(number)
        for index in COUNTERS:
            self.totals[index] += row[index]
        self._zero(number)
        self._free.append(number)

    def close(self) -> None:
        """Unmap the memory and close the memfd; rows handed out must not be used afterwards."""
        self._cells.release()
        self._map.close()
        os.close(self.fd)

    def _zero(self, number: int) -> None:
        start = number * ROW_BYTES
        self._map[start : start + ROW_BYTES] = bytes(ROW_BYTES)


def _create(size: int) -> int:
    fd = os.memfd_create("procmgr-scoreboard", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    return fd
