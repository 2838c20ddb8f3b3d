"""docs/bundle.md: its commands are run as they stand, and its example is a manifest."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from inference.appliance.bundle import check_bundle
from inference.appliance.manifest import parse_manifest
from tests.documents import ROOT, blocks
from tests.release_parts import make_image

PAGE = "docs/bundle.md"


def put_jetllm(directory: Path) -> Path:
    """A command `jetllm` of this checkout."""
    directory.mkdir()
    command = directory / "jetllm"
    command.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m inference "$@"\n')
    command.chmod(0o755)
    return directory


def test_documented_commands_run(tmp_path: Path) -> None:
    """From the key to the import, without a container engine: of an image's archive that is there."""
    make_image(tmp_path / "image.tar")
    environment = {
        **os.environ,
        "PATH": f"{put_jetllm(tmp_path / 'bin')}:{os.environ['PATH']}",
        "JETLLM_CACHE_DIR": str(tmp_path / "cache"),
    }
    ran = 0
    for block in blocks(PAGE):
        lines = block.text
        if "--image" in lines and "create" in lines:  # an image and no model: those are for the slow test
            lines = re.sub(r"^(jetllm pull|docker).*\n", "", lines, flags=re.MULTILINE)
            lines = lines.replace("--model smollm2-135m-instruct", "")
        elif "test_documented_commands_run" not in [test.rpartition("::")[2] for test in block.tests]:
            continue
        done = subprocess.run(
            ["sh", "-eu", "-c", lines], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{block.text}: {done.stdout}{done.stderr}"
        ran += 1
    assert ran == 5
    assert check_bundle(tmp_path / "jetllm-1.0.0", tmp_path / "release.pub")[0].version == "1.0.0"
    assert (tmp_path / "state/models.json").is_file()


def test_documented_manifest_is_one() -> None:
    """With whole hashes in the place of the shortened ones."""
    (text,) = re.findall(r"```json\n(.*?)```", (ROOT / PAGE).read_text(encoding="utf-8"), re.DOTALL)
    tree = json.loads(text)
    tree["image"]["id"] = f"sha256:{'b' * 64}"
    tree["files"] = [{**each, "sha256": "0" * 64} for each in tree["files"]]
    tree["files"].append({"path": "models.json", "bytes": 1, "sha256": "0" * 64})
    assert parse_manifest(json.dumps(tree).encode()).compute_capability == ("8.7",)
