"""The device: which board, system and processor this is, read from files below a root directory."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inference.device.files import below, exists, read_text
from inference.device.memory import read_meminfo

DEVICE_FILE = "run/jetllm/device.json"
"""Written on the host and mounted into the container, where the device tree cannot be seen."""

IMAGE_FILE = "etc/jetllm/image"
"""In a container image: its own name, in one line. Nothing else in a container tells it."""

_MAX_IMAGE_CHARACTERS = 500
_GB = 10**9
_GIB = 2**30


@dataclass(frozen=True)
class Device:
    """What does not change while the machine runs; ``None`` is unknown.

    Args:
        board: our name of the module, such as "orin-nano-8gb".
        model: the board's own words, for display only.
        bandwidth_bytes_per_s: of the memory, in the current power mode where the mode changes it.
        image: the container image that this process runs in, as it names itself.
    """

    board: str | None
    model: str | None
    soc: str | None
    compute_capability: str | None
    l4t: str | None
    jetpack: str | None
    arch: str | None
    cpu_model: str | None
    cpu_cores: int | None
    memory_total_bytes: int | None
    bandwidth_bytes_per_s: float | None
    power_mode: str | None
    in_container: bool
    image: str | None

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form, which `DEVICE_FILE` has too."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class _Board:
    """Memory bandwidth of a board: *by_mode* where the power mode clamps the memory clock."""

    bandwidth_bytes_per_s: float | None
    by_mode: tuple[tuple[str, float], ...] = ()

    def bandwidth(self, mode: str | None) -> float | None:
        """Return the bandwidth in *mode*; a mode without a published figure gets the slowest one."""
        return dict(self.by_mode).get(mode or "", self.bandwidth_bytes_per_s)


# Module specifications and nvpmodel files, as gathered in November 2026. The 15W mode of the Orin
# Nano runs its memory at 2133 MHz, 25W and MAXN_SUPER at 3199 MHz. The figures of the Nano, the
# Xaviers, the AGX Orin and the Orin Nano 4GB's super modes are from general knowledge.
_BOARDS = {
    "nano-4gb": _Board(25.6 * _GB),
    "nano-2gb": _Board(25.6 * _GB),
    "xavier-nx-8gb": _Board(59.7 * _GB),
    "xavier-nx-16gb": _Board(59.7 * _GB),
    "agx-xavier": _Board(136.5 * _GB),
    "orin-nano-4gb": _Board(34 * _GB, (("25W", 51 * _GB), ("MAXN_SUPER", 51 * _GB))),
    "orin-nano-8gb": _Board(68 * _GB, (("25W", 102 * _GB), ("MAXN_SUPER", 102 * _GB))),
    "orin-nx-8gb": _Board(102.4 * _GB),
    "orin-nx-16gb": _Board(102.4 * _GB),
    "agx-orin-32gb": _Board(204.8 * _GB),
    "agx-orin-64gb": _Board(204.8 * _GB),
    "agx-orin-industrial": _Board(204.8 * _GB),
    "agx-thor-t5000": _Board(273 * _GB),
    "agx-thor-t4000": _Board(None),
}

# A part that was sold with several memory sizes lists them, largest first, with the least MemTotal.
_SIZES_NANO = (("nano-4gb", 3), ("nano-2gb", 1))
_SIZES_XAVIER_NX = (("xavier-nx-16gb", 14), ("xavier-nx-8gb", 6))
_SIZES_AGX_ORIN = (("agx-orin-64gb", 56), ("agx-orin-32gb", 28))
_PARTS: dict[str, str | tuple[tuple[str, int], ...]] = {
    "p3448-0000": _SIZES_NANO,
    "p3448-0002": _SIZES_NANO,
    "p3448-0003": _SIZES_NANO,
    "p3668-0000": _SIZES_XAVIER_NX,
    "p3668-0001": _SIZES_XAVIER_NX,
    "p3668-0003": _SIZES_XAVIER_NX,
    **{f"p2888-000{n}": "agx-xavier" for n in range(1, 9)},
    "p3767-0000": "orin-nx-16gb",
    "p3767-0001": "orin-nx-8gb",
    "p3767-0003": "orin-nano-8gb",
    "p3767-0004": "orin-nano-4gb",
    "p3767-0005": "orin-nano-8gb",
    "p3701-0000": _SIZES_AGX_ORIN,
    "p3701-0001": _SIZES_AGX_ORIN,
    "p3701-0004": "agx-orin-32gb",
    "p3701-0005": "agx-orin-64gb",
    "p3701-0008": "agx-orin-industrial",
    "p3834-0000": "agx-thor-t4000",
    "p3834-0008": "agx-thor-t5000",
}
# For modules that are not in the table: only sizes that one board of the SoC alone has.
_SIZES_BY_SOC = {
    "tegra234": (*_SIZES_AGX_ORIN, ("orin-nx-16gb", 14)),
    "tegra264": (("agx-thor-t5000", 96), ("agx-thor-t4000", 32)),
}
_COMPUTE_CAPABILITY = {"tegra210": "5.3", "tegra194": "7.2", "tegra234": "8.7", "tegra264": "11.0"}
_JETPACK = {
    "36.2": "6.0DP",
    "36.3": "6.0",
    "36.4.0": "6.1",
    "36.4.3": "6.2",
    "36.4.4": "6.2.1",
    "36.4.7": "6.2.1",
    "36.5.0": "6.2.2",
    "36.5.2": "6.2.3",
    "38.2": "7.0",
    "38.4": "7.1",
    "39.2.0": "7.2",
    "39.2.1": "7.2.1",
    "32.7": "4.6",
    "35": "5",
}
_ARM_CORES = {
    ("0x41", "0xd07"): "Cortex-A57",
    ("0x41", "0xd42"): "Cortex-A78AE",
    ("0x41", "0xd83"): "Neoverse-V3AE",
    ("0x4e", "0x004"): "Carmel",
}
_CONTAINER_CGROUP = re.compile(r"/(?:docker|kubepods|libpod|lxc|containerd)\b")


def detect(root: Path | str = "/") -> Device:
    """Describe the machine whose file system is at *root*; a missing or garbled file is survived."""
    root = Path(root)
    here = root == Path("/")  # of another machine the interpreter knows nothing
    memory_total_bytes = read_meminfo(root).get("MemTotal")
    compatible = _device_tree(root, "compatible")
    soc = _first(r"(tegra\d{3}x?)", compatible)
    board = _board(compatible, soc, memory_total_bytes)
    l4t = _l4t(root)
    mode = _power_mode(root)
    cpu = _cpu(root)
    device = Device(
        board=board,
        model=_device_tree(root, "model").strip("\0\n ") or None,
        soc=soc,
        compute_capability=_COMPUTE_CAPABILITY.get(soc or ""),
        l4t=l4t,
        jetpack=_jetpack(l4t),
        arch=_arch(cpu) or (platform.machine() if here else None),
        cpu_model=_cpu_model(cpu),
        cpu_cores=sum(key == "processor" for key, _ in cpu) or (os.cpu_count() if here else None),
        memory_total_bytes=memory_total_bytes,
        bandwidth_bytes_per_s=_BOARDS[board].bandwidth(mode) if board else None,
        power_mode=mode,
        in_container=_in_container(root),
        image=_image(root),
    )
    return _with_device_file(device, root)


def known_boards() -> list[str]:
    """Return our names of all boards."""
    return sorted(_BOARDS)


def compute_capability(board: str) -> str | None:
    """Return the compute capability of a board's GPU."""
    families = {"nano": "tegra210", "xavier": "tegra194", "orin": "tegra234", "thor": "tegra264"}
    soc = next((soc for family, soc in reversed(families.items()) if family in board.split("-")), None)
    return _COMPUTE_CAPABILITY.get(soc or "")


def _read(root: Path, path: str) -> str:
    return read_text(below(root, path))


def _device_tree(root: Path, name: str) -> str:
    # The first is a link to the second, which a copy of the tree may lack.
    bases = ("proc/device-tree", "sys/firmware/devicetree/base")
    return next((text for base in bases if (text := _read(root, f"{base}/{name}"))), "")


def _first(pattern: str, text: str) -> str | None:
    match = re.search(pattern, text)
    return match.group(1) if match else None


def _board(compatible: str, soc: str | None, memory_total_bytes: int | None) -> str | None:
    # Exact strings would miss "-super" and custom carriers, whose own name comes first.
    parts = [part for part in re.findall(r"p\d{4}-\d{4}", compatible) if part in _PARTS]
    named = [_board_of(part, memory_total_bytes) for part in parts]
    # L4T 35 names the modules of several sizes in one tree; memory tells which of them this is.
    fitting = [board for board in named if board and _has_size_of(board, memory_total_bytes)]
    if named:
        return next(iter(fitting), named[0])
    return _by_size(_SIZES_BY_SOC.get(soc or "", ()), memory_total_bytes)


def _board_of(part: str, memory_total_bytes: int | None) -> str | None:
    known = _PARTS[part]
    return known if isinstance(known, str) else _by_size(known, memory_total_bytes)


def _has_size_of(board: str, memory_total_bytes: int | None) -> bool:
    size = re.search(r"(\d+)gb$", board)
    if size is None or memory_total_bytes is None:
        return True
    # An 8 GB module shows 7620 MiB, or 6284 with its largest carve-outs.
    return 0.7 <= memory_total_bytes / (int(size.group(1)) * _GIB) <= 1


def _by_size(sizes: tuple[tuple[str, int], ...], memory_total_bytes: int | None) -> str | None:
    if memory_total_bytes is None:
        return None
    return next((board for board, least_gib in sizes if memory_total_bytes >= least_gib * _GIB), None)


def _l4t(root: Path) -> str | None:
    match = re.search(
        r"^# R(\d+) \(release\), REVISION: (\d+(?:\.\d+)*)", _read(root, "etc/nv_tegra_release")
    )
    return f"{match.group(1)}.{match.group(2)}" if match else None


def _jetpack(l4t: str | None) -> str | None:
    fits = [k for k in _JETPACK if l4t is not None and f"{l4t}.".startswith(f"{k}.")]
    return _JETPACK[max(fits, key=len)] if fits else None


def _power_mode(root: Path) -> str | None:
    # By name: the ids differ from board to board (MAXN_SUPER is 2 on a Nano and 0 on an NX).
    current = _first(r"pmode:([0-9]{1,4})", _read(root, "var/lib/nvpmodel/status"))
    names = re.findall(
        r"<\s*POWER_MODEL\s+ID=([0-9]{1,4})\s+NAME=(\S+)\s*>", _read(root, "etc/nvpmodel.conf")
    )
    return {int(key): name for key, name in names}.get(int(current)) if current else None


def _cpu(root: Path) -> list[tuple[str, str]]:
    lines = (line.partition(":") for line in _read(root, "proc/cpuinfo").splitlines())
    return [(key.strip(), value.strip()) for key, colon, value in lines if colon]


def _arch(cpu: list[tuple[str, str]]) -> str | None:
    keys = {key for key, _ in cpu}
    if "CPU implementer" in keys:
        return "aarch64"
    return "x86_64" if "vendor_id" in keys else None


def _cpu_model(cpu: list[tuple[str, str]]) -> str | None:
    values = dict(reversed(cpu))
    core = (values.get("CPU implementer", ""), values.get("CPU part", ""))
    name = values.get("model name", "")
    # Arm kernels write "ARMv8 Processor rev 1 (v8l)" there, which names no model.
    return _ARM_CORES.get(core) or (name if name and "ARMv8" not in name else None)


def _in_container(root: Path) -> bool:
    marks = (".dockerenv", "run/.containerenv", "run/systemd/container")
    return any(exists(root / mark) for mark in marks) or bool(
        _CONTAINER_CGROUP.search(_read(root, "proc/1/cgroup"))
    )


def _image(root: Path) -> str | None:
    return _read(root, IMAGE_FILE).strip().partition("\n")[0][:_MAX_IMAGE_CHARACTERS] or None


def _with_device_file(device: Device, root: Path) -> Device:
    """Prefer what the host wrote, field by field; a null or ill-typed value is not a statement."""
    try:
        data = json.loads(_read(root, DEVICE_FILE) or "null")
    except ValueError:
        return device
    if not isinstance(data, dict):
        return device
    stated = {name: data[name] for name in _FIELD_TYPES if _states(data.get(name), _FIELD_TYPES[name])}
    return dataclasses.replace(device, **stated)


# in_container and image are not among them: they are about the reader, not about the host that wrote it.
_FIELD_TYPES: dict[str, type] = {
    **dict.fromkeys(("board", "model", "soc", "compute_capability", "l4t", "jetpack"), str),
    **dict.fromkeys(("arch", "cpu_model", "power_mode"), str),
    **dict.fromkeys(("cpu_cores", "memory_total_bytes"), int),
    "bandwidth_bytes_per_s": float,
}


def _states(value: Any, kind: type) -> bool:
    if kind is str:
        return isinstance(value, str) and value != ""
    number = isinstance(value, (int, float) if kind is float else int) and not isinstance(value, bool)
    return number and 0 < value < 10**18
