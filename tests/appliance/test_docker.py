"""The supervisor with the docker command, against an engine that speaks Docker's protocol.

That engine is podman's service: the command is Docker's own, what it asks for is carried out by podman.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from inference.appliance.config import load_config
from inference.appliance.engine import CURRENT, Engine
from inference.appliance.health import supervised_daemon
from inference.appliance.layout import Layout
from tests.appliance.podman import Podman
from tests.conftest import wait_until
from tests.daemon_process import MODEL
from tests.supervised import NotifySocket, Supervised, appliance, free_port

pytestmark = [
    pytest.mark.appliance,
    pytest.mark.skipif(shutil.which("docker") is None, reason="not installed: the docker command"),
]


@pytest.fixture
def docker(engine: Podman, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A service that the docker command talks to."""
    socket = tmp_path / "docker.sock"
    service = subprocess.Popen(
        ["podman", "system", "service", "--time=0", f"unix://{socket}"],
        env={**os.environ, **engine.environ},
        stderr=subprocess.DEVNULL,
    )
    monkeypatch.setenv("DOCKER_HOST", f"unix://{socket}")
    try:
        wait_until(socket.exists, "the service")
        yield
    finally:
        service.terminate()
        service.wait()


@pytest.fixture
def layout(tmp_path: Path, weights: Path) -> Layout:
    """An appliance with the model, that runs docker."""
    layout = appliance(tmp_path / "root", free_port(), engine="docker")
    shutil.copytree(weights, layout.store, dirs_exist_ok=True)
    layout.settings.write_text(f"preload: [{MODEL}]\noffline: true\ncontext_tokens: 1024\n")
    return layout


@pytest.mark.usefixtures("docker")
def test_docker_runs_the_image_as_podman_does(engine: Podman, cpu_image: str, layout: Layout) -> None:
    """Images are known by the same ids, a container starts, serves, drains and leaves nothing."""
    engine.run("tag", cpu_image, CURRENT)
    config = load_config(layout.config)
    asked = Engine(config, layout)
    assert asked.image_id(CURRENT) == f"sha256:{engine.inspect(cpu_image)['Id']}"
    assert asked.labels(CURRENT)["org.opencontainers.image.title"] == "jetllm"
    assert asked.image_id("jetllm:absent") is None
    assert "uid=10001" in asked.run_once(CURRENT, ["id"])
    notify = NotifySocket(f"{layout.root}/notify")
    try:
        with Supervised(layout.root, notify) as supervised:
            wait_until(lambda: notify.has("READY=1"), "readiness", 120)
            daemon = supervised_daemon(config, layout)
            assert daemon.complete(MODEL, "Count to five.", 8)
            assert supervised.stop() == 0
    finally:
        notify.close()
    asked.remove("jetllm")
    assert engine.run("ps", "--all", "--quiet", "--filter", "name=jetllm") == ""
