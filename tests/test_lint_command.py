"""`jetllm lint`: its exit codes, its JSON, and what it looks at."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from inference import cli
from tests.checkpoints import MODELS, make_checkpoint

OLD, NOW, NEWEST = "nano_llm:r36.2.0", "dustynv/mlc:r36.4.0", "dustynv/mlc:0.20.0-r36.4.0"
SMOLLM2, QWEN = "smollm2-135m-instruct", "qwen2.5-0.5b-instruct"


@pytest.fixture(autouse=True)
def _empty_store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("JETLLM_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return make_checkpoint(SMOLLM2, tmp_path / "smollm2")


def lint(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli.main, ["lint", *map(str, arguments)])


@pytest.mark.parametrize(
    ("model", "image", "code", "says"),
    [
        (SMOLLM2, "r36.2.0", 1, "bare AssertionError"),
        (QWEN, "r36.2.0", 1, "Model type qwen2 not supported."),
        (SMOLLM2, "r36.4.0", 0, "takes it"),
        (QWEN, "r36.4.0", 0, "takes it"),
        ("distilgpt2", "r36.4.0", 1, "it takes what the builder makes of it: rename"),
    ],
)
@pytest.mark.parametrize("with_files", [True, False])
def test_guides_models_are_explained(
    tmp_path: Path, model: str, image: str, code: int, says: str, with_files: bool
) -> None:
    """The two that crashed in the old image are refused there and taken now, with their files and without."""
    where = ["--path", str(make_checkpoint(model, tmp_path / model))] if with_files else []
    result = lint(model, "--image", image, *where)
    assert (result.exit_code, result.stderr) == (code, "")
    assert says in result.stdout
    assert ("rests on models.json alone" in result.stdout) is not with_files


@pytest.mark.parametrize(
    ("arguments", "image"),
    [
        (["--image", "r36.2.0"], OLD),
        (["--image", "nano_llm:r36.2.0"], OLD),
        (["--image", "dustynv/nano_llm:r36.2.0"], OLD),
        (["--image", "r36.4.0"], NOW),
        (["--image", "0.20.0-r36.4.0"], NEWEST),
        ([], NOW),  # its entry's container
    ],
)
def test_image_may_be_named_by_its_tag(arguments: list[str], image: str) -> None:
    """The bare tag is enough; without --image it is the container of the model's entry."""
    assert json.loads(lint(SMOLLM2, "--json", *arguments).stdout)["image"] == image


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("image", [OLD, NOW])
def test_json_agrees_with_the_exit_code(model: str, image: str) -> None:
    """--json prints one object, whose "takes" is the exit code's 0."""
    result = lint(model, "--image", image, "--json")
    tree = json.loads(result.stdout)
    assert result.exit_code == (0 if tree["takes"] else 1)
    assert (tree["subject"], tree["image"], tree["files_read"]) == (model, image, False)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "name a MODEL"),
        (["no-such-model"], "unknown model"),
        ([SMOLLM2, "--image", "a b"], "image: expected a name"),
        ([SMOLLM2, "--image", ""], "image: expected a name"),
        ([SMOLLM2, "--variant", "nope"], "has no variant"),
        ([SMOLLM2, "--variant", "llamacpp-q4_1"], "expected a checkpoint for MLC"),
        (["--path", "/no/such/place"], "no such directory"),
        ([SMOLLM2, "--context", "0"], "--context"),
        ([SMOLLM2, "--no-such-option"], "No such option"),
    ],
)
def test_what_cannot_be_asked_exits_with_2(arguments: list[str], says: str) -> None:
    """A question that makes no sense is told apart from a checkpoint that is not taken."""
    result = lint(*arguments)
    assert result.exit_code == 2
    assert says in result.stderr
    assert result.stdout == ""


def test_image_that_was_not_looked_up_promises_nothing() -> None:
    """Of an unknown image the last line does not say that it takes the model."""
    result = lint(SMOLLM2, "--image", "latest")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[-1].startswith("may take it")


def test_model_without_an_mlc_variant_is_explained() -> None:
    """Why models.json has no variant for MLC is seen from the checkpoint that transformers takes."""
    result = lint("phi-4-mini-instruct", "--json")
    first = json.loads(result.stdout)["findings"][0]
    assert (first["rule"], first["severity"]) == ("tied-head", "error")


def test_directory_is_as_good_as_a_name(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is no model of models.json, and a directory, is looked at."""
    monkeypatch.chdir(checkpoint.parent)
    by_name, by_path = lint("smollm2/", "--json"), lint("--path", checkpoint, "--json")
    assert by_name.exit_code == by_path.exit_code == 0
    assert json.loads(by_name.stdout) == json.loads(by_path.stdout)
    assert json.loads(by_name.stdout)["image"] == NEWEST
    assert lint("smollm2/", "--variant", "mlc-q4f16_1").exit_code == 2


def test_pulled_checkpoint_is_looked_at(checkpoint: Path, tmp_path: Path) -> None:
    """Where the checkpoint of a model is here, its files are read, not models.json alone."""
    tree = json.loads((Path(__file__).resolve().parent.parent / "models.json").read_text())
    entry = tree["models"][SMOLLM2]
    entry["variants"]["mlc-q4f16_1"]["source"] = {"type": "file", "path": str(checkpoint)}
    (tmp_path / "models.json").write_text(json.dumps({"models": {SMOLLM2: entry}}))
    (tmp_path / "jetllm.yaml").write_text(f"registry: {tmp_path / 'models.json'}\n")
    arguments = ["--config", str(tmp_path / "jetllm.yaml"), "lint", SMOLLM2, "--json"]
    result = CliRunner().invoke(cli.main, arguments)
    assert json.loads(result.stdout)["files_read"] is True


def test_quantization_and_context_can_be_asked_for(checkpoint: Path) -> None:
    """--quantization and --context take the place of the variant's."""
    result = lint(
        SMOLLM2, "--path", checkpoint, "--quantization", "q4f16_autoawq", "--context", "4096", "--json"
    )
    tree = json.loads(result.stdout)
    assert (tree["quantization"], tree["context_tokens"]) == ("q4f16_autoawq", 4096)
    assert "group-size" in {finding["rule"] for finding in tree["findings"]}
    assert "context" not in {finding["rule"] for finding in tree["findings"]}


def test_directory_of_any_name_can_be_shown(tmp_path: Path) -> None:
    """Bytes that are no text, and control characters, reach no terminal."""
    path = make_checkpoint(SMOLLM2, Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\x1b[31m")))
    for options in ([], ["--json"]):
        result = lint("--path", path, *options)
        assert result.exit_code == 0
        assert "\x1b" not in result.stdout
