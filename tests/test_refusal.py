"""What is said when nothing can be chosen."""

from __future__ import annotations

from typing import Any

import pytest

from inference.errors import (
    DoesNotFitError,
    InvalidRequestError,
    JetLLMError,
    ModelNotFoundError,
    NoUsableBackendError,
)
from inference.selection.selector import Resident, World
from inference.selection.tasks import Task
from tests.worlds import GIB, MB, choose, entry, make_world


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


def test_missing_engine_names_its_installation() -> None:
    """A model whose engine is not here says what to install."""
    world = make_world({"m": entry(variants={})}, backends=frozenset({"llamacpp"}))
    for asked in ({"model": "m"}, {}):
        error = _refused(world, NoUsableBackendError, **asked)
        assert "transformers" in error.message and "pip install" in str(error.hint)


def test_adapters_alone_are_no_reason_to_install_anything() -> None:
    """A variant with adapters is refused for them, not for its engine."""
    adapter = {"name": "style", "source": {"type": "file", "path": "/a"}}
    tuned = {"v": {"backend": "llamacpp", "adapters": [adapter]}}
    error = _refused(make_world({"m": entry(variants=tuned)}), NoUsableBackendError, model="m")
    assert error.message == "m/v: no backend loads adapters yet: style"


def test_only_incompatible_models() -> None:
    """What is known not to run is not chosen by itself; the hint says how to insist."""
    error = _refused(make_world({"m": entry(status="incompatible")}), NoUsableBackendError)
    assert error.hint == "to use one all the same, name it: m"


class TestWouldFitIf:
    """What would make it fit: for machines in the details, for people in the hint."""

    def test_numbers(self) -> None:
        """The message says what is needed and what there is; so do the details."""
        world = make_world({"big": entry("7B", 4000)}, budget_gib=1)
        error = _refused(world, DoesNotFitError, model="big")
        assert "big/v needs 3." in error.message and "at 512 tokens of context" in error.message
        assert "1.00 GiB can be given" in error.message
        needed = error.details["needed_bytes"]
        assert error.details["available_bytes"] == GIB < needed
        (memory,) = _ways(error)
        assert memory == {
            "kind": "free_memory",
            "missing_bytes": needed - GIB,
            "command": None,
            "text": f"with {(needed - GIB) / GIB:.2f} GiB more of free memory",
        }
        assert error.hint == f"it would fit {memory['text']}"

    def test_shorter_context(self) -> None:
        """A request that needs too long a context is told the longest one that fits."""
        world = make_world({"m": entry(kv_heads=64, context_length=8192)}, budget_gib=0.75)
        error = _refused(world, DoesNotFitError, context_tokens=8000)
        way = _way(error, "context")
        assert way["context_tokens"] % 256 == 0 and way["needed_bytes"] <= 0.75 * GIB
        assert choose(world, context_tokens=way["context_tokens"]).context_tokens == way["context_tokens"]
        _refused(world, DoesNotFitError, context_tokens=way["context_tokens"] + 256)
        assert way["text"] in str(error.hint)

    def test_longest_context_of_a_model(self) -> None:
        """Where no model can have so much, the most that one can have is named, memory permitting."""
        models = {"a": entry(context_length=1000), "b": entry(context_length=3000)}
        error = _refused(make_world(models), DoesNotFitError, context_tokens=9000)
        assert "can have" in error.message and "9000 are needed" in error.message
        assert (_way(error, "context")["model"], _way(error, "context")["context_tokens"]) == ("b", 3000)

    def test_eviction_of_one(self) -> None:
        """Of several pinned models the one whose memory suffices is named alone."""
        models = {"a": entry(), "b": entry(), "new": entry(megabytes=2500)}
        pinned = [Resident("a", "v", "ready", False, 3 * GIB), Resident("b", "v", "ready", False, GIB)]
        world = make_world(models, budget_gib=1, residents=tuple(pinned))
        way = _way(_refused(world, DoesNotFitError, model="new"), "evict")
        assert (way["models"], way["command"]) == (["a"], "jetllm unload a")
        assert way["text"] == "after: jetllm unload a"

    def test_eviction_of_all(self) -> None:
        """Where no single one suffices, all have to leave."""
        models = {"a": entry(), "b": entry(), "new": entry(megabytes=2500)}
        pinned = [Resident("a", "v", "ready", False, GIB), Resident("b", "v", "ready", False, GIB)]
        world = make_world(models, budget_gib=1, residents=tuple(pinned))
        way = _way(_refused(world, DoesNotFitError, model="new"), "evict")
        assert way["command"] == "jetllm unload a && jetllm unload b"

    def test_eviction_that_does_not_help_is_not_suggested(self) -> None:
        """A pinned model that is too small to make room is left alone."""
        models = {"a": entry(), "new": entry(megabytes=9000)}
        world = make_world(models, budget_gib=1, residents=(Resident("a", "v", "ready", False, GIB),))
        assert _kinds(_refused(world, DoesNotFitError, model="new")) == ["model", "free_memory"]

    def test_worker_that_is_still_loading_frees_what_it_was_promised(self) -> None:
        """It holds nothing yet: without it there is what can be given now."""
        models = {"a": entry(), "new": entry(megabytes=1500)}
        loading = (Resident("a", "v", "starting", False, GIB),)
        world = make_world(models, budget_gib=2, residents=loading)
        assert "evict" in _kinds(_refused(world, DoesNotFitError, model="new"))
        larger = make_world(models | {"new": entry(megabytes=2500)}, budget_gib=2, residents=loading)
        assert "evict" not in _kinds(_refused(larger, DoesNotFitError, model="new"))

    def test_worker_with_too_little_context_has_to_leave(self) -> None:
        """It keeps the context that it was loaded with, also when nobody pinned it."""
        loaded = Resident("m", "v", "ready", True, 300 * MB, context_tokens=1024)
        world = make_world({"m": entry()}, residents=(loaded,))
        error = _refused(world, DoesNotFitError, model="m", context_tokens=2000)
        assert _way(error, "evict")["command"] == "jetllm unload m"
        assert _way(error, "context")["context_tokens"] == 1024

    def test_another_quantization(self) -> None:
        """Where a variant was named, the largest other variant of the model that fits."""
        source = {"type": "file", "path": "/w"}
        variants = {
            "f32": {"backend": "transformers", "source": source},
            "q8": {"backend": "llamacpp", "quantization": "Q8_0", "source": source},
            "q4": {"backend": "llamacpp", "quantization": "Q4_0", "source": source},
        }
        pulled = {("m", "f32"): 4000 * MB, ("m", "q4"): 560 * MB}
        world = make_world({"m": entry("1B", variants=variants)}, budget_gib=2, weights_bytes=pulled)
        way = _way(_refused(world, DoesNotFitError, model="m", variant="f32"), "quantization")
        assert (way["variant"], way["pulled"]) == ("q4", True)
        assert way["command"] == "jetllm load m --variant q4"
        absent = make_world({"m": entry("1B", variants=variants)}, budget_gib=2, weights_bytes={})
        way = _way(_refused(absent, DoesNotFitError, model="m", variant="f32"), "quantization")
        assert (way["variant"], way["command"]) == ("q8", "jetllm pull m --variant q8")

    def test_another_model(self) -> None:
        """Where a model was named, the largest other one that fits: one that is here, and one to pull."""
        models = {
            "big": entry("7B", 4000),
            "here": entry("1B", 500),
            "small": entry(),
            "away": entry("2B", 600),
            "embed": entry("3B", 100, use_cases=["embedding"]),
        }
        world = make_world(models, budget_gib=1, absent=frozenset({"away"}))
        error = _refused(world, DoesNotFitError, model="big")
        assert (_way(error, "model")["model"], _way(error, "pull")["model"]) == ("here", "away")
        assert _way(error, "pull")["command"] == "jetllm pull away"
        assert "as here/v (" in str(error.hint)

    def test_one_slot(self) -> None:
        """When one sequence would fit and several do not, the setting is named."""
        world = make_world({"m": entry(kv_heads=64, context_length=512)}, slots=8, budget_gib=0.4)
        way = _way(_refused(world, DoesNotFitError), "slots")
        assert way["slots"] == 1 and "JETLLM_SLOTS=1" in way["text"]
        assert way["needed_bytes"] <= 0.4 * GIB

    def test_model_below_its_own_threshold_can_be_named(self) -> None:
        """min_available_memory is about choosing by oneself, so naming the model helps."""
        error = _refused(make_world({"m": entry(min_available_memory=9000)}), DoesNotFitError)
        assert "is chosen from 9000 MB" in error.message
        assert [(way["kind"], way["text"]) for way in _ways(error)] == [("model", "if named: m")]


def _ways(error: JetLLMError) -> list[dict[str, Any]]:
    ways: list[dict[str, Any]] = error.details["would_fit_if"]
    return ways


def _kinds(error: JetLLMError) -> list[str]:
    return [way["kind"] for way in _ways(error)]


def _way(error: JetLLMError, kind: str) -> dict[str, Any]:
    return next(way for way in _ways(error) if way["kind"] == kind)


def test_task_that_nobody_serves() -> None:
    """A task without a model is not a matter of memory."""
    error = _refused(make_world({"m": entry()}), ModelNotFoundError, task=Task.EMBEDDING)
    assert "embedding" in error.message


def test_empty_registry() -> None:
    """A registry without models serves nothing."""
    _refused(make_world({}), ModelNotFoundError)
