"""Which model serves a request, and why."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.device.memory import Memory
from inference.errors import (
    DoesNotFitError,
    InvalidRequestError,
    JetLLMError,
    ModelNotFoundError,
    ModelNotPulledError,
    NoUsableBackendError,
)
from inference.registry import load_registry
from inference.selection.selector import Candidate, Resident, Selection, World, effective_variants, select
from inference.selection.tasks import Task

GIB = 2**30
MB = 10**6
SHAPE = {"layers": 10, "kv_heads": 2, "head_dim": 64, "hidden_size": 512, "vocab_size": 1000}


def _entry(parameters: str = "100M", megabytes: int = 100, **values: Any) -> dict[str, Any]:
    backend = values.pop("backend", "llamacpp")
    source = {"type": "file", "path": "/weights.gguf", "bytes": megabytes * MB}
    return {
        "name": parameters,
        "parameters": parameters,
        "memory_requirement": megabytes,
        "container": None,
        "status": "experimental",
        "use_cases": ["conversation", "text_generation"],
        "context_length": 4096,
        **SHAPE,
        "variants": {"v": {"backend": backend, "source": source}},
        **values,
    }


def _memory(budget_gib: float | None) -> Memory:
    if budget_gib is None:
        return Memory(None, None, None, 0, None)
    budget = int(budget_gib * GIB)
    return Memory(16 * GIB, budget, None, 0, budget)


@pytest.fixture
def make_world(tmp_path: Path) -> Callable[..., World]:
    """Make worlds of registry entries, all pulled and usable unless said otherwise."""

    def make(models: dict[str, dict[str, Any]], *, budget_gib: float | None = 8, **values: Any) -> World:
        path = tmp_path / "models.json"
        path.write_text(json.dumps({"models": models}), encoding="utf-8")
        registry = load_registry(path)
        here = {
            (name, variant): int(models[name]["memory_requirement"]) * MB
            for name, spec in registry.models.items()
            for variant in effective_variants(spec, container=False)
        }
        absent = values.pop("absent", ())
        usual: dict[str, Any] = {
            "backends": frozenset({"llamacpp", "transformers"}),
            "weights_bytes": {key: size for key, size in here.items() if key[0] not in absent},
            "memory": _memory(budget_gib),
            "residents": (),
            "bandwidth_bytes_per_s": None,
            "slots": 1,
            "context_tokens": 4096,
            "prompt_cache_bytes": 0,
            "container": False,
        }
        return World(registry=registry, **{**usual, **values})

    return make


MakeWorld = Callable[..., World]


def _choose(world: World, task: Task = Task.CONVERSATION, speed: str = "balanced", **named: Any) -> Selection:
    return select(world, model=named.get("model"), variant=named.get("variant"), task=task, speed=speed)


def _fate(selection: Selection, model: str) -> Candidate:
    return next(c for c in selection.candidates if c.model == model)


class TestRanking:
    """What is compared, and in which order."""

    def test_named_model_wins(self, make_world: MakeWorld) -> None:
        """A model that the request names is taken, whatever else would rank before it."""
        world = make_world({"big": _entry("1B"), "small": _entry("10M", use_cases=["code"], aliases=["S"])})
        selection = _choose(world, model="s")
        assert selection.model == "small"
        assert "named by the request" in selection.reason
        assert [c.model for c in selection.candidates] == ["small"]

    def test_task_fit_comes_first(self, make_world: MakeWorld) -> None:
        """A model made for the task beats a larger generalist, and that one a model made for something else."""
        world = make_world(
            {
                "other": _entry("9B", use_cases=["summarization"]),
                "generalist": _entry("8B"),
                "coder": _entry("1B", use_cases=["code"]),
            }
        )
        selection = _choose(world, Task.CODE)
        assert [c.model for c in selection.candidates] == ["coder", "generalist", "other"]
        assert [c.task_fit for c in selection.candidates] == [2, 1, 0]
        assert _fate(selection, "generalist").reason == "coder/v fits code better"

    def test_synonyms_of_a_task_count(self, make_world: MakeWorld) -> None:
        """A registry may say "chat" for conversation."""
        world = make_world(
            {"a": _entry("9B", use_cases=["text_generation"]), "b": _entry(use_cases=["chat"])}
        )
        assert _choose(world).model == "b"

    @pytest.mark.parametrize(
        ("speed", "model"), [("fast", "small"), ("balanced", "middle"), ("quality", "large")]
    )
    def test_speed_priority(self, speed: str, model: str, make_world: MakeWorld) -> None:
        """fast takes the most tokens per second, quality the most parameters, balanced the best in time.

        At 10 GB/s: 0.1 GB take 13 ms a token, 0.5 GB 55 ms (18 tokens/s), 2 GB 211 ms (5 tokens/s).
        """
        world = make_world(
            {"large": _entry("4B", 2000), "middle": _entry("1B", 500), "small": _entry("100M", 100)},
            bandwidth_bytes_per_s=10e9,
        )
        selection = _choose(world, speed=speed)
        assert selection.model == model
        assert _fate(selection, "middle").tokens_per_s == pytest.approx(18.3, abs=0.1)

    def test_losers_are_told_why(self, make_world: MakeWorld) -> None:
        """Each loser's reason is the first comparison that it lost, with its numbers."""
        world = make_world(
            {"large": _entry("4B", 2000), "middle": _entry("1B", 500), "small": _entry("100M", 100)},
            bandwidth_bytes_per_s=10e9,
        )
        selection = _choose(world)
        assert _fate(selection, "large").reason == "too slow: 5 of 10 tokens/s predicted"
        assert _fate(selection, "small").reason == "fewer parameters: 100M against 1B"

    def test_balanced_takes_the_fastest_when_all_are_slow(self, make_world: MakeWorld) -> None:
        """Where nothing meets the target, the least slow one is best."""
        world = make_world(
            {"large": _entry("8B", 4000), "less": _entry("4B", 2000)}, bandwidth_bytes_per_s=10e9
        )
        assert _choose(world).model == "less"

    def test_fast_without_a_bandwidth_takes_fewer_bytes(self, make_world: MakeWorld) -> None:
        """Decode reads all weights for every token, so fewer bytes are faster on any machine."""
        world = make_world({"a": _entry("1B", 300), "b": _entry("2B", 200)})
        selection = _choose(world, speed="fast")
        assert selection.model == "b" and _fate(selection, "b").tokens_per_s is None

    def test_unknown_speed_meets_the_target(self, make_world: MakeWorld) -> None:
        """Balanced treats a speed that nobody knows as sufficient."""
        assert _choose(make_world({"a": _entry("1B"), "b": _entry("2B", 2000)})).model == "b"

    def test_measured_quality_beats_size(self, make_world: MakeWorld) -> None:
        """Quality that was measured for all counts before parameters; for some it counts for nothing."""
        models = {"large": _entry("3B", quality=0.4), "good": _entry("1B", quality=0.6)}
        assert _choose(make_world(models), speed="quality").model == "good"
        models["new"] = _entry("2B")
        assert _choose(make_world(models), speed="quality").model == "large"

    def test_loaded_beats_equal(self, make_world: MakeWorld) -> None:
        """Between equals the one that is already loaded is taken, with the memory that it was seen to hold."""
        loaded = Resident("b", "v", "ready", True, 123 * MB, context_tokens=2048)
        world = make_world({"a": _entry(megabytes=50), "b": _entry()}, residents=(loaded,))
        selection = _choose(world)
        assert (selection.model, selection.memory_bytes, selection.context_tokens) == ("b", 123 * MB, 2048)
        assert "already loaded" in selection.reason

    def test_stopping_worker_is_not_loaded(self, make_world: MakeWorld) -> None:
        """A worker on its way out serves nobody new."""
        leaving = Resident("b", "v", "stopping", True, 123 * MB)
        assert (
            _choose(make_world({"a": _entry(), "b": _entry(megabytes=150)}, residents=(leaving,))).model
            == "a"
        )

    def test_smaller_then_registry_order(self, make_world: MakeWorld) -> None:
        """Between equals the smaller one is taken, and of twins the first in the registry."""
        models = {"a": _entry(megabytes=200), "c": _entry(), "b": _entry()}
        selection = _choose(make_world(models))
        assert [c.model for c in selection.candidates] == ["c", "b", "a"]
        assert _fate(selection, "b").reason == "c/v stands before it in the registry"

    def test_variant_of_a_named_model_is_ranked(self, make_world: MakeWorld) -> None:
        """Of a model's variants the fastest usable one is taken under fast, the named one if one is named."""
        source = {"type": "file", "path": "/w"}
        variants = {
            "f32": {"backend": "transformers", "source": source},
            "q4": {"backend": "llamacpp", "source": source},
        }
        world = make_world({"m": _entry("1B", 600, variants=variants)}, bandwidth_bytes_per_s=50e9)
        assert _choose(world, model="m", speed="fast").variant == "q4"
        assert _choose(world, model="m", variant="f32").variant == "f32"

    def test_fixed_thresholds_of_the_original_models(self, make_world: MakeWorld) -> None:
        """Available memory picks among the guide's three models; speed and conversation pick theirs."""
        shape = {"layers": 12, "kv_heads": 12, "head_dim": 64, "hidden_size": 768, "vocab_size": 50257}
        text = ["text_generation", "creative_writing"]
        common: dict[str, Any] = {**shape, "context_length": 1024, "variants": {}}
        models = {
            "distilgpt2": _entry("82M", 330, use_cases=text, **{**common, "layers": 6}),
            "dialogpt-small": _entry("117M", 470, min_available_memory=2500, **common),
            "gpt2": _entry("124M", 500, use_cases=text, min_available_memory=4000, **common),
        }

        def chosen(available_mb: int, task: Task = Task.TEXT_GENERATION, speed: str = "quality") -> str:
            memory = Memory(None, available_mb * MB, None, 0, available_mb * MB)
            return _choose(make_world(models, memory=memory), task, speed).model

        assert [chosen(mb) for mb in (4100, 3000, 2000)] == ["gpt2", "dialogpt-small", "distilgpt2"]
        assert chosen(4100, speed="fast") == "distilgpt2"
        assert chosen(4100, Task.CONVERSATION) == "dialogpt-small"


class TestFilters:
    """What cannot be chosen, and what it is told."""

    @pytest.mark.parametrize(
        ("values", "reason"),
        [
            ({"backend": "mlc"}, "the mlc backend is not usable here"),
            ({"status": "incompatible", "issue": "no kernel"}, "incompatible: no kernel"),
            ({"use_cases": ["embedding"]}, "does not serve conversation"),
            ({"megabytes": 9000}, "needs 8."),
            ({"min_available_memory": 9000}, "is chosen from 9000 MB of available memory; 8590 MB are"),
        ],
    )
    def test_rejected_with_a_reason(self, values: dict[str, Any], reason: str, make_world: MakeWorld) -> None:
        """A candidate that cannot be chosen is listed with what speaks against it."""
        selection = _choose(make_world({"bad": _entry("9B", **values), "good": _entry()}))
        assert selection.model == "good"
        assert _fate(selection, "bad").verdict == "rejected"
        assert reason in _fate(selection, "bad").reason

    def test_weights_must_be_here(self, make_world: MakeWorld) -> None:
        """Only what was pulled is chosen."""
        selection = _choose(make_world({"away": _entry("9B"), "here": _entry()}, absent={"away"}))
        assert selection.model == "here"
        assert "jetllm pull away" in _fate(selection, "away").reason

    def test_known_incompatibility_of_this_machine_counts(self, make_world: MakeWorld) -> None:
        """What was found not to run here is not chosen, but may be named."""
        world = make_world({"a": _entry("9B"), "b": _entry()}, incompatible={("a", "v"): "gibberish"})
        assert _choose(world).model == "b"
        assert _choose(world, model="a").reason.endswith("though incompatible: gibberish")

    def test_only_embedding_models_embed(self, make_world: MakeWorld) -> None:
        """A generalist does not serve a task that needs a model of its own."""
        world = make_world({"chat": _entry("9B"), "embed": _entry(use_cases=["embeddings"])})
        assert _choose(world, Task.EMBEDDING).model == "embed"

    def test_threshold_does_not_apply_to_a_named_model(self, make_world: MakeWorld) -> None:
        """min_available_memory is about choosing by oneself."""
        world = make_world({"m": _entry(min_available_memory=9000)})
        assert _choose(world, model="m").model == "m"

    def test_loaded_model_does_not_fall_below_its_own_threshold(self, make_world: MakeWorld) -> None:
        """Loading a model lowers available memory; the next request still chooses it."""
        loaded = Resident("m", "v", "ready", True, 500 * MB)
        memory = Memory(None, 3800 * MB, None, 0, 3800 * MB)
        models = {"m": _entry("1B", min_available_memory=4000), "small": _entry()}
        assert _choose(make_world(models, memory=memory, residents=(loaded,))).model == "m"


class TestMemory:
    """What fits."""

    def test_context_is_halved_until_it_fits(self, make_world: MakeWorld) -> None:
        """Before a candidate is rejected its context is cut, to no less than 512 tokens."""
        models = {"m": _entry(kv_heads=64)}  # 160 KiB of KV cache a token: 640 MiB at 4096
        room = _choose(make_world(models)).memory_bytes / GIB
        selection = _choose(make_world(models, budget_gib=room - 0.01))
        assert selection.context_tokens == 2048
        assert "context of 2048 instead of 4096 tokens to fit" in selection.reason
        assert selection.memory_bytes < (room - 0.01) * GIB
        assert _choose(make_world(models, budget_gib=room - 0.55)).context_tokens == 512

    def test_context_is_capped_by_variant_and_model(self, make_world: MakeWorld) -> None:
        """The wanted context is never more than the variant's own, the model's, or the setting."""
        source = {"type": "file", "path": "/w"}
        variants = {"v": {"backend": "llamacpp", "source": source, "context": 1024}}
        assert _choose(make_world({"m": _entry(variants=variants)})).context_tokens == 1024
        assert _choose(make_world({"m": _entry(context_length=300)})).context_tokens == 300
        assert _choose(make_world({"m": _entry()}, context_tokens=700)).context_tokens == 700

    def test_short_context_is_not_lengthened(self, make_world: MakeWorld) -> None:
        """A model of less than 512 tokens is rejected at its own context."""
        with pytest.raises(DoesNotFitError) as caught:
            _choose(make_world({"m": _entry(context_length=300)}, budget_gib=0.01))
        assert caught.value.details["context_tokens"] == 300

    def test_evictable_residents_make_room(self, make_world: MakeWorld) -> None:
        """What may be evicted counts as free; what is pinned does not."""
        models = {"old": _entry(megabytes=3000, use_cases=["code"]), "new": _entry(megabytes=3000)}
        for evictable in (True, False):
            resident = Resident("old", "v", "ready", evictable, 7 * GIB)
            world = make_world(models, budget_gib=2, residents=(resident,))
            if evictable:
                assert _choose(world, model="new").model == "new"
            else:
                with pytest.raises(DoesNotFitError) as caught:
                    _choose(world, model="new")
                assert "jetllm unload old" in str(caught.value.hint)

    def test_promised_memory_is_not_free(self, make_world: MakeWorld) -> None:
        """A pinned worker that is still loading will take all that it was promised."""
        models = {"old": _entry(), "new": _entry(megabytes=1500)}
        loading = Resident("old", "v", "starting", False, GIB)
        with pytest.raises(DoesNotFitError):
            _choose(make_world(models, budget_gib=2, residents=(loading,)), model="new")

    def test_mapped_weights_of_a_worker_that_stays_are_not_free(self, make_world: MakeWorld) -> None:
        """The kernel counts a mapped GGUF as available; a pinned worker still needs it."""
        models = {"old": _entry(megabytes=1000), "new": _entry(megabytes=1500)}
        pinned = Resident("old", "v", "ready", False, 1200 * MB)
        world = make_world(models, budget_gib=2, residents=(pinned,))
        assert world.room_bytes() == 2 * GIB - 1000 * MB
        moving = Resident("old", "v", "ready", True, 1200 * MB)
        assert make_world(models, budget_gib=2, residents=(moving,)).room_bytes() == 2 * GIB + 200 * MB

    def test_unknown_memory_rejects_nothing(self, make_world: MakeWorld) -> None:
        """Where memory cannot be read, nothing is said not to fit."""
        selection = _choose(make_world({"m": _entry("9B", 50_000)}, budget_gib=None))
        assert selection.model == "m" and " of " not in selection.reason.split(";")[1]


class TestRefusal:
    """What is said when nothing can be chosen."""

    def _refused(self, world: World, kind: type[JetLLMError], **asked: Any) -> JetLLMError:
        with pytest.raises(kind) as caught:
            _choose(world, **asked)
        assert type(caught.value) is kind
        return caught.value

    def test_unknown_names(self, make_world: MakeWorld) -> None:
        """An unknown model or variant is answered with the nearest known one."""
        world = make_world({"smollm2": _entry()})
        assert "smollm2" in str(self._refused(world, ModelNotFoundError, model="smollm").hint)
        error = self._refused(world, ModelNotFoundError, model="smollm2", variant="w")
        assert (error.message, error.hint) == ("smollm2 has no variant 'w'", "it has: v")

    def test_variant_without_a_model(self, make_world: MakeWorld) -> None:
        """A variant's name means nothing without its model's."""
        self._refused(make_world({"m": _entry()}), InvalidRequestError, variant="v")

    def test_unknown_speed_priority(self, make_world: MakeWorld) -> None:
        """A speed priority is one of three words."""
        self._refused(make_world({"m": _entry()}), InvalidRequestError, speed="warp")

    def test_named_model_that_was_not_pulled(self, make_world: MakeWorld) -> None:
        """The hint is the command that brings it."""
        world = make_world({"a": _entry(), "b": _entry()}, absent={"a"})
        assert self._refused(world, ModelNotPulledError, model="a").hint == "jetllm pull a"

    def test_nothing_pulled_names_the_smallest_usable(self, make_world: MakeWorld) -> None:
        """With an empty store the smallest model that would run here is suggested."""
        models = {
            "huge": _entry(megabytes=900),
            "wrong-engine": _entry(megabytes=1, backend="mlc"),
            "no-source": _entry(megabytes=2, variants={"v": {"backend": "llamacpp"}}),
            "small": _entry(megabytes=100),
            "embed": _entry(megabytes=3, use_cases=["embedding"]),
        }
        error = self._refused(make_world(models, absent=set(models)), ModelNotPulledError)
        assert error.hint == "jetllm pull small"

    def test_missing_engine_names_its_installation(self, make_world: MakeWorld) -> None:
        """A model whose engine is not here says what to install."""
        world = make_world({"m": _entry(variants={})}, backends=frozenset({"llamacpp"}))
        for asked in ({"model": "m"}, {}):
            error = self._refused(world, NoUsableBackendError, **asked)
            assert "transformers" in error.message and "pip install" in str(error.hint)

    def test_refusal_says_what_would_fit(self, make_world: MakeWorld) -> None:
        """Numbers in the message, remedies in the hint, both in the details."""
        models = {"big": _entry("7B", 4000), "away": _entry("1B", 500)}
        world = make_world(models, budget_gib=1, absent={"away"})
        error = self._refused(world, DoesNotFitError, model="big")
        assert "big/v needs 3." in error.message and "at 512 tokens of context" in error.message
        assert "1.00 GiB can be given" in error.message
        needed = error.details["needed_bytes"]
        assert error.details["available_bytes"] == GIB < needed
        assert f"with {(needed - GIB) / GIB:.2f} GiB more of free memory" in str(error.hint)
        assert any("jetllm pull away" in way for way in self._ways(world))

    def _ways(self, world: World) -> list[str]:
        error = self._refused(world, DoesNotFitError)
        ways: list[str] = error.details["would_fit_if"]
        return ways

    def test_fewer_slots_are_suggested_where_they_help(self, make_world: MakeWorld) -> None:
        """When one sequence would fit and several do not, the setting is named."""
        world = make_world({"m": _entry(kv_heads=64, context_length=512)}, slots=8, budget_gib=0.4)
        assert any("JETLLM_SLOTS=1" in way for way in self._ways(world))

    def test_task_that_nobody_serves(self, make_world: MakeWorld) -> None:
        """A task without a model is not a matter of memory."""
        error = self._refused(make_world({"m": _entry()}), ModelNotFoundError, task=Task.EMBEDDING)
        assert "embedding" in error.message

    def test_empty_registry(self, make_world: MakeWorld) -> None:
        """A registry without models serves nothing."""
        self._refused(make_world({}), ModelNotFoundError)


def test_reason_is_one_line_with_the_numbers(make_world: MakeWorld) -> None:
    """The reason names the variant, why it won, and its share of what can be given."""
    selection = _choose(make_world({"m": _entry()}, budget_gib=2))
    assert selection.reason == (
        f"m/v: best task fit (conversation), balanced; {selection.memory_bytes / GIB:.2f} GiB of 2.00 GiB"
    )
    assert selection.candidates[0].reason == selection.reason


def test_implied_variant(make_world: MakeWorld) -> None:
    """An entry without variants runs on MLC in its container and on transformers elsewhere."""
    spec = make_world({"m": _entry(variants={})}).registry.models["m"]
    assert [v.backend for v in effective_variants(spec, container=True).values()] == ["mlc"]
    assert [v.backend for v in effective_variants(spec, container=False).values()] == ["transformers"]


@given(
    sizes=st.lists(st.tuples(st.integers(1, 9), st.integers(50, 9000)), min_size=1, max_size=6),
    task=st.sampled_from([Task.CONVERSATION, Task.CODE]),
    speed=st.sampled_from(["fast", "balanced", "quality"]),
    bandwidth=st.sampled_from([None, 68e9]),
    budget=st.integers(1, 8),
)
def test_choice_is_deterministic_and_fits(
    sizes: list[tuple[int, int]],
    task: Task,
    speed: str,
    bandwidth: float | None,
    budget: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Equal inputs give equal bytes; the chosen one fits; every candidate is listed once, with a reason."""
    path = tmp_path_factory.getbasetemp() / "models.json"
    models = {f"m{i}": _entry(f"{p}B", size) for i, (p, size) in enumerate(sizes)}
    path.write_text(json.dumps({"models": models}), encoding="utf-8")

    def outcome() -> dict[str, Any]:
        world = World(
            registry=load_registry(path),
            backends=frozenset({"llamacpp"}),
            weights_bytes={(name, "v"): models[name]["memory_requirement"] * MB for name in models},
            memory=_memory(budget),
            residents=(),
            bandwidth_bytes_per_s=bandwidth,
            slots=2,
            context_tokens=2048,
            prompt_cache_bytes=0,
            container=False,
        )
        try:
            return _choose(world, task, speed).to_dict()
        except DoesNotFitError as error:
            return error.to_dict()

    first = outcome()
    assert json.dumps(first) == json.dumps(outcome())
    if "candidates" in first:
        assert first["memory_bytes"] <= budget * GIB
        assert sorted(c["model"] for c in first["candidates"]) == sorted(models)
        assert all(c["reason"] for c in first["candidates"])
        assert [c["verdict"] for c in first["candidates"]].count("chosen") == 1
