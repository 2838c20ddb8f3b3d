"""docs/bundle.md with a real image: its commands, as they stand, on podman in the place of Docker."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from inference.appliance.bundle import check_bundle
from inference.device.detect import detect
from tests.appliance.podman import Podman
from tests.documents import ROOT, blocks
from tests.test_appliance_bundle_docs import put_jetllm

pytestmark = pytest.mark.appliance

PAGE = "docs/bundle.md"
IMAGE = "jetllm:current"
COMMAND_S = 600.0


def test_documented_commands_run_as_they_stand(
    engine: Podman, cpu_image: str, weights: Path, tmp_path: Path
) -> None:
    """Keys, image, models, signature, check, import: each block once, one after the other."""
    engine.run("tag", cpu_image, IMAGE)
    commands = put_jetllm(tmp_path / "bin")
    (commands / "docker").write_text('#!/bin/sh\nexec podman "$@"\n')
    (commands / "docker").chmod(0o755)
    (tmp_path / "containers").symlink_to(ROOT / "containers")
    environment = {
        **os.environ,
        "PATH": f"{commands}:{os.environ['PATH']}",
        "JETLLM_CACHE_DIR": str(weights),
        "JETLLM_STATE_DIR": str(tmp_path / "state"),
    }
    manifests = []
    for block in blocks(PAGE):
        if not any(test.startswith("tests/appliance/") for test in block.tests):
            continue
        if "make.sh" in block.text:  # the same release once more: the first one makes place
            (tmp_path / "jetllm-1.0.0.tar").rename(tmp_path / "first.tar")
        done = subprocess.run(
            ["sh", "-eu", "-c", block.text],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=COMMAND_S,
        )
        assert done.returncode == 0, f"{block.text}: {done.stdout}{done.stderr}"
    for name in ("first.tar", "jetllm-1.0.0.tar"):
        manifests.append(check_bundle(tmp_path / name, tmp_path / "release.pub")[0])
    first, second = manifests
    assert first.image.id == second.image.id
    assert first.image.id.removeprefix("sha256:") == engine.run(
        "image", "inspect", "--format", "{{.Id}}", IMAGE
    )
    assert first.arch == detect().arch and first.golden[0].tokens == second.golden[0].tokens
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".tmp-")]
