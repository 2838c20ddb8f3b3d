"""The soak: a long mixed load, in which nothing may fail and memory may not grow."""

from __future__ import annotations

import random
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from phase3 import growth
from phase3.case import Case, Points
from phase3.data import fixed
from phase3.outcome import Outcome, at_most, skipped
from phase3.report.words import quantity
from phase3.target import TargetError

SEED = 20_261_121
LEAK_BYTES_PER_REQUEST = 16_000
WARM_UP_SHARE = 0.2
"""Of the soak, in which buffers still grow to their largest request."""
CANCEL_EVERY = 8
"""One round in so many is a request that is left."""
_LONGEST_OUTPUT_TOKENS = 64
_DEFAULT_CONTEXT_TOKENS = 256
_HOUR_S = 3600


@dataclass
class _Soak:
    """What was seen so far: *readings* have seconds, requests and, by figure, bytes."""

    requests: int = 0
    failures: list[str] = field(default_factory=list)
    readings: list[tuple[float, int, dict[str, float]]] = field(default_factory=list)


def soak(case: Case) -> Outcome:
    """Ask for everything at once and in turn, in an order that is the same in every run."""
    if not case.plan.soak_s:
        return skipped("in a long run: --soak MINUTES")
    seen, chance, started_s = _Soak(), random.Random(SEED), time.monotonic()  # noqa: S311 - no secret
    with ThreadPoolExecutor(_slots(case)) as pool:
        while (now_s := time.monotonic() - started_s) < case.plan.soak_s:
            case.progress(now_s / case.plan.soak_s)
            work = _round(case, chance)
            seen.requests += len(work)
            seen.failures += filter(None, pool.map(_failure, work))
            _read(case, seen, time.monotonic() - started_s)
    return _judged(case, seen)


def _round(case: Case, chance: random.Random) -> list[Callable[[], str | None]]:
    """Some requests that run at once; or one that is left, which the targets want to be alone."""
    if chance.randrange(CANCEL_EVERY) == 0:
        request = _request(case, chance)
        return [lambda: _left(case, request)]
    return [_asking(case, _request(case, chance), chance) for _ in range(chance.randint(1, _slots(case)))]


def _asking(case: Case, request: dict[str, Any], chance: random.Random) -> Callable[[], str | None]:
    stream = chance.random() < 0.5

    def ask() -> str | None:
        reply = case.target.generate(**request, stream=stream)
        return None if reply.completion_tokens else "an answer without a token"

    return ask


def _left(case: Case, request: dict[str, Any]) -> str | None:
    asked = {**request, "max_tokens": _context_tokens(case) // 2}
    try:
        left_s = case.target.cancel_after(1, **asked)
    except TargetError as error:
        if error.hint is not None and error.hint.startswith("ask for more tokens"):
            return None  # it ended before it could be left
        raise
    return "a slot stayed taken after its request was left" if left_s is None else None


def _failure(work: Callable[[], str | None]) -> str | None:
    try:
        return work()
    except TargetError as error:
        return error.message


def _request(case: Case, chance: random.Random) -> dict[str, Any]:
    """A prompt and an answer of any length that together fit into the context."""
    context = _context_tokens(case)
    asked: dict[str, Any] = {
        "max_tokens": chance.randint(2, max(2, min(_LONGEST_OUTPUT_TOKENS, context // 4))),
        "ignore_eos": True,
        "temperature": chance.choice((0.0, 0.8)),
        "seed": chance.randrange(2**31),
    }
    words = fixed.text().split()
    # A word of English is below two tokens in any tokenizer; a template takes some tens of them.
    text = " ".join(words[: chance.randint(1, max(1, min(len(words), context // 8)))])
    if case.is_chat:
        return {**asked, "messages": [{"role": "user", "content": text}]}
    return {**asked, "prompt": text}


def _read(case: Case, seen: _Soak, now_s: float) -> None:
    """Read memory between the rounds, when nothing runs; what cannot be read is a failure of its own."""
    try:
        found = growth.figures(case, case.target.memory())
    except TargetError as error:
        seen.failures.append(error.message)
        return
    seen.readings.append((now_s, seen.requests, found))
    for figure, used in found.items():
        case.point(growth.series(figure, "soak_s"), now_s, used)


def _judged(case: Case, seen: _Soak) -> Outcome:
    told = f"{seen.requests} requests in {quantity(case.plan.soak_s, 's')}"
    if seen.failures:
        return at_most(
            len(seen.failures),
            0,
            "failures",
            f"{told}; the first: {seen.failures[0]}",
            "See the daemon's log.",
        )
    settled = [item for item in seen.readings if item[0] >= WARM_UP_SHARE * case.plan.soak_s]
    by_request: dict[str, Points] = defaultdict(list)
    for _, requests, found in settled:
        for figure, used in found.items():
            by_request[figure].append((requests, used))
    trends = [
        growth.Trend(figure, "request", points, LEAK_BYTES_PER_REQUEST)
        for figure, points in by_request.items()
    ]
    if not any(len(trend.points) >= growth.LEAST_POINTS for trend in trends):
        return at_most(0, 0, "failures", f"{told}; too short to tell of growth")
    return _with_hourly(growth.judge(trends, growth.LEAKS), told, seen, case.plan.soak_s)


def _with_hourly(judged: Outcome, told: str, seen: _Soak, soak_s: float) -> Outcome:
    """Say the growth per hour, too, which is what an operator asks for."""
    hourly = (judged.value or 0.0) * seen.requests / soak_s * _HOUR_S
    detail = f"{told}, no failure; {quantity(hourly, 'bytes')} more in an hour of this; {judged.detail}"
    if judged.verdict != "pass":
        return Outcome(**{**vars(judged), "detail": detail})
    return at_most(0, 0, "failures", detail)


def _context_tokens(case: Case) -> int:
    known = case.loaded.context_tokens if case.loaded is not None else None
    return known or _DEFAULT_CONTEXT_TOKENS


def _slots(case: Case) -> int:
    known = case.loaded.slots if case.loaded is not None else None
    return known or 1
