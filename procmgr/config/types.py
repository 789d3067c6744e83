"""The kinds of values that settings have: read from text or from TOML, bounded, and rendered back.

A `Kind` is made by one of the functions below. Its `parse` reads what a command line or an environment variable says,
its `of` what a TOML file or a Python caller says; both raise `BadValue`, whose reason says what would be right. `toml`
renders a value so that `of` reads it back, `schema` says what `of` takes in JSON Schema.
Inside a kind, a bare `ValueError` means "not what is wanted".
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, TypeVar

from procmgr.config.kind import BadValue, Kind, Schema, Shape, quoted, string
from procmgr.sockets import parse_address

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

T = TypeVar("T")
N = TypeVar("N", int, float)
Pair = tuple[str, str]

_DIGITS: Final = re.compile(r"[0-9]{1,18}")
_DECIMAL: Final = re.compile(r"[0-9]{1,12}(\.[0-9]{0,9})?|\.[0-9]{1,9}")
_SIZE: Final = re.compile(r"([0-9]{1,15})([KMGT]?)(?:i?B)?", re.IGNORECASE)
_SIZE_SCHEMA: Final = "^[0-9]{1,15}[KMGTkmgt]?([iI]?[bB])?$"
_UNITS: Final = ((40, "T"), (30, "G"), (20, "M"), (10, "K"))
_OCTAL: Final = re.compile(r"(?:0o)?[0-7]{1,4}")
_MAX_ID: Final = (1 << 32) - 2  # (uid_t) -1 means "leave it" to setresuid(2)
_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_CONTROL: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_IDENTIFIER: Final = re.compile(r"[^\W\d]\w*")
_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@:-]{0,63}")
_WORDS: Final = dict.fromkeys(("1", "true", "yes", "on"), True) | dict.fromkeys(("0", "false", "no", "off"), False)


def text(
    metavar: str, wanted: str, example: str, *, pattern: re.Pattern[str] | None = None, empty: bool = False
) -> Kind[str]:
    """Return the kind of text that matches `pattern`; only `empty` allows none at all."""

    def read(text: str) -> str:
        if "\0" in text or not (text or empty) or (pattern and not pattern.fullmatch(text)):
            raise ValueError
        return text

    schema: Schema = {"type": "string", "minLength": 0 if empty else 1}
    return Kind(metavar=metavar, wanted=wanted, text=read, toml=quoted, schema=schema, example=example)


def path(metavar: str, example: str) -> Kind[str]:
    """Return the kind of a path in the file system."""
    return text(metavar, "a path", example)


def path_or_off(metavar: str, example: str, off: str) -> Kind[str]:
    """Return the kind of a path where the words 'none' and `off`, in any case, are the value `off`."""

    def read(text: str) -> str:
        if not text or "\0" in text:
            raise ValueError
        return off if text.lower() in {"none", off} else text

    schema: Schema = {"type": "string", "minLength": 1}
    return Kind(metavar=metavar, wanted=f"a path, or {off!r}", text=read, toml=quoted, schema=schema, example=example)


def instance_name() -> Kind[str]:
    """Return the kind of a name that is safe as one component of a path."""
    wanted = "at most 64 letters, digits and any of _ . @ : -, beginning with a letter, a digit or _"
    return text("NAME", wanted, "web", pattern=_NAME)


def account(metavar: str, example: str) -> Kind[str]:
    """Return the kind of a user or group, by name or by number."""

    def read(text: str) -> str:
        number = text.isascii() and text.isdecimal()
        if not text or text.startswith("-") or _CONTROL.search(text) or (number and int(text[:20]) > _MAX_ID):
            raise ValueError
        return text

    return Kind(
        metavar=metavar,
        wanted=f"the name or number of a {metavar.lower()}",
        text=read,
        native=lambda value: read(str(value) if _is_whole(value) else string(value)),
        toml=quoted,
        schema={"type": ["string", "integer"], "minLength": 1, "minimum": 0},
        example=example,
    )


def target() -> Kind[str]:
    """Return the kind of an application's place, `module:attr.path`."""

    def read(text: str) -> str:
        module, colon, attributes = text.partition(":")
        if "/" in module or module.endswith(".py"):
            names = [name for name in module.removesuffix(".py").split("/") if _IDENTIFIER.fullmatch(name)]
            right = f"{'.'.join(names) or 'main'}:{attributes or 'app'}"
            raise ValueError(f"that is a path; expected a module and an attribute, as in {right}")
        if not colon and _dotted(module):
            raise ValueError(f"the attribute is missing; expected a module and an attribute, as in {module}:app")
        if not (_dotted(module) and _dotted(attributes)):
            raise ValueError
        return text

    wanted = "a module and an attribute, as in main:app"
    schema: Schema = {"type": "string", "pattern": "^[^:/]+:[^:/]+$"}
    return Kind(metavar="MODULE:ATTR", wanted=wanted, text=read, toml=quoted, schema=schema, example="main:app")


def choice(
    words: tuple[T, ...], refused: Mapping[str, str] | None = None, same: Mapping[str, T] | None = None
) -> Kind[T]:
    """Return the kind that is one of `words`, in any case.

    Of words that other programs have, `refused` explains some, and `same` are other names for ours.
    """
    names = [str(word) for word in words]
    known = {**dict(zip(names, words, strict=True)), **(same or {})}
    wanted = f"{', '.join(names[:-1])} or {names[-1]}"

    def read(text: str) -> T:
        word = text.lower()
        if refused and word in refused:
            raise ValueError(f"{refused[word]}; expected {wanted}")
        if word not in known:
            raise ValueError
        return known[word]

    schema: Schema = {"enum": [*known]}
    bars = f"[{'|'.join(names)}]"
    return Kind(
        metavar=bars,
        wanted=wanted,
        text=read,
        toml=lambda word: quoted(str(word)),
        schema=schema,
        example=names[len(names) // 2],
    )


def switch() -> Kind[bool]:
    """Return the kind that is on or off."""

    def read(text: str) -> bool:
        if text.lower() not in _WORDS:
            raise ValueError
        return _WORDS[text.lower()]

    def native(value: object) -> bool:
        if not isinstance(value, bool):
            raise ValueError  # noqa: TRY004 - a wrong type from a file is a wrong value
        return value

    return Kind(
        metavar="",
        wanted="true or false",
        text=read,
        native=native,
        toml=lambda on: "true" if on else "false",
        schema={"type": "boolean"},
        example="true",
        shape=Shape.SWITCH,
    )


def truth() -> Kind[bool]:
    """Return the kind that is true or false, and said so on the command line too."""
    return replace(switch(), metavar="BOOLEAN", shape=Shape.ONE)


def count(low: int, high: int, *, metavar: str = "N", auto: Callable[[], int] | None = None) -> Kind[int]:
    """Return the kind of a whole number in bounds; `auto` gives what the word 'auto' means, where it is allowed."""

    def native(value: object) -> int:
        if auto and isinstance(value, str) and value.lower() == "auto":
            return min(auto(), high)
        return _within(_whole(value), low, high)

    def read(text: str) -> int:
        return native(int(text) if _DIGITS.fullmatch(text) else text)

    wanted = f"a whole number from {low} to {high}" + (", or 'auto'" if auto else "")
    number: Schema = {"type": "integer", "minimum": low, "maximum": high}
    schema: Schema = {"anyOf": [number, {"const": "auto"}]} if auto else number
    return Kind(
        metavar=metavar, wanted=wanted, text=read, native=native, toml=str, schema=schema, example=str(min(high, 8000))
    )


def limit(high: int) -> Kind[int | None]:
    """Return the kind of a whole number up to `high`, where 0 is no limit: None, as a value."""
    number = count(0, high)
    return Kind(
        metavar="N",
        wanted=f"{number.wanted}, 0 for no limit",
        text=lambda text: number.text(text) or None,
        native=lambda value: number.of(value) or None,
        toml=lambda value: str(value or 0),
        schema=number.schema,
        example="1000",
    )


def seconds(high: float, *, zero: bool = True, least: float = 0) -> Kind[float]:
    """Return the kind of a span of time in seconds, from `least` to `high`; `zero` says whether 0 is allowed."""

    def native(value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or (value == 0 and not zero):
            raise ValueError
        return float(_within(value, least if value else 0, high))  # bounds first: float() overflows on a huge integer

    def read(text: str) -> float:
        return native(float(text) if _DECIMAL.fullmatch(text) else text)

    span = {"type": "number", "minimum" if zero or least else "exclusiveMinimum": least, "maximum": high}
    bounds = f"from {least:g} to {high:g}" if zero or least else f"above 0 to {high:g}"
    return Kind(
        metavar="SECONDS",
        wanted=f"seconds, {'0 or ' if zero and least else ''}{bounds}",
        text=read,
        native=native,
        toml=lambda value: f"{value:.9f}".rstrip("0").rstrip("."),
        schema={"anyOf": [{"const": 0}, span]} if zero and least else span,
        example="30",
    )


def size() -> Kind[int]:
    """Return the kind of an amount of memory in bytes, as in 512M; K, M, G and T are powers of 1024."""

    def read(text: str) -> int:
        match = _SIZE.fullmatch(text)
        if match is None:
            raise ValueError
        return _within(int(match[1]) << 10 * " KMGT".index(match[2].upper() or " "), 0, 1 << 60)

    def toml(value: int) -> str:
        shift, unit = next((pair for pair in _UNITS if value and value % (1 << pair[0]) == 0), (0, ""))
        return quoted(f"{value >> shift}{unit}") if unit else str(value)

    return Kind(
        metavar="SIZE",
        wanted="a number of bytes, or of K, M, G or T, as in 512M",
        text=read,
        native=lambda value: read(str(value) if _is_whole(value) else string(value)),
        toml=toml,
        schema={"anyOf": [{"type": "integer", "minimum": 0}, {"type": "string", "pattern": _SIZE_SCHEMA}]},
        example="512M",
    )


def octal() -> Kind[int]:
    """Return the kind of a file mode mask: octal digits in text, also in TOML, where 22 and 0o22 are both integers."""

    def read(text: str) -> int:
        if not _OCTAL.fullmatch(text):
            raise ValueError
        return _within(int(text, 8), 0, 0o777)

    return Kind(
        metavar="MASK",
        wanted='octal digits from 0 to 777 (a string in TOML), as in "022"',
        text=read,
        toml=lambda value: quoted(f"{value:03o}"),
        schema={"type": "string", "pattern": "^(0o)?[0-7]{1,4}$"},
        example="022",
    )


@dataclass(frozen=True, slots=True)
class Surge:
    """How many workers a roll may add above the desired count: a number, or a percentage of that count."""

    amount: int
    percent: bool = False

    def count(self, workers: int) -> int:
        """Return the number for a pool of `workers`; a percentage is rounded up, and it is never below 1."""
        return max(1, -(-workers * self.amount // 100)) if self.percent else self.amount

    def __str__(self) -> str:
        return f"{self.amount}%" if self.percent else str(self.amount)


def surge(high: int) -> Kind[Surge]:
    """Return the kind of a `Surge` of at most `high` workers or 100 %."""

    def read(text: str) -> Surge:
        number = text.removesuffix("%")
        if not _DIGITS.fullmatch(number):
            raise ValueError
        percent = number != text
        return Surge(_within(int(number), 1, 100 if percent else high), percent)

    def native(value: object) -> Surge:
        return value if isinstance(value, Surge) else read(str(value) if _is_whole(value) else string(value))

    forms: list[Schema] = [
        {"type": "integer", "minimum": 1, "maximum": high},
        {"type": "string", "pattern": "^([1-9][0-9]?|100)%$"},
    ]
    return Kind(
        metavar="N|N%",
        wanted=f"a whole number from 1 to {high}, or a percentage from 1% to 100%",
        text=read,
        native=native,
        toml=lambda value: quoted(str(value)) if value.percent else str(value.amount),
        schema={"anyOf": forms},
        example="25%",
    )


def address() -> Kind[str]:
    """Return the kind of an address in the grammar of `procmgr.sockets.parse_address`, kept as it is spelt."""

    def read(text: str) -> str:
        try:
            parse_address(text)
        except ValueError as error:
            raise ValueError(str(error).removeprefix(f"bad address {text!r}: ")) from None
        return text

    schema: Schema = {"type": "string", "minLength": 1}
    return Kind(metavar="ADDRESS", wanted="an address", text=read, toml=quoted, schema=schema, example="[::]:8000")


def host() -> Kind[str]:
    """Return the kind of a host to listen on: a name, an IPv4 or an IPv6 address, the latter in brackets or not."""

    def read(text: str) -> str:
        name = text[1:-1] if text.startswith("[") and text.endswith("]") else text
        if not name:
            raise ValueError
        try:
            parse_address(f"[{name}]:0" if ":" in name else f"{name}:0")
        except ValueError:
            raise ValueError from None
        return name

    wanted = "a host name or address without a port, as in 127.0.0.1 or ::1"
    return Kind(metavar="HOST", wanted=wanted, text=read, toml=quoted, schema={"type": "string"}, example="::1")


def variable() -> Kind[Pair]:
    """Return the kind of an environment variable, `NAME=VALUE`, whose value may be a secret and is never shown."""

    def read(text: str) -> Pair:
        name, equals, value = text.partition("=")
        if not equals or not _VARIABLE.fullmatch(name) or "\0" in value:
            raise BadValue(f"{name}=..." if equals else name, "expected NAME=VALUE")
        return name, value

    return _pair("NAME=VALUE", read, "=", "TZ=UTC")


def header() -> Kind[Pair]:
    """Return the kind of a response header, `Name: value` (RFC 9110, sections 5.1 and 5.5)."""

    def read(text: str) -> Pair:
        name, colon, value = text.partition(":")
        if not colon or not _TOKEN.fullmatch(name):
            raise ValueError
        value = value.strip(" \t")
        if _CONTROL.search(value) or any(ord(character) > 0xFF for character in value):
            raise ValueError("a header's value is Latin-1 text without control characters")
        return name, value

    return _pair("NAME:VALUE", read, ": ", "X-Served-By: procmgr")


def _pair(metavar: str, read: Callable[[str], Pair], joint: str, example: str) -> Kind[Pair]:
    def native(value: object) -> Pair:
        match value:
            case (str(name), str(content)):
                return read(joint.join((name, content)))
            case _:
                return read(string(value))

    wanted = f"'{joint.join(('Name', 'value') if ':' in joint else ('NAME', 'VALUE'))}'"
    return Kind(
        metavar=metavar,
        wanted=wanted,
        text=read,
        native=native,
        toml=lambda pair: quoted(joint.join(pair)),
        schema={"type": "string"},
        example=example,
    )


def many(item: Kind[T], *, separator: str | None = "\n", table: bool = False) -> Kind[tuple[T, ...]]:
    """Return the kind of several items: one flag or TOML list item each, parted by `separator` in a variable.

    With `separator` None they are parted by white space. With `table`, the pairs of a TOML table are items too.
    """

    def read(text: str) -> tuple[T, ...]:
        return tuple(item.parse(part.strip()) for part in text.split(separator) if part.strip())

    def native(value: object) -> tuple[T, ...]:
        match value:
            case list() | tuple():
                return tuple(item.of(each) for each in value)
            case dict() if table:
                return tuple(item.of(pair) for pair in value.items())
            case _:
                return (item.of(value),)

    forms: list[Schema] = [item.schema, {"type": "array", "items": item.schema}]
    tables: list[Schema] = [{"type": "object", "additionalProperties": item.schema}] if table else []
    return Kind(
        metavar=item.metavar,
        wanted=item.wanted,
        text=read,
        native=native,
        toml=lambda items: f"[{', '.join(item.toml(each) for each in items)}]",
        schema={"anyOf": forms + tables},
        shape=Shape.MANY,
        item=item,
        example=item.example,
    )


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _whole(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError  # noqa: TRY004 - a wrong type from a file is a wrong value
    return value


def _within(value: N, low: float, high: float) -> N:
    if not low <= value <= high:  # a NaN is in no bounds
        raise ValueError
    return value


def _dotted(text: str) -> bool:
    return all(_IDENTIFIER.fullmatch(name) for name in text.split("."))
