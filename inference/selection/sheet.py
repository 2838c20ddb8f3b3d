"""The sheet: every candidate of a registry with the numbers that do not change from request to request.

Memory, residents and requests change all the time; the registry, what is pulled and what was measured
hardly ever. `Sheet.of` keeps what follows from the latter on the registry, so that a request costs
comparisons only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

from inference.registry.evidence import Evidence, Key
from inference.registry.spec import ModelSpec, Status, Variant
from inference.selection.estimate import (
    MemoryFormula,
    declared_memory_bytes,
    estimate_decode_tokens_per_s,
    memory_formula,
    weights_in_memory,
)
from inference.selection.world import World, effective_variants

LEAST_CONTEXT_TOKENS = 512
"""A context is not shortened below this."""

_KEPT = "_selection_sheet"
_PER_REQUEST = frozenset({"registry", "memory", "residents"})
_NO_EVIDENCE = Evidence()


@dataclass(frozen=True)
class Row:
    """A candidate's numbers.

    Args:
        order: its place in the registry.
        pulled: ``None`` for another machine.
        weights_bytes: what the weights hold; ``None`` where it is unknown.
        predicted_tokens_per_s: decode speed by the formula alone, whatever was measured.
        limit_tokens: the longest context that it can have at all.
        wanted_tokens: the context of the setting, as far as its limit allows.
        formula: ``None`` where *fixed_bytes* holds at every context.
        shift_bytes: added to the formula: what was measured or observed, less what it predicts.
        incompatible: why it is known not to run here.
        unusable: why no engine here can load it.
    """

    key: Key
    spec: ModelSpec
    variant: Variant
    order: int
    pulled: bool | None
    pull_command: str
    weights_bytes: int | None
    limit_tokens: int | None
    wanted_tokens: int
    formula: MemoryFormula | None
    fixed_bytes: int
    shift_bytes: int
    memory_source: str
    tokens_per_s: float | None
    tokens_per_s_source: str | None
    predicted_tokens_per_s: float | None
    quality: float | None
    quality_source: str | None
    parameter_count: int
    min_available_mb: float | None
    incompatible: str | None
    unusable: str | None

    @property
    def model(self) -> str:
        """The model's name in the registry."""
        return self.key[0]

    @property
    def variant_name(self) -> str:
        """The variant's name in the model's entry."""
        return self.key[1]

    @property
    def name(self) -> str:
        """The candidate, as a reader knows it."""
        return f"{self.model}/{self.variant_name}"

    @property
    def bytes_per_token(self) -> int | None:
        """What decode reads for every token at batch 1: the weights, or the share of its experts."""
        return None if self.weights_bytes is None else round(self.weights_bytes * self.spec.active_share)

    @property
    def flop_per_token(self) -> int:
        """A multiplication and an addition for each parameter that a token uses; attention is left out."""
        return round(2 * self.parameter_count * self.spec.active_share)

    @cached_property
    def full_bytes(self) -> int:
        """What it holds at the wanted context."""
        return self.bytes_at(self.wanted_tokens)

    @cached_property
    def least_bytes(self) -> int:
        """What it holds at the shortest context."""
        return self.bytes_at(min(self.wanted_tokens, LEAST_CONTEXT_TOKENS))

    def bytes_at(self, context_tokens: int) -> int:
        """Return what it holds at a context; never less at a longer one, and never below the weights."""
        if self.formula is None:
            return self.fixed_bytes
        return max(self.formula.weights_bytes, self.formula.total_bytes(context_tokens) + self.shift_bytes)


class Sheet:
    """The rows of one registry in worlds that differ only by memory and residents."""

    def __init__(self, world: World) -> None:
        self._inputs = _inputs(world)
        self.rows = tuple(_rows(world))
        self.by_model: dict[str, list[Row]] = {}
        for row in self.rows:
            self.by_model.setdefault(row.model, []).append(row)
        self._groups: dict[Any, list[list[Row]]] = {}

    @classmethod
    def of(cls, world: World) -> Sheet:
        """Return the sheet of *world*: the one that its registry keeps, or a new one if it is another's."""
        kept: Sheet | None = vars(world.registry).get(_KEPT)
        if kept is None or kept._inputs != _inputs(world):
            kept = cls(world)
            # Derived from the registry alone and from what is compared above: it is still a value.
            vars(world.registry)[_KEPT] = kept
        return kept

    def grouped(
        self, question: Any, sorted_groups: Callable[[Sequence[Row]], list[list[Row]]]
    ) -> list[list[Row]]:
        """Return ``sorted_groups(rows)``, computed once for each *question*."""
        if question not in self._groups:
            self._groups[question] = sorted_groups(self.rows)
        return self._groups[question]


def _inputs(world: World) -> list[Any]:
    """Return copies of all that a sheet depends on, so that a mapping changed in place is noticed."""
    values = [getattr(world, each.name) for each in fields(world) if each.name not in _PER_REQUEST]
    return [dict(value) if hasattr(value, "keys") else value for value in values]


def _rows(world: World) -> Iterator[Row]:
    order = 0
    for model, spec in world.registry.models.items():
        variants = effective_variants(spec, container=world.container)
        default = next((name for name, value in variants.items() if value.backend in world.backends), None)
        for name, variant in variants.items():
            yield _row(world, (model, name), spec, variant, order, is_default=name == default)
            order += 1


def _row(world: World, key: Key, spec: ModelSpec, variant: Variant, order: int, *, is_default: bool) -> Row:
    here = world.weights_bytes
    on_disk = None if here is None else here.get(key)
    measured = world.evidence.get(key, _NO_EVIDENCE)
    limits = [limit for limit in (variant.context, spec.context_length) if limit is not None]
    wanted = min([world.context_tokens, *limits])
    predicted = estimate_decode_tokens_per_s(
        spec, variant, world.bandwidth_bytes_per_s, cpu_cores=world.cpu_cores, weights_bytes=on_disk
    )
    speed, speed_source = _speed(predicted, measured)
    quality = spec.quality if measured.quality is None else measured.quality
    quality_source = "declared" if measured.quality is None else "measured"
    pull = f"jetllm pull {key[0]}"
    return Row(
        key=key,
        spec=spec,
        variant=variant,
        order=order,
        pulled=None if here is None else key in here,
        pull_command=pull if is_default else f"{pull} --variant {key[1]}",
        weights_bytes=weights_in_memory(spec, variant, on_disk),
        limit_tokens=min(limits, default=None),
        wanted_tokens=wanted,
        **_memory(world, key, spec, variant, wanted, on_disk, measured),
        tokens_per_s=speed,
        tokens_per_s_source=speed_source,
        predicted_tokens_per_s=predicted,
        quality=quality,
        quality_source=None if quality is None else quality_source,
        parameter_count=spec.parameter_count,
        min_available_mb=spec.min_available_memory,
        incompatible=_incompatible(world, key, spec, measured),
        unusable=_unusable(world, variant),
    )


def _memory(
    world: World,
    key: Key,
    spec: ModelSpec,
    variant: Variant,
    wanted: int,
    on_disk: int | None,
    measured: Evidence,
) -> dict[str, Any]:
    """Return the fields of a `Row` that tell its memory at every context."""
    sizes: dict[str, Any] = {
        "slots": world.slots,
        "prompt_cache_bytes": world.prompt_cache_bytes,
        "weights_bytes": on_disk,
        "prefill_batch_tokens": world.prefill_batch_tokens,
    }
    formula, fixed, shift = memory_formula(spec, variant, **sizes), 0, 0
    if formula is None:
        fixed, source = _fixed(world, key, spec, variant, on_disk, measured)
    else:
        shift, source = _shift(world, key, variant, formula, wanted, measured)
    return {"formula": formula, "fixed_bytes": fixed, "shift_bytes": shift, "memory_source": source}


def _fixed(
    world: World, key: Key, spec: ModelSpec, variant: Variant, on_disk: int | None, measured: Evidence
) -> tuple[int, str]:
    weights = weights_in_memory(spec, variant, on_disk) or 0
    if measured.memory_bytes is not None:
        return max(weights, measured.memory_bytes), "measured"
    declared = declared_memory_bytes(spec, variant, on_disk)
    declared += world.prompt_cache_bytes if variant.backend == "llamacpp" else 0
    return max(weights, declared + world.variant_corrections.get(key, 0)), "declared"


def _shift(
    world: World, key: Key, variant: Variant, formula: MemoryFormula, wanted: int, measured: Evidence
) -> tuple[int, str]:
    if measured.memory_bytes is not None:
        # Measured at the context of the setting; the formula tells what another context changes.
        return measured.memory_bytes - formula.total_bytes(wanted), "measured"
    if key in world.variant_corrections:
        return world.variant_corrections[key], "predicted"
    return max(0, world.backend_corrections.get(variant.backend, 0)), "predicted"


def _speed(predicted: float | None, measured: Evidence) -> tuple[float | None, str | None]:
    if measured.decode_tokens_per_s is not None:
        return measured.decode_tokens_per_s, "measured"
    return predicted, None if predicted is None else "predicted"


def _incompatible(world: World, key: Key, spec: ModelSpec, measured: Evidence) -> str | None:
    if measured.status is Status.INCOMPATIBLE:
        return "measured so on this machine"
    if measured.status is None and spec.status is Status.INCOMPATIBLE:
        return spec.issue or "its entry says so"
    return world.incompatible.get(key)


def _unusable(world: World, variant: Variant) -> str | None:
    if variant.backend not in world.backends:
        return f"the {variant.backend} backend is not usable here"
    if variant.adapters:
        return f"no backend loads adapters yet: {', '.join(adapter.name for adapter in variant.adapters)}"
    return None
