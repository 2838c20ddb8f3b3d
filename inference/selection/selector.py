"""The selector: which variant of which model serves a request, and why; a pure function of its arguments."""

from __future__ import annotations

import difflib
from collections.abc import Iterator

from inference.errors import InvalidRequestError, ModelNotFoundError
from inference.registry.spec import ModelSpec, Variant
from inference.selection.judge import Asked, Judge, Judged, gib, wanted_context
from inference.selection.ranking import criteria, rank, why_lost
from inference.selection.refusal import refuse
from inference.selection.tasks import Task
from inference.selection.world import Candidate, Resident, Selection, World, effective_variants

__all__ = ["Candidate", "Resident", "Selection", "World", "effective_variants", "select"]

SPEEDS = ("fast", "balanced", "quality")


def select(
    world: World, *, model: str | None, variant: str | None, task: Task, speed: str, chat: bool = False
) -> Selection:
    """Choose for one request; equal arguments give an equal result.

    Args:
        model: a registry name or alias, or ``None`` to choose among all that is here.
        variant: the name of one of the model's variants; ``None`` lets any be chosen.
        speed: "fast", "balanced" or "quality".
        chat: whether the request is a chat, which a model without a chat template only continues.

    Raises:
        InvalidRequestError: *speed* is none of these, or *variant* comes without a model.
        ModelNotFoundError: no such model or variant, or none serves the task.
        NoUsableBackendError: its engine is not installed here.
        ModelNotPulledError: its weights are not on this machine.
        DoesNotFitError: it needs more memory than can be given to it, whoever leaves.
    """
    if speed not in SPEEDS:
        raise InvalidRequestError(f"speed: expected one of {', '.join(SPEEDS)}, got {speed!r}", param="speed")
    asked = Asked(task, speed, named=model is not None, chat=chat)
    judge = Judge(world, asked)
    judged = [
        judge.judge(name, spec, variant_name, value, order)
        for order, (name, spec, variant_name, value) in enumerate(_options(world, model, variant))
    ]
    standing = [candidate for candidate in judged if candidate.obstacle is None]
    if not standing:
        raise refuse(world, judged, asked)
    comparisons = criteria(asked, standing)
    winner, *losers = rank(comparisons, standing)
    reason = _reason(world, asked, winner, judge.room_bytes)
    return Selection(
        model=winner.model,
        variant=winner.variant_name,
        context_tokens=winner.context_tokens,
        memory_bytes=winner.memory_bytes,
        reason=reason,
        task=task,
        speed=speed,
        candidates=(
            _candidate(winner, "chosen", reason),
            *(_candidate(loser, "lost", why_lost(comparisons, loser, winner)) for loser in losers),
            *(_candidate(j, "rejected", j.why or "") for j in judged if j.obstacle is not None),
        ),
    )


def _options(
    world: World, model: str | None, variant: str | None
) -> Iterator[tuple[str, ModelSpec, str, Variant]]:
    """Yield what may be chosen from, in the order of the registry."""
    if model is None:
        if variant is not None:
            raise InvalidRequestError(
                f"variant: {variant!r} is a variant of no model; name the model too", param="variant"
            )
        for name, spec in world.registry.models.items():
            for variant_name, value in effective_variants(spec, container=world.container).items():
                yield name, spec, variant_name, value
        return
    name, spec = world.registry.get(model)
    variants = effective_variants(spec, container=world.container)
    if variant is not None and variant not in variants:
        raise _unknown_variant(name, variant, list(variants))
    for variant_name, value in variants.items():
        if variant in (None, variant_name):
            yield name, spec, variant_name, value


def _unknown_variant(model: str, variant: str, known: list[str]) -> ModelNotFoundError:
    close = difflib.get_close_matches(variant[:100], known, n=1)
    guess = f"did you mean '{close[0]}'? " if close else ""
    return ModelNotFoundError(
        f"{model} has no variant {variant[:100]!r}",
        hint=f"{guess}it has: {', '.join(known)}",
        param="variant",
    )


def _reason(world: World, asked: Asked, winner: Judged, room_bytes: int | None) -> str:
    task = asked.task.value
    fit = {
        2: f"best task fit ({task})",
        1: f"serves {task} as a generalist",
        0: f"nothing is made for {task}",
    }
    why = "named by the request" if asked.named else f"{fit[winner.task_fit]}, {asked.speed}"
    size = (
        gib(winner.memory_bytes) if room_bytes is None else f"{gib(winner.memory_bytes)} of {gib(room_bytes)}"
    )
    parts = [f"{winner.key}: {why}", "already loaded" if winner.resident else size]
    wanted = wanted_context(world, winner.spec, winner.variant)
    if not winner.resident and winner.context_tokens < wanted:
        parts.append(f"context of {winner.context_tokens} instead of {wanted} tokens to fit")
    if winner.incompatible is not None:
        parts.append(f"though incompatible: {winner.incompatible}")
    return "; ".join(parts)


def _candidate(judged: Judged, verdict: str, reason: str) -> Candidate:
    return Candidate(
        model=judged.model,
        variant=judged.variant_name,
        backend=judged.variant.backend,
        context_tokens=judged.context_tokens,
        memory_bytes=judged.memory_bytes,
        tokens_per_s=judged.tokens_per_s,
        quality=judged.spec.quality,
        task_fit=judged.task_fit,
        resident=judged.resident,
        verdict=verdict,
        reason=reason,
    )
