"""A recorded decision and its repetition."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given, settings

from inference.errors import DoesNotFitError, InvalidRequestError, JetLLMError
from inference.registry import Registry
from inference.selection.decision import record, replay
from inference.selection.selector import World, select
from inference.selection.tasks import Task
from tests.random_worlds import asks, worlds
from tests.worlds import entry, make_world

DIGEST = "ab" * 32
ASKED: dict[str, Any] = {"model": None, "variant": None, "task": Task.CODE, "speed": "balanced"}


def _world(**values: Any) -> World:
    world = make_world({"m": entry(), "n": entry("1B", 500)}, **values)
    return dataclasses.replace(world, registry=_registry(world.registry))


def _registry(registry: Registry) -> Registry:
    return Registry(registry.models, registry.path, DIGEST)


def _recorded(**values: Any) -> tuple[dict[str, Any], Registry]:
    world = _world(**values)
    line = json.dumps(record(world, select(world, **ASKED), **ASKED))
    return json.loads(line), _registry(world.registry)


@settings(max_examples=200)
@given(world=worlds(), asked=asks)
def test_replay_gives_the_same_selection(world: World, asked: dict[str, Any]) -> None:
    """Whatever decided is in the record: through JSON and back it comes out the same, byte for byte."""
    registry = Registry(world.registry.models, world.registry.path, world.registry.digest)
    try:
        selection = select(world, **asked)
    except JetLLMError as error:
        recorded = json.loads(json.dumps(record(world, None, **asked)))
        assert recorded["selection"] is None
        with pytest.raises(type(error)) as caught:
            replay(recorded, registry)
        assert caught.value.to_dict() == error.to_dict()
        return
    recorded = json.loads(json.dumps(record(world, selection, **asked)))
    again = replay(recorded, registry)
    assert again == selection
    assert json.dumps(again.to_dict()) == json.dumps(selection.to_dict()) == json.dumps(recorded["selection"])


def test_registry_is_recorded_by_its_digest_only() -> None:
    """A record holds what was seen of the registry, not the registry."""
    recorded, _ = _recorded()
    assert (recorded["version"], recorded["registry_digest"]) == (1, DIGEST)
    assert "use_cases" not in json.dumps(recorded)


@pytest.mark.parametrize("digest", ["cd" * 32, None])
def test_another_registry_is_refused(digest: str | None) -> None:
    """With other models the decision could only come out the same by accident."""
    recorded, registry = _recorded()
    other = Registry(registry.models, registry.path, digest)
    with pytest.raises(InvalidRequestError) as caught:
        replay(recorded, other)
    assert "abababababab" in caught.value.message and "JETLLM_REGISTRY" in str(caught.value.hint)


def test_registry_without_a_digest_is_never_the_same() -> None:
    """Two registries of which nothing is known are not taken for one."""
    recorded, registry = _recorded()
    with pytest.raises(InvalidRequestError):
        replay(recorded | {"registry_digest": None}, Registry(registry.models, registry.path))


@pytest.mark.parametrize("version", [0, 2, None, "1"])
def test_another_version_is_refused(version: object) -> None:
    """A record of another form is not guessed at."""
    recorded, registry = _recorded()
    with pytest.raises(InvalidRequestError, match="version"):
        replay(recorded | {"version": version}, registry)


@pytest.mark.parametrize(
    "damage",
    [
        {"world": {}},
        {"world": None},
        {"request": {}},
        {"request": {"task": "no such task"}},
        {"request": {"task": "code", "speed": "fast"}},
    ],
)
def test_damaged_record_is_refused(damage: dict[str, Any]) -> None:
    """What is no record is said to be none, without a traceback."""
    recorded, registry = _recorded()
    with pytest.raises(InvalidRequestError, match="decision"):
        replay(recorded | damage, registry)


def test_refusal_is_repeated() -> None:
    """A decision that nothing fits comes out as the same refusal."""
    world = _world(budget_gib=0.01)
    with pytest.raises(DoesNotFitError) as first:
        select(world, **ASKED)
    with pytest.raises(DoesNotFitError) as again:
        replay(record(world, None, **ASKED), _registry(world.registry))
    assert again.value.to_dict() == first.value.to_dict()
