"""The judgement: what one request meets, and what speaks against a candidate."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from inference.registry.spec import ModelSpec
from inference.selection.sheet import LEAST_CONTEXT_TOKENS, Row
from inference.selection.tasks import Task
from inference.selection.world import Resident, World

_MB = 10**6

# Other words for a task that registries use.
_SYNONYMS = {
    "chat": "conversation",
    "chatbot": "conversation",
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
_CONTINUED = _EXACT_ONLY | {Task.TEXT_GENERATION, Task.CREATIVE_WRITING}


class Obstacle(Enum):
    """What keeps a candidate from being chosen, in the order in which it is looked for."""

    TASK = "task"
    BACKEND = "backend"
    INCOMPATIBLE = "incompatible"
    CONTEXT = "context"
    THRESHOLD = "threshold"
    MEMORY = "memory"


@dataclass(frozen=True)
class Asked:
    """What a request asks of the selector.

    Args:
        named: whether it names a model.
        chat: whether it has turns.
        context_tokens: what it needs; ``None`` when the setting's context will do, or a shorter one.
    """

    task: Task
    speed: str
    named: bool
    chat: bool = False
    context_tokens: int | None = None

    @property
    def instructs(self) -> bool:
        """Whether it wants more than a text continued, which is all that a base model does."""
        return self.chat or self.task not in _CONTINUED


class Judge:
    """Judges candidates for one request, by the memory and the workers of this moment."""

    def __init__(self, world: World, asked: Asked) -> None:
        self.room_bytes = world.room_bytes()
        self.available_mb = _available_mb(world)
        self._room = float("inf") if self.room_bytes is None else self.room_bytes
        self._asked = asked
        self._loaded = world.joinable()

    def resident(self, row: Row) -> Resident | None:
        """Return the worker that *row* could use."""
        return self._loaded.get(row.key) if self._loaded else None

    def closed(self, row: Row) -> Obstacle | None:
        """Return what speaks against *row* whatever is free and loaded now."""
        if not self._asked.named and not _serves(row.spec, self._asked.task):
            return Obstacle.TASK
        if row.unusable is not None:
            return Obstacle.BACKEND
        if not self._asked.named and row.incompatible is not None:
            return Obstacle.INCOMPATIBLE
        return None

    def lacks(self, row: Row) -> Obstacle | None:
        """Return what speaks against *row* now, although it is not `closed`."""
        resident, needed = self.resident(row), self._asked.context_tokens
        if needed is not None and (most := self._most_tokens(row, resident)) is not None and most < needed:
            return Obstacle.CONTEXT
        if resident is not None:
            return None
        if self._is_below_threshold(row):
            return Obstacle.THRESHOLD
        return None if self._fits(row, needed) else Obstacle.MEMORY

    def size(self, row: Row) -> tuple[int, int]:
        """Return context and memory: on the first rung of the ladder that fits, else on the last."""
        resident = self.resident(row)
        if resident is not None:
            return resident.context_tokens or row.wanted_tokens, resident.memory_bytes
        context, least = self._contexts(row)
        while (needed := row.bytes_at(context)) > self._room and context > least:
            context = max(least, context // 2)
        return context, needed

    def is_shortened(self, row: Row) -> bool:
        """Whether *row* fits, if at all, with less context than is wanted."""
        return self.resident(row) is None and row.full_bytes > self._room

    def wanted_tokens(self, row: Row) -> int:
        """Return the context that *row* has when memory suffices."""
        return self._contexts(row)[0]

    def why(self, row: Row, obstacle: Obstacle) -> str:
        """Return *obstacle* in words."""
        context, memory = self.size(row)
        room = gib(self.room_bytes or 0)
        return {
            Obstacle.TASK: lambda: f"does not serve {self._asked.task.value}",
            Obstacle.BACKEND: lambda: str(row.unusable),
            Obstacle.INCOMPATIBLE: lambda: f"incompatible: {row.incompatible}",
            Obstacle.CONTEXT: lambda: self._why_too_short(row),
            Obstacle.THRESHOLD: lambda: (
                f"is chosen from {row.min_available_mb:.0f} MB of available memory;"
                f" {self.available_mb:.0f} MB are"
            ),
            Obstacle.MEMORY: lambda: (
                f"needs {gib(memory)} at {context} tokens of context; {room} can be given"
            ),
        }[obstacle]()

    def _fits(self, row: Row, needed: int | None) -> bool:
        # Most are decided by what is known of two contexts; the formula is asked for what lies between.
        if row.full_bytes <= self._room and (needed is None or needed <= row.wanted_tokens):
            return True
        if row.least_bytes > self._room:
            return False
        return needed is None or row.bytes_at(needed) <= self._room

    def _why_too_short(self, row: Row) -> str:
        resident = self.resident(row)
        has = "can have" if resident is None else "is loaded with"
        most = self._most_tokens(row, resident)
        return f"{has} {most} tokens of context; {self._asked.context_tokens} are needed"

    def _most_tokens(self, row: Row, resident: Resident | None) -> int | None:
        return row.limit_tokens if resident is None else resident.context_tokens

    def _contexts(self, row: Row) -> tuple[int, int]:
        """Return the context that is wanted and the shortest one that will do."""
        wanted, needed = row.wanted_tokens, self._asked.context_tokens
        if needed is None:
            return wanted, min(wanted, LEAST_CONTEXT_TOKENS)
        most = max(wanted, needed if row.limit_tokens is None else min(needed, row.limit_tokens))
        return most, min(most, max(needed, LEAST_CONTEXT_TOKENS))

    def _is_below_threshold(self, row: Row) -> bool:
        if row.min_available_mb is None or self.available_mb is None or self._asked.named:
            return False
        return self.available_mb < row.min_available_mb


def task_fit(spec: ModelSpec, task: Task) -> int:
    """Return 2 when *spec* names the task, 1 when it is a generalist, 0 otherwise.

    Who converses generates text, so both serve plain text generation fully.
    """
    if task.value in spec.use_cases:
        return 2
    served = {_SYNONYMS.get(use, use) for use in spec.use_cases}
    generalist = bool(served & _GENERALIST) and task not in _EXACT_ONLY
    if task.value in served or (generalist and task is Task.TEXT_GENERATION):
        return 2
    return 1 if generalist else 0


def gib(size_bytes: int) -> str:
    """Format bytes for a reader."""
    return f"{size_bytes / 2**30:.2f} GiB"


def _serves(spec: ModelSpec, task: Task) -> bool:
    if task in _EXACT_ONLY:
        return task_fit(spec, task) == 2
    return any(_SYNONYMS.get(use, use) not in _NEVER_TEXT for use in spec.use_cases)


def _available_mb(world: World) -> float | None:
    """Return what is available to one model, so that a loaded one does not push itself below its mark."""
    known = [b for b in (world.memory.available_bytes, world.memory.cgroup_headroom_bytes) if b is not None]
    return (min(known) + world.freed_bytes()) / _MB if known else None
