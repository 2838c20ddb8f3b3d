"""The gauges: how the machine is now, from its files and, where it is wanted, from jetson-stats."""

from __future__ import annotations

from typing import Any

from inference.device import JtopSource, Memory, Patience, description, read_telemetry
from inference.device.detect import Device
from inference.errors import SettingsError
from inference.settings import Settings, worker_environment

_PATIENCE_S = 1.0


class Gauges:
    """Reads without ever making anybody wait long; `close` it to end its threads and its process."""

    def __init__(self, settings: Settings, device: Device) -> None:
        if settings.jtop and device.in_container:
            raise SettingsError(
                "jtop: expected false in a container, got true",
                param="jtop",
                hint="its socket gives a container the host: run the daemon on the host, or leave jtop out",
            )
        self._telemetry = Patience(read_telemetry, limit_s=_PATIENCE_S)
        self._jtop = JtopSource(worker_environment()) if settings.jtop else None
        if self._jtop is not None:
            self._jtop.start()

    def picture(self, device: Device, memory: Memory) -> dict[str, Any]:
        """Return the static facts and the live readings; what does not answer in time is null."""
        picture = description(device, memory, self._telemetry.get())
        if self._jtop is not None:
            picture["live"] |= {"jtop": self._jtop.latest(), "jtop_reason": self._jtop.reason}
        return picture

    def close(self) -> None:
        """End what reads."""
        if self._jtop is not None:
            self._jtop.close()
        self._telemetry.close()
