"""`procmgr --from-gunicorn FILE`: have the file executed, and write what it sets as a configuration file of procmgr.

The file is a program. It runs in a process of its own (`gunicorn_file`), in a session of its own that is ended with all
that it started; without standard input, and what it prints goes to standard error.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final

from procmgr import __version__
from procmgr.config.from_gunicorn import translate
from procmgr.config.resolve import Invocation, resolve
from procmgr.config.settings import TABLE
from procmgr.errors import ConfigError, ProcmgrError, TooSlowError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from procmgr.config.from_gunicorn import Translation

_PROGRAM: Final = Path(__file__).with_name("gunicorn_file.py")
_MOST: Final = 1 << 20
_STDERR: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a configuration file sets, by name, and the expressions of what it computes."""

    values: Mapping[str, Any]
    sources: Mapping[str, str]


def read(path: Path, cwd: Path, *, limit: float) -> tuple[str, list[str]]:
    """Return the configuration file that a file of gunicorn's means, and lines for a person; it has `limit` seconds.

    Raises `UsageError` if there is no such file, `ConfigError` if it fails, `TooSlowError` if it does not end.
    """
    found = execute(path, limit)
    made = translate(found.values, found.sources)
    text = render(path.name, made)
    return text, [*_summary(path.name, made), *_refusal(text, made, cwd)]


def execute(path: Path, limit: float) -> Found:
    """Execute the file at `path` for at most `limit` seconds, and return what it sets; raises as `read` does."""
    if not path.is_file():
        wrong = "that is no regular file" if path.exists() else "there is no such file"
        raise UsageError(f"--from-gunicorn: {path}: {wrong}; expected gunicorn's configuration")
    told = _run(path, limit)
    if "error" in told:
        place = f"{path}:{told['line']}" if told.get("line") else str(path)
        raise ConfigError(f"{place}: {told['error']}")
    return Found(values=told["values"], sources=told["sources"])


def _run(path: Path, limit: float) -> Mapping[str, Any]:
    until = time.monotonic() + limit
    reading, writing = os.pipe()
    with closing(os.fdopen(reading, "rb", buffering=0)):
        try:
            child = subprocess.Popen(  # noqa: S603 - this interpreter, and a file that somebody named
                [sys.executable, "-P", str(_PROGRAM), str(path), str(writing)],
                stdin=subprocess.DEVNULL,
                stdout=_STDERR,
                pass_fds=[writing],
                start_new_session=True,
            )
        finally:
            os.close(writing)
        try:
            line = _line(reading, until)
        finally:
            with suppress(ProcessLookupError):  # it is not reaped yet, so the number is its own
                os.killpg(child.pid, signal.SIGKILL)
            code = child.wait()
    if line is None:
        raise TooSlowError(f"{path}: not executed to its end within {limit:g} seconds")
    if not line.endswith(b"\n"):
        raise ConfigError(f"{path}: {_ending(code)} before it was executed to its end")
    told: Mapping[str, Any] = json.loads(line)
    return told


def _line(fd: int, until: float) -> bytes | None:
    """Return what is written to `fd` up to the end of a line, or to its end; None if that took too long."""
    line = b""
    while not line.endswith(b"\n"):
        ready, _, _ = select.select([fd], [], [], max(0.0, until - time.monotonic()))
        if not ready:
            return None
        part = os.read(fd, 1 << 16)
        line += part
        if not part or len(line) > _MOST:
            break
    return line


def _ending(code: int) -> str:
    return f"it was ended by {signal.Signals(-code).name}" if code < 0 else f"it ended the process with status {code}"


# --- what is written ----------------------------------------------------------------------------------------------


def render(name: str, made: Translation) -> str:
    """Return the configuration file; `name` is that of gunicorn's."""
    lines = [
        f"# What {name} means to procmgr {__version__}. It was executed: what it computes is what it gave here.",
        *(() if "app" in made.lines else ("# The application is not in it: name it here, or on the command line.",)),
    ]
    lines += [_setting(each, made) for each in TABLE if each in made.lines]
    lines += _block("Without equivalent, or not as it was:", made.remarks)
    if made.defaults:
        lines += ["", "# gunicorn's defaults, where procmgr has others; take the # away to keep them:"]
        lines += [f"#{each} = {value}  # default: {TABLE[each].default}" for each, value in made.defaults.items()]
    lines += _block("No settings of gunicorn, and of no effect there either:", _strangers(made))
    return "\n".join(lines) + "\n"


def _setting(name: str, made: Translation) -> str:
    source = made.sources.get(name, "")
    return f"{name} = {made.lines[name]}" + (f"  # {source}" if source else "")


def _block(title: str, entries: Mapping[str, str]) -> list[str]:
    lines = [f"#   {name}: {text}".rstrip(": ").replace("`", "") for name, text in entries.items()]
    return ["", f"# {title}", *map(_printable, lines)] if lines else []


def _printable(line: str) -> str:
    """Return `line` as a comment may have it: no control characters (TOML 1.0, "Comment")."""
    return "".join(each if each.isprintable() else "?" for each in line)


def _strangers(made: Translation) -> dict[str, str]:
    return {name: f"did you mean {close}?" if close else "" for name, close in made.strangers.items()}


def _summary(name: str, made: Translation) -> list[str]:
    if not made.remarks:
        return [f"{name} was executed; all that it sets has an equivalent"]
    return [f"{name} was executed; see the comments in the result about: {', '.join(made.remarks)}"]


def _refusal(text: str, made: Translation, cwd: Path) -> Sequence[str]:
    """Return what procmgr says of the result where it would not start with it here: a file is missing, say."""
    with TemporaryDirectory() as room:
        file = Path(room, "procmgr.toml")
        file.write_text(text, encoding="utf-8", errors="replace")
        values: dict[str, object] = {} if "app" in made.lines else {"app": "main:app"}
        try:
            resolve(Invocation(values=values, config=file, environ={}, cwd=cwd))
        except ProcmgrError as error:
            return [f"warning: procmgr would not start with the result here: {error}".replace(str(file), "the result")]
    return []
