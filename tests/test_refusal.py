"""What is said when nothing can be chosen."""

from __future__ import annotations

from typing import Any

import pytest

from inference.errors import (
    DoesNotFitError,
    InvalidRequestError,
    JetLLMError,
    ModelNotFoundError,
    ModelNotPulledError,
    NoUsableBackendError,
)
from inference.selection.selector import World
from inference.selection.tasks import Task
from tests.worlds import GIB, choose, entry, make_world


def _refused(world: World, kind: type[JetLLMError], **asked: Any) -> JetLLMError:
    with pytest.raises(kind) as caught:
        choose(world, **asked)
    assert type(caught.value) is kind
    return caught.value


def test_unknown_names() -> None:
    """An unknown model or variant is answered with the nearest known one."""
    world = make_world({"smollm2": entry()})
    assert "smollm2" in str(_refused(world, ModelNotFoundError, model="smollm").hint)
    error = _refused(world, ModelNotFoundError, model="smollm2", variant="w")
    assert (error.message, error.hint) == ("smollm2 has no variant 'w'", "it has: v")


def test_variant_without_a_model() -> None:
    """A variant's name means nothing without its model's."""
    _refused(make_world({"m": entry()}), InvalidRequestError, variant="v")


def test_unknown_speed_priority() -> None:
    """A speed priority is one of three words."""
    _refused(make_world({"m": entry()}), InvalidRequestError, speed="warp")


def test_named_model_that_was_not_pulled() -> None:
    """The hint is the command that brings it."""
    world = make_world({"a": entry(), "b": entry()}, absent=frozenset({"a"}))
    assert _refused(world, ModelNotPulledError, model="a").hint == "jetllm pull a"


def test_nothing_pulled_names_the_smallest_usable() -> None:
    """With an empty store the smallest model that would run here is suggested."""
    models = {
        "huge": entry(megabytes=900),
        "wrong-engine": entry(megabytes=1, backend="mlc"),
        "no-source": entry(megabytes=2, variants={"v": {"backend": "llamacpp"}}),
        "small": entry(megabytes=100),
        "embed": entry(megabytes=3, use_cases=["embedding"]),
    }
    error = _refused(make_world(models, absent=frozenset(models)), ModelNotPulledError)
    assert error.hint == "jetllm pull small"


def test_missing_engine_names_its_installation() -> None:
    """A model whose engine is not here says what to install."""
    world = make_world({"m": entry(variants={})}, backends=frozenset({"llamacpp"}))
    for asked in ({"model": "m"}, {}):
        error = _refused(world, NoUsableBackendError, **asked)
        assert "transformers" in error.message and "pip install" in str(error.hint)


def test_refusal_says_what_would_fit() -> None:
    """Numbers in the message, remedies in the hint, both in the details."""
    models = {"big": entry("7B", 4000), "away": entry("1B", 500)}
    world = make_world(models, budget_gib=1, absent=frozenset({"away"}))
    error = _refused(world, DoesNotFitError, model="big")
    assert "big/v needs 3." in error.message and "at 512 tokens of context" in error.message
    assert "1.00 GiB can be given" in error.message
    needed = error.details["needed_bytes"]
    assert error.details["available_bytes"] == GIB < needed
    assert f"with {(needed - GIB) / GIB:.2f} GiB more of free memory" in str(error.hint)
    assert any("jetllm pull away" in way for way in _ways(world))


def _ways(world: World) -> list[str]:
    error = _refused(world, DoesNotFitError)
    ways: list[str] = error.details["would_fit_if"]
    return ways


def test_fewer_slots_are_suggested_where_they_help() -> None:
    """When one sequence would fit and several do not, the setting is named."""
    world = make_world({"m": entry(kv_heads=64, context_length=512)}, slots=8, budget_gib=0.4)
    assert any("JETLLM_SLOTS=1" in way for way in _ways(world))


def test_task_that_nobody_serves() -> None:
    """A task without a model is not a matter of memory."""
    error = _refused(make_world({"m": entry()}), ModelNotFoundError, task=Task.EMBEDDING)
    assert "embedding" in error.message


def test_empty_registry() -> None:
    """A registry without models serves nothing."""
    _refused(make_world({}), ModelNotFoundError)
