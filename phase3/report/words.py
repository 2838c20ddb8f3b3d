"""Words and numbers as every report shows them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from phase3.result import Finding, Report, Row, Verdict

VERDICTS: dict[Verdict, str] = {
    "pass": "Passed",
    "fail": "Failed",
    "skip": "Skipped",
    "unfit": "Not judged",
    "error": "Error",
}
SIGNS: dict[Verdict, str] = {"pass": "\u2713", "fail": "\u2717", "skip": "\u2013", "unfit": "?", "error": "!"}
UNKNOWN = "unknown"
_SCALED = {
    "bytes": ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (0.0, "B")),
    "s": ((1.0, "s"), (1e-3, "ms"), (0.0, "\u00b5s")),
}
_STEPS = {"GB": 1e9, "MB": 1e6, "kB": 1e3, "ms": 1e-3, "\u00b5s": 1e-6}
_KEY_UNITS = {
    "_bytes": "bytes",
    "_s": "s",
    "_celsius": "\u00b0C",
    "_percent": "%",
    "_watts": "W",
    "_tokens": "tokens",
    "_hz": "Hz",
}


def number(value: float) -> str:
    """Return *value* with three significant digits or all of its integer ones."""
    size = abs(value)
    if size >= 100 or value == int(value):
        return f"{value:,.0f}"
    if size >= 1:
        return f"{value:.1f}" if size >= 10 else f"{value:.2f}"
    if size < 1e-6:
        return f"{value:.2g}"
    return f"{value:.3g}"


def quantity(value: float | None, unit: str | None) -> str:
    """Return *value* in the size of unit that fits it; bytes and seconds scale, also before a slash."""
    if value is None:
        return UNKNOWN
    base, slash, per = (unit or "").partition("/")
    if base not in _SCALED:
        return f"{number(value)}{'' if unit.startswith('%') else ' '}{unit}" if unit else number(value)
    if value == 0:
        return f"0 {'B' if base == 'bytes' else base}{slash}{per}"
    name = next(name for least, name in _SCALED[base] if abs(value) >= least)
    return f"{number(value / _STEPS.get(name, 1.0))} {name}{slash}{per}"


def limit(finding: Finding) -> str:
    """Return the limit that the finding must keep, or nothing."""
    if finding.limit is None:
        return ""
    sign = "\u2264" if finding.limit_is == "at most" else "\u2265"
    return f"{sign} {quantity(finding.limit, finding.unit)}"


def value(finding: Finding) -> str:
    """Return what the finding measured, or nothing."""
    return "" if finding.value is None else quantity(finding.value, finding.unit)


def counted(report: Report) -> str:
    """Return how many checks came to which verdict, the bad ones first."""
    found = [finding.verdict for finding in report.findings]
    order: tuple[Verdict, ...] = ("error", "fail", "unfit", "pass", "skip")
    parts = [f"{found.count(name)} {VERDICTS[name].lower()}" for name in order if name in found]
    return ", ".join(parts) or "no check ran"


def says(report: Report, verdict: Verdict) -> str:
    """Return the verdict on the whole in a sentence."""
    sentences = {
        "pass": "The model passed every check that applies to it on this machine.",
        "fail": "The model does not pass on this machine.",
        "unfit": "The model could not be judged on this machine as it was.",
        "error": "The harness itself failed; nothing here can be relied on.",
        "skip": "",
    }
    stopped = " The run was stopped before its end." if report.partial else ""
    return sentences[verdict] + stopped


def lengths(row: Row) -> str:
    """Return the row's prompt and output lengths."""
    return f"{row.prompt_tokens:,} \u2192 {row.output_tokens:,}"


def headline(report: Report) -> Row | None:
    """Return the row that stands for the benchmark: one request, 16 tokens in and 128 out where it ran."""
    alone = [row for row in report.benchmark if row.concurrency == 1]
    published = [row for row in alone if (row.prompt_tokens, row.output_tokens) == (16, 128)]
    return next(iter(published or alone), None)


def facts(environment: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the environment as labels and texts, in its order."""
    return [(_label(key), _fact(key, entry)) for key, entry in environment.items()]


def _label(key: str) -> str:
    suffix = next((end for end in _KEY_UNITS if key.endswith(end)), "")
    text = key.removesuffix(suffix).replace("_", " ").strip() or key
    small = {"l4t": "L4T", "cpu": "CPU", "gpu": "GPU", "jetllm": "JetLLM", "url": "URL"}
    words = [small.get(word, word) for word in text.split(" ")]
    words[0] = words[0] if words[0] in small.values() else words[0][:1].upper() + words[0][1:]
    return " ".join(words)


def _fact(key: str, entry: Any) -> str:
    if isinstance(entry, Mapping):
        return ", ".join(f"{name}: {_fact(key, item)}" for name, item in entry.items()) or "none"
    if isinstance(entry, tuple | list):
        return ", ".join(_fact(key, item) for item in entry) or "none"
    if isinstance(entry, bool):
        return "yes" if entry else "no"
    if isinstance(entry, int | float):
        unit = next((unit for end, unit in _KEY_UNITS.items() if key.endswith(end)), None)
        return quantity(float(entry), unit)
    return UNKNOWN if entry is None else str(entry)
