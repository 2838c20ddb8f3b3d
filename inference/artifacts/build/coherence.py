"""Coherence: whether what a new build says is a text at all.

A library that was compiled wrongly, or a quantization that a model does not stand, does not fail: it
writes "!!!!!!!!" (token 0 of NaN logits) or scattered characters. Base models repeat themselves when
decoded greedily, so repetition alone means nothing until hardly anything else is left.
"""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_MOST_REPLACED = 0.05
_LEAST_PIECES = 12
_MOST_OF_ONE = 0.7
_LEAST_DISTINCT_PAIRS = 0.08


def incoherence(text: str, tokens: int) -> str | None:
    """Say why *text*, a greedy answer of *tokens* tokens, is none; ``None`` if nothing speaks against it."""
    if tokens == 0 or not text.strip():
        return "the model says nothing"
    replaced = text.count(REPLACEMENT) / len(text)
    if replaced > _MOST_REPLACED:
        return f"{replaced:.0%} of its characters are not UTF-8"
    if any(ord(each) < 32 and each not in "\t\n\r" for each in text):
        return "it has control characters"
    return _monotony(text.split()) or _monotony(list("".join(text.split())))


def _monotony(pieces: list[str]) -> str | None:
    """Find words, or characters, of which nearly all are the same."""
    if len(pieces) < _LEAST_PIECES:
        return None
    piece, count = Counter(pieces).most_common(1)[0]
    if count / len(pieces) > _MOST_OF_ONE:
        return f"{count} of {len(pieces)} pieces are {piece[:20]!r}"
    pairs = list(pairwise(pieces))
    if len(pairs) >= 2 * _LEAST_PIECES and len(set(pairs)) / len(pairs) < _LEAST_DISTINCT_PAIRS:
        return f"{len(pairs)} pairs of pieces are {len(set(pairs))} different ones"
    return None
