"""Fixtures of the appliance's tests: an engine, base images, our images, weights.

All are made once per session, in a storage of the tests' own that is removed at its end. Each skips with
the reason where the machine cannot, or fails with it where the variable APPLIANCE_REQUIRED is set.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from tests.appliance import images
from tests.appliance.base import SYSTEMD
from tests.appliance.podman import Archive, EngineFailed, Podman, open_engine, why_no_engine

REQUIRED_VARIABLE = "APPLIANCE_REQUIRED"


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Podman]:
    """podman with a storage of its own; any podman that the tests or the product start uses the same."""
    if (reason := why_no_engine()) is not None:
        _cannot(reason)
    podman = open_engine(tmp_path_factory.mktemp("podman"))
    with pytest.MonkeyPatch.context() as patch:
        for name, text in podman.environ.items():
            patch.setenv(name, text)
        try:
            _prove(podman)
            yield podman
        finally:
            podman.close()


@pytest.fixture(scope="session")
def base_image(engine: Podman) -> str:
    """A small Debian with Python under the name of python:3.11-slim."""
    return images.import_python(engine)


@pytest.fixture(scope="session")
def jetson_base(engine: Podman) -> str:
    """A small Debian with a stand-in for MLC, under the name of the image that our Dockerfile starts from."""
    return images.build_jetson_base(engine)


@pytest.fixture(scope="session")
def systemd_base(engine: Podman) -> str:
    """A Debian with systemd, dbus, podman, runc, Python and its cryptography; `machine.started` starts it."""
    return images.import_system(engine, SYSTEMD, images.SYSTEMD_IMAGE, 'CMD ["/lib/systemd/systemd"]')


@pytest.fixture(scope="session")
def cpu_image(engine: Podman) -> str:
    """Our image for the CPU, without PyTorch."""
    if (reason := images.why_no_wheels()) is not None:
        _cannot(reason)
    return images.load_or_build_cpu_image(engine)


@pytest.fixture(scope="session")
def second_image(engine: Podman, cpu_image: str) -> str:
    """As good as `cpu_image`, with another version: what an update brings."""
    return images.derive_second(engine)


@pytest.fixture(scope="session")
def broken_image(engine: Podman, cpu_image: str) -> str:
    """Starts and listens; /readyz never says 200."""
    return images.derive_broken(engine)


@pytest.fixture(scope="session")
def wrong_image(engine: Podman, cpu_image: str) -> str:
    """Becomes ready, and answers with other tokens than `cpu_image`."""
    return images.derive_wrong(engine)


@pytest.fixture(scope="session")
def archive_of(engine: Podman, tmp_path_factory: pytest.TempPathFactory) -> Archive:
    """Return the archive of an image, as a bundle has it; written once per image."""
    directory = tmp_path_factory.mktemp("archives")

    def archive(image: str) -> Path:
        path = directory / f"{image.rpartition('/')[2].replace(':', '-')}.tar"
        return path if path.exists() else images.save(engine, image, path)

    return archive


@pytest.fixture(scope="session")
def image_archive(cpu_image: str, archive_of: Archive) -> Path:
    """`cpu_image` as a file."""
    return archive_of(cpu_image)


@pytest.fixture(scope="session")
def weights(smollm2_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store (`cache_dir`) with SmolLM2 and nothing else, for everybody to read."""
    store = tmp_path_factory.mktemp("store")
    blobs = store / "blobs"
    blobs.mkdir()
    shutil.copy2(smollm2_path, blobs / smollm2_path.name)
    (blobs / smollm2_path.name).chmod(0o644)
    for directory in (store, blobs):
        directory.chmod(0o755)
    return store


def _prove(podman: Podman) -> None:
    """Run a container, or say why none runs here."""
    try:
        base = images.import_python(podman)
        podman.run("run", "--rm", base, "true")
    except (EngineFailed, RuntimeError) as error:
        _cannot(f"containers do not run here: {error}")


def _cannot(reason: str) -> NoReturn:
    if os.environ.get(REQUIRED_VARIABLE):
        pytest.fail(reason)
    pytest.skip(reason)
