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
from phase3.plan import FULL, QUICK, Plan
from phase3.result import Report
from phase3.runner import run

pytestmark = pytest.mark.harness

ROOT = Path(__file__).resolve().parent.parent
SMOLLM2, GEMMA = "smollm2-135m-instruct", "gemma-3-270m"
# Everything of the full run, with cells short enough for CI; docs/examples/ has runs of the whole plan.
PLAN = replace(FULL, grid=((16, 64), (256, 64)), concurrency=(1, 2, 4), runs=3)
# For what is slower, or the second of its kind: as few readings as a slope is judged by, and some more.
SHORTER = replace(QUICK, runs=3, generations=40, cycles=14)
# What the machine was like, which other work beside the tests decides.
MACHINES = {"environment", "container"}


def full_run(
    tmp_path: Path, model: str, variant: str | None = None, plan: Plan = SHORTER, **settings: Any
) -> Report:
    """Run everything, write every report, and return what can be read back."""
    with InferenceEngine(state_dir=tmp_path / "state", context_tokens=1024, **settings) as engine:
        report = run(EngineTarget(engine, model, variant), plan)
    written = output.write(report, tmp_path / "out")
    assert result.load(written.folder / "report.json") == report
    return report


def registered(tmp_path: Path, model: str, entry: dict[str, Any]) -> Path:
    """Write a registry with one model and return its path."""
    path = tmp_path / "models.json"
    path.write_text(json.dumps({"models": {model: entry}}))
    return path


def bad(report: Report) -> dict[str, str | None]:
    """The checks that did not pass or skip, but for those that judge the machine."""
    return {
        finding.check: finding.detail
        for finding in report.findings
        if finding.verdict not in ("pass", "skip") and finding.check not in MACHINES
    }


@pytest.mark.parametrize(("model", "plan"), [(SMOLLM2, PLAN), (GEMMA, SHORTER)], ids=(SMOLLM2, GEMMA))
def test_a_real_model_passes_on_llamacpp(
    model: str, plan: Plan, smollm2_path: Path, gemma_path: Path, tmp_path: Path
) -> None:
    """All that is checked holds for models that are known to work."""
    report = full_run(tmp_path, model, plan=plan)
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
    (coherence,) = (finding for finding in report.findings if finding.check == "coherence")
    assert coherence.value is not None and abs(coherence.value - 1) < 0.02, coherence
    assert len(report.benchmark) == len(plan.grid) + len(plan.concurrency) - 1
    assert report.roofline is not None
    assert len(report.series["worker_bytes_over_generations"]) == plan.generations


def test_the_reference_passes_on_transformers(smollm2_path: Path, tmp_path: Path) -> None:
    """The weights of the GGUF file in float32 are coherent, and keep every promise."""
    pytest.importorskip("transformers")
    entry = json.loads((ROOT / "models.json").read_text())["models"][SMOLLM2]
    packaged = {**entry["variants"]["llamacpp-q4_1"], "backend": "transformers"}
    packaged["memory_requirement"] = entry["variants"]["transformers"]["memory_requirement"]
    entry |= {"variants": {"packaged": packaged}}
    registry = registered(tmp_path, SMOLLM2, entry)
    # Each load makes float32 of the file's 4 bits, for twelve seconds: cycles are left to docs/examples/.
    assert bad(full_run(tmp_path, SMOLLM2, plan=replace(SHORTER, cycles=0), registry=registry)) == {}


@pytest.fixture(scope="module")
def random_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny GPT-2 with random weights; saving it leaves a thread of tqdm's, which is not the test's."""
    pytest.importorskip("transformers")
    from tests.tiny_gpt2 import make_tiny_gpt2

    return make_tiny_gpt2(tmp_path_factory.mktemp("gpt2"))


def test_a_random_model_is_incoherent_and_nothing_else(random_weights: Path, tmp_path: Path) -> None:
    """The tiny GPT-2 with random weights says nothing, but it says it as promised."""
    entry = {
        "name": "Tiny GPT-2",
        "parameters": "1M",
        "memory_requirement": 1000,
        "container": None,
        "status": "experimental",
        "use_cases": ["text_generation"],
        "chat": "none",
        "variants": {
            "v": {"backend": "transformers", "source": {"type": "file", "path": str(random_weights)}}
        },
    }
    registry = registered(tmp_path, "tiny-gpt2", entry)
    assert set(bad(full_run(tmp_path, "tiny-gpt2", registry=registry))) == {"coherence"}
