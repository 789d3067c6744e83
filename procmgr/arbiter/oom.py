"""Whether the kernel ran out of memory when a worker died: all there is to tell its SIGKILL from an operator's.

The kernel counts, per control group, the processes it killed for want of memory. The counter says neither which nor
when, so only a rise since the last death that is met by exactly one SIGKILL nobody here sent is taken for the cause,
and that only probably. Where nothing can be read (ProcSubset=pid, no memory controller) nothing is claimed.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


class OomKills:
    """The kills for want of memory in our control group. `root` is where /proc and /sys are."""

    def __init__(self, *, root: Path = Path("/")) -> None:
        self._files = tuple(_counters(root))
        self._seen = self._count()

    def rose(self) -> bool:
        """Return whether there was one since the last call, or since the start."""
        before, self._seen = self._seen, self._count()
        return before is not None and self._seen is not None and self._seen > before

    def _count(self) -> int | None:
        return next((count for path in self._files if (count := _read_count(path)) is not None), None)


def _counters(root: Path) -> Iterator[Path]:
    """Yield where the counter may be: memory.events of cgroup v2, memory.oom_control of v1 (cgroups(7))."""
    mounts = root / "sys/fs/cgroup"
    for line in _read(root / "proc/self/cgroup").splitlines():
        hierarchy, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        inside = Path(*[part for part in path.split("/") if part not in {"", ".."}])
        # In a container with the host's namespace the path does not exist under the mount, which is the group itself.
        if hierarchy == "0":
            yield from (base / "memory.events" for base in (mounts / inside, mounts))
        elif "memory" in controllers.split(","):
            yield from (base / "memory.oom_control" for base in (mounts / "memory" / inside, mounts / "memory"))


def _read_count(path: Path) -> int | None:
    for line in _read(path).splitlines():
        name, _, number = line.partition(" ")
        if name == "oom_kill" and number.isdecimal():
            return int(number)
    return None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
