"""Making plain data immortal, so that a process which reads it after a fork writes nothing to its pages.

Rules: only what lives as long as the process anyway, or costs nothing but memory if it does not, is made immortal: data
of builtin types, code (functions, classes, modules), and instances of classes written in Python. Never an object whose
end means something: with a finalizer, with a weak reference that calls back, or of a type made in C that is not known
here, as those of files, sockets, locks, frames and cursors are. Such an object still lives for ever if an immortal one
refers to it and is not made to forget it.

Theory of operation. An object whose reference count has the value that None's has is immortal (PEP 683, Python 3.12):
the interpreter no longer counts its references, so reading it leaves its page alone and the page stays shared. The
count is the first 32 bits of an object on every interpreter that `unavailable` accepts, and None says what to write
there. The mark is its own record of what was visited. Tracked objects come from the collector; what it does not track
(text, numbers, code, tuples and dicts of such) is found from those that refer to it.
"""

from __future__ import annotations

import collections
import ctypes
import datetime as dt
import functools
import gc
import sys
import sysconfig
import types
import typing
import weakref
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

_PEP_683: Final = 0x030C0000
_BATCH: Final = 1000
_DEALLOC: Final = 48  # where PyTypeObject has tp_dealloc, on 64-bit interpreters
_LEAVES: Final = (str, bytes, bytearray, int, bool, float, complex, range)
_DATA: Final = (
    *_LEAVES,
    *(object, type, tuple, list, dict, set, frozenset, slice, types.MappingProxyType, types.SimpleNamespace),
    *(collections.deque, collections.defaultdict, collections.OrderedDict),
    *(dt.date, dt.datetime, dt.time, dt.timedelta, dt.timezone, dt.tzinfo),
    *(types.ModuleType, types.FunctionType, types.CodeType, types.CellType, types.MethodType, functools.partial),
    *(property, classmethod, staticmethod, types.GenericAlias, types.UnionType, typing.Generic),
    *(types.BuiltinFunctionType, types.MethodDescriptorType, types.ClassMethodDescriptorType),
    *(types.WrapperDescriptorType, types.MethodWrapperType, types.GetSetDescriptorType, types.MemberDescriptorType),
)
# Known as well, but not worth an import: who has such objects has it imported.
_FURTHER: Final = (("decimal", "Decimal"), ("zoneinfo", "ZoneInfo"))
# A metaclass may have its own ideas of attributes: these do not ask it.
_mro: Final = type.__dict__["__mro__"].__get__
_namespace: Final = type.__dict__["__dict__"].__get__


def unavailable() -> str:
    """Return why this interpreter cannot make objects immortal, as the end of a sentence; empty if it can."""
    if sys.implementation.name != "cpython" or sys.hexversion < _PEP_683:
        return "this needs CPython 3.12 or newer"
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        return "this interpreter is built without the GIL and counts references in another way"
    if hasattr(sys, "gettotalrefcount") or hasattr(sys, "getobjects"):
        return "this is a debug build of Python"
    if sys.maxsize < 1 << 32 or not _probe():
        return "this interpreter keeps reference counts in another way"
    return ""


def immortalize() -> int:
    """Make all plain data there is immortal and return of how many objects that is.

    To be called when `unavailable` has nothing to say, and before gc.freeze(), which hides objects. Besides a word for
    every object that the collector tracks it needs no more memory than a copy of the largest container.
    """
    gc.unfreeze()
    marker = _Marker()
    tracked = gc.get_objects()
    for start in range(0, len(tracked), _BATCH):
        batch: list[object] = tracked[start : start + _BATCH]
        marker.mark(batch)
        while batch:
            batch = marker.mark(_referents(batch))
    return marker.count


def _memory() -> ctypes.Array[ctypes.c_uint32]:
    """Return all memory of this process as an array of 32-bit words."""
    return (ctypes.c_uint32 * (1 << 60)).from_address(0)


def _probe() -> bool:
    """Try on one object whether a count is where it is written, and whether one as None's is not counted."""
    words, probe = _memory(), object()
    place, none = id(probe) >> 2, id(None) >> 2
    mortal, immortal = words[place], words[none]
    held = [probe, None] * 10
    counted = words[place] == mortal + 10 and words[none] == immortal
    words[place] = immortal
    del held
    uncounted = words[place] == immortal and sys.getrefcount(probe) == sys.getrefcount(None)
    words[place] = mortal
    return counted and uncounted


def _referents(things: list[Any]) -> Iterable[object]:
    """Return what these refer to, and what the collector does not ask for: keys that are text, code's constants."""
    found = gc.get_referents(*things)
    for thing in things:
        kind = type(thing)  # and not isinstance(), which asks a lazy proxy for its class
        if issubclass(kind, dict):
            found += dict.keys(thing)
        elif kind is types.CodeType:
            found += (thing.co_consts, thing.co_names)
    return found


class _Marker:
    """Marks objects as immortal; `count` is how many."""

    def __init__(self) -> None:
        self.count = 0
        self._words = _memory()
        self._mark: int = self._words[id(None) >> 2]
        # By id: a metaclass may define how its classes are hashed.
        self._leaves = {id(kind) for kind in _LEAVES}
        further = (getattr(sys.modules.get(module), name, object) for module, name in _FURTHER)
        self._data = {id(kind) for kind in (*_DATA, *further)}
        self._plain = dict.fromkeys(self._data, True)
        self._freed_as = _freed_by(_Marker)

    def mark(self, things: Iterable[object]) -> list[object]:
        """Mark those that may be; return the newly marked that may refer to others and that no collector tracks."""
        words, mark, plain = self._words, self._mark, self._plain
        inner = []
        for thing in things:
            place = id(thing) >> 2
            if words[place] == mark:
                continue
            kind = id(type(thing))
            if kind in self._leaves:
                words[place] = mark
                self.count += 1
            elif (plain[kind] if kind in plain else self._learn(type(thing))) and not _is_watched(thing):
                words[place] = mark
                self.count += 1
                if not gc.is_tracked(thing):
                    inner.append(thing)
        return inner

    def _learn(self, kind: type) -> bool:
        """Judge a class: written in Python, as are its bases but for known data, and without a finalizer."""
        bases = _mro(kind)
        known = all(id(base) in self._data or _freed_by(base) == self._freed_as for base in bases)
        verdict = known and not any("__del__" in _namespace(base) for base in bases)
        self._plain[id(kind)] = verdict
        return verdict


def _freed_by(kind: type) -> int:
    """Return the address of the function that frees instances; all classes written in Python have the same."""
    return ctypes.c_size_t.from_address(id(kind) + _DEALLOC).value


def _is_watched(thing: object) -> bool:
    """Tell whether somebody is to be called at its end. Of classes that is said often (by `abc`), and means little."""
    if weakref.getweakrefcount(thing) == 0 or issubclass(type(thing), type):
        return False
    return any(reference.__callback__ is not None for reference in weakref.getweakrefs(thing))
