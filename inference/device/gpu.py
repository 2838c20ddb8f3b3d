"""The GPU: its load and its clock."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from inference.device.files import entries, read_count

# "17000000.gpu" since L4T 36, the chip's name before it, "gpu-gpc-0" (beside "gpu-nvd-0", video) on Thor.
_NAMES = r"gpu(?!-nvd)|gv11b|gp10b|ga10b|gb10b"
_OTHER_LOADS = ("sys/devices/platform/gpu.0/load", "sys/devices/gpu.0/load")


@dataclass(frozen=True)
class Gpu:
    """The integrated GPU at one moment; all ``None`` where none is seen (also early in boot).

    Args:
        load_percent: share of recent time in which it was busy; unknown on Thor.
        clock_max_hz: the most that the power mode allows.
    """

    name: str | None
    load_percent: float | None
    clock_hz: int | None
    clock_max_hz: int | None


def read_gpu(root: Path | str = "/") -> Gpu:
    """Read the GPU's devfreq directory."""
    root = Path(root)
    found = entries(root / "sys/class/devfreq", _NAMES)
    device = found[0] if found else None
    loads = [root / path for path in _OTHER_LOADS]
    if device is None:
        return Gpu(None, _load(loads), None, None)
    return Gpu(
        name=device.name,
        load_percent=_load([device / "device/load", *loads]),
        clock_hz=read_count(device / "cur_freq") or None,
        clock_max_hz=read_count(device / "max_freq") or None,
    )


def _load(paths: list[Path]) -> float | None:
    values = (read_count(path) for path in paths)
    return next((value / 10 for value in values if value is not None and value <= 1000), None)
