"""The linter: the guide's five models, the two historic crashes, the table of images, and each rule."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from inference.artifacts.lint import RULES, Finding, Report, build_for, known_images, lint, rule_name
from inference.errors import InvalidRequestError
from tests.checkpoints import make_checkpoint, shapes_of, write_safetensors

ROOT = Path(__file__).resolve().parent.parent
OLD, NOW, NEWEST = "nano_llm:r36.2.0", "dustynv/mlc:r36.4.0", "dustynv/mlc:0.20.0-r36.4.0"
SMOLLM2, QWEN, GPT2 = "smollm2-135m-instruct", "qwen2.5-0.5b-instruct", "gpt2"

Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Write one of the guide's models to a directory of its name."""
    return lambda model=SMOLLM2, **changes: make_checkpoint(model, tmp_path / model, **changes)


def found(report: Report, rule: str) -> Finding:
    """The one finding of a rule."""
    [finding] = [finding for finding in report.findings if finding.rule == rule]
    return finding


def errors(report: Report) -> list[str]:
    return [finding.rule for finding in report.errors]


def change(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


# The guide's five models


def test_smollm2_crashes_the_old_image_for_want_of_a_head(make: Make) -> None:
    """SmolLM2-135M ended nano_llm:r36.2.0 in a bare AssertionError: no lm_head.weight; nothing else did."""
    report = lint(make(SMOLLM2), OLD, context_tokens=2048)
    assert errors(report) == ["tied-head"]
    message = found(report, "tied-head").message
    assert "lm_head.weight" in message
    assert "bare AssertionError" in message
    assert "tied" in message


def test_qwen_crashes_the_old_image_as_an_unknown_type(make: Make) -> None:
    """Qwen2.5-0.5B ended nano_llm:r36.2.0 with "Model type qwen2 not supported."."""
    report = lint(make(QWEN), OLD, context_tokens=2048)
    assert errors(report) == ["model-type"]
    assert "Model type qwen2 not supported." in found(report, "model-type").message
    assert NEWEST in found(report, "model-type").hint


@pytest.mark.parametrize("image", [NOW, NEWEST])
@pytest.mark.parametrize("model", [SMOLLM2, QWEN])
def test_both_crashed_models_pass_in_the_current_images(make: Make, model: str, image: str) -> None:
    """The current images take both, without an error or a warning once a context is asked for."""
    report = lint(make(model), image, context_tokens=2048)
    assert report.takes
    assert {finding.severity for finding in report.findings} <= {"note"}


@pytest.mark.parametrize(
    ("model", "image", "expected", "fixes"),
    [
        ("distilgpt2", OLD, ["model-type"], ()),
        ("dialogpt-small", OLD, ["model-type"], ()),
        ("gpt2", OLD, ["model-type"], ()),
        ("distilgpt2", NOW, ["gpt2-names"], ("rename",)),
        ("dialogpt-small", NOW, ["tokenizer", "gpt2-names"], ("tokenizer", "rename")),
        ("gpt2", NOW, [], ()),
        ("distilgpt2", NEWEST, ["gpt2-names"], ("rename",)),
        ("dialogpt-small", NEWEST, ["tokenizer", "gpt2-names"], ("tokenizer", "rename")),
        ("gpt2", NEWEST, [], ()),
    ],
)
def test_gpt2_family_is_explained(
    make: Make, model: str, image: str, expected: list[str], fixes: tuple[str, ...]
) -> None:
    """The old builder has no GPT-2; the current ones want names without a prefix, which a pass can give."""
    report = lint(make(model), image, context_tokens=1024)
    assert errors(report) == expected
    assert report.takes is (not expected)
    assert report.fixes == fixes
    assert report.takes_after_fixes is (bool(fixes) or not expected)


def test_old_image_takes_gpt2_in_its_first_check_only(make: Make) -> None:
    """gpt2 is in the old builder's list of types and has no model behind it."""
    message = found(lint(make(GPT2), OLD), "model-type").message
    assert "passes it in its first check, then stops with 'Model gpt2 not supported'" in message


def test_gpt2_vocabulary_and_width_are_noted(make: Make) -> None:
    """50257 leaves 1 over when divided by 8, and 64 is no width of FlashInfer's; both only cost speed."""
    report = lint(make(GPT2), NOW, context_tokens=1024)
    assert "found 50257, which leaves 1 over" in found(report, "vocab-size").message
    assert "head_dim: found 64, expected 128" in found(report, "head-dim").message
    assert "model_type: found 'gpt2'" in found(report, "head-dim").message
    assert all(finding.severity == "note" for finding in report.findings)


# The table of images


def test_every_image_says_its_types_and_commit() -> None:
    """Every image that was looked up has a commit, its types and its quantizations."""
    for image in known_images():
        build = build_for(image)
        assert build.commit and build.dated and build.model_types and build.quantizations
        known = build.model_types | build.refused_types
        assert build.ties_head | build.needs_head | build.needs_rope_theta <= known
        assert not build.ties_head & build.needs_head
        assert not build.model_types & build.refused_types


@pytest.mark.parametrize(
    ("image", "model_type", "takes"),
    [
        (OLD, "qwen2", False),
        (OLD, "llama", True),
        (NOW, "qwen2", True),
        (NOW, "qwen3", False),
        (NOW, "gemma3", False),
        (NEWEST, "qwen3", True),
        (NEWEST, "gemma3", True),
        (NEWEST, "gpt_oss", False),
    ],
)
def test_types_are_those_of_the_commit(image: str, model_type: str, takes: bool) -> None:
    """Qwen2 came after February 2024, Qwen3 and Gemma 3 after January 2025, gpt-oss after May 2025."""
    assert (model_type in (build_for(image).model_types or ())) is takes


@pytest.mark.parametrize("image", ["r36.4.0", "mlc:r36.4.0", "dustynv/mlc:r36.4.0"])
def test_image_is_found_by_its_short_name(image: str) -> None:
    """The registry user and the repository may be left out."""
    assert build_for(image).image == NOW


@pytest.mark.parametrize(
    ("given", "image", "commit"),
    [
        ("r36.2.0", OLD, "607dc5a"),
        ("dustynv/nano_llm:r36.2.0", OLD, "607dc5a"),
        ("registry.example/dustynv/mlc:r36.2.0", "dustynv/mlc:r36.2.0", "607dc5a"),
        ("0.19.0-r36.4.0", "dustynv/mlc:0.19.0-r36.4.0", "cf7ae82"),
        ("nano_llm:r36.4.0", "nano_llm:r36.4.0", None),
    ],
)
def test_image_is_known_by_its_commit(given: str, image: str, commit: str | None) -> None:
    """Tags of one commit are one build; the same tag of another repository is another image."""
    assert (build_for(given).image, build_for(given).commit) == (image, commit)


def test_unknown_image_is_not_guessed(make: Make) -> None:
    """Of an image that was not looked up only what holds for every MLC is said, and that it is so."""
    report = lint(make(QWEN), "dustynv/mlc:9.9.9-r99.0.0", context_tokens=2048)
    assert report.takes
    assert report.commit is None
    assert found(report, "image").severity == "warning"


@pytest.mark.parametrize("image", ["", " ", "a b", "x\n", "-x", "x" * 300])
def test_what_cannot_be_an_image_is_refused(make: Make, image: str) -> None:
    """A typing error in the image is an error, not an unknown image."""
    with pytest.raises(InvalidRequestError, match="image: expected a name"):
        lint(make(), image)


# The model


@pytest.mark.parametrize("value", [None, 7, "", ["llama"]])
def test_type_must_be_told(make: Make, value: Any) -> None:
    """A configuration without a model_type stops every build."""
    assert "model-type" in errors(lint(make(model_type=value), NOW))


def test_untied_checkpoint_without_head_is_refused(make: Make) -> None:
    """No lm_head.weight, and no word that the embeddings are tied: the loader misses it."""
    report = lint(make(tie_word_embeddings=None), NOW)
    assert found(report, "tied-head").fix == "config"


def test_checkpoint_with_a_head_passes_in_the_old_image(make: Make) -> None:
    """With lm_head.weight in the checkpoint the old image has nothing against a Llama."""
    path = make()
    shapes = shapes_of(json.loads((path / "config.json").read_text()))
    write_safetensors(path / "model.safetensors", {**shapes, "lm_head.weight": (49152, 576)}, "BF16")
    assert lint(path, OLD).takes


def test_head_is_not_missed_in_files_that_cannot_be_read(make: Make) -> None:
    """A file that is cut off is the finding; what may be in it is not guessed."""
    path = make()
    with (path / "model.safetensors").open("r+b") as file:
        file.truncate(10_000)
    assert errors(lint(path, OLD)) == ["weights"]


@pytest.mark.parametrize(
    ("model", "image", "silently"), [(SMOLLM2, NOW, True), (SMOLLM2, OLD, True), (QWEN, NOW, False)]
)
def test_rope_theta_below_rope_parameters_is_not_read(
    make: Make, model: str, image: str, silently: bool
) -> None:
    """Llama silently takes 10000 for it, Qwen2 stops; the config pass lifts it to the top."""
    path = make(model, rope_theta=None, rope_parameters={"rope_theta": 100000.0, "rope_type": "default"})
    finding = found(lint(path, image), "rope-theta")
    assert (finding.severity, finding.fix) == ("error", "config")
    assert ("silently takes 10000" in finding.message) is silently


def test_rope_theta_of_10000_may_stand_anywhere(make: Make) -> None:
    """Where MLC's default is the value, nothing is lost."""
    report = lint(make(rope_theta=None, rope_parameters={"rope_theta": 10000.0}), NOW)
    assert report.takes


@pytest.mark.parametrize(
    ("changes", "fix"),
    [
        ({"rope_scaling": {"rope_type": "yarn"}}, None),
        ({"rope_scaling": {"rope_type": "default"}}, "config"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 32}}, "config"),
    ],
)
def test_rope_scaling_is_of_a_kind_that_mlc_has(make: Make, changes: Any, fix: str | None) -> None:
    """MLC's Llama asserts llama3 and reads it at the top level only."""
    assert found(lint(make(**changes), NOW), "rope-scaling").fix == fix


def test_llama3_scaling_passes(make: Make) -> None:
    """The kind that MLC has, where MLC reads it, is no finding."""
    assert lint(make(rope_scaling={"rope_type": "llama3", "factor": 32.0}), NOW).takes


def test_fast_attention_is_expected_of_a_fitting_head(make: Make) -> None:
    """A width of 128 with 4 query heads to a key head has a kernel; computing in float32 has none."""
    path = make(hidden_size=2048, num_attention_heads=16, num_key_value_heads=4, head_dim=128)
    assert "head-dim" not in {finding.rule for finding in lint(path, NOW).findings}
    assert "float16" in found(lint(path, NOW, "q4f32_1"), "head-dim").message


def test_context_is_asked_for(make: Make) -> None:
    """Left to MLC, the context is the model's whole one and the chunk up to 8192."""
    message = found(lint(make(QWEN), NOW), "context").message
    assert "32768 tokens, and a prefill chunk of 8192" in message


@pytest.mark.parametrize(("model", "severity"), [(GPT2, "error"), (SMOLLM2, "warning")])
def test_context_beyond_the_models_own(make: Make, model: str, severity: str) -> None:
    """GPT-2 has no position after its last; a rotary model has, but was not trained there."""
    assert found(lint(make(model), NOW, context_tokens=99_999), "context").severity == severity


def test_context_that_nothing_tells_stops_mlc(make: Make) -> None:
    """Without max_position_embeddings MLC cannot determine the maximum sequence length."""
    assert "context" in errors(lint(make(max_position_embeddings=None), NOW, context_tokens=512))


# The quantization


@pytest.mark.parametrize(
    ("model", "quantization", "severity"),
    [
        (SMOLLM2, "q4f16_1", None),
        (QWEN, "q4f16_1", None),
        (SMOLLM2, "q3f16_1", "note"),  # 576 = 14 x 40 + 16
        (SMOLLM2, "q4f16_autoawq", "error"),  # 576 = 4 x 128 + 64
        (GPT2, "q4f16_autoawq", None),  # 768 = 6 x 128
    ],
)
def test_groups_divide_the_widths(make: Make, model: str, quantization: str, severity: str | None) -> None:
    """Groups of 32 and 40 are padded; those of 128 leave no place for a rest."""
    report = lint(make(model), NOW, quantization)
    assert [f.severity for f in report.findings if f.rule == "group-size"] == ([severity] if severity else [])


@pytest.mark.parametrize(
    ("image", "quantization", "known"),
    [
        (NOW, "q4bf16_1", False),
        (NEWEST, "q4bf16_1", True),
        (OLD, "q8f16_ft", True),
        (NOW, "q8f16_ft", False),
        (NOW, "Q4_K_M", False),
    ],
)
def test_quantization_is_one_of_the_builds(make: Make, image: str, quantization: str, known: bool) -> None:
    """Each commit has its own list of quantizations."""
    assert ("quantization" not in errors(lint(make(), image, quantization))) is known


def test_quantized_weights_are_not_quantized_again(make: Make) -> None:
    """A checkpoint of AutoAWQ has other tensors than the group formats look for."""
    path = make(quantization_config={"quant_method": "awq", "bits": 4})
    assert "quantized-source" in errors(lint(path, NOW))
    assert "quantized-source" in errors(lint(make(GPT2), NOW, "q4f16_autoawq"))


def test_q4f16_ft_is_doubted_for_qwen3(make: Make) -> None:
    """q4f16_ft is known for gibberish of Qwen3-0.6B."""
    assert (
        found(lint(make(QWEN, model_type="qwen3"), NEWEST, "q4f16_ft"), "quantization").severity == "warning"
    )


# The report


def test_report_is_json_with_errors_first(make: Make) -> None:
    """Every finding has its rule, severity, message, hint and source; errors come first."""
    tree = json.loads(json.dumps(lint(make("distilgpt2"), NOW).to_dict()))
    assert tree["takes"] is False
    assert tree["takes_after_fixes"] is True
    assert tree["fixes"] == ["rename"]
    assert tree["mlc_commit"] == "cf7ae82"
    order = [finding["severity"] for finding in tree["findings"]]
    assert order == sorted(order, key=["error", "warning", "note"].index)
    for finding in tree["findings"]:
        assert all(finding[key] for key in ("rule", "severity", "message", "hint", "source"))


def test_same_checkpoint_gives_the_same_report(make: Make) -> None:
    """Nothing but the files, the image, the quantization and the context matters."""
    path = make("dialogpt-small")
    assert lint(path, NOW) == lint(path, NOW)


def test_rules_say_their_source() -> None:
    """Every rule is one function whose docstring says where it is known from; names are unique."""
    assert all("Source:" in (rule.__doc__ or "") for rule in RULES)
    assert len({rule_name(rule) for rule in RULES}) == len(RULES)


def test_every_rule_is_documented() -> None:
    """docs/lint.md has a row for each rule and none for another."""
    page = (ROOT / "docs/lint.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1].strip().strip("`") for line in page.splitlines() if line.startswith("| `")]
    assert sorted(rows) == sorted([*map(rule_name, RULES), *known_images()])
