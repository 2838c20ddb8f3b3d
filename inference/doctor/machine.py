"""The machine: memory, swap, power, heat, the clock on the wall, the container around us."""

from __future__ import annotations

import re
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import inference
from inference.device.detect import detect
from inference.device.files import below, read_text
from inference.device.gpu import read_gpu
from inference.device.memory import read_memory
from inference.device.over_current import read_over_current
from inference.device.swap import read_swap
from inference.device.thermal import read_thermal
from inference.doctor.finding import Finding, Scene, fail, ok, unknown, warn

_LEAST_BUDGET_BYTES = 128 * 2**20  # the smallest models of the registry take about so much
_SMALL_BUDGET_BYTES = 512 * 2**20
_FULL_PERCENT = 50
_HOT_CELSIUS = 90
_DAY_S = 86_400
_LEAST_FILES = 256
_MODE = re.compile(r"<\s*POWER_MODEL\s+ID=([0-9]{1,4})\s+NAME=(\S+)\s*>")
_FREE_FIX = "see who has it: ps aux --sort=-rss | head; free it, or lower the setting memory_reserve_bytes"


def memory(scene: Scene) -> Iterator[Finding]:
    """Is there memory for a model, after what is kept back?"""
    found = read_memory(scene.root, scene.settings.memory_reserve_bytes)
    if found.budget_bytes is None or found.total_bytes is None:
        yield unknown("/proc/meminfo does not tell how much is available")
        return
    detail = (
        f"{_gib(found.budget_bytes)} for models: {_gib(found.available_bytes or 0)} of "
        f"{_gib(found.total_bytes)} available, {_gib(found.reserve_bytes)} kept back"
    )
    if found.reserve_bytes >= found.total_bytes:
        yield fail(f"{detail}: more is kept back than there is", "lower the setting memory_reserve_bytes")
    elif found.budget_bytes < _LEAST_BUDGET_BYTES:
        yield fail(f"{detail}: no model fits", _FREE_FIX)
    elif found.budget_bytes < _SMALL_BUDGET_BYTES:
        yield warn(f"{detail}: only the smallest models fit", _FREE_FIX)
    else:
        yield ok(detail)


def swap(scene: Scene) -> Iterator[Finding]:
    """Is memory already so short that pages are put aside?"""
    found = read_swap(scene.root)
    if found.zram_bytes is None:
        yield unknown("/proc/swaps cannot be read")
        return
    areas = (
        ("zram, which lies in the same memory", found.zram_bytes, found.zram_used_bytes),
        ("swap on a disk", (found.file_bytes or 0) + (found.other_bytes or 0),
         (found.file_used_bytes or 0) + (found.other_used_bytes or 0)),
    )  # fmt: skip
    shown = [(name, size, used or 0) for name, size, used in areas if size]
    for name, size, used in shown:
        detail = f"{name}: {_gib(used)} of {_gib(size)} used"
        if 100 * used > _FULL_PERCENT * size:
            yield warn(f"{detail}: memory is short", "stop other programs, or load smaller models")
        else:
            yield ok(detail)
    if not shown:
        yield ok("no swap; none is counted on")


class _Mode(NamedTuple):
    key: int
    name: str

    @property
    def watts(self) -> float:
        """By its name; MAXN knows no limit."""
        found = re.match(r"([0-9]{1,4})W", self.name)
        return float("inf") if self.name.startswith("MAXN") else float(found[1]) if found else 0.0


def power(scene: Scene) -> Iterator[Finding]:
    """Does the power mode slow the machine down, and does its supply hold?"""
    device = detect(scene.root)
    if device.soc is None:
        yield ok("no Jetson: there are no power modes")
        return
    modes = [_Mode(int(key), name) for key, name in _MODE.findall(_nvpmodel(scene.root))]
    if device.power_mode is None or not modes:
        yield unknown(f"power mode {device.power_mode or 'unknown'}", "ask on the host: sudo nvpmodel -q")
    else:
        now, most = _Mode(0, device.power_mode), max(modes, key=lambda mode: mode.watts)
        if now.watts < most.watts:
            yield warn(
                f"power mode {now.name}; {most.name} is the fastest",
                f"where its heat and power are at hand: sudo nvpmodel -m {most.key}",
            )
        else:
            yield ok(f"power mode {now.name}, the fastest")
    yield from _supply(scene.root)


def _supply(root: Path) -> Iterator[Finding]:
    found = read_over_current(root)
    if found.under_voltage_events:
        yield warn(
            f"{found.under_voltage_events} times since boot the supply's voltage fell too low",
            "use the kit's own power supply, or a lower power mode",
        )
    over = (found.average_events or 0) + (found.instantaneous_events or 0)
    if over:
        yield warn(
            f"{over} times since boot the module drew too much current and was slowed down",
            "choose a lower power mode: sudo nvpmodel -q --verbose lists them",
        )


def heat(scene: Scene) -> Iterator[Finding]:
    """Is it too hot, or slowed down because of it?"""
    found = read_thermal(scene.root, read_gpu(scene.root))
    if found.throttled:
        yield warn(
            f"slowed down now by {', '.join(found.throttled_by)}",
            "cool it better: is the fan turning, is the heat sink clean? sudo jetson_clocks --fan",
        )
    elif found.hottest_celsius is None:
        yield unknown("no temperature can be read")
    elif found.hottest_celsius >= _HOT_CELSIUS:
        yield warn(f"{found.hottest_celsius:.0f} °C", "cool it better, or it will be slowed down")
    else:
        yield ok(f"{found.hottest_celsius:.0f} °C, nothing slows it down")


def clock(scene: Scene) -> Iterator[Finding]:
    """Is the time after that of the installation? Without it no certificate is accepted."""
    installed_s = Path(inference.__file__).stat().st_mtime
    if scene.now_s < installed_s - _DAY_S:
        days = (installed_s - scene.now_s) / _DAY_S
        yield fail(
            f"the clock is {days:.0f} days before the installation: certificates are refused",
            "sudo timedatectl set-ntp true; without a network: sudo date -s 'YYYY-MM-DD hh:mm'",
        )
    else:
        yield ok("the clock is after the installation")


def container(scene: Scene) -> Iterator[Finding]:
    """Are we in a container, and what does it grant?"""
    device, found = detect(scene.root), read_memory(scene.root)
    where = (
        f"in a container{f', {device.image}' if device.image else ''}"
        if device.in_container
        else "no container"
    )
    headroom = found.cgroup_headroom_bytes
    if headroom is None:
        yield ok(f"{where}; no limit of memory")
    elif headroom < _SMALL_BUDGET_BYTES:
        yield warn(
            f"{where}; its limit leaves {_gib(headroom)} of memory",
            "raise it: docker run --memory, MemoryMax= of the unit",
        )
    else:
        yield ok(f"{where}; its limit leaves {_gib(headroom)} of memory")
    if device.in_container and device.soc is None and device.arch == "aarch64" and device.l4t is None:
        yield warn(
            "the board cannot be seen from in here",
            "have the host write /run/jetllm/device.json and mount that directory (docs/jetson.md)",
        )


def limits(scene: Scene) -> Iterator[Finding]:
    """May a process open files enough?"""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if most != resource.RLIM_INFINITY and most < _LEAST_FILES:
        yield warn(
            f"{most} open files at most: few clients can connect", "raise it: ulimit -n 4096, LimitNOFILE="
        )
    else:
        yield ok(f"{'any number of' if most == resource.RLIM_INFINITY else most} open files")


def _nvpmodel(root: Path) -> str:
    return read_text(below(root, "etc/nvpmodel.conf"))


def _gib(count: float) -> str:
    return f"{count / 2**30:.2f} GiB"
