"""Fixtures of the process tests: daemons that are gone when the test is."""

from __future__ import annotations

import os
import signal
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
from support.daemon import Daemon

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture(scope="session", autouse=True)
def end_in_order_on_term() -> Iterator[None]:
    """A TERM (timeout(1), a CI's cancel) ends the run as Ctrl-C does, so that no daemon outlives it."""
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    yield
    signal.signal(signal.SIGTERM, previous)


@pytest.fixture
def daemons() -> Iterator[list[Daemon]]:
    """Every daemon in this list is closed, and checked for orphans, at the end of the test."""
    with ExitStack() as stack:
        started: list[Daemon] = []
        try:
            yield started
        finally:
            for daemon in started:
                print(daemon.story())  # pytest shows it for a test that failed
                stack.callback(daemon.close)


@pytest.fixture
def launch(daemons: list[Daemon]) -> Callable[..., Daemon]:
    """Return a function that starts a daemon and does not wait for it."""

    def start(*options: str, **more: object) -> Daemon:
        daemon = Daemon(*options, **more)
        daemons.append(daemon)
        return daemon

    return start


@pytest.fixture
def serve(launch: Callable[..., Daemon]) -> Callable[..., Daemon]:
    """Return a function that starts a daemon and waits until all its workers are ready."""
    return lambda *options, **more: launch(*options, **more).ready()


@pytest.fixture
def write_app(tmp_path: Path) -> Callable[..., str]:
    """Return a function that writes a module into the test's directory (use it as --app-dir) and names its app."""

    def write(source: str, name: str = "site_app") -> str:
        (tmp_path / f"{name}.py").write_text(source)
        return f"{name}:app"

    return write
