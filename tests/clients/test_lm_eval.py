"""lm-evaluation-harness through `local-completions`: log-likelihoods, perplexity and generated answers.

The reference is transformers on the GGUF's weights in float32 (reference.py). llama.cpp gets them twice:
as shipped in 4 bits, where it rounds activations to 8 bits too, and as float32, where nothing is rounded.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.clients.conftest import ROOT, reference, run_client
from tests.conftest import wait_until
from tests.daemon_process import MODEL, DaemonProcess

pytestmark = [
    pytest.mark.clients,
    pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="make test-clients"),
]
TASKS = ROOT / "tests" / "clients" / "lm_eval_tasks"
# How far a sum of log-probabilities may be from the reference's. llama.cpp's attention and KV cache are in
# float16: of 18 continuations and 6 texts the worst was 0.015 off, and 5 were beyond 0.01 (November 2026).
FLOAT32 = {"llamacpp": 0.02, "transformers": 0.01}
# As shipped the worst was 0.40 off of 16.3 in a continuation, and 0.48 of 67.3 in a whole text.
ROUNDED = 0.6


@dataclass(frozen=True)
class Scored:
    """One continuation with the harness's two figures of it."""

    context: str
    continuation: str
    loglikelihood: float
    is_greedy: bool


@dataclass(frozen=True)
class Evaluation:
    """What the harness wrote down of one run."""

    scored: tuple[Scored, ...]
    rolling: dict[str, float]
    written: dict[str, str]
    results: dict[str, dict[str, float]]


@pytest.fixture(scope="module")
def float32_daemon(
    files: Path, cache_dir: Path, smollm2_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[DaemonProcess]:
    """A daemon with the same weights in float32, once behind each engine."""
    entry = json.loads((ROOT / "models.json").read_text(encoding="utf-8"))["models"][MODEL]
    weights = {"llamacpp": files / "float32.gguf", "transformers": smollm2_path}
    models = {
        f"smollm2-{engine}": {
            **{key: value for key, value in entry.items() if key != "aliases"},
            "variants": {
                "float32": {"backend": engine, "source": {"type": "file", "path": str(weights[engine])}}
            },
            "memory_requirement": 2000,
        }
        for engine in FLOAT32
    }
    directory = tmp_path_factory.mktemp("float32-state")
    registry = directory / "models.json"
    registry.write_text(json.dumps({"models": models}), encoding="utf-8")
    options = {
        "cache_dir": cache_dir,
        "offline": True,
        "context_tokens": 512,
        "keep_alive_s": -1,
        "threads": 1,
    }
    with DaemonProcess(directory / "state", registry=registry, **options) as started:
        wait_until(lambda: started.ask("GET", "/livez")[0] == 200, "life")
        yield started


@pytest.fixture(scope="module")
def evaluate(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Evaluation]:
    """Run the harness's own command on the three tasks; the same question is asked once."""

    @functools.cache
    def run(url: str, model: str, batch_size: int = 1, **options: object) -> Evaluation:
        output = tmp_path_factory.mktemp("evaluated")
        arguments = {
            "model": model, "base_url": f"{url}/v1/completions", "tokenizer": files / "tokenizer",
            "tokenizer_backend": "huggingface", "max_length": 512, "max_retries": 1, **options,
        }  # fmt: skip
        done = run_client(
            sys.executable, "-m", "lm_eval", "run", "--model", "local-completions",
            "--model_args", ",".join(f"{name}={value}" for name, value in arguments.items()),
            "--tasks", "jetllm_facts_choice,jetllm_facts_perplexity,jetllm_facts_written",
            "--batch_size", str(batch_size), "--include_path", str(TASKS),
            "--output_path", str(output), "--log_samples",
            environment={"HF_HOME": str(output / "hub")},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-4000:]
        return read(output)

    return run


def read(output: Path) -> Evaluation:
    """Read the harness's files."""
    [results] = output.rglob("results_*.json")
    samples = {task: list(_samples(output, task)) for task in ("choice", "perplexity", "written")}
    return Evaluation(
        scored=tuple(
            Scored(asked["arg_0"], asked["arg_1"], float(found[0]), found[1] in (True, "True"))
            for asked, found in samples["choice"]
        ),
        rolling={asked["arg_0"]: float(found) for asked, found in samples["perplexity"]},
        written={asked["arg_0"]: found for asked, found in samples["written"]},
        results=json.loads(results.read_text(encoding="utf-8"))["results"],
    )


def _samples(output: Path, task: str) -> Iterator[tuple[dict[str, str], Any]]:
    [path] = output.rglob(f"samples_jetllm_facts_{task}_*.jsonl")
    for line in path.read_text(encoding="utf-8").splitlines():
        sample = json.loads(line)
        for asked, found in zip(sample["arguments"].values(), sample["resps"], strict=True):
            yield asked, found[0]


@pytest.fixture(scope="module")
def expected(smollm2_path: Path) -> Callable[[Evaluation], tuple[list[float], list[bool]]]:
    """Score what an evaluation asked for with the reference, once for all of them."""
    known: dict[str, tuple[float, bool]] = {}

    def score(evaluation: Evaluation) -> tuple[list[float], list[bool]]:
        pairs = [(item.context, item.continuation) for item in evaluation.scored]
        pairs += [("", text) for text in evaluation.rolling]
        if any(json.dumps(pair) not in known for pair in pairs):
            scores = json.loads(reference("score", smollm2_path, stdin=json.dumps(pairs)))
            known.update(zip(map(json.dumps, pairs), map(tuple, scores), strict=True))
        found = [known[json.dumps(pair)] for pair in pairs]
        return [value for value, _ in found], [greedy for _, greedy in found]

    return score


def values(evaluation: Evaluation) -> list[float]:
    return [item.loglikelihood for item in evaluation.scored] + list(evaluation.rolling.values())


@pytest.mark.parametrize("engine", FLOAT32)
def test_loglikelihoods_in_float32_are_the_references(
    float32_daemon: DaemonProcess, evaluate: Any, expected: Any, engine: str
) -> None:
    """Continuations and whole texts are as near as their engine can be; what is greedy is so for both."""
    evaluation = evaluate(float32_daemon.url, f"smollm2-{engine}")
    wanted, greedy = expected(evaluation)
    assert len(evaluation.scored) == 18 and len(evaluation.rolling) == 6
    assert values(evaluation) == pytest.approx(wanted, abs=FLOAT32[engine])
    assert [item.is_greedy for item in evaluation.scored] == greedy[:18]


def test_loglikelihoods_of_four_bits_are_near(daemon: DaemonProcess, evaluate: Any, expected: Any) -> None:
    """As shipped, llama.cpp rounds what it computes: sums differ by tenths, and the choices stay."""
    evaluation = evaluate(daemon.url, MODEL)
    wanted, _ = expected(evaluation)
    assert values(evaluation) == pytest.approx(wanted, abs=ROUNDED)


def test_text_and_tokens_score_the_same(float32_daemon: DaemonProcess, evaluate: Any) -> None:
    """Prompts as lists of tokens one by one, or as texts, several in a request and several at a time."""
    model = "smollm2-llamacpp"
    by_tokens = evaluate(float32_daemon.url, model)
    by_texts = evaluate(float32_daemon.url, model, tokenized_requests=False, batch_size=4, num_concurrent=2)
    assert values(by_texts) == pytest.approx(values(by_tokens), abs=1e-2)
    assert by_texts.written == by_tokens.written


def test_generated_answers_are_what_the_daemon_generates(daemon: DaemonProcess, evaluate: Any) -> None:
    """The harness's stop strings and limits arrive: the same text as of a plain request."""
    evaluation = evaluate(daemon.url, MODEL)
    assert len(evaluation.written) == 6
    for prompt, text in evaluation.written.items():
        asked = {"model": MODEL, "prompt": prompt, "max_tokens": 12, "temperature": 0, "stop": ["\n"]}
        status, answer = daemon.ask("POST", "/v1/completions", asked)
        assert (status, answer["choices"][0]["text"]) == (200, text)
