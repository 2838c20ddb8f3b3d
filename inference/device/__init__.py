"""What the machine is and how it is."""

from inference.device.description import describe, description
from inference.device.detect import Device, detect
from inference.device.images import CPU_BACKENDS, Image, backends_for, image_for, why_unfit
from inference.device.jtop import JtopSource
from inference.device.memory import Memory, default_reserve_bytes, read_memory
from inference.device.over_current import OverCurrent, over_current_change, read_over_current
from inference.device.patience import Patience
from inference.device.power import Power, read_power
from inference.device.telemetry import Telemetry, read_telemetry

__all__ = [
    "CPU_BACKENDS",
    "Device",
    "Image",
    "JtopSource",
    "Memory",
    "OverCurrent",
    "Patience",
    "Power",
    "Telemetry",
    "backends_for",
    "default_reserve_bytes",
    "describe",
    "description",
    "detect",
    "image_for",
    "over_current_change",
    "read_memory",
    "read_over_current",
    "read_power",
    "read_telemetry",
    "why_unfit",
]
