"""Worlds for the tests of the selector, built from registry entries."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from inference.device.memory import Memory
from inference.registry import ModelSpec, Registry
from inference.selection.selector import Selection, World, effective_variants, select
from inference.selection.tasks import Task

GIB = 2**30
MB = 10**6
SHAPE = {"layers": 10, "kv_heads": 2, "head_dim": 64, "hidden_size": 512, "vocab_size": 1000}


def entry(parameters: str = "100M", megabytes: int = 100, **values: Any) -> dict[str, Any]:
    """Return a registry entry whose one variant is *megabytes* of weights."""
    backend = values.pop("backend", "llamacpp")
    source = {"type": "file", "path": "/weights.gguf", "bytes": megabytes * MB}
    return {
        "name": parameters,
        "parameters": parameters,
        "memory_requirement": megabytes,
        "container": None,
        "status": "experimental",
        "use_cases": ["conversation", "text_generation"],
        "context_length": 4096,
        **SHAPE,
        "variants": {"v": {"backend": backend, "source": source}},
        **values,
    }


def memory(budget_gib: float | None) -> Memory:
    """Return a machine whose whole available memory can be given to models."""
    if budget_gib is None:
        return Memory(None, None, None, 0, None)
    budget = int(budget_gib * GIB)
    return Memory(16 * GIB, budget, None, 0, budget)


def make_world(
    models: dict[str, dict[str, Any]],
    *,
    budget_gib: float | None = 8,
    absent: frozenset[str] = frozenset(),
    **values: Any,
) -> World:
    """Return a world of registry entries, all pulled and usable unless said otherwise."""
    specs = {name: ModelSpec.model_validate_json(json.dumps(raw)) for name, raw in models.items()}
    usual: dict[str, Any] = {
        "backends": frozenset({"llamacpp", "transformers"}),
        "weights_bytes": {
            (name, variant): int(spec.memory_requirement) * MB
            for name, spec in specs.items()
            if name not in absent
            for variant in effective_variants(spec, container=False)
        },
        "memory": memory(budget_gib),
        "residents": (),
        "bandwidth_bytes_per_s": None,
        "slots": 1,
        "context_tokens": 4096,
        "prompt_cache_bytes": 0,
        "container": False,
    }
    return World(registry=Registry(specs, Path("models.json")), **{**usual, **values})


def choose(world: World, task: Task = Task.CONVERSATION, speed: str = "balanced", **named: Any) -> Selection:
    """Select with the usual arguments."""
    return select(world, **{"model": None, "variant": None, "task": task, "speed": speed, **named})
