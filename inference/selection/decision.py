"""The decision: a selection with all that led to it, as plain JSON, so that it can be repeated."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from inference.device.memory import Memory
from inference.errors import InvalidRequestError
from inference.registry import Registry
from inference.registry.evidence import Evidence, Key
from inference.registry.spec import Status
from inference.selection.selector import Resident, Selection, World, select
from inference.selection.tasks import Task

VERSION = 1
_V = TypeVar("_V")
_PLAIN = (
    "bandwidth_bytes_per_s",
    "slots",
    "context_tokens",
    "prompt_cache_bytes",
    "container",
    *("prefill_batch_tokens", "cpu_cores"),
)


def record(
    world: World,
    selection: Selection | None,
    *,
    model: str | None,
    variant: str | None,
    task: Task,
    speed: str,
    chat: bool = False,
    context_tokens: int | None = None,
) -> dict[str, Any]:
    """Return what was seen, asked and chosen; of the registry only its digest.

    Args:
        selection: what `select` returned; ``None`` when it refused.
    """
    return {
        "version": VERSION,
        "registry_digest": world.registry.digest,
        "request": {
            "model": model,
            "variant": variant,
            "task": task.value,
            "speed": speed,
            "chat": chat,
            "context_tokens": context_tokens,
        },
        "world": _world_to_json(world),
        "selection": None if selection is None else selection.to_dict(),
    }


def replay(recorded: Mapping[str, Any], registry: Registry) -> Selection:
    """Select again as *recorded*, with the registry that it was made with.

    Raises:
        InvalidRequestError: it is no record, of another version, or of another registry.
        JetLLMError: what `select` raises; a refusal that was recorded is refused again.
    """
    version, digest = recorded.get("version"), recorded.get("registry_digest")
    if version != VERSION:
        raise InvalidRequestError(
            f"decision: version: expected {VERSION}, got {version!r}",
            hint="replay it with the release that recorded it",
        )
    if digest is None or digest != registry.digest:
        raise InvalidRequestError(
            f"decision: recorded with the registry {_short(digest)}, this one is {_short(registry.digest)}",
            hint="replay it with the models.json that it was made with: JETLLM_REGISTRY=FILE",
        )
    try:
        world = _world_from_json(recorded["world"], registry)
        asked = {**recorded["request"], "task": Task(recorded["request"]["task"])}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InvalidRequestError(f"decision: not one that was recorded: {error!r}") from error
    if set(asked) != {"model", "variant", "task", "speed", "chat", "context_tokens"}:
        raise InvalidRequestError(f"decision: request: unexpected keys: {', '.join(sorted(asked))}")
    return select(world, **asked)


def _world_to_json(world: World) -> dict[str, Any]:
    weights = world.weights_bytes
    return {
        **{name: getattr(world, name) for name in _PLAIN},
        "backends": sorted(world.backends),
        "memory": world.memory.to_dict(),
        "residents": [dataclasses.asdict(resident) for resident in world.residents],
        "weights_bytes": None if weights is None else _nested(weights),
        "incompatible": _nested(world.incompatible),
        "variant_corrections": _nested(world.variant_corrections),
        "evidence": _nested({key: _evidence_to_json(value) for key, value in world.evidence.items()}),
        "backend_corrections": dict(world.backend_corrections),
    }


def _world_from_json(data: Mapping[str, Any], registry: Registry) -> World:
    weights = data["weights_bytes"]
    return World(
        registry=registry,
        backends=frozenset(data["backends"]),
        memory=Memory(**data["memory"]),
        residents=tuple(Resident(**resident) for resident in data["residents"]),
        weights_bytes=None if weights is None else _flat(weights),
        evidence={key: _evidence_from_json(value) for key, value in _flat(data["evidence"]).items()},
        backend_corrections=dict(data["backend_corrections"]),
        incompatible=_flat(data["incompatible"]),
        variant_corrections=_flat(data["variant_corrections"]),
        **{name: data[name] for name in _PLAIN},
    )


def _evidence_to_json(evidence: Evidence) -> dict[str, Any]:
    return {**vars(evidence), "status": evidence.status and evidence.status.value}


def _evidence_from_json(data: Mapping[str, Any]) -> Evidence:
    return Evidence(**{**data, "status": data["status"] and Status(data["status"])})


def _nested(values: Mapping[Key, _V]) -> dict[str, dict[str, _V]]:
    nested: dict[str, dict[str, _V]] = {}
    for (model, variant), value in values.items():
        nested.setdefault(model, {})[variant] = value
    return nested


def _flat(nested: Mapping[str, Mapping[str, Any]]) -> dict[Key, Any]:
    return {(model, variant): value for model, values in nested.items() for variant, value in values.items()}


def _short(digest: Any) -> str:
    return "without a digest" if digest is None else str(digest)[:12]
