"""The ranking: by what candidates that can be chosen are compared, and how a loser is told so."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from inference.selection.judge import Asked, Judge, gib, task_fit
from inference.selection.sheet import Row, Sheet

TARGET_TOKENS_PER_S = 10.0
"""The latency that "balanced" holds: as fast as a reader reads."""


class Criterion(NamedTuple):
    """One comparison: the lesser *key* is better; *lost* says why the first lost to the second."""

    key: Callable[[Row], Any]
    lost: Callable[[Row, Row], str]


class Ranked(NamedTuple):
    """The best candidate, and the comparisons by which it is the best; the last one leaves no ties."""

    winner: Row
    criteria: list[Criterion]

    def sort(self, rows: Sequence[Row]) -> list[Row]:
        """Return candidates that can be chosen, the best one first."""
        return sorted(rows, key=lambda row: tuple(criterion.key(row) for criterion in self.criteria))

    def why_lost(self, loser: Row) -> str:
        """Return the first comparison that *loser* lost, in words."""
        lost = next(c for c in self.criteria if c.key(loser) != c.key(self.winner))
        return lost.lost(loser, self.winner)


def best(sheet: Sheet, rows: Sequence[Row], asked: Asked, judge: Judge) -> Ranked | None:
    """Return the best of *rows*; ``None`` when none of them can be chosen.

    Those that are equal by the first comparison go on to the second, and so on. What a comparison is
    may depend on who is left: speeds are compared where all of them are known.
    """
    for group in _groups(sheet, rows, asked, judge):
        left = [row for row in group if judge.lacks(row) is None]
        if left:
            return _narrow(left, _first(asked), _then(asked, judge))
    return None


def _groups(sheet: Sheet, rows: Sequence[Row], asked: Asked, judge: Judge) -> list[list[Row]]:
    """Return what is open to the request, in groups that `_first` sets apart, the best group first."""

    def sort(rows: Sequence[Row]) -> list[list[Row]]:
        criteria = _first(asked)
        groups: dict[tuple[Any, ...], list[Row]] = {}
        for row in rows:
            if judge.closed(row) is None:
                groups.setdefault(tuple(criterion.key(row) for criterion in criteria), []).append(row)
        return [groups[key] for key in sorted(groups)]

    return sort(rows) if asked.named else sheet.grouped((asked.task, asked.instructs), sort)


def _narrow(
    left: list[Row], criteria: list[Criterion], stages: Sequence[Callable[[Sequence[Row]], list[Criterion]]]
) -> Ranked:
    for stage in stages:
        for criterion in stage(left):
            criteria.append(criterion)
            if len(left) > 1:
                keys = [criterion.key(row) for row in left]
                least = min(keys)
                left = [row for row, key in zip(left, keys, strict=True) if key == least]
    return Ranked(left[0], criteria)


def _first(asked: Asked) -> list[Criterion]:
    """Return the comparisons that neither memory nor what is loaded can change."""
    base = Criterion(
        lambda row: row.spec.chat == "none",
        lambda _, b: f"it is a base model, which continues text; {b.name} may follow instructions",
    )
    return [
        Criterion(
            lambda row: row.pulled is False, lambda a, _: f"its weights are not here: {a.pull_command}"
        ),
        Criterion(lambda row: row.incompatible is not None, lambda a, _: f"incompatible: {a.incompatible}"),
        *([base] if asked.instructs else []),
        Criterion(
            lambda row: -task_fit(row.spec, asked.task),
            lambda _, b: f"{b.name} fits {asked.task.value} better",
        ),
    ]


def _then(asked: Asked, judge: Judge) -> list[Callable[[Sequence[Row]], list[Criterion]]]:
    """Return the stages that follow: each makes its comparisons for those who are left."""
    by_speed = {"fast": [_fast], "quality": [_quality], "balanced": [_in_time, _quality]}[asked.speed]
    return [
        lambda _: [_shortened(judge)],
        *by_speed,
        lambda _: [_loaded(judge)],
        _faster,
        lambda _: _last(judge),
    ]


def _shortened(judge: Judge) -> Criterion:
    return Criterion(
        judge.is_shortened,
        lambda a, _: f"fits only with a context of {judge.size(a)[0]} of {judge.wanted_tokens(a)} tokens",
    )


def _fast(left: Sequence[Row]) -> list[Criterion]:
    if all(row.tokens_per_s is not None for row in left):
        return [_speed()]
    # Decode re-reads the weights for every token: without a bandwidth, fewer bytes are faster.
    return [
        Criterion(
            lambda row: row.weights_bytes or row.full_bytes,
            lambda a, b: (
                f"more bytes per token: {gib(a.weights_bytes or a.full_bytes)}"
                f" against {gib(b.weights_bytes or b.full_bytes)}"
            ),
        )
    ]


def _in_time(left: Sequence[Row]) -> list[Criterion]:
    if all(_is_slow(row) for row in left):
        return [_speed()]
    return [
        Criterion(
            _is_slow,
            lambda a, _: (
                f"too slow: {a.tokens_per_s:.0f} of {TARGET_TOKENS_PER_S:.0f} tokens/s"
                f" {a.tokens_per_s_source}"
            ),
        )
    ]


def _is_slow(row: Row) -> bool:
    return row.tokens_per_s is not None and row.tokens_per_s < TARGET_TOKENS_PER_S


def _quality(left: Sequence[Row]) -> list[Criterion]:
    parameters = Criterion(
        lambda row: -row.parameter_count,
        lambda a, b: f"fewer parameters: {a.spec.parameters} against {b.spec.parameters}",
    )
    # One measured model among unmeasured ones says nothing of the others.
    if any(row.quality is None for row in left):
        return [parameters]
    measured = Criterion(
        lambda row: -(row.quality or 0.0), lambda a, b: f"lower quality: {a.quality} against {b.quality}"
    )
    return [measured, parameters]


def _loaded(judge: Judge) -> Criterion:
    return Criterion(lambda row: judge.resident(row) is None, lambda _, b: f"{b.name} is already loaded")


def _faster(left: Sequence[Row]) -> list[Criterion]:
    """Among equals: the GPU's engine before those of the CPU, where speeds are known."""
    return [_speed()] if all(row.tokens_per_s is not None for row in left) else []


def _speed() -> Criterion:
    return Criterion(
        lambda row: -(row.tokens_per_s or 0.0),
        lambda a, b: (
            f"slower: {a.tokens_per_s or 0:.0f} tokens/s {a.tokens_per_s_source}"
            f" against {b.tokens_per_s or 0:.0f} {b.tokens_per_s_source}"
        ),
    )


def _last(judge: Judge) -> list[Criterion]:
    return [
        Criterion(
            lambda row: judge.size(row)[1],
            lambda a, b: f"larger: {gib(judge.size(a)[1])} against {gib(judge.size(b)[1])}",
        ),
        Criterion(lambda row: row.order, lambda _, b: f"{b.name} stands before it in the registry"),
    ]
