"""The prompt as the classifier sees it: the features of a text, as short names.

An instruction stands at either end of a prompt; what lies between, and what is quoted, is the material it
speaks of. So cues are told apart by where they stand: in the lead (the first sentence), in the tail (the
last one), or anywhere in the first 300 and the last 200 characters.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from inference.selection import cues

_HEAD_CHARACTERS = 300
_TAIL_CHARACTERS = 200
_SENTENCE_CHARACTERS = 160
_SHORT_LEAD_CHARACTERS = 25
_CODE_CHARACTERS = 4000

NO_CUE = "no cue"  # the feature of a text in which nothing shows what is wanted


@dataclass(frozen=True)
class _Prompt:
    """The ends of a text: as written, and folded and without quotations."""

    written: str
    folded: str
    sentences: int
    lead_end: int
    tail_start: int

    @property
    def lead(self) -> str:
        """The first sentence."""
        return self.folded[: self.lead_end]

    @property
    def tail(self) -> str:
        """The last sentence, if it is not the first one."""
        return self.folded[self.tail_start :]


@dataclass(frozen=True)
class _Found:
    """The groups of cues by where they stand."""

    anywhere: frozenset[str]
    lead: frozenset[str]
    tail: frozenset[str]
    first: frozenset[str]


def features(text: str) -> list[str]:
    """What can be said of *text*; nothing if it has no letter. Only the weights know what a name means."""
    text = _instruction_first(text.strip())
    prompt = _read(text)
    if not any(map(str.isalnum, prompt.folded)):
        return []
    found = _find(prompt)
    said = (
        *_cue_features(found),
        *_word_features(prompt),
        *_language_features(prompt, found),
        *_shape_features(prompt, found),
        *_layout_features(text, prompt),
        _code_feature(text),
    )
    return list(dict.fromkeys(said))


def _instruction_first(text: str) -> str:
    """A text whose last line demands something that the first does not, in the order of the others."""
    material, newline, last = text.rpartition("\n")
    if not newline or last[:1].isspace() or len(last) > _SENTENCE_CHARACTERS:
        return text
    if not _demands(last) or _demands(text):
        return text
    return f"{last}\n{material.rstrip()}"


def _demands(text: str) -> bool:
    first = cues.words(cues.fold(text[:_SHORT_LEAD_CHARACTERS]))[:1]
    return any(not cues.groups(word).isdisjoint(_DEMANDS) for word in first)


def _read(written: str) -> _Prompt:
    if len(written) > _HEAD_CHARACTERS + _TAIL_CHARACTERS:
        written = f"{written[:_HEAD_CHARACTERS].strip()}\n{written[-_TAIL_CHARACTERS:].strip()}"
    bare = _QUOTED.sub(' " ', written)
    folded = cues.fold(bare if bare.strip(' ".!?\n') else written).strip()
    starts = [0, *(match.end() for match in _SENTENCE_END.finditer(folded) if match.end() < len(folded))]
    lead_end = next((at for at in starts[1:] if not _is_mere_address(folded[:at])), len(folded))
    tail_start = starts[-1] if starts[-1] >= lead_end else len(folded)
    return _Prompt(
        written,
        folded,
        len(starts),
        min(lead_end, _SENTENCE_CHARACTERS),
        max(tail_start, len(folded) - _SENTENCE_CHARACTERS) if tail_start < len(folded) else len(folded),
    )


def _is_mere_address(lead: str) -> bool:
    """Whether a sentence is too short to hold an instruction: "Hi there!"."""
    if len(lead) >= _SHORT_LEAD_CHARACTERS or cues.unparted_letters(lead):
        return False
    return len(lead.split()) <= 3 and not lead.rstrip().endswith(_COLONS)


def _find(prompt: _Prompt) -> _Found:
    places = cues.places(prompt.folded)
    words = cues.words(prompt.lead)[:1]
    return _Found(
        anywhere=frozenset(group for _, group in places),
        lead=frozenset(group for at, group in places if at < prompt.lead_end),
        tail=frozenset(group for at, group in places if at >= prompt.tail_start),
        first=frozenset(group for at, group in places if at == 0).union(*map(cues.groups, words)),
    )


def _cue_features(found: _Found) -> Iterator[str]:
    if not found.anywhere - _MERE_TOPICS and "ask" not in found.first:
        yield NO_CUE
    for place, groups in zip("ALTF", (found.anywhere, found.lead, found.tail, found.first), strict=True):
        for group in sorted(groups - {"dangling"}):
            yield f"{place}:{group}"


def _word_features(prompt: _Prompt) -> Iterator[str]:
    lead = cues.words(prompt.lead)
    for word in (*lead, *cues.words(prompt.tail)):
        yield f"w:{word}"
    if lead:
        yield f"1:{lead[0]}"
    asked = next((word for word in lead if word not in _POLITE), "")
    for group in sorted(cues.groups(asked) - {"dangling"}):
        yield f"V:{group}"


def _language_features(prompt: _Prompt, found: _Found) -> Iterator[str]:
    """ "To French" is clearer than "French", which a poem may be too."""
    if "language" in found.anywhere:
        words = cues.words(prompt.folded)
        if any(before in _INTO and "language" in cues.groups(word) for before, word in pairwise(words)):
            yield "into_language"
        if prompt.lead.rstrip().endswith(_COLONS) and len(prompt.lead.split()) <= 6:
            yield "language:"
    if _LANGUAGE_PAIR.search(prompt.lead):
        yield "language_pair"


def _shape_features(prompt: _Prompt, found: _Found) -> Iterator[str]:
    """How long the text is, how it ends, and who does what in it."""
    words = cues.words(prompt.folded)
    size = _size(len(words) + cues.unparted_letters(prompt.folded) / 2)
    end = _end(prompt.written)
    yield from (size, f"end{end}", f"end{end}{size}")
    for group in ("i", "you", "third_person", "feeling"):
        if group in found.anywhere:
            yield f"end{end}{group}"
    for group in ("ask", "write", "explain", "continue"):
        if group in found.lead | found.tail:
            yield f"end{end}{group}"
    if end in "0," and words and "dangling" in cues.groups(words[-1]):
        yield from ("dangling", f"dangling{size}")
    if end in "0,~" and prompt.written[0].isupper():
        yield from ("open", f"open{size}", f"open{min(prompt.sentences, 3)}")
    yield from _voice_features(found, end, size)


def _voice_features(found: _Found, end: str, size: str) -> Iterator[str]:
    """Whether the text asks for something, and whether anybody speaks in it of himself."""
    speaks = bool(found.anywhere & {"i", "you"})
    if not found.first & _DEMANDS:
        yield from ("told", f"told{end}", f"told{size}")
        if not speaks:
            yield from ("impersonal", f"impersonal{end}", f"impersonal{size}")
    if "i" in found.anywhere and "you" not in found.anywhere:
        yield "i alone"
    if "i" in found.first:
        yield f"i first{end}"


def _layout_features(text: str, prompt: _Prompt) -> Iterator[str]:
    yield f"s{min(prompt.sentences, 4)}"
    if prompt.written[0].islower():
        yield "lower"
    if "\n" in text:
        yield "paragraphs" if "\n\n" in text else "lines"
    if '"' in prompt.folded:
        yield "quotes"
    if "?" in prompt.written or "\uff1f" in prompt.written:
        yield "asks"
    if any(colon in prompt.lead for colon in _COLONS):
        yield "colon"
    if _DIGIT.search(prompt.written):
        yield "digit"
    if _SUM.search(prompt.written):
        yield "sum"


def _code_feature(text: str) -> str:
    score = sum(weight for weight, pattern in _CODE_SYNTAX if pattern.search(text[:_CODE_CHARACTERS]))
    return f"code{0 if score == 0 else 1 if score <= 2 else 2 if score <= 4 else 3}"


def _size(words: float) -> str:
    return next((f"<={limit}" for limit in (3, 8, 20, 60) if words <= limit), ">60")


def _end(text: str) -> str:
    """How a text ends: "?", "!", ":", ",", "~" (an ellipsis), "." or, unfinished or careless, "0"."""
    text = text.rstrip(" \t\n\"'*)\u201d\u00bb\u300d")
    if "\u00bf" in text:
        return "?"
    if text.endswith(("...", "\u2026")):
        return "~"
    return next((end for end, signs in _ENDS if text.endswith(signs)), "0")


_COLONS = (":", "\uff1a")
_ENDS = (
    ("?", ("?", "\uff1f", "\u061f")),
    ("!", ("!", "\uff01")),
    (":", _COLONS),
    (",", (",", ";", "\uff0c", "\u3001", "\u060c")),
    (".", (".", "\u3002", "\u0964")),
)
_SENTENCE_END = re.compile(
    r"(?<=[.!?:;\u2026\u0964])\s+|(?<=[\u3002\uff01\uff1f\uff1a])\s*|\n+",
)
_QUOTED = re.compile(
    r"\"[^\"\n]{3,400}\"|\u201c[^\u201d]{3,400}\u201d|\u201e[^\u201c\u201d]{3,400}[\u201c\u201d]"
    r"|\u00ab[^\u00bb]{3,400}\u00bb|\u300c[^\u300d]{2,400}\u300d|\u2018[^\u2019]{3,400}\u2019"
    r"|(?<!\w)'[^'\n]{3,200}'(?!\w)|`[^`]{1,2000}`"
)
_DIGIT = re.compile(r"\d")
_SUM = re.compile(r"\d\s*[-+*/x^\u00d7\u00f7=%]\s*\d|\d+x\b|\d ?%")
_LANGUAGE_CODE = r"(?:en|de|fr|es|it|pt|nl|ru|ja|jp|zh|cn|ko|pl|tr|ar|hi|sv|cs|uk|[a-z]{5,10})"
_LANGUAGE_PAIR = re.compile(rf"\b{_LANGUAGE_CODE} ?(?:->|=>|>|\u2192) ?{_LANGUAGE_CODE}\b")
_INTO = cues.word_set("into to in ins al auf aus em en het la na nach naar pa para po til till zum на")
# What may come before the word that says what is wanted.
_POLITE = cues.word_set(
    "please pls plz kindly just hi hey hello can could would you i i'd need want like to me us a an the some"
    " bitte kannst konntest du ich mochte brauche mir ein eine einen je tu vous peux pouvez un une puedes"
    " podrias puoi potresti pode poderia um uma kun"
)
_DEMANDS = cues.word_set(
    "ask code_task continue explain greet please shorten summarize thanks translate write"
)
# What a text speaks of, or how, and not what is wanted.
_MERE_TOPICS = cues.word_set("ask dangling i language number person reference third_person today you")
# Alternatives begin with a plain character each: so the search may skip what is none of these.
_CODE_SYNTAX = (
    (3, re.compile(r"```")),
    (3, re.compile(r"^[ \t]*(?:def \w+\(|class \w+[:({]|import \w+|from [\w.]+ import )", re.MULTILINE)),
    (3, re.compile(r"#include ?<|#!/|public static|console\.log|System\.out|std::|<\?php|</\w")),
    (3, re.compile(r"fn \w+\(|func \w+\(|\) ?=>")),
    (3, re.compile(r"\bselect [^\n]{1,80} from \w+|\binsert into |\bcreate table |\bupdate \w+ set ", re.I)),
    (
        2,
        re.compile(
            r"\{(?<=[\w) ]\{)$|\);$|\};$|\];$|\}$|=> ?[{(]|\((?<=\w\()\w*\)|== ?\w|!= ?\w|\[(?<=\w\[)\w+\]"
            r"|\+= |for \w+ in |= ?\w+[\[(]",
            re.MULTILINE,
        ),
    ),
    (
        2,
        re.compile(
            r"Traceback \(|Error(?<=\wError)\b|Exception(?<=\wException)\b|error:|error\[|\.(?<=\w\.)\w+\("
        ),
    ),
    (
        2,
        re.compile(
            r"--\w+[= ]|_(?<=[^\W_]_)[^\W_]|\.(?<=\w\.)(?:py|js|ts|c|cpp|rs|go|sh|java|json|csv|txt)\b"
        ),
    ),
)
