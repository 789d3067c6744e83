"""Releases of procmgr side by side, with a symbolic link to the current one, as a deploy makes them."""

from __future__ import annotations

import compileall
import os
import shutil
from typing import TYPE_CHECKING

from support.daemon import ROOT

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


class Releases:
    """Copies of the package under `room`; the first one made is the current one."""

    def __init__(self, room: Path) -> None:
        self._room = room
        self._current = room / "current"
        self.env = {"PYTHONPATH": f"{self._current}{os.pathsep}{ROOT / 'tests'}"}
        """Variables that make a daemon run the current release, if its working directory has none."""

    def make(self, version: str, edits: Mapping[str, tuple[str, str]] | None = None) -> None:
        """Make release `version`; `edits` are, by file in the package, a text in it and what comes in its place."""
        package = self._room / version / "procmgr"
        shutil.copytree(ROOT / "procmgr", package)
        for name, (old, new) in {"__init__.py": ('"0.1.0"', f'"{version}"'), **(edits or {})}.items():
            source = (package / name).read_text()
            assert source.count(old) == 1, f"{old!r} is not what {name} has once"
            (package / name).write_text(source.replace(old, new))
        compileall.compile_dir(package, quiet=2)  # not by every daemon again
        if not self._current.exists():
            self._current.symlink_to(version)

    def switch(self, version: str) -> None:
        """Make `version` the current release in one step."""
        fresh = self._room / "fresh"
        fresh.symlink_to(version)
        fresh.replace(self._current)

    def remove(self, version: str) -> None:
        """Delete a release."""
        shutil.rmtree(self._room / version)
