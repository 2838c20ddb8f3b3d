"""The refusal: why nothing can be chosen, with what would change that."""

from __future__ import annotations

from collections.abc import Sequence

from inference.errors import DoesNotFitError, JetLLMError, ModelNotFoundError, NoUsableBackendError
from inference.selection.judge import Asked, Judge, Obstacle
from inference.selection.remedies import remedies
from inference.selection.sheet import Row
from inference.selection.world import World

_REMEDY = {
    "llamacpp": "pip install xllamacpp",
    "transformers": "pip install 'jetllm[transformers]'",
    "mlc": "run the daemon in the container that models.json names",
}
_NO_ROOM = (Obstacle.MEMORY, Obstacle.THRESHOLD, Obstacle.CONTEXT)


def refuse(world: World, rows: Sequence[Row], asked: Asked) -> JetLLMError:
    """Return the error for *rows*, none of which can be chosen: that of those that came furthest."""
    judge = Judge(world, asked)
    stopped: dict[Obstacle | None, list[Row]] = {}
    for row in rows:
        stopped.setdefault(judge.closed(row) or judge.lacks(row), []).append(row)
    large = [row for obstacle in _NO_ROOM[:2] for row in stopped.get(obstacle, [])]
    large = large or stopped.get(Obstacle.CONTEXT, [])
    if large:
        return _does_not_fit(world, rows, large, asked)
    if Obstacle.INCOMPATIBLE in stopped:
        return NoUsableBackendError(
            f"nothing that is not known to be incompatible here serves {asked.task.value}",
            hint=f"to use one all the same, name it: {stopped[Obstacle.INCOMPATIBLE][0].model}",
            param="model",
        )
    if Obstacle.BACKEND in stopped:
        return _no_backend(world, stopped[Obstacle.BACKEND], asked)
    return ModelNotFoundError(
        f"no registered model serves {asked.task.value}", hint="list them: jetllm models", param="task"
    )


def _no_backend(world: World, blocked: Sequence[Row], asked: Asked) -> NoUsableBackendError:
    subject = blocked[0].model if asked.named else f"every model that serves {asked.task.value}"
    missing = sorted({row.variant.backend for row in blocked} - world.backends)
    if not missing:
        return NoUsableBackendError(
            f"{blocked[0].name}: {blocked[0].unusable}",
            hint="name a variant without adapters: jetllm models",
            param="model",
        )
    return NoUsableBackendError(
        f"{subject} needs the backend {' or '.join(missing)}, which is not usable here",
        hint="; ".join(_REMEDY[backend] for backend in missing),
        param="model",
    )


def _does_not_fit(world: World, rows: Sequence[Row], large: Sequence[Row], asked: Asked) -> DoesNotFitError:
    judge = Judge(world, asked)
    least = min(large, key=lambda row: (judge.size(row)[1], row.order))
    context, needed_bytes = judge.size(least)
    found = remedies(world, rows, large, least, asked)
    subject = least.name if asked.named else f"no model fits; the smallest, {least.name},"
    return DoesNotFitError(
        f"{subject} {judge.why(least, judge.lacks(least) or Obstacle.MEMORY)}",
        hint="it would fit " + ", or ".join(str(each["text"]) for each in found) if found else None,
        param="model" if asked.named else None,
        details={
            "model": least.model,
            "variant": least.variant_name,
            "context_tokens": context,
            "needed_bytes": needed_bytes,
            "available_bytes": judge.room_bytes,
            "would_fit_if": found,
        },
    )
