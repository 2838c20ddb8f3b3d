"""Models that keep the contract whatever they say, and ways to break it, as fake targets."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from phase3.asking import BROKEN
from phase3.measured import Ask
from phase3.target import Reply, TargetError
from tests.fake_target import CONTEXT_TOKENS, ENVIRONMENT, REGISTERED, FakeTarget, healthy, reply

Answer = Callable[[Ask], Reply]
BASE = replace(REGISTERED, is_chat=False)
OWN_END = 5  # tokens after which the turn of some fakes ends


def _as_asked(ask: Ask, made: Reply) -> Reply:
    return made if ask.stream else replace(made, ttft_s=None, arrivals_s=())


def _saying(text_of: Callable[[Ask], list[str]]) -> Answer:
    """A model that says the tokens of *text_of*, one for each piece, and keeps the contract with them."""

    def answer(ask: Ask) -> Reply:
        normal = healthy(ask)
        pieces = text_of(ask)[: ask.max_tokens]
        text, reason = "".join(pieces), "length"
        stops = [at for at in map(text.find, ask.stop) if at >= 0]
        if stops:
            text, reason = text[: min(stops)], "stop"
        arriving = [piece for piece in pieces if piece][: max(1, len(text))] if text else []
        made = reply(text, prompt_tokens=normal.prompt_tokens, finish_reason=reason, tokens=arriving)
        return _as_asked(ask, replace(made, completion_tokens=len(pieces)))

    return answer


def _chance(ask: Ask) -> random.Random:
    """What a text depends on: the prompt, and the seed unless greedy."""
    asked = repr((ask.prompt, ask.messages, ask.seed if ask.temperature else None))
    return random.Random(hashlib.sha256(asked.encode()).digest())  # noqa: S311 - no secret


def _bytes_of_no_character(ask: Ask) -> list[str]:
    chance = _chance(ask)
    return [chance.choice(("", BROKEN, "a", "\x04", f"{BROKEN}{BROKEN}q", "é")) for _ in range(2000)]


MODELS: dict[str, Callable[[], FakeTarget]] = {
    "chat": lambda: FakeTarget(),
    "base": lambda: FakeTarget(registered=BASE),
    "unknown kind": lambda: FakeTarget(registered=replace(REGISTERED, is_chat=None)),
    "ends soon": lambda: FakeTarget(lambda ask: healthy(ask, own_end=OWN_END)),
    "one word over and over": lambda: FakeTarget(_saying(lambda _: [" bing"] * 2000)),
    "one letter over and over": lambda: FakeTarget(_saying(lambda _: ["a"] * 2000)),
    "random bytes": lambda: FakeTarget(_saying(_bytes_of_no_character)),
    "special tokens": lambda: FakeTarget(
        _saying(lambda ask: [" hi", "<|im_end|>", str(_chance(ask).random())] * 99)
    ),
    "no text": lambda: FakeTarget(_saying(lambda _: [""] * 2000)),
    "small context": lambda: FakeTarget(
        lambda ask: healthy(ask, context_tokens=128), environment=replace(ENVIRONMENT, context_tokens=128)
    ),
    "fast": lambda: FakeTarget(_times(lambda made: _at_speed(made, 5000))),
    "slow": lambda: FakeTarget(_times(lambda made: _at_speed(made, 5))),
    "keeps no log-probabilities": lambda: FakeTarget(lambda ask: replace(healthy(ask), logprobs=None)),
}


def _times(change: Callable[[Reply], Reply]) -> Answer:
    return lambda ask: _as_asked(ask, change(healthy(ask)))


def _at_speed(made: Reply, tokens_per_s: float) -> Reply:
    arrivals_s = tuple((i + 2) / tokens_per_s for i in range(len(made.arrivals_s)))
    last_s = (made.completion_tokens + 1) / tokens_per_s
    return replace(made, arrivals_s=arrivals_s, ttft_s=arrivals_s[0] if arrivals_s else None, total_s=last_s)


def _only(when: Callable[[Ask], bool], change: Callable[[Reply], Reply]) -> Answer:
    return lambda ask: change(healthy(ask)) if when(ask) else healthy(ask)


def _changed(without: str, **values: Any) -> Answer:
    """The answer to a request in which the field *without* was not heard."""
    return lambda ask: healthy(replace(ask, **{without: values[without]}))


def _collected(made: Reply) -> Reply:
    return replace(made, arrivals_s=(made.total_s,) * len(made.arrivals_s), ttft_s=made.total_s)


def _in_one_piece(made: Reply) -> Reply:
    return replace(made, arrivals_s=(made.total_s,), ttft_s=made.total_s)


def _without_last_word(made: Reply) -> Reply:
    return replace(made, text=made.text.rpartition(" ")[0])


def _without_first_word(made: Reply) -> Reply:
    return replace(made, text=made.text[1:].partition(" ")[2])


_COIN = random.Random(5)  # noqa: S311 - no secret


class Wavering:
    """Says one of two things, by *choose*, which gets the number of the request."""

    def __init__(self, choose: Callable[[int], bool]) -> None:
        self._choose = choose
        self._asked = 0

    def __call__(self, ask: Ask) -> Reply:
        """Answer."""
        self._asked += 1
        return healthy(_alike(ask) if self._choose(self._asked) else ask)


def _alike(ask: Ask) -> Ask:
    """A request of the same length that has another answer."""
    if ask.prompt is not None:
        return replace(ask, prompt=f"{ask.prompt}'")
    return replace(ask, messages=[{**turn, "content": f"{turn['content']}'"} for turn in ask.messages or ()])


def _stops_at_one_token(ask: Ask) -> Reply:
    return healthy(replace(ask, stop=tuple(word for word in ask.stop if " " not in word.strip())))


def _shows_the_stop(ask: Ask) -> Reply:
    made = healthy(ask)
    whole = healthy(replace(ask, stop=()))
    return replace(made, text=whole.text[: len(made.text) + 2]) if ask.stop else made


def _stop_cuts_always(ask: Ask) -> Reply:
    made = healthy(ask)
    return _without_last_word(made) if ask.stop else made


def _sampling_of_chance() -> Answer:
    chance = random.Random(3)  # noqa: S311 - no secret
    return lambda ask: healthy(replace(ask, seed=chance.getrandbits(32)) if ask.temperature else ask)


def _cache_that_wears() -> Answer:
    chance = random.Random(4)  # noqa: S311 - no secret

    def answer(ask: Ask) -> Reply:
        made = healthy(ask)
        if not ask.cache_prompt:
            return made
        return replace(made, cached_tokens=3, text=f"{made.text} {chance.random()}")

    return answer


def _length(ask: Ask, tokens: int, *, reason: str = "length") -> Reply:
    made = healthy(replace(ask, max_tokens=tokens, ignore_eos=True))
    return made if made.finish_reason == "stop" else replace(made, finish_reason=reason)


def _questions(ask: Ask) -> Reply:
    if ask.prompt is None:
        return healthy(ask)
    return healthy(replace(ask, prompt="".join(c if c.isascii() else "?" for c in ask.prompt)))


def _is_foreign(ask: Ask) -> bool:
    return ask.prompt is not None and not ask.prompt.isascii()


def with_characters(ask: Ask, of_one: str) -> Reply:
    """Answer as a good model, with *of_one* in place of each "e" where the prompt is beyond ASCII."""
    made = healthy(ask)
    if not _is_foreign(ask):
        return made
    text = made.text.replace("e", of_one)
    stops = [at for at in map(text.find, ask.stop) if at >= 0]
    if stops:
        return replace(made, text=text[: min(stops)], finish_reason="stop")
    return replace(made, text=text)


def _counts_no_words_twice(ask: Ask) -> Reply:
    made = healthy(ask)
    return replace(made, prompt_tokens=min(made.prompt_tokens, 2)) if _is_foreign(ask) else made


def _context(size: int, otherwise: Callable[[Ask], Reply]) -> Answer:
    """A prompt of more than *size* words is answered by *otherwise*."""

    def answer(ask: Ask) -> Reply:
        long = ask.prompt is not None and len(ask.prompt.split()) > size
        return otherwise(ask) if long else healthy(ask)

    return answer


def _cut(size: int) -> Callable[[Ask], Reply]:
    return lambda ask: healthy(replace(ask, prompt=" ".join((ask.prompt or "").split()[:size])))


def refusing(code: str) -> Answer:
    """An answer that is an error with this *code*."""

    def answer(_: Ask) -> Reply:
        raise TargetError("it said no", code=code)

    return answer


# The check that is there to find it, and the way to answer.
DEFECTS: dict[str, tuple[str, Callable[[], Answer]]] = {
    "collects the stream": ("streaming", lambda: _only(lambda ask: ask.stream, _collected)),
    "one piece": ("streaming", lambda: _only(lambda ask: ask.stream, _in_one_piece)),
    "stream loses a word": ("streaming", lambda: _only(lambda ask: ask.stream, _without_first_word)),
    "whole loses a word": ("streaming", lambda: _only(lambda ask: not ask.stream, _without_first_word)),
    "whole counts otherwise": (
        "streaming",
        lambda: _only(
            lambda ask: not ask.stream, lambda made: replace(made, prompt_tokens=made.prompt_tokens + 1)
        ),
    ),
    "wavers": ("greedy", lambda: Wavering(lambda _: _COIN.random() < 0.5)),
    **{
        f"wavers every {n}": ("greedy", lambda n=n: Wavering(lambda number: number % n == 0))  # type: ignore[misc]
        for n in (2, 3, 4, 5)
    },
    "cache wears": ("greedy", _cache_that_wears),
    "ignores stop": ("stop", lambda: _changed("stop", stop=())),
    "stops at one token": ("stop", lambda: _stops_at_one_token),
    "shows the stop": ("stop", lambda: _shows_the_stop),
    "shows the stop when streamed": (
        "stop",
        lambda: lambda ask: _shows_the_stop(ask) if ask.stream else healthy(ask),
    ),
    "any stop cuts": ("stop", lambda: _stop_cuts_always),
    "stop has no reason": (
        "stop",
        lambda: _only(lambda ask: bool(ask.stop), lambda made: replace(made, finish_reason="length")),
    ),
    "ignores max_tokens": ("length", lambda: lambda ask: _length(ask, 64)),
    "one token more": ("length", lambda: lambda ask: _length(ask, ask.max_tokens + 1)),
    "one token less": ("length", lambda: lambda ask: _length(ask, max(1, ask.max_tokens - 1))),
    "length is a stop": ("length", lambda: lambda ask: _length(ask, ask.max_tokens, reason="stop")),
    "heeds the end": (
        "length",
        lambda: lambda ask: healthy(replace(ask, ignore_eos=False), own_end=OWN_END),
    ),
    "seeds of chance": ("seed", _sampling_of_chance),
    "ignores the seed": ("seed", lambda: lambda ask: healthy(replace(ask, seed=7))),
    "ignores the temperature": ("seed", lambda: lambda ask: healthy(replace(ask, temperature=0.0))),
    "question marks": ("unicode", lambda: _questions),
    "half characters": ("unicode", lambda: lambda ask: with_characters(ask, "\ud83d")),
    "torn": ("unicode", lambda: lambda ask: with_characters(ask, BROKEN * 2)),
    "torn in the stream": (
        "unicode",
        lambda: lambda ask: with_characters(ask, BROKEN * 2 if ask.stream else "é"),
    ),
    "counts no word twice": ("unicode", lambda: _counts_no_words_twice),
    "cuts at half": ("context", lambda: _context(CONTEXT_TOKENS // 2, _cut(CONTEXT_TOKENS // 2))),
    "cuts beyond": ("context", lambda: _context(CONTEXT_TOKENS - 1, _cut(CONTEXT_TOKENS - 1))),
    "refuses too soon": (
        "context",
        lambda: _context(CONTEXT_TOKENS // 2, refusing("context_length_exceeded")),
    ),
    "fails beyond": ("context", lambda: _context(CONTEXT_TOKENS - 1, refusing("internal_error"))),
}
