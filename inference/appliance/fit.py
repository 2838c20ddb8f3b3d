"""The fit of an image and a machine, told from the image's labels before anything is started."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from inference.device.detect import Device
from inference.device.images import image_for

ARCH_LABEL = "org.jetllm.arch"
L4T_LABEL = "org.jetllm.l4t"
COMPUTE_CAPABILITY_LABEL = "org.jetllm.compute-capability"

_ARCHES = {"amd64": "x86_64", "arm64": "aarch64"}


def why_unfit(labels: Mapping[str, str], device: Device) -> str | None:
    """Say in a sentence why an image does not run on *device*; ``None`` where it does.

    Args:
        labels: of the image. Each of the three is a list parted by spaces or commas; one that is empty or not
            there takes any machine. What the machine does not tell is not held against it, except
            L4T: an image for some L4T runs nowhere else.
    """
    arches = [_ARCHES.get(arch, arch) for arch in _parted(labels.get(ARCH_LABEL, ""))]
    if arches and device.arch is not None and device.arch not in arches:
        return f"the image is built for {_listed(arches)}; this machine is {device.arch}"
    releases = _parted(labels.get(L4T_LABEL, ""))
    if releases and not any(_is_of(device.l4t, release) for release in releases):
        there = f"L4T {device.l4t}" if device.l4t else "no L4T"
        return f"the image is built for L4T {_listed(releases)}; this machine has {there}{_advice(device)}"
    capabilities = _parted(labels.get(COMPUTE_CAPABILITY_LABEL, ""))
    if capabilities and device.compute_capability not in (None, *capabilities):
        return (
            f"the image is compiled for GPUs of compute capability {_listed(capabilities)};"
            f" this machine's has {device.compute_capability}"
        )
    return None


def _advice(device: Device) -> str:
    if device.l4t is None:
        return ""
    image = image_for(dataclasses.replace(device, arch=device.arch or "aarch64"))
    if image is None:
        return ", for which no image with MLC is published"
    return f", for which there is {image.tag}"


def _is_of(l4t: str | None, release: str) -> bool:
    return f"{l4t}.".startswith(f"{release}.")


def _parted(text: str) -> list[str]:
    return text.replace(",", " ").split()


def _listed(names: Sequence[str]) -> str:
    return " and ".join(names)
