"""The daemon as a child of a Python program: its command line, its environment, and its signals."""

from __future__ import annotations

import json
import signal
import subprocess
import tempfile
import threading
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Final

import tomli

from procmgr import process
from procmgr.config.kind import Shape
from procmgr.config.settings import TABLE
from procmgr.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from types import FrameType

    from procmgr.config.declare import Entry

_FORWARDED: Final = (
    *(signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP),
    *(signal.SIGUSR1, signal.SIGUSR2, signal.SIGTTIN, signal.SIGTTOU),
)


@contextmanager
def log_file(keywords: Mapping[str, object]) -> Iterator[Mapping[str, object]]:
    """Give a logging configuration that is a dict to the daemon in a file."""
    if not isinstance(keywords.get("log_config"), dict):
        yield keywords
        return
    with tempfile.NamedTemporaryFile("w", prefix="procmgr-", suffix=".json") as file:
        try:
            json.dump(keywords["log_config"], file)
        except (TypeError, ValueError) as error:
            raise UsageError(f"log_config cannot be handed to the daemon: {error}; name a file instead") from None
        file.flush()
        yield {**keywords, "log_config": file.name}


def arguments(values: Mapping[str, object]) -> list[str]:
    """Return the command line that spells `values`, but for `secrets`: everybody may read it (proc(5))."""
    spelt: list[str] = []
    for name, value in values.items():
        entry = TABLE[name]
        if _is_secret(entry):
            continue
        if entry.setting.kind.shape is Shape.SWITCH:
            spelt.append(entry.flag if value else f"--no-{entry.flag.removeprefix('--')}")
            continue
        parts = tomli.loads(f"x = {entry.setting.kind.toml(value)}")["x"]
        spelt += [f"{entry.flag}={item}" for item in (parts if isinstance(parts, list) else [parts])]
    return spelt


def secrets(values: Mapping[str, object]) -> dict[str, str]:
    """Return the environment variables that say what of `values` must not be on a command line."""
    return {TABLE[name].variable: str(value) for name, value in values.items() if _is_secret(TABLE[name])}


def _is_secret(entry: Entry) -> bool:
    return entry.setting.secret and entry.setting.kind.shape is Shape.ONE


def by_name(keywords: Mapping[str, object]) -> dict[str, object]:
    """Return `keywords` with the name of `ssl_context_factory` in its place, since the daemon has to import it."""
    factory = keywords.get("ssl_context_factory")
    if factory is None or isinstance(factory, str):
        return dict(keywords)
    module, name = getattr(factory, "__module__", "__main__"), getattr(factory, "__qualname__", "<object>")
    if module == "__main__" or "<" in name:
        raise UsageError(f"ssl_context_factory: the daemon imports it; expected a function of a module, not {name}")
    return {**keywords, "ssl_context_factory": f"{module}:{name}"}


def supervise(command: Sequence[str], environ: Mapping[str, str]) -> int:
    """Run `command` to its end, forwarding signals; a death by signal n becomes 128 + n, as in a shell."""
    child: subprocess.Popen[bytes] | None = None
    early: list[int] = []

    def forward(signum: int, _frame: FrameType | None) -> None:
        if child is None:
            early.append(signum)
        else:
            child.send_signal(signum)

    on_main = threading.current_thread() is threading.main_thread()
    with handlers(_FORWARDED if on_main else (), forward):
        # Killed without a chance to forward anything, we leave no daemon behind.
        child = subprocess.Popen(command, env=environ, preexec_fn=partial(process.set_pdeathsig, signal.SIGTERM))  # noqa: PLW1509, S603 - one system call; our own words
        for signum in early:
            child.send_signal(signum)
        status = child.wait()
    return status if status >= 0 else 128 - status


@contextmanager
def handlers(signums: Sequence[signal.Signals], handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Have `handler` called for these signals, and put back what was there."""
    before = {signum: signal.signal(signum, handler) for signum in signums}
    try:
        yield
    finally:
        for signum, previous in before.items():
            # None: it was installed by C code and cannot be put back from here (signal.getsignal).
            signal.signal(signum, signal.SIG_DFL if previous is None else previous)
