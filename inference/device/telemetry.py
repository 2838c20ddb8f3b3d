"""Telemetry: how the machine is at one moment."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inference.device.clocks import Clocks, read_clocks
from inference.device.fan import Fan, read_fans
from inference.device.gpu import Gpu, read_gpu
from inference.device.load import Load, read_load
from inference.device.over_current import OverCurrent, read_over_current
from inference.device.power import Power, read_power
from inference.device.pressure import Pressure, read_pressure
from inference.device.storage import Disk, read_storage
from inference.device.swap import Swap, read_swap
from inference.device.thermal import Thermal, read_thermal


@dataclass(frozen=True)
class Telemetry:
    """Every reading of one moment; ``None`` is unknown, and so is a list that is ``None``."""

    swap: Swap
    pressure: Pressure
    thermal: Thermal
    gpu: Gpu
    clocks: Clocks
    power: Power
    over_current: OverCurrent
    fans: tuple[Fan, ...]
    storage: tuple[Disk, ...] | None
    load: Load

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {key: _plain(value) for key, value in dataclasses.asdict(self).items()}


def read_telemetry(root: Path | str = "/") -> Telemetry:
    """Read the machine whose file system is at *root*; nothing missing or garbled raises."""
    root = Path(root)
    gpu = read_gpu(root)
    return Telemetry(
        swap=read_swap(root),
        pressure=read_pressure(root),
        thermal=read_thermal(root, gpu),
        gpu=gpu,
        clocks=read_clocks(root),
        power=read_power(root),
        over_current=read_over_current(root),
        fans=read_fans(root),
        storage=read_storage(root),
        load=read_load(root),
    )


def _plain(value: Any) -> Any:
    """Lists for tuples, so that the form is the same before and after JSON."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, tuple | list) else value
