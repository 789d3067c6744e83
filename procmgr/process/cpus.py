"""How many CPUs this process may keep busy: what `--workers auto` means."""

from __future__ import annotations

import os
from pathlib import Path


def usable_cpus(*, root: Path = Path("/")) -> int:
    """Return how many CPUs this process may keep busy: its affinity, cut by cgroup CPU quotas rounded up; at least 1.

    Reads cgroup v2 `cpu.max` and v1 `cpu.cfs_quota_us` of its own group and of every parent under `root`.
    """
    quotas = [quota for directory in _cgroup_directories(root) if (quota := _quota(directory)) is not None]
    return max(1, min([len(os.sched_getaffinity(0)), *quotas]))


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


def _quota(directory: Path) -> int | None:
    """Return the CPUs that the quota of one group allows, rounded up, or None if it has none."""
    fields = _read(directory / "cpu.max").split()
    if not fields:
        fields = [*_read(directory / "cpu.cfs_quota_us").split(), *_read(directory / "cpu.cfs_period_us").split()]
    try:
        quota, period = (int(field) for field in fields)
    except ValueError:  # "max", missing or unknown
        return None
    return -(-quota // period) if quota > 0 and period > 0 else None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
