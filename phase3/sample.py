"""The sample: what a model says greedily to the fixed prompts, and its loss on the fixed text.

Coherence is judged by it and references are made of it, so both see the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from phase3 import coherence
from phase3.case import Case
from phase3.data import fixed
from phase3.target import Messages, Target, TargetError, TokenLogprob

QUICK_TOKENS = 64
FULL_TOKENS = 200
QUICK_PARAGRAPHS = 2  # of six; a backend may need as long for a token as when it generates one
LOSSES = "bits_per_byte_over_paragraphs"
_LEAST_TOKENS = 16
_LEAST_CHARACTERS = 64


def take(case: Case) -> None:
    """Fill the case's *replies*, by prompt, and its *bits_per_byte*, None where nothing says it.

    What each paragraph loses is kept in the series `LOSSES`.
    """
    asked, limit = prompts(case), answer_tokens(case)
    parts = paragraphs()[: QUICK_PARAGRAPHS if case.plan.mode == "quick" else None]
    steps = len(asked) + len(parts)
    for done, prompt in enumerate(asked):
        case.progress(done / steps)
        if case.is_chat:
            reply = case.target.generate(messages=turn(prompt), max_tokens=limit)
        else:
            reply = case.target.generate(prompt=prompt, max_tokens=limit)
        case.replies[prompt] = reply
    for number, part in enumerate(parts):
        case.progress((len(asked) + number) / steps)
        if (found := loss(case.target, part)) is None:
            return
        case.point(LOSSES, number + 1, found)
    case.bits_per_byte = joined([y for _, y in case.series[LOSSES]])


def prompts(case: Case) -> tuple[str, ...]:
    """Return what this model is asked: questions, or beginnings of texts to continue."""
    found = fixed.prompts()
    return found.chat if case.is_chat else found.base


def turn(text: str) -> Messages:
    """Return the conversation that *text* begins."""
    return ({"role": "user", "content": text},)


def answer_tokens(case: Case) -> int:
    """Return how long answers may be: at most half of the context."""
    wanted = QUICK_TOKENS if case.plan.mode == "quick" else FULL_TOKENS
    known = case.loaded.context_tokens if case.loaded is not None else None
    return wanted if known is None else min(wanted, max(_LEAST_TOKENS, known // 2))


def paragraphs() -> tuple[str, ...]:
    """Return the paragraphs of the fixed text.

    Each is scored by itself, so that the loss is the same in a context of 256 tokens and in a longer one.
    """
    return tuple(fixed.text().strip().split("\n\n"))


def joined(losses: Sequence[float]) -> float:
    """Return the bits per byte of the first paragraphs together, each of which has one of *losses*."""
    sizes = [len(part) for part in paragraphs()[: len(losses)]]
    return sum(loss * size for loss, size in zip(losses, sizes, strict=True)) / sum(sizes)


def loss(target: Target, text: str) -> float | None:
    """Return the bits per byte of *text*, None where the backend does not score."""
    logprobs: list[float] = []
    scored = ""
    for tokens in _scores(target, text):
        if tokens is None:
            return None
        logprobs += [item.logprob for item in tokens]
        scored += "".join(item.token for item in tokens)
    return coherence.bits_per_byte(logprobs, scored)


def _scores(target: Target, text: str) -> Iterator[tuple[TokenLogprob, ...] | None]:
    """Score *text*, in halves where it is longer than the context."""
    try:
        yield target.score(text)
    except TargetError as error:
        if error.code != "context_length_exceeded" or len(text) < _LEAST_CHARACTERS:
            raise
        middle = text.index(" ", len(text) // 2)
        yield from _scores(target, text[:middle])
        yield from _scores(target, text[middle:])
