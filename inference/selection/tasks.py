"""The task: what kind of work a prompt asks for, seen from its words."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from enum import Enum
from itertools import pairwise

from inference.generation import Message
from inference.selection import cues


class Task(str, Enum):
    """What a model may be asked to do. *embedding* and *vision* are stated by requests, never guessed."""

    CONVERSATION = "conversation"
    CREATIVE_WRITING = "creative_writing"
    CODE = "code"
    SUMMARIZATION = "summarization"
    TRANSLATION = "translation"
    QUESTION_ANSWERING = "question_answering"
    TEXT_GENERATION = "text_generation"
    EMBEDDING = "embedding"
    VISION = "vision"


# Instructions stand at either end of a prompt; what lies between is the material they speak of.
_HEAD_CHARACTERS = 300
_TAIL_CHARACTERS = 200
_CODE_CHARACTERS = 4000
_THRESHOLD = 2.0
_SYSTEM_WEIGHT = 0.5  # a system message names many tasks more often than it sets one

# At equal scores the earlier one wins.
_GUESSED = (
    Task.TRANSLATION,
    Task.SUMMARIZATION,
    Task.CODE,
    Task.CREATIVE_WRITING,
    Task.TEXT_GENERATION,
    Task.CONVERSATION,
    Task.QUESTION_ANSWERING,
)


def classify(text: str | Sequence[Message]) -> Task:
    """Guess the task of a raw prompt or of a chat; the same input always gives the same task.

    In a chat the last user message decides, and the system message where that says nothing. Without
    a cue a chat is conversation and a raw prompt is text to be continued.
    """
    if isinstance(text, str):
        return _best(_scores(text)) or Task.TEXT_GENERATION
    asked = next((m.content for m in reversed(text) if m.role == "user"), "")
    rules = next((m.content for m in text if m.role == "system"), "")
    weakened = {task: score * _SYSTEM_WEIGHT for task, score in _scores(rules).items()}
    return _best(_scores(asked)) or _best(weakened) or Task.CONVERSATION


def _best(scores: Mapping[Task, float]) -> Task | None:
    task = max(_GUESSED, key=lambda task: scores[task])
    return task if scores[task] >= _THRESHOLD else None


def _scores(text: str) -> dict[Task, float]:
    scores = dict.fromkeys(_GUESSED, 0.0)
    instruction = _instruction(text)
    words = _WORD.findall(instruction)
    parts = frozenset(part for word in words for part in (word, *word.split("-")))
    _add_cues(scores, instruction, parts)
    _add_languages(scores, words)
    _add_writing(scores, instruction, parts)
    _add_question(scores, instruction)
    scores[Task.CODE] += _code_syntax(text[:_CODE_CHARACTERS])
    return scores


def _instruction(text: str) -> str:
    if len(text) > _HEAD_CHARACTERS + _TAIL_CHARACTERS:
        text = f"{text[:_HEAD_CHARACTERS]}\n{text[-_TAIL_CHARACTERS:]}"
    return text.lower().replace("\u2019", "'")


def _add_cues(scores: dict[Task, float], text: str, words: frozenset[str]) -> None:
    for word in words & _WORDS.keys():
        task, weight = _WORDS[word]
        scores[task] += weight  # multiples of a half: exact in any order
    for task, weight, phrases in _PHRASES:
        if _has(text, phrases):
            scores[task] += weight


def _add_languages(scores: dict[Task, float], words: Sequence[str]) -> None:
    """Asking for something "to French" is clearer than "in French", which a poem may be too."""
    before = {previous for previous, word in pairwise(words) if word in _LANGUAGES}
    scores[Task.TRANSLATION] += 3.0 if before & _INTO_WORDS else 2.5 if before & _IN_WORDS else 0.0


def _add_writing(scores: dict[Task, float], text: str, words: frozenset[str]) -> None:
    """A verb of writing weighs by its object: a poem is creative, an e-mail is text."""
    verb = bool(words & _WRITING_VERBS) or _has(text, _WRITING_VERB_PHRASES)
    if words & _CREATIVE_NOUNS or _has(text, _CREATIVE_NOUN_PHRASES):
        scores[Task.CREATIVE_WRITING] += 3.0 if verb else 2.0
    if words & _PLAIN_NOUNS or _has(text, _PLAIN_NOUN_PHRASES):
        scores[Task.TEXT_GENERATION] += 3.0 if verb else 0.5


def _add_question(scores: dict[Task, float], text: str) -> None:
    """A question shows by its first word or its mark; one about the listener is conversation."""
    sentences = _SENTENCE_END.split(text.strip())
    asks = any(_asks(sentence) for sentence in (*sentences[:1], *sentences[-1:]))
    asks = asks or _has(text, _QUESTION_PHRASES)
    marked = text.rstrip(" \t\n\"'*").endswith(_QUESTION_MARKS) or "\u00bf" in text
    scores[Task.QUESTION_ANSWERING] += (2.0 if asks else 0.0) + (1.0 if marked else 0.0)
    if _has(text, _LISTENER_PHRASES):
        scores[Task.CONVERSATION] += 3.0


def _asks(sentence: str) -> bool:
    first = _WORD.search(sentence)
    if first is None or first.group() not in _QUESTION_STARTS:
        return False
    return not sentence.startswith(_REQUESTS, first.start())


def _has(text: str, phrases: Sequence[str]) -> bool:
    return any(phrase in text for phrase in phrases)


def _code_syntax(text: str) -> float:
    return min(4.0, sum(weight for weight, pattern in _CODE_SYNTAX if pattern.search(text)))


def _parted(phrases: str) -> tuple[str, ...]:
    return tuple(phrases.split("|"))


_LETTER = r"[^\W_\u3040-\u30ff\u4e00-\u9fff\uac00-\ud7af]"  # Chinese, Japanese and Korean part no words
_WORD = re.compile(rf"{_LETTER}+(?:[-']{_LETTER}+)*(?:\+\+|#)?")
_WORDS = {word: (Task(task), weight) for task, weight, text in cues.WORDS for word in text.split()}
_PHRASES = tuple((Task(task), weight, _parted(text)) for task, weight, text in cues.PHRASES)
_WRITING_VERBS = frozenset(cues.WRITING_VERBS.split())
_WRITING_VERB_PHRASES = _parted(cues.WRITING_VERB_PHRASES)
_CREATIVE_NOUNS = frozenset(cues.CREATIVE_NOUNS.split())
_CREATIVE_NOUN_PHRASES = _parted(cues.CREATIVE_NOUN_PHRASES)
_PLAIN_NOUNS = frozenset(cues.PLAIN_NOUNS.split())
_PLAIN_NOUN_PHRASES = _parted(cues.PLAIN_NOUN_PHRASES)
_QUESTION_STARTS = frozenset(cues.QUESTION_STARTS.split())
_QUESTION_PHRASES = _parted(cues.QUESTION_PHRASES)
_SENTENCE_END = re.compile(r"[.!?:\n]\s+")
_QUESTION_MARKS = ("?", "\uff1f", "\u061f")
_LISTENER_PHRASES = _parted(cues.LISTENER_PHRASES)

_REQUESTS = _parted(cues.REQUESTS)
_LANGUAGES = frozenset(cues.LANGUAGES.split())
_INTO_WORDS = frozenset(cues.INTO_WORDS.split())
_IN_WORDS = frozenset(cues.IN_WORDS.split())

_CODE_SYNTAX = (
    (3.0, re.compile(r"```")),
    (3.0, re.compile(r"^[ \t]*(?:def \w+\(|class \w+[:(]|import \w+$|from [\w.]+ import )", re.MULTILINE)),
    (3.0, re.compile(r"#include ?<|#!/|public static|console\.log|System\.out|std::|fn main|<\?php|</\w")),
    (3.0, re.compile(r"\bselect [^\n]{1,80} from \w+ (?:where|join|group|order|limit)|\binsert into ", re.I)),
    (2.0, re.compile(r"[\w)] ?\{$|[)}\]];$|^\s*\}$|=> ?[{(]|\w\(\w*\)|\w ?== ?\w", re.MULTILINE)),
    (2.0, re.compile(r"Traceback \(most recent|[a-z](?:Error|Exception)\b|\berror: ")),
)  # fmt: skip
