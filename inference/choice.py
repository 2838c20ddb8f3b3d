"""The choice: what a request asks of the selector, and the world that another machine would be."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from inference.artifacts.lint import taken
from inference.device.detect import Device, detect
from inference.device.images import backends_for, image_for, why_unfit
from inference.device.memory import Memory, default_reserve_bytes, read_memory
from inference.errors import InvalidRequestError, ModelNotFoundError
from inference.generation import GenerateRequest
from inference.registry import ModelSpec, Registry, Variant
from inference.selection.selector import World, effective_variants
from inference.selection.tasks import Task, classify
from inference.settings import Settings

_AUTO = "auto:"
_SPEEDS = ("fast", "balanced", "quality")


def check(request: GenerateRequest) -> None:
    """Refuse what no backend can answer.

    Raises:
        InvalidRequestError: it generates nothing and echoes nothing, echoes a conversation, drops the turns
            of what has none, or is for a task that has no text.
    """
    least = 0 if request.echo else 1
    if request.max_tokens is not None and request.max_tokens < least:
        raise InvalidRequestError(
            f"max_tokens: expected at least {least}, got {request.max_tokens}",
            hint=None if least == 0 else "0 needs echo, which gives the prompt back",
            param="max_tokens",
        )
    if request.echo and request.messages is not None:
        raise InvalidRequestError(
            "echo: only a text can be given back, not a conversation",
            hint="use /v1/completions, or generate(text, raw=True, echo=True)",
            param="echo",
        )
    if request.context_overflow == "slide" and request.messages is None:
        raise InvalidRequestError(
            "context_overflow: only a conversation has turns that can be dropped",
            hint='use /v1/chat/completions, or "error"',
            param="context_overflow",
        )
    if request.task == Task.EMBEDDING.value:
        raise InvalidRequestError(
            "task: embedding makes vectors, not text", hint="use /v1/embeddings", param="task"
        )


def check_use(registry: Registry, name: str | None, *, embeds: bool) -> None:
    """Refuse a named model that is of the other kind: one generates, the other makes vectors of texts.

    Raises:
        InvalidRequestError: so it is. Of a name that there is not the selector says so.
    """
    try:
        model, spec = registry.get(name or "")
    except ModelNotFoundError:
        return
    if spec.embeds and not embeds:
        raise InvalidRequestError(
            f"model: {model} makes embeddings and generates no text",
            hint="use it with /v1/embeddings, or name another model",
            param="model",
        )
    if embeds and not spec.embeds:
        others = ", ".join(key for key, other in registry.models.items() if other.embeds)
        registering = 'register one, with the use_cases ["embedding"], in models.json'
        raise InvalidRequestError(
            f"model: {model} generates text and makes no embeddings",
            hint=f"name an embedding model: {others}" if others else registering,
            param="model",
        )


def resolved(request: GenerateRequest) -> GenerateRequest:
    """Return *request* with what "auto:..." stands for: no name, but a speed or a task.

    Raises:
        ModelNotFoundError: after the colon is neither.
        InvalidRequestError: the request says otherwise in a field of its own.
    """
    if request.model is None or not request.model.startswith(_AUTO):
        return request
    wish = request.model.removeprefix(_AUTO)
    field = "speed" if wish in _SPEEDS else "task"
    if field == "task" and wish not in [task.value for task in Task]:
        known = ", ".join(f"{_AUTO}{name}" for name in (*_SPEEDS, *(task.value for task in Task)))
        raise ModelNotFoundError(f"unknown model {request.model!r}", hint=f"auto, {known}", param="model")
    if getattr(request, field) not in (None, wish):
        raise InvalidRequestError(
            f"{field}: {getattr(request, field)!r} contradicts the model {request.model!r}", param=field
        )
    if field == "speed":
        return dataclasses.replace(request, model=None, speed=wish)
    return dataclasses.replace(request, model=None, task=wish)


def arguments(
    request: GenerateRequest, default_speed: str, context_tokens: int | None = None
) -> dict[str, Any]:
    """Return the arguments of `select` beside the world: what *request* names, and its task.

    Raises:
        InvalidRequestError: it names a task that there is not.
    """
    request = resolved(request)
    return {
        "model": None if request.model in (None, "auto") else request.model,
        "variant": request.variant,
        "task": task_of(request),
        "speed": request.speed or default_speed,
        "chat": request.messages is not None,
        "context_tokens": context_tokens,
    }


def task_of(request: GenerateRequest) -> Task:
    """Return the task that *request* states, else the one that its text looks like."""
    if request.task is None:
        return classify(request.messages if request.messages is not None else request.prompt or "")
    try:
        return Task(request.task)
    except ValueError:
        known = ", ".join(task.value for task in Task)
        raise InvalidRequestError(
            f"task: expected one of {known}, got {request.task!r}", param="task"
        ) from None


def world_elsewhere(settings: Settings, registry: Registry, root: Path) -> World:
    """Return what a selection would see on the machine whose file system is at *root*.

    The engines are those of the image that fits it, whatever is installed here; nothing is loaded
    there, and any weights can be brought.
    """
    device = detect(root)
    backends = backends_for(device)
    return World(
        registry=registry,
        backends=backends,
        weights_bytes=None,
        memory=read_memory(root, reserve_bytes=settings.memory_reserve_bytes),
        residents=(),
        bandwidth_bytes_per_s=device.bandwidth_bytes_per_s,
        slots=settings.slots,
        context_tokens=settings.context_tokens,
        prompt_cache_bytes=settings.prompt_cache_bytes,
        container="mlc" in backends,
        incompatible=unfit(registry, device, container="mlc" in backends),
        prefill_batch_tokens=settings.prefill_batch_tokens,
        cpu_cores=device.cpu_cores,
    )


def with_available(world: World, available_bytes: int, settings: Settings) -> World:
    """Return *world* as it would be with that much available memory and nothing loaded.

    The reserve is that of a machine of this size: 6 % of a large machine would leave a small one nothing.
    """
    wanted = settings.memory_reserve_bytes
    reserve_bytes = min(
        world.memory.reserve_bytes, default_reserve_bytes(available_bytes) if wanted is None else wanted
    )
    memory = Memory(
        total_bytes=world.memory.total_bytes,
        available_bytes=available_bytes,
        cgroup_headroom_bytes=None,
        reserve_bytes=reserve_bytes,
        budget_bytes=max(0, available_bytes - reserve_bytes),
    )
    return dataclasses.replace(world, memory=memory, residents=())


def unfit(registry: Registry, device: Device, *, container: bool) -> dict[tuple[str, str], str]:
    """Return the variants for MLC that do not run on *device*, each with the reason.

    Their container is for another system, or the MLC of the device's image does not take their kind.
    """
    found = {}
    image = image_for(device)
    for model, spec in registry.models.items():
        why = why_unfit(spec.container, device.l4t) if spec.container and device.l4t else None
        for name, variant in effective_variants(spec, container=container).items():
            if variant.backend != "mlc":
                continue
            reason = why or (None if image is None else _why_not_taken(spec, variant, image.tag))
            if reason is not None:
                found[model, name] = reason
    return found


def _why_not_taken(spec: ModelSpec, variant: Variant, image: str) -> str | None:
    """What the linter says of models.json alone, where no fix of the builder helps."""
    if spec.architecture is None:
        return None  # of which nothing is known
    report = taken(spec, variant, image)
    return next((error.message for error in report.errors if error.fix is None), None)
