"""The Markdown report: what the page says, without the plots."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from phase3.report import words
from phase3.report.markup import clean
from phase3.result import Finding, Measured, Report, Row, exit_code, verdict

_MEANT = re.compile(r"([\\`*_\[\]<>|~#])")


def markdown(report: Report) -> str:
    """Return the report as Markdown; the same text for the same report."""
    name = verdict(report)
    parts = [
        f"# {text(report.model)}: {words.VERDICTS[name].lower()}",
        "",
        f"{words.says(report, name)} ({words.counted(report)}; exit code {exit_code(report)})",
        "",
        f"Variant {text(report.variant)}, {report.mode} run, started {report.started_at}.",
        "",
        *_findings(report),
        *_benchmark(report),
        *_environment(report),
    ]
    return "\n".join(parts).rstrip() + "\n"


def text(raw: str) -> str:
    """Return *raw* on one line and without a meaning in Markdown or HTML."""
    line = " ".join(clean(raw).split()).replace("&", "&amp;")
    return _MEANT.sub(r"\\\1", line).replace("\\<", "&lt;").replace("\\>", "&gt;")


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Return a table; the columns *right* are of numbers."""
    rule = ["---:" if column in right else "---" for column in range(len(heads))]
    lines = [heads, rule, *([text(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _findings(report: Report) -> Iterator[str]:
    if report.findings:
        heads = ("Check", "Verdict", "Measured", "Limit", "Detail")
        yield "## Checks"
        yield ""
        yield table(heads, [_finding(finding) for finding in report.findings], right=(2, 3))
        yield ""


def _finding(finding: Finding) -> tuple[str, ...]:
    detail = ". ".join(part.rstrip(".") for part in (finding.detail, finding.diagnosis) if part)
    said = f"{words.SIGNS[finding.verdict]} {words.VERDICTS[finding.verdict]}"
    return finding.title, said, words.value(finding), words.limit(finding), detail


def _benchmark(report: Report) -> Iterator[str]:
    if not report.benchmark:
        return
    heads = (
        "Tokens in \u2192 out",
        "At once",
        "First token (p99)",
        "Between tokens (p99)",
        "Prefill tokens/s",
        "Decode tokens/s",
        "Predicted tokens/s",
        "All together tokens/s",
        "Whole request (p99)",
        "Runs",
    )
    yield "## Benchmark"
    yield ""
    yield "Medians; the 99th percentile in brackets."
    yield ""
    yield table(heads, [_row(row) for row in report.benchmark], right=range(1, len(heads)))
    yield ""


def _row(row: Row) -> tuple[str, ...]:
    predicted = row.predicted_decode_tokens_per_s
    return (
        words.lengths(row),
        str(row.concurrency),
        _time(row.ttft_s),
        _time(row.itl_s),
        _rate(row.prefill_tokens_per_s),
        _rate(row.decode_tokens_per_s),
        "\u2013" if predicted is None else words.number(predicted),
        _rate(row.throughput_tokens_per_s),
        _time(row.e2e_s),
        str(row.e2e_s.n),
    )


def _time(times: Measured | None) -> str:
    if times is None:
        return "\u2013"
    return f"{words.quantity(times.median, 's')} ({words.quantity(times.p99, 's')})"


def _rate(rate: Measured | None) -> str:
    return "\u2013" if rate is None else words.number(rate.median)


def _environment(report: Report) -> Iterator[str]:
    yield "## Environment"
    yield ""
    yield table(("What", "Value"), words.facts(report.environment))
