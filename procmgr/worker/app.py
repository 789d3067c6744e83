"""Finding the application: "module:attr.path" → one ASGI 3 callable.

Rules: whatever goes wrong is an `AppError` whose summary is one line that names the target and, where one can be found,
the likely mistake; its detail is the application's own traceback, without procmgr's and importlib's frames. An
ImportError or SyntaxError anywhere means that code is missing or broken (`AppNotFoundError`): a restart will not help.
Any other exception may be a database that is down (`AppError`): a restart may.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import logging
import os
import sys
import traceback
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypedDict, Unpack, assert_never, cast

from procmgr.errors import AppError, AppNotFoundError
from procmgr.worker.wsgi import WSGI

if TYPE_CHECKING:
    from procmgr.config.settings import AppSettings

Scope = MutableMapping[str, Any]
Event = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]
Interface = Literal["auto", "asgi3", "asgi2", "wsgi"]

_PACKAGE_DIR: Final = os.path.join(os.path.dirname(os.path.dirname(__file__)), "")  # noqa: PTH118, PTH120 - compared with co_filename, a str
_IMPORTLIB: Final = (importlib.__file__ or "importlib", "<frozen importlib")
_USUAL_NAMES: Final = ("app", "application", "api", "asgi", "create_app", "make_app")
_SUGGESTIONS: Final = 3

log = logging.getLogger("procmgr.error")


class Call(TypedDict, total=False):
    """How an application is called, see the settings of these names."""

    factory: bool
    interface: Interface
    threads: int


def how(settings: AppSettings) -> Call:
    """Return how the settings have the application called."""
    return {"factory": settings.factory, "interface": settings.interface, "threads": settings.threads}


def load(target: str, *, app_dir: str = "", **call: Unpack[Call]) -> ASGIApp:
    """Import `target` with `app_dir` first on sys.path and return it as an ASGI 3 callable.

    Raises `AppNotFoundError` (ImportError, SyntaxError, no such attribute) or `AppError` (anything else).
    """
    return adapt(find(target, app_dir=app_dir), name=target, **call)


def find(target: str, *, app_dir: str = "", role: str = "application") -> object:
    """Return what `target` names, with `app_dir` first on sys.path; `role` is what messages call it.

    Raises as `load` does.
    """
    module_name, _, attributes = target.partition(":")
    directory = _put_first(app_dir)
    _check_form(target, module_name, attributes, directory, role)
    module = _import(module_name, directory)
    return _attribute(module, attributes, f"{role} {target!r}")


def adapt(
    found: object, *, name: str, factory: bool = False, interface: Interface = "auto", threads: int = 10
) -> ASGIApp:
    """Return `found`, called first if it is a factory, as an ASGI 3 callable; `name` is for messages.

    Raises `AppError`, and `ConfigError` if what the interface needs is not installed.
    """
    if factory:
        found = _call_factory(found, name)
    elif _is_factory(found):
        log.warning("%s looks like an application factory and is used as one; say so with --factory", name)
        found = _call_factory(found, name)
    if not callable(found):
        raise AppError(f"{name} is no application: it is {_a(found)}, which cannot be called")
    if interface == "auto":
        if _is_wsgi(found):
            raise AppError(f"{name} looks like a WSGI application; say so with --interface wsgi")
        interface = "asgi3" if _is_asgi3(found) else "asgi2"
    match interface:
        case "asgi3":
            return cast("ASGIApp", found)
        case "asgi2":
            return _Asgi2(found)
        case "wsgi":
            return WSGI(found, threads=threads)
        case _:
            assert_never(interface)


class _Asgi2:
    """An ASGI 2 application, `app(scope)(receive, send)`, behind the ASGI 3 signature."""

    __slots__ = ("_app",)

    def __init__(self, app: Callable[..., Any]) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["asgi"] = {**scope["asgi"], "version": "2.0"}
        await self._app(scope)(receive, send)


def _put_first(app_dir: str) -> str:
    """Put `app_dir` first on sys.path by the path the user knows and return it.

    A deploy that switches a symlink must be seen by the next worker, so the path is not resolved: $PWD is the shell's
    spelling of the working directory, os.getcwd() the kernel's.
    """
    directory = os.path.normpath(os.path.join(_working_directory(), app_dir))  # noqa: PTH118 - Path cannot keep "" apart from "."
    while directory in sys.path:
        sys.path.remove(directory)
    sys.path.insert(0, directory)
    importlib.invalidate_caches()
    return directory


def _working_directory() -> str:
    logical = os.environ.get("PWD", "")
    try:
        if os.path.isabs(logical) and os.path.samefile(logical, "."):  # noqa: PTH117, PTH121 - str in, str out
            return logical
    except OSError:
        pass  # $PWD is gone or not ours to see: the kernel's spelling is left
    return os.getcwd()  # noqa: PTH109 - str in, str out


def _check_form(target: str, module_name: str, attributes: str, directory: str, role: str) -> None:
    if "/" in module_name or module_name.endswith(".py"):
        stem = module_name.removesuffix(".py").strip("./").replace("/", ".")
        raise AppNotFoundError(f"{role} {target!r} is a path: give a module, as in {stem}:{attributes or 'app'}")
    if not module_name or module_name.startswith("."):
        raise AppNotFoundError(f"{role} {target!r} names no module: it must be module:attribute, as in main:app")
    if not attributes:
        usual = [name for name in _USUAL_NAMES if hasattr(_import(module_name, directory), name)]
        wanted = f"did you mean {module_name}:{usual[0]}?" if usual else f"as in {module_name}:app"
        raise AppNotFoundError(f"{role} {target!r} names no attribute: it must be module:attribute, {wanted}")


def _import(module_name: str, directory: str) -> object:
    try:
        return importlib.import_module(module_name)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 - SystemExit included: importing an application may not end us untyped
        detail = own_traceback(error)
        if isinstance(error, ModuleNotFoundError) and not detail:  # nobody but us asked for what is missing
            raise AppNotFoundError(_no_module(module_name, error.name or module_name, directory)) from None
        raise _classify(f"importing {module_name}", error, detail) from None


def _attribute(module: object, path: str, what: str) -> object:
    found = module
    for name in path.split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            where = getattr(module, "__file__", None) or "a namespace package"
            summary = f"no attribute {name!r} for {what} in {where}"
            raise AppNotFoundError(summary + _did_you_mean(name, dir(found), _USUAL_NAMES)) from None
    return found


def _call_factory(factory: object, name: str) -> object:
    if not callable(factory):
        raise AppError(f"{name} is no application factory: it is {_a(factory)}, which cannot be called")
    try:
        found = factory()
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 - as for importing
        raise _classify(f"calling the factory {name}", error, own_traceback(error)) from None
    if inspect.iscoroutine(found):
        found.close()
        raise AppError(f"the factory {name} is a coroutine function: it must return the application, not await it")
    return cast("object", found)


def _classify(action: str, error: BaseException, detail: str) -> AppError:
    kind = AppNotFoundError if isinstance(error, (ImportError, SyntaxError)) else AppError
    return kind(f"{action} failed: {one_line(error)}", detail)


def one_line(error: BaseException) -> str:
    """Return "Type: words" of an exception on one line of at most 500 characters."""
    words = " ".join(traceback.format_exception_only(error)[-1].split())
    return words if len(words) <= 500 else f"{words[:497]}..."


def own_traceback(error: BaseException) -> str:
    """Return the traceback of the application's own frames; empty when it has none."""
    report = traceback.TracebackException.from_exception(error)
    _strip(report)
    if not report.stack and not isinstance(error, SyntaxError):
        return ""
    return "".join(report.format()).rstrip("\n")


def _strip(report: traceback.TracebackException) -> None:
    kept = [frame for frame in report.stack if not frame.filename.startswith((_PACKAGE_DIR, *_IMPORTLIB))]
    report.stack = traceback.StackSummary.from_list(kept)
    for linked in (report.__cause__, report.__context__):
        if linked is not None:
            _strip(linked)


def _no_module(wanted: str, missing: str, directory: str) -> str:
    summary = f"no module named {missing!r} (searched {directory}, which is --app-dir, and Python's path)"
    relative = Path(*missing.split("."))
    for child in _subdirectories(directory):
        if (child / relative).with_suffix(".py").is_file() or (child / relative / "__init__.py").is_file():
            return f"{summary}; it is in {child}: did you mean --app-dir {child.name}?"
    if missing == wanted.partition(".")[0]:
        return summary + _did_you_mean(missing, _modules_in(Path(directory)), ())
    parent = missing.rpartition(".")[0]
    inside = getattr(sys.modules.get(parent), "__path__", [])
    return summary + _did_you_mean(missing, [f"{parent}.{name}" for each in inside for name in _modules_in(Path(each))])


def _subdirectories(directory: str) -> list[Path]:
    return [path for path in _listed(Path(directory)) if path.is_dir() and not path.name.startswith(".")]


def _modules_in(directory: Path) -> list[str]:
    return [p.stem for p in _listed(directory) if p.suffix == ".py" or (p / "__init__.py").is_file()]


def _listed(directory: Path) -> list[Path]:
    try:
        return sorted(directory.iterdir())[:1000]
    except OSError:
        return []  # a hint is a courtesy; what could not be imported is already said


def _did_you_mean(name: str, names: list[str], usual: tuple[str, ...] = ()) -> str:
    close = difflib.get_close_matches(name, names, n=_SUGGESTIONS)
    close += [each for each in usual if each in names and each not in close]
    return f"; did you mean {' or '.join(close[:_SUGGESTIONS])}?" if close else ""


def _is_factory(found: object) -> bool:
    """Return whether `found` can be called with nothing, but not as ASGI 2 or 3 call it."""
    return callable(found) and _accepts(found, 0) and not _accepts(found, 1) and not _accepts(found, 3)


def _is_asgi3(app: Callable[..., Any]) -> bool:
    """Return whether `app` is called with (scope, receive, send); uvicorn's rules, then the signature."""
    if inspect.isclass(app):
        return hasattr(app, "__await__")
    call = app if inspect.isfunction(app) else getattr(app, "__call__", app)  # noqa: B004 - the method is wanted, not whether it exists
    return inspect.iscoroutinefunction(call) or (_accepts(app, 3) and not _accepts(app, 1))


def _is_wsgi(app: Callable[..., Any]) -> bool:
    """Return whether `app` is called with (environ, start_response), and with nothing else."""
    if inspect.isclass(app) or inspect.iscoroutinefunction(app):
        return False
    return _accepts(app, 2) and not _accepts(app, 1) and not _accepts(app, 3)


def _accepts(function: Callable[..., Any], count: int) -> bool:
    try:
        inspect.signature(function).bind(*[None] * count)
    except (TypeError, ValueError):  # ValueError: compiled code that tells no signature
        return False
    return True


def _a(thing: object) -> str:
    return f"of type {type(thing).__name__}"
