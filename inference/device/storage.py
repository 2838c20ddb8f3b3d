"""Storage: the disks of the machine."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from inference.device.files import entries, read_count, read_line

_SECTOR_BYTES = 512  # /sys/block/*/size counts these, whatever the disk's own sectors are
_DISKS = r"^(?:nvme\d+n\d+|mmcblk\d+|sd[a-z]+|vd[a-z]+|xvd[a-z]+)$"  # no partitions, no zram, no boot areas


@dataclass(frozen=True)
class Disk:
    """One disk.

    Args:
        kind: "nvme", "mmc" (eMMC or SD card), or "disk" (USB, SATA, virtual).
    """

    name: str
    kind: str
    model: str | None
    size_bytes: int | None


def read_storage(root: Path | str = "/") -> tuple[Disk, ...] | None:
    """Return the disks by name; ``None`` where they cannot be listed."""
    root = Path(root)
    found = entries(root / "sys/block", _DISKS)
    return None if found is None else tuple(map(_disk, found))


def _disk(path: Path) -> Disk:
    kind = re.match(r"nvme|mmc", path.name)
    sectors = read_count(path / "size")
    return Disk(
        name=path.name,
        kind=kind.group() if kind else "disk",
        model=read_line(path / "device/model") or read_line(path / "device/name"),
        size_bytes=sectors * _SECTOR_BYTES if sectors else None,  # 0: a reader without a card
    )
