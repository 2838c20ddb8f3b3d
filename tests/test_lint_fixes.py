"""What the linter says of the builder: that a copy, after the passes, is taken or is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from inference.artifacts.build.stage import fix, stage
from inference.artifacts.build.tokenizer_json import GPT2_TOKENIZERS
from inference.artifacts.lint import lint
from inference.artifacts.lint.rules_files import GPT2_TOKENIZERS as SAID
from inference.errors import JetLLMError
from tests.checkpoints import MODELS, make_checkpoint
from tests.test_lint_rules import CASES, NOW, SOUND, Case

STAGED = [case for case in CASES if case.image == NOW and case.rule != "directory"]


def is_taken(directory: Path, target: Path, options: dict[str, Any]) -> bool:
    """Stage and fix a checkpoint; tell whether what comes of it is taken."""
    try:
        staged = stage(directory, target, cancelled=lambda: False)
        staged = fix(staged, shard_bytes=None, cancelled=lambda: False, advance=lambda _: None)
    except JetLLMError:
        return False
    return lint(staged.directory, NOW, **options).takes


@pytest.mark.parametrize("case", STAGED, ids=lambda case: f"{case.rule}: {case.says}")
def test_copy_is_what_the_report_says(tmp_path: Path, case: Case) -> None:
    """What is taken after fixes is taken after them, and what is not, is not, or is refused."""
    path = make_checkpoint("smollm2-135m-instruct", tmp_path / "broken", **SOUND)
    case.do(path)
    options = {"context_tokens": 2048, **case.options}
    report = lint(path, NOW, **options)
    if not (path / "config.json").is_file():
        return  # converted weights, which are not staged
    assert is_taken(path, tmp_path / "copy", options) is report.takes_after_fixes


@pytest.mark.parametrize("model", [name for name in MODELS if name != "dialogpt-small"])
def test_copy_of_a_guides_model_is_taken(tmp_path: Path, model: str) -> None:
    """The four that have a tokenizer.json are taken by the current image after the passes."""
    path = make_checkpoint(model, tmp_path / model)
    options: dict[str, Any] = {"context_tokens": 1024}
    assert lint(path, NOW, **options).takes_after_fixes
    assert is_taken(path, tmp_path / "copy", options)


def test_tokenizers_that_can_be_written_are_the_builders() -> None:
    """The linter promises a tokenizer.json for the classes for which the builder writes one."""
    assert frozenset(SAID) == GPT2_TOKENIZERS
