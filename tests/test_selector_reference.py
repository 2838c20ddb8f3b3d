"""The selector against a slow one that follows its documentation, on random worlds."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from inference.device.memory import Memory
from inference.errors import JetLLMError
from inference.registry import ModelSpec, Registry
from inference.selection.estimate import source_bytes
from inference.selection.selector import World, select
from inference.selection.tasks import Task
from tests.random_worlds import asks, worlds
from tests.reference_selector import Option, narrowed
from tests.worlds import GIB, entry


@settings(max_examples=400)
@given(world=worlds(), asked=asks)
def test_chooses_what_the_documentation_says(world: World, asked: dict[str, Any]) -> None:
    """The prepared, narrowing selector and the slow one agree on the choice, its context and its memory."""
    options = [
        Option(world, (model, variant), asked)
        for model, spec in world.registry.models.items()
        for variant in spec.variants
        if asked["model"] in (None, model)
    ]
    standing = [option for option in options if option.can_be_chosen()]
    try:
        selection = select(world, **asked)
    except JetLLMError:
        assert not standing
        return
    assert standing
    best = narrowed(standing, asked)
    assert (selection.model, selection.variant) == best.key
    assert (selection.context_tokens, selection.memory_bytes) == best.size
    assert selection.tokens_per_s == best.speed
    rejected = {(c.model, c.variant) for c in selection.candidates if c.verdict == "rejected"}
    assert rejected == {option.key for option in options if option not in standing}
    assert len(selection.candidates) == len(options)
    assert all(candidate.reason for candidate in selection.candidates)


@settings(max_examples=100)
@given(data=st.lists(st.tuples(worlds(), asks), min_size=2, max_size=4))
def test_what_was_asked_before_changes_nothing(data: list[tuple[World, dict[str, Any]]]) -> None:
    """Worlds that share a registry share what is prepared of it, and get what they would get alone."""
    registry = data[0][0].registry

    shared = [(dataclasses.replace(world, registry=registry), asked) for world, asked in data]
    together = [_outcome(world, asked) for world, asked in (*shared, *reversed(shared))]
    alone = [
        _outcome(dataclasses.replace(world, registry=Registry(registry.models, registry.path)), asked)
        for world, asked in shared
    ]
    assert together == [*alone, *reversed(alone)]


@settings(max_examples=100)
@given(world=worlds(), asked=st.lists(asks, min_size=2, max_size=8), available=st.integers(1, 8))
def test_requests_to_one_world_do_not_disturb_each_other(
    world: World, asked: list[dict[str, Any]], available: int
) -> None:
    """What is prepared for one request, at one memory, holds for another request and another memory."""
    free = dataclasses.replace(world.memory, available_bytes=available * GIB, budget_bytes=available * GIB)
    for each in asked:
        for memory in (world.memory, free):
            now = dataclasses.replace(world, memory=memory)
            fresh = dataclasses.replace(now, registry=Registry(world.registry.models, world.registry.path))
            assert _outcome(now, each) == _outcome(fresh, each)


def _outcome(world: World, asked: dict[str, Any]) -> str:
    try:
        return json.dumps(select(world, **asked).to_dict())
    except JetLLMError as error:
        return json.dumps(error.to_dict())


def test_mapping_changed_in_place_is_noticed() -> None:
    """A caller that pulls a model and keeps its own dictionary is answered for what it holds now."""
    spec = ModelSpec.model_validate_json(json.dumps(entry("1B", 500)))
    weights: dict[tuple[str, str], int] = {}
    world = World(
        registry=Registry({"m": spec}, Path("models.json")),
        backends=frozenset({"llamacpp"}),
        weights_bytes=weights,
        memory=Memory(None, None, None, 0, None),
        residents=(),
        bandwidth_bytes_per_s=None,
        slots=1,
        context_tokens=4096,
        prompt_cache_bytes=0,
        container=False,
    )
    asked: dict[str, Any] = {"model": None, "variant": None, "task": Task.CODE, "speed": "fast"}
    assert select(world, **asked).pulled is False
    weights["m", "v"] = source_bytes(spec, spec.variants["v"]) or 0
    assert select(world, **asked).pulled is True
