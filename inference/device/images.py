"""Images: which published container with MLC runs on a machine's L4T, and what our service has in it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from inference.device.detect import Device

CPU_BACKENDS = frozenset({"llamacpp", "transformers"})
"""What our image for the CPU has in it: registry entries without variants need the second."""

# jetson-containers builds its MLC images on its own PyTorch and transformers; xllamacpp comes with us.
_ALL_BACKENDS = frozenset({"mlc"}) | CPU_BACKENDS


@dataclass(frozen=True)
class Image:
    """A published image to build ours from, and the backends that ours has then."""

    tag: str
    backends: frozenset[str]


@dataclass(frozen=True)
class _Line:
    """L4T releases whose user-space driver an image of any of them can use."""

    releases: tuple[str, ...]
    image: Image | None


# As published in November 2026. Images for L4T 35 have Ubuntu 20.04's Python 3.8, in which our service
# (3.10) does not run, and an MLC without the engine that it needs: their machines are served by the CPU.
_LINES = (
    _Line(("36.4", "36.5"), Image("dustynv/mlc:0.20.0-r36.4.0", _ALL_BACKENDS)),
    _Line(("36.2", "36.3"), Image("dustynv/mlc:0.1.2-r36.3.0", _ALL_BACKENDS)),
    _Line(("35",), Image("dustynv/mlc:r35.4.1", frozenset())),
    _Line(("32.7",), None),
)
_UNTESTED_L4T, _UNTESTED_SOC = "39", "tegra234"


def image_for(device: Device, *, untested: bool = False) -> Image | None:
    """Return the newest published MLC image that runs on *device*; ``None`` where there is none.

    Args:
        untested: give an Orin on L4T 39 the newest image too, which nobody is known to have tried.
    """
    if device.arch != "aarch64" or device.l4t is None:
        return None
    if untested and _is_of(device.l4t, _UNTESTED_L4T) and device.soc == _UNTESTED_SOC:
        return _LINES[0].image
    line = _line(device.l4t)
    return line.image if line else None


def backends_for(device: Device) -> frozenset[str]:
    """Return the backends that our service has on *device*, in the image that fits it or without one."""
    image = image_for(device)
    return (image.backends if image else frozenset()) or CPU_BACKENDS


def why_unfit(container: str | None, l4t: str | None) -> str | None:
    """Say why *container* does not run on a machine with *l4t*; ``None`` where it does or nothing is known.

    Args:
        container: an image with its L4T in the tag, as in "dustynv/mlc:0.20.0-r36.4.0".
    """
    built_for = re.search(r":(?:.*-)?r(\d+\.\d+(?:\.\d+)*)", container or "")
    if built_for is None or l4t is None:
        return None
    line = _line(built_for.group(1))
    releases = line.releases if line else (_minor(built_for.group(1)),)
    if any(_is_of(l4t, release) for release in releases):
        return None
    return f"{container} is built for L4T {' and '.join(releases)}; this machine has L4T {l4t}{_advice(l4t)}"


def _advice(l4t: str) -> str:
    if _is_of(l4t, _UNTESTED_L4T):
        return ", on which no image with MLC has been tested"
    line = _line(l4t)
    if line is None or line.image is None:
        return ", for which no image with MLC is published"
    return f", for which there is {line.image.tag}"


def _line(l4t: str) -> _Line | None:
    return next((line for line in _LINES if any(_is_of(l4t, release) for release in line.releases)), None)


def _is_of(l4t: str, release: str) -> bool:
    return f"{l4t}.".startswith(f"{release}.")


def _minor(l4t: str) -> str:
    return ".".join(l4t.split(".")[:2])
