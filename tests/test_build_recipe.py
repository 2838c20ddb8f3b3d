"""The recipe, the ladder and the sense of what a build says: pure values."""

from __future__ import annotations

from dataclasses import replace

import pytest

from inference.artifacts.build.coherence import incoherence
from inference.artifacts.build.progress import STEPS, BuildProgress, Course, usual_s
from inference.artifacts.build.recipe import (
    Recipe,
    Target,
    bits_per_parameter,
    conversation_of,
    rungs,
    target_of,
)
from inference.artifacts.build.records import Build, Step
from inference.device import detect

ORIN = Target("cuda", "8.7", "aarch64", None, "36.4")
RECIPE = Recipe("c" * 64, "q4f16_1", 4096, 512, 8, "chatml", "e" * 64, ORIN)


@pytest.mark.parametrize(
    "change",
    [
        {"checkpoint": "d" * 64},
        {"quantization": "q4f32_1"},
        {"context_tokens": 2048},
        {"chunk_tokens": 256},
        {"sequences": 4},
        {"conversation": "LM"},
        {"engine": "f" * 64},
        {"target": replace(ORIN, gpu="7.2")},
        {"target": replace(ORIN, l4t="36.5")},
        {"target": Target("cpu", None, "x86_64", "a processor", None)},
        {"options": ("--opt", "O3")},
        {"builder": 2},
    ],
)
def test_whatever_changes_a_build_changes_its_key(change: dict[str, object]) -> None:
    """A library of another engine, board or size is never found under this key."""
    assert replace(RECIPE, **change).key != RECIPE.key  # type: ignore[arg-type]


def test_a_recipe_survives_its_record() -> None:
    """What was written down is read back as the same recipe, with the same key."""
    assert Recipe.from_dict(RECIPE.to_dict()) == RECIPE
    assert len(RECIPE.key) == 64


@pytest.mark.parametrize(
    ("preferred", "only", "wanted"),
    [
        ("q4f16_1", None, ("q4f16_1", "q4f32_1", "q0f16")),
        ("q4f16_ft", None, ("q4f16_ft", "q4f16_1", "q4f32_1", "q0f16")),
        ("q4f32_1", None, ("q4f32_1", "q4f16_1", "q0f16")),
        (None, None, ("q4f16_1", "q4f32_1", "q0f16")),
        ("q4f16_1", "q3f16_1", ("q3f16_1",)),
    ],
)
def test_the_ladder_begins_with_the_variants_own(
    preferred: str | None, only: str | None, wanted: tuple[str, ...]
) -> None:
    """Then follow the formats that hold best; weights that are converted have only their own."""
    assert rungs(preferred, only) == wanted


def test_a_target_is_the_gpu_or_the_very_processor() -> None:
    """A library for the CPU is compiled for that very one; one for a GPU for its compute capability."""
    board = detect("tests/fixtures/devices/orin-nano-8gb-super")
    assert target_of(board, "cuda") == Target("cuda", "8.7", "aarch64", None, "36.4")
    assert target_of(board, "cpu") == Target("cpu", None, "aarch64", "Cortex-A78AE", "36.4")
    assert target_of(board, "cuda:0").device == "cuda"


@pytest.mark.parametrize(
    ("model_type", "chat", "wanted"),
    [
        ("gpt2", "none", "gpt2"),
        ("llama", "embedded", "LM"),
        ("llama", "none", "LM"),
        ("qwen2", None, "chatml"),
        ("llama", "chatml", "chatml"),
        ("new", None, "LM"),
    ],
)
def test_a_conversation_is_the_registrys_or_the_familys(
    model_type: str, chat: str | None, wanted: str
) -> None:
    """Only where a checkpoint has no template of its own does it matter."""
    assert conversation_of(model_type, chat) == wanted


def test_sizes_are_those_measured() -> None:
    """facts: q4f16_1 has 4.5 bits; a format that nobody measured its digit and one for the scales."""
    names = ("q4f16_1", "q4f32_1", "q0f16", "q3f16_0", "q8f16_1", "e4m3_e4m3_f16")
    assert [bits_per_parameter(name) for name in names] == [4.5, 5.0, 16.0, 4.0, 9.0, 16.0]


@pytest.mark.parametrize(
    "text",
    [
        " the capital of the French Republic, and the capital of the French Republic is the capital of the",
        "The capital of France is Paris.",
        "Paris.",
        "巴黎是法国的首都。",
        '{"capital": "Paris"}',
    ],
)
def test_a_text_is_coherent_also_when_it_repeats_itself(text: str) -> None:
    """GPT-2 decoded greedily repeats itself; that is no sign of a broken build."""
    assert incoherence(text, 20) is None


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("", 0),
        ("  \n ", 5),
        ("!" * 48, 48),
        ("the the the the the the the the the the the the the the", 14),
        ("abab" * 40, 80),
        ("ok \N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}", 3),
        ("hello \x00 world", 4),
    ],
)
def test_what_is_no_text_is_noticed(text: str, tokens: int) -> None:
    """NaN logits give token 0 for ever, a wrong library bytes that are no characters."""
    assert incoherence(text, tokens)


def build_of(parameters_bytes: int, convert_s: float, compile_s: float) -> Build:
    steps = (Step("convert_weight", convert_s, 1.0, 1), Step("compile", compile_s, 1.0, 1))
    return Build(
        path=None,  # type: ignore[arg-type]
        model="m",
        variant="v",
        recipe=RECIPE,
        parameters_bytes=parameters_bytes,
        portable=False,
        steps=steps,
        changes=(),
        text="",
        failures=(),
        created_s=0.0,
    )


def test_the_time_left_is_learned_from_this_machines_builds() -> None:
    """Converting takes longer with more bytes, compiling does not."""
    took = usual_s([build_of(100, 10.0, 60.0), build_of(100, 30.0, 80.0), build_of(100, 20.0, 70.0)], 200)
    assert took["convert_weight"] == 40.0
    assert took["compile"] == 70.0


def test_progress_counts_down() -> None:
    """With half of a step done, its other half is left, and all steps after it."""
    seen: list[BuildProgress] = []
    course = Course(seen.append, "q4f16_1", dict.fromkeys(STEPS, 10.0))
    course.begin("compile")
    assert (seen[-1].step, seen[-1].number, seen[-1].steps) == ("compile", 5, 7)
    assert seen[-1].left_s == pytest.approx(30.0, abs=0.5)
    course.begin("convert_weight")
    assert seen[-1].left_s == pytest.approx(40.0, abs=0.5)
    course.begin("wait")
    assert seen[-1].left_s is None and seen[-1].number == 0
