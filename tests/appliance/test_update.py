"""The update of a device that serves, with systemd, podman, our images and a real model."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.appliance.flashed import (
    COMMAND_S,
    FIRST,
    READY_S,
    Factory,
    configure,
    flashed,
    images,
    killed,
    releases,
    served,
    start,
)
from tests.appliance.machine import Machine
from tests.appliance.podman import Archive, Podman

pytestmark = pytest.mark.appliance

SECOND, BROKEN, WRONG, TAMPERED = "0.2.0", "0.3.0", "0.4.0", "tampered"
BROKEN_READY_S = 45.0


@pytest.fixture(scope="module")
def factory(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Factory:
    """Whoever makes releases."""
    return Factory(tmp_path_factory.mktemp("made"), weights)


@pytest.fixture(scope="module")
def device(
    engine: Podman,
    systemd_base: str,
    factory: Factory,
    cpu_image: str,
    second_image: str,
    broken_image: str,
    wrong_image: str,
    archive_of: Archive,
) -> Iterator[Machine]:
    """A device that serves the first release, with four others at hand."""
    bundle = factory.release(FIRST, archive_of(cpu_image))
    for version, image in ((SECOND, second_image), (BROKEN, broken_image), (WRONG, wrong_image)):
        factory.release(version, archive_of(image))
    tamper(factory.directory / SECOND, factory.directory / TAMPERED)
    with flashed(engine, systemd_base, factory, bundle) as machine:
        start(machine)
        yield machine


def tamper(source: Path, target: Path) -> None:
    """Make the same bundle with one byte of its registry changed; what is the same is not copied."""
    for path in sorted(source.rglob("*")):
        copy = target / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        if path.name == "models.json":
            data = bytearray(path.read_bytes())
            data[len(data) // 2] ^= 1
            copy.write_bytes(data)
        elif path.is_file():
            os.link(path, copy)


def refused(device: Machine, version: str) -> str:
    """Update to *version*, which must fail; return what was said."""
    done = device.try_run("jetllm", "update", f"/made/{version}", timeout_s=COMMAND_S)
    assert done.returncode == 1, done.stderr
    return done.stderr


def test_a_tampered_bundle_is_refused(device: Machine) -> None:
    """One byte: nothing is loaded, nothing is stopped."""
    assert served(device) == FIRST
    began = device.show("jetllm.service", "ActiveEnterTimestampMonotonic")
    assert "models.json: expected" in refused(device, TAMPERED)
    assert images(device) == ["localhost/jetllm:current"]
    assert device.show("jetllm.service", "ActiveEnterTimestampMonotonic") == began


def test_a_release_that_is_never_ready_is_gone_back_from(device: Machine) -> None:
    """The first one serves again; the other is bad, and its image is gone."""
    configure(device, bundle=f"/made/{FIRST}", ready_timeout_s=BROKEN_READY_S)
    said = refused(device, BROKEN)
    configure(device, bundle=f"/made/{FIRST}")
    assert f"{BROKEN} is not taken: it was not ready within" in said or "its service failed" in said
    assert served(device) == FIRST
    assert releases(device) == (FIRST, None, None, [BROKEN])
    assert images(device) == ["localhost/jetllm:current"]


def test_a_release_with_other_tokens_is_gone_back_from(device: Machine) -> None:
    """It is ready and answers, but not as its bundle promises."""
    said = refused(device, WRONG)
    assert f"{WRONG} is not taken: smollm2-135m-instruct answers " in said and "its bundle promises" in said
    assert served(device) == FIRST
    assert releases(device) == (FIRST, None, None, [BROKEN, WRONG])
    assert "is marked bad" in refused(device, WRONG)


def test_an_update_killed_in_its_trial_is_undone_at_the_next_start(device: Machine) -> None:
    """The new release runs, nobody has judged it: the first one serves after the next start."""
    killed(device, "is-active", "update", f"/made/{SECOND}")
    assert releases(device)[2] == SECOND
    device.run("systemctl", "restart", "jetllm-firstboot.service", timeout_s=READY_S)
    start(device)
    assert served(device) == FIRST
    assert releases(device) == (FIRST, None, None, [BROKEN, WRONG])
    assert images(device) == ["localhost/jetllm:current"]


def test_a_good_release_is_promoted(device: Machine) -> None:
    """It serves, the first one is kept as previous, and there are two images."""
    device.run("jetllm", "update", f"/made/{SECOND}", timeout_s=COMMAND_S)
    assert served(device) == SECOND
    assert releases(device) == (SECOND, FIRST, None, [BROKEN, WRONG])
    assert images(device) == ["localhost/jetllm:current", "localhost/jetllm:previous"]


def test_rollback_takes_no_bundle(device: Machine) -> None:
    """The first release serves again, from the image that was kept."""
    device.run("jetllm", "rollback", timeout_s=COMMAND_S)
    assert served(device) == FIRST
    assert releases(device) == (FIRST, None, None, [BROKEN, WRONG, SECOND])
