"""The GPU: may this user open its device files, and does the image fit the machine's L4T."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path

from inference.device.detect import Device, detect
from inference.device.files import exists
from inference.device.images import image_for, why_unfit
from inference.doctor.finding import Finding, Scene, fail, ok, unknown, warn

# Of each row one has to be there: the driver's names before and since L4T 36, and Thor's.
_TEGRA = (("dev/nvmap",), ("dev/nvgpu/igpu0/ctrl", "dev/nvhost-ctrl-gpu", "dev/nvhost-gpu"))
_THOR = (("dev/nvidia0",), ("dev/nvidiactl",))
_THOR_SOC = "tegra264"
_ORIN_SOC = "tegra234"
_ORIN_FIX = "flash a JetPack 6 release, for which there is one (docs/jetson.md), or leave it so"
_CONTAINER_FIX = "start the container with --runtime nvidia (docs/jetson.md)"


def gpu(scene: Scene) -> Iterator[Finding]:
    """Is there a GPU, and may this user open it?"""
    device = detect(scene.root)
    if device.soc is None:
        yield from _discrete(scene)
        return
    if not exists(scene.root / "dev"):
        yield unknown("this tree has no /dev")
        return
    for names in _THOR if device.soc == _THOR_SOC else _TEGRA:
        found = next((scene.root / name for name in names if exists(scene.root / name)), None)
        if found is None:
            yield fail(f"no /{' or /'.join(names)}: the GPU cannot be reached", _missing_fix(device))
        else:
            yield _access(found, scene, device)


def l4t(scene: Scene) -> Iterator[Finding]:
    """Does the image that we run in, or could run in, fit the machine's L4T?"""
    device = detect(scene.root)
    if device.soc is None and device.l4t is None:
        yield ok("no Jetson: L4T has no say")
        return
    if device.l4t is None:
        yield warn(
            "this is a Jetson, and its L4T is not known",
            "on the host /etc/nv_tegra_release tells it; into a container mount /run/jetllm (docs/jetson.md)",
        )
        return
    fitting = image_for(device)
    reason = why_unfit(device.image, device.l4t)
    if reason is not None:
        fix = f"run the image for this machine: {fitting.tag}" if fitting else "run it without a container"
        yield fail(reason, fix)
    elif fitting is None or not fitting.backends:
        detail = f"L4T {device.l4t}: no image with MLC serves here; llama.cpp serves on the CPU"
        yield warn(detail, _ORIN_FIX) if device.soc == _ORIN_SOC else ok(detail)
    elif device.in_container and device.image is None:
        yield unknown(f"L4T {device.l4t}; the image does not say which it is", f"it should be {fitting.tag}")
    else:
        yield ok(f"L4T {device.l4t} and {device.image or fitting.tag} fit")


def _discrete(scene: Scene) -> Iterator[Finding]:
    nodes = [scene.root / name for name in ("dev/nvidia0", "dev/nvidiactl") if exists(scene.root / "dev")]
    found = [node for node in nodes if exists(node)]
    if not found:
        yield ok("no NVIDIA GPU is seen: the engines compute on the CPU")
    for node in found:
        yield _access(node, scene, detect(scene.root))


def _access(node: Path, scene: Scene, device: Device) -> Finding:
    shown = f"/{node.relative_to(scene.root)}"
    status = node.stat()
    if _may_use(status.st_mode, status.st_uid, status.st_gid, scene):
        return ok(f"{shown} can be opened")
    owner = f"{stat.filemode(status.st_mode)}, owner {status.st_uid}, group {status.st_gid}"
    if device.in_container:
        fix = f"start the container with --group-add {status.st_gid}"
    else:
        fix = "sudo usermod -aG video,render $USER, then log in again"
    return fail(f"{shown} cannot be opened for reading and writing ({owner})", fix)


def _may_use(mode: int, owner: int, group: int, scene: Scene) -> bool:
    """Whether reading and writing is granted; root may always."""
    if scene.uid == 0:
        return True
    shift = 6 if owner == scene.uid else 3 if group in scene.groups else 0
    return (mode >> shift) & 0o6 == 0o6


def _missing_fix(device: Device) -> str:
    if device.in_container:
        return _CONTAINER_FIX
    return (
        "is the driver loaded? sudo dmesg | grep -i -e nvgpu -e nvidia; sudo apt-get install nvidia-l4t-core"
    )
