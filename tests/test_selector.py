"""Which model serves a request, and why."""

from __future__ import annotations

from typing import Any

import pytest

from inference.device.memory import Memory
from inference.errors import DoesNotFitError
from inference.selection.selector import Candidate, Resident, Selection, effective_variants
from inference.selection.tasks import Task
from tests.worlds import GIB, MB, choose, entry, make_world


def _fate(selection: Selection, model: str) -> Candidate:
    return next(c for c in selection.candidates if c.model == model)


class TestRanking:
    """What is compared, and in which order."""

    def test_named_model_wins(self) -> None:
        """A model that the request names is taken, whatever else would rank before it."""
        world = make_world({"big": entry("1B"), "small": entry("10M", use_cases=["code"], aliases=["S"])})
        selection = choose(world, model="s")
        assert selection.model == "small"
        assert "named by the request" in selection.reason
        assert [c.model for c in selection.candidates] == ["small"]

    def test_task_fit_comes_first(self) -> None:
        """Made for the task beats a larger generalist, and that beats made for something else."""
        world = make_world(
            {
                "other": entry("9B", use_cases=["summarization"]),
                "generalist": entry("8B"),
                "coder": entry("1B", use_cases=["code"]),
            }
        )
        selection = choose(world, Task.CODE)
        assert [c.model for c in selection.candidates] == ["coder", "generalist", "other"]
        assert [c.task_fit for c in selection.candidates] == [2, 1, 0]
        assert _fate(selection, "generalist").reason == "coder/v fits code better"

    def test_synonyms_of_a_task_count(self) -> None:
        """A registry may say "chat" for conversation."""
        world = make_world({"a": entry("9B", use_cases=["text_generation"]), "b": entry(use_cases=["chat"])})
        assert choose(world).model == "b"

    def test_base_models_only_continue_text(self) -> None:
        """A chat, and a raw prompt that asks for something, go to a model that may follow instructions."""
        world = make_world({"base": entry("9B", chat="none"), "tuned": entry(chat="chatml")})
        for _ in range(2):  # one registry serves all in turn
            for task in (Task.TEXT_GENERATION, Task.CREATIVE_WRITING):
                assert choose(world, task, speed="quality", chat=False).model == "base"
                assert choose(world, task, speed="quality", chat=True).model == "tuned"
            selection = choose(world, Task.TRANSLATION, speed="quality", chat=False)
            assert selection.model == "tuned"
            reason = "it is a base model, which continues text; tuned/v may follow instructions"
            assert _fate(selection, "base").reason == reason

    @pytest.mark.parametrize(
        ("speed", "model"), [("fast", "small"), ("balanced", "middle"), ("quality", "large")]
    )
    def test_speed_priority(self, speed: str, model: str) -> None:
        """fast takes the most tokens per second, quality the most parameters, balanced the best in time.

        llama.cpp reads a quarter of 25 GB/s: 0.1 GB 62 times a second, 0.5 GB 12.5 times, 2 GB 3 times.
        """
        world = make_world(
            {"large": entry("4B", 2000), "middle": entry("1B", 500), "small": entry("100M", 100)},
            bandwidth_bytes_per_s=25e9,
        )
        selection = choose(world, speed=speed)
        assert selection.model == model
        assert _fate(selection, "middle").tokens_per_s == pytest.approx(12.5)

    def test_losers_are_told_why(self) -> None:
        """Each loser's reason is the first comparison that it lost, with its numbers."""
        world = make_world(
            {"large": entry("4B", 2000), "middle": entry("1B", 500), "small": entry("100M", 100)},
            bandwidth_bytes_per_s=25e9,
        )
        selection = choose(world)
        assert _fate(selection, "large").reason == "too slow: 3 of 10 tokens/s predicted"
        assert _fate(selection, "small").reason == "fewer parameters: 100M against 1B"

    def test_balanced_takes_the_fastest_when_all_are_slow(self) -> None:
        """Where nothing meets the target, the least slow one is best."""
        world = make_world(
            {"large": entry("8B", 4000), "less": entry("4B", 2000)}, bandwidth_bytes_per_s=25e9
        )
        assert choose(world).model == "less"

    def test_fast_without_a_bandwidth_takes_fewer_bytes(self) -> None:
        """Decode reads all weights for every token, so fewer bytes are faster on any machine."""
        world = make_world({"a": entry("1B", 300), "b": entry("2B", 200)})
        selection = choose(world, speed="fast")
        assert selection.model == "b" and _fate(selection, "b").tokens_per_s is None

    def test_unknown_speed_meets_the_target(self) -> None:
        """Balanced treats a speed that nobody knows as sufficient."""
        assert choose(make_world({"a": entry("1B"), "b": entry("2B", 2000)})).model == "b"

    def test_measured_quality_beats_size(self) -> None:
        """Quality that was measured for all counts before parameters; for some it counts for nothing."""
        models = {"large": entry("3B", quality=0.4), "good": entry("1B", quality=0.6)}
        assert choose(make_world(models), speed="quality").model == "good"
        models["new"] = entry("2B")
        assert choose(make_world(models), speed="quality").model == "large"

    def test_loaded_beats_equal(self) -> None:
        """Between equals the one that is already loaded is taken, at its observed memory."""
        loaded = Resident("b", "v", "ready", True, 900 * MB, context_tokens=2048)
        world = make_world({"a": entry(megabytes=50), "b": entry()}, residents=(loaded,))
        selection = choose(world)
        assert (selection.model, selection.memory_bytes, selection.context_tokens) == ("b", 900 * MB, 2048)
        assert "already loaded" in selection.reason

    def test_stopping_worker_is_not_loaded(self) -> None:
        """A worker on its way out serves nobody new."""
        leaving = Resident("b", "v", "stopping", True, 123 * MB)
        assert (
            choose(make_world({"a": entry(), "b": entry(megabytes=150)}, residents=(leaving,))).model == "a"
        )

    def test_smaller_then_registry_order(self) -> None:
        """Between equals the smaller one is taken, and of twins the first in the registry."""
        models = {"a": entry(megabytes=200), "c": entry(), "b": entry()}
        selection = choose(make_world(models))
        assert [c.model for c in selection.candidates] == ["c", "b", "a"]
        assert _fate(selection, "b").reason == "c/v stands before it in the registry"

    def test_faster_variant_of_a_model_comes_first(self) -> None:
        """Of one model's variants the GPU's engine wins, then the faster one on the CPU."""
        source = {"type": "file", "path": "/w"}
        variants = {
            "f32": {"backend": "transformers", "source": source},
            "q4": {"backend": "llamacpp", "quantization": "Q4_0", "source": source},
            "mlc": {"backend": "mlc", "quantization": "q0f16", "source": source},
        }
        engines: dict[str, Any] = {
            "backends": frozenset({"mlc", "llamacpp", "transformers"}),
            "container": True,
        }
        world = make_world({"m": entry("1B", 600, variants=variants)}, bandwidth_bytes_per_s=50e9, **engines)
        for speed in ("fast", "balanced", "quality"):
            selection = choose(world, model="m", speed=speed)
            assert [c.variant for c in selection.candidates] == ["mlc", "q4", "f32"]
        assert selection.candidates[1].reason == "slower: 27 tokens/s predicted against 58 predicted"
        assert selection.candidates[0].memory_bytes > selection.candidates[1].memory_bytes
        assert choose(world, model="m", variant="f32").variant == "f32"

    def test_full_context_before_a_shortened_one(self) -> None:
        """What fits as it is wanted comes before what fits only with less context, at equal task fit."""
        models = {"large": entry("3B", kv_heads=64), "small": entry("1B")}
        room = choose(make_world(models), speed="quality").memory_bytes / GIB
        selection = choose(make_world(models, budget_gib=room - 0.01), speed="quality")
        assert selection.model == "small"
        assert _fate(selection, "large").reason == "fits only with a context of 2048 of 4096 tokens"
        made_for = make_world(
            models | {"large": entry(kv_heads=64, use_cases=["code"])}, budget_gib=room - 0.01
        )
        assert choose(made_for, Task.CODE).model == "large"


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
    def test_rejected_with_a_reason(self, values: dict[str, Any], reason: str) -> None:
        """A candidate that cannot be chosen is listed with what speaks against it."""
        selection = choose(make_world({"bad": entry("9B", **values), "good": entry()}))
        assert selection.model == "good"
        assert _fate(selection, "bad").verdict == "rejected"
        assert reason in _fate(selection, "bad").reason

    def test_adapters_are_not_loaded_yet(self) -> None:
        """A variant with adapters is no candidate, for it would answer without them."""
        adapter = {"name": "style", "source": {"type": "file", "path": "/a"}}
        source = {"type": "file", "path": "/w"}
        tuned = {"v": {"backend": "llamacpp", "source": source, "adapters": [adapter]}}
        selection = choose(make_world({"tuned": entry("9B", variants=tuned), "plain": entry()}))
        assert selection.model == "plain"
        assert _fate(selection, "tuned").reason == "no backend loads adapters yet: style"

    def test_known_incompatibility_of_this_machine_counts(self) -> None:
        """What was found not to run here is not chosen, but may be named."""
        world = make_world({"a": entry("9B"), "b": entry()}, incompatible={("a", "v"): "gibberish"})
        assert choose(world).model == "b"
        assert choose(world, model="a").reason.endswith("though incompatible: gibberish")

    def test_only_embedding_models_embed(self) -> None:
        """A generalist does not serve a task that needs a model of its own."""
        world = make_world({"chat": entry("9B"), "embed": entry(use_cases=["embeddings"])})
        assert choose(world, Task.EMBEDDING).model == "embed"

    def test_threshold_does_not_apply_to_a_named_model(self) -> None:
        """min_available_memory is about choosing by oneself."""
        world = make_world({"m": entry(min_available_memory=9000)})
        assert choose(world, model="m").model == "m"

    def test_loaded_model_does_not_fall_below_its_own_threshold(self) -> None:
        """Loading a model lowers available memory; the next request still chooses it."""
        loaded = Resident("m", "v", "ready", True, 500 * MB)
        free = Memory(None, 3800 * MB, None, 0, 3800 * MB)
        models = {"m": entry("1B", min_available_memory=4000), "small": entry()}
        assert choose(make_world(models, memory=free, residents=(loaded,))).model == "m"

    def test_memory_of_a_model_that_may_leave_counts_as_available(self) -> None:
        """A threshold is compared with what would be available after every possible eviction."""
        free = Memory(None, 3800 * MB, None, 0, 3800 * MB)
        models = {"m": entry("1B", min_available_memory=4000), "old": entry()}
        for evictable, chosen in ((True, "m"), (False, "old")):
            resident = Resident("old", "v", "ready", evictable, 500 * MB)
            world = make_world(models, memory=free, residents=(resident,))
            assert choose(world, speed="quality").model == chosen


class TestMemory:
    """What fits."""

    @pytest.mark.parametrize("state", ["queued", "starting", "ready"])
    def test_loaded_model_fits(self, state: str) -> None:
        """What is loaded, or already promised its memory, needs no more of it."""
        resident = Resident("m", "v", state, False, 3 * GIB)
        world = make_world({"m": entry(megabytes=3000)}, budget_gib=0, residents=(resident,))
        assert choose(world).model == "m"

    def test_loaded_model_is_not_shortened(self) -> None:
        """A loaded model has its context, however little room is left beside it."""
        resident = Resident("m", "v", "ready", False, 3 * GIB, context_tokens=4096)
        models = {"m": entry("3B", 3000, kv_heads=64), "small": entry(megabytes=1)}
        selection = choose(make_world(models, budget_gib=4, residents=(resident,)), speed="quality")
        assert selection.model == "m" and "instead of" not in selection.reason

    def test_context_is_halved_until_it_fits(self) -> None:
        """Before a candidate is rejected its context is cut, to no less than 512 tokens."""
        models = {"m": entry(kv_heads=64)}  # 160 KiB of KV cache a token: 640 MiB at 4096
        room = choose(make_world(models)).memory_bytes / GIB
        selection = choose(make_world(models, budget_gib=room - 0.01))
        assert selection.context_tokens == 2048
        assert "context of 2048 instead of 4096 tokens to fit" in selection.reason
        assert selection.memory_bytes < (room - 0.01) * GIB
        assert choose(make_world(models, budget_gib=room - 0.53)).context_tokens == 512

    def test_context_is_capped_by_variant_and_model(self) -> None:
        """The wanted context is never more than the variant's own, the model's, or the setting."""
        source = {"type": "file", "path": "/w"}
        variants = {"v": {"backend": "llamacpp", "source": source, "context": 1024}}
        assert choose(make_world({"m": entry(variants=variants)})).context_tokens == 1024
        assert choose(make_world({"m": entry(context_length=300)})).context_tokens == 300
        assert choose(make_world({"m": entry()}, context_tokens=700)).context_tokens == 700

    def test_short_context_is_not_lengthened(self) -> None:
        """A model of less than 512 tokens is rejected at its own context."""
        with pytest.raises(DoesNotFitError) as caught:
            choose(make_world({"m": entry(context_length=300)}, budget_gib=0.01))
        assert caught.value.details["context_tokens"] == 300

    def test_evictable_residents_make_room(self) -> None:
        """What may be evicted counts as free; what is pinned does not."""
        models = {"old": entry(megabytes=3000, use_cases=["code"]), "new": entry(megabytes=3000)}
        for evictable in (True, False):
            resident = Resident("old", "v", "ready", evictable, 7 * GIB)
            world = make_world(models, budget_gib=2, residents=(resident,))
            if evictable:
                assert choose(world, model="new").model == "new"
            else:
                with pytest.raises(DoesNotFitError) as caught:
                    choose(world, model="new")
                assert "jetllm unload old" in str(caught.value.hint)

    def test_promised_memory_is_not_free(self) -> None:
        """A pinned worker that is still loading will take all that it was promised."""
        models = {"old": entry(), "new": entry(megabytes=1500)}
        loading = Resident("old", "v", "starting", False, GIB)
        with pytest.raises(DoesNotFitError):
            choose(make_world(models, budget_gib=2, residents=(loading,)), model="new")

    def test_mapped_weights_of_a_worker_that_stays_are_not_free(self) -> None:
        """The kernel counts a mapped GGUF as available; a pinned worker still needs it."""
        models = {"old": entry(megabytes=1000), "new": entry(megabytes=1500)}
        pinned = Resident("old", "v", "ready", False, 1200 * MB)
        world = make_world(models, budget_gib=2, residents=(pinned,))
        assert world.room_bytes() == 2 * GIB - 1000 * MB
        moving = Resident("old", "v", "ready", True, 1200 * MB)
        assert make_world(models, budget_gib=2, residents=(moving,)).room_bytes() == 2 * GIB + 200 * MB

    def test_unknown_memory_rejects_nothing(self) -> None:
        """Where memory cannot be read, nothing is said not to fit."""
        selection = choose(make_world({"m": entry("9B", 50_000)}, budget_gib=None))
        assert selection.model == "m" and " of " not in selection.reason.split(";")[1]


def test_reason_is_one_line_with_the_numbers() -> None:
    """The reason names the variant, why it won, and its share of what can be given."""
    selection = choose(make_world({"m": entry()}, budget_gib=2))
    assert selection.reason == (
        "m/v: best task fit (conversation), balanced; 100M parameters, speed unknown; "
        f"{selection.memory_bytes / GIB:.2f} GiB of 2.00 GiB"
    )
    assert selection.candidates[0].reason == selection.reason


def test_implied_variant() -> None:
    """An entry without variants runs on MLC in its container and on transformers elsewhere."""
    spec = make_world({"m": entry(variants={})}).registry.models["m"]
    (mlc,) = effective_variants(spec, container=True).values()
    assert (mlc.backend, mlc.quantization) == ("mlc", "q4f16_1")
    assert [v.backend for v in effective_variants(spec, container=False).values()] == ["transformers"]
