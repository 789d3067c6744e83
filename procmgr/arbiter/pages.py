"""The page for people: the status document as plain HTML, which loads nothing, runs nothing and renews itself."""

from __future__ import annotations

import base64
import hashlib
from html import escape
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

_STYLE: Final = (
    ":root{color-scheme:light dark;font:15px/1.5 system-ui,sans-serif}"
    "body{margin:2rem auto;max-width:72rem;padding:0 1rem}"
    "h1{font-size:1.4rem;margin:0}p{margin:.3rem 0}"
    "div{overflow-x:auto;margin-top:1.2rem}table{border-collapse:collapse;min-width:100%}"
    "th,td{padding:.3rem .5rem;text-align:left;border-bottom:1px solid #8884;font-variant-numeric:tabular-nums;"
    "white-space:nowrap}.l{white-space:normal;overflow-wrap:anywhere;width:100%}"
    ".n{text-align:right}.w{color:#b45309}.quiet{opacity:.65}"
)
_STYLE_HASH: Final = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
HEADERS: Final = (
    ("content-security-policy", f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; frame-ancestors 'none'"),
    ("referrer-policy", "no-referrer"),
)
_COLUMNS: Final = (
    ("slot", "slot", ""),
    ("pid", "pid", ""),
    ("state", "state", ""),
    ("generation", "generation", ""),
    ("age", "age", "s"),
    ("requests", "requests", ""),
    ("active", "active", ""),
    ("connections", "connections", ""),
    ("lag", "lag", "s"),
    ("beat_ago", "last beat", "s"),
    ("cpu", "CPU", "s"),
    ("memory", "memory", "B"),
)
_REQUESTS: Final = (("slot", "slot", ""), ("pid", "pid", ""), ("age", "for", "s"), ("request", "request", ""))
_WENT: Final = (("slot", "slot", ""), ("worker", "id", ""), ("ago", "went", "ago"), ("reason", "why", ""))
_LEFT: Final = frozenset({"slot", "state"})
_LONG: Final = frozenset({"request", "reason"})
_SHOWN_REQUESTS: Final = 8


def page(document: Mapping[str, Any]) -> str:
    """Return the status as HTML."""
    name, app, version = (escape(str(document[key])) for key in ("name", "app", "version"))
    where = escape(", ".join(document["addresses"]))
    lines = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">',
        f'<meta http-equiv="refresh" content="5"><title>{name}</title><style>{_STYLE}</style></head><body>',
        f"<h1>{name}</h1><p>{escape(str(document['summary']))}</p>",
        f'<p class="quiet">{app} on {where}, up {_seconds(document["uptime"])}, procmgr {version}</p>',
        *(f'<p class="w">{escape(str(warning))}</p>' for warning in document["warnings"]),
        *_reload(document["last_reload"]),
        *_table(_COLUMNS, document["workers"]),
        *_table(_REQUESTS, _longest(document["workers"])),
        *_table(_WENT, _gone(document)),
        '<p class="quiet"><a href="/status.json">status.json</a> · <a href="/metrics">metrics</a></p></body></html>',
    ]
    return "\n".join(lines) + "\n"


def _reload(last: Mapping[str, Any] | None) -> Iterable[str]:
    if last is not None:
        said = f"last reload: {last['outcome']}, {_seconds(last['ago'])} ago; {last['text']}"
        yield f"<p class={'w' if last['exit'] else 'quiet'}>{escape(said)}</p>"


def _table(columns: Sequence[tuple[str, str, str]], rows: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    """Yield a table, nothing if it has no rows; on a narrow screen it scrolls by itself."""
    if rows:
        yield f"<div><table><thead><tr>{''.join(_cell('th', key, title) for key, title, _ in columns)}</tr></thead>"
        for row in rows:
            cells = (_cell("td", key, _shown(row.get(key), unit)) for key, _, unit in columns)
            yield f"<tr>{''.join(cells)}</tr>"
        yield "</table></div>"


def _longest(workers: Iterable[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """Return the requests that run for longest."""
    found = [
        {
            "slot": worker["slot"],
            "pid": worker["pid"],
            "age": each["age"],
            "request": f"{each['method']} {each['path']}",
        }
        for worker in workers
        for each in worker["in_flight"]
    ]
    return sorted(found, key=lambda each: -float(each["age"]))[:_SHOWN_REQUESTS]


def _gone(document: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """Return why the worker before went, for each slot that has one or waits for one."""
    before = [
        {"slot": worker["slot"], **worker["predecessor"]}
        for worker in document["workers"]
        if worker["predecessor"] is not None and worker["state"] != "draining"
    ]
    return [*before, *document["vacant"]]


def _cell(tag: str, key: str, text: str) -> str:
    kind = " class=l" if key in _LONG else "" if key in _LEFT else " class=n"
    return f"<{tag}{kind}>{escape(text)}</{tag}>"


def _shown(value: object, unit: str) -> str:
    match value:
        case None:
            return "-"
        case int() | float() if unit == "s":
            return f"{value * 1000:.0f} ms" if value < 0.9995 else _seconds(value)
        case int() | float() if unit == "ago":
            return f"{_seconds(value)} ago"
        case int() if unit == "B":
            return f"{value / (1 << 20):.1f} MiB"
        case _:
            return str(value)


def _seconds(seconds: float) -> str:
    whole = int(seconds)
    for size, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if whole >= 2 * size:
            return f"{whole // size} {name}"
    return f"{seconds:.1f} s"
