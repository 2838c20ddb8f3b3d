"""Heat: temperatures, and what slows the machine down because of them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from inference.device.files import entries, read_count, read_integer, read_line
from inference.device.gpu import Gpu

_THERMAL = "sys/class/thermal"
_OFFLINE_CELSIUS = -256
_HOTTEST_CELSIUS = 200  # above that it is no temperature of a running chip
_FULL_LOAD_PERCENT = 95
# A fan that turns, and Intel's TCC offset, which is a setting, slow nothing down.
_NO_BRAKE = re.compile(r"fan|^tcc", re.IGNORECASE)


@dataclass(frozen=True)
class Zone:
    """One temperature; ``None`` when its part is off, as the cv zones often are."""

    name: str
    temperature_celsius: float | None


@dataclass(frozen=True)
class CoolingDevice:
    """One means of cooling; 0 is idle, *max_state* its most."""

    name: str
    state: int | None
    max_state: int | None


@dataclass(frozen=True)
class Thermal:
    """All zones and cooling devices, in the kernel's order; ``None`` where there is no such directory.

    Args:
        throttled_by: names of what slows the machine down now; empty when nothing does.
    """

    zones: tuple[Zone, ...] | None
    cooling_devices: tuple[CoolingDevice, ...] | None
    hottest_celsius: float | None
    throttled: bool | None
    throttled_by: tuple[str, ...]


def read_thermal(root: Path | str = "/", gpu: Gpu | None = None) -> Thermal:
    """Read the thermal zones and cooling devices; *gpu* adds its own sign of throttling."""
    root = Path(root)
    zones = entries(root / _THERMAL, r"^thermal_zone\d+$")
    devices = entries(root / _THERMAL, r"^cooling_device\d+$")
    read_zones = None if zones is None else tuple(map(_zone, zones))
    read_devices = None if devices is None else tuple(map(_device, devices))
    temperatures = [zone.temperature_celsius for zone in read_zones or ()]
    brakes = _brakes(read_devices or (), gpu)
    known = any(device.state is not None for device in read_devices or ()) or _slowed(gpu) is not None
    return Thermal(
        zones=read_zones,
        cooling_devices=read_devices,
        hottest_celsius=max((value for value in temperatures if value is not None), default=None),
        throttled=bool(brakes) if known else None,
        throttled_by=brakes,
    )


def _zone(path: Path) -> Zone:
    millis = read_integer(path / "temp")
    celsius = None if millis is None else millis / 1000
    sound = celsius is not None and _OFFLINE_CELSIUS < celsius < _HOTTEST_CELSIUS
    return Zone(read_line(path / "type") or path.name, celsius if sound else None)


def _device(path: Path) -> CoolingDevice:
    name = read_line(path / "type") or path.name
    return CoolingDevice(name, read_count(path / "cur_state"), read_count(path / "max_state"))


def _brakes(devices: tuple[CoolingDevice, ...], gpu: Gpu | None) -> tuple[str, ...]:
    names = [device.name for device in devices if device.state and not _NO_BRAKE.search(device.name)]
    if _slowed(gpu):
        names.append("gpu clock")
    return tuple(dict.fromkeys(names))


def _slowed(gpu: Gpu | None) -> bool | None:
    """Whether the GPU is full of work and yet below its highest clock."""
    if gpu is None or gpu.load_percent is None or gpu.clock_hz is None or gpu.clock_max_hz is None:
        return None
    return gpu.load_percent >= _FULL_LOAD_PERCENT and gpu.clock_hz < gpu.clock_max_hz
