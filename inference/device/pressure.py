"""Memory pressure: stalls, the GPU's share, and how large a piece is still free in one."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from inference.device.files import read_text
from inference.device.memory import read_meminfo

_BLOCKS = re.compile(r"^Node +[0-9]+, +zone +\S+ +((?:[0-9]{1,12}\s*)+)$", re.MULTILINE)
_MOST_ORDERS = 20


@dataclass(frozen=True)
class Pressure:
    """Signs of memory running short; ``None`` is unknown.

    Args:
        some_avg10_percent: of the last 10 s, the time in which at least one task waited for memory
            (/proc/pressure/memory; "full": all of them; 60: of the last 60 s). L4T's kernels may be
            built without it.
        nvmap_used_bytes: the GPU's allocations, which no process's resident memory shows; not on Thor.
        largest_free_block_bytes: the largest piece of memory that is free in one. A GPU allocation
            can fail for want of such pieces while much memory is free.
        largest_free_blocks: how many pieces of that size there are.
    """

    some_avg10_percent: float | None
    some_avg60_percent: float | None
    full_avg10_percent: float | None
    full_avg60_percent: float | None
    nvmap_used_bytes: int | None
    largest_free_block_bytes: int | None
    largest_free_blocks: int | None


def read_pressure(root: Path | str = "/") -> Pressure:
    """Read /proc/pressure/memory, /proc/meminfo and /proc/buddyinfo."""
    root = Path(root)
    stalls = read_text(root / "proc/pressure/memory")
    block_bytes, blocks = _largest_free(read_text(root / "proc/buddyinfo"))
    return Pressure(
        some_avg10_percent=_average(stalls, "some", 10),
        some_avg60_percent=_average(stalls, "some", 60),
        full_avg10_percent=_average(stalls, "full", 10),
        full_avg60_percent=_average(stalls, "full", 60),
        nvmap_used_bytes=read_meminfo(root).get("NvMapMemUsed"),
        largest_free_block_bytes=block_bytes,
        largest_free_blocks=blocks,
    )


def _average(stalls: str, who: str, seconds: int) -> float | None:
    found = re.search(rf"^{who} .*\bavg{seconds}=([0-9]{{1,3}}(?:\.[0-9]+)?)\b", stalls, re.MULTILINE)
    return float(found.group(1)) if found and float(found.group(1)) <= 100 else None


def _largest_free(buddyinfo: str) -> tuple[int | None, int | None]:
    """Return size and number of the largest free blocks; column n counts those of 2**n pages."""
    totals = [0] * _MOST_ORDERS
    for counts in _BLOCKS.findall(buddyinfo):
        for order, count in enumerate(counts.split()[:_MOST_ORDERS]):
            totals[order] += int(count)
    largest = max((order for order, count in enumerate(totals) if count), default=None)
    if largest is None:
        return None, None
    return os.sysconf("SC_PAGE_SIZE") << largest, totals[largest]
