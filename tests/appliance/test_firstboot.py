"""The first boot of a flashed device, with systemd, podman, our image and a real model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.appliance.flashed import (
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
    status,
)
from tests.appliance.machine import Machine
from tests.appliance.podman import Archive, Podman

pytestmark = pytest.mark.appliance

STEPS = (
    "/run/jetllm/device.json",
    "podman load",
    "podman tag",
    "podman rmi",
    "/firstboot/image",
    "bundle import",
    "/appliance/releases.json",
    "/state/keys.json",
    "/appliance/first-key",
    "/firstboot/key",
    "/firstboot/done",
)
"""What is about to be done when the process is killed: every step, in their order."""


@pytest.fixture(scope="module")
def factory(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Factory:
    """Whoever makes releases."""
    return Factory(tmp_path_factory.mktemp("made"), weights)


@pytest.fixture(scope="module")
def device(
    engine: Podman, systemd_base: str, factory: Factory, cpu_image: str, archive_of: Archive
) -> Iterator[Machine]:
    """A device as it was flashed, with two bundles at hand: one for it, and one for a Jetson."""
    factory.release(FIRST, archive_of(cpu_image))
    foreign = factory.release("0.9.0", archive_of(cpu_image), "--l4t", "36.4")
    with flashed(engine, systemd_base, factory, foreign) as machine:
        yield machine


def test_a_bundle_for_another_machine_starts_nothing(device: Machine) -> None:
    """The unit fails with the sentence, the service is not started, the engine has no image."""
    assert device.try_run("systemctl", "start", "jetllm.service", timeout_s=READY_S).returncode != 0
    assert device.show("jetllm-firstboot.service", "ExecMainStatus") == {"ExecMainStatus": "78"}
    assert "the release is for L4T 36.4; this machine has none" in device.journal("jetllm-firstboot.service")
    assert device.show("jetllm.service", "ActiveState") == {"ActiveState": "inactive"}
    assert status(device)["firstboot"]["step"] == "bundle" and images(device) == []


def test_killed_at_every_step_it_completes_on_the_next_start(device: Machine) -> None:
    """SIGKILL before each step, one start after the other; the last serves, with one key and one image."""
    configure(device, bundle=f"/made/{FIRST}")
    for step in STEPS:
        killed(device, step, "firstboot")
    device.run("systemctl", "restart", "jetllm-firstboot.service", timeout_s=READY_S)
    start(device)
    assert served(device) == FIRST
    assert releases(device) == (FIRST, None, None, [])
    assert images(device) == ["localhost/jetllm:current"]
    keys = json.loads(device.run("cat", "/var/lib/jetllm/state/keys.json"))["keys"]
    assert [each["name"] for each in keys] == ["owner"]
    assert device.run("jetllm", "firstboot", "--key").startswith("jetllm_")
    assert "jetllm_" not in device.journal("jetllm-firstboot.service")


def test_the_daemon_in_the_container_knows_the_board_of_the_host(device: Machine) -> None:
    """device.json of the host is what `jetllm device` shows in the container."""
    written = json.loads(device.run("cat", "/run/jetllm/device.json"))
    shown = json.loads(device.run("jetllm", "device", "--json"))["static"]
    assert {name: shown[name] for name in ("arch", "cpu_model", "memory_total_bytes")} == {
        name: written[name] for name in ("arch", "cpu_model", "memory_total_bytes")
    }
