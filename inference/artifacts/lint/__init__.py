"""The linter: does a given MLC build take a checkpoint, from its configuration, names and shapes alone."""

from inference.artifacts.lint.builds import NEWEST_IMAGE, MLCBuild, build_for, known_images
from inference.artifacts.lint.linter import DEFAULT_QUANTIZATION, RULES, lint, lint_entry, rule_name, taken
from inference.artifacts.lint.report import Finding, Fix, Report, Severity, as_text

__all__ = [
    "DEFAULT_QUANTIZATION",
    "NEWEST_IMAGE",
    "RULES",
    "Finding",
    "Fix",
    "MLCBuild",
    "Report",
    "Severity",
    "as_text",
    "build_for",
    "known_images",
    "lint",
    "lint_entry",
    "rule_name",
    "taken",
]
