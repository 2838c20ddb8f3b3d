"""The three models of the original guide, by available memory, speed priority and task."""

from __future__ import annotations

from typing import Any

import pytest

from inference.device.memory import Memory
from inference.errors import DoesNotFitError
from inference.selection.selector import Selection
from inference.selection.tasks import Task, classify
from tests.worlds import MB, choose, make_world

SHAPE = {"layers": 12, "kv_heads": 12, "head_dim": 64, "hidden_size": 768, "vocab_size": 50257}
TEXT = ["text_generation", "creative_writing"]
BANDWIDTH = {"mlc": 68e9, "transformers": None}


def _model(name: str, parameters: str, requirement: int, uses: list[str], **more: Any) -> dict[str, Any]:
    return {
        "name": name,
        "parameters": parameters,
        "memory_requirement": requirement,
        "container": "dustynv/mlc:r36.4.0",
        "status": "production",
        "use_cases": uses,
        **more,
    }


def _models(form: str, talks: list[str], engine: str) -> dict[str, dict[str, Any]]:
    """The entries as the guide has them, with shape numbers, or with variants too."""
    more: dict[str, Any] = {} if form == "five keys" else {"context_length": 1024, **SHAPE}
    if form == "variants":
        quantization = "q4f16_1" if engine == "mlc" else None
        more["variants"] = {engine: {"backend": engine, "quantization": quantization}}
    return {
        "distilgpt2": _model("DistilGPT-2", "82M", 1500, TEXT, **(more | ({"layers": 6} if more else {}))),
        "dialogpt-small": _model("DialoGPT-small", "117M", 2000, talks, min_available_memory=2500, **more),
        "gpt2": _model("GPT-2", "124M", 2500, TEXT, min_available_memory=4000, **more),
    }


@pytest.fixture(params=["mlc", "transformers"])
def engine(request: pytest.FixtureRequest) -> str:
    """In the container of the MLC engine, and elsewhere."""
    return str(request.param)


@pytest.fixture(params=["five keys", "shape", "variants"])
def form(request: pytest.FixtureRequest) -> str:
    """How much the entries say."""
    return str(request.param)


def _chosen(available_mb: int, form: str, engine: str, **asked: Any) -> Selection:
    """Choose on an 8 GB machine with nothing loaded, of which so much is available."""
    available = available_mb * MB
    world = make_world(
        _models(form, asked.pop("talks", ["conversation", "text_generation"]), engine),
        memory=Memory(7990 * MB, available, None, 512 * 2**20, max(0, available - 512 * 2**20)),
        weights_bytes=None,
        backends=frozenset({engine}),
        container=engine == "mlc",
        bandwidth_bytes_per_s=BANDWIDTH[engine],
        slots=4,
        context_tokens=4096,
    )
    return choose(world, **{"task": Task.TEXT_GENERATION, "speed": "quality", **asked})


@pytest.mark.parametrize(
    ("available_mb", "model"),
    [
        (7000, "gpt2"),
        (4001, "gpt2"),
        (3999, "dialogpt-small"),
        (2501, "dialogpt-small"),
        (2499, "distilgpt2"),
        (2400, "distilgpt2"),
        (2000, "distilgpt2"),
        (1800, "distilgpt2"),
    ],
)
def test_available_memory_decides_for_text_generation(
    available_mb: int, model: str, form: str, engine: str
) -> None:
    """Above 4000 MB GPT-2, from 2500 MB DialoGPT-small, below DistilGPT-2."""
    assert _chosen(available_mb, form, engine).model == model


def test_model_that_only_converses_generates_text_too(form: str, engine: str) -> None:
    """DialoGPT-small is chosen in the middle although its entry names conversation alone."""
    for talks in (["conversation"], ["chatbot", "dialogue"]):
        assert _chosen(3000, form, engine, talks=talks).model == "dialogpt-small"


@pytest.mark.parametrize("available_mb", [7000, 3000, 2400])
def test_speed_chooses_the_fastest(available_mb: int, form: str, engine: str) -> None:
    """DistilGPT-2 is the fastest of them wherever it fits."""
    assert _chosen(available_mb, form, engine, speed="fast").model == "distilgpt2"


@pytest.mark.parametrize("speed", ["balanced", "quality"])
def test_conversation_chooses_the_model_that_converses(form: str, engine: str, speed: str) -> None:
    """A prompt that greets is for DialoGPT-small, where 2500 MB are available; below it is not chosen."""
    task = classify("Hello, how are you today?")
    assert task is Task.CONVERSATION
    for available_mb in (2501, 4001, 7000):
        assert _chosen(available_mb, form, engine, task=task, speed=speed).model == "dialogpt-small"
    assert _chosen(2400, form, engine, task=task, speed=speed).model == "distilgpt2"


def test_declared_requirement_must_be_available(engine: str) -> None:
    """Five keys: 1500 MB available are enough for DistilGPT-2, less are not."""
    assert _chosen(1501, "five keys", engine).model == "distilgpt2"
    with pytest.raises(DoesNotFitError):
        _chosen(1499, "five keys", engine)
