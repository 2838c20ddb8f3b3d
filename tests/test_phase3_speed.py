"""The speed check: its gate, and what it says of a miss, on made-up replies of exact speed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from phase3 import bench
from phase3.checks.speed import diagnose, speed
from phase3.measured import Ask
from phase3.outcome import Outcome
from phase3.plan import Plan
from phase3.target import Environment, Reply
from tests.fake_target import ENVIRONMENT, REGISTERED, FakeTarget, case_of, reply

PLAN = Plan("quick", ((16, 32),), (1,), runs=5, generations=0, cycles=0)
JETSON = replace(
    ENVIRONMENT,
    board="orin-nano-8gb",
    backend="mlc",
    power_mode="15W",
    gpu_clock_hz=1_020_000_000,
    gpu_clock_max_hz=1_020_000_000,
    memory_clock_hz=3_199_000_000,
    memory_clock_max_hz=3_199_000_000,
    memory_bandwidth_bytes_per_s=68e9,
)


def words(text: str) -> int:
    """A tokenizer: a word is a token, and a text begins with one more."""
    return 1 + len(text.split())


def answering(tokens_per_s: float) -> Callable[[Ask], Reply]:
    """Answer with as many tokens as are asked for, at that speed."""

    def answer(ask: Ask) -> Reply:
        text = "x" * ask.max_tokens
        return reply(text, prompt_tokens=words(ask.prompt or ""), itl_s=1 / tokens_per_s, tokens=text)

    return answer


def judged(
    tokens_per_s: float, environment: Environment = JETSON, predicted: float | None = 100.0
) -> Outcome:
    """Judge a target of exactly that speed."""
    target = FakeTarget(
        answering(tokens_per_s),
        environment=environment,
        registered=replace(REGISTERED, predicted_decode_tokens_per_s=predicted),
    )
    return speed(case_of(target, PLAN))


class TestSpeed:
    """The gate and its diagnoses."""

    def test_a_healthy_model_passes(self) -> None:
        """As fast as predicted: the value is the median, the limit half of the prediction."""
        outcome = judged(95.0)
        assert (outcome.verdict, outcome.limit, outcome.limit_is) == ("pass", 50.0, "at least")
        assert outcome.value == pytest.approx(95.0) and outcome.diagnosis is None
        assert outcome.detail == "median of 5 requests, 16 tokens in, 32 out; 95% of the predicted 100.0"

    @pytest.mark.parametrize(("value", "verdict"), [(50.5, "pass"), (49.5, "fail")])
    def test_half_of_the_prediction_is_the_limit(self, value: float, verdict: str) -> None:
        """Half is enough, less is not."""
        assert judged(value).verdict == verdict

    @pytest.mark.parametrize("predicted", [None, 12.0])
    def test_the_floor_stands_whatever_is_predicted(self, predicted: float | None) -> None:
        """Ten tokens a second are wanted of a slow machine, too, and of one nobody predicted."""
        assert (judged(10.1, predicted=predicted).verdict, judged(9.9, predicted=predicted).verdict) == (
            "pass",
            "fail",
        )
        diagnosis = judged(9.9, predicted=predicted).diagnosis
        assert diagnosis and "smaller quantization" in diagnosis

    @pytest.mark.parametrize("share", [0.05, 0.1, 0.14])
    def test_a_tenth_looks_like_the_cpu(self, share: float) -> None:
        """A GPU's engine at a tenth of the prediction is on the CPU, whatever heat and clocks say."""
        hot = replace(JETSON, throttled=True, throttled_by=("gpu",), gpu_clock_hz=102_000_000)
        for environment in (JETSON, hot):
            diagnosis = judged(1000 * share, environment, predicted=1000.0).diagnosis
            assert diagnosis and "looks like CPU fallback" in diagnosis and "--runtime nvidia" in diagnosis

    def test_an_engine_of_the_cpu_has_no_fallback(self) -> None:
        """llama.cpp computes on the CPU anyway: what is left is that the cores are not its own."""
        busy = replace(ENVIRONMENT, backend="llamacpp", load_average_1m=9.5)
        diagnosis = judged(10.0, busy).diagnosis
        assert (
            diagnosis and "meant to compute on the CPU" in diagnosis and "load average 9.5 on 2" in diagnosis
        )

    def test_throttling_is_told(self) -> None:
        """Clocks that are held down by heat are named, and not taken for the power mode."""
        hot = replace(
            JETSON,
            throttled=True,
            throttled_by=("cpu-throttle",),
            hottest_celsius=97.4,
            gpu_clock_hz=408_000_000,
        )
        diagnosis = judged(40.0, hot).diagnosis
        assert diagnosis and "held down by cpu-throttle at 97 degrees" in diagnosis
        assert "power mode" not in diagnosis

    @pytest.mark.parametrize("clock", ["gpu", "memory"])
    def test_the_clock_ratio_looks_like_the_power_mode(self, clock: str) -> None:
        """A speed that is lost in proportion to a clock is the power mode's."""
        clocks: dict[str, Any] = {f"{clock}_clock_hz": 400, f"{clock}_clock_max_hz": 1000}
        slow = replace(JETSON, **clocks)
        diagnosis = judged(40.0, slow).diagnosis
        assert diagnosis and "looks like the power mode" in diagnosis and "40%" in diagnosis
        assert "nvpmodel" in diagnosis and "jetson_clocks" in diagnosis and "15W" in diagnosis

    @pytest.mark.parametrize(
        "environment",
        [
            JETSON,
            replace(JETSON, gpu_clock_hz=900_000_000),
            replace(JETSON, gpu_clock_hz=None, memory_clock_max_hz=None),
            replace(JETSON, backend="llamacpp", gpu_clock_hz=400_000_000),
        ],
        ids=["full clocks", "another ratio", "unknown clocks", "an idle GPU beside the CPU's engine"],
    )
    def test_anything_else_is_slower_than_predicted(self, environment: Environment) -> None:
        """Where nothing explains it both numbers are told, and no cause is made up."""
        diagnosis = judged(40.0, environment).diagnosis
        assert diagnosis and "40.0 tokens/s, 40% of the predicted 100.0: slower than predicted" in diagnosis

    def test_a_tiny_model_is_told_what_its_prediction_leaves_out(self) -> None:
        """Thousands of tokens a second are predicted of weights alone, and no engine is free beside them."""
        told = [judged(0.3 * predicted, predicted=predicted).diagnosis or "" for predicted in (400.0, 2000.0)]
        assert ["only the reading of weights" in text for text in told] == [False, True]

    def test_the_machine_is_looked_at_while_it_generates(self) -> None:
        """Clocks fall when nothing runs: the diagnosis is of a machine at work."""
        target = FakeTarget(answering(40), environment=JETSON)
        case = case_of(target, PLAN)
        bench.run(case)
        before = len(target.asked)
        assert speed(case).verdict == "fail"
        assert [ask.max_tokens for ask in target.asked[before:]] == [32]

    def test_measures_once(self) -> None:
        """Rows that are there are judged; a pass asks the target for nothing more."""
        target = FakeTarget(answering(90))
        case = case_of(target, PLAN)
        bench.run(case)
        before = len(target.asked)
        assert speed(case).verdict == "pass" and len(target.asked) == before

    def test_an_answer_in_one_piece_is_judged_by_its_whole_time(self) -> None:
        """That is the least that its speed can be, and a slow stream is not this check's to find."""

        def lump(ask: Ask) -> Reply:
            return replace(
                reply("x", prompt_tokens=words(ask.prompt or ""), ttft_s=0.5, tokens=["x"]),
                completion_tokens=ask.max_tokens,
            )

        outcome = speed(case_of(FakeTarget(lump), PLAN))
        assert (outcome.verdict, outcome.value) == ("pass", 64.0)

    def test_no_room_is_no_verdict(self) -> None:
        """A context that holds not even the first pair cannot be judged."""
        target = FakeTarget(answering(90), environment=replace(ENVIRONMENT, context_tokens=30))
        assert speed(case_of(target, PLAN)).verdict == "unfit"

    def test_precedence_is_of_what_is_certain(self) -> None:
        """CPU fallback, then throttling, then the clocks, then nothing."""
        slow = replace(JETSON, gpu_clock_hz=400, gpu_clock_max_hz=1000)
        hot = replace(slow, throttled=True)
        told = [diagnose(*case) for case in ((9.0, 100.0, hot), (40.0, 100.0, hot), (40.0, 100.0, slow))]
        wanted = ("CPU fallback", "held down", "power mode")
        assert [word for word, text in zip(wanted, told, strict=True) if word in text] == list(wanted)
