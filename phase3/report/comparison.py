"""The comparison of two reports: a noise-aware verdict per figure, and what else differs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from phase3 import stats
from phase3.report import markdown as md
from phase3.report import words
from phase3.report.markup import Markup, joined, tag
from phase3.report.page import chip, document
from phase3.result import Measured, Report, Row, verdict

_FIGURES: tuple[tuple[str, str, str, stats.Better], ...] = (
    ("ttft_s", "time to first token", "s", "lower"),
    ("itl_s", "time between tokens", "s", "lower"),
    ("prefill_tokens_per_s", "prefill", "tokens/s", "higher"),
    ("decode_tokens_per_s", "decode", "tokens/s", "higher"),
    ("throughput_tokens_per_s", "all together", "tokens/s", "higher"),
    ("e2e_s", "whole request", "s", "lower"),
)
_TONES = {"faster": "pass", "slower": "fail", "same": "skip", "cannot tell": "unfit"}
_SIGNS = {"faster": "\u25b2", "slower": "\u25bc", "same": "=", "cannot tell": "?"}


@dataclass(frozen=True)
class Change:
    """One figure in both reports; *ratio* is how much larger the new one is, if it can be said."""

    figure: str
    unit: str
    old: float
    new: float
    ratio: stats.Change | None
    verdict: stats.Verdict


@dataclass(frozen=True)
class Comparison:
    """What differs between two reports.

    Args:
        conditions: model, variant and environment where they differ: label, old and new text.
        verdicts: checks whose verdict differs: title, old and new verdict.
        unmatched: rows that only one of the two has, in words.
    """

    changes: tuple[Change, ...]
    conditions: tuple[tuple[str, str, str], ...]
    verdicts: tuple[tuple[str, str, str], ...]
    unmatched: tuple[str, ...]


def compare(old: Report, new: Report) -> Comparison:
    """Compare *new* with *old*: rows by their lengths and concurrency, samples by `stats.compare`."""
    before, after = _by_key(old), _by_key(new)
    both = [key for key in after if key in before]
    return Comparison(
        tuple(change for key in both for change in _changes(before[key], after[key])),
        tuple(_different(_conditions(old), _conditions(new))),
        tuple(_different(_verdicts(old), _verdicts(new))),
        (
            *(f"only in the old report: {_name(before[key])}" for key in before if key not in after),
            *(f"only in the new report: {_name(after[key])}" for key in after if key not in before),
        ),
    )


def comparison_markdown(found: Comparison) -> str:
    """Return the comparison as Markdown."""
    parts = ["# Comparison of two reports", "", _summary(found), ""]
    if found.changes:
        heads = ("Figure", "Old", "New", "Change (95 % interval)", "Verdict")
        rows = [
            (c.figure, *_amounts(c), _ratio(c), f"{_SIGNS[c.verdict]} {c.verdict}") for c in found.changes
        ]
        parts += [md.table(heads, rows, right=(1, 2, 3)), ""]
    for title, differences in _sections(found):
        parts += [f"## {title}", "", md.table(("What", "Old", "New"), differences), ""]
    parts += [f"- {md.text(line)}" for line in found.unmatched]
    return "\n".join(parts).rstrip() + "\n"


def comparison_html(found: Comparison) -> Markup:
    """Return the comparison as a part of a page."""
    heads = ("Figure", "Old", "New", "Change (95 % interval)", "Verdict")
    head = tag(
        "tr", *(tag("th", name, class_="figure" if 0 < at < 4 else None) for at, name in enumerate(heads))
    )
    rows = [tag("tr", *_cells(change)) for change in found.changes]
    table = tag("div", tag("table", tag("thead", head), tag("tbody", *rows)), class_="panel")
    return joined(
        tag("p", _summary(found), class_="sub"),
        table if rows else "",
        *(_difference_html(title, differences) for title, differences in _sections(found)),
        *(tag("p", line) for line in found.unmatched),
    )


def comparison_page(old: Report, new: Report) -> str:
    """Return the comparison as a page of its own."""
    top = joined(
        tag("p", "JetLLM: comparison of two reports", class_="over"),
        tag("h1", new.model),
        tag("p", f"{old.started_at} against {new.started_at}", class_="sub"),
    )
    return document(f"{new.model}: comparison", top, tag("section", comparison_html(compare(old, new))))


def _changes(old: Row, new: Row) -> Iterator[Change]:
    for field, label, unit, better in _FIGURES:
        before: Measured | None = getattr(old, field)
        after: Measured | None = getattr(new, field)
        if before is None or after is None:
            continue
        ratio = stats.change(before.samples, after.samples)
        judged = stats.compare(before.samples, after.samples, better)
        yield Change(f"{_name(new)}: {label}", unit, before.median, after.median, ratio, judged)


def _by_key(report: Report) -> dict[tuple[int, int, int], Row]:
    return {(row.prompt_tokens, row.output_tokens, row.concurrency): row for row in report.benchmark}


def _name(row: Row) -> str:
    return f"{words.lengths(row)} \u00d7{row.concurrency}"


def _conditions(report: Report) -> dict[str, str]:
    return {
        "Model": report.model,
        "Variant": report.variant,
        "Mode": report.mode,
        **dict(words.facts(report.environment)),
    }


def _verdicts(report: Report) -> dict[str, str]:
    whole = {"The whole": words.VERDICTS[verdict(report)]}
    return whole | {finding.title: words.VERDICTS[finding.verdict] for finding in report.findings}


def _different(old: dict[str, str], new: dict[str, str]) -> Iterator[tuple[str, str, str]]:
    for key in [*old, *(key for key in new if key not in old)]:
        if old.get(key) != new.get(key):
            yield key, old.get(key, "\u2013"), new.get(key, "\u2013")


def _sections(found: Comparison) -> list[tuple[str, tuple[tuple[str, str, str], ...]]]:
    named = (("Verdicts that differ", found.verdicts), ("Conditions that differ", found.conditions))
    return [(title, differences) for title, differences in named if differences]


def _summary(found: Comparison) -> str:
    judged = [change.verdict for change in found.changes]
    parts = [f"{judged.count(name)} {name}" for name in _TONES if name in judged]
    return f"{len(judged)} figures: {', '.join(parts)}." if judged else "No figure is in both reports."


def _amounts(change: Change) -> tuple[str, str]:
    return words.quantity(change.old, change.unit), words.quantity(change.new, change.unit)


def _ratio(change: Change) -> str:
    if change.ratio is None:
        return "too few samples"
    low, high = change.ratio.low, change.ratio.high
    return f"{change.ratio.estimate:+.1%} ({low:+.1%} to {high:+.1%})"


def _cells(change: Change) -> Iterator[Markup]:
    yield tag("td", change.figure)
    yield from (tag("td", text, class_="figure") for text in (*_amounts(change), _ratio(change)))
    yield tag("td", chip(_TONES[change.verdict], _SIGNS[change.verdict], change.verdict))


def _difference_html(title: str, differences: tuple[tuple[str, str, str], ...]) -> Markup:
    head = tag("tr", *(tag("th", name) for name in ("What", "Old", "New")))
    rows = [
        tag("tr", tag("td", what), tag("td", old, class_="long"), tag("td", new, class_="long"))
        for what, old, new in differences
    ]
    table = tag("table", tag("thead", head), tag("tbody", *rows))
    return joined(tag("h2", title), tag("div", table, class_="panel"))
