"""Full runs of the harness on real models: `make test-harness`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from inference.inference_engine import InferenceEngine
from phase3 import output, result
from phase3.engine_target import EngineTarget
from phase3.plan import FULL
from phase3.result import Report
from phase3.runner import run

pytestmark = pytest.mark.harness

SMOLLM2, GEMMA = "smollm2-135m-instruct", "gemma-3-270m"
# Everything of the full run, with cells short enough for CI; docs/examples/ has runs of the whole plan.
PLAN = replace(FULL, grid=((16, 64), (256, 64)), concurrency=(1, 2, 4), runs=3)
# What the machine was like, which other work beside the tests decides.
MACHINES = {"environment", "container"}


def full_run(tmp_path: Path, model: str, variant: str | None = None, **settings: Any) -> Report:
    """Run everything, write every report, and return what can be read back."""
    with InferenceEngine(state_dir=tmp_path / "state", context_tokens=1024, **settings) as engine:
        report = run(EngineTarget(engine, model, variant), PLAN)
    written = output.write(report, tmp_path / "out")
    assert result.load(written.folder / "report.json") == report
    return report


def bad(report: Report) -> dict[str, str | None]:
    """The checks that did not pass or skip, but for those that judge the machine."""
    return {
        finding.check: finding.detail
        for finding in report.findings
        if finding.verdict not in ("pass", "skip") and finding.check not in MACHINES
    }


@pytest.mark.parametrize("model", [SMOLLM2, GEMMA])
def test_a_real_model_passes_on_llamacpp(
    model: str, smollm2_path: Path, gemma_path: Path, tmp_path: Path
) -> None:
    """All that is checked holds for models that are known to work."""
    report = full_run(tmp_path, model)
    assert bad(report) == {}
    judged = {finding.check for finding in report.findings if finding.verdict == "pass"}
    assert {
        "load",
        "coherence",
        "concurrency",
        "speed",
        "leak_generations",
        "cycles",
        "leak_cycles",
    } <= judged
    assert len(report.benchmark) == 4 and report.roofline is not None
    assert len(report.series["worker_bytes_over_generations"]) == FULL.generations


def test_the_reference_passes_on_transformers(smollm2_path: Path, tmp_path: Path) -> None:
    """The same weights in native precision are coherent, and keep every promise."""
    pytest.importorskip("transformers")
    assert bad(full_run(tmp_path, SMOLLM2, "transformers")) == {}


def test_a_random_model_is_incoherent_and_nothing_else(tmp_path: Path) -> None:
    """The tiny GPT-2 with random weights says nothing, but it says it as promised."""
    pytest.importorskip("transformers")
    from tests.tiny_gpt2 import make_tiny_gpt2

    weights = make_tiny_gpt2(tmp_path / "gpt2")
    entry = {
        "name": "Tiny GPT-2",
        "parameters": "1M",
        "memory_requirement": 1000,
        "container": None,
        "status": "experimental",
        "use_cases": ["text_generation"],
        "chat": "none",
        "variants": {"v": {"backend": "transformers", "source": {"type": "file", "path": str(weights)}}},
    }
    registry = tmp_path / "models.json"
    registry.write_text(json.dumps({"models": {"tiny-gpt2": entry}}))
    assert set(bad(full_run(tmp_path, "tiny-gpt2", registry=registry))) == {"coherence"}
