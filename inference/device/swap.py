"""Swap: how much there is and is used, apart by what backs it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from inference.device.files import read_text

_AREA = re.compile(r"^(\S+)\s+(partition|file)\s+([0-9]{1,15})\s+([0-9]{1,15})\s", re.MULTILINE)


@dataclass(frozen=True)
class Swap:
    """Swap areas in bytes; zram is a compressed disk in the same memory and so gives a model nothing."""

    zram_bytes: int | None
    zram_used_bytes: int | None
    file_bytes: int | None
    file_used_bytes: int | None
    other_bytes: int | None
    other_used_bytes: int | None


def read_swap(root: Path | str = "/") -> Swap:
    """Read /proc/swaps; all is unknown where it has not at least its heading."""
    root = Path(root)
    text = read_text(root / "proc/swaps")
    if not text.startswith("Filename"):
        return Swap(None, None, None, None, None, None)
    sums = {kind: [0, 0] for kind in ("zram", "file", "other")}
    for name, kind, size_kib, used_kib in _AREA.findall(text):
        area = sums[_kind(name, kind)]
        area[0] += int(size_kib) * 1024
        area[1] += int(used_kib) * 1024
    return Swap(*sums["zram"], *sums["file"], *sums["other"])


def _kind(name: str, kind: str) -> str:
    if "/zram" in name:
        return "zram"
    return "file" if kind == "file" else "other"
