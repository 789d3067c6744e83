"""Execute a gunicorn configuration file and tell what it sets: `python -P gunicorn_file.py FILE FD`.

This is a process of its own, which imports nothing of procmgr: the file is somebody's program. It gets what gunicorn
would give it, the working directory first on the path and `__file__`; where gunicorn is not installed, modules of that
name have whatever is asked of them. One line of JSON is written to FD:

- `values`: each public name that is no module; what JSON does not know is `{"callable": NAME}` or `{"object": TYPE}`
- `sources`: for a name whose last assignment computes its value, the expression
- or `error` and `line`, if the file was not executed to its end
"""

from __future__ import annotations

import ast
import json
import os
import sys
import traceback
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import PurePath
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

_LONGEST_SOURCE = 72


class _Anything(type):
    """A class that does nothing, and has a class like it for whatever is asked of it."""

    def __getattr__(cls, name: str) -> _Anything:
        return _stand_in(f"{cls.__module__}.{cls.__qualname__}", name)


class _StandIn(ModuleType):
    """A module of gunicorn's that is not there."""

    __path__: list[str] = []  # noqa: RUF012 - a package, as the import system knows one

    def __getattr__(self, name: str) -> _Anything:
        return _stand_in(self.__name__, name)


def _stand_in(owner: str, name: str) -> _Anything:
    if name.startswith("__"):
        raise AttributeError(name)
    return _Anything(name, (), {"__module__": owner, "__init__": lambda *_, **__: None})


class _Finder(MetaPathFinder, Loader):
    def find_spec(self, fullname: str, path: object, target: object = None) -> ModuleSpec | None:
        del path, target
        return ModuleSpec(fullname, self, is_package=True) if fullname.partition(".")[0] == "gunicorn" else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        del module


def told(path: str) -> dict[str, Any]:
    """Return what is said of the file at `path`, which is executed."""
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - as little as can be is imported before the file
            source = file.read()
        names = _execute(path, source)
        values = {
            name: encoded(value)
            for name, value in names.items()
            if not name.startswith("_") and not isinstance(value, ModuleType)
        }
        return {"values": values, "sources": computed(source)}
    except SystemExit as error:
        return {
            "error": f"called sys.exit({'' if error.code is None else repr(error.code)})",
            "line": _line(path, error),
        }
    except BaseException as error:  # noqa: BLE001 - whatever it raises, KeyboardInterrupt too, is what is to be told
        return {"error": "".join(traceback.format_exception_only(error)[-1:]).strip(), "line": _line(path, error)}


def _execute(path: str, source: bytes) -> dict[str, Any]:
    module = ModuleType("__config__")
    module.__file__ = path
    sys.modules["__config__"] = module
    exec(compile(source, path, "exec"), module.__dict__)  # noqa: S102 - that is what is asked for
    return dict(vars(module))


def _line(path: str, error: BaseException) -> int | None:
    if isinstance(error, SyntaxError) and error.filename == path:
        return error.lineno
    lines = [number for frame, number in traceback.walk_tb(error.__traceback__) if frame.f_code.co_filename == path]
    return lines[-1] if lines else None


def encoded(value: Any) -> Any:  # noqa: ANN401, PLR0911 - of all that there is in Python, one of what there is in JSON
    """Return `value` in what JSON knows."""
    match value:
        case None | bool() | float() | str():
            return value
        case int():
            return int(value)  # ssl.CERT_REQUIRED, say, is an enumeration's member
        case list() | tuple():
            return [encoded(each) for each in value]
        case set() | frozenset():
            return sorted((encoded(each) for each in value), key=repr)
        case dict():
            return {str(key): encoded(each) for key, each in value.items()}
        case PurePath():
            return str(value)
        case _ if callable(value):
            names = (getattr(value, each, None) for each in ("__module__", "__qualname__"))
            return {"callable": ".".join(name for name in names if isinstance(name, str)) or type(value).__name__}
        case _:
            return {"object": type(value).__name__}


def computed(source: bytes) -> dict[str, str]:
    """Return the expression of each name whose last assignment at the top level is no literal."""
    text = source.decode("utf-8", "replace")
    found: dict[str, str] = {}
    for statement in ast.parse(source).body:
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                expression = ast.get_source_segment(text, value) or ""
                found[name] = "" if _literal(value) else " ".join(expression.split())
    return {name: text for name, text in found.items() if 0 < len(text) <= _LONGEST_SOURCE and text.isprintable()}


def _literal(node: ast.expr) -> bool:
    try:
        ast.literal_eval(node)
    except ValueError:
        return False
    return True


def main(arguments: Sequence[str]) -> None:
    """Tell of FILE on FD and end, whatever threads the file has left."""
    path, fd = arguments[0], int(arguments[1])
    os.set_inheritable(fd, False)  # noqa: FBT003 - its only form
    sys.path.insert(0, os.getcwd())  # noqa: PTH109 - as above
    sys.argv = ["gunicorn"]
    if find_spec("gunicorn") is None:
        sys.meta_path.append(_Finder())
    line = json.dumps(told(path)).encode() + b"\n"
    while line:
        line = line[os.write(fd, line) :]
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
