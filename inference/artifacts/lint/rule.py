"""What every rule gets and gives: a question, and findings of three severities."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from inference.artifacts.lint.builds import MLCBuild
from inference.artifacts.lint.checkpoint import Checkpoint
from inference.artifacts.lint.report import Finding, Fix, label

_MAX_SHOWN = 80


@dataclass(frozen=True)
class Question:
    """Does *build* take *checkpoint* at this quantization and context?"""

    checkpoint: Checkpoint
    build: MLCBuild
    quantization: str
    context_tokens: int | None


Rule = Callable[[Question], Iterator[Finding]]
"""A rule; its name with dashes is the finding's, which the linter puts in."""


def error(message: str, hint: str, source: str, fix: Fix | None = None) -> Finding:
    """The build stops, or makes another model of it."""
    return Finding("", "error", message, hint, source, fix)


def warning(message: str, hint: str, source: str) -> Finding:
    """It is taken, with something that should be put right."""
    return Finding("", "warning", message, hint, source)


def note(message: str, hint: str, source: str) -> Finding:
    """It is taken, and this is good to know."""
    return Finding("", "note", message, hint, source)


def shown(value: object) -> str:
    """A value of a file in a message: on one line and short."""
    text = f"'{label(value)}'" if isinstance(value, str) else ascii(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[: _MAX_SHOWN - 3]}..."


def listed(names: list[str], most: int = 4) -> str:
    """A few of many names."""
    rest = len(names) - most
    return ", ".join(shown(name) for name in names[:most]) + (f" and {rest} more" if rest > 0 else "")
