"""Memory: how many bytes may be given to models now."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inference.device.files import read_count, read_text

_LEAST_RESERVE_BYTES = 512 * 2**20
_RESERVE_PERCENT = 6
_UNLIMITED_BYTES = 2**60  # cgroup v1 writes 2**63 less a page where there is no limit


@dataclass(frozen=True)
class Memory:
    """The machine's memory at one moment, in bytes; ``None`` is unknown.

    Args:
        available_bytes: the kernel's MemAvailable. On a Jetson the GPU uses the same memory.
        cgroup_headroom_bytes: what the tightest enclosing cgroup still grants; ``None`` also when
            there is no limit.
        reserve_bytes: kept back from models.
        budget_bytes: what may be given to models, at least 0. Swap is not counted: zram lies in the
            same memory.
    """

    total_bytes: int | None
    available_bytes: int | None
    cgroup_headroom_bytes: int | None
    reserve_bytes: int
    budget_bytes: int | None

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return dataclasses.asdict(self)


def read_memory(root: Path | str = "/", reserve_bytes: int | None = None) -> Memory:
    """Read the budget: ``min(MemAvailable, cgroup headroom) - reserve``.

    In a container /proc/meminfo shows the host's values, hence the cgroup.

    Args:
        reserve_bytes: kept back from models; by default max(512 MiB, 6 % of MemTotal).
    """
    root = Path(root)
    meminfo = read_meminfo(root)
    total_bytes = meminfo.get("MemTotal")
    if reserve_bytes is None:
        reserve_bytes = default_reserve_bytes(total_bytes or 0)
    available_bytes, headroom_bytes = meminfo.get("MemAvailable"), _cgroup_headroom_bytes(root)
    budget_bytes = None
    if available_bytes is not None:
        least = available_bytes if headroom_bytes is None else min(available_bytes, headroom_bytes)
        budget_bytes = max(0, least - reserve_bytes)
    return Memory(total_bytes, available_bytes, headroom_bytes, reserve_bytes, budget_bytes)


def default_reserve_bytes(total_bytes: int) -> int:
    """Return what a machine with that much memory keeps back from models."""
    return max(_LEAST_RESERVE_BYTES, total_bytes * _RESERVE_PERCENT // 100)


def read_meminfo(root: Path | str = "/") -> dict[str, int]:
    """Return the lines of /proc/meminfo that carry a unit, in bytes; empty when it cannot be read."""
    root = Path(root)
    lines = re.findall(r"^(\S+):\s+([0-9]{1,15}) kB$", read_text(root / "proc/meminfo"), re.MULTILINE)
    return {name: int(kib) * 1024 for name, kib in lines}


def _cgroup_headroom_bytes(root: Path) -> int | None:
    """Return the least headroom of this process's cgroup and the cgroups around it."""
    found: list[int] = []
    for line in read_text(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers == "":
            found += _headrooms(root / "sys/fs/cgroup", path, _headroom_v2)
        elif "memory" in controllers.split(","):
            found += _headrooms(root / "sys/fs/cgroup/memory", path, _headroom_v1)
    return min(found, default=None)


def _headrooms(mount: Path, path: str, headroom: Callable[[Path], int | None]) -> list[int]:
    # A container without a cgroup namespace names the host's path, which is not below its mount:
    # the directories that do not exist have no limit, and the mount itself is its own cgroup.
    parts = [part for part in path.split("/") if part not in ("", "..")]
    levels = [mount.joinpath(*parts[:depth]) for depth in range(len(parts) + 1)]
    return [value for value in map(headroom, levels) if value is not None]


def _headroom_v2(group: Path) -> int | None:
    limit = read_count(group / "memory.max")  # "max" is no integer: no limit
    return _headroom(group, limit, read_count(group / "memory.current"), "")


def _headroom_v1(group: Path) -> int | None:
    limit = read_count(group / "memory.limit_in_bytes")
    return _headroom(group, limit, read_count(group / "memory.usage_in_bytes"), "total_")


def _headroom(group: Path, limit: int | None, usage: int | None, prefix: str) -> int | None:
    """Return limit - (usage - page cache): the kernel drops the file's pages before it kills."""
    if limit is None or usage is None or limit >= _UNLIMITED_BYTES:
        return None
    stat = dict(re.findall(r"^(\w+) ([0-9]{1,19})$", read_text(group / "memory.stat"), re.MULTILINE))
    cache = sum(int(stat.get(f"{prefix}{kind}", 0)) for kind in ("inactive_file", "active_file"))
    return max(0, limit - max(0, usage - cache))
