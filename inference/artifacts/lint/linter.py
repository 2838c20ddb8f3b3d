"""The linter: every rule over one checkpoint, for one image."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from inference.artifacts.lint import rules_files, rules_model, rules_quantization
from inference.artifacts.lint.builds import build_for
from inference.artifacts.lint.checkpoint import Checkpoint, read_checkpoint
from inference.artifacts.lint.entry import of_entry
from inference.artifacts.lint.report import Finding, Report, in_order, label
from inference.artifacts.lint.rule import Question, Rule
from inference.registry import ModelSpec
from inference.registry.spec import Variant

DEFAULT_QUANTIZATION = "q4f16_1"

RULES: tuple[Rule, ...] = (*rules_files.RULES, *rules_model.RULES, *rules_quantization.RULES)


def lint(
    directory: str | Path,
    image: str,
    quantization: str = DEFAULT_QUANTIZATION,
    context_tokens: int | None = None,
) -> Report:
    """Say whether *image*'s MLC takes the checkpoint in *directory*; reads no weights, writes nothing.

    Args:
        directory: as it would be given to MLC; a slash at the end is noticed where it does harm.
        quantization: in MLC's word, such as "q4f16_1".
        context_tokens: the context that will be asked for; ``None``: MLC's own default.

    Raises:
        InvalidRequestError: *image* cannot be the name of an image.
    """
    return _report(read_checkpoint(directory), image, quantization, context_tokens)


def lint_entry(
    name: str,
    spec: ModelSpec,
    image: str,
    quantization: str = DEFAULT_QUANTIZATION,
    context_tokens: int | None = None,
    *,
    variant: Variant | None = None,
) -> Report:
    """Say what models.json alone tells, of a model whose files are not here.

    Args:
        variant: the one whose checkpoint would be built; ``None``: nothing is known of how it is written.

    Raises:
        InvalidRequestError: *image* cannot be the name of an image.
    """
    return _report(of_entry(name, spec, variant), image, quantization, context_tokens)


def taken(spec: ModelSpec, variant: Variant, image: str) -> Report:
    """Say what models.json alone tells of *variant* as the builder would order it: context asked for.

    A selector wants `Report.takes_after_fixes`: the builder applies the fixes.

    Raises:
        InvalidRequestError: *image* cannot be the name of an image.
    """
    quantization = variant.quantization or DEFAULT_QUANTIZATION
    context_tokens = variant.context or spec.context_length
    return lint_entry(spec.name, spec, image, quantization, context_tokens, variant=variant)


def rule_name(rule: Rule) -> str:
    """The name under which a rule's findings are reported."""
    return rule.__name__.replace("_", "-")


def _report(checkpoint: Checkpoint, image: str, quantization: str, context_tokens: int | None) -> Report:
    build = build_for(image)
    quantization = label(quantization)
    question = Question(checkpoint, build, quantization, context_tokens)
    findings: list[Finding] = [
        replace(finding, rule=rule_name(rule)) for rule in RULES for finding in rule(question)
    ]
    return Report(
        checkpoint.name,
        build.image,
        build.commit,
        quantization,
        context_tokens,
        checkpoint.files_read,
        in_order(findings),
    )
