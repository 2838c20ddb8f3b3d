"""The ranking: by what candidates that can be chosen are compared, and how a loser is told so."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from inference.selection.judge import Asked, Judged, gib

TARGET_TOKENS_PER_S = 10.0
"""The latency that "balanced" holds: as fast as a reader reads."""


class Criterion(NamedTuple):
    """One comparison: the lesser *key* is better; *lost* says why the first lost to the second."""

    key: Callable[[Judged], Any]
    lost: Callable[[Judged, Judged], str]


def criteria(asked: Asked, standing: Sequence[Judged]) -> list[Criterion]:
    """Return the comparisons, the most important one first; the last one leaves no ties."""
    by_speed = {"fast": _fast, "quality": _quality, "balanced": _balanced}[asked.speed]
    return [
        Criterion(lambda j: j.incompatible is not None, lambda a, _: f"incompatible: {a.incompatible}"),
        *([_chat()] if asked.chat else []),
        Criterion(lambda j: -j.task_fit, lambda _, b: f"{b.key} fits {asked.task.value} better"),
        *by_speed(standing),
        Criterion(lambda j: not j.resident, lambda _, b: f"{b.key} is already loaded"),
        Criterion(
            lambda j: j.memory_bytes, lambda a, b: _more("larger", gib, a.memory_bytes, b.memory_bytes)
        ),
        Criterion(lambda j: j.order, lambda _, b: f"{b.key} stands before it in the registry"),
    ]


def rank(criteria: Sequence[Criterion], standing: Sequence[Judged]) -> list[Judged]:
    """Return the candidates, the best one first."""
    return sorted(standing, key=lambda judged: tuple(criterion.key(judged) for criterion in criteria))


def why_lost(criteria: Sequence[Criterion], loser: Judged, winner: Judged) -> str:
    """Return the first comparison that *loser* lost, in words."""
    lost = next(c for c in criteria if c.key(loser) != c.key(winner))
    return lost.lost(loser, winner)


def _chat() -> Criterion:
    return Criterion(
        lambda j: j.spec.chat_template == "none",
        lambda a, b: f"it has no chat template; {b.key} may have one",
    )


def _fast(standing: Sequence[Judged]) -> list[Criterion]:
    if all(judged.tokens_per_s is not None for judged in standing):
        return [_speed()]
    # Decode re-reads the weights for every token: without a bandwidth, fewer bytes are faster.
    return [
        Criterion(
            lambda j: j.weights_bytes or j.memory_bytes,
            lambda a, b: _more(
                "more bytes per token",
                gib,
                a.weights_bytes or a.memory_bytes,
                b.weights_bytes or b.memory_bytes,
            ),
        )
    ]


def _quality(standing: Sequence[Judged]) -> list[Criterion]:
    parameters = Criterion(
        lambda j: -j.spec.parameter_count,
        lambda a, b: f"fewer parameters: {a.spec.parameters} against {b.spec.parameters}",
    )
    # One measured model among unmeasured ones says nothing of the others.
    if any(judged.spec.quality is None for judged in standing):
        return [parameters]
    measured = Criterion(
        lambda j: -(j.spec.quality or 0.0),
        lambda a, b: f"lower quality: {a.spec.quality} against {b.spec.quality}",
    )
    return [measured, parameters]


def _balanced(standing: Sequence[Judged]) -> list[Criterion]:
    in_time = Criterion(
        _is_slow,
        lambda a, _: f"too slow: {a.tokens_per_s:.0f} of {TARGET_TOKENS_PER_S:.0f} tokens/s predicted",
    )
    if all(_is_slow(judged) for judged in standing):
        return [_speed(), *_quality(standing)]
    return [in_time, *_quality([judged for judged in standing if not _is_slow(judged)])]


def _is_slow(judged: Judged) -> bool:
    return judged.tokens_per_s is not None and judged.tokens_per_s < TARGET_TOKENS_PER_S


def _speed() -> Criterion:
    return Criterion(
        lambda j: -(j.tokens_per_s or 0.0),
        lambda a, b: (
            f"slower: {a.tokens_per_s or 0:.0f} against {b.tokens_per_s or 0:.0f} tokens/s predicted"
        ),
    )


def _more(word: str, show: Callable[[int], str], mine: int, theirs: int) -> str:
    return f"{word}: {show(mine)} against {show(theirs)}"
