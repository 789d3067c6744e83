"""Values as plain JSON data and back: what one arbiter writes for the next, which may be of another release.

Rules: a dataclass becomes its fields under their names with its own name beside them, so that a union of dataclasses
can be read. `load` is told the type it expects and checks all it meets. A field that is missing takes its default,
since the writer may be older; one that is unknown is refused, since it would be lost. Infinities are written as text:
JSON has none.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from enum import Enum, IntEnum
from math import inf
from types import NoneType, UnionType
from typing import (
    Any,
    Final,
    Literal,
    TypeAlias,
    TypeVar,
    Union,
    cast,
    dataclass_transform,
    get_args,
    get_origin,
    get_type_hints,
)

T = TypeVar("T")
Data: TypeAlias = Any
"""What `json.loads` returns, or `json.dumps` takes."""
Type: TypeAlias = Any
"""A type as annotations name it: a class, a union, a generic alias."""

_KIND: Final = "is"
_INFINITIES: Final = {"inf": inf, "-inf": -inf}


@dataclass_transform(frozen_default=True, kw_only_default=True)
def record(kind: type[T]) -> type[T]:
    """Declare a dataclass to be written and read here: frozen, slotted, its annotations resolved at run time."""
    return dataclasses.dataclass(frozen=True, slots=True, kw_only=True)(kind)


class PlainError(ValueError):
    """The data is not what the type says; the text names the place."""


def dump(value: object) -> Data:  # noqa: PLR0911 - a table of kinds
    """Return `value` as data for `json.dumps`: dataclasses, enums, collections and scalars; raises `TypeError`."""
    match value:
        case IntEnum():
            return int(value)  # which is what a field that is said to be a number may hold
        case Enum():
            return value.name
        case float() if value in {inf, -inf}:
            return str(value)
        case None | bool() | int() | float() | str():
            return value
        case list() | tuple():
            return [dump(each) for each in value]
        case set() | frozenset():
            return [dump(each) for each in sorted(value)]
        case Mapping():
            return {_key(key): dump(each) for key, each in value.items()}
        case _ if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return {_KIND: type(value).__name__, **dump_fields(value)}
        case _:
            raise TypeError(f"{type(value).__name__} cannot be written as plain data")


def dump_fields(value: object, *, but: frozenset[str] = frozenset()) -> dict[str, Any]:
    """Return the fields of a dataclass instance as data, but for those named."""
    names = [each.name for each in dataclasses.fields(value) if each.name not in but]  # type: ignore[arg-type]  # an instance
    return {name: dump(getattr(value, name)) for name in names}


def find(value: object, kind: type[T]) -> list[T]:
    """Return every instance of `kind` within a dataclass and the collections in it."""
    match value:
        case _ if isinstance(value, kind):
            return [value]
        case list() | tuple() | set() | frozenset():
            return [found for each in value for found in find(each, kind)]
        case Mapping():
            return [found for each in value.values() for found in find(each, kind)]
        case _ if dataclasses.is_dataclass(value):
            return [found for each in dataclasses.fields(value) for found in find(getattr(value, each.name), kind)]
        case _:
            return []


def load(kind: type[T], data: Data, *, names: Mapping[str, Any] | None = None) -> T:
    """Return the value of type `kind` that `data` describes; raises `PlainError`.

    `names` are what the annotations of a dataclass may refer to beside its module's own names.
    """
    return cast("T", _Loader(names).load(kind, data, kind.__name__))


def load_fields(
    kind: type, data: Mapping[str, Any], *, names: Mapping[str, Any], but: frozenset[str] = frozenset()
) -> dict[str, Any]:
    """Return the fields of dataclass `kind` that `data` holds, as arguments for it; raises `PlainError`."""
    return _Loader(names).fields(kind, data, kind.__name__, but)


class _Loader:
    """Reads by type; `where` is the path to the value at hand, for errors."""

    def __init__(self, names: Mapping[str, Any] | None) -> None:
        self._names = dict(names) if names else None
        self._hints: dict[type, dict[str, Type]] = {}

    def load(self, kind: Type, data: Data, where: str) -> Data:
        origin: Type = get_origin(kind)
        if origin in {Union, UnionType}:
            return self._one_of(get_args(kind), data, where)
        if origin is Literal:
            return _require(data in get_args(kind), data, where, data)
        if origin is not None:
            return self._collection(origin, get_args(kind), data, where)
        if kind is Any:
            return data
        if dataclasses.is_dataclass(kind):
            return self._instance(cast("type", kind), data, where)
        return _scalar(kind, data, where)

    def fields(self, kind: type, data: Mapping[str, Any], where: str, but: frozenset[str]) -> dict[str, Any]:
        hints = self._hints.get(kind) or get_type_hints(kind, localns=self._names)
        self._hints[kind] = hints
        known = {each.name: each for each in dataclasses.fields(kind) if each.init and each.name not in but}
        unknown = data.keys() - known.keys() - {_KIND}
        if unknown:
            raise PlainError(f"{where}: there is no {', '.join(sorted(unknown))}")
        missing = [name for name, each in known.items() if name not in data and _is_required(each)]
        if missing:
            raise PlainError(f"{where}: {', '.join(missing)} is missing")
        return {name: self.load(hints[name], data[name], f"{where}.{name}") for name in known if name in data}

    def _instance(self, kind: type, data: Data, where: str) -> Data:
        _require(isinstance(data, dict) and data.get(_KIND) == kind.__name__, data, where, None)
        try:
            return kind(**self.fields(kind, data, where, frozenset()))
        except PlainError:
            raise
        except ValueError as error:
            raise PlainError(f"{where}: {error}") from error

    def _one_of(self, kinds: tuple[Type, ...], data: Data, where: str) -> Data:
        if data is None and NoneType in kinds:
            return None
        tag = data.get(_KIND) if isinstance(data, dict) else None
        named = [kind for kind in kinds if dataclasses.is_dataclass(kind) and getattr(kind, "__name__", None) == tag]
        for kind in named or [kind for kind in kinds if kind is not NoneType and not dataclasses.is_dataclass(kind)]:
            try:
                return self.load(kind, data, where)
            except PlainError:
                if named:
                    raise
        raise _wrong(data, where)

    def _collection(self, origin: Type, kinds: tuple[Type, ...], data: Data, where: str) -> Data:
        if issubclass(origin, Mapping):
            _require(isinstance(data, dict), data, where, None)
            return {
                self._key_of(kinds[0], key, where): self.load(kinds[1], each, f"{where}.{key}")
                for key, each in data.items()
            }
        _require(isinstance(data, list), data, where, None)
        if origin is tuple and kinds[-1] is not Ellipsis:
            _require(len(data) == len(kinds), data, where, None)
            return tuple(self.load(kind, each, where) for kind, each in zip(kinds, data, strict=True))
        return origin(self.load(kinds[0], each, f"{where}[{index}]") for index, each in enumerate(data))

    def _key_of(self, kind: Type, key: str, where: str) -> Data:
        if kind is not int:
            return key
        _require(key.isascii() and key.isdecimal(), key, where, None)
        return int(key)


def _key(key: object) -> str:
    if isinstance(key, str | int):
        return str(key)
    raise TypeError(f"{type(key).__name__} cannot be a key of plain data")


def _scalar(kind: Type, data: Data, where: str) -> Data:
    if isinstance(kind, type) and issubclass(kind, IntEnum):
        return kind(_require(type(data) is int and data in kind._value2member_map_, data, where, data))
    if isinstance(kind, type) and issubclass(kind, Enum):
        return kind[_require(isinstance(data, str) and data in kind.__members__, data, where, data)]
    if kind is float:
        number = _INFINITIES.get(data, data) if isinstance(data, str) else data
        return float(_require(isinstance(number, int | float) and not isinstance(number, bool), data, where, number))
    return _require(type(data) is kind, data, where, data)


def _is_required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _require(holds: bool, data: Data, where: str, result: Data) -> Data:  # noqa: FBT001 - a condition, as of `assert`
    if not holds:
        raise _wrong(data, where)
    return result


def _wrong(data: Data, where: str) -> PlainError:
    # Not the value itself, which may be a secret.
    return PlainError(f"{where}: a value of type {type(data).__name__} that does not belong there")
