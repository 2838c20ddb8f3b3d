"""Clocks: those of the memory and of the processor cores."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from inference.device.files import entries, read_count

# Where the memory controller's rate and its most are: Orin and Xavier (debugfs, root only), Thor, Nano.
_MEMORY = (
    ("sys/kernel/debug/bpmp/debug/clk/emc/rate", "sys/kernel/debug/bpmp/debug/clk/emc/max_rate"),
    ("sys/class/devfreq/bwmgr/cur_freq", "sys/class/devfreq/bwmgr/max_freq"),
    ("sys/kernel/debug/clk/emc/clk_rate", "sys/kernel/debug/tegra_bwmgr/emc_max_rate"),
)
_MEMORY_CAP = "sys/kernel/nvpmodel_emc_cap/emc_iso_cap"  # of the power mode; 0: none


@dataclass(frozen=True)
class CpuClock:
    """The clock of the cores that change it together, named by the first of them."""

    first_cpu: int
    clock_hz: int | None
    clock_max_hz: int | None


@dataclass(frozen=True)
class Clocks:
    """Clocks at one moment; *memory_max_hz* is the most that the power mode allows."""

    memory_hz: int | None
    memory_max_hz: int | None
    cpu: tuple[CpuClock, ...] | None


def read_clocks(root: Path | str = "/") -> Clocks:
    """Read the memory's clock and the processor's."""
    root = Path(root)
    policies = entries(root / "sys/devices/system/cpu/cpufreq", r"^policy[0-9]{1,6}$")
    return Clocks(
        memory_hz=_first(root, [rate for rate, _ in _MEMORY]),
        memory_max_hz=_memory_max_hz(root),
        cpu=None if policies is None else tuple(map(_cpu, policies)),
    )


def _first(root: Path, paths: list[str]) -> int | None:
    return next((value for path in paths if (value := read_count(root / path))), None)


def _memory_max_hz(root: Path) -> int | None:
    limits = [_first(root, [most for _, most in _MEMORY]), _first(root, [_MEMORY_CAP])]
    return min((limit for limit in limits if limit is not None), default=None)


def _cpu(policy: Path) -> CpuClock:
    clock, most = (_hertz(policy / f"scaling_{kind}_freq") for kind in ("cur", "max"))
    return CpuClock(int(policy.name.removeprefix("policy")), clock, most)


def _hertz(path: Path) -> int | None:
    kilohertz = read_count(path)
    return kilohertz * 1000 if kilohertz else None
