"""The benchmark: the plan's grid one request at a time, then several requests at once, as rows.

Prefill is bound by arithmetic and decode by memory: each token reads all weights again. So the two are
measured apart, and beside the decode speed stands the one that bandwidth and weights predict.
"""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Barrier

from phase3 import stats
from phase3.case import Case
from phase3.prompts import PromptMaker
from phase3.result import Measured, Roofline, Row, measured
from phase3.target import Environment, Registered, Reply, Target, TargetError

CELL_S = 120.0
"""A cell that would take longer is cut: fewer rounds to warm up, then fewer counted ones."""

LEAST_RUNS = 3
MOST_WARM_UPS = 10
LEAST_OUTPUT_TOKENS = 16

_START_S = 60.0


@dataclass(frozen=True)
class Round:
    """Requests that were sent together, and the seconds from the first sending to the last end."""

    replies: tuple[Reply, ...]
    seconds: float

    @property
    def pace_s(self) -> float:
        """What has to settle before anything counts: the median ITL, or the time where there is none."""
        itls_s = [reply.itl_s for reply in self.replies if reply.itl_s]
        return stats.median(itls_s) if itls_s else self.seconds

    @property
    def tokens_per_s(self) -> float:
        """All output tokens over the time of the round."""
        return sum(reply.completion_tokens for reply in self.replies) / self.seconds


@dataclass(frozen=True)
class Cell:
    """What one row measures."""

    prompt_tokens: int
    output_tokens: int
    concurrency: int = 1


def run(case: Case) -> None:
    """Measure every cell that the context allows; fill ``case.rows`` and ``case.roofline``.

    Raises:
        TargetError: the model fails, gives no text, or takes tokens from a cache unasked.
    """
    environment = case.loaded or case.target.environment()
    registered = case.target.registered()
    cells = list(_cells(case, environment.context_tokens))
    maker = PromptMaker(case.target)
    for done, cell in enumerate(cells):
        rounds = _rounds(case, cell, maker, _part(case, done, len(cells)))
        if rounds:
            predicted = registered.predicted_decode_tokens_per_s if cell.concurrency == 1 else None
            case.rows.append(row_of(cell, rounds, predicted))
    case.progress(1.0)
    case.roofline = roofline_of(environment, registered)


def row_of(cell: Cell, rounds: Sequence[Round], predicted_tokens_per_s: float | None) -> Row:
    """Pool the samples of all requests of *rounds*; lengths are what the target counted.

    How long a request of several waited for its slot nobody tells, so those have no prefill speed.
    """
    replies = [reply for each in rounds for reply in each.replies]
    ttft_s = _measured(reply.ttft_s for reply in replies)
    if ttft_s is None:
        raise TargetError(f"no text at all in {cell.output_tokens} tokens", hint="see the coherence check")
    alone = cell.concurrency == 1
    return Row(
        prompt_tokens=_usual(reply.prompt_tokens for reply in replies),
        output_tokens=_usual(reply.completion_tokens for reply in replies),
        concurrency=cell.concurrency,
        ttft_s=ttft_s,
        e2e_s=measured([reply.total_s for reply in replies]),
        itl_s=_measured(reply.itl_s for reply in replies),
        prefill_tokens_per_s=_measured(reply.prefill_tokens_per_s() for reply in replies) if alone else None,
        decode_tokens_per_s=_measured(reply.decode_tokens_per_s for reply in replies),
        predicted_decode_tokens_per_s=predicted_tokens_per_s,
        throughput_tokens_per_s=measured([each.tokens_per_s for each in rounds]),
    )


def roofline_of(environment: Environment, registered: Registered) -> Roofline | None:
    """Say what bounds decode here: the board's bandwidth, or else the rate that the prediction counts on."""
    read, flop = registered.bytes_per_token, registered.flop_per_token
    if not read or not flop:
        return None
    if environment.memory_bandwidth_bytes_per_s:
        source = f"published for {environment.board or 'this board'}"
        if environment.power_mode:
            source += f" in power mode {environment.power_mode}"
        return Roofline(environment.memory_bandwidth_bytes_per_s, read, flop, source=source)
    predicted = registered.predicted_decode_tokens_per_s
    if not predicted:
        return None
    cores = f"{environment.cpu_cores} cores" if environment.cpu_cores else "this processor"
    source = f"not published: what the prediction expects {cores} to read, and no hard limit"
    return Roofline(predicted * read, read, flop, source=source)


def _cells(case: Case, context_tokens: int | None) -> Iterable[Cell]:
    pairs = _fitting(case.plan.grid, context_tokens)
    yield from itertools.starmap(Cell, pairs)
    if pairs:
        yield from (Cell(*pairs[0], several) for several in case.plan.concurrency if several > 1)


def _fitting(grid: Sequence[tuple[int, int]], context_tokens: int | None) -> list[tuple[int, int]]:
    """The pairs that the context has room for; if it has for none, the first one with less output."""
    if context_tokens is None:
        return list(grid)
    fitting = [pair for pair in grid if sum(pair) <= context_tokens]
    if fitting or not grid:
        return fitting
    prompt_tokens = grid[0][0]
    room = context_tokens - prompt_tokens
    return [(prompt_tokens, room)] if room >= LEAST_OUTPUT_TOKENS else []


def _rounds(
    case: Case, cell: Cell, maker: PromptMaker, progress: Callable[[float], None]
) -> tuple[Round, ...]:
    """Warm up, then return the counted rounds.

    None where several requests at once fail: whether they may is the concurrency check's to judge.
    """
    expected = case.plan.runs + LEAST_RUNS
    ticks = itertools.count(1)

    def one() -> Round:
        made = _round(case.target, cell, maker)
        progress(next(ticks) / expected)
        return made

    try:
        return settled_rounds(one, case.plan.runs)
    except TargetError:
        if cell.concurrency > 1:
            return ()
        raise


def settled_rounds(one: Callable[[], Round], runs: int) -> tuple[Round, ...]:
    """Repeat *one* until its pace has settled, and return the *runs* after that, within `CELL_S`.

    At least `LEAST_RUNS` are counted, or as many as are wanted, however long they take.
    """
    least = min(LEAST_RUNS, runs)
    warm = [one()]
    spent_s = warm[0].seconds

    def is_time_for(rounds: int, last: Round) -> bool:
        return spent_s + rounds * last.seconds <= CELL_S

    while (
        not stats.stable([each.pace_s for each in warm])
        and len(warm) < MOST_WARM_UPS
        and is_time_for(1 + least, warm[-1])
    ):
        warm.append(one())
        spent_s += warm[-1].seconds
    counted: list[Round] = []
    while len(counted) < runs and (len(counted) < least or is_time_for(1, counted[-1])):
        counted.append(one())
        spent_s += counted[-1].seconds
    return tuple(counted)


def _round(target: Target, cell: Cell, maker: PromptMaker) -> Round:
    """Send a round; one whose prompts had another length than their pieces promised is sent anew."""
    while True:
        prompts = [maker.make(cell.prompt_tokens) for _ in range(cell.concurrency)]
        made = _sent(target, [prompt.text for prompt in prompts], cell.output_tokens)
        counted = [reply.prompt_tokens for reply in made.replies]
        if not any(
            maker.correct(cell.prompt_tokens, promised=prompt.tokens, counted=tokens)
            for prompt, tokens in zip(prompts, counted, strict=True)
        ):
            return made


def _sent(target: Target, prompts: Sequence[str], output_tokens: int) -> Round:
    """Send all at once and wait for every one."""
    barrier = Barrier(len(prompts))

    def one(prompt: str) -> tuple[float, Reply]:
        barrier.wait(_START_S)
        started_s = time.monotonic()
        reply = target.generate(prompt=prompt, max_tokens=output_tokens, ignore_eos=True)
        return started_s, reply

    with ThreadPoolExecutor(len(prompts), "benchmark") as pool:
        answers = list(pool.map(one, prompts))
    for _, reply in answers:
        if reply.cached_tokens:
            raise TargetError(
                f"{reply.cached_tokens} of {reply.prompt_tokens} prompt tokens came from a cache, "
                "although the request forbade it",
                hint="the backend must honour cache_prompt: no time to first token is true otherwise",
            )
    begun_s = min(started_s for started_s, _ in answers)
    ended_s = max(started_s + reply.total_s for started_s, reply in answers)
    return Round(tuple(reply for _, reply in answers), ended_s - begun_s)


def _part(case: Case, done: int, cells: int) -> Callable[[float], None]:
    """Return what tells the case of progress within cell number *done* of *cells*."""
    return lambda part: case.progress((done + min(1.0, part)) / cells)


def _measured(samples: Iterable[float | None]) -> Measured | None:
    known = [sample for sample in samples if sample is not None]
    return measured(known) if known else None


def _usual(counts: Iterable[int]) -> int:
    return Counter(counts).most_common(1)[0][0]
