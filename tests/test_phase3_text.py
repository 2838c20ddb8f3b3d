"""The checks of text: each layer's defect fails its own check, on fakes and on real models."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from phase3 import coherence as judging
from phase3 import sample
from phase3.checks import text
from phase3.data import fixed
from phase3.measured import Ask
from phase3.plan import FULL, QUICK
from phase3.references import Reference
from phase3.target import Reply, TargetError, TokenLogprob
from tests.fake_target import (
    ENVIRONMENT,
    REGISTERED,
    FakeTarget,
    case_of,
    even_score,
    healthy,
    prompt_tokens,
    refusal,
    reply,
)
from tests.test_phase3_coherence import GIBBERISH

BASE = replace(REGISTERED, is_chat=False)
CHAT_PROMPTS = fixed.prompts().chat
SAYING: dict[str, str] = {
    "gibberish": GIBBERISH[0],
    "loops": "bing bong " * 40,
    "special tokens": "There it stands.<|im_end|>",
    "replacement characters": "There it \N{REPLACEMENT CHARACTER} stands.",
    "nothing": "",
    "raw pieces": "There Ġit Ġstands.",
}


def saying(answer: str, **options: Any) -> FakeTarget:
    """A target that answers everything alike; prompts count as they should."""
    return FakeTarget(lambda ask: reply(answer, prompt_tokens=prompt_tokens(ask)), **options)


def reference(bits_per_byte: float = 1.0, texts: dict[str, str] | None = None) -> Reference:
    """A reference of no model."""
    return Reference([bits_per_byte] * 6, texts or {}, "transformers 5", "0" * 64, "2026-11-21")


@pytest.fixture
def referred(monkeypatch: pytest.MonkeyPatch) -> Callable[[Reference], None]:
    """Gives the model under test a reference."""
    return lambda found: monkeypatch.setattr(text, "reference_of", lambda _: found)


class TestCoherence:
    """Layer by layer, on fakes."""

    def test_a_healthy_model_passes(self) -> None:
        """Every layer is told of in words; answers and loss are kept for references."""
        case = case_of(FakeTarget())
        outcome = text.coherence(case)
        assert (outcome.verdict, outcome.unit) == ("pass", "bits per byte")
        assert outcome.value == pytest.approx(1.0)
        assert outcome.detail is not None and "6 greedy answers: not empty" in outcome.detail
        assert "no golden texts" in outcome.detail and "1.000 bits per byte" in outcome.detail
        assert tuple(case.replies) == CHAT_PROMPTS and case.bits_per_byte == pytest.approx(1.0)

    @pytest.mark.parametrize("answer", SAYING.values(), ids=SAYING)
    def test_planted_texts_fail(self, answer: str) -> None:
        """Text that no working model says fails, with the answer and a diagnosis."""
        outcome = text.coherence(case_of(saying(answer)))
        problem = judging.judge(answer, is_chat=True)
        assert problem is not None and outcome.verdict == "fail" and outcome.diagnosis
        assert outcome.detail is not None and problem.detail in outcome.detail
        assert CHAT_PROMPTS[0] in outcome.detail

    def test_one_bad_answer_fails(self) -> None:
        """The answer that is wrong is the one that is shown."""

        def answer(ask: Ask) -> Reply:
            bad = ask.messages is not None and ask.messages[0]["content"] == CHAT_PROMPTS[3]
            return reply("a " * 60) if bad else healthy(ask)

        outcome = text.coherence(case_of(FakeTarget(answer)))
        assert outcome.verdict == "fail" and outcome.detail is not None
        assert CHAT_PROMPTS[3] in outcome.detail and CHAT_PROMPTS[0] not in outcome.detail

    def test_base_models_continue_texts(self) -> None:
        """A base model gets beginnings as they stand, and may loop in sentences."""
        target = FakeTarget(registered=BASE)
        case = case_of(target)
        assert text.coherence(case).verdict == "pass" and tuple(case.replies) == fixed.prompts().base
        assert all(ask.messages is None for ask in target.asked)
        loops = saying("It is what it is and we go on from there. " * 8, registered=BASE)
        assert text.coherence(case_of(loops)).verdict == "pass"

    def test_base_models_may_end_some_texts_at_once(self) -> None:
        """Half of the texts without a word is what the end of a text gives; more is silence."""

        def silent_on(count: int) -> Callable[[Ask], Reply]:
            prompts = fixed.prompts().base[:count]
            return lambda ask: reply("") if ask.prompt in prompts else healthy(ask)

        assert text.coherence(case_of(FakeTarget(silent_on(3), registered=BASE))).verdict == "pass"
        outcome = text.coherence(case_of(FakeTarget(silent_on(4), registered=BASE)))
        assert outcome.verdict == "fail" and "4 of 6 texts are not continued" in str(outcome.detail)

    def test_lengths_follow_mode_and_context(self) -> None:
        """64 tokens in quick mode, 200 in full, never more than half of the context."""
        for plan, context_tokens, expected in ((QUICK, 1024, 64), (FULL, 1024, 200), (FULL, 128, 64)):
            target = FakeTarget(environment=replace(ENVIRONMENT, context_tokens=context_tokens))
            text.coherence(case_of(target, plan))
            assert {ask.max_tokens for ask in target.asked} == {expected}


class TestLoss:
    """Bits per byte and its limits."""

    @pytest.mark.parametrize(("ratio", "verdict"), [(1.1, "pass"), (1.2, "fail")])
    def test_the_reference_is_the_measure(
        self, referred: Callable[[Reference], None], ratio: float, verdict: str
    ) -> None:
        """15 % above the reference is the limit, wherever the reference is."""
        referred(reference(0.8))
        outcome = text.coherence(case_of(FakeTarget(score=lambda t: even_score(t, 0.8 * ratio))))
        assert (outcome.verdict, outcome.limit, outcome.limit_is) == (verdict, 1.15, "at most")
        assert outcome.value == pytest.approx(ratio) and (outcome.diagnosis is None) == (verdict == "pass")

    def test_the_same_paragraphs_are_compared(self, referred: Callable[[Reference], None]) -> None:
        """Two paragraphs are scored in quick mode, all six in full, and held against as many."""
        sizes = [len(part) for part in sample.paragraphs()]
        referred(replace(reference(), paragraph_bits_per_byte=[1.0, 1.0, 2.0, 2.0, 2.0, 2.0]))
        for plan, scored, expected in ((QUICK, 2, 1.0), (FULL, 6, 2 - sum(sizes[:2]) / sum(sizes))):
            target = FakeTarget()
            case = case_of(target, plan)
            assert text.coherence(case).value == pytest.approx(1 / expected)
            assert target.events.count("score") == len(case.series[sample.LOSSES]) == scored

    def test_a_random_model_fails_without_reference(self) -> None:
        """Guessing evenly among 32,000 tokens of four bytes is 3.7 bits for each byte."""
        guessing = math.log2(32_000) / 4
        outcome = text.coherence(case_of(FakeTarget(score=lambda t: even_score(t, guessing))))
        assert (outcome.verdict, outcome.limit) == (
            "fail",
            text.MOST_LOSS,
        ) and outcome.value == pytest.approx(guessing)

    def test_a_backend_that_does_not_score_is_judged_by_its_text(self) -> None:
        """Without scores nothing is said of the loss, and nothing held against the model."""
        case = case_of(FakeTarget(score=lambda _: None))
        outcome = text.coherence(case)
        assert (outcome.verdict, outcome.value, case.bits_per_byte) == ("pass", None, None)
        assert "does not score" in str(outcome.detail)

    def test_a_short_context_is_scored_in_parts(self) -> None:
        """What is longer than the context is scored in halves; nearly all bytes are scored."""
        scored: list[str] = []

        def short(piece: str) -> tuple[TokenLogprob, ...]:
            if len(piece) > 120:
                raise TargetError("too long", code="context_length_exceeded")
            scored.append(piece)
            return even_score(piece, 1.5)

        assert sample.loss(FakeTarget(score=short), fixed.text()) == pytest.approx(1.5)
        assert "".join(scored) == fixed.text()

    def test_other_errors_of_scoring_are_the_models(self) -> None:
        """A target that cannot score for another reason has failed."""

        def broken(_: str) -> None:
            raise TargetError("the worker is gone", code="backend_crashed")

        target = FakeTarget(score=broken)
        with pytest.raises(TargetError, match="gone"):
            text.coherence(case_of(target))
        assert target.events.count("score") == 1


class TestGoldenTexts:
    """The beginnings of greedy answers against the reference's."""

    def golden(self, wrong: int) -> Reference:
        """The healthy fake's own answers, *wrong* of them another's."""
        target = FakeTarget()
        texts = {}
        for i, prompt in enumerate(CHAT_PROMPTS):
            answer = target.generate(messages=sample.turn(prompt), max_tokens=64).text
            texts[prompt] = f"Z{answer}" if i < wrong else answer
        return reference(texts=texts)

    @pytest.mark.parametrize(("wrong", "verdict"), [(0, "pass"), (5, "pass"), (6, "fail")])
    def test_one_beginning_is_equal(
        self, referred: Callable[[Reference], None], wrong: int, verdict: str
    ) -> None:
        """Quantizations part at near ties, so one answer has to begin alike; other weights' do not."""
        referred(self.golden(wrong))
        outcome = text.coherence(case_of(FakeTarget()))
        assert outcome.verdict == verdict and "equal to the reference (transformers 5)" in str(outcome.detail)

    def test_a_short_golden_text_is_equal_when_it_is_whole(
        self, referred: Callable[[Reference], None]
    ) -> None:
        """An answer of four characters cannot agree in more."""
        referred(reference(texts=dict.fromkeys(CHAT_PROMPTS, "Yes.")))
        assert text.coherence(case_of(saying("Yes."))).verdict == "pass"
        assert text.coherence(case_of(saying("Yet."))).verdict == "fail"


class TestChatTemplate:
    """What token counts and answers say of the template, on fakes."""

    def test_a_healthy_model_passes(self) -> None:
        """Each part is told of in words."""
        outcome = text.chat_template(case_of(FakeTarget()))
        assert outcome.verdict == "pass" and outcome.detail is not None
        for part in (
            "a turn of 5 tokens",
            "1, 3 and 5 turns",
            "system message adds",
            "order of turns counts",
        ):
            assert part in outcome.detail
        assert "'Say hello.' is answered and ended after 40 tokens" in outcome.detail

    def test_base_models_have_none(self) -> None:
        """A base model is not asked anything."""
        target = FakeTarget(registered=BASE)
        assert text.chat_template(case_of(target)).verdict == "skip" and target.asked == []

    def test_no_template(self) -> None:
        """A turn that is as long as its text has no template around it."""

        def bare(ask: Ask) -> Reply:
            joined = " ".join(turn["content"] for turn in ask.messages or ())
            return replace(healthy(ask), prompt_tokens=len((ask.prompt or joined).split()))

        self.fails(FakeTarget(bare), "No template is applied")

    def test_earlier_turns_are_lost(self) -> None:
        """A conversation that does not grow is only its last turn."""

        def last(ask: Ask) -> Reply:
            if ask.messages is None:
                return healthy(ask)
            system = [turn for turn in ask.messages if turn["role"] == "system"]
            return healthy(replace(ask, messages=[*system, ask.messages[-1]]))

        self.fails(FakeTarget(last), "Earlier turns do not reach the model")

    def test_system_messages_are_dropped(self) -> None:
        """A system message that adds no token was not read."""

        def drops(ask: Ask) -> Reply:
            kept = [turn for turn in ask.messages or () if turn["role"] != "system"]
            return healthy(replace(ask, messages=kept) if ask.messages is not None else ask)

        self.fails(FakeTarget(drops), "System messages are dropped")

    def test_system_messages_may_be_refused(self) -> None:
        """A template without system messages says so; any other error is a failure."""

        def refuses(code: str) -> Callable[[Ask], Reply]:
            def answer(ask: Ask) -> Reply:
                has_system = any(turn["role"] == "system" for turn in ask.messages or ())
                return refusal(code, "no system turn here")(ask) if has_system else healthy(ask)

            return answer

        outcome = text.chat_template(case_of(FakeTarget(refuses("invalid_value"))))
        assert outcome.verdict == "pass" and "refused: no system turn here" in str(outcome.detail)
        with pytest.raises(TargetError):
            text.chat_template(case_of(FakeTarget(refuses("backend_crashed"))))

    def test_turns_in_no_order(self) -> None:
        """A model that answers other questions in another way, but the same turns alike in any order."""

        def sorts(ask: Ask) -> Reply:
            if ask.messages is None:
                return healthy(ask)
            return healthy(replace(ask, messages=sorted(ask.messages, key=lambda turn: turn["content"])))

        self.fails(FakeTarget(sorts), "Turns reach the model in an order of their own")

    def test_same_words_with_other_probabilities_are_not_alike(self) -> None:
        """A short answer may be the same for another reason: its probabilities tell."""

        def sure(ask: Ask) -> Reply:
            odds = -0.01 * len((ask.messages or [{"content": ""}])[0]["content"])
            return replace(reply("Yes.", logprobs=[odds]), prompt_tokens=prompt_tokens(ask))

        assert "order of turns counts" in str(text.chat_template(case_of(FakeTarget(sure))).detail)

    def test_answers_that_never_end(self) -> None:
        """Good language to the last token, in every answer: the end of the turn is not heard."""
        self.fails(FakeTarget(lambda ask: healthy(ask, own_end=10_000)), "The end of the turn is not heard")

    @pytest.mark.parametrize("defect", SAYING)
    def test_texts_that_are_no_language_are_not_judged(self, defect: str) -> None:
        """Gibberish, loops and leaks are for the check of coherence, whether they end or not."""
        for reason in ("stop", "length"):

            def answer(ask: Ask, reason: str = reason) -> Reply:
                counted = prompt_tokens(ask)
                return reply(SAYING[defect], prompt_tokens=counted, finish_reason=reason)

            assert text.chat_template(case_of(FakeTarget(answer))).verdict == "pass"

    def fails(self, target: FakeTarget, why: str) -> None:
        """One part fails, with its diagnosis; coherence has nothing to say against the target."""
        outcome = text.chat_template(case_of(target))
        assert outcome.verdict == "fail" and str(outcome.diagnosis).startswith(why)
        assert text.coherence(case_of(target)).verdict == "pass"
