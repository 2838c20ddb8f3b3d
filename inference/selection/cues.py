"""The cues: groups of words and phrases of many languages, and where they stand in a text.

They lie in ``cues.json``. A word there is a whole word; with ``*`` behind it the beginning of one, and
with ``*`` before it the end of one. Phrases, parted by ``|``, are looked for anywhere: those of more than
one word, and those of scripts that part no words. Case and the accents of Latin letters do not count.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from operator import add
from pathlib import Path

_FILE = Path(__file__).with_name("cues.json")
# By how many of their characters phrases, beginnings and endings are found; phrases may be shorter.
_PHRASE_KEY = 3
_BEGINNING_KEY = 3
_ENDING_KEY = 4
_UNPARTED = r"\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\u0e00-\u0e7f"  # kana, Han, Hangul, Thai
_LETTER = rf"[^\W_{_UNPARTED}]"
_WORD = re.compile(rf"{_LETTER}[^\W{_UNPARTED}]*(?:[-'.]{_LETTER}+)*(?:\+\+|#)?")
_UNPARTED_LETTER = re.compile(rf"[{_UNPARTED}]")
_DRAWN_OUT = re.compile(r"([a-z])\1{2,}")
# Letters that no canonical decomposition makes plain, the typographic apostrophe, and the dot that a
# Turkish capital leaves behind.
_PLAIN = {0xDF: "ss", 0xE6: "ae", 0xF8: "o", 0x111: "d", 0x131: "i", 0x142: "l", 0x153: "oe"}
_SIGNS = {0x2019: "'", 0x307: ""}


_Entries = tuple[tuple[str, str], ...]  # (what is looked for, its group)


@dataclass(frozen=True)
class _Cues:
    words: Mapping[str, _Entries]
    beginnings: Mapping[str, _Entries]
    endings: Mapping[str, _Entries]
    phrases: Mapping[str, _Entries]


def fold(text: str) -> str:
    """Lower case, Latin letters without accents, "heyyy" as "hey"."""
    return _DRAWN_OUT.sub(r"\1", text.lower().translate(_folding()))


def words(text: str) -> list[str]:
    """The words of a folded text; "l'article" and "one-line" count whole and in parts."""
    return [part for word in _WORD.findall(text) for part in _with_parts(word)]


def word_set(text: str) -> frozenset[str]:
    """Words parted by spaces, as a set."""
    return frozenset(text.split())


def unparted_letters(text: str) -> int:
    """How many letters belong to scripts that do not part words by spaces."""
    return len(_UNPARTED_LETTER.findall(text))


def groups(word: str) -> set[str]:
    """The groups that have a folded word."""
    known = _cues()
    found = {group for _, group in known.words.get(word, ())}
    for beginning, group in known.beginnings.get(word[:_BEGINNING_KEY], ()):
        if word.startswith(beginning):
            found.add(group)
    for ending, group in known.endings.get(word[-_ENDING_KEY:], ()):
        if word.endswith(ending):
            found.add(group)
    return found


def places(text: str) -> list[tuple[int, str]]:
    """Where in a folded text a cue begins and of which group it is, in the order of the text."""
    return sorted({*_word_places(text), *_phrase_places(text)})


def _word_places(text: str) -> Iterator[tuple[int, str]]:
    known: dict[str, set[str]] = {}
    for match in _WORD.finditer(text):
        word = match.group()
        if word not in known:
            known[word] = set().union(*map(groups, _with_parts(word)))
        for group in known[word]:
            yield match.start(), group


def _phrase_places(text: str) -> Iterator[tuple[int, str]]:
    phrases = _cues().phrases
    pairs = list(map(add, text, text[1:]))
    for key in phrases.keys() & {*text, *pairs, *map(add, pairs, text[2:])}:
        for phrase, group in phrases[key]:
            at = text.find(phrase)
            if at >= 0 and not _is_inside_word(text, at):
                yield at, group


def _is_inside_word(text: str, at: int) -> bool:
    return at > 0 and text[at] < "\u0530" and text[at].isalpha() and text[at - 1].isalpha()


def _with_parts(word: str) -> list[str]:
    parts = word.replace("-", "'").split("'")
    return [word, *parts] if len(parts) > 1 else parts


@cache
def _folding() -> dict[int, str]:
    letters = {code: unicodedata.normalize("NFD", chr(code))[0] for code in range(0xC0, 0x250)}
    return {**{code: plain for code, plain in letters.items() if plain != chr(code)}, **_PLAIN, **_SIGNS}


@cache
def _cues() -> _Cues:
    content = json.loads(_FILE.read_text(encoding="utf-8"))
    words = [
        (entry, group)
        for group, kinds in content.items()
        for entry in fold(" ".join(kinds.get("words", ()))).split()
    ]
    phrases = [
        (phrase, group)
        for group, kinds in content.items()
        for phrase in fold("|".join(kinds.get("phrases", ()))).split("|")
        if phrase
    ]
    beginnings = [(entry[:-1], group) for entry, group in words if entry.endswith("*")]
    endings = [(entry[1:], group) for entry, group in words if entry.startswith("*")]
    return _Cues(
        words=_keyed(words, lambda word: word),
        beginnings=_keyed(beginnings, lambda beginning: beginning[:_BEGINNING_KEY]),
        endings=_keyed(endings, lambda ending: ending[-_ENDING_KEY:]),
        phrases=_keyed(phrases, lambda phrase: phrase[:_PHRASE_KEY]),
    )


def _keyed(entries: Iterable[tuple[str, str]], key: Callable[[str], str]) -> dict[str, _Entries]:
    table: dict[str, list[tuple[str, str]]] = {}
    for text, group in entries:
        table.setdefault(key(text), []).append((text, group))
    return {key: tuple(entries) for key, entries in table.items()}
