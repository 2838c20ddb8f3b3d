"""The description of a machine: static facts and live readings, apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from inference.device.detect import Device, detect
from inference.device.memory import Memory, read_memory
from inference.device.telemetry import Telemetry, read_telemetry


def describe(root: Path | str = "/", reserve_bytes: int | None = None) -> dict[str, Any]:
    """Return the JSON form of the machine whose file system is at *root*."""
    root = Path(root)
    return description(detect(root), read_memory(root, reserve_bytes), read_telemetry(root))


def description(device: Device, memory: Memory, telemetry: Telemetry | None) -> dict[str, Any]:
    """Return the JSON form of readings that are at hand; *telemetry* that does not answer is null."""
    live = {"memory": memory.to_dict(), "telemetry": telemetry.to_dict() if telemetry else None}
    return {"static": device.to_dict(), "live": live}
