"""docs/clients.md: every example runs as it stands, or says that it was not run."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.clients.conftest import ROOT, run_client
from tests.daemon_process import DaemonProcess

pytestmark = [
    pytest.mark.clients,
    pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="make test-clients"),
]
PAGE = (ROOT / "docs" / "clients.md").read_text(encoding="utf-8")
ADDRESS = "127.0.0.1:8080"


@dataclass(frozen=True)
class Example:
    """A fenced block, under its heading."""

    heading: str
    language: str
    code: str
    is_run: bool


def examples() -> list[Example]:
    """Every block of the page; one is not run when the paragraph before it says so."""
    found = []
    for section in re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]:
        heading, _, body = section.partition("\n")
        parts = re.split(r"^```(\w+)\n(.*?)^```\n", body, flags=re.MULTILINE | re.DOTALL)
        for before, language, code in zip(parts[::3], parts[1::3], parts[2::3], strict=False):
            told = before.rstrip().rsplit("\n\n", 1)[-1]
            found.append(Example(heading, language, code, "not run here" not in told))
    return found


def run_here(language: str) -> list[Any]:
    wanted = [one for one in examples() if one.language == language and one.is_run]
    return [pytest.param(one.code, id=f"{one.heading}-{n}") for n, one in enumerate(wanted)]


@pytest.mark.parametrize("code", run_here("python"))
def test_python_examples_print_an_answer(daemon: DaemonProcess, embedding_model: str, code: str) -> None:
    """Each is a program of its own that ends well and has something to say."""
    assert ADDRESS in code
    done = run_client(sys.executable, "-c", code.replace(ADDRESS, f"127.0.0.1:{daemon.port}"))
    assert done.returncode == 0, done.stderr[-4000:]
    assert len(done.stdout.split()) >= 2, done.stdout


@pytest.mark.parametrize("code", run_here("sh"))
def test_shell_examples_end_well(
    daemon: DaemonProcess, files: Path, smollm2_path: Path, tmp_path: Path, code: str
) -> None:
    """Each command ends with 0 and prints its answer, its table or nothing."""
    if code.startswith("curl") and shutil.which("curl") is None:
        pytest.skip("needs curl: sudo apt-get install curl")
    there = {
        ADDRESS: f"127.0.0.1:{daemon.port}",
        "./tokenizer": str(files / "tokenizer"),
        "SmolLM2-135M-Instruct.Q4_1.gguf .": f"{smollm2_path} {tmp_path}",
    }
    for shown, real in there.items():
        code = code.replace(shown, real)
    done = run_client("bash", "-euc", code, environment={"HF_HOME": str(tmp_path / "hub")})
    assert done.returncode == 0, done.stderr[-4000:]
    assert check(code, done.stdout, tmp_path), done.stdout


def check(code: str, printed: str, directory: Path) -> bool:
    """Whether the command did what the page says of it."""
    if code.startswith("curl"):
        return bool(json.loads(printed)["choices"][0]["message"]["content"])
    if code.startswith("lm_eval"):
        return re.search(r"jetllm_facts_choice\s*\|.*\|acc\s*\|", printed) is not None
    return (directory / "tokenizer" / "tokenizer.json").is_file()


def test_scrape_config_is_prometheus_own(tmp_path: Path) -> None:
    """promtool takes the page's scrape config; where there is none, it is at least such a list."""
    [config] = [one.code for one in examples() if one.heading == "Prometheus"]
    assert yaml.safe_load(config)["scrape_configs"][0]["static_configs"] == [{"targets": [ADDRESS]}]
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("needs promtool: sudo apt-get install prometheus")
    file = tmp_path / "prometheus.yml"
    file.write_text(config, encoding="utf-8")
    done = subprocess.run([promtool, "check", "config", str(file)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_is_not_run_says_so() -> None:
    """Two examples need what a test has not: a container of Open WebUI, and LiteLLM's proxy."""
    unrun = [one.heading for one in examples() if not one.is_run]
    assert unrun == ["LiteLLM", "Open WebUI"]
    assert len(examples()) >= 12
