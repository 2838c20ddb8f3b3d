"""The context check: a prompt up to the context is read whole, and a longer one is refused."""

from __future__ import annotations

from dataclasses import dataclass

from phase3.case import Case
from phase3.data import fixed
from phase3.outcome import Outcome, at_least, failed, skipped
from phase3.target import TargetError

ROOM_TOKENS = 32
"""What the longest prompt leaves free of the context, give or take `TOLERANCE_TOKENS`."""

TOLERANCE_TOKENS = 24
ANSWER_TOKENS = 8
QUICK_S, FULL_S = 15.0, 60.0
"""About the time that may be spent on long prompts."""

QUICK_TOKENS, FULL_TOKENS = 1024, 4096
"""A context that is filled whatever that takes."""

REFUSALS = frozenset({"context_length_exceeded", "invalid_value"})

_PROBE_CHARACTERS = 2000
_TRIES = 3
# Two long prompts are read, and the longer a prompt is the more each of its tokens takes.
_READINGS = 3.0
_MOST_CHARACTERS = 900_000  # of one request that the daemon takes


@dataclass(frozen=True)
class _Read:
    """A prompt of so many characters, its tokens, and the seconds that reading it took."""

    characters: int
    tokens: int
    took_s: float


def context(case: Case) -> Outcome:
    """A prompt that nearly fills the context counts all of its tokens; one beyond it is refused."""
    size = (case.loaded or case.target.environment()).context_tokens
    if size is None:
        return skipped("the target does not say how long its context is")
    probe = _read(case, min(_PROBE_CHARACTERS, size // 2), 1)
    goal = _goal(case, size, probe)
    try:
        longest = _filled(case, goal, probe)
    except TargetError as error:
        if error.code not in REFUSALS:
            raise
        return failed(
            f"a prompt of about {goal} tokens was refused in a context of {size}: {error.message}",
            "the engine holds a shorter context than it says: see the worker's log",
        )
    case.progress(0.9)
    least = goal - TOLERANCE_TOKENS
    if longest.tokens >= least and (problem := _not_refused(case, size, longest)) is not None:
        return failed(problem, "a prompt that is too long must be refused before it reaches the engine")
    _read(case, 64, 1)  # it answers as before
    return at_least(
        longest.tokens,
        least,
        "tokens",
        _detail(size, goal, longest),
        "long prompts are cut without a word, so that the model answers what nobody asked",
    )


def _read(case: Case, characters: int, answer_tokens: int) -> _Read:
    reply = case.target.generate(prompt=_prose(characters), max_tokens=answer_tokens, ignore_eos=True)
    return _Read(characters, reply.prompt_tokens, reply.total_s if reply.ttft_s is None else reply.ttft_s)


def _prose(characters: int) -> str:
    text = fixed.text()
    return (text * (characters // len(text) + 1))[:characters]


def _goal(case: Case, size: int, probe: _Read) -> int:
    """Return how long a prompt is tried: nearly the context, or less where that would take too long."""
    whole = size - ROOM_TOKENS
    is_quick = case.plan.mode == "quick"
    always, budget_s = (QUICK_TOKENS, QUICK_S) if is_quick else (FULL_TOKENS, FULL_S)
    if size <= always:
        return whole
    tokens_per_s = probe.tokens / max(probe.took_s, 1e-6)
    affordable = int(tokens_per_s * budget_s / _READINGS)
    return min(whole, max(affordable, probe.tokens))


def _filled(case: Case, goal: int, probe: _Read) -> _Read:
    """Find the prompt of *goal* tokens: nine tenths of it first, which tells the length of the rest.

    The text comes over and over, so that the tokens of its parts vary by few from one time to the next.
    """
    last = probe
    for part in (0.9, *(1.0,) * _TRIES):
        wanted = round(part * goal)
        if abs(last.tokens - wanted) <= TOLERANCE_TOKENS // 2:
            continue
        per_token = last.characters / max(last.tokens, 1)
        last = _read(case, max(1, last.characters + round((wanted - last.tokens) * per_token)), ANSWER_TOKENS)
        case.progress(0.4 * part)
        if last.tokens < 0.8 * wanted:
            return last  # it was cut
    return last


def _not_refused(case: Case, size: int, longest: _Read) -> str | None:
    """Say what became of a prompt that is longer than the context, unless it was refused."""
    characters = round(1.1 * (size + ROOM_TOKENS) * longest.characters / longest.tokens)
    if characters > _MOST_CHARACTERS:
        return None
    try:
        read = _read(case, characters, 1)
    except TargetError as error:
        if error.code in REFUSALS:
            return None
        return (
            f"a prompt longer than the context of {size} tokens is an error ({error.code}): {error.message}"
        )
    return f"a prompt longer than the context of {size} tokens was taken, as one of {read.tokens}"


def _detail(size: int, goal: int, longest: _Read) -> str:
    read = f"a prompt of {longest.characters} characters has {longest.tokens} tokens, in a context of {size}"
    if goal < size - ROOM_TOKENS:
        return f"{read}; a longer one would take too long on this machine"
    return read
