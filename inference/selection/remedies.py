"""The remedies: what would make a request fit that does not."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from inference.selection.judge import Asked, Judge, Obstacle, gib
from inference.selection.sheet import LEAST_CONTEXT_TOKENS, Row, Sheet
from inference.selection.world import Resident, World

_STEP_TOKENS = 256  # a shorter context is offered in these steps

Remedy = dict[str, Any]
"""``kind``, its values, ``command`` (``None`` where none does it), and ``text`` to follow "it would fit"."""


def remedies(
    world: World, rows: Sequence[Row], large: Sequence[Row], least: Row, asked: Asked
) -> list[Remedy]:
    """Return what would make something fit, the cheapest first.

    Args:
        rows: what may be chosen from.
        large: those of them that only lack memory or context.
        least: the one of *large* that needs the least memory.
    """
    return [
        *_shorter_context(world, large, asked),
        *_without_residents(world, large, asked),
        *_another_quantization(world, rows, large, asked),
        *_another_model(world, large, asked),
        *_one_slot(world, least, asked),
        *_more_memory(world, least, asked),
    ]


def _shorter_context(world: World, large: Sequence[Row], asked: Asked) -> Iterator[Remedy]:
    if asked.context_tokens is None:
        return
    found = [(_longest_context(world, row, asked), row) for row in large]
    context, row = max(found, key=lambda each: (each[0], -each[1].order))
    if context > 0:
        size = Judge(world, dataclasses.replace(asked, context_tokens=context)).size(row)[1]
        yield _remedy(
            "context",
            f"with a context of {context} tokens ({row.name} needs {gib(size)})",
            context_tokens=context,
            model=row.model,
            variant=row.variant_name,
            needed_bytes=size,
        )


def _longest_context(world: World, row: Row, asked: Asked) -> int:
    """Return the most tokens, in steps, for which *row* could be chosen; 0 when there are none."""
    most = asked.context_tokens or 0
    limits = [
        row.limit_tokens,
        *(r.context_tokens for r in world.residents if (r.model, r.variant) == row.key),
    ]
    steps = [limit for limit in limits if limit is not None and limit < most]
    steps += range(most // _STEP_TOKENS * _STEP_TOKENS, LEAST_CONTEXT_TOKENS - 1, -_STEP_TOKENS)
    for context in sorted(steps, reverse=True):
        if _fits(world, row, dataclasses.replace(asked, context_tokens=context)):
            return context
    return 0


def _without_residents(world: World, large: Sequence[Row], asked: Asked) -> Iterator[Remedy]:
    staying = [resident for resident in world.residents if resident.joinable]
    held = [r for r in staying if not r.evictable or _is_too_short(r, large, asked)]
    ways = [[resident] for resident in sorted(held, key=lambda r: (r.memory_bytes, r.model))]
    if len(held) > 1:
        ways.append(held)
    for way in ways:
        others = tuple(resident for resident in world.residents if resident not in way)
        loaded = [resident for resident in way if resident.state == "ready"]
        moved = tuple(dataclasses.replace(resident, state="stopping") for resident in loaded)
        freed = dataclasses.replace(world, residents=(*others, *moved))
        if any(_fits(freed, row, asked) for row in large):
            models = list(dict.fromkeys(resident.model for resident in way))
            command = " && ".join(f"jetllm unload {model}" for model in models)
            yield _remedy("evict", f"after: {command}", command=command, models=models)
            return


def _is_too_short(resident: Resident, large: Sequence[Row], asked: Asked) -> bool:
    """Whether a worker stands in the way by the context it was loaded with."""
    needed, has = asked.context_tokens, resident.context_tokens
    mine = any(row.key == (resident.model, resident.variant) for row in large)
    return mine and needed is not None and has is not None and has < needed


def _another_quantization(
    world: World, rows: Sequence[Row], large: Sequence[Row], asked: Asked
) -> Iterator[Remedy]:
    """Where a variant was named: another one of the same model."""
    judge, tried = Judge(world, asked), {row.order for row in rows}
    others = [row for row in Sheet.of(world).by_model[large[0].model] if row.order not in tried]
    fitting = [row for row in others if asked.named and _fits(world, row, asked)]
    if fitting:
        row = min(fitting, key=lambda row: (row.pulled is False, -judge.size(row)[1], row.order))
        yield _instead("quantization", row, judge)


def _another_model(world: World, large: Sequence[Row], asked: Asked) -> Iterator[Remedy]:
    """Where a model was named: the largest other one that serves the task, and is best brought first."""
    free = dataclasses.replace(asked, named=False)
    judge = Judge(world, free)
    if not asked.named:
        below = [row for row in large if judge.lacks(row) is Obstacle.THRESHOLD]
        named = dataclasses.replace(asked, named=True)
        for row in [row for row in below if _fits(world, row, named)][:1]:
            yield _instead("model", row, judge, text=f"if named: {row.model}")
        return
    fitting = [row for row in Sheet.of(world).rows if row.model != large[0].model and _fits(world, row, free)]
    for kind, pulled in (("model", (True, None)), ("pull", (False,))):
        for row in sorted(fitting, key=lambda row: (-row.parameter_count, row.order)):
            if row.pulled in pulled:
                yield _instead(kind, row, judge)
                break


def _one_slot(world: World, least: Row, asked: Asked) -> Iterator[Remedy]:
    if world.slots == 1:
        return
    single = dataclasses.replace(world, slots=1)
    row = Sheet(single).rows[least.order]
    if _fits(single, row, asked):
        size = Judge(single, asked).size(row)[1]
        yield _remedy("slots", f"with JETLLM_SLOTS=1 (needs {gib(size)})", slots=1, needed_bytes=size)


def _more_memory(world: World, least: Row, asked: Asked) -> Iterator[Remedy]:
    judge = Judge(world, asked)
    missing = judge.size(least)[1] - (judge.room_bytes or 0)
    if judge.lacks(least) is Obstacle.MEMORY:
        yield _remedy("free_memory", f"with {gib(missing)} more of free memory", missing_bytes=missing)


def _fits(world: World, row: Row, asked: Asked) -> bool:
    judge = Judge(world, asked)
    return judge.closed(row) is None and judge.lacks(row) is None


def _instead(kind: str, row: Row, judge: Judge, text: str | None = None) -> Remedy:
    context, size = judge.size(row)
    load = f"jetllm load {row.model} --variant {row.variant_name}"
    command = row.pull_command if row.pulled is False else load
    return _remedy(
        kind,
        text or f"as {row.name} ({gib(size)}): {command}",
        command=command,
        model=row.model,
        variant=row.variant_name,
        context_tokens=context,
        needed_bytes=size,
        pulled=row.pulled,
    )


def _remedy(kind: str, text: str, *, command: str | None = None, **values: Any) -> Remedy:
    return {"kind": kind, **values, "command": command, "text": text}
