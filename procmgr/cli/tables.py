"""How `procmgrctl` shows things to a person: tables that fit the terminal, numbers to be read at a glance, few colours.

On a pipe nothing is cut, dropped or coloured. On a terminal that is too narrow the least important columns go, and a
line says which.
"""

from __future__ import annotations

import shutil
import textwrap
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import TextIO

Row = dict[str, Any]

_GAP: Final = 2
_NONE: Final = "-"
_BEAT_WORRIES: Final = 5.0
_SHOWN_REQUESTS: Final = 10
_CUT: Final = "..."
_RENEWAL_WORRIES: Final = 30 * 86_400


class Style(Enum):
    """Terminal attributes (ECMA-48, SGR)."""

    BOLD = "1"
    DIM = "2"
    RED = "31"
    GREEN = "32"
    YELLOW = "33"


_STATES: Final = {
    "ready": Style.GREEN,
    "starting": Style.YELLOW,
    "debugged": Style.YELLOW,
    "draining": Style.DIM,
}


@dataclass(frozen=True, slots=True)
class Paper:
    """What is written on: how wide it is, None for without end, and whether it takes colours."""

    width: int | None
    colour: bool

    @classmethod
    def of(cls, stream: TextIO, environ: Mapping[str, str]) -> Paper:
        """Return what `stream` is; NO_COLOR is honoured (no-color.org)."""
        if not stream.isatty():
            return cls(None, colour=False)
        colour = not environ.get("NO_COLOR") and environ.get("TERM") != "dumb"
        return cls(shutil.get_terminal_size().columns, colour=colour)

    def styled(self, text: str, style: Style | None) -> str:
        """Return `text` in `style`, if it can be."""
        return f"\x1b[{style.value}m{text}\x1b[0m" if self.colour and style and text.strip() else text

    def wrapped(self, text: str, indent: str = "") -> str:
        """Return `text` in lines that fit, further ones indented."""
        if self.width is None:
            return text
        return textwrap.fill(text, max(20, self.width), subsequent_indent=indent, break_on_hyphens=False)


def _plain(_row: Row) -> None:
    """Leave a cell as it is."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column: its heading, the text of a row's cell, and when it is dropped: the highest `drop` goes first."""

    title: str
    cell: Callable[[Row], str]
    drop: int = 0
    left: bool = False
    style: Callable[[Row], Style | None] = _plain


def table(columns: Sequence[Column], rows: Sequence[Row], paper: Paper) -> list[str]:
    """Return the table's lines."""
    kept, dropped = list(columns), []
    while paper.width is not None and _width(kept, rows) > paper.width and any(column.drop for column in kept):
        victim = max(kept, key=lambda column: column.drop)
        kept.remove(victim)
        dropped.append(victim.title)
    sizes = [_size(column, rows) for column in kept]
    lines = [paper.styled(_joined(_padded(kept, sizes, [column.title for column in kept])), Style.BOLD)]
    for row in rows:
        cells = _padded(kept, sizes, [column.cell(row) for column in kept])
        lines.append(_joined([paper.styled(cell, column.style(row)) for column, cell in zip(kept, cells, strict=True)]))
    if dropped:
        lines.append(paper.styled(f"(too narrow for {', '.join(reversed(dropped))})", Style.DIM))
    return lines


def _size(column: Column, rows: Sequence[Row]) -> int:
    return max(len(column.title), *(len(column.cell(row)) for row in rows), 0)


def _width(columns: Sequence[Column], rows: Sequence[Row]) -> int:
    return sum(_size(column, rows) + _GAP for column in columns) - _GAP


def _padded(columns: Sequence[Column], sizes: Sequence[int], cells: Sequence[str]) -> list[str]:
    return [
        cell.ljust(size) if column.left else cell.rjust(size)
        for column, size, cell in zip(columns, sizes, cells, strict=True)
    ]


def _joined(cells: Sequence[str]) -> str:
    return (" " * _GAP).join(cells).rstrip()


def span(seconds: float | None) -> str:
    """Return a length of time in its largest sensible unit."""
    if seconds is None:
        return _NONE
    if seconds < 120:
        return f"{seconds:.0f}s"
    if seconds < 2 * 3600:
        return f"{seconds / 60:.0f}m"
    return f"{seconds / 3600:.0f}h" if seconds < 48 * 3600 else f"{seconds / 86_400:.0f}d"


def fine(seconds: float | None) -> str:
    """Return a short length of time: milliseconds below a second, else with a tenth."""
    if seconds is None:
        return _NONE
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f}ms"
    return f"{seconds:.1f}s" if seconds < 100 else span(seconds)


def size(count: int | None) -> str:
    """Return a number of bytes in MiB or GiB."""
    if count is None:
        return _NONE
    mebi = count / (1 << 20)
    if mebi < 100:
        return f"{mebi:.1f}M"
    return f"{mebi:.0f}M" if mebi < 10_000 else f"{mebi / 1024:.1f}G"


def _number(name: str) -> Callable[[Row], str]:
    return lambda row: _NONE if row.get(name) is None else str(row[name])


def _timed(name: str, form: Callable[[float | None], str]) -> Callable[[Row], str]:
    return lambda row: form(row.get(name))


def _state(row: Row) -> str:
    """Return the state; while a person debugs a worker, that: it may stand still for as long as he thinks."""
    return "debugged" if row.get("debugging") else str(row["state"])


def _late(row: Row) -> Style | None:
    return Style.RED if (row.get("beat_ago") or 0) > _BEAT_WORRIES else None


_WORKERS: Final = (
    Column("SLOT", _number("slot")),
    Column("ID", _number("worker"), drop=5),
    Column("PID", _number("pid")),
    Column("GEN", _number("generation"), drop=9),
    Column("STATE", _state, left=True, style=lambda row: _STATES.get(_state(row))),
    Column("AGE", _timed("age", span), drop=1),
    Column("REQS", _number("requests"), drop=2),
    Column("ACT", _number("active"), drop=4),
    Column("CONN", _number("connections"), drop=7),
    Column("CPU", _timed("cpu", fine), drop=6),
    Column("MEM", lambda row: size(row.get("memory")), drop=3),
    Column("LAG", _timed("lag", fine), drop=8),
    Column("BEAT", _timed("beat_ago", fine), style=_late),
)

_DEPARTURES: Final = (
    Column("SLOT", _number("slots"), left=True),
    Column("BEFORE", _number("ids"), left=True),
    Column("WENT", lambda row: f"{span(row['ago'])} ago"),
    Column("WHY", _number("reason"), left=True),
)


_REQUESTS: Final = (
    Column("SLOT", _number("slot")),
    Column("PID", _number("pid")),
    Column("FOR", _timed("age", fine)),
    Column("REQUEST", _number("request"), left=True),
)


def status(document: Row, paper: Paper) -> str:
    """Return what `procmgrctl status` prints."""
    about = f"{document['name']}: procmgr {document['version']}, pid {document['pid']}, up {span(document['uptime'])}"
    lines = [
        paper.styled(paper.wrapped(about), Style.BOLD),
        paper.wrapped(f"serves {document['app']} on {', '.join(document['addresses'])}", "  "),
        paper.wrapped(str(document["summary"]), "  "),
        *_certificates(document.get("certificates", ()), paper),
        *_last_reload(document["last_reload"], paper),
        *(paper.styled(paper.wrapped(f"warning: {each}", "  "), Style.YELLOW) for each in document["warnings"]),
    ]
    if document["workers"]:
        lines += ["", *table(_columns(document["workers"], paper), document["workers"], paper)]
    lines += _in_flight(document["workers"], paper)
    if departures := _departures(document):
        lines += ["", *table(_DEPARTURES, departures, paper)]
    return "\n".join(lines) + "\n"


def _columns(workers: Sequence[Row], paper: Paper) -> list[Column]:
    """Leave out on a terminal what the lines above have said already."""
    uniform = len({row["generation"] for row in workers}) == 1
    return [column for column in _WORKERS if not (column.title == "GEN" and uniform and paper.width is not None)]


def _in_flight(workers: Sequence[Row], paper: Paper) -> list[str]:
    """Return the requests that run for longest, as lines; on a terminal a path is cut rather than wrapped."""
    rows = [
        {"slot": row["slot"], "pid": row["pid"], "request": f"{each['method']} {each['path']}", "age": each["age"]}
        for row in workers
        for each in row["in_flight"]
    ]
    rows.sort(key=lambda row: -float(row["age"]))
    shown = rows[:_SHOWN_REQUESTS]
    if not shown:
        return []
    room = None if paper.width is None else paper.width - _width(_REQUESTS[:-1], shown) - _GAP
    for row in shown:
        row["request"] = _cut(row["request"], room)
    more = max(len(rows), sum(row.get("active") or 0 for row in workers)) - len(shown)
    last = [paper.styled(f"(and {more} more in flight)", Style.DIM)] if more > 0 else []
    return ["", *table(_REQUESTS, shown, paper), *last]


def _cut(text: str, room: int | None) -> str:
    if room is None or len(text) <= room:
        return text
    return f"{text[: max(0, room - len(_CUT))]}{_CUT}"


def _certificates(certificates: Sequence[Row], paper: Paper) -> list[str]:
    """Return a line for each certificate, its end in red once it has come and in yellow when it is near."""
    lines = []
    for each in certificates:
        left = each["expires_in"]
        ends = f"expires in {span(left)}" if left >= 0 else f"expired {span(-left)} ago"
        style = Style.RED if left < 0 else Style.YELLOW if left < _RENEWAL_WORRIES else None
        text = paper.wrapped(f"certificate for {each['name']} {ends}, {each['expires']}", "  ")
        lines.append(paper.styled(text, style))
    return lines


def _last_reload(last: Row | None, paper: Paper) -> list[str]:
    if last is None:
        return []
    text = paper.wrapped(f"last reload, {span(last['ago'])} ago: {last['text']}", "  ")
    return [paper.styled(text, Style.RED if last["exit"] else None)]


def _departures(document: Row) -> list[Row]:
    """Return why the worker before went, for each slot that has one or waits for one; one row for each reason."""
    gone = [
        {"slot": row["slot"], **row["predecessor"]}
        for row in document["workers"]
        if row["predecessor"] is not None and row["state"] != "draining"
    ]
    groups: dict[str, list[Row]] = {}
    for each in (*gone, *document["vacant"]):
        groups.setdefault(each["reason"], []).append(each)
    return [
        {
            "slots": ", ".join(str(each["slot"]) for each in group),
            "ids": ", ".join(str(each["worker"]) for each in group),
            "ago": min(each["ago"] for each in group),
            "reason": reason,
        }
        for reason, group in groups.items()
    ]


def instances(rows: Sequence[Row], paper: Paper) -> str:
    """Return a table of running instances."""
    columns = (
        Column("NAME", _number("name"), left=True),
        Column("PID", _number("pid")),
        Column("SOCKET", _number("path"), left=True),
    )
    return "\n".join(table(columns, rows, paper)) + "\n"
