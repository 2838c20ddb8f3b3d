"""The child that reads jetson-stats; the only place where the package is imported.

Importing jtop forces multiprocessing to fork and talks pickle with the jtop service: nothing that the
daemon's own process should do. Started by `inference.device.jtop`.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import math
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any

_PR_SET_PDEATHSIG = 1
_MOST_REASON = 200
_OFFLINE_CELSIUS = -256


def main(arguments: list[str]) -> None:
    """Write a line of JSON for every reading; one with the key "reason" when there are no more."""
    wire_fd, lifeline_fd, parent_pid = map(int, arguments[:3])
    _end_with_parent(lifeline_fd, parent_pid)

    def write(message: Mapping[str, Any]) -> None:
        line = json.dumps(message, allow_nan=False) + "\n"
        os.write(wire_fd, line.encode())

    write({"reason": _watch(float(arguments[3]), write)})


def _end_with_parent(lifeline_fd: int, parent_pid: int) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_pid:  # it died before prctl took effect
        os._exit(1)
    threading.Thread(target=_watch_lifeline, args=(lifeline_fd,), name="lifeline", daemon=True).start()


def _watch_lifeline(lifeline_fd: int) -> None:
    while os.read(lifeline_fd, 1):
        pass
    os._exit(1)


def _watch(interval_s: float, write: Callable[[Mapping[str, Any]], None]) -> str:
    """Read until there is nothing more to read; return why."""
    try:
        from jtop import jtop
    except ImportError as error:
        absent = isinstance(error, ModuleNotFoundError) and error.name == "jtop"
        return "jetson-stats is not installed" if absent else f"jetson-stats does not import: {error}"
    try:
        with jtop(interval=interval_s) as jetson:
            while jetson.ok():
                write(reading(jetson))
    except Exception as error:  # it raises what its service sends, JtopException among them
        words = " ".join(str(getattr(error, "message", error)).split())
        return f"jetson-stats: {words[:_MOST_REASON] or type(error).__name__}"
    return "jetson-stats: the service has stopped answering"


def reading(jetson: Any) -> dict[str, Any]:
    """Return what *jetson* says, in our units; what it does not say, or says badly, is ``None``.

    `jetson.stats` has fractions where `jetson.memory` has KiB, and an average of power is no mean:
    neither is used.
    """
    memory, power = _part(jetson, "memory"), _part(jetson, "power")
    ram, swap = _dict(memory, "RAM"), _dict(memory, "SWAP")
    rails, gpus, zones = _dict(power, "rail"), _part(jetson, "gpu"), _part(jetson, "temperature")
    return {
        "ram_total_bytes": _bytes(ram, "tot"),
        "ram_used_bytes": _bytes(ram, "used"),
        "ram_free_bytes": _bytes(ram, "free"),
        "ram_shared_bytes": _bytes(ram, "shared"),
        "swap_total_bytes": _bytes(swap, "tot"),
        "swap_used_bytes": _bytes(swap, "used"),
        "largest_free_blocks": _count(ram, "lfb"),
        "power_watts": _watts(_dict(power, "tot")),
        "rail_watts": {name: _watts(_dict(rails, name)) for name in sorted(rails)},
        "temperature_celsius": {name: _celsius(_dict(zones, name)) for name in sorted(zones)},
        "gpu_load_percent": {name: _load(_dict(gpus, name)) for name in sorted(gpus)},
        "power_mode": _mode(jetson),
    }


def _part(jetson: Any, name: str) -> dict[str, Any]:
    with contextlib.suppress(KeyError, AttributeError, TypeError):
        return _named(dict(getattr(jetson, name)))
    return {}


def _dict(values: dict[str, Any], key: str) -> dict[str, Any]:
    value = values.get(key)
    return _named(value) if isinstance(value, dict) else {}


def _named(values: dict[Any, Any]) -> dict[str, Any]:
    return {str(key): value for key, value in values.items()}


def _number(values: dict[str, Any], key: str) -> float | None:
    value = values.get(key)
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        return None
    return float(value)


def _count(values: dict[str, Any], key: str) -> int | None:
    value = _number(values, key)
    return int(value) if value is not None and value >= 0 else None


def _bytes(values: dict[str, Any], key: str) -> int | None:
    kibibytes = _count(values, key)
    return None if kibibytes is None else kibibytes * 1024


def _watts(values: dict[str, Any]) -> float | None:
    milliwatts = _count(values, "power")
    return None if milliwatts is None else milliwatts / 1000


def _celsius(values: dict[str, Any]) -> float | None:
    celsius = _number(values, "temp")
    return celsius if celsius is not None and celsius > _OFFLINE_CELSIUS else None


def _load(values: dict[str, Any]) -> float | None:
    percent = _number(_dict(values, "status"), "load")
    return percent if percent is not None and 0 <= percent <= 100 else None


def _mode(jetson: Any) -> str | None:
    name = getattr(getattr(jetson, "nvpmodel", None), "name", None)
    return name if isinstance(name, str) and name else None


if __name__ == "__main__":
    main(sys.argv[1:])
