"""The output of a run: its files, and a line of summary for each model."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from phase3 import result
from phase3.report import (
    append_row,
    compare,
    comparison_html,
    comparison_markdown,
    junit,
    markdown,
    page,
    words,
)
from phase3.result import Report, ReportError

CSV = "results.csv"


@dataclass(frozen=True)
class Written:
    """A report and the folder that its files are in."""

    report: Report
    folder: Path


def prepare(out: Path) -> None:
    """Make sure before the work begins that *out* can be written to.

    Raises:
        ReportError: it cannot.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise ReportError(f"{out}: {error.strerror}", hint="choose another folder: --out DIR") from None


def write(report: Report, out: Path, old: Report | None = None) -> Written:
    """Write every form of *report* under *out*, compared with *old*, and add its row to results.csv.

    The folder is named by model, variant and time, so that no earlier report is overwritten.

    Raises:
        ReportError: something cannot be written.
    """
    folder = out / report.model / report.variant / report.started_at.replace(":", "")
    texts = {"report.md": markdown(report), "junit.xml": junit(report)}
    table = None
    if old is not None:
        found = compare(old, report)
        table = comparison_html(found)
        texts["comparison.md"] = comparison_markdown(found)
    texts["report.html"] = page(report, table)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8", errors="replace")
    except OSError as error:
        hint = "choose another folder: --out DIR"
        raise ReportError(f"{error.filename or folder}: {error.strerror}", hint=hint) from None
    result.save(report, folder / "report.json")
    append_row(report, out / CSV)
    return Written(report, folder)


def summary(written: Written) -> dict[str, str | int | float | None]:
    """Return what the summary shows of one model."""
    report = written.report
    row = words.headline(report)
    decode = row.decode_tokens_per_s if row is not None else None
    peaks = [y for _, y in report.series.get("worker_bytes_over_s", ())]
    bad = [finding.check for finding in report.findings if finding.verdict in ("fail", "unfit", "error")]
    return {
        "model": report.model,
        "variant": report.variant,
        "verdict": result.verdict(report),
        "exit_code": result.exit_code(report),
        "decode_tokens_per_s": decode.median if decode is not None else None,
        "ttft_s": row.ttft_s.median if row is not None else None,
        "peak_worker_bytes": max(peaks) if peaks else None,
        "not_passed": ", ".join(bad) or None,
        "report": str(written.folder / "report.html"),
    }


def summary_line(written: Written) -> str:
    """Return the summary of one model as a line of text."""
    row = summary(written)
    name = result.verdict(written.report)
    figures = [
        words.quantity(value, unit)
        for key, unit in (
            ("decode_tokens_per_s", "tokens/s"),
            ("ttft_s", "s"),
            ("peak_worker_bytes", "bytes"),
        )
        if isinstance(value := row[key], float)
    ]
    bad = f" ({row['not_passed']})" if row["not_passed"] else ""
    shown = f": {', '.join(figures)}" if figures else ""
    return f"{words.SIGNS[name]} {row['model']} {row['variant']} {words.VERDICTS[name].lower()}{bad}{shown}"
