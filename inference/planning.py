"""The plan: what the supervisor is told to load for a selection, and by which limits it works."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import inference
from inference.backends import LoadOptions, engine_versions
from inference.compiled import BACKEND
from inference.errors import ModelNotFoundError
from inference.registry import Registry, Variant
from inference.runtime.calibration import Calibration, Prediction
from inference.runtime.plan import Limits, Plan
from inference.runtime.worker import WorkerSpec
from inference.selection.estimate import estimate_memory, prefill_batch
from inference.selection.selector import Selection, World, effective_variants
from inference.settings import Settings, worker_environment

CALIBRATION_FILE = "ledger.json"
"""What loaded models were seen to hold, in the state directory."""


def plan_of(world: World, selection: Selection, weights: Path, settings: Settings) -> Plan:
    """Return how to load what was chosen from *world*, whose weights are at *weights*."""
    variant = variant_of(world, selection)
    options = LoadOptions(
        weights=weights,
        context_tokens=selection.context_tokens,
        slots=settings.slots,
        threads=settings.threads,
        prefill_batch_tokens=prefill_batch(variant.backend, settings.prefill_batch_tokens),
        prompt_cache_bytes=settings.prompt_cache_bytes,
        runtime_dir=Path(),
        memory_bytes=selection.memory_bytes,
        device=settings.mlc_device if variant.backend == BACKEND else None,
        embeds=world.registry.models[selection.model].embeds,
    )
    name = f"{selection.model}/{selection.variant}"
    return Plan(
        key=(selection.model, selection.variant),
        spec=WorkerSpec(
            name,
            variant.backend,
            options.to_dict(),
            worker_environment(),
            store=str(settings.cache_path.absolute()),
        ),
        slots=settings.slots,
        memory_bytes=selection.memory_bytes,
        pinned=any(is_called(world.registry, selection.model, pin) for pin in settings.pin),
        prediction=_prediction(world, selection, variant),
    )


def variant_of(world: World, selection: Selection) -> Variant:
    """Return what the registry says of the variant that was chosen."""
    spec = world.registry.models[selection.model]
    return effective_variants(spec, container=world.container)[selection.variant]


def is_called(registry: Registry, model: str, name: str) -> bool:
    """Whether *name* is *model* or an alias of it; a registry that was read anew may not know it any more."""
    try:
        return registry.get(name)[0] == model
    except ModelNotFoundError:
        return False


def limits_of(settings: Settings) -> Limits:
    """Return the supervisor's part of the settings."""
    return Limits(**{field.name: getattr(settings, field.name) for field in dataclasses.fields(Limits)})


def calibration_of(settings: Settings) -> Calibration:
    """Return what was learned before; it counts for one version of an engine, and of our formula."""
    engines = {name: f"{v}; jetllm {inference.__version__}" for name, v in engine_versions().items()}
    return Calibration(settings.state_path / CALIBRATION_FILE, engines)


def _prediction(world: World, selection: Selection, variant: Variant) -> Prediction:
    """What the formula alone says: what is observed is compared with it."""
    weights_bytes = (world.weights_bytes or {})[selection.model, selection.variant]
    estimate = estimate_memory(
        world.registry.models[selection.model],
        variant,
        context_tokens=selection.context_tokens,
        slots=world.slots,
        prompt_cache_bytes=world.prompt_cache_bytes,
        weights_bytes=weights_bytes,
        prefill_batch_tokens=world.prefill_batch_tokens,
    )
    return Prediction(estimate.total_bytes, estimate.later_bytes, weights_bytes)
