"""The truth: what the harness measures of a model whose times, counts and memory are known exactly."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from inference.inference_engine import InferenceEngine
from phase3.case import Case
from phase3.checks.memory import leak_generations
from phase3.engine_target import EngineTarget
from phase3.http_target import HttpTarget
from phase3.measured import MeasuredTarget
from phase3.outcome import Outcome
from phase3.plan import Plan
from phase3.target import Reply
from tests.conftest import wait_until
from tests.model_script import ModelScript
from tests.scripted_service import MODEL, ScriptedDaemon, model_registry, scripted_backend

TOLERANCE_S = 0.002
RUNS = 7
TOKENS = 24
SCRIPT = ModelScript(ttft_s=0.05, prefill_s=0.0002, itl_s=0.01)
CHAT = [{"role": "user", "content": "What is a lighthouse?"}]
SEEDS = 20
PLAN = Plan("full", ((16, 16),), (1,), runs=5, generations=200, cycles=0)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the models write down when they sent what."""
    return tmp_path_factory.mktemp("sent") / "log"


@pytest.fixture(scope="module", params=("engine", "http"))
def target(
    log: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[MeasuredTarget]:
    """The model with exact times, reached in both ways, loaded."""
    directory = tmp_path_factory.mktemp(request.param)
    registry = model_registry(directory, replace(SCRIPT, log=str(log)))
    settings: dict[str, Any] = {"registry": registry, "keep_alive_s": -1}
    state = directory / "state"
    if request.param == "engine":
        with scripted_backend(), InferenceEngine(**settings, state_dir=state) as engine:
            yield _loaded(EngineTarget(engine, MODEL))
    else:
        with ScriptedDaemon(state, **settings) as daemon:
            yield _loaded(HttpTarget(daemon.url, MODEL))


def _loaded(target: MeasuredTarget) -> MeasuredTarget:
    target.load()
    return target


class TestTimes:
    """Against the scripted model's own record of when it sent each token, and against its script."""

    def test_ttft_is_within_2_ms_of_the_truth(self, target: MeasuredTarget, log: Path) -> None:
        """From the request, which JetLLM takes its time to bring to the model, to the first text."""
        asked = _asked(target, log)
        wrong_s = [(one.reply.ttft_s or 0.0) - (one.sent_s[0] - one.asked_s) for one in asked]
        assert abs(statistics.median(wrong_s)) <= TOLERANCE_S, wrong_s
        own_s = [one.sent_s[0] - one.started_s for one in asked]
        assert all((one.reply.ttft_s or 0.0) > own for one, own in zip(asked, own_s, strict=True))

    def test_itl_is_within_2_ms_of_the_truth(self, target: MeasuredTarget, log: Path) -> None:
        """Arrivals are as far from the first one as the sendings were; so the mean is true, too."""
        asked = _asked(target, log)
        late_s = [
            (arrival - one.reply.arrivals_s[0]) - (sent - one.sent_s[0])
            for one in asked
            for arrival, sent in zip(one.reply.arrivals_s, one.sent_s, strict=True)
        ]
        assert len(late_s) == RUNS * TOKENS and abs(statistics.median(late_s)) <= TOLERANCE_S, late_s
        wrong_s = [(one.reply.itl_s or 0.0) - _itl_s(one.sent_s) for one in asked]
        assert abs(statistics.median(wrong_s)) <= TOLERANCE_S / 10, wrong_s

    def test_the_model_keeps_its_times(self, target: MeasuredTarget, log: Path) -> None:
        """The record agrees with the script, so the truth is known beforehand: no drift adds up."""
        late_s = []
        for one in _asked(target, log):
            due_s = SCRIPT.ttft_s + one.reply.prompt_tokens * SCRIPT.prefill_s
            late_s += [at - one.started_s - due_s - n * SCRIPT.itl_s for n, at in enumerate(one.sent_s)]
        assert min(late_s) >= 0 and statistics.median(late_s) <= TOLERANCE_S / 2, late_s


@dataclass(frozen=True)
class _Asked:
    """An answer, when it was asked for, and the model's own record of it; all on the system's clock."""

    reply: Reply
    asked_s: float
    started_s: float
    sent_s: list[float]


def _asked(target: MeasuredTarget, log: Path) -> list[_Asked]:
    """Ask several times."""
    log.unlink(missing_ok=True)
    found = []
    for number in range(RUNS):
        asked_s = time.monotonic()
        reply = target.generate(messages=CHAT, max_tokens=TOKENS, ignore_eos=True)
        wait_until(lambda: log.read_text().count("\n") > number, "written down")  # noqa: B023
        row = json.loads(log.read_text().splitlines()[number])
        found.append(_Asked(reply, asked_s, row["started_s"], row["sent_s"]))
    return found


def _itl_s(sent_s: list[float]) -> float:
    return (sent_s[-1] - sent_s[0]) / (len(sent_s) - 1)


class TestCounts:
    """Token counts are the model's own, to the last one."""

    def test_every_token_is_counted(self, target: MeasuredTarget) -> None:
        """Words of the prompt and of its template, words of the answer, and the end of the turn."""
        whole = target.generate(messages=CHAT, max_tokens=200)
        assert whole.prompt_tokens == 4 + 4 + 3
        assert (whole.completion_tokens, whole.finish_reason) == (len(whole.text.split()) + 1, "stop")
        cut = target.generate(messages=CHAT, max_tokens=TOKENS)
        assert (
            (cut.completion_tokens, cut.finish_reason)
            == (len(cut.text.split()), "length")
            == (TOKENS, "length")
        )
        assert whole.text.startswith(cut.text)
        raw = target.generate(prompt="one two three", max_tokens=5, stream=False)
        assert (raw.prompt_tokens, raw.completion_tokens, len(raw.text.split())) == (3, 5, 5)

    def test_a_bit_for_each_byte(self, target: MeasuredTarget) -> None:
        """The score of a text is what the script says of it."""
        tokens = target.score("It was found in the garden.")
        assert tokens is not None and "".join(item.token for item in tokens) == " was found in the garden."
        assert all(item.logprob == pytest.approx(-0.693147 * len(item.token)) for item in tokens)


@pytest.mark.harness
class TestLeaks:
    """A leak of 100 kB for each request, among requests that take and give back more than that."""

    @pytest.mark.parametrize("seed", range(SEEDS))
    def test_a_leak_of_100_kb_is_found(self, tmp_path: Path, seed: int) -> None:
        """The check accuses the model that leaks, whatever the noise."""
        outcome = _judged(tmp_path, ModelScript(defect="leak", leak_bytes=100_000, noise_seed=seed))
        assert outcome.verdict == "fail", outcome
        assert outcome.value == pytest.approx(100_000, rel=0.5)

    @pytest.mark.parametrize("seed", range(SEEDS))
    def test_a_clean_run_is_not_accused(self, tmp_path: Path, seed: int) -> None:
        """The check lets the model pass that gives back what it takes, over a run of the same length."""
        outcome = _judged(tmp_path, ModelScript(noise_seed=seed))
        assert outcome.verdict == "pass", outcome


def _judged(directory: Path, script: ModelScript) -> Outcome:
    registry = model_registry(
        directory, replace(script, ttft_s=0.0, prefill_s=0.0, itl_s=0.000_1, held_bytes=0)
    )
    with scripted_backend(), InferenceEngine(registry=registry) as engine:
        target = _loaded(EngineTarget(engine, MODEL))
        return leak_generations(Case(target, PLAN, before=target.environment()))
