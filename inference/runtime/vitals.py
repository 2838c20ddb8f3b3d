"""Vital signs: what the kernel says of one process, its memory and its work."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")


@dataclass(frozen=True)
class Vitals:
    """A process at one moment. GPU memory is in none of the figures.

    Args:
        mapped_bytes: resident pages of files, which the kernel calls available although the process
            needs them; part of *resident_bytes*.
        peak_bytes: the most that was ever resident.
    """

    resident_bytes: int
    mapped_bytes: int
    peak_bytes: int
    cpu_s: float


def read_vitals(pid: int) -> Vitals | None:
    """Read the signs of *pid*; ``None`` when it has none: it has ended."""
    try:
        status = (_PROC / str(pid) / "status").read_text()
        stat = (_PROC / str(pid) / "stat").read_text()
    except OSError:
        return None
    sizes = {name: int(kib) * 1024 for name, kib in re.findall(r"^(\w+):\s+(\d+) kB$", status, re.MULTILINE)}
    resident = sizes.get("VmRSS")
    if resident is None:
        return None  # a zombie has a status without memory
    # The name, in parentheses, may hold anything; user and system time are the 14th and 15th field.
    user, system = stat.rpartition(")")[2].split()[11:13]
    # Some containers' kernels know neither the peak nor the kinds of pages.
    peak, mapped = sizes.get("VmHWM", 0), sizes.get("RssFile", 0)
    return Vitals(resident, mapped, max(peak, resident), (int(user) + int(system)) / os.sysconf("SC_CLK_TCK"))


def uses_gpu(pid: int) -> bool:
    """Whether *pid* has an NVIDIA device open, so that its resident memory is not all that it holds."""
    try:
        links = [str(item.readlink()) for item in (_PROC / str(pid) / "fd").iterdir()]
    except OSError:
        return False
    return any(link.startswith("/dev/nv") and not link.startswith("/dev/nvme") for link in links)


def oom_kills() -> int:
    """Return how many processes the kernel's OOM killer has ended on this machine since it started."""
    try:
        text = (_PROC / "vmstat").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in text.splitlines() if line.startswith("oom_kill ")), 0)
