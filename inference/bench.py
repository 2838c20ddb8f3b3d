"""The bench: a short run against a loaded model, measured as its client would, beside what was predicted.

It shows where this machine stands at this moment; the proof of a model is the harness (phase3).
"""

from __future__ import annotations

import random
import statistics
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from inference.errors import InternalError, JetLLMError
from inference.generation import GenerateRequest, Generation

MAX_PROMPT_TOKENS = 8192
MAX_TOKENS = 1024
MAX_CONCURRENCY = 32
MAX_RUNS = 10

Cancelled = Callable[[], bool]
# Common words, each one token of about every vocabulary when a space comes before it.
_WORDS = (
    *("time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child", "world", "school"),
    *("state", "family", "student", "group", "country", "problem", "hand", "part", "place", "case", "week"),
    *("company", "system", "program", "question", "work", "government", "number", "night", "point", "home"),
    *("water", "room", "mother", "area", "money", "story", "fact", "month", "lot", "right", "study", "book"),
)


@dataclass(frozen=True)
class Course:
    """What is measured: *runs* rounds of *concurrency* requests at once.

    Args:
        prompt_tokens: about how long each prompt is; what it really was is in the result.
        max_tokens: of each answer, exactly: the end of text is ignored.
    """

    model: str
    variant: str | None = None
    prompt_tokens: int = 128
    max_tokens: int = 64
    concurrency: int = 1
    runs: int = 3


@dataclass(frozen=True)
class BenchProgress:
    """One more round is over; of the first, which loads the model and counts nothing, *run* is 0."""

    run: int
    runs: int
    ttft_s: float
    decode_tokens_per_s: float | None


class Stream(Protocol):
    """A generation under way, as `inference.stream.GenerationStream` is."""

    @property
    def selection(self) -> Any:
        """The decision that led here."""

    @property
    def system_fingerprint(self) -> str:
        """Engine and variant."""

    @property
    def result(self) -> Generation | None:
        """The whole, once exhausted."""

    def __iter__(self) -> Any: ...

    def close(self) -> None:
        """Stop it."""


Generate = Callable[[GenerateRequest, Cancelled], Stream]


@dataclass(frozen=True)
class Sample:
    """One request as its client saw it."""

    stream: Stream
    generation: Generation

    @property
    def decode_tokens_per_s(self) -> float | None:
        """Tokens after the first, over the time after the first."""
        seconds = self.generation.total_s - self.generation.ttft_s
        count = self.generation.usage.completion_tokens - 1
        return count / seconds if seconds > 0 and count > 0 else None

    @property
    def prefill_tokens_per_s(self) -> float | None:
        """By the engine's own clock; ``None`` when it keeps none."""
        timings, usage = self.generation.timings, self.generation.usage
        if timings is None or timings.prefill_s <= 0:
            return None
        return (usage.prompt_tokens - usage.cached_tokens) / timings.prefill_s


def measure(
    generate: Generate, course: Course, *, progress: Callable[[BenchProgress], None], cancelled: Cancelled
) -> dict[str, Any]:
    """Run *course* after one request that loads the model, and return the figures.

    Raises:
        JetLLMError: of the first request that failed; the others are stopped.
    """
    _round(generate, course, 0, cancelled, concurrency=1)
    samples: list[Sample] = []
    wall_s = 0.0
    for run in range(1, course.runs + 1):
        started_s = time.monotonic()
        done = _round(generate, course, run, cancelled, concurrency=course.concurrency)
        wall_s += time.monotonic() - started_s
        samples += done
        ttft_s, rate = (
            _median(s.generation.ttft_s for s in done),
            _median(s.decode_tokens_per_s for s in done),
        )
        progress(BenchProgress(run, course.runs, ttft_s or 0.0, rate))
    return _figures(course, samples, wall_s)


def _round(
    generate: Generate, course: Course, run: int, cancelled: Cancelled, *, concurrency: int
) -> list[Sample]:
    """Send *concurrency* requests at once and wait for all of them."""
    samples: list[Sample] = []
    failures: list[JetLLMError] = []

    def ask(number: int) -> None:
        request = _request(course, run * MAX_CONCURRENCY + number)
        try:
            samples.append(_sample(generate(request, lambda: cancelled() or bool(failures))))
        except JetLLMError as error:
            failures.append(error)

    threads = [threading.Thread(target=ask, args=(n,), name="bench") for n in range(1, concurrency)]
    for thread in threads:
        thread.start()
    ask(0)
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return samples


def _sample(stream: Stream) -> Sample:
    try:
        for _ in stream:
            pass
        if stream.result is None:
            raise InternalError("the stream ended without a result")
        return Sample(stream, stream.result)
    finally:
        stream.close()


def _request(course: Course, number: int) -> GenerateRequest:
    """Return a request that shares no beginning with another, so that no cached prompt helps."""
    words = random.Random(number)  # noqa: S311 - no secret: the same words at each bench
    return GenerateRequest(
        model=course.model,
        variant=course.variant,
        prompt=" ".join(words.choice(_WORDS) for _ in range(course.prompt_tokens)),
        max_tokens=course.max_tokens,
        temperature=0.0,
        ignore_eos=True,
        cache_prompt=False,
    )


def _figures(course: Course, samples: list[Sample], wall_s: float) -> dict[str, Any]:
    last = samples[-1]
    tokens = sum(sample.generation.usage.completion_tokens for sample in samples)
    return {
        "model": last.generation.model,
        "variant": last.generation.variant,
        "engine": last.stream.system_fingerprint,
        "concurrency": course.concurrency,
        "runs": course.runs,
        "prompt_tokens": _median(s.generation.usage.prompt_tokens for s in samples),
        "completion_tokens": _median(s.generation.usage.completion_tokens for s in samples),
        "ttft_s": _spread(s.generation.ttft_s for s in samples),
        "decode_tokens_per_s": _spread(s.decode_tokens_per_s for s in samples),
        "prefill_tokens_per_s": _spread(s.prefill_tokens_per_s for s in samples),
        "all_tokens_per_s": tokens / wall_s if wall_s > 0 else None,
        "predicted": _prediction(last.stream.selection),
    }


def _prediction(selection: Any) -> dict[str, Any]:
    """Return what the selector went by for the model that it chose, for one request at a time."""
    chosen = next(each for each in selection.candidates if each.verdict == "chosen")
    return {
        "decode_tokens_per_s": chosen.tokens_per_s,
        "source": chosen.tokens_per_s_source,
        "by_formula_tokens_per_s": chosen.predicted_tokens_per_s,
    }


def _spread(values: Iterable[float | None]) -> dict[str, float] | None:
    known = [value for value in values if value is not None]
    return {"median": statistics.median(known), "min": min(known), "max": max(known)} if known else None


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None
