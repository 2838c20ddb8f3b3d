"""Power: what each rail and the whole module draw."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from inference.device.files import entries, exists, read_integer, read_line
from inference.device.hwmon import monitors

_CHIPS = re.compile(r"^ina(?:3221|238)")
# The Thor carrier's INA238 has no label; it measures the input of the whole system.
_UNLABELLED = {"ina238": "VIN"}
# Rails that alone are the input and so contain the others: Thor's carrier, Orin Nano/NX and Xavier NX, Nano.
_INPUTS = ("VIN", "VDD_IN", "POM_5V_IN")
_AGX_ORIN = ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0")
_AGX_ORIN_TOO = "VDDQ_VDD2_1V8AO"


@dataclass(frozen=True)
class Rail:
    """One rail; a negative reading, which idle sensors give, is ``None``."""

    name: str
    power_watts: float | None


@dataclass(frozen=True)
class Power:
    """All rails by name.

    Args:
        total_watts: of the module or the whole system, named by *total_of*; ``None`` where a rail
            that it is made of is missing, or the board's rails are not known.
    """

    rails: tuple[Rail, ...]
    total_watts: float | None
    total_of: tuple[str, ...]


def read_power(root: Path | str = "/") -> Power:
    """Read the INA3221 and INA238 monitors, and their predecessors below iio on L4T 32."""
    root = Path(root)
    found: dict[str, float | None] = {}
    for name, watts in [*_hwmon_rails(root), *_iio_rails(root)]:
        found.setdefault(name, watts)
    parts = _total_of(found)
    watts_of_parts = [found[part] for part in parts]
    known = [watts for watts in watts_of_parts if watts is not None]
    return Power(
        rails=tuple(Rail(name, found[name]) for name in sorted(found)),
        total_watts=round(sum(known), 6) if parts and len(known) == len(parts) else None,
        total_of=parts,
    )


def _total_of(rails: dict[str, float | None]) -> tuple[str, ...]:
    for name in _INPUTS:
        if name in rails:
            return (name,)
    if not all(name in rails for name in _AGX_ORIN):
        return ()
    return (*_AGX_ORIN, *([_AGX_ORIN_TOO] if _AGX_ORIN_TOO in rails else []))


def _hwmon_rails(root: Path) -> list[tuple[str, float | None]]:
    chips = [(name, path) for name, path in monitors(root) if _CHIPS.match(name)]
    # The driver's own directory says the same; it is there where the class is not.
    for driver in ("ina3221", "ina238"):
        for device in entries(root / "sys/bus/i2c/drivers" / driver, r"^\d+-[0-9a-f]+$") or ():
            chips += [(driver, path) for path in entries(device / "hwmon", r"^hwmon\d+$") or ()]
    return [rail for name, path in chips for rail in _rails(name, path)]


def _rails(chip: str, path: Path) -> list[tuple[str, float | None]]:
    if chip in _UNLABELLED:
        return [(read_line(path / "in1_label") or _UNLABELLED[chip], _watts(path, 1))]
    rails = []
    for label in entries(path, r"^in\d+_label$") or ():
        number = int(label.name[2:].partition("_")[0])
        name = read_line(label)
        # Channels 4 to 7 are shunt voltages and their sum; they have no current.
        if name and "NC" not in name and exists(path / f"curr{number}_input"):
            rails.append((name, _watts(path, number)))
    return rails


def _watts(path: Path, number: int) -> float | None:
    microwatts = read_integer(path / f"power{number}_input")
    if microwatts is None:
        millivolts = read_integer(path / f"in{number}_input")
        milliamperes = read_integer(path / f"curr{number}_input")
        if millivolts is None or milliamperes is None:
            return None
        microwatts = millivolts * milliamperes
    return microwatts / 1e6 if microwatts >= 0 else None


def _iio_rails(root: Path) -> list[tuple[str, float | None]]:
    rails = []
    for device in entries(root / "sys/bus/i2c/drivers/ina3221x", r"^\d+-[0-9a-f]+$") or ():
        for channel in entries(device, r"^iio:device\d+$") or ():
            for label in entries(channel, r"^rail_name_\d+$") or ():
                milliwatts = read_integer(channel / f"in_power{label.name.rpartition('_')[2]}_input")
                watts = milliwatts / 1000 if milliwatts is not None and milliwatts >= 0 else None
                rails.append((read_line(label) or "", watts))
    return [(name, watts) for name, watts in rails if name]
