"""The contract's checks: each finds its own defect and no other's, and healthy models keep the contract."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from inference.inference_engine import InferenceEngine
from phase3.asking import BROKEN, compare
from phase3.case import Case
from phase3.checks import contract, slots
from phase3.engine_target import EngineTarget
from phase3.http_target import HttpTarget
from phase3.measured import Ask
from phase3.outcome import Outcome
from phase3.plan import FULL, QUICK, Plan
from phase3.target import Reply, Target, TargetError
from tests.contract_defects import BASE, DEFECTS, MODELS, Wavering, refusing, with_characters
from tests.daemon_process import MODEL, DaemonProcess
from tests.fake_target import ENVIRONMENT, FakeTarget, case_of, healthy

CHECKS: dict[str, Callable[[Case], Outcome]] = {
    **{name: getattr(contract, name) for name in contract.__all__},
    "cancel": slots.cancel,
    "concurrency": slots.concurrency,
}
PLANS = pytest.mark.parametrize("plan", [QUICK, FULL], ids=["quick", "full"])
UNJUDGED = {
    ("no text", "cancel"),
    ("no text", "seed"),
    ("one word over and over", "seed"),
    ("one letter over and over", "seed"),
}


@PLANS
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("check", CHECKS)
def test_whatever_a_model_says_it_may_keep_the_contract(check: str, model: str, plan: Plan) -> None:
    """No check fails a model for its words, its speed or its size; what cannot be judged is skipped."""
    target = MODELS[model]()
    outcome = CHECKS[check](case_of(target, plan))
    assert outcome.verdict == ("skip" if (model, check) in UNJUDGED else "pass"), outcome


@PLANS
@pytest.mark.parametrize("defect", DEFECTS)
def test_a_defect_is_found_by_its_check_and_by_no_other(defect: str, plan: Plan) -> None:
    """Every way to break the contract fails one check; the others pass or say that they cannot judge."""
    finds, make = DEFECTS[defect]
    failing = {}
    for name, check in CHECKS.items():
        outcome = check(case_of(FakeTarget(make()), plan))
        if outcome.verdict == "fail":
            failing[name] = outcome
    assert set(failing) == {finds}, failing
    assert failing[finds].detail and failing[finds].diagnosis


def test_says_what_it_saw() -> None:
    """A failure names the place where two texts part, or the counts, or the string."""
    said = {}
    for defect in ("stream loses a word", "ignores stop", "one token more", "cuts beyond", "wavers every 2"):
        finds, make = DEFECTS[defect]
        said[defect] = CHECKS[finds](case_of(FakeTarget(make()))).detail or ""
    assert "whole and streamed part from character" in said["stream loses a word"]
    assert "stop " in said["ignores stop"] and "is in the text" in said["ignores stop"]
    assert "max_tokens 1 without the end of the turn: 2 tokens came" in said["one token more"]
    assert "was taken, as one of 1023" in said["cuts beyond"]
    assert "they part from character 2" in said["wavers every 2"]


def test_an_error_is_the_targets_own() -> None:
    """What the target refuses is not swallowed: the runner tells it."""
    for check in (contract.streaming, contract.greedy, contract.stop, contract.length, contract.seed):
        with pytest.raises(TargetError, match="it said no"):
            check(case_of(FakeTarget(refusing("backend_crashed"))))


@pytest.mark.parametrize("period", range(2, 8))
def test_what_comes_by_turns_is_no_difference(period: int) -> None:
    """An engine that answers otherwise every so often never looks as if it treated two requests otherwise."""
    for shift in range(period):
        wavering = Wavering(lambda number, shift=shift: (number + shift) % period == 0)  # type: ignore[misc]
        case = case_of(FakeTarget(wavering))
        asked = {"prompt": "a", "max_tokens": 4}
        found = compare(case, asked, {**asked, "stream": False}, lambda a, b: a.text == b.text)
        assert found.agreement != "different"


class TestContext:
    """How long prompts are made, and how far a run goes."""

    def _at(self, size: int, plan: Plan, prefill_s: float) -> tuple[Outcome, list[int]]:
        """Check a context of *size* where a token of the prompt takes *prefill_s*."""

        def answer(ask: Ask) -> Reply:
            made = healthy(ask, context_tokens=size)
            return replace(made, ttft_s=made.prompt_tokens * prefill_s)

        target = FakeTarget(answer, environment=replace(ENVIRONMENT, context_tokens=size))
        outcome = contract.context(case_of(target, plan))
        return outcome, [len((ask.prompt or "").split()) for ask in target.asked]

    @pytest.mark.parametrize("size", [256, 1000, 4096])
    def test_fills_a_context_whatever_it_takes(self, size: int) -> None:
        """Up to 4096 tokens, a full run leaves no more room than an answer needs."""
        outcome, tokens = self._at(size, FULL, prefill_s=0.05)
        assert outcome.verdict == "pass" and outcome.value is not None
        assert size - 56 <= outcome.value <= size - 8
        assert max(tokens) > size and len(tokens) <= 6

    def test_fills_a_long_context_where_that_is_quick(self) -> None:
        """At 10 000 tokens/s a context of 131 072 takes 13 s and is filled."""
        outcome, tokens = self._at(131_072, FULL, prefill_s=0.000_1)
        assert outcome.value is not None and outcome.value > 131_000 and "too long" not in str(outcome.detail)
        assert max(tokens) > 131_072

    @pytest.mark.parametrize(("plan", "most"), [(FULL, 60.0), (QUICK, 15.0)], ids=["full", "quick"])
    def test_stops_where_it_would_take_too_long(self, plan: Plan, most: float) -> None:
        """At 200 tokens/s a part of a long context is tried, and how much is said; beyond it is refused."""
        outcome, tokens = self._at(131_072, plan, prefill_s=0.005)
        read = [count for count in tokens if count < 131_072]
        assert outcome.verdict == "pass" and sum(read) * 0.005 <= most
        assert "a longer one would take too long" in str(outcome.detail)
        assert max(tokens) > 131_072 and outcome.value == max(read)

    def test_says_when_nobody_knows_it(self) -> None:
        """An unknown context is not judged."""
        target = FakeTarget(environment=replace(ENVIRONMENT, context_tokens=None))
        assert contract.context(case_of(target)).verdict == "skip"

    def test_goes_on_after_a_refusal(self) -> None:
        """A model that is dead after a prompt that was too long fails."""
        refused: list[Ask] = []

        def answer(ask: Ask) -> Reply:
            if refused:
                raise TargetError("worker was killed by SIGSEGV", code="backend_crashed")
            try:
                return healthy(ask)
            except TargetError:
                refused.append(ask)
                raise

        with pytest.raises(TargetError, match="SIGSEGV"):
            contract.context(case_of(FakeTarget(answer)))


def test_a_sure_model_may_say_the_same_for_every_seed() -> None:
    """Where one text has nearly all of the probability, seeds cannot change it."""

    def answer(ask: Ask) -> Reply:
        made = healthy(replace(ask, temperature=0.0))
        sure = tuple(replace(item, logprob=-0.01) for item in made.logprobs or ())
        return replace(made, logprobs=sure or None)

    outcome = contract.seed(case_of(FakeTarget(answer)))
    assert outcome.verdict == "pass" and "so sure" in str(outcome.detail)


def test_a_stop_string_is_also_sought_beyond_ascii() -> None:
    """Where the text has other characters, one of the stop strings is made of them."""
    target = FakeTarget(lambda ask: with_characters(ask, "é"))
    outcome = contract.stop(case_of(target))
    assert outcome.verdict == "pass" and "beyond ASCII" not in str(outcome.detail)
    assert any("é" in word for ask in target.asked for word in ask.stop)

    def deaf(ask: Ask) -> Reply:
        return with_characters(replace(ask, stop=tuple(filter(str.isascii, ask.stop))), "é")

    assert contract.stop(case_of(FakeTarget(deaf))).verdict == "fail"


def test_a_stop_string_in_the_text_is_wrong_whatever_else_varies() -> None:
    """That greedy texts vary excuses no stop string in a text."""
    wavering = Wavering(lambda number: number % 2 == 0)
    target = FakeTarget(lambda ask: wavering(replace(ask, stop=())))
    outcome = contract.stop(case_of(target, FULL))
    assert outcome.verdict == "fail" and "is in the text" in str(outcome.detail)


def test_what_only_a_stream_tears_is_left_to_the_unicode_check() -> None:
    """Of a base model, too, of which both checks ask texts beyond ASCII."""
    target = FakeTarget(lambda ask: with_characters(ask, BROKEN if ask.stream else "é"), registered=BASE)
    assert contract.unicode(case_of(target)).verdict == "fail"
    assert contract.streaming(case_of(target)).verdict == "pass"


def test_tells_how_far_it_is() -> None:
    """Every check moves the progress bar, within 0 to 1."""
    for name, check in CHECKS.items():
        case = case_of(FakeTarget())
        told: list[float] = []
        case.progress = told.append
        check(case)
        assert told and all(0 <= part <= 1 for part in told), name


# The real thing.


@pytest.fixture(scope="module")
def smollm2(smollm2_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """SmolLM2, loaded by a daemon; tests/test_phase3_full.py runs every check on it in process."""
    with DaemonProcess(tmp_path_factory.mktemp("http"), context_tokens=256, keep_alive_s=-1) as daemon:
        yield _loaded(HttpTarget(daemon.url, MODEL))


def _loaded(target: Target) -> Target:
    target.load()
    target.environment()  # starts the thread that reads the gauges
    return target


def _case(target: Target, plan: Plan = QUICK) -> Case:
    environment = target.environment()
    return Case(target, plan, before=environment, loaded=environment)


@pytest.mark.harness
@pytest.mark.parametrize("check", CHECKS)
def test_smollm2_keeps_the_contract(smollm2: Target, check: str) -> None:
    """The real model passes, over HTTP."""
    outcome = CHECKS[check](_case(smollm2))
    assert outcome.verdict == "pass", outcome


@pytest.fixture(scope="module")
def tiny_gpt2(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """The tiny random GPT-2, loaded, whose text is bytes of which few are characters."""
    extra = "needs the extra 'transformers': make test-transformers"
    pytest.importorskip("torch", reason=extra)
    pytest.importorskip("transformers", reason=extra)
    from tests.scripted_service import MODEL as NAME
    from tests.scripted_service import scripted_registry
    from tests.tiny_gpt2 import make_tiny_gpt2

    directory = tmp_path_factory.mktemp("tiny")
    weights = make_tiny_gpt2(directory / "gpt2")
    registry = scripted_registry(directory, source={"type": "file", "path": str(weights)})
    with InferenceEngine(registry=registry, state_dir=directory / "state") as engine:
        yield _loaded(EngineTarget(engine, NAME))


@pytest.mark.transformers
@pytest.mark.parametrize("check", CHECKS)
def test_random_gpt2_keeps_the_contract(tiny_gpt2: Target, check: str) -> None:
    """What a model says does not matter here: with random weights, all but its words is as it should be."""
    outcome = CHECKS[check](_case(tiny_gpt2, FULL))
    assert outcome.verdict == "pass", outcome
