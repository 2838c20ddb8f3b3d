"""Coherence: whether a text could have come from a working model, judged layer by layer, cheapest first.

The limits come from greedy outputs of SmolLM2-135M-Instruct (Q4_1) and Gemma 3 270M (Q4_K_M), kept in
tests/data/coherence.json, against the same models at temperature 2. Healthy small models do repeat
themselves: a sentence over and over is no defect, a word or a character over and over is.
"""

from __future__ import annotations

import itertools
import math
import re
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

Layer = Literal["empty", "encoding", "special tokens", "repetition", "gibberish"]

# A unit of at most this many words, filling this much of the text, is a defect. Healthy: "Boil an egg:",
# three words, fills all of an answer of SmolLM2.
LOOP_WORDS = 2
LOOP_CHARACTERS = 24  # for scripts that put no spaces between words, such as Thai
LOOP_SHARE = 0.9
# Healthy at 400 tokens, which are about as many characters as are judged: at least 0.020, at most 30.2. Both
# move with the length, so they only back up the loop above, for repetition that is not strictly periodic.
JUDGED_CHARACTERS = 2000
LEAST_DISTINCT_2 = 0.015
MOST_COMPRESSION = 45.0
# A chat model of which more than this share of the answers ends in a loop of any length is broken.
LOOPING_ANSWERS = 0.5
# Healthy English: HEALTHY of the words; at temperature 2: 0.00 to 0.11. A list of names has few such
# words too, hence the least number of different words.
LEAST_COMMON_WORDS = 0.2
LEAST_DIFFERENT_WORDS = 25

_LONGEST_UNIT = 240
_COPIES = 3
_COMMON_WORDS = frozenset(
    re.findall(
        r"\w+",
        """a an the this that these those some any all both each every no not another other such
        i you he she it we they me him her us them my your his its our their who whom whose which what
        of in on at by to from with without for about into onto over under after before between during
        through as than like up out down off near and or but nor so yet if because while when where until
        since though how is are was were be been being am has have had do does did will would can could
        shall should may might must there here then now also only just very more most much many few one
        two first own again too""",
    )
)
# Words between spaces; Japanese, Chinese and Korean have a word for every character or two.
_PIECE = re.compile(
    r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\s\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+"
)
_WORD = re.compile(r"[^\W\d_]+(?:['\u2019][^\W\d_]+)*")
# Markers of the usual chat templates; no prose contains them. Others come with the model's own list.
_MARKERS = re.compile(
    r"<\|[A-Za-z_]\w*\|>|<\uff5c[^\uff5c<>]+\uff5c>|</?(?:start|end)_of_turn>|\[/?INST\]|<</?SYS>>"
    r"|</?s>|<(?:bos|eos|pad|unk|unused\d+)>"
)
# What is left of ChatML when the markers are dropped and the turn goes on.
_ROLE_LINE = re.compile(r"^(?:user|assistant)$", re.MULTILINE)
# Pieces of a vocabulary that were never decoded: byte-level BPE, SentencePiece, byte fallback.
_RAW_PIECES = re.compile(r"[ĠĊ](?=\w)|▁(?=\w)|<0x[0-9A-F]{2}>")
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f]")


@dataclass(frozen=True)
class Problem:
    """The first layer that a text fails, and what was seen, in words."""

    layer: Layer
    detail: str


@dataclass(frozen=True)
class Repeat:
    """The stretch of a text that is one *unit* after the other: *share* of it, *copies* of the unit."""

    unit: str
    copies: float
    share: float

    @property
    def words(self) -> int:
        """Words in the unit, whose ends meet: "ng bi" of "bing bing bing" is one; 0 if nothing parts them."""
        return len(_PIECE.findall(self.unit * 2)) - len(_PIECE.findall(self.unit))


def judge(text: str, *, is_chat: bool, specials: Iterable[str] = (), english: bool = True) -> Problem | None:
    """Say what is wrong with the answer *text* and which layer saw it; None if nothing is.

    Args:
        is_chat: whether the model answers turns; then lines that only name a role are a leak as well.
        specials: the model's own special tokens, none of which may be in a text.
        english: whether English is expected; only then can words be told from gibberish.
    """
    layers: tuple[Callable[[], Problem | None], ...] = (
        lambda: Problem("empty", "no text at all") if not text.strip() else None,
        lambda: _encoding(text),
        lambda: _specials(text, specials, is_chat),
        lambda: _repetition(text),
        lambda: _gibberish(text) if english else None,
    )
    return next((problem for layer in layers if (problem := layer()) is not None), None)


def judge_all(
    texts: Sequence[str], *, is_chat: bool, specials: Iterable[str] = (), english: bool = True
) -> Problem | None:
    """Judge a model by its greedy answers to several prompts.

    Beyond `judge` of each, a chat model may not loop in more than half of them. Base models do just
    that: there is nothing that ends a text for them.
    """
    specials = tuple(specials)
    for text in texts:
        problem = judge(text, is_chat=is_chat, specials=specials, english=english)
        if problem is not None:
            return problem
    looping = sum(longest_repeat(text).share >= 0.5 for text in texts)
    if is_chat and looping > LOOPING_ANSWERS * len(texts):
        return Problem("repetition", f"{looping} of {len(texts)} answers end in a loop")
    return None


def is_utf8_clean(text: str | bytes) -> bool:
    """Whether *text* is valid UTF-8 (no lone surrogates) without replacement characters."""
    try:
        decoded = (text if isinstance(text, bytes) else text.encode()).decode()
    except UnicodeError:
        return False
    return "\ufffd" not in decoded


def distinct_2(text: str) -> float:
    """Different pairs of neighbouring words / all such pairs, 0 to 1; of fewer than two words, 1."""
    words = text.split()
    pairs = list(itertools.pairwise(words))
    return len(set(pairs)) / len(pairs) if pairs else 1.0


def compression_ratio(text: str) -> float:
    """Bytes of *text* / bytes of it as zlib packs them: prose of 600 bytes 1.7, a loop 5 and more."""
    raw = text.encode(errors="replace")
    return len(raw) / len(zlib.compress(raw, 9))


def longest_repeat(text: str) -> Repeat:
    """Find the longest stretch that is a unit of at most 240 characters, three times or more in a row.

    Compared by characters, so that a last copy which the token limit cut counts. The unit is the
    shortest one that explains the stretch; without such a stretch *share* is 0.
    """
    best, unit = 0, ""
    for period in range(1, min(_LONGEST_UNIT, len(text) // _COPIES) + 1):
        end, matched = _longest_run(text, period)
        if matched + period >= _COPIES * period and matched + period > best:
            best, unit = matched + period, text[end - period : end]
    return Repeat(unit, best / len(unit) if unit else 0.0, best / len(text) if text else 0.0)


def leaked_special_tokens(text: str, specials: Iterable[str] = ()) -> tuple[str, ...]:
    """The special tokens in *text*: of *specials*, and markers of the usual chat templates; sorted."""
    found = {token for token in specials if token and token in text}
    return tuple(sorted(found | set(_MARKERS.findall(text))))


def common_words_share(text: str) -> float | None:
    """How many of the words are the commonest of English; None if too few different ones to say."""
    words = [word.lower().replace("\u2019", "'") for word in _WORD.findall(text)]
    if len(set(words)) < LEAST_DIFFERENT_WORDS:
        return None
    return sum(word.partition("'")[0] in _COMMON_WORDS for word in words) / len(words)


def golden_prefix(text: str, golden: str) -> int:
    """How many characters *text* and the reference's *golden* text have in common at the start."""
    pairs = enumerate(zip(text, golden, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(text), len(golden)))


def bits_per_byte(logprobs: Sequence[float], text: str) -> float:
    """Loss on *text*, whose tokens had these natural-log probabilities; comparable across tokenizers."""
    if not text:
        raise ValueError("bits_per_byte: expected a text, got none")
    return -math.fsum(logprobs) / math.log(2) / len(text.encode())


def _encoding(text: str) -> Problem | None:
    if not is_utf8_clean(text):
        return Problem("encoding", "not valid UTF-8, or replacement characters (U+FFFD)")
    bare = _MARKERS.sub("", text)  # some markers have the sign of a raw piece in them
    for what, pattern in (("a control character", _CONTROL), ("an undecoded piece", _RAW_PIECES)):
        if (found := pattern.search(bare)) is not None:
            return Problem("encoding", f"{what}: {found[0]!a}")
    return None


def _specials(text: str, specials: Iterable[str], is_chat: bool) -> Problem | None:
    if leaked := leaked_special_tokens(text, specials):
        return Problem("special tokens", f"in the text: {', '.join(leaked)}")
    if is_chat and (role := _ROLE_LINE.search(text)) is not None:
        return Problem("special tokens", f"the text goes on into the next turn: a line {role[0]!r}")
    return None


def _repetition(text: str) -> Problem | None:
    text = text[:JUDGED_CHARACTERS]
    repeat = longest_repeat(text)
    short = repeat.words <= LOOP_WORDS and len(repeat.unit) <= LOOP_CHARACTERS
    if short and repeat.share >= LOOP_SHARE:
        shown = repeat.unit.strip() or repeat.unit
        return Problem("repetition", f"{shown!r} {repeat.copies:.0f} times, {repeat.share:.0%} of the text")
    if (ratio := distinct_2(text)) < LEAST_DISTINCT_2:
        return Problem("repetition", f"distinct-2 ratio {ratio:.3f}, expected {LEAST_DISTINCT_2} or more")
    if (packed := compression_ratio(text)) > MOST_COMPRESSION:
        return Problem(
            "repetition", f"compresses {packed:.0f} times, expected {MOST_COMPRESSION:.0f} or less"
        )
    return None


def _gibberish(text: str) -> Problem | None:
    share = common_words_share(text)
    if share is None or share >= LEAST_COMMON_WORDS:
        return None
    return Problem(
        "gibberish", f"{share:.0%} common English words, expected {LEAST_COMMON_WORDS:.0%} or more"
    )


def _longest_run(text: str, period: int) -> tuple[int, int]:
    """Where the longest run of characters equal to the one *period* before ends, and its length."""
    end = longest = run = 0
    for i, (before, here) in enumerate(zip(text, text[period:], strict=False), start=period + 1):
        run = run + 1 if before == here else 0
        if run > longest:
            end, longest = i, run
    return end, longest
