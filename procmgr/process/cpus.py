"""How many CPUs this process may keep busy: what `--workers auto` means."""

from __future__ import annotations

import math
import os
from pathlib import Path


def usable_cpus(*, root: Path = Path("/")) -> int:
    """Return how many CPUs this process may keep busy: its affinity, cut by its CPU quota rounded up; at least 1."""
    affinity, quota = len(os.sched_getaffinity(0)), cpu_quota(root=root)
    return affinity if quota is None else max(1, min(affinity, math.ceil(quota)))


def cpu_quota(*, root: Path = Path("/")) -> float | None:
    """Return the strictest cgroup CPU quota that holds for this process, in CPUs; None if there is none.

    Reads cgroup v2 `cpu.max` and v1 `cpu.cfs_quota_us` of its own group and of every parent under `root`.
    """
    return min((quota for each in _cgroup_directories(root) if (quota := _quota(each)) is not None), default=None)


def _cgroup_directories(root: Path) -> list[Path]:
    # In a container with the host's cgroup namespace the path does not exist under the mount, but its root does.
    mounts = root / "sys/fs/cgroup"
    found: list[Path] = []
    for line in _read(root / "proc/self/cgroup").splitlines():
        hierarchy, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if hierarchy == "0":
            found += _upwards(mounts, path)
        elif "cpu" in controllers.split(","):
            found += [*_upwards(mounts / controllers, path), *_upwards(mounts / "cpu", path)]
    return found


def _upwards(mount: Path, path: str) -> list[Path]:
    parts = [part for part in path.split("/") if part not in {"", ".."}]
    return [mount.joinpath(*parts[:depth]) for depth in range(len(parts), -1, -1)]


def _quota(directory: Path) -> float | None:
    """Return the CPUs that the quota of one group allows, or None if it has none."""
    fields = _read(directory / "cpu.max").split()
    if not fields:
        fields = [*_read(directory / "cpu.cfs_quota_us").split(), *_read(directory / "cpu.cfs_period_us").split()]
    try:
        quota, period = (int(field) for field in fields)
    except ValueError:  # "max", missing or unknown
        return None
    return quota / period if quota > 0 and period > 0 else None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
