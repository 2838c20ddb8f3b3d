"""The slots' checks: what is left is free again, and what runs side by side stays apart."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from phase3.checks import slots
from phase3.data import fixed
from phase3.measured import Ask
from phase3.plan import FULL, QUICK, Plan
from phase3.target import Reply, TargetError
from tests.fake_target import ENVIRONMENT, REGISTERED, FakeTarget, case_of, healthy

PLANS = pytest.mark.parametrize("plan", [QUICK, FULL], ids=["quick", "full"])
BASE = replace(REGISTERED, is_chat=False)


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("at-once")]


class TestCancel:
    """Left generations."""

    @PLANS
    def test_reports_the_longest(self, plan: Plan) -> None:
        """The value is the worst of all, and a normal request follows."""
        took_s = iter([0.02, 0.4, 0.03, 0.01, 0.02, 0.02, 0.05])
        target = FakeTarget(cancel=lambda _chunks, _ask: next(took_s))
        outcome = slots.cancel(case_of(target, plan))
        assert (outcome.verdict, outcome.value, outcome.limit) == ("pass", 0.4, 1.0)
        assert target.events[-1] == "generate"

    def test_leaves_early_and_later_and_after_a_long_prompt(self) -> None:
        """After one piece and after three; each with all the room that the context has."""
        left: list[tuple[int, Ask]] = []

        def cancel(chunks: int, ask: Ask) -> float:
            left.append((chunks, ask))
            return 0.01

        slots.cancel(case_of(FakeTarget(cancel=cancel), FULL))
        words = [len((ask.prompt or "").split()) for _, ask in left]
        assert [chunks for chunks, _ in left] == [1, 3, 1, 3, 1, 3, 1]
        assert max(words[:-1]) < 10 < words[-1] <= 1024 // 4
        assert all(
            ask.ignore_eos and ask.max_tokens == 1024 - n - 1 for (_, ask), n in zip(left, words, strict=True)
        )

    def test_a_slot_that_is_freed_late_fails(self) -> None:
        """More than a second is too long when it takes that each time; nothing more is asked then."""
        target = FakeTarget(cancel=lambda _chunks, _ask: 1.5)
        outcome = slots.cancel(case_of(target, FULL))
        assert (outcome.verdict, outcome.value) == ("fail", 1.5)
        assert target.events.count("cancel_after") == 2 and "engine" in str(outcome.diagnosis)

    def test_late_once_is_the_machines(self) -> None:
        """What is late once and not again is no defect of the engine."""
        took_s = iter([0.01, 1.5, 0.2, 0.01])
        outcome = slots.cancel(case_of(FakeTarget(cancel=lambda _chunks, _ask: next(took_s))))
        assert (outcome.verdict, outcome.value) == ("pass", 0.2)

    def test_late_only_after_a_long_prompt_fails(self) -> None:
        """The long prompt is a case of its own."""
        outcome = slots.cancel(
            case_of(FakeTarget(cancel=lambda _, ask: 3.0 if len(ask.prompt or "") > 100 else 0.1))
        )
        assert (outcome.verdict, outcome.value) == ("fail", 3.0)

    @pytest.mark.parametrize("before", [0, 1, 2])
    def test_a_slot_that_never_frees_fails(self, before: int) -> None:
        """No answer is the worst answer, and no other slot is spent on it."""
        took_s = iter([*[0.01] * before, None])
        outcome = slots.cancel(case_of(FakeTarget(cancel=lambda _chunks, _ask: next(took_s))))
        assert outcome.verdict == "fail" and "never free" in str(outcome.detail)

    def test_a_slot_that_does_not_serve_again_fails(self) -> None:
        """A slot that is free and dead is the target's error."""
        left: list[int] = []

        def answer(ask: Ask) -> Reply:
            if len(left) == 3:
                raise TargetError("worker was killed", code="backend_crashed")
            return healthy(ask)

        def cancel(chunks: int, _: Ask) -> float:
            left.append(chunks)
            return 0.01

        with pytest.raises(TargetError, match="killed"):
            slots.cancel(case_of(FakeTarget(answer, cancel=cancel)))

    def test_needs_text_in_pieces(self) -> None:
        """Where no text comes in pieces, nothing can be left in its middle."""
        lumps = FakeTarget(lambda ask: replace(healthy(ask), arrivals_s=(0.1,)))
        assert slots.cancel(case_of(lumps)).verdict == "skip"

    def test_asks_what_answers_in_pieces(self) -> None:
        """A prompt without text of its own is left out."""
        silent = fixed.prompts().base[0]

        def answer(ask: Ask) -> Reply:
            return replace(healthy(ask), text="", arrivals_s=()) if ask.prompt == silent else healthy(ask)

        used: list[str | None] = []

        def cancel(_: int, ask: Ask) -> float:
            used.append(ask.prompt)
            return 0.01

        assert slots.cancel(case_of(FakeTarget(answer, cancel=cancel))).verdict == "pass"
        assert used[0] == fixed.prompts().base[1]


def _is_one_of_many() -> bool:
    return threading.current_thread().name.startswith("at-once")


def _together(change: Callable[[Ask], Reply]) -> Callable[[Ask], Reply]:
    """Answer as *change* does when several ask at once, else as a good model does."""
    return lambda ask: change(ask) if _is_one_of_many() else healthy(ask)


def _number(ask: Ask) -> int:
    """Which of the check's prompts it is."""
    asked = ask.prompt if ask.prompt is not None else (ask.messages or ())[-1]["content"]
    return [*fixed.prompts().chat, *fixed.prompts().base].index(asked)


def _other(ask: Ask, distance: int = 1) -> Ask:
    texts = fixed.prompts().chat
    text = texts[(_number(ask) + distance) % 2]
    return replace(ask, messages=({"role": "user", "content": text},))


def _woven(ask: Ask) -> Reply:
    """Every second word is the neighbour's."""
    mine, theirs = healthy(ask), healthy(_other(ask)).text.split()
    words = [theirs[i] if i % 2 else word for i, word in enumerate(mine.text.split())]
    return replace(mine, text=" ".join(["", *words]))


def _half(ask: Ask) -> Reply:
    """From its third part on, it is the neighbour's."""
    mine, theirs = healthy(ask).text, healthy(_other(ask)).text
    return replace(healthy(ask), text=mine[: len(mine) // 3] + theirs[len(mine) // 3 :])


def _fail(_: Ask) -> Reply:
    raise TargetError("1 requests are waiting; at most 0 may", code="queue_full")


def _near_tie(ask: Ask) -> Reply:
    """From its third word on, it is another text that nobody else has."""
    made = healthy(ask)
    words = made.text.split(" ")
    rest = [f"w{_number(ask)}.{i}" for i in range(len(words) - 3)]
    return replace(made, text=" ".join([*words[:3], *rest]))


class TestConcurrency:
    """Several at once."""

    @PLANS
    @pytest.mark.parametrize("registered", [REGISTERED, BASE], ids=["chat", "base"])
    def test_all_levels_whole_pass(self, plan: Plan, registered: object) -> None:
        """The value is the largest number of the plan."""
        target = FakeTarget(registered=registered)  # type: ignore[arg-type]
        outcome = slots.concurrency(case_of(target, plan))
        most = plan.concurrency[-1]
        assert (outcome.verdict, outcome.value, outcome.limit) == ("pass", most, most)
        assert f"0 of {sum(plan.concurrency)} answers differ" in str(outcome.detail)

    def test_they_are_asked_at_the_same_time(self) -> None:
        """As many as the level says are under way together, with different prompts."""
        meeting = {n: threading.Barrier(n) for n in FULL.concurrency}
        level: list[int] = []

        def answer(ask: Ask) -> Reply:
            if _is_one_of_many():
                meeting[level[0]].wait(10)
            return healthy(ask)

        target = FakeTarget(answer)
        for number in FULL.concurrency:
            level[:] = [number]
            case = case_of(target, replace(FULL, concurrency=(number,)))
            assert slots.concurrency(case).verdict == "pass"
            assert len({str(ask) for ask in target.asked[-number:]}) == number

    def test_more_than_the_prompts_are_different_too(self) -> None:
        """Every request has a prompt of its own, also where there are more than the fixed ones."""
        target = FakeTarget()
        assert slots.concurrency(case_of(target, replace(QUICK, concurrency=(30,)))).value == 30
        assert len({str(ask) for ask in target.asked}) == 30

    @pytest.mark.parametrize("level", [2, 4, 8])
    def test_a_refusal_is_a_failure(self, level: int) -> None:
        """Beyond the slots requests wait; one that is refused ends the count at the level before."""
        outcome = slots.concurrency(
            case_of(
                FakeTarget(_together(lambda ask: _fail(ask) if _number(ask) == level - 1 else healthy(ask))),
                FULL,
            )
        )
        assert (outcome.verdict, outcome.value, outcome.limit) == ("fail", level // 2, 8)
        assert f"of {level} at once number {level} failed: 1 requests are waiting" in str(outcome.detail)

    @pytest.mark.parametrize(
        "change",
        [
            lambda made: replace(made, completion_tokens=made.completion_tokens - 1),
            lambda made: replace(made, prompt_tokens=made.prompt_tokens + 1),
            lambda made: replace(made, text=""),
        ],
        ids=["shorter", "other prompt", "no text"],
    )
    def test_other_counts_than_alone_fail(self, change: Callable[[Reply], Reply]) -> None:
        """Each answer is as long as the same one alone."""
        outcome = slots.concurrency(case_of(FakeTarget(_together(lambda ask: change(healthy(ask))))))
        assert (outcome.verdict, outcome.value) == ("fail", 0) and "and alone" in str(outcome.detail)

    @pytest.mark.parametrize(
        "mix", [lambda ask: healthy(_other(ask)), _woven, _half], ids=["swap", "weave", "half"]
    )
    def test_anothers_text_fails(self, mix: Callable[[Ask], Reply]) -> None:
        """A text of another prompt, whole, from some place on, or word by word, is a mixed slot."""

        def mixed(ask: Ask) -> Reply:
            return replace(mix(ask), prompt_tokens=healthy(ask).prompt_tokens)

        outcome = slots.concurrency(case_of(FakeTarget(_together(mixed))))
        assert outcome.verdict == "fail" and "another's" in str(outcome.detail), outcome

    def test_near_ties_are_no_mix(self) -> None:
        """A batch of another size may go another way; that is told, and is no failure."""
        outcome = slots.concurrency(case_of(FakeTarget(_together(_near_tie)), FULL))
        assert outcome.verdict == "pass" and "15 of 15 answers differ" in str(outcome.detail)

    def test_one_text_for_all_is_judged_by_its_length(self) -> None:
        """Where every prompt has the same answer, mixing cannot be seen, and that is said."""
        outcome = slots.concurrency(case_of(FakeTarget(lambda ask: replace(healthy(ask), text=" bing" * 24))))
        assert outcome.verdict == "pass" and "texts are not compared" in str(outcome.detail)

    def test_a_wavering_model_is_judged_by_its_length(self) -> None:
        """A model whose answers vary alone, too, is not accused of mixing them."""
        asked: list[Ask] = []

        def answer(ask: Ask) -> Reply:
            asked.append(ask)
            made = healthy(_other(ask) if len(asked) > 2 and len(asked) % 2 else ask)
            return replace(made, prompt_tokens=healthy(ask).prompt_tokens)

        outcome = slots.concurrency(case_of(FakeTarget(answer)))
        assert outcome.verdict == "pass" and "texts are not compared" in str(outcome.detail)

    def test_what_is_no_error_of_the_target_is_raised(self) -> None:
        """A defect of the harness is not taken for one of the model, and no thread stays behind."""

        def broken(_: Ask) -> Reply:
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            slots.concurrency(case_of(FakeTarget(_together(broken))))

    def test_one_slot_serves_all(self) -> None:
        """The check asks as many at once of a single slot: they wait."""
        turn = threading.Lock()

        def answer(ask: Ask) -> Reply:
            with turn:
                return healthy(ask)

        target = FakeTarget(answer, environment=replace(ENVIRONMENT, slots=1))
        assert slots.concurrency(case_of(target, FULL)).value == 8
