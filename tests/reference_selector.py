"""A slow selector that follows docs/selection.md word by word; the fast one must agree with it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from inference.registry import ModelSpec
from inference.registry.evidence import Evidence
from inference.registry.spec import Status
from inference.selection.estimate import estimate_decode_tokens_per_s, estimate_memory, weights_in_memory
from inference.selection.judge import task_fit
from inference.selection.selector import Resident, World
from inference.selection.tasks import Task
from tests.worlds import MB


@dataclasses.dataclass(frozen=True)
class Option:
    """A variant, looked at the slow way."""

    world: World
    key: tuple[str, str]
    asked: dict[str, Any]

    @property
    def spec(self) -> ModelSpec:
        """Its entry."""
        return self.world.registry.models[self.key[0]]

    @property
    def measured(self) -> Evidence:
        """Its evidence."""
        return self.world.evidence.get(self.key, Evidence())

    @property
    def resident(self) -> Resident | None:
        """The worker it could use."""
        return self.world.joinable().get(self.key)

    @property
    def disk(self) -> int | None:
        """Its weights on this machine."""
        return None if self.world.weights_bytes is None else self.world.weights_bytes.get(self.key)

    def bytes_at(self, context: int) -> int:
        """What the documentation says of memory."""
        world, variant = self.world, self.spec.variants[self.key[1]]
        weights = weights_in_memory(self.spec, variant, self.disk) or 0

        def predicted(tokens: int) -> int:
            sizes = {"slots": world.slots, "prompt_cache_bytes": world.prompt_cache_bytes}
            return estimate_memory(
                self.spec, variant, context_tokens=tokens, weights_bytes=self.disk, **sizes
            ).total_bytes

        if self.measured.memory_bytes is not None:
            return max(weights, self.measured.memory_bytes + predicted(context) - predicted(self.wanted))
        if self.key in world.variant_corrections:
            return max(weights, predicted(context) + world.variant_corrections[self.key])
        usual = world.backend_corrections.get(variant.backend, 0) if self.spec.layers is not None else 0
        return max(weights, predicted(context) + usual)

    @property
    def limit(self) -> int:
        """The longest context it can have."""
        return self.spec.context_length or 2**31

    @property
    def wanted(self) -> int:
        """The context of the setting."""
        return min(self.world.context_tokens, self.limit)

    @property
    def ladder(self) -> list[int]:
        """The contexts that are tried, the longest first."""
        needed = self.asked["context_tokens"]
        context = max(self.wanted, min(needed or 0, self.limit))
        least = min(context, max(needed or 0, 512))
        rungs = [context]
        while rungs[-1] > least:
            rungs.append(max(least, rungs[-1] // 2))
        return rungs

    @property
    def room(self) -> float:
        """What can be given to it."""
        room = self.world.room_bytes()
        return float("inf") if room is None else room

    @property
    def size(self) -> tuple[int, int]:
        """Context and memory on the first rung that fits, else on the last."""
        if self.resident is not None:
            return self.resident.context_tokens or self.wanted, self.resident.memory_bytes
        sizes = [(context, self.bytes_at(context)) for context in self.ladder]
        return next((size for size in sizes if size[1] <= self.room), sizes[-1])

    @property
    def incompatible(self) -> bool:
        """Whether it is known not to run here."""
        status = self.measured.status or self.spec.status
        return status is Status.INCOMPATIBLE or self.key in self.world.incompatible

    @property
    def speed(self) -> float | None:
        """Tokens per second."""
        if self.measured.decode_tokens_per_s is not None:
            return self.measured.decode_tokens_per_s
        bandwidth = self.world.bandwidth_bytes_per_s
        variant = self.spec.variants[self.key[1]]
        return estimate_decode_tokens_per_s(
            self.spec, variant, bandwidth, cpu_cores=self.world.cpu_cores, weights_bytes=self.disk
        )

    @property
    def quality(self) -> float | None:
        """Measured, else declared."""
        return self.spec.quality if self.measured.quality is None else self.measured.quality

    def can_be_chosen(self) -> bool:
        """The filters, in their order."""
        named, needed = self.asked["model"] is not None, self.asked["context_tokens"]
        if not named and self.asked["task"] is Task.EMBEDDING and "embedding" not in self.spec.use_cases:
            return False
        if not named and self.asked["task"] is not Task.EMBEDDING and self.spec.use_cases == ("embedding",):
            return False
        if self.spec.variants[self.key[1]].backend not in self.world.backends:
            return False
        if not named and self.incompatible:
            return False
        most = self.limit if self.resident is None else self.resident.context_tokens or 2**31
        if needed is not None and most < needed:
            return False
        return self.resident is not None or (
            not self._is_below_threshold(named) and self.size[1] <= self.room
        )

    def _is_below_threshold(self, named: bool) -> bool:
        least, available = self.spec.min_available_memory, self.world.memory.available_bytes
        if named or least is None or available is None:
            return False
        return available + self.world.freed_bytes() < least * MB


def narrowed(options: list[Option], asked: dict[str, Any]) -> Option:
    """Return the best of *options*, by one comparison after the other."""
    for keys in comparisons(asked):
        key = keys(options)
        best = min(key(option) for option in options)
        options = [option for option in options if key(option) == best]
    return options[0]


CONTINUED = ("text_generation", "creative_writing", "embedding", "vision")
Keys = Callable[[list[Option]], Callable[[Option], Any]]


def comparisons(asked: dict[str, Any]) -> Iterator[Keys]:
    """The list of docs/selection.md; each comparison is told who is left."""
    here = lambda o: o.world.weights_bytes is not None and o.key not in o.world.weights_bytes  # noqa: E731
    yield lambda _: here
    yield lambda _: lambda o: o.incompatible
    if asked["chat"] or asked["task"].value not in CONTINUED:
        yield lambda _: lambda o: o.spec.chat == "none"
    yield lambda _: lambda o: -task_fit(o.spec, asked["task"])
    yield lambda _: lambda o: o.resident is None and o.size[0] < o.ladder[0]
    if asked["speed"] == "fast":
        yield lambda left: _speed if all(o.speed is not None for o in left) else _bytes
    if asked["speed"] == "balanced":
        yield lambda left: _speed if all(_slow(o) for o in left) else _slow
    if asked["speed"] != "fast":
        yield lambda left: lambda o: 0 if any(x.quality is None for x in left) else -(o.quality or 0)
        yield lambda _: lambda o: -o.spec.parameter_count
    yield lambda _: lambda o: o.resident is None
    yield lambda left: _speed if all(o.speed is not None for o in left) else lambda _: 0
    yield lambda _: lambda o: o.size[1]


def _speed(option: Option) -> float:
    return -(option.speed or 0)


def _slow(option: Option) -> bool:
    return option.speed is not None and option.speed < 10


def _bytes(option: Option) -> int:
    variant = option.spec.variants[option.key[1]]
    return weights_in_memory(option.spec, variant, option.disk) or option.bytes_at(option.wanted)
