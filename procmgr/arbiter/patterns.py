"""Which files count as code under --reload, and where they are looked for: uvicorn's rules.

A file counts if it matches an include and no exclude; an include that spells the end of its path wins over excludes.
`*.py` is included, and what editors leave behind is excluded, unless the other list names that very pattern. A
directory among the includes is watched as well, and one among the excludes is left out with all below it. Relative
patterns match from the right (`PurePath.match`); relative directories count from the working directory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path, PurePath

    from procmgr.config.development import DevelopmentSettings

INCLUDES: Final = ("*.py",)
EXCLUDES: Final = (".*", ".py[cod]", ".sw.*", "~*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Patterns:
    """What counts; `without` are directories by their resolved paths."""

    includes: tuple[str, ...]
    excludes: tuple[str, ...]
    without: tuple[Path, ...]

    def match(self, path: PurePath) -> bool:
        """Return whether a file at this absolute path counts."""
        found = [include for include in self.includes if path.match(include)]
        if any(str(path).endswith(include) for include in found):
            return True
        left_out = any(path.match(exclude) for exclude in self.excludes) or any(
            directory in path.parents for directory in self.without
        )
        return bool(found) and not left_out


def patterns_of(settings: DevelopmentSettings, cwd: Path) -> Patterns:
    """Return what counts for a process in `cwd`."""
    includes = [pattern for pattern in settings.reload_includes if not (cwd / pattern).is_dir()]
    excludes = [pattern for pattern in settings.reload_excludes if not (cwd / pattern).is_dir()]
    return Patterns(
        includes=(*(each for each in INCLUDES if each not in excludes), *(each for each in includes)),
        excludes=(*(each for each in EXCLUDES if each not in includes), *(each for each in excludes)),
        without=tuple(_directories(settings.reload_excludes, cwd)),
    )


def directories_of(settings: DevelopmentSettings, cwd: Path) -> tuple[Path, ...]:
    """Return the directories to watch with all below them, none inside another; `cwd` if there would be none."""
    named = [(cwd / directory).resolve() for directory in settings.reload_dirs]
    wanted = {*named, *_directories(settings.reload_includes, cwd), *_matching(settings.reload_includes, cwd)}
    without = _directories(settings.reload_excludes, cwd)
    kept = {each for each in wanted if not any(other == each or other in each.parents for other in without)}
    top = {each for each in kept if not kept.intersection(each.parents)}
    return tuple(sorted(top)) or (cwd.resolve(),)


def _directories(patterns: Iterable[str], cwd: Path) -> list[Path]:
    return [(cwd / pattern).resolve() for pattern in patterns if (cwd / pattern).is_dir()]


def _matching(patterns: Iterable[str], cwd: Path) -> list[Path]:
    """Return the directories that a pattern matches; `.*` is about files, not about .git."""
    relative = [pattern for pattern in patterns if pattern != ".*" and not pattern.startswith("/")]
    return [path.resolve() for pattern in relative for path in cwd.glob(pattern) if path.is_dir()]
