"""Which published image runs on which machine."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from inference.choice import unfit
from inference.device import CPU_BACKENDS, Device, backends_for, detect, image_for, why_unfit
from inference.registry import load_registry

BOARDS = Path(__file__).parent / "fixtures" / "devices"
ALL = {"llamacpp", "mlc", "transformers"}
NEWEST = "dustynv/mlc:0.20.0-r36.4.0"


def _orin(l4t: str | None) -> Device:
    return dataclasses.replace(detect(BOARDS / "orin-nx-16gb"), l4t=l4t)


@pytest.mark.parametrize(
    ("l4t", "tag"),
    [
        ("36.4.0", NEWEST),
        ("36.4.7", NEWEST),
        ("36.5.0", NEWEST),
        ("36.2.0", "dustynv/mlc:0.1.2-r36.3.0"),
        ("36.3.0", "dustynv/mlc:0.1.2-r36.3.0"),
        ("35.2.1", "dustynv/mlc:r35.4.1"),
        ("35.6.1", "dustynv/mlc:r35.4.1"),
        ("36.40.0", None),
        ("3", None),
        ("32.7.1", None),
        ("38.2.0", None),
        ("39.2.0", None),
        ("41.0.0", None),
        (None, None),
    ],
)
def test_image_follows_l4t(l4t: str | None, tag: str | None) -> None:
    """An image runs on the L4T releases that its own driver libraries were built for; else there is none."""
    image = image_for(_orin(l4t))
    assert (image.tag if image else None) == tag


@pytest.mark.parametrize(
    ("board", "backends"),
    [
        ("orin-nano-8gb-super", ALL),
        ("orin-nano-8gb", ALL),
        ("orin-nx-16gb", ALL),
        ("agx-orin-64gb", ALL),
        ("container-cgroup2", ALL),
        ("agx-orin-32gb", CPU_BACKENDS),
        ("agx-thor-t5000", CPU_BACKENDS),
        ("orin-nano-4gb", CPU_BACKENDS),
        ("xavier-nx", CPU_BACKENDS),
        ("nano-4gb", CPU_BACKENDS),
        ("container-untold", CPU_BACKENDS),
        ("x86-none", CPU_BACKENDS),
    ],
)
def test_backends_of_a_board(board: str, backends: set[str]) -> None:
    """A machine has the backends of the image that fits it; without such an image, those of the CPU."""
    assert backends_for(detect(BOARDS / board)) == backends


def test_untested_image_is_given_only_to_who_insists() -> None:
    """Nobody is known to have run an image for L4T 36 on an Orin with L4T 39; on a Thor it cannot run."""
    thor = dataclasses.replace(detect(BOARDS / "agx-thor-t5000"), l4t="39.2.0")
    image = image_for(_orin("39.2.0"), untested=True)
    assert image is not None and image.tag == NEWEST
    assert image_for(thor, untested=True) is None
    assert image_for(_orin("38.4.0"), untested=True) is None


def test_x86_machine_has_no_image() -> None:
    """The images are for aarch64 only, whatever a stray release file says."""
    assert image_for(dataclasses.replace(_orin("36.4.3"), arch="x86_64")) is None


@pytest.mark.parametrize(
    ("container", "l4t"),
    [
        ("dustynv/mlc:r36.4.0", "36.4.3"),
        ("dustynv/mlc:0.20.0-r36.4.0", "36.5.0"),
        ("dustynv/mlc:0.1.1-r36.2.0", "36.3.0"),
        ("dustynv/mlc:r35.4.1", "35.3.1"),
        ("nano_llm:r38.2.0", "38.2.1"),
        (None, "36.4.3"),
        ("dustynv/mlc:r36.4.0", None),
        ("dustynv/mlc:latest", "36.4.3"),
        ("host:5000/r36.4/mlc", "35.3.1"),
    ],
)
def test_nothing_is_said_of_what_fits_or_is_unknown(container: str | None, l4t: str | None) -> None:
    """A container that fits, or says nothing of L4T, is not refused; nor is any on an unknown L4T."""
    assert why_unfit(container, l4t) is None


@pytest.mark.parametrize(
    ("container", "l4t", "sentence"),
    [
        (
            "dustynv/nano_llm:r36.2.0",
            "36.4.3",
            "dustynv/nano_llm:r36.2.0 is built for L4T 36.2 and 36.3; this machine has L4T 36.4.3,"
            " for which there is dustynv/mlc:0.20.0-r36.4.0",
        ),
        (
            "dustynv/mlc:r36.4.0",
            "38.2.0",
            "dustynv/mlc:r36.4.0 is built for L4T 36.4 and 36.5; this machine has L4T 38.2.0,"
            " for which no image with MLC is published",
        ),
        (
            "dustynv/mlc:r36.4.0",
            "39.2.0",
            "dustynv/mlc:r36.4.0 is built for L4T 36.4 and 36.5; this machine has L4T 39.2.0,"
            " on which no image with MLC has been tested",
        ),
        (
            "dustynv/mlc:r36.4.0",
            "32.7.1",
            "dustynv/mlc:r36.4.0 is built for L4T 36.4 and 36.5; this machine has L4T 32.7.1,"
            " for which no image with MLC is published",
        ),
        (
            "dustynv/mlc:r35.4.1",
            "36.3.0",
            "dustynv/mlc:r35.4.1 is built for L4T 35; this machine has L4T 36.3.0,"
            " for which there is dustynv/mlc:0.1.2-r36.3.0",
        ),
    ],
)
def test_unfit_container_is_told_with_what_would_fit(container: str, l4t: str, sentence: str) -> None:
    """The sentence names what the image is for, what the machine has, and what there is for it."""
    assert why_unfit(container, l4t) == sentence


def test_a_model_that_the_images_mlc_does_not_know_is_unfit() -> None:
    """Qwen3 came to MLC in 2025: the image for L4T 36.3 does not know it, the one for 36.4 does."""
    registry = load_registry(Path(__file__).parent.parent / "models.json")
    anywhere = {name: spec.model_copy(update={"container": None}) for name, spec in registry.models.items()}
    registry = dataclasses.replace(registry, models=anywhere)
    old, new = (unfit(registry, _orin(l4t), container=True) for l4t in ("36.3.0", "36.4.3"))
    assert "Unknown model type: qwen3" in old["qwen3-4b", "mlc-q4f16_1"]
    assert ("qwen3-4b", "mlc-q4f16_1") not in new
    assert ("qwen2.5-0.5b-instruct", "mlc-q4f16_1") not in new
