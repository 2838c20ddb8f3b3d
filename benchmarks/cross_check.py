"""The harness against an independent client: decode tokens/s and time to first token of one daemon.

    python -m benchmarks.cross_check

Both measure the same SmolLM2 behind the same daemon, request by request in turns and each first in every
other pair, so that a slow minute hits both. The other client is the openai package with a stopwatch of
its own; the harness's is `phase3.http_target`. Nobody's clock is right by decree: they must agree within
5 %, with all of the 95 % interval of the median of the pairs' ratios.
"""

from __future__ import annotations

import itertools
import math
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import openai

from phase3.http_target import HttpTarget
from phase3.prompts import PromptMaker
from phase3.stats import median
from tests.daemon_process import MODEL, DaemonProcess

WARM_UP_PAIRS = 2
WITHIN, CONFIDENCE = 0.05, 0.95


class Seen(NamedTuple):
    """What a client measured of one request."""

    decode_tokens_per_s: float
    ttft_s: float


class Cell(NamedTuple):
    """One figure at one pair of lengths; a first token varies more than the mean of many, and costs less."""

    figure: str
    prompt_tokens: int
    tokens: int
    pairs: int


CELLS = (
    Cell("decode", 16, 64, 61),
    Cell("decode", 256, 32, 61),
    Cell("TTFT", 16, 4, 401),
    Cell("TTFT", 256, 4, 151),
)
FIGURES = {"decode": (0, "tokens/s", 1), "TTFT": (1, "ms", 1000)}
APART = "**apart**"
Client = Callable[[str, int], Seen]


def main() -> None:
    """Print the table for docs/bench-log.md; exit with 1 if the two disagree for certain."""
    version = openai.__version__
    print(f"| in, out | figure | harness | openai {version} | harness / openai (95 %) | pairs | verdict |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    with (
        tempfile.TemporaryDirectory() as directory,
        DaemonProcess(Path(directory), "--preload", MODEL, keep_alive_s=-1) as daemon,
        openai.OpenAI(base_url=f"{daemon.url}/v1", api_key="none", max_retries=0) as client,
    ):
        target = HttpTarget(daemon.url, MODEL)
        target.load()
        maker = PromptMaker(target)
        agreed = [_agree(cell, maker, _harness(target), _independent(client)) for cell in CELLS]
    sys.exit(0 if all(agreed) else 1)


def _agree(cell: Cell, maker: PromptMaker, harness: Client, other: Client) -> bool:
    """Measure the pairs of a cell, print its row, and return whether the two may agree."""
    pairs = []
    for turn in range(WARM_UP_PAIRS + cell.pairs):
        asked = [maker.make(cell.prompt_tokens).text for _ in range(2)]
        if turn % 2:
            second, first = other(asked[1], cell.tokens), harness(asked[0], cell.tokens)
        else:
            first, second = harness(asked[0], cell.tokens), other(asked[1], cell.tokens)
        if turn >= WARM_UP_PAIRS:
            pairs.append((first, second))
    index, unit, scale = FIGURES[cell.figure]
    medians = [f"{median([pair[side][index] for pair in pairs]) * scale:.1f} {unit}" for side in (0, 1)]
    ratios = sorted(ours[index] / theirs[index] for ours, theirs in pairs)
    low, high = _interval(ratios)
    verdict = _verdict(low, high)
    row = (
        f"{cell.prompt_tokens}, {cell.tokens}",
        cell.figure,
        *medians,
        f"{median(ratios):.3f} ({low:.3f} to {high:.3f})",
        str(len(pairs)),
        verdict,
    )
    print(f"| {' | '.join(row)} |", flush=True)
    return verdict != APART


def _interval(ordered: list[float]) -> tuple[float, float]:
    """Where the median of such ratios lies, whatever their distribution: ranks of the sign test."""
    n = len(ordered)
    tails = itertools.accumulate(math.comb(n, k) / 2**n for k in range(n))
    beyond = sum(tail <= (1 - CONFIDENCE) / 2 for tail in tails)
    return ordered[beyond - 1], ordered[-beyond]


def _verdict(low: float, high: float) -> str:
    if low >= 1 - WITHIN and high <= 1 + WITHIN:
        return f"within {WITHIN:.0%}"
    return APART if high < 1 - WITHIN or low > 1 + WITHIN else "cannot tell: too noisy"


def _harness(target: HttpTarget) -> Client:
    def measure(prompt: str, tokens: int) -> Seen:
        reply = target.generate(prompt=prompt, max_tokens=tokens, ignore_eos=True)
        assert reply.decode_tokens_per_s is not None and reply.ttft_s is not None
        return Seen(reply.decode_tokens_per_s, reply.ttft_s)

    return measure


def _independent(client: openai.OpenAI) -> Client:
    def measure(prompt: str, tokens: int) -> Seen:
        arrivals_s, counted = [], 0
        started_s = time.perf_counter()
        stream = client.completions.create(
            model=MODEL,
            prompt=prompt,
            max_tokens=tokens,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"ignore_eos": True, "cache_prompt": False},
        )
        for chunk in stream:
            if chunk.choices and chunk.choices[0].text:
                arrivals_s.append(time.perf_counter())
            if chunk.usage is not None:
                counted = chunk.usage.completion_tokens
        assert counted == tokens
        return Seen((counted - 1) / (arrivals_s[-1] - arrivals_s[0]), arrivals_s[0] - started_s)

    return measure


if __name__ == "__main__":
    main()
