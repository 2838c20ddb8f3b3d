"""Over-current events: how often the SoC's own guard has slowed it down."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from inference.device.files import read_count
from inference.device.hwmon import monitors


@dataclass(frozen=True)
class OverCurrent:
    """Events since boot, as the kernel counts them; ``None`` where the counter is not there."""

    under_voltage_events: int | None
    average_events: int | None
    instantaneous_events: int | None


@dataclass(frozen=True)
class OverCurrentChange:
    """What came in between two readings; ``None`` where either is unknown or the counter restarted."""

    under_voltage_events: int | None
    average_events: int | None
    instantaneous_events: int | None
    events_per_s: float | None


def read_over_current(root: Path | str = "/") -> OverCurrent:
    """Read the counters of OC1 to OC3."""
    root = Path(root)
    path = next((path for name, path in monitors(root) if name == "soctherm_oc"), None)
    if path is None:
        return OverCurrent(None, None, None)
    return OverCurrent(*(read_count(path / f"oc{number}_event_cnt") for number in (1, 2, 3)))


def over_current_change(before: OverCurrent, after: OverCurrent, elapsed_s: float) -> OverCurrentChange:
    """Return the events between two readings that were *elapsed_s* apart, and their rate."""
    under_voltage = _delta(before.under_voltage_events, after.under_voltage_events)
    average = _delta(before.average_events, after.average_events)
    instantaneous = _delta(before.instantaneous_events, after.instantaneous_events)
    known = [delta for delta in (under_voltage, average, instantaneous) if delta is not None]
    rate = sum(known) / elapsed_s if known and elapsed_s > 0 else None
    return OverCurrentChange(under_voltage, average, instantaneous, rate)


def _delta(before: int | None, after: int | None) -> int | None:
    if before is None or after is None or after < before:
        return None
    return after - before
