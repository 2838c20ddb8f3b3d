"""References: the shipped file, how an entry is made, and the command that makes it."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib import resources
from pathlib import Path

import pytest

from inference.registry import load_registry
from inference.settings import load_settings
from phase3 import references, sample
from phase3.coherence import golden_prefix, judge
from phase3.data import fixed
from phase3.plan import FULL, QUICK
from phase3.references import Reference, reference_from, reference_of, with_reference
from tests.fake_target import ENVIRONMENT, FakeTarget, case_of, healthy
from tests.scripted_service import scripted_registry

SHIPPED = resources.files("phase3.data").joinpath("references.json").read_text(encoding="utf-8")
MODELS = sorted(json.loads(SHIPPED)["models"])


@pytest.mark.parametrize("model", MODELS)
def test_shipped_references_are_sound(model: str) -> None:
    """A registered model, its prompts, texts that are language, a loss of a real model, and their origin."""
    found = reference_of(model)
    assert found is not None
    spec = load_registry(load_settings().registry_path).models[model]
    prompts = fixed.prompts().base if spec.chat == "none" else fixed.prompts().chat
    assert tuple(found.texts) == prompts and len(found.paragraph_bits_per_byte) == 6
    assert 0.5 < found.bits_per_byte() < 2
    for text in found.texts.values():
        assert len(text) <= references.GOLDEN_CHARACTERS and judge(text, is_chat=spec.chat != "none") is None
    assert "transformers" in found.engine
    assert len(found.weights_sha256) == 64 and found.measured_at >= "2026-11-21"


def test_smollm2_has_one() -> None:
    """The model of the default tests is held against its reference."""
    assert "smollm2-135m-instruct" in MODELS


def test_unknown_models_have_none() -> None:
    """No reference is no error."""
    assert reference_of("nobody") is None


class TestMaking:
    """From a case to an entry of the file."""

    def test_an_entry_is_what_the_case_measured(self) -> None:
        """Beginnings of the answers, the loss, and what they were measured with."""
        long = FakeTarget(lambda ask: healthy(ask, own_end=64))
        case = case_of(long, FULL)
        sample.take(case)
        found = Reference(**reference_from(case))
        assert (found.engine, found.weights_sha256) == (ENVIRONMENT.engine, ENVIRONMENT.weights_sha256)
        assert (
            found.bits_per_byte() == found.bits_per_byte(2) == 1.0
            and tuple(found.texts) == fixed.prompts().chat
        )
        for prompt, text in found.texts.items():
            assert golden_prefix(case.replies[prompt].text, text) == len(text) == references.GOLDEN_CHARACTERS

    def test_half_a_measurement_is_no_reference(self) -> None:
        """Without a sample, a loss or the hash of the weights there is nothing to refer to."""
        with pytest.raises(ValueError, match="its answers"):
            reference_from(case_of(FakeTarget()))
        for half in (case_of(FakeTarget(score=lambda _: None), FULL), case_of(FakeTarget(), QUICK)):
            sample.take(half)
            with pytest.raises(ValueError, match="the loss on all paragraphs"):
                reference_from(half)
        nameless = case_of(FakeTarget(environment=replace(ENVIRONMENT, weights_sha256=None)), FULL)
        sample.take(nameless)
        with pytest.raises(ValueError, match="hash of the weights"):
            reference_from(nameless)

    def test_writing_replaces_one_entry(self) -> None:
        """The other models and the words around them stay; the order is the alphabet's."""
        once = with_reference('{"about": "words", "models": {"b": {"x": 1}}}', "a", {"x": 2})
        assert json.loads(once) == {"about": "words", "models": {"a": {"x": 2}, "b": {"x": 1}}}
        assert list(json.loads(once)["models"]) == ["a", "b"]
        assert json.loads(with_reference(once, "b", {"x": 3}))["models"]["b"] == {"x": 3}


class TestCommand:
    """``python -m phase3.references MODEL``."""

    def test_a_model_without_the_backend_is_told(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Unknown models and models without a transformers variant end in a sentence, and write nothing."""
        monkeypatch.setenv("JETLLM_REGISTRY", str(scripted_registry(tmp_path, backend="llamacpp")))
        file = tmp_path / "references.json"
        file.write_text(SHIPPED)
        assert references.main(["nobody", "--file", str(file)]) == 1
        assert "unknown model 'nobody'" in capsys.readouterr().err
        assert references.main(["scripted", "--file", str(file)]) == 1
        assert "expected a variant of the transformers backend" in capsys.readouterr().err
        assert file.read_text() == SHIPPED

    @pytest.mark.transformers
    def test_smollm2_measures_what_is_shipped(
        self, smollm2_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The command makes the shipped entry again: the same text, and the loss to four digits."""
        pytest.importorskip("torch", reason="needs the extra 'transformers': make test-transformers")
        model = "smollm2-135m-instruct"
        registry = json.loads(load_settings().registry_path.read_text("utf-8"))
        variants = registry["models"][model]["variants"]
        source = variants["llamacpp-q4_1"]["source"]
        variants["transformers"] = {"backend": "transformers", "source": source}
        (tmp_path / "models.json").write_text(json.dumps(registry))
        monkeypatch.setenv("JETLLM_REGISTRY", str(tmp_path / "models.json"))
        file = tmp_path / "references.json"
        file.write_text('{"models": {}}')
        assert references.main([model, "--file", str(file)]) == 0
        found, shipped = Reference(**json.loads(file.read_text())["models"][model]), reference_of(model)
        assert shipped is not None and found.weights_sha256 == shipped.weights_sha256
        assert found.bits_per_byte() == pytest.approx(shipped.bits_per_byte(), abs=2e-4)
        equal = sum(found.texts[prompt] == text for prompt, text in shipped.texts.items())
        assert equal >= len(found.texts) - 1
