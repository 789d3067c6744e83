"""Templates of access lines: text with gunicorn's atoms, `%(h)s` or `%({user-agent}i)s`, as data.

A template is read into strings and `Atom`s, which whoever writes access lines turns into text. The words `uvicorn`,
`combined` and `json` are not templates; `combined` is short for one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

ACCESS_FORMATS: Final = ("uvicorn", "combined", "json")
COMBINED: Final = '%(h)s %(l)s %(u)s %(t)s "%(r)s" %(s)s %(b)s "%(f)s" "%(a)s"'
ATOMS: Final = {
    "h": "client address",
    "l": "always -",
    "u": "user name of HTTP basic authentication",
    "t": "time at the end of the response, as in [23/Nov/2026:12:00:00 +0000]",
    "r": "request line",
    "m": "method",
    "U": "path",
    "q": "query",
    "H": "protocol",
    "s": "status",
    "B": "bytes of the response's body",
    "b": "the same, or -",
    "f": "referer",
    "a": "user agent",
    "T": "seconds",
    "M": "milliseconds",
    "D": "microseconds",
    "L": "seconds with six decimals",
    "p": "process id, as in <1234>",
}
_SPELLING: Final = re.compile(r"%\((?:\{(?P<field>[^{}()]+)\}(?P<kind>[io])|(?P<atom>[A-Za-z]))\)s")
_EXCERPT: Final = 40


@dataclass(frozen=True, slots=True)
class Atom:
    """What is different in every line: one of `ATOMS`, or `i` or `o` for a field of the request or response."""

    kind: str
    field: str = ""


def read_template(text: str) -> list[str | Atom]:
    """Return the parts of a template. Raises `ValueError` that names what is wrong in it."""
    if not text.isprintable():
        raise ValueError("a line holds printable characters only")
    parts: list[str | Atom] = []
    at = 0
    for match in _SPELLING.finditer(text):
        parts.append(_literal(text[at : match.start()]))
        atom = match["atom"]
        if atom is not None and atom not in ATOMS:
            raise ValueError(f"no atom %({atom})s; there are {' '.join(ATOMS)}, {{name}}i and {{name}}o")
        parts.append(Atom(atom) if atom else Atom(match["kind"], match["field"]))
        at = match.end()
    parts.append(_literal(text[at:]))
    return [part for part in parts if part]


def _literal(text: str) -> str:
    """Return text between atoms; `%%` is one percent sign."""
    rest = text.replace("%%", "")
    if "%" in rest:
        odd = rest[rest.index("%") :][:_EXCERPT]
        raise ValueError(f"{odd!r} is no atom such as %(h)s or %({{user-agent}}i)s; write %% for a percent sign")
    return text.replace("%%", "%")


def access_format(text: str) -> str:
    """Return a word or a template that can be read. Raises `ValueError`."""
    word = text.lower()
    if word in ACCESS_FORMATS:
        return word
    if not any(isinstance(part, Atom) for part in read_template(text)):
        raise ValueError(f"expected {', '.join(ACCESS_FORMATS)} or a template of atoms such as %(h)s")
    return text
