"""The selector: which variant of which model serves a request, and why; a pure function of its arguments."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from inference.errors import InvalidRequestError, ModelNotFoundError
from inference.selection.judge import Asked, Judge, gib, task_fit
from inference.selection.ranking import Ranked, best
from inference.selection.refusal import refuse
from inference.selection.sheet import Row, Sheet
from inference.selection.tasks import Task
from inference.selection.world import Candidate, Resident, Selection, World, effective_variants

__all__ = ["Candidate", "Resident", "Selection", "World", "effective_variants", "select"]

SPEEDS = ("fast", "balanced", "quality")


def select(
    world: World,
    *,
    model: str | None,
    variant: str | None,
    task: Task,
    speed: str,
    chat: bool = False,
    context_tokens: int | None = None,
) -> Selection:
    """Choose for one request; equal arguments give an equal result.

    Args:
        model: a registry name or alias, or ``None`` to choose among all that is registered.
        variant: the name of one of the model's variants; ``None`` lets any be chosen.
        speed: "fast", "balanced" or "quality".
        chat: whether the request is a chat, which a model without a chat template only continues.
        context_tokens: the context that the request needs; by default the setting's, or a shorter one
            where memory is scarce.

    Raises:
        InvalidRequestError: an argument is out of range, or *variant* comes without a model.
        ModelNotFoundError: no such model or variant, or none serves the task.
        NoUsableBackendError: its engine is not installed here.
        DoesNotFitError: it needs more memory or context than can be given to it, whoever leaves.
    """
    if speed not in SPEEDS:
        raise InvalidRequestError(f"speed: expected one of {', '.join(SPEEDS)}, got {speed!r}", param="speed")
    if context_tokens is not None and context_tokens < 1:
        raise InvalidRequestError(
            f"context_tokens: expected at least 1, got {context_tokens}", param="context_tokens"
        )
    asked = Asked(task, speed, model is not None, chat, context_tokens)
    sheet = Sheet.of(world)
    rows = _rows(world, sheet, model, variant)
    judge = Judge(world, asked)
    ranked = best(sheet, rows, asked, judge)
    if ranked is None:
        raise refuse(world, rows, asked)
    winner = ranked.winner
    context, memory_bytes = judge.size(winner)
    reason = _reason(asked, judge, winner)
    return Selection(
        model=winner.model,
        variant=winner.variant_name,
        context_tokens=context,
        reason=reason,
        task=task,
        speed=speed,
        memory_bytes=memory_bytes,
        tokens_per_s=winner.tokens_per_s,
        pulled=winner.pulled,
        pull_command=winner.pull_command if winner.pulled is False else None,
        explain=lambda: _explain(rows, asked, judge, ranked, reason),
    )


def _rows(world: World, sheet: Sheet, model: str | None, variant: str | None) -> Sequence[Row]:
    """Return what may be chosen from, in the order of the registry."""
    if model is None:
        if variant is not None:
            raise InvalidRequestError(
                f"variant: {variant!r} is a variant of no model; name the model too", param="variant"
            )
        return sheet.rows
    name, _ = world.registry.get(model)
    rows = sheet.by_model[name]
    if variant is None:
        return rows
    named = [row for row in rows if row.variant_name == variant]
    if not named:
        raise _unknown_variant(name, variant, [row.variant_name for row in rows])
    return named


def _unknown_variant(model: str, variant: str, known: list[str]) -> ModelNotFoundError:
    close = difflib.get_close_matches(variant[:100], known, n=1)
    guess = f"did you mean '{close[0]}'? " if close else ""
    return ModelNotFoundError(
        f"{model} has no variant {variant[:100]!r}",
        hint=f"{guess}it has: {', '.join(known)}",
        param="variant",
    )


def _reason(asked: Asked, judge: Judge, winner: Row) -> str:
    task, room_bytes = asked.task.value, judge.room_bytes
    fit = {
        2: f"best task fit ({task})",
        1: f"serves {task} as a generalist",
        0: f"nothing is made for {task}",
    }[task_fit(winner.spec, asked.task)]
    context, memory_bytes = judge.size(winner)
    size = f"{gib(memory_bytes)} of {'unknown memory' if room_bytes is None else gib(room_bytes)}"
    loaded = judge.resident(winner) is not None
    parts = [
        f"{winner.name}: {'named by the request' if asked.named else f'{fit}, {asked.speed}'}",
        f"{winner.spec.parameters} parameters, {_speed(winner)}",
        "already loaded" if loaded else size,
    ]
    if judge.is_shortened(winner):
        parts.append(f"context of {context} instead of {judge.wanted_tokens(winner)} tokens to fit")
    if winner.incompatible is not None:
        parts.append(f"though incompatible: {winner.incompatible}")
    if winner.pulled is False:
        parts.append(f"its weights are not here: {winner.pull_command}")
    return "; ".join(parts)


def _speed(row: Row) -> str:
    if row.tokens_per_s is None:
        return "speed unknown"
    return f"{row.tokens_per_s:.0f} tokens/s {row.tokens_per_s_source}"


def _explain(
    rows: Sequence[Row], asked: Asked, judge: Judge, ranked: Ranked, reason: str
) -> tuple[Candidate, ...]:
    """Return every candidate with its numbers and why it won or lost."""
    obstacles = {row.order: judge.closed(row) or judge.lacks(row) for row in rows}
    winner, *losers = ranked.sort([row for row in rows if obstacles[row.order] is None])
    rejected = [(row, obstacle) for row in rows if (obstacle := obstacles[row.order]) is not None]
    return (
        _candidate(winner, asked, judge, "chosen", reason),
        *(_candidate(row, asked, judge, "lost", ranked.why_lost(row)) for row in losers),
        *(_candidate(row, asked, judge, "rejected", judge.why(row, why)) for row, why in rejected),
    )


def _candidate(row: Row, asked: Asked, judge: Judge, verdict: str, reason: str) -> Candidate:
    resident = judge.resident(row)
    context, memory_bytes = judge.size(row)
    return Candidate(
        model=row.model,
        variant=row.variant_name,
        backend=row.variant.backend,
        context_tokens=context,
        memory_bytes=memory_bytes,
        memory_source="measured" if resident and resident.state == "ready" else row.memory_source,
        tokens_per_s=row.tokens_per_s,
        tokens_per_s_source=row.tokens_per_s_source,
        predicted_tokens_per_s=row.predicted_tokens_per_s,
        bytes_per_token=row.bytes_per_token,
        flop_per_token=row.flop_per_token,
        quality=row.quality,
        quality_source=row.quality_source,
        parameters=row.spec.parameters,
        task_fit=task_fit(row.spec, asked.task),
        pulled=row.pulled,
        resident=resident is not None,
        verdict=verdict,
        reason=reason,
    )
