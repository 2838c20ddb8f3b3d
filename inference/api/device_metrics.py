"""The machine's metrics: power, energy, heat, the GPU's load and throttling, read at each scrape."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

_CAUSES = {
    "under_voltage_events": "under_voltage",
    "average_events": "average_current",
    "instantaneous_events": "instantaneous_current",
}


class DeviceMetrics:
    """Collects from one `device` per scrape; what a machine does not tell has no sample.

    Args:
        device: the service's description of the machine.
    """

    def __init__(
        self, device: Callable[[], Mapping[str, Any]], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._device = device
        self._energy = _Energy(clock)

    def describe(self) -> list[Metric]:
        """Return nothing: it is known at the scrape alone."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield every family, with or without samples."""
        seen = (self._device().get("live") or {}).get("telemetry") or {}
        power, thermal = seen.get("power") or {}, seen.get("thermal") or {}
        rails = {rail["name"]: rail["power_watts"] for rail in power.get("rails") or ()}
        yield _gauge("power_watts", "Power that a rail draws", "rail", rails)
        yield self._energy.after(power.get("total_watts"))
        zones = {zone["name"]: zone["temperature_celsius"] for zone in thermal.get("zones") or ()}
        yield _gauge("temperature_celsius", "Temperature of a thermal zone", "zone", zones)
        load_percent = (seen.get("gpu") or {}).get("load_percent")
        load = GaugeMetricFamily("jetllm_gpu_load_ratio", "Share of time in which the GPU was busy")
        if load_percent is not None:
            load.add_metric([], load_percent / 100)
        yield load
        counted = seen.get("over_current") or {}
        events = CounterMetricFamily(
            "jetllm_throttle_events",
            "Times that the chip slowed itself down because of its supply, since it was switched on",
            labels=["cause"],
        )
        for name, cause in _CAUSES.items():
            if counted.get(name) is not None:
                events.add_metric([cause], counted[name])
        yield events


class _Energy:
    """The energy since the start, from the power at each scrape: as exact as scrapes are frequent."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._joules = 0.0
        self._last: tuple[float, float] | None = None

    def after(self, watts: float | None) -> CounterMetricFamily:
        """Add what was used since the last time, at the mean of both powers; no sample without a power."""
        family = CounterMetricFamily(
            "jetllm_energy_joules", "Energy since the daemon's start, summed from the power at each scrape"
        )
        with self._lock:
            if watts is not None:
                now_s = self._clock()
                if self._last is not None:
                    self._joules += (now_s - self._last[0]) * (watts + self._last[1]) / 2
                self._last = now_s, watts
            if self._last is not None:
                family.add_metric([], self._joules)
        return family


def _gauge(name: str, text: str, label: str, values: Mapping[str, float | None]) -> GaugeMetricFamily:
    gauge = GaugeMetricFamily(f"jetllm_{name}", text, labels=[label])
    for key, value in values.items():
        if value is not None:
            gauge.add_metric([key], value)
    return gauge
