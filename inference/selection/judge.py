"""The judgement: one candidate, its numbers, and what speaks against it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from inference.registry.spec import ModelSpec, Status, Variant
from inference.selection.estimate import estimate_decode_tokens_per_s, estimate_memory
from inference.selection.tasks import Task
from inference.selection.world import Resident, World

LEAST_CONTEXT_TOKENS = 512
_MB = 10**6

# Other words for a task that registries use.
_SYNONYMS = {
    "chat": "conversation",
    "dialogue": "conversation",
    "conversational": "conversation",
    "code_generation": "code",
    "coding": "code",
    "qa": "question_answering",
    "embeddings": "embedding",
}
_GENERALIST = frozenset({"text_generation", "conversation"})
_NEVER_TEXT = frozenset({"embedding"})
_EXACT_ONLY = frozenset({Task.EMBEDDING, Task.VISION})


class Obstacle(Enum):
    """What keeps a candidate from being chosen, in the order in which it is looked for."""

    TASK = "task"
    BACKEND = "backend"
    INCOMPATIBLE = "incompatible"
    NOT_PULLED = "not pulled"
    MEMORY = "memory"


@dataclass(frozen=True)
class Asked:
    """What a request asks of the selector; *named* when it names a model, *chat* when it has turns."""

    task: Task
    speed: str
    named: bool
    chat: bool = False


@dataclass(frozen=True)
class Judged:
    """A candidate with all that ranks it; *obstacle* and *why* are ``None`` when it can be chosen."""

    model: str
    variant_name: str
    spec: ModelSpec
    variant: Variant
    order: int
    task_fit: int
    context_tokens: int
    memory_bytes: int
    weights_bytes: int | None
    tokens_per_s: float | None
    resident: bool
    incompatible: str | None
    obstacle: Obstacle | None
    why: str | None

    @property
    def key(self) -> str:
        """The candidate's name, as a reader knows it."""
        return f"{self.model}/{self.variant_name}"


class Judge:
    """Judges the candidates of one world for one request."""

    def __init__(self, world: World, asked: Asked) -> None:
        self.room_bytes = world.room_bytes()
        self._world = world
        self._asked = asked
        self._joinable = world.joinable()
        self._available_mb = _available_mb(world)

    def judge(self, model: str, spec: ModelSpec, variant_name: str, variant: Variant, order: int) -> Judged:
        """Look at one variant from every side."""
        world, key = self._world, (model, variant_name)
        resident = self._joinable.get(key)
        fit = task_fit(spec, self._asked.task)
        context, memory, weights = self._memory(spec, variant, key, resident)
        incompatible = _incompatible(world, key, spec)
        obstacle, why = self._obstacle(spec, variant, key, fit, incompatible)
        if obstacle is None and resident is None:
            obstacle, why = self._lack_of_memory(spec, context, memory)
        return Judged(
            model=model,
            variant_name=variant_name,
            spec=spec,
            variant=variant,
            order=order,
            task_fit=fit,
            context_tokens=context,
            memory_bytes=memory,
            weights_bytes=weights,
            tokens_per_s=estimate_decode_tokens_per_s(
                spec, variant, world.bandwidth_bytes_per_s, weights_bytes=world.weights_bytes.get(key)
            ),
            resident=resident is not None,
            incompatible=incompatible,
            obstacle=obstacle,
            why=why,
        )

    def _obstacle(
        self, spec: ModelSpec, variant: Variant, key: tuple[str, str], fit: int, incompatible: str | None
    ) -> tuple[Obstacle | None, str | None]:
        named = self._asked.named
        if not named and not _serves(spec, self._asked.task, fit):
            return Obstacle.TASK, f"does not serve {self._asked.task.value}"
        if variant.backend not in self._world.backends:
            return Obstacle.BACKEND, f"the {variant.backend} backend is not usable here"
        if not named and incompatible is not None:
            return Obstacle.INCOMPATIBLE, f"incompatible: {incompatible}"
        if key not in self._world.weights_bytes:
            return Obstacle.NOT_PULLED, f"its weights are not on this machine: jetllm pull {key[0]}"
        return None, None

    def _lack_of_memory(
        self, spec: ModelSpec, context: int, memory: int
    ) -> tuple[Obstacle | None, str | None]:
        wanted, available = spec.min_available_memory, self._available_mb
        if not self._asked.named and wanted is not None and available is not None and available < wanted:
            why = f"is chosen from {wanted:.0f} MB of available memory; {available:.0f} MB are"
            return Obstacle.MEMORY, why
        if self.room_bytes is not None and memory > self.room_bytes:
            why = f"needs {gib(memory)} at {context} tokens of context; {gib(self.room_bytes)} can be given"
            return Obstacle.MEMORY, why
        return None, None

    def _memory(
        self, spec: ModelSpec, variant: Variant, key: tuple[str, str], resident: Resident | None
    ) -> tuple[int, int, int | None]:
        """Return context, memory and weights on the first rung of the ladder that fits, else on the last."""
        context = wanted_context(self._world, spec, variant)
        while True:
            weights, memory = self._estimate(spec, variant, key, context)
            if resident is not None:
                return resident.context_tokens or context, resident.memory_bytes, weights
            fits = self.room_bytes is None or memory <= self.room_bytes
            if fits or context <= LEAST_CONTEXT_TOKENS or key not in self._world.weights_bytes:
                return context, memory, weights
            context = max(LEAST_CONTEXT_TOKENS, context // 2)

    def _estimate(
        self, spec: ModelSpec, variant: Variant, key: tuple[str, str], context: int
    ) -> tuple[int | None, int]:
        world = self._world
        estimate = estimate_memory(
            spec,
            variant,
            context_tokens=context,
            slots=world.slots,
            prompt_cache_bytes=world.prompt_cache_bytes,
            weights_bytes=world.weights_bytes.get(key),
            prefill_batch_tokens=world.prefill_batch_tokens,
        )
        return estimate.weights_bytes or world.weights_bytes.get(key), estimate.total_bytes


def task_fit(spec: ModelSpec, task: Task) -> int:
    """Return 2 when *spec* names the task, 1 when it is a generalist, 0 otherwise."""
    if task.value in spec.use_cases:
        return 2
    served = {_SYNONYMS.get(use, use) for use in spec.use_cases}
    if task.value in served:
        return 2
    return 1 if served & _GENERALIST and task not in _EXACT_ONLY else 0


def wanted_context(world: World, spec: ModelSpec, variant: Variant) -> int:
    """Return the tokens a sequence should have: the setting, capped by the variant and the model."""
    limits = (world.context_tokens, variant.context, spec.context_length)
    return min(limit for limit in limits if limit is not None)


def gib(size_bytes: int) -> str:
    """Format bytes for a reader."""
    return f"{size_bytes / 2**30:.2f} GiB"


def _serves(spec: ModelSpec, task: Task, fit: int) -> bool:
    if task in _EXACT_ONLY:
        return fit == 2
    return fit > 0 or any(_SYNONYMS.get(use, use) not in _NEVER_TEXT for use in spec.use_cases)


def _incompatible(world: World, key: tuple[str, str], spec: ModelSpec) -> str | None:
    if spec.status is Status.INCOMPATIBLE:
        return spec.issue or "its entry says so"
    return world.incompatible.get(key)


def _available_mb(world: World) -> float | None:
    """Return what is available to one model, so that a loaded one does not push itself below its mark."""
    known = [b for b in (world.memory.available_bytes, world.memory.cgroup_headroom_bytes) if b is not None]
    return (min(known) + world.freed_bytes()) / _MB if known else None
