"""What it is to be a type of value: read from text or from TOML, and rendered back."""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")
Schema = dict[str, object]

_SHOWN_CHARACTERS: Final = 80


class BadValue(ValueError):  # noqa: N818 - it names what was given, which may be right elsewhere
    """A value that a setting cannot have: `value` as it was given, `reason` says what would be right."""

    def __init__(self, value: object, reason: str) -> None:
        super().__init__(f"{show(value)}: {reason}")
        self.value = value
        self.reason = reason


class Shape(Enum):
    """How a kind looks on a command line."""

    ONE = "one"  # --flag VALUE
    SWITCH = "switch"  # --flag / --no-flag
    MANY = "many"  # --flag VALUE, repeatable


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind(Generic[T]):
    """One type of value.

    `wanted` completes "expected ...", `example` is text that `parse` takes. Without `native` a value in TOML is a
    string that `text` reads. `toml` renders a value so that `of` reads it back, `schema` is what `of` takes as JSON
    Schema. A kind of several values has their kind as `item`.
    """

    metavar: str
    wanted: str
    text: Callable[[str], T]
    native: Callable[[object], T] | None = None
    toml: Callable[[T], str]
    schema: Schema
    example: str
    shape: Shape = Shape.ONE
    item: Kind[Any] | None = None

    def parse(self, text: str) -> T:
        """Return the value that `text` spells; raises `BadValue`."""
        try:
            return self.text(text)
        except BadValue:
            raise
        except ValueError as error:
            raise self._bad(text, error) from None

    def of(self, value: object) -> T:
        """Return the value that a TOML or Python `value` means; raises `BadValue`."""
        try:
            if self.native is not None:
                return self.native(value)
            return self.text(string(value))
        except BadValue:
            raise
        except ValueError as error:
            raise self._bad(value, error) from None

    def _bad(self, value: object, error: ValueError) -> BadValue:
        return BadValue(value, str(error) or f"expected {self.wanted}")


def show(value: object) -> str:
    """Return a bounded, printable form of something a person gave."""
    if isinstance(value, bool):
        return "true" if value else "false"
    try:
        text = repr(value)
    except ValueError:  # an integer of more digits than sys.set_int_max_str_digits() allows
        return "a huge number"
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[: _SHOWN_CHARACTERS - 3]}..."


def quoted(text: str) -> str:
    """Return `text` as a TOML basic string, whose escapes are those of JSON (TOML 1.0, "String")."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def string(value: object) -> str:
    """Return `value` if it is a string; raises ValueError."""
    if not isinstance(value, str):
        raise ValueError  # noqa: TRY004 - a wrong type from a file is a wrong value
    return value
