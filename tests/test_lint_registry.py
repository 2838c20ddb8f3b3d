"""The linter on models.json alone: what is told of a model whose files are not here."""

from __future__ import annotations

from pathlib import Path

import pytest

from inference.artifacts.lint import Report, lint_entry, taken
from inference.artifacts.lint.entry import PREFIXED, TIED
from inference.registry import ModelSpec, load_registry
from inference.registry.sources import HubSource
from tests.checkpoints import MODELS

ROOT = Path(__file__).resolve().parent.parent
OLD, NOW, NEWEST = "nano_llm:r36.2.0", "dustynv/mlc:r36.4.0", "dustynv/mlc:0.20.0-r36.4.0"
SMOLLM2, QWEN = "smollm2-135m-instruct", "qwen2.5-0.5b-instruct"
MLC = "mlc-q4f16_1"
REGISTRY: dict[str, ModelSpec] = dict(load_registry(ROOT / "models.json").models)
BUILT = [
    (name, key)
    for name, spec in REGISTRY.items()
    for key, variant in spec.variants.items()
    if variant.backend == "mlc"
]


def ask(name: str, image: str, variant: str = MLC) -> Report:
    spec = REGISTRY[name]
    return taken(spec, spec.variants[variant], image)


def errors(report: Report) -> list[str]:
    return [finding.rule for finding in report.errors]


@pytest.mark.parametrize("model", MODELS)
def test_entry_tells_the_type(model: str) -> None:
    """models.json tells type and shapes; the report says that no file was looked at."""
    report = lint_entry(model, REGISTRY[model], NOW)
    assert report.takes
    assert not report.files_read
    assert lint_entry(model, REGISTRY[model], OLD).takes is (model == SMOLLM2)


@pytest.mark.parametrize("image", [NOW, NEWEST])
@pytest.mark.parametrize("model", [SMOLLM2, QWEN])
def test_variant_tells_how_its_checkpoint_is_written(model: str, image: str) -> None:
    """Of a published checkpoint it is known whether its head is tied: both crashes show without a file."""
    assert errors(ask(model, OLD)) == ["tied-head" if model == SMOLLM2 else "model-type"]
    assert ask(model, image).takes
    assert {finding.severity for finding in ask(model, image).findings} <= {"note"}


def test_converted_weights_need_no_head() -> None:
    """Weights that MLC converted have its own names; what the original lacked is of no interest."""
    assert ask("llama-3.2-1b-instruct", NOW).takes
    assert errors(ask("llama-3.2-1b-instruct", OLD)) == ["earlier-build"]
    assert errors(ask("llama-3.2-1b-instruct", OLD, "transformers")) == ["tied-head"]


@pytest.mark.parametrize(("name", "variant"), BUILT)
def test_registry_names_images_that_take_its_variants(name: str, variant: str) -> None:
    """The container of an entry of models.json knows the model's type and the variant's quantization."""
    report = ask(name, str(REGISTRY[name].container), variant)
    assert report.commit is not None
    assert report.takes_after_fixes, report.errors


@pytest.mark.parametrize("image", [NOW, "dustynv/mlc:0.1.2-r36.3.0"])
@pytest.mark.parametrize("model", ["qwen3-0.6b", "gemma-3-1b-it"])
def test_variant_is_refused_by_an_older_image(model: str, image: str) -> None:
    """Qwen3 and Gemma 3 came after the commits of r36.4.0 and of 0.1.2-r36.3.0."""
    assert errors(ask(model, image)) == ["model-type"]


def test_published_checkpoints_are_those_of_the_registry() -> None:
    """What is kept of published checkpoints is kept for repositories that models.json names."""
    sources = [variant.source for spec in REGISTRY.values() for variant in spec.variants.values()]
    assert {*TIED, *PREFIXED} <= {each.repo for each in sources if isinstance(each, HubSource)}
