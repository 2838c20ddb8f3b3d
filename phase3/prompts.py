"""Prompts of an exact length in the model's own tokens, no two alike, found by asking the target.

A prompt is an opening word, sentences of the fixed text, and what it takes to fill up. The pieces are
measured once each, beside a short opening: measuring costs no more than reading the text once, while a
search with whole prompts would cost several of them for each.
"""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from phase3.data import fixed
from phase3.target import Target, TargetError

_TOO_LONG = "context_length_exceeded"
_FILLERS = ("a", "the", "in", "one")
# A length that a third correction does not reach is not to be had with this tokenizer.
_MOST_CORRECTIONS = 3


@dataclass(frozen=True)
class Prompt:
    """A text, and the tokens that its pieces promise."""

    text: str
    tokens: int


class PromptMaker:
    """Makes prompts for *target*, each with another first word than the ones before, until words run out.

    Pieces are taken to cost the same tokens in every prompt. Where that is not so, `correct` is told
    what a prompt really had, and the next one of that length allows for it.
    """

    def __init__(self, target: Target) -> None:
        self._target = target
        text = fixed.text()
        words = list(dict.fromkeys(re.findall(r"[A-Za-z]+", text)))
        self._openings: Iterator[str] = itertools.cycle(words)
        self._anchor = words[0]
        self._sentences = [part for part in re.split(r"(?<=[.!?\"])\s+", text) if part]
        self._first = 0
        self._counts: dict[str, int] = {}
        self._surplus: dict[int, int] = {}
        self._corrections: dict[int, int] = {}

    def make(self, tokens: int) -> Prompt:
        """Return a new prompt of so many tokens, or of the most below that its pieces allow.

        Raises:
            TargetError: the target does not answer the short prompts that measure the pieces.
        """
        opening = next(self._openings)
        room = tokens - self._surplus.get(tokens, 0) - self._count(opening)
        # Any rest can be filled, except one that is less than the shortest word: so none is left that is.
        pieces = list(self._prose(room - self._cost(_FILLERS[0])))
        room -= sum(map(self._cost, pieces))
        filling = list(self._filling(room))
        room -= sum(map(self._cost, filling))
        return Prompt(" ".join([opening, *pieces, *filling]), tokens - room)

    def correct(self, tokens: int, *, promised: int, counted: int) -> bool:
        """Learn that a prompt for *tokens* had *counted*; return whether the next one may be truer."""
        tries = self._corrections.get(tokens, 0)
        if counted == promised or tries == _MOST_CORRECTIONS:
            return False
        self._corrections[tokens] = tries + 1
        self._surplus[tokens] = self._surplus.get(tokens, 0) + counted - promised
        return True

    def _prose(self, room: int) -> Iterator[str]:
        """Yield the sentences that fit, over and over, beginning one later each time.

        A word is taken for a token at least, so that what is too long is not even measured.
        """
        sentences = self._sentences[self._first :] + self._sentences[: self._first]
        self._first = (self._first + 1) % len(self._sentences)
        for sentence in itertools.cycle(sentences):
            cost = self._cost(sentence) if len(sentence.split()) <= room else room + 1
            if cost > room:
                return
            room -= max(1, cost)
            yield sentence

    def _filling(self, room: int) -> Iterator[str]:
        """Yield beginnings of the first sentence as long as they fit, then short words: one at least."""
        while (beginning := self._beginning(room - self._cost(_FILLERS[0]))) is not None:
            room -= max(1, self._cost(beginning))
            yield beginning
        ways: dict[int, list[str]] = {0: []}
        for tokens in range(1, room + 1):
            for filler in _FILLERS:
                if (rest := tokens - self._cost(filler)) in ways and rest < tokens:
                    ways[tokens] = [*ways[rest], filler]
        yield from ways[max(ways)]

    def _beginning(self, room: int) -> str | None:
        """The longest beginning of the first sentence, of two words or more, that fits."""
        words = self._sentences[0].split()
        for length in range(min(len(words), room), 1, -1):
            if self._cost(piece := " ".join(words[:length])) <= room:
                return piece
        return None

    def _cost(self, piece: str) -> int:
        """Tokens that *piece* adds to a prompt."""
        return self._count(f"{self._anchor} {piece}") - self._count(self._anchor)

    def _count(self, text: str) -> int:
        if text not in self._counts:
            self._counts[text] = self._asked(text)
        return self._counts[text]

    def _asked(self, text: str) -> int:
        """Ask the target; a piece that not even the context holds is longer than any prompt."""
        try:
            return self._target.generate(prompt=text, max_tokens=1, ignore_eos=True).prompt_tokens
        except TargetError as error:
            if error.code != _TOO_LONG:
                raise
            return sys.maxsize
