"""The guide's five models in the guide's two images, against a file that a reader can follow.

`python -m tests.test_lint_golden` writes the file anew; read the difference before you commit it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from inference.artifacts.lint import Report, as_text, lint, taken
from inference.registry import load_registry
from tests.checkpoints import MODELS, make_checkpoint

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "golden" / "lint.md"
PAGE = ROOT / "docs" / "lint.md"
IMAGES = ("nano_llm:r36.2.0", "dustynv/mlc:r36.4.0")
CRASHES = (("smollm2-135m-instruct", IMAGES[0]), ("qwen2.5-0.5b-instruct", IMAGES[0]))
HEAD = """# Which MLC takes which of the guide's models

What `jetllm lint MODEL --image IMAGE` answers for checkpoints with the names, types and shapes of the
published ones (tests/fixtures/checkpoints). Written by `python -m tests.test_lint_golden`, checked by the
test of that name.
"""


def test_the_ten_reports_are_the_golden_ones() -> None:
    """A change of rules or tables that changes an answer shows here, before it lands."""
    assert golden() == GOLDEN.read_text(encoding="utf-8")


def test_page_shows_the_table_and_the_two_crashes() -> None:
    """docs/lint.md shows the answers of now."""
    page = PAGE.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        reports = all_reports(Path(folder))
        assert "\n".join(table(reports)) in page
        for crash in CRASHES:
            assert f"```text\n{as_text(reports[crash])}\n```" in page


def test_models_json_alone_gives_the_same_verdicts() -> None:
    """Without files, models are taken and refused for the same reasons, as far as they are known."""
    models = load_registry(ROOT / "models.json").models
    with tempfile.TemporaryDirectory() as folder:
        for (model, image), report in all_reports(Path(folder)).items():
            spec = models[model]
            alone = taken(spec, spec.variants["mlc-q4f16_1"], image)
            unknowable = {"tokenizer"}
            assert _errors(alone) == [rule for rule in _errors(report) if rule not in unknowable]
            assert alone.takes_after_fixes is report.takes_after_fixes
            assert not alone.files_read


def golden() -> str:
    """Return the golden file's text."""
    with tempfile.TemporaryDirectory() as folder:
        reports = all_reports(Path(folder))
        return "\n".join([HEAD, *table(reports), "", *_sections(reports)])


def all_reports(folder: Path) -> dict[tuple[str, str], Report]:
    """Lint every model for every image."""
    paths = {model: make_checkpoint(model, folder / model) for model in MODELS}
    return {(model, image): lint(paths[model], image) for model in MODELS for image in IMAGES}


def table(reports: dict[tuple[str, str], Report]) -> Iterator[str]:
    """Yield the rows that tell every verdict."""
    yield f"| model | {' | '.join(f'`{image}`' for image in IMAGES)} |"
    yield "| --- | --- | --- |"
    for model in MODELS:
        yield f"| {model} | {' | '.join(_verdict(reports[model, image]) for image in IMAGES)} |"


def _verdict(report: Report) -> str:
    if report.takes:
        return "takes it"
    rules = ", ".join(f"`{rule}`" for rule in _errors(report))
    return f"after {', '.join(report.fixes)}: {rules}" if report.takes_after_fixes else f"no: {rules}"


def _errors(report: Report) -> list[str]:
    return [finding.rule for finding in report.errors]


def _sections(reports: dict[tuple[str, str], Report]) -> Iterator[str]:
    for (model, image), report in reports.items():
        yield from (f"## {model}, {image}", "", "```text", as_text(report), "```", "")


if __name__ == "__main__":
    GOLDEN.write_text(golden(), encoding="utf-8")
