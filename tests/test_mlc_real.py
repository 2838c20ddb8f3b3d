"""The real mlc_llm, where it imports: tiny checkpoints are built, loaded and heard; the CPU is enough.

A build takes minutes, nearly all of it the compiler's; each model is built once for all tests of a run.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from inference.artifacts.build import Build
from inference.artifacts.build.coherence import incoherence
from inference.artifacts.build.records import read_build
from inference.artifacts.lint import NEWEST_IMAGE, lint
from inference.backends import LoadOptions
from inference.generation import FinishReason, GenerateRequest, Message
from inference.runtime.worker import Worker, WorkerSpec
from inference.settings import worker_environment
from tests.conftest import wait_until
from tests.mlc_checkpoints import CONTEXT_TOKENS, break_checkpoint, make_gpt2, make_llama

ROOT = Path(__file__).resolve().parent.parent
QUANTIZATION = "q4f16_1"
MODELS: dict[str, Callable[[Path], Path]] = {
    "tiny-gpt2": lambda directory: make_gpt2(directory, prefixed=True, tokenizer="vocab"),
    "tiny-smollm2": lambda directory: break_checkpoint(make_llama(directory), "rope_parameters"),
}
BUILD_S, LOAD_S, STEP_S = 1800.0, 300.0, 300.0


def _why_not() -> str | None:
    """Say why the real one cannot be run here; the stand-in of the tests is none."""
    for name in ("mlc_llm", "tvm"):
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            return f"{name} is not installed: run this in a dustynv/mlc container"
        if "fake_mlc" in spec.origin:
            return "the mlc_llm that is found is the stand-in"
    return None


pytestmark = [pytest.mark.mlc, pytest.mark.skipif(_why_not() is not None, reason=str(_why_not()))]


def _mlc_llm(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mlc_llm", *map(str, arguments)],
        env=worker_environment(),
        capture_output=True,
        text=True,
        timeout=STEP_S,
    )


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A machine with two models, whose checkpoints are here."""
    root = tmp_path_factory.mktemp("mlc")
    entries = {}
    for name, make in MODELS.items():
        make(root / name)
        source = {"type": "file", "path": str(root / name)}
        variant = {"backend": "mlc", "quantization": QUANTIZATION, "source": source}
        entries[name] = {
            "name": name,
            "parameters": "1M",
            "memory_requirement": 100,
            "container": None,
            "status": "experimental",
            "use_cases": ["text_generation"],
            "context_length": CONTEXT_TOKENS,
            "chat": "none" if "gpt2" in name else "embedded",
            "variants": {"mlc": variant},
        }
    (root / "models.json").write_text(json.dumps({"models": entries}))
    return root


@pytest.fixture(scope="module")
def built(home: Path) -> Callable[[str], Build]:
    """Builds a model with ``jetllm build``, once."""
    builds: dict[str, Build] = {}

    def build(model: str) -> Build:
        if model not in builds:
            builds[model] = _built(home, model)
        return builds[model]

    return build


def _built(home: Path, model: str) -> Build:
    settings = {"REGISTRY": home / "models.json", "CACHE_DIR": home / "cache", "STATE_DIR": home / "state"}
    own = {f"JETLLM_{name}": str(value) for name, value in settings.items()}
    done = subprocess.run(
        [sys.executable, "-m", "inference", "build", model, "--device", "cpu", "--json"],
        env={**os.environ, **own},
        capture_output=True,
        text=True,
        timeout=BUILD_S,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    build = read_build(home / "cache" / "builds" / json.loads(done.stdout)["key"])
    assert build is not None
    return build


@pytest.fixture
def load(tmp_path: Path) -> Iterator[Callable[[Build], Worker]]:
    """Load builds in workers, which are killed at the end."""
    started: list[Worker] = []

    def start(build: Build) -> Worker:
        options = LoadOptions(
            weights=build.path,
            context_tokens=CONTEXT_TOKENS,
            slots=2,
            threads=None,
            prefill_batch_tokens=64,
            prompt_cache_bytes=0,
            runtime_dir=tmp_path,
            device="cpu",
        )
        worker = Worker(
            WorkerSpec(build.model, "mlc", options.to_dict(), worker_environment()), on_change=lambda: None
        )
        worker.start()
        started.append(worker)
        wait_until(lambda: worker.ready or worker.exited, "ready or exited", LOAD_S)
        assert worker.ready, worker.exit_error
        return worker

    yield start
    for worker in started:
        worker.kill()
        assert worker.wait(20)


def _ask(worker: Worker, **request: Any) -> tuple[str, FinishReason | None]:
    asked = {"prompt": "The city of", "max_tokens": 24, "temperature": 0.0, **request}
    text, reason = "", None
    for chunk in worker.generate(GenerateRequest(**asked), lambda: False):
        text, reason = text + chunk.text, chunk.finish_reason or reason
    return text, reason


@pytest.mark.parametrize("model", MODELS)
def test_a_checkpoint_becomes_text(model: str, built: Any, load: Any) -> None:
    """Built as the linter's fixes want it, in the quantization asked for, a tiny model writes words."""
    build = built(model)
    assert build.recipe.quantization == QUANTIZATION and build.failures == ()
    assert any(("transformer." if "gpt2" in model else "rope_theta") in change for change in build.changes)
    text, reason = _ask(load(build))
    assert incoherence(text, 24) is None, text
    assert reason == FinishReason.LENGTH


@pytest.mark.parametrize("model", MODELS)
def test_greedy_text_is_the_same_each_time(model: str, built: Any, load: Any) -> None:
    """Twice of one worker, and of another one."""
    first, second = load(built(model)), load(built(model))
    texts = {_ask(worker)[0] for worker in (first, first, second)}
    assert len(texts) == 1


def test_a_chat_is_rendered_with_the_models_own_template(built: Any, load: Any) -> None:
    """Messages make the same text as the prompt that the template of the checkpoint makes of them."""
    worker = load(built("tiny-smollm2"))
    rendered = "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    chat = _ask(worker, prompt=None, messages=(Message("user", "Hello"),))
    assert chat == _ask(worker, prompt=rendered)


def test_a_cancelled_answer_ends_and_the_next_is_whole(built: Any, load: Any) -> None:
    """Leaving a stream after its first text neither hangs nor changes what follows."""
    worker = load(built("tiny-smollm2"))
    whole = _ask(worker)
    request = GenerateRequest(prompt="The city of", max_tokens=200, temperature=0.0)
    stream = worker.generate(request, lambda: False)
    assert next(chunk for chunk in stream if chunk.text)
    stream.close()
    assert _ask(worker) == whole


BROKEN: dict[str, tuple[Callable[[Path], Path], str | None]] = {
    "sound": (lambda directory: make_llama(directory), None),
    "untied": (lambda directory: make_llama(directory, tied=False), None),
    "plain gpt2": (lambda directory: make_gpt2(directory), None),
    "prefixed gpt2": (lambda directory: make_gpt2(directory, prefixed=True), "gpt2-names"),
    "unknown model_type": (
        lambda directory: break_checkpoint(make_llama(directory), "unknown model_type"),
        "model-type",
    ),
    "no head": (
        lambda directory: break_checkpoint(make_llama(directory, tied=False), "no head"),
        "tied-head",
    ),
    "stale index": (lambda directory: break_checkpoint(make_llama(directory), "stale index"), "stale-index"),
    "absent shard": (lambda directory: break_checkpoint(make_llama(directory), "absent shard"), "weights"),
    "cut": (lambda directory: break_checkpoint(make_llama(directory), "cut"), "weights"),
    "no weights": (lambda directory: break_checkpoint(make_llama(directory), "no weights"), "weights"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_the_linter_and_mlc_agree(name: str, tmp_path: Path) -> None:
    """What the linter calls an error stops mlc_llm, and what it lets pass is converted."""
    make, rule = BROKEN[name]
    source = make(tmp_path / "source")
    report = lint(source, NEWEST_IMAGE, QUANTIZATION, CONTEXT_TOKENS)
    errors = {finding.rule for finding in report.findings if finding.severity == "error"}
    assert errors == ({rule} if rule else set())
    plain = (source, "--quantization", QUANTIZATION)
    done = _mlc_llm("convert_weight", *plain, "--device", "cpu", "-o", tmp_path / "out")
    assert (done.returncode != 0) == bool(rule), done.stdout[-1000:] + done.stderr[-1000:]
