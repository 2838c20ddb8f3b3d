"""The fixed inputs: the text that loss is measured on, and the prompts that every model gets."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib import resources


@dataclass(frozen=True)
class StopPrompt:
    """A text to continue greedily, and the strings that a continuation soon comes to."""

    prompt: str
    stop: tuple[str, ...]


@dataclass(frozen=True)
class Prompts:
    """Prompts by purpose: user turns, English to continue, other scripts to continue, stop strings."""

    chat: tuple[str, ...]
    base: tuple[str, ...]
    unicode: tuple[str, ...]
    stop: tuple[StopPrompt, ...]


@cache
def text() -> str:
    """About 3 kB of English prose, ASCII only, that no model can have memorised."""
    return _read("text.txt")


@cache
def prompts() -> Prompts:
    """The prompts of prompts.json."""
    data = json.loads(_read("prompts.json"))
    return Prompts(
        chat=tuple(data["chat"]),
        base=tuple(data["base"]),
        unicode=tuple(data["unicode"]),
        stop=tuple(StopPrompt(case["prompt"], tuple(case["stop"])) for case in data["stop"]),
    )


def _read(name: str) -> str:
    return resources.files("phase3.data").joinpath(name).read_text(encoding="utf-8")
