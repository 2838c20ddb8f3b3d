"""The benchmark and its prompts, on made-up replies whose every time is known, and on SmolLM2."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from inference.inference_engine import InferenceEngine
from phase3 import bench
from phase3.bench import CELL_S, Cell, Round, roofline_of, row_of, settled_rounds
from phase3.case import Case
from phase3.checks.speed import speed
from phase3.described import registered_of
from phase3.engine_target import EngineTarget
from phase3.http_target import HttpTarget
from phase3.measured import Ask
from phase3.plan import Plan
from phase3.prompts import PromptMaker
from phase3.target import Reply, Target, TargetError
from tests.daemon_process import MODEL, DaemonProcess
from tests.fake_target import ENVIRONMENT, REGISTERED, FakeTarget, case_of, refusal, reply

PLAN = Plan("full", ((16, 32), (64, 32)), (1, 2, 4), runs=5, generations=0, cycles=0)


def words(text: str) -> int:
    """A tokenizer: a word is a token, and a text begins with one more."""
    return 1 + len(text.split())


def answering(
    *, ttft_s: float = 0.2, itls_s: Iterator[float] | None = None, count: Callable[[str], int] = words
) -> Callable[[Ask], Reply]:
    """Answer with as many tokens as are asked for; each longer answer takes the next of *itls_s*."""
    itls_s = itls_s or itertools.repeat(0.01)

    def answer(ask: Ask) -> Reply:
        itl_s = next(itls_s) if ask.max_tokens > 1 else 0.01
        tokens = ["x"] * ask.max_tokens
        prompt_tokens = count(ask.prompt or "")
        return reply(
            "x" * ask.max_tokens, prompt_tokens=prompt_tokens, ttft_s=ttft_s, itl_s=itl_s, tokens=tokens
        )

    return answer


def benchmarked(target: FakeTarget) -> list[Ask]:
    """What was asked of *target*, but for the measuring of the prompts' pieces."""
    return [ask for ask in target.asked if ask.max_tokens > 1]


class TestPrompts:
    """Prompts of exact length."""

    @pytest.mark.parametrize("tokens", [8, 16, 33, 100, 512, 2048])
    def test_has_exactly_the_tokens(self, tokens: int) -> None:
        """Each of many prompts has the length that was asked for, and none is like another."""
        maker = PromptMaker(FakeTarget(answering()))
        prompts = [maker.make(tokens) for _ in range(40)]
        assert {(words(prompt.text), prompt.tokens) for prompt in prompts} == {(tokens, tokens)}
        assert len({prompt.text.split()[0] for prompt in prompts}) == 40

    def test_measuring_costs_little(self) -> None:
        """Forty prompts of 2048 tokens take less reading than two of them would."""
        target = FakeTarget(answering())
        maker = PromptMaker(target)
        for _ in range(40):
            maker.make(2048)
        assert sum(words(ask.prompt or "") for ask in target.asked) < 2 * 2048
        assert all(ask.max_tokens == 1 and not ask.cache_prompt for ask in target.asked)

    def test_odd_length_of_even_tokens_is_the_nearest_below(self) -> None:
        """Where each word is two tokens an odd rest cannot be filled, and the prompt says so."""
        maker = PromptMaker(FakeTarget(answering(count=lambda text: 2 * len(text.split()))))
        prompt = maker.make(33)
        assert prompt.tokens == 2 * len(prompt.text.split()) == 32
        assert not maker.correct(33, promised=prompt.tokens, counted=32)

    def test_words_of_many_tokens_are_made_to_fit(self) -> None:
        """Of a model that reads characters, words of two and three tokens fill every gap."""
        maker = PromptMaker(FakeTarget(answering(count=len)))
        prompts = [maker.make(tokens) for tokens in range(100, 140)]
        lengths = [(len(prompt.text), prompt.tokens) for prompt in prompts]
        assert lengths == [(tokens, tokens) for tokens in range(100, 140)]

    def test_pieces_may_be_longer_than_the_context(self) -> None:
        """A sentence that the context does not hold is no piece, and no failure; another refusal is one."""
        answer = answering(count=len)

        def small(ask: Ask) -> Reply:
            if len(ask.prompt or "") > 60:
                raise TargetError("too long", code="context_length_exceeded")
            return answer(ask)

        maker = PromptMaker(FakeTarget(small))
        assert {len(maker.make(50).text) for _ in range(40)} == {50}
        with pytest.raises(TargetError, match="refused"):
            PromptMaker(FakeTarget(refusal())).make(50)

    def test_learns_what_the_pieces_did_not_promise(self) -> None:
        """Where pieces cost less together than alone, the next prompt makes up for it."""

        def merging(text: str) -> int:
            return words(text) - text.count(". ")

        maker = PromptMaker(FakeTarget(answering(count=merging)))
        seen = []
        for _ in range(6):
            prompt = maker.make(200)
            seen.append(merging(prompt.text))
            maker.correct(200, promised=prompt.tokens, counted=seen[-1])
        assert seen[0] < 200 and abs(seen[-1] - 200) <= 2

    def test_gives_up_correcting(self) -> None:
        """A tokenizer that counts as it likes is corrected three times, not for ever."""
        maker = PromptMaker(FakeTarget(answering()))
        told = [maker.correct(16, promised=16, counted=16 + n % 2) for n in range(20)]
        assert sum(told) == 3


class TestRows:
    """What a row is made of."""

    def test_figures_are_those_worked_out_by_hand(self) -> None:
        """The definitions of facts/harness.md, sample by sample."""
        made = [
            reply("x" * 5, prompt_tokens=20, ttft_s=0.5, itl_s=itl_s, tokens="xxxxx") for itl_s in (0.1, 0.2)
        ]
        rounds = [Round((each,), each.total_s) for each in made]
        row = row_of(Cell(20, 5), rounds, 12.0)
        assert (row.prompt_tokens, row.output_tokens, row.concurrency) == (20, 5, 1)
        assert row.ttft_s.samples == (0.5, 0.5) and row.e2e_s.samples == pytest.approx((0.9, 1.3))
        assert row.itl_s and row.itl_s.samples == pytest.approx((0.1, 0.2))
        assert row.decode_tokens_per_s and row.decode_tokens_per_s.samples == pytest.approx((10.0, 5.0))
        assert row.prefill_tokens_per_s and row.prefill_tokens_per_s.samples == pytest.approx((40.0, 40.0))
        assert row.throughput_tokens_per_s
        assert row.throughput_tokens_per_s.samples == pytest.approx((5 / 0.9, 5 / 1.3))
        assert row.predicted_decode_tokens_per_s == 12.0

    def test_a_round_of_several_is_one_throughput(self) -> None:
        """All tokens of a round over its time; requests are pooled, and their waits are no prefill."""
        one = reply("xxxx", prompt_tokens=20, ttft_s=0.5, itl_s=0.1, tokens="xxxx")
        row = row_of(Cell(20, 4, 2), [Round((one, one), 1.0), Round((one, one), 2.0)], None)
        assert row.throughput_tokens_per_s and row.throughput_tokens_per_s.samples == (8.0, 4.0)
        assert row.ttft_s.n == 4 and row.prefill_tokens_per_s is None

    def test_one_piece_has_no_decode_speed(self) -> None:
        """An answer that comes at once has its times and no time between tokens."""
        lump = replace(reply("xxxx", ttft_s=0.5, tokens=["xxxx"]), completion_tokens=4)
        row = row_of(Cell(10, 4), [Round((lump,), 0.5)], None)
        assert (row.itl_s, row.decode_tokens_per_s, row.output_tokens) == (None, None, 4)

    def test_no_text_is_a_failure(self) -> None:
        """Nothing can be timed in an answer without text."""
        with pytest.raises(TargetError, match="no text"):
            row_of(Cell(10, 4), [Round((reply("", tokens=()),), 0.5)], None)


class Clockwork:
    """Makes rounds of these ITLs, the last of them over and over; eleven tokens take eleven times as long."""

    def __init__(self, *itls_s: float) -> None:
        self._itls_s = itertools.chain(itls_s, itertools.repeat(itls_s[-1]))
        self.made = 0

    def __call__(self) -> Round:
        """Make the next one."""
        itl_s = next(self._itls_s)
        self.made += 1
        answer = reply("x" * 11, ttft_s=itl_s, itl_s=itl_s, tokens="x" * 11)
        return Round((answer,), answer.total_s)


class TestRounds:
    """How many rounds there are, and which count."""

    def test_what_warms_up_does_not_count(self) -> None:
        """Rounds count once the last three ITLs agree within 5 %."""
        one = Clockwork(0.3, 0.2, 0.11, 0.104, 0.1)  # 0.11, 0.104, 0.1 do not; 0.104, 0.1, 0.1 do
        assert [each.pace_s for each in settled_rounds(one, 5)] == pytest.approx([0.1] * 5)
        assert one.made == 6 + 5

    def test_what_never_settles_is_counted_after_ten(self) -> None:
        """A noisy machine gets ten rounds to warm up and is then measured as it is."""
        one = Clockwork(*[0.1, 0.2] * 50)
        assert len(settled_rounds(one, 5)) == 5 and one.made == 10 + 5

    def test_a_slow_cell_is_cut_to_three(self) -> None:
        """Where one request takes most of a cell's time, one warms up and three count."""
        one = Clockwork(0.9 * CELL_S / 11)
        assert len(settled_rounds(one, 5)) == 3 and one.made == 1 + 3

    def test_time_left_is_used(self) -> None:
        """A cell is cut where its time ends and not before: three to warm up, four of five counted."""
        one = Clockwork(CELL_S / 7.5 / 11)
        assert len(settled_rounds(one, 5)) == 4 and one.made == 3 + 4

    def test_no_more_are_counted_than_are_wanted(self) -> None:
        """A plan of two runs gets two."""
        assert len(settled_rounds(Clockwork(0.1), 2)) == 2


class TestRun:
    """The whole benchmark on a fake target."""

    def test_measures_the_grid_and_then_several_at_once(self) -> None:
        """Each pair has a row, then each number of requests on the first pair; lengths are exact."""
        target = FakeTarget(answering())
        case = case_of(target, PLAN)
        bench.run(case)
        assert [(row.prompt_tokens, row.output_tokens, row.concurrency) for row in case.rows] == [
            (16, 32, 1),
            (64, 32, 1),
            (16, 32, 2),
            (16, 32, 4),
        ]
        assert [row.ttft_s.n for row in case.rows] == [5, 5, 10, 20]
        assert [row.predicted_decode_tokens_per_s for row in case.rows] == [100.0, 100.0, None, None]
        one, _, two, four = (row.throughput_tokens_per_s for row in case.rows)
        assert one and two and four
        assert one.median == pytest.approx(32 / 0.51)
        assert two.median == pytest.approx(64 / 0.51, rel=0.1)
        assert four.median == pytest.approx(128 / 0.51, rel=0.1)

    def test_asks_as_the_definition_says(self) -> None:
        """Greedy, without a cache, past the end of the text, streamed, raw; no first word twice in a row."""
        target = FakeTarget(answering())
        bench.run(case_of(target, PLAN))
        asked = benchmarked(target)
        assert {(a.temperature, a.cache_prompt, a.ignore_eos, a.stream, a.messages) for a in asked} == {
            (0.0, False, True, True, None)
        }
        assert max(Counter((ask.prompt or "").split()[0] for ask in asked).values()) == 1

    def test_leaves_out_what_the_context_has_no_room_for(self) -> None:
        """A pair whose sum is the context is measured, one token more is not."""
        target = FakeTarget(answering(), environment=replace(ENVIRONMENT, context_tokens=96))
        case = case_of(target, replace(PLAN, grid=((16, 32), (64, 32), (65, 32)), concurrency=(1,)))
        bench.run(case)
        assert [row.prompt_tokens for row in case.rows] == [16, 64]

    @pytest.mark.parametrize(("context_tokens", "lengths"), [(40, [(16, 24)]), (32, [(16, 16)]), (31, [])])
    def test_a_tiny_context_gets_less_output(
        self, context_tokens: int, lengths: list[tuple[int, int]]
    ) -> None:
        """Where no pair fits the first one is cut to what does, as long as that is worth measuring."""
        target = FakeTarget(answering(), environment=replace(ENVIRONMENT, context_tokens=context_tokens))
        case = case_of(target, replace(PLAN, concurrency=(1,)))
        bench.run(case)
        assert [(row.prompt_tokens, row.output_tokens) for row in case.rows] == lengths

    def test_a_cache_that_was_forbidden_is_a_failure(self) -> None:
        """Tokens that were not computed make every prefill figure false."""
        answer = answering()
        target = FakeTarget(lambda ask: replace(answer(ask), cached_tokens=8))
        with pytest.raises(TargetError, match="8 of 16 prompt tokens came from a cache"):
            bench.run(case_of(target, PLAN))

    def test_a_prompt_of_another_length_is_not_counted(self) -> None:
        """A reply that counted other tokens than promised is asked again; the row has the true length."""

        def merging(text: str) -> int:
            return words(text) - (len(text.split()) >= 40)

        target = FakeTarget(answering(count=merging))
        case = case_of(target, replace(PLAN, grid=((64, 32),), concurrency=(1,)))
        bench.run(case)
        assert case.rows[0].prompt_tokens == 64
        assert [merging(ask.prompt or "") for ask in benchmarked(target)] == [63] + [64] * 8

    def test_several_requests_that_fail_leave_their_row_out(self) -> None:
        """Whether several may be refused is judged elsewhere; one that fails alone is a failure."""
        several = iter([False] * 8 + [True] * 99)
        answer = answering()

        def busy(ask: Ask) -> Reply:
            if ask.max_tokens > 1 and next(several):
                raise TargetError("too many", code="backend_crashed")
            return answer(ask)

        case = case_of(FakeTarget(busy), replace(PLAN, grid=((16, 32),), concurrency=(1, 2)))
        bench.run(case)
        assert [row.concurrency for row in case.rows] == [1]
        with pytest.raises(TargetError, match="too many"):
            bench.run(case)

    def test_progress_rises_to_the_end(self) -> None:
        """The part that is done only grows, and ends at 1."""
        seen: list[float] = []
        case = case_of(FakeTarget(answering()), PLAN)
        case.progress = seen.append
        bench.run(case)
        assert seen == sorted(seen) and 0 < seen[0] < 0.1 and seen[-1] == 1.0


def test_what_is_compared_with_is_predicted_and_not_measured() -> None:
    """Once there is evidence the selector goes by it; the harness still compares with the formula."""
    candidate = {
        "verdict": "chosen",
        "tokens_per_s": 20.0,
        "tokens_per_s_source": "measured",
        "predicted_tokens_per_s": 50.0,
        "bytes_per_token": 10**8,
        "flop_per_token": 2 * 10**8,
    }
    told = registered_of({}, {"tokens_per_s": 20.0, "candidates": [candidate]})
    assert (told.predicted_decode_tokens_per_s, told.predicted_source) == (50.0, "measured")
    assert (told.bytes_per_token, told.flop_per_token) == (10**8, 2 * 10**8)


class TestRoofline:
    """What bounds decode."""

    SIZED = replace(REGISTERED, bytes_per_token=100e6, flop_per_token=270e6)

    def test_is_the_boards_bandwidth(self) -> None:
        """A board has a published bandwidth, which follows its power mode."""
        nano = replace(ENVIRONMENT, board="orin-nano-8gb", power_mode="15W")
        roof = roofline_of(replace(nano, memory_bandwidth_bytes_per_s=68e9), self.SIZED)
        assert roof and (roof.bandwidth_bytes_per_s, roof.bytes_per_token) == (68e9, 100e6)
        assert roof.source == "published for orin-nano-8gb in power mode 15W"

    def test_is_what_the_prediction_counts_on_elsewhere(self) -> None:
        """Without one it is the rate that makes the prediction, and its source says that it is no limit."""
        roof = roofline_of(ENVIRONMENT, self.SIZED)
        assert roof and roof.bandwidth_bytes_per_s == pytest.approx(100.0 * 100e6)
        assert roof.source and "not published" in roof.source and "2 cores" in roof.source

    @pytest.mark.parametrize(
        "unknown", ["bytes_per_token", "flop_per_token", "predicted_decode_tokens_per_s"]
    )
    def test_is_left_out_where_a_number_is_missing(self, unknown: str) -> None:
        """No roof is better than a made-up one."""
        assert roofline_of(ENVIRONMENT, replace(self.SIZED, **{unknown: None})) is None


@pytest.fixture(scope="module", params=["engine", "daemon"])
def target(
    request: pytest.FixtureRequest, smollm2_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Target]:
    """SmolLM2 in this process, and behind a daemon."""
    state = tmp_path_factory.mktemp(request.param)
    settings: dict[str, Any] = {"context_tokens": 256, "keep_alive_s": -1}
    if request.param == "engine":
        with InferenceEngine(state_dir=state, **settings) as engine:
            yield _loaded(EngineTarget(engine, MODEL))
    else:
        with DaemonProcess(state, **settings) as daemon:
            yield _loaded(HttpTarget(daemon.url, MODEL))


def _loaded(target: Target) -> Target:
    target.load()
    target.environment()  # starts the thread that reads the gauges
    return target


@pytest.mark.harness
class TestSmolLM2:
    """A real model, both ways."""

    def test_prompts_are_exact(self, target: Target) -> None:
        """The model's own tokenizer counts what was asked for, every time, and caches nothing."""
        maker = PromptMaker(target)
        for tokens in (16, 33, 150):
            prompts = [maker.make(tokens) for _ in range(2)]
            replies = [target.generate(prompt=each.text, max_tokens=1) for each in prompts]
            assert [(each.prompt_tokens, each.cached_tokens) for each in replies] == [(tokens, 0)] * 2

    def test_measures_a_small_grid(self, target: Target, smollm2_path: Path) -> None:
        """Rows are whole and their figures agree with each other; there is a roofline."""
        plan = Plan("quick", ((16, 8), (40, 4), (250, 8)), (1, 2), runs=3, generations=0, cycles=0)
        environment = target.environment()
        case = Case(target, plan, before=environment, loaded=environment)
        outcome = speed(case)
        lengths = [(row.prompt_tokens, row.output_tokens, row.concurrency) for row in case.rows]
        assert lengths == [(16, 8, 1), (40, 4, 1), (16, 8, 2)]
        assert [row.ttft_s.n for row in case.rows] == [3, 3, 6]
        for row in case.rows:
            assert row.itl_s and row.decode_tokens_per_s and row.throughput_tokens_per_s
            assert row.ttft_s.min > 0 and row.ttft_s.max < row.e2e_s.max
        one, two = case.rows[0], case.rows[2]
        assert one.predicted_decode_tokens_per_s and two.predicted_decode_tokens_per_s is None
        assert one.decode_tokens_per_s and outcome.value == one.decode_tokens_per_s.median
        assert case.roofline and case.roofline.flop_per_token == 2 * 135e6
        assert case.roofline.bytes_per_token == smollm2_path.stat().st_size
