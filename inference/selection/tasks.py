"""The task: what kind of work a prompt asks for, guessed from its features."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cache
from pathlib import Path

from inference.generation import Message
from inference.selection.prompt import NO_CUE, features


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


# Scores are log-odds times 100, as in the file of weights: whole numbers, so that any order of adding
# gives the same sum on every machine.
_WEIGHTS_FILE = Path(__file__).with_name("tasks.json")
_CHAT_FAVOURS_CONVERSATION = 100
_IN_DOUBT = 200  # a smaller lead of the best task over the second is a doubt
_SHORT = frozenset(("<=3", "<=8"))


@dataclass(frozen=True)
class _Weights:
    """What each feature says for or against each task, and what counts without any."""

    tasks: tuple[Task, ...]
    bias: tuple[int, ...]
    features: Mapping[str, tuple[int, ...]]


def classify(text: str | Sequence[Message]) -> Task:
    """Guess the task of a raw prompt or of a chat; the same input always gives the same task.

    In a chat the last user message decides; where it leaves a doubt, the system message or else the user
    message before it, if that is clear. Without any cue a chat is conversation and a raw prompt is text
    to be continued.
    """
    if isinstance(text, str):
        return _best(_scores(features(text))) or Task.TEXT_GENERATION
    return _chat_task(text) or Task.CONVERSATION


def _chat_task(messages: Sequence[Message]) -> Task | None:
    asked = [message.content for message in messages if message.role == "user"]
    rules = [message.content for message in messages if message.role == "system"]
    scores = _message_scores(asked[-1]) if asked else {}
    if _lead(scores) >= _IN_DOUBT:
        return _best(scores)
    context = (_clear_task(text) for text in (*rules[:1], *asked[-2:-1]))
    return next(filter(None, context), None) or _best(scores)


def _clear_task(context: str) -> Task | None:
    """The task that a context sets; one that looks like conversation (a persona, a greeting) sets none."""
    scores = _scores(features(context))
    task = _best(scores)
    return None if task is Task.CONVERSATION or _lead(scores) < _IN_DOUBT else task


def _message_scores(text: str) -> dict[Task, int]:
    """The scores of what was said in a chat; none for a few words that ask for nothing recognizable."""
    said = features(text)
    scores = _scores(said)
    if not scores:
        return scores
    if NO_CUE in said and not _SHORT.isdisjoint(said) and _best(scores) is Task.TEXT_GENERATION:
        return {}
    return {**scores, Task.CONVERSATION: scores[Task.CONVERSATION] + _CHAT_FAVOURS_CONVERSATION}


def _best(scores: Mapping[Task, int]) -> Task | None:
    return max(scores, key=lambda task: scores[task], default=None)


def _lead(scores: Mapping[Task, int]) -> int:
    best, second = sorted(scores.values(), reverse=True)[:2] or (0, 0)
    return best - second


def _scores(said: Sequence[str]) -> dict[Task, int]:
    """The score of every task; none for a text of which nothing can be said."""
    if not said:
        return {}
    weights = _weights()
    known = [weights.features[feature] for feature in said if feature in weights.features]
    return dict(zip(weights.tasks, map(sum, zip(weights.bias, *known, strict=True)), strict=True))


@cache
def _weights() -> _Weights:
    content = json.loads(_WEIGHTS_FILE.read_text(encoding="utf-8"))
    return _Weights(
        tasks=tuple(Task(task) for task in content["tasks"]),
        bias=tuple(content["bias"]),
        features={feature: tuple(row) for feature, row in content["weights"].items()},
    )
