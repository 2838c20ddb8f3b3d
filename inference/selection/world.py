"""The world: everything that a selection depends on, and the selection it leads to, as plain values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from inference.device.memory import Memory
from inference.registry.evidence import Evidence, Key
from inference.registry.registry import Registry
from inference.registry.spec import ModelSpec, Variant
from inference.selection.tasks import Task

_LEAVING = frozenset({"stopping", "failed"})
_HOLDING = frozenset({"ready", *_LEAVING})


@dataclass(frozen=True)
class Resident:
    """A worker, loaded or on its way.

    Args:
        state: queued, starting, ready, stopping or failed.
        evictable: whether it may be made to leave; a worker that is only busy may, once it is idle.
        memory_bytes: observed once it is ready, predicted before.
        context_tokens: what it was loaded with.
        to_come_bytes: what a loaded one may still take: an empty prompt cache stays promised.
    """

    model: str
    variant: str
    state: str
    evictable: bool
    memory_bytes: int
    context_tokens: int | None = None
    to_come_bytes: int = 0

    @property
    def joinable(self) -> bool:
        """Whether new requests may go to it."""
        return self.state not in _LEAVING


@dataclass(frozen=True)
class World:
    """What is registered, what is here and what is free, at one moment.

    Args:
        backends: those usable here.
        weights_bytes: size on disk by (model, variant), for the weights that are on this machine;
            ``None`` for another machine, of which nothing is said to be pulled or not.
        memory: as it is read now: what loaded workers hold is not part of its budget.
        slots: sequences that a worker computes at once.
        context_tokens: wanted for each sequence; a variant's and a model's own limit cap it.
        container: whether this is the image of the MLC engine.
        incompatible: by (model, variant), why it does not run here.
        evidence: by (model, variant), what was measured on a machine like this one.
        variant_corrections: by (model, variant), bytes to add to the prediction, as loads showed here.
        backend_corrections: the same by backend, for variants that were never loaded.
    """

    registry: Registry
    backends: frozenset[str]
    weights_bytes: Mapping[Key, int] | None
    memory: Memory
    residents: tuple[Resident, ...]
    bandwidth_bytes_per_s: float | None
    slots: int
    context_tokens: int
    prompt_cache_bytes: int
    container: bool
    incompatible: Mapping[Key, str] = field(default_factory=dict)
    prefill_batch_tokens: int | None = 128
    cpu_cores: int | None = None
    evidence: Mapping[Key, Evidence] = field(default_factory=dict)
    variant_corrections: Mapping[Key, int] = field(default_factory=dict)
    backend_corrections: Mapping[str, int] = field(default_factory=dict)

    def joinable(self) -> dict[Key, Resident]:
        """Return the workers that new requests may go to, by (model, variant)."""
        return {(r.model, r.variant): r for r in self.residents if r.joinable}

    def freed_bytes(self, *, pinned_too: bool = False) -> int:
        """Return what a newcomer gains over the budget when every worker that may leave has left.

        The kernel counts the pages of a mapped GGUF as available although its worker needs them: those
        of a worker that stays are not free, and those of one that leaves were free before. A worker that
        stays still has to get what it was promised and has not taken yet.
        """
        gain = 0
        for resident in self.residents:
            leaves = resident.evictable or not resident.joinable or pinned_too
            held = resident.memory_bytes if resident.state in _HOLDING else 0
            mapped = min(held, self._mapped_bytes(resident))
            promised = resident.memory_bytes - held + resident.to_come_bytes
            gain += held - mapped if leaves else -mapped - promised
        return gain

    def room_bytes(self, *, pinned_too: bool = False) -> int | None:
        """Return what a newcomer may take at most; ``None`` when the machine's memory is unknown."""
        budget = self.memory.budget_bytes
        return None if budget is None else max(0, budget + self.freed_bytes(pinned_too=pinned_too))

    def _mapped_bytes(self, resident: Resident) -> int:
        spec = self.registry.models.get(resident.model)
        variant = spec.variants.get(resident.variant) if spec is not None else None
        if variant is None or variant.backend != "llamacpp":
            return 0
        return (self.weights_bytes or {}).get((resident.model, resident.variant), 0)


@dataclass(frozen=True)
class Candidate:
    """A variant that was looked at, its numbers, and why it was or was not chosen.

    Args:
        memory_bytes: what it holds at *context_tokens*.
        memory_source: "measured", "predicted" by the formula, or "declared" by its entry.
        tokens_per_s: decode speed; ``None`` where it is unknown.
        tokens_per_s_source: "measured" or "predicted".
        predicted_tokens_per_s: by the formula alone, for comparing what is measured with it.
        bytes_per_token: what decode reads for every token; ``None`` where it is unknown.
        flop_per_token: what a token computes.
        quality: 0 to 1; ``None`` where nobody measured it.
        quality_source: "measured" here, or "declared" by its entry.
        task_fit: 2 serves the task, 1 serves it as a generalist, 0 does not claim to.
        pulled: whether its weights are here; ``None`` for another machine.
        verdict: "chosen", "lost" (to the chosen one) or "rejected" (could not be chosen).
    """

    model: str
    variant: str
    backend: str
    context_tokens: int
    memory_bytes: int
    memory_source: str
    tokens_per_s: float | None
    tokens_per_s_source: str | None
    predicted_tokens_per_s: float | None
    bytes_per_token: int | None
    flop_per_token: int
    quality: float | None
    quality_source: str | None
    parameters: str
    task_fit: int
    pulled: bool | None
    resident: bool
    verdict: str
    reason: str


@dataclass(frozen=True)
class Selection:
    """The variant that serves a request, and why.

    Args:
        pulled: whether its weights are here; ``None`` for another machine.
        pull_command: brings them, where they are not here.
        explain: makes `candidates`; a service that only wants to load the model never calls it.
    """

    model: str
    variant: str
    context_tokens: int
    reason: str
    task: Task
    speed: str
    memory_bytes: int
    tokens_per_s: float | None
    pulled: bool | None
    pull_command: str | None
    explain: Callable[[], tuple[Candidate, ...]] = field(repr=False, compare=False)

    @cached_property
    def candidates(self) -> tuple[Candidate, ...]:
        """Every candidate: the chosen one, the losers from the best to the worst, the rejected."""
        return self.explain()

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form; equal inputs give equal bytes."""
        return {
            "model": self.model,
            "variant": self.variant,
            "context_tokens": self.context_tokens,
            "reason": self.reason,
            "task": self.task.value,
            "speed": self.speed,
            "memory_bytes": self.memory_bytes,
            "tokens_per_s": self.tokens_per_s,
            "pulled": self.pulled,
            "candidates": [dict(vars(candidate)) for candidate in self.candidates],
        }


_IMPLIED = {
    "mlc": Variant(backend="mlc", quantization="q4f16_1"),
    "transformers": Variant(backend="transformers"),
}


def effective_variants(spec: ModelSpec, *, container: bool) -> dict[str, Variant]:
    """Return an entry's variants; one without any runs on MLC in its container, on transformers elsewhere."""
    if spec.variants:
        return spec.variants
    implied = "mlc" if container else "transformers"
    return {implied: _IMPLIED[implied]}
