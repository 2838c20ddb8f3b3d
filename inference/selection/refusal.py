"""The refusal: why nothing can be chosen, and what would change that."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from inference.errors import (
    DoesNotFitError,
    JetLLMError,
    ModelNotFoundError,
    ModelNotPulledError,
    NoUsableBackendError,
)
from inference.selection.estimate import estimate_memory, source_bytes
from inference.selection.judge import Asked, Judged, Obstacle, gib
from inference.selection.world import World

_REMEDY = {
    "llamacpp": "pip install xllamacpp",
    "transformers": "pip install 'jetllm[transformers]'",
    "mlc": "run the daemon in the container that models.json names",
}


def refuse(world: World, judged: Sequence[Judged], asked: Asked) -> JetLLMError:
    """Return the error for *judged*, none of which can be chosen: that of those that came furthest."""
    stopped = {obstacle: [j for j in judged if j.obstacle is obstacle] for obstacle in Obstacle}
    if stopped[Obstacle.MEMORY]:
        return _does_not_fit(world, stopped[Obstacle.MEMORY], judged, asked)
    if stopped[Obstacle.NOT_PULLED]:
        return _not_pulled(stopped[Obstacle.NOT_PULLED], asked)
    if stopped[Obstacle.INCOMPATIBLE]:
        first = stopped[Obstacle.INCOMPATIBLE][0]
        return NoUsableBackendError(
            f"nothing that is not known to be incompatible here serves {asked.task.value}",
            hint=f"to use one all the same, name it: {first.model}",
            param="model",
        )
    if stopped[Obstacle.BACKEND]:
        return _no_backend(stopped[Obstacle.BACKEND], asked)
    return ModelNotFoundError(
        f"no registered model serves {asked.task.value}", hint="list them: jetllm models", param="task"
    )


def _not_pulled(absent: Sequence[Judged], asked: Asked) -> ModelNotPulledError:
    if asked.named:
        model = absent[0].model
        return ModelNotPulledError(
            f"{model}: its weights are not on this machine", hint=f"jetllm pull {model}", param="model"
        )
    pullable = [j for j in absent if j.variant.source is not None] or absent
    smallest = min(pullable, key=lambda j: (j.task_fit == 0, _download_bytes(j), j.order))
    return ModelNotPulledError(
        f"no model that serves {asked.task.value} has its weights on this machine",
        hint=f"jetllm pull {smallest.model}",
    )


def _download_bytes(judged: Judged) -> int:
    return source_bytes(judged.spec, judged.variant) or judged.spec.parameter_count * 4


def _no_backend(blocked: Sequence[Judged], asked: Asked) -> NoUsableBackendError:
    subject = blocked[0].model if asked.named else f"every model that serves {asked.task.value}"
    backends = sorted({j.variant.backend for j in blocked})
    return NoUsableBackendError(
        f"{subject} needs the backend {' or '.join(backends)}, which is not usable here",
        hint="; ".join(_REMEDY[backend] for backend in backends),
        param="model",
    )


def _does_not_fit(
    world: World, large: Sequence[Judged], judged: Sequence[Judged], asked: Asked
) -> DoesNotFitError:
    least = min(large, key=lambda j: (j.memory_bytes, j.order))
    room_bytes = world.room_bytes()
    remedies = list(_remedies(world, least, judged))
    subject = least.key if asked.named else f"no model fits; the smallest, {least.key},"
    return DoesNotFitError(
        f"{subject} {least.why}",
        hint="it would fit " + ", or ".join(remedies),
        param="model" if asked.named else None,
        details={
            "model": least.model,
            "variant": least.variant_name,
            "context_tokens": least.context_tokens,
            "needed_bytes": least.memory_bytes,
            "available_bytes": room_bytes,
            "would_fit_if": remedies,
        },
    )


def _remedies(world: World, least: Judged, judged: Sequence[Judged]) -> Iterator[str]:
    """Yield what would make something fit, the cheapest first."""
    room = world.room_bytes() or 0
    pinned = [r for r in world.residents if r.joinable and not r.evictable]
    if pinned and least.memory_bytes <= (world.room_bytes(pinned_too=True) or 0):
        yield "after: " + " && ".join(f"jetllm unload {r.model}" for r in pinned)
    for other in judged:
        if other.obstacle is Obstacle.NOT_PULLED and 0 < other.memory_bytes <= room:
            yield f"as {other.key} ({gib(other.memory_bytes)}): jetllm pull {other.model}"
            break
    single_bytes = _with_one_slot(world, least)
    if world.slots > 1 and single_bytes <= room:
        yield f"with JETLLM_SLOTS=1 (needs {gib(single_bytes)})"
    if least.memory_bytes > room:
        yield f"with {gib(least.memory_bytes - room)} more of free memory"
    elif least.spec.min_available_memory is not None:
        yield f"if named: {least.model}"


def _with_one_slot(world: World, judged: Judged) -> int:
    return estimate_memory(
        judged.spec,
        judged.variant,
        context_tokens=judged.context_tokens,
        slots=1,
        prompt_cache_bytes=world.prompt_cache_bytes,
        weights_bytes=judged.weights_bytes,
        prefill_batch_tokens=world.prefill_batch_tokens,
    ).total_bytes
