"""The slots: a generation that nobody wants gives its slot back, and those side by side stay apart."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from difflib import SequenceMatcher

from phase3.asking import Request, each, parting, request
from phase3.case import Case
from phase3.data import fixed
from phase3.outcome import Outcome, at_least, at_most, failed, skipped
from phase3.target import Reply, TargetError

CANCEL_S = 1.0
ANSWER_TOKENS = 24
_LONGEST_TOKENS = 4096  # long enough that a generation which goes on is seen
_START_S = 30.0
_REPEATS = 8
_DECODES = 4  # pieces that a text must have to be cancelled in the middle

# An answer is another's when it has so much of it in one piece, and more than of its own; near ties
# leave an answer its own beginning.
FOREIGN_SHARE = 0.4
# It is woven with another's when so many of its words stand where that one has them, and its own does
# not. By chance that are about 2 of 100 in English.
FOREIGN_WORDS = 0.33
_LEAST_WORDS = 8

_HELD = "the engine computes on: it must look at the cancellation between tokens"

_Answer = Reply | TargetError


def cancel(case: Case) -> Outcome:
    """A generation that is left frees its slot within a second, early or later, after any prompt."""
    text = _text_in_pieces(case)
    if text is None:
        return skipped("no text comes in several pieces, so that none can be left in the middle")
    repeats = 1 if case.plan.mode == "quick" else 3
    long = " ".join([text] * _copies(case, text))
    trials = [(text, 1), (text, 3)] * repeats + [(long, 1)]
    worst_s = 0.0
    for prompt, pieces in each(case, trials):
        asked = _until_left(case, prompt)
        where = f"left after {pieces} of up to {asked['max_tokens']} tokens"
        took_s = _freed_after(case, pieces, asked)
        if took_s is None:
            return failed(f"{where}: the slot was never free again", _HELD)
        worst_s = max(worst_s, took_s)
        if worst_s > CANCEL_S:
            return at_most(worst_s, CANCEL_S, "s", where, _HELD)
    case.target.generate(prompt=text, max_tokens=1, ignore_eos=True)  # the slot serves again
    return at_most(worst_s, CANCEL_S, "s", f"the longest of {len(trials)}, in the midst of decoding")


def _freed_after(case: Case, pieces: int, asked: Request) -> float | None:
    """Return the seconds until the slot was free; the better of two, where one took too long.

    A busy machine may be late once; an engine that does not hear is late each time.
    """
    took_s = case.target.cancel_after(pieces, **asked)
    if took_s is None or took_s <= CANCEL_S:
        return took_s
    again_s = case.target.cancel_after(pieces, **asked)
    return None if again_s is None else min(took_s, again_s)


def concurrency(case: Case) -> Outcome:
    """Requests at once, more than there are slots, all get the answer to their own prompt."""
    levels = sorted(set(case.plan.concurrency))
    requests = _different(case, levels[-1])
    alone = [case.target.generate(**asked) for asked in each(case, requests)]
    texts = [reply.text for reply in alone]
    apart = len(set(texts)) == len(texts)
    whole, problem, other = 0, None, 0
    for level in levels:
        together = _at_once(case, requests[:level])
        problem = _incomplete(alone, together)
        if problem is None and apart and (mixed := _mixed(texts, together)) is not None:
            at, problem = mixed
            if _wavers(case, requests[at], texts[at]):
                apart, problem = False, None
        if problem is not None:
            problem = f"of {level} at once {problem}"
            break
        whole = level
        other += sum(reply.text != text for reply, text in zip(_replies(together), texts, strict=False))
    return at_least(
        whole,
        levels[-1],
        "at once",
        problem or _together_detail(levels, other, apart),
        "requests beyond the slots must wait for one, and each sequence keep its own cache and its own text",
    )


def _text_in_pieces(case: Case) -> str | None:
    """Return a prompt of which the answer comes in pieces; bytes that are no characters make none."""
    for text in fixed.prompts().base:
        reply = case.target.generate(prompt=text, max_tokens=4 * _DECODES, ignore_eos=True)
        if len(reply.arrivals_s) >= _DECODES:
            return text
    return None


def _context_tokens(case: Case) -> int | None:
    return None if case.loaded is None else case.loaded.context_tokens


def _copies(case: Case, text: str) -> int:
    """Return how often *text* makes a long prompt, of at most a quarter of the context."""
    size = _context_tokens(case) or 1024
    return max(1, min(size, _LONGEST_TOKENS) // 4 // len(text))


def _until_left(case: Case, prompt: str) -> Request:
    """Return a request that would go on for as long as there is room."""
    size = _context_tokens(case) or 1024
    read = case.target.generate(prompt=prompt, max_tokens=1, ignore_eos=True)
    room = max(_DECODES, size - read.prompt_tokens - 1)
    return {"prompt": prompt, "max_tokens": min(room, _LONGEST_TOKENS), "ignore_eos": True}


def _different(case: Case, number: int) -> list[Request]:
    found = fixed.prompts()
    texts = [*found.chat, *found.base]
    # More than there are get a number, so that each is another's.
    named = [texts[i] if i < len(texts) else f"{i}. {texts[i % len(texts)]}" for i in range(number)]
    return [request(case, text, max_tokens=ANSWER_TOKENS, ignore_eos=True) for text in named]


def _at_once(case: Case, requests: Sequence[Request]) -> list[_Answer]:
    """Send all at the same moment and return what came of each, once all have ended."""
    start = threading.Barrier(len(requests))

    def ask(asked: Request) -> _Answer:
        start.wait(_START_S)
        try:
            return case.target.generate(**asked)
        except TargetError as error:
            return error

    with ThreadPoolExecutor(len(requests), thread_name_prefix="at-once") as pool:
        return list(pool.map(ask, requests))


def _replies(answers: Sequence[_Answer]) -> list[Reply]:
    return [answer for answer in answers if isinstance(answer, Reply)]


def _incomplete(alone: Sequence[Reply], together: Sequence[_Answer]) -> str | None:
    """Say which answer is an error, or has other counts than the same request had alone."""
    for number, (single, answer) in enumerate(zip(alone, together, strict=False), start=1):
        if isinstance(answer, TargetError):
            return f"number {number} failed: {answer.message}"
        if _counts(answer) != _counts(single) or (single.text and not answer.text):
            return (
                f"number {number} had {answer.prompt_tokens} + {answer.completion_tokens} tokens, "
                f"and alone {single.prompt_tokens} + {single.completion_tokens}"
            )
    return None


def _counts(reply: Reply) -> tuple[int, int]:
    return reply.prompt_tokens, reply.completion_tokens


def _mixed(texts: Sequence[str], together: Sequence[_Answer]) -> tuple[int, str] | None:
    """Say which answer has another's text, as far as that can be told from a near tie."""
    replies = _replies(together)
    for at, reply in enumerate(replies):
        others = [text for i, text in enumerate(texts[: len(replies)]) if i != at]
        parts = parting(texts[at], reply.text)
        if any(_is_of(reply.text, text, texts[at]) for text in others):
            return at, f"number {at + 1} got another's text: alone and together part {parts}"
        if any(_is_woven(reply.text, text, texts[at]) for text in others):
            return at, f"number {at + 1} got words of another's: alone and together part {parts}"
    return None


def _wavers(case: Case, asked: Request, text: str) -> bool:
    """Whether it has other answers alone, too; then nothing can be said of those together."""
    return any(case.target.generate(**asked).text != text for _ in range(_REPEATS))


def _is_of(text: str, other: str, own: str) -> bool:
    share = _shared(text, other)
    return share >= FOREIGN_SHARE and share > _shared(text, own)


def _shared(text: str, known: str) -> float:
    """Return the part of *text* that the longest piece it has in common with *known* makes."""
    match = SequenceMatcher(None, text, known, autojunk=False).find_longest_match(0, len(text), 0, len(known))
    return match.size / len(text) if text else 0.0


def _is_woven(text: str, other: str, own: str) -> bool:
    rows = list(zip(text.split(), other.split(), own.split(), strict=False))
    foreign = sum(word == theirs != mine for word, theirs, mine in rows)
    return len(rows) >= _LEAST_WORDS and foreign > FOREIGN_WORDS * len(rows)


def _together_detail(levels: Sequence[int], other: int, apart: bool) -> str:
    asked = ", ".join(map(str, levels))
    if not apart:
        return f"{asked} at once; texts are not compared: they vary, or are the same for different prompts"
    return f"{asked} at once; {other} of {sum(levels)} answers differ from the same ones alone (near ties)"
