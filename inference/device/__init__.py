"""What the machine is and how it is."""

from inference.device.detect import Device, detect
from inference.device.memory import Memory, read_memory

__all__ = ["Device", "Memory", "detect", "read_memory"]
