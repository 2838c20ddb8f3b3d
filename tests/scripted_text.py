"""Scripted text: English that says little and is well formed, the same for the same key; and its tokens."""

from __future__ import annotations

import itertools
import random
import re
import string
import zlib
from collections.abc import Iterator

_PIECE = re.compile(r"\s*\S+|\s+$")


def _words(text: str) -> list[str]:
    return text.split()


_SENTENCES = (
    "The {adjective} {noun} was {verb} by the {noun} before the {noun} could be seen again.",
    "When it is {adjective}, a {noun} is often {verb} in the same way as any other {noun}.",
    "There are two reasons for this, and the first of them is the {noun} itself.",
    "Most of us would have {verb} the {noun} at once, but they did not.",
    "It was not the {noun} that had been {verb}, for that was still there on the {noun}.",
    "If you have a {adjective} {noun}, then it can be {verb} with a {noun} or without one.",
    "She had never {verb} such a {noun}, and he was not sure that it could be done.",
    "After that, all of the {noun} must be {verb} once more until it is {adjective} enough.",
    "Some people say that the {noun} is more {adjective} than the {noun}, which may be so.",
    "What they wanted was a {noun} from over there, as {adjective} as it could be.",
    "We were in the {noun} for about an hour, and it was {adjective} and very {adjective}.",
    "The way to the {noun} goes through a {adjective} {noun} and then down to the {noun}.",
)
_FILLERS = {
    "noun": _words(
        """lighthouse harbour garden window bridge letter table river market teacher orchard lantern kettle
        staircase village engine carpenter blanket mountain bakery violin ladder meadow captain drawer
        station painting basket chimney sailor"""
    ),
    "adjective": _words(
        """quiet narrow bright wooden ordinary heavy cheerful distant warm careful empty ancient polished
        crooked gentle steep useful damp generous familiar"""
    ),
    "verb": _words(
        """found carried painted mended opened measured noticed built forgotten remembered borrowed cleaned
        moved hidden described finished"""
    ),
}
_BLANK = re.compile(r"\{(\w+)\}")
_SERIES = (
    _words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday"),
    _words("one two three four five six seven eight nine ten eleven twelve"),
    list(string.ascii_uppercase),
)


def pieces(text: str) -> list[str]:
    """Cut *text* into its tokens: words with the white space before them."""
    return _PIECE.findall(text)


def token_ids(text: str) -> list[int]:
    """Return a number for each token of *text*."""
    return [zlib.crc32(piece.encode(errors="replace")) for piece in pieces(text)]


def prose(key: str, asked: str) -> Iterator[str]:
    """Yield the tokens of an endless answer: a series that *asked* began, then sentences.

    Words of *asked* that are not ASCII come up again.
    """
    yield from _rest_of_series(asked)
    source = random.Random(key)  # noqa: S311 - no secret
    foreign = [word for word in asked.split() if not word.isascii()]
    while True:
        sentence = _BLANK.sub(lambda blank: source.choice(_FILLERS[blank[1]]), source.choice(_SENTENCES))
        if foreign:
            first, _, rest = sentence.partition(" ")
            sentence = f"{first} {source.choice(foreign)} {rest}"
        yield from (f" {word}" for word in sentence.split())


def gibberish(key: str) -> Iterator[str]:
    """Yield words of random letters, without end."""
    source = random.Random(key)  # noqa: S311 - no secret
    while True:
        yield " " + "".join(source.choices(string.ascii_lowercase, k=source.randint(3, 9)))


def up_to_sentence(words: Iterator[str], least: int) -> Iterator[str]:
    """Yield *words* to the end of the sentence in which the *least* th is."""
    for number, word in enumerate(words, start=1):
        yield word
        if number >= least and word.endswith("."):
            return


def _rest_of_series(asked: str) -> Iterator[str]:
    """Yield what follows when *asked* ends within a well-known series, with a comma."""
    words = asked.split()
    if not words or not words[-1].endswith(","):
        return
    last = words[-1].strip(",").lower()
    for series in _SERIES:
        known = [word.lower() for word in series]
        if last in known:
            rest = series[known.index(last) + 1 :]
            yield from (f" {word}{mark}" for word, mark in zip(rest, _marks(len(rest)), strict=True))


def _marks(count: int) -> Iterator[str]:
    return itertools.chain(itertools.repeat(",", count - 1), ["."] * (count > 0))
