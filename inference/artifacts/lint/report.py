"""The report: what a linter found, and whether the MLC build takes the checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

_MAX_LABEL = 160

Severity = Literal["error", "warning", "note"]
Fix = Literal["rename", "config", "tokenizer", "stage"]
FIXES: Mapping[Fix, str] = {
    "rename": "`jetllm build` renames the tensors in a copy",
    "config": "`jetllm build` writes the keys of config.json anew in a copy",
    "tokenizer": "`jetllm build` writes tokenizer.json from vocab.json and merges.txt",
    "stage": "`jetllm build` works on links to what belongs to it, under the names that MLC looks for",
}
"""The pass over a staged copy after which an error is gone, and what it does."""

_ORDER: dict[Severity, int] = {"error": 0, "warning": 1, "note": 2}


@dataclass(frozen=True)
class Finding:
    """One thing that a rule noticed.

    Args:
        severity: "error": the build stops, or makes another model of it; "warning": it is taken, with
            something that should be put right; "note": it is taken, and this is good to know.
        message: the subject, what is wrong, the value found and the value wanted.
        source: where it is known from.
        fix: what a build does to a staged copy so that an error is gone; ``None``: nothing does.
    """

    rule: str
    severity: Severity
    message: str
    hint: str
    source: str
    fix: Fix | None = None


@dataclass(frozen=True)
class Report:
    """All findings about one checkpoint and one image, errors first.

    Args:
        subject: the directory's name, or the registry's for a model whose files are not here.
        image: the name of the image, in full where it was looked up.
        commit: the commit of mlc-ai/mlc-llm in the image; ``None`` where it has not been looked up.
        files_read: whether there were files to look at; else the findings rest on models.json alone.
    """

    subject: str
    image: str
    commit: str | None
    quantization: str
    context_tokens: int | None
    files_read: bool
    findings: tuple[Finding, ...]

    @property
    def errors(self) -> tuple[Finding, ...]:
        """What stops the build."""
        return tuple(finding for finding in self.findings if finding.severity == "error")

    @property
    def takes(self) -> bool:
        """Whether the build takes the checkpoint as it is."""
        return not self.errors

    @property
    def fixes(self) -> tuple[Fix, ...]:
        """The passes that errors ask for, each once."""
        return tuple(dict.fromkeys(error.fix for error in self.errors if error.fix is not None))

    @property
    def takes_after_fixes(self) -> bool:
        """Whether the build takes a staged copy after `fixes`."""
        return all(error.fix is not None for error in self.errors)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "subject": self.subject,
            "image": self.image,
            "mlc_commit": self.commit,
            "quantization": self.quantization,
            "context_tokens": self.context_tokens,
            "files_read": self.files_read,
            "takes": self.takes,
            "takes_after_fixes": self.takes_after_fixes,
            "fixes": list(self.fixes),
            "findings": [asdict(finding) for finding in self.findings],
        }


def label(text: str) -> str:
    """A name that others gave, fit to be printed: on one line, without control characters, and short."""
    shown = text if text.isprintable() else ascii(text)[1:-1]
    return shown if len(shown) <= _MAX_LABEL else f"{shown[: _MAX_LABEL - 3]}..."


def as_text(report: Report) -> str:
    """Write a report for people: the question, the findings, the verdict."""
    commit = f"MLC {report.commit}" if report.commit else "its MLC was not looked up"
    context = f", context {report.context_tokens}" if report.context_tokens else ""
    lines = [f"{report.subject} for {report.image} ({commit}), {report.quantization}{context}"]
    for finding in report.findings:
        lines += [
            "",
            f"{finding.severity}  {finding.rule}: {finding.message}",
            f"    hint: {finding.hint}",
            f"    source: {finding.source}",
        ]
        if finding.fix is not None:
            lines.append(f"    fix: {finding.fix}: {FIXES[finding.fix]}")
    if not report.files_read:
        lines += ["", "Its files are not here and were not looked at: this rests on models.json alone."]
    return "\n".join([*lines, "", _verdict(report)])


def _verdict(report: Report) -> str:
    if report.takes and report.commit is None:
        return "may take it: nothing that holds for every MLC stops it, and what this one knows is unknown"
    if report.takes:
        return "takes it: nothing that was looked at stops this MLC"
    if report.takes_after_fixes:
        return f"does not take it as it is; it takes what the builder makes of it: {', '.join(report.fixes)}"
    return "does not take it"


def in_order(findings: list[Finding]) -> tuple[Finding, ...]:
    """Sort by severity; within one the order of the rules stays."""
    return tuple(sorted(findings, key=lambda finding: _ORDER[finding.severity]))
