"""What a selection knows of the world: what is pulled, what was measured, what is needed."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from inference.errors import DoesNotFitError, InvalidRequestError
from inference.registry.evidence import Evidence
from inference.registry.spec import Status
from inference.selection.selector import Candidate, Resident, Selection, World
from inference.selection.tasks import Task
from tests.worlds import GIB, MB, choose, entry, make_world

SOURCE = {"type": "file", "path": "/w"}


def _fate(selection: Selection, model: str) -> Candidate:
    return next(c for c in selection.candidates if c.model == model)


class TestPulled:
    """Weights that are here come before weights that would have to be fetched."""

    def test_pulled_model_comes_first(self) -> None:
        """A model whose weights are here is chosen before any better one whose weights are not."""
        world = make_world({"away": entry("9B", 9), "here": entry()}, absent=frozenset({"away"}))
        selection = choose(world, speed="quality")
        assert (selection.model, selection.pulled, selection.pull_command) == ("here", True, None)
        away = _fate(selection, "away")
        assert (away.verdict, away.pulled) == ("lost", False)
        assert away.reason == "its weights are not here: jetllm pull away"

    def test_best_of_the_absent_is_chosen_when_nothing_is_here(self) -> None:
        """The choice then says what to pull, and it is the best for this machine, not the smallest."""
        models = {"small": entry("1B"), "large": entry("3B", 300), "huge": entry("70B", 40_000)}
        selection = choose(make_world(models, absent=frozenset(models)), speed="quality")
        assert (selection.model, selection.pulled) == ("large", False)
        assert selection.pull_command == "jetllm pull large"
        assert selection.reason.endswith("; its weights are not here: jetllm pull large")

    def test_pull_command_names_the_variant_where_it_must(self) -> None:
        """Without --variant the first that runs here is pulled; another one has to be named."""
        variants = {
            "mlc": {"backend": "mlc", "source": SOURCE},
            "f32": {"backend": "transformers", "source": SOURCE},
            "q4": {"backend": "llamacpp", "source": SOURCE},
        }
        world = make_world({"m": entry(variants=variants)}, absent=frozenset({"m"}))
        assert choose(world, model="m", variant="f32").pull_command == "jetllm pull m"
        assert choose(world, model="m", variant="q4").pull_command == "jetllm pull m --variant q4"

    def test_another_machine_has_nothing_to_pull(self) -> None:
        """Of a machine that is not this one nothing is said of weights; their size comes from the entry."""
        models = {"m": entry(variants={"v": {"backend": "llamacpp", "quantization": "Q8_0"}})}
        selection = choose(make_world(models, weights_bytes=None))
        assert (selection.pulled, selection.pull_command, selection.candidates[0].pulled) == (
            None,
            None,
            None,
        )
        assert "not here" not in selection.reason
        assert selection.memory_bytes > 106_250_000  # 100M parameters of 8.5 bits


class TestEvidence:
    """What was measured counts before what was declared, and that before what a formula says."""

    def test_measured_speed_overrides_the_prediction(self) -> None:
        """A model that was measured too slow is too slow, whatever the roofline promises."""
        models = {"big": entry("3B", 300), "small": entry()}
        world = make_world(models, bandwidth_bytes_per_s=25e9)
        assert choose(world).model == "big"
        slow = {("big", "v"): Evidence(decode_tokens_per_s=4.0)}
        selection = choose(dataclasses.replace(world, evidence=slow))
        assert selection.model == "small"
        big = _fate(selection, "big")
        assert (big.tokens_per_s, big.tokens_per_s_source) == (4.0, "measured")
        assert big.reason == "too slow: 4 of 10 tokens/s measured"
        assert selection.candidates[0].tokens_per_s_source == "predicted"

    def test_the_prediction_stays_beside_what_was_measured(self) -> None:
        """Measurements are compared with the formula; one that replaced it would be compared with itself."""
        models = {"big": entry("3B", 300, active_parameters="1B")}
        seen = {("big", "v"): Evidence(decode_tokens_per_s=4.0)}
        plain, measured = (
            choose(make_world(models, bandwidth_bytes_per_s=25e9, evidence=evidence)).candidates[0]
            for evidence in ({}, seen)
        )
        assert (plain.tokens_per_s, measured.tokens_per_s) == (plain.predicted_tokens_per_s, 4.0)
        # A quarter of 25 GB/s over a third of 300 MB; two operations for each of a billion parameters.
        assert measured.predicted_tokens_per_s == plain.predicted_tokens_per_s == pytest.approx(62.5)
        assert (measured.bytes_per_token, measured.flop_per_token) == (100 * MB, 2 * 10**9)

    def test_measured_memory_overrides_the_prediction(self) -> None:
        """The measured figure holds at the setting's context; the formula says what less context saves."""
        models = {"m": entry(kv_heads=64)}  # 160 KiB of KV cache a token
        usual = choose(make_world(models)).candidates[0]
        assert usual.memory_source == "predicted"
        seen = {("m", "v"): Evidence(memory_bytes=3 * GIB)}
        measured = choose(make_world(models, evidence=seen)).candidates[0]
        assert (measured.memory_bytes, measured.memory_source) == (3 * GIB, "measured")
        shorter = choose(make_world(models, evidence=seen, budget_gib=2.9))
        assert shorter.context_tokens == 2048
        assert shorter.memory_bytes == 3 * GIB - 2048 * (160 * 1024 + 128 * 4)

    def test_measured_quality_overrides_the_declared_one(self) -> None:
        """Quality that was measured here replaces what the entry says."""
        world = make_world({"a": entry(quality=0.9), "b": entry(quality=0.5)})
        assert choose(world, speed="quality").model == "a"
        seen = {("b", "v"): Evidence(quality=0.95)}
        selection = choose(dataclasses.replace(world, evidence=seen), speed="quality")
        assert selection.model == "b"
        assert [c.quality_source for c in selection.candidates] == ["measured", "declared"]

    def test_measured_status_overrides_the_declared_one(self) -> None:
        """What was proven to run is no longer incompatible; what was proven not to run is."""
        models = {"a": entry("9B", 90, status="incompatible", issue="old engine"), "b": entry()}
        assert choose(make_world(models)).model == "b"
        verified = {("a", "v"): Evidence(status=Status.VERIFIED)}
        assert choose(make_world(models, evidence=verified)).model == "a"
        broken = {("b", "v"): Evidence(status=Status.INCOMPATIBLE)}
        selection = choose(make_world({"a": entry(), "b": entry("9B")}, evidence=broken))
        assert _fate(selection, "b").reason == "incompatible: measured so on this machine"

    def test_unfit_container_counts_against_evidence(self) -> None:
        """A verified model whose image does not run on this host is still not chosen."""
        world = make_world(
            {"a": entry("9B"), "b": entry()},
            evidence={("a", "v"): Evidence(status=Status.VERIFIED)},
            incompatible={("a", "v"): "r36 image on r35"},
        )
        assert choose(world).model == "b"


class TestCorrections:
    """What the ledger learned from loads."""

    @pytest.mark.parametrize(
        ("corrections", "change"),
        [
            ({"variant_corrections": {("m", "v"): -5 * MB}}, -5 * MB),
            ({"backend_corrections": {"llamacpp": 7 * MB}}, 7 * MB),
            ({"backend_corrections": {"mlc": 7 * MB}}, 0),
            ({"backend_corrections": {"llamacpp": -7 * MB}}, 0),
            (
                {
                    "variant_corrections": {("m", "v"): -5 * MB},
                    "backend_corrections": {"llamacpp": 7 * MB},
                },
                -5 * MB,
            ),
        ],
    )
    def test_corrections_are_added(self, corrections: dict[str, Any], change: int) -> None:
        """A variant's own correction beats its backend's, which is never believed when it lowers."""
        plain = choose(make_world({"m": entry()})).memory_bytes
        assert choose(make_world({"m": entry()}, **corrections)).memory_bytes == plain + change

    def test_memory_is_never_below_the_weights(self) -> None:
        """Whatever was observed or measured, the weights have to lie somewhere."""
        for values in (
            {"variant_corrections": {("m", "v"): -(10**12)}},
            {"evidence": {("m", "v"): Evidence(memory_bytes=1)}},
        ):
            assert choose(make_world({"m": entry(megabytes=100)}, **values)).memory_bytes == 100 * MB
            five = entry(megabytes=100, layers=None, memory_requirement=100)
            assert choose(make_world({"m": five}, **values)).memory_bytes == 100 * MB

    def test_declared_memory_is_corrected_too(self) -> None:
        """A model without shape numbers is as large as it was seen to be; its backend says nothing of it."""
        five = {"m": entry("1B", 500, layers=None, memory_requirement=2000)}
        absent = frozenset({"m"})
        plain = choose(make_world(five, absent=absent))
        assert plain.memory_bytes == 2000 * MB - 512 * 2**20
        assert plain.candidates[0].memory_source == "declared"
        seen: dict[str, Any] = {
            "variant_corrections": {("m", "v"): 9},
            "backend_corrections": {"llamacpp": 5},
        }
        assert choose(make_world(five, absent=absent, **seen)).memory_bytes == plain.memory_bytes + 9


class TestNeededContext:
    """A request that needs a context gets it or is refused."""

    def test_shorter_models_are_rejected(self) -> None:
        """Who cannot have so many tokens is told so."""
        world = make_world({"short": entry("9B", context_length=1024), "long": entry(context_length=8192)})
        selection = choose(world, context_tokens=2000)
        assert selection.model == "long"
        assert _fate(selection, "short").reason == "can have 1024 tokens of context; 2000 are needed"

    def test_more_than_the_setting_may_be_needed(self) -> None:
        """The setting is what a request gets that says nothing, not a limit."""
        world = make_world({"m": entry(context_length=32768)})
        assert choose(world, context_tokens=10_000).context_tokens == 10_000
        assert choose(world, context_tokens=100).context_tokens == 4096

    def test_context_is_not_cut_below_the_need(self) -> None:
        """Where memory is scarce the ladder ends at what is needed."""
        models = {"m": entry(kv_heads=64)}  # 640 MiB of KV cache at 4096 tokens
        room = choose(make_world(models)).memory_bytes / GIB - 0.01
        assert choose(make_world(models, budget_gib=room)).context_tokens == 2048
        assert choose(make_world(models, budget_gib=room), context_tokens=2100).context_tokens == 2100
        assert choose(make_world(models, budget_gib=room), context_tokens=100).context_tokens == 2048
        with pytest.raises(DoesNotFitError):
            choose(make_world(models, budget_gib=room), context_tokens=4096)

    def test_more_than_the_setting_must_fit_too(self) -> None:
        """Room for the setting's context is not room for a longer one."""
        models = {"m": entry(kv_heads=64, context_length=8192)}
        room = choose(make_world(models)).memory_bytes / GIB + 0.01
        assert choose(make_world(models, budget_gib=room), context_tokens=4100).context_tokens == 4100
        with pytest.raises(DoesNotFitError):
            choose(make_world(models, budget_gib=room), context_tokens=5000)

    def test_small_need_is_loaded_with_the_shortest_context(self) -> None:
        """A worker outlives the request: it is not loaded with less than 512 tokens for a short one."""
        models = {"m": entry(kv_heads=64)}
        least = choose(make_world(models, budget_gib=0.26), context_tokens=100)
        assert least.context_tokens == 512
        room = least.memory_bytes / GIB - 0.001
        with pytest.raises(DoesNotFitError):
            choose(make_world(models, budget_gib=room), context_tokens=100)

    def test_worker_with_too_little_context_does_not_serve(self) -> None:
        """A worker keeps the context it was loaded with: the next best model takes the request."""
        loaded = Resident("m", "v", "ready", True, 300 * MB, context_tokens=1024)
        world = make_world({"m": entry("9B"), "other": entry()}, residents=(loaded,))
        assert choose(world, context_tokens=1024).model == "m"
        selection = choose(world, context_tokens=1025)
        assert selection.model == "other"
        assert _fate(selection, "m").reason == "is loaded with 1024 tokens of context; 1025 are needed"

    def test_context_out_of_range(self) -> None:
        """A context is at least one token."""
        with pytest.raises(InvalidRequestError):
            choose(make_world({"m": entry()}), context_tokens=0)


class TestJson:
    """The JSON form."""

    def test_begins_with_what_a_reader_looks_for(self) -> None:
        """The choice and its reason stand at the top, then the numbers, then every candidate."""
        data = choose(make_world({"m": entry(), "n": entry()}, bandwidth_bytes_per_s=25e9)).to_dict()
        assert list(data) == [
            "model",
            "variant",
            "context_tokens",
            "reason",
            "task",
            "speed",
            "memory_bytes",
            "tokens_per_s",
            "pulled",
            "candidates",
        ]
        assert data["tokens_per_s"] == pytest.approx(62.5)
        assert set(data["candidates"][1]) == {field.name for field in dataclasses.fields(Candidate)}

    def test_candidates_are_made_when_they_are_looked_at(self) -> None:
        """A service that only loads the choice does not pay for the explanation, and gets it at any time."""
        selection = choose(make_world({"m": entry(), "n": entry()}))
        assert "candidates" not in vars(selection)
        assert selection.candidates is selection.candidates
        assert [c.model for c in selection.candidates] == ["m", "n"]


def test_pinned_memory_is_not_counted_for_another_machine() -> None:
    """Without weights on this machine no worker maps any."""
    resident = Resident("m", "v", "ready", False, 100 * MB)
    world: World = make_world({"m": entry(), "n": entry()}, weights_bytes=None, residents=(resident,))
    assert world.room_bytes() == 8 * GIB
    assert choose(world, Task.CODE).model == "m"
