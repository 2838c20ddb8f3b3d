"""Hardware monitors: found by what they say they are, since their numbers change from boot to boot."""

from __future__ import annotations

from pathlib import Path

from inference.device.files import entries, read_line


def monitors(root: Path) -> list[tuple[str, Path]]:
    """Return name and directory of every hwmon device."""
    found = entries(root / "sys/class/hwmon", r"^hwmon\d+$") or ()
    return [(read_line(path / "name") or "", path) for path in found]
