"""The page for people: the status document as plain HTML, which loads nothing, runs nothing and renews itself."""

from __future__ import annotations

import base64
import hashlib
from html import escape
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_STYLE: Final = (
    ":root{color-scheme:light dark;font:15px/1.5 system-ui,sans-serif}"
    "body{margin:2rem auto;max-width:72rem;padding:0 1rem}"
    "h1{font-size:1.4rem;margin:0}p{margin:.3rem 0}"
    "table{border-collapse:collapse;margin-top:1.2rem;width:100%}"
    "th,td{padding:.3rem .7rem;text-align:left;border-bottom:1px solid #8884;font-variant-numeric:tabular-nums}"
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
_LEFT: Final = frozenset({"slot", "state"})


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
        "<table><thead><tr>",
        *(_cell("th", key, title) for key, title, _ in _COLUMNS),
        "</tr></thead><tbody>",
        *_rows(document["workers"]),
        "</tbody></table>",
        '<p class="quiet"><a href="/status.json">status.json</a> · <a href="/metrics">metrics</a></p></body></html>',
    ]
    return "\n".join(lines) + "\n"


def _reload(last: Mapping[str, Any] | None) -> Iterable[str]:
    if last is not None:
        said = f"last reload: {last['outcome']}, {_seconds(last['ago'])} ago; {last['text']}"
        yield f"<p class={'w' if last['exit'] else 'quiet'}>{escape(said)}</p>"


def _rows(workers: Iterable[Mapping[str, Any]]) -> Iterable[str]:
    for worker in workers:
        cells = (_cell("td", key, _shown(worker.get(key), unit)) for key, _, unit in _COLUMNS)
        yield f"<tr>{''.join(cells)}</tr>"


def _cell(tag: str, key: str, text: str) -> str:
    return f"<{tag}{'' if key in _LEFT else ' class=n'}>{escape(text)}</{tag}>"


def _shown(value: object, unit: str) -> str:
    match value:
        case None:
            return "-"
        case int() | float() if unit == "s":
            return f"{value:.3f} s" if value < 1 else _seconds(value)
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
