"""The CSV row: one line per report in a file that grows."""

from __future__ import annotations

import csv
import fcntl
import io
from pathlib import Path

from phase3.report import words
from phase3.report.markup import clean
from phase3.result import Measured, Report, ReportError, exit_code, verdict

FACTS = (
    "board",
    "cpu_model",
    "l4t",
    "power_mode",
    "image",
    "engine",
    "quantization",
    "context_tokens",
)
_FORMULA = ("=", "+", "-", "@", "\t")


def append_row(report: Report, path: Path) -> None:
    """Append the report's row to *path*, under a header that is written once.

    Raises:
        ReportError: the file has other columns, or cannot be written.
    """
    row = {name: _cell(value) for name, value in _values(report).items()}
    header = _line(list(row))
    try:
        with path.open("a+", encoding="utf-8", newline="") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            found = file.read()
            if found and not found.startswith(header):
                hint = f"move it away: mv {path} {path}.old"
                raise ReportError(f"{path}: has other columns than this JetLLM writes", hint=hint)
            torn = "" if not found or found.endswith("\n") else "\r\n"
            file.write(("" if found else header) + torn + _line(list(row.values())))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise ReportError(f"{path}: cannot be appended to: {reason}") from None


def _values(report: Report) -> dict[str, str | int | float | None]:
    row = words.headline(report)
    facts = {name: _text(report.environment.get(name)) for name in FACTS}
    verdicts = [finding.verdict for finding in report.findings]
    return {
        "started_at": report.started_at,
        "model": report.model,
        "variant": report.variant,
        "mode": report.mode,
        "partial": str(report.partial).lower(),
        "verdict": verdict(report),
        "exit_code": exit_code(report),
        "checks_passed": verdicts.count("pass"),
        "checks_failed": verdicts.count("fail"),
        "failed": " ".join(finding.check for finding in report.findings if finding.verdict == "fail"),
        **facts,
        "prompt_tokens": row.prompt_tokens if row else None,
        "output_tokens": row.output_tokens if row else None,
        **_figures("ttft_s", row.ttft_s if row else None),
        **_figures("itl_s", row.itl_s if row else None),
        **_figures("decode_tokens_per_s", row.decode_tokens_per_s if row else None),
        **_figures("prefill_tokens_per_s", row.prefill_tokens_per_s if row else None),
        "predicted_decode_tokens_per_s": row.predicted_decode_tokens_per_s if row else None,
    }


def _figures(name: str, found: Measured | None) -> dict[str, float | None]:
    return {f"{name}_median": found.median if found else None, f"{name}_p99": found.p99 if found else None}


def _text(value: object) -> str | int | float | None:
    return value if value is None or isinstance(value, str | int | float) else str(value)


def _cell(value: str | int | float | None) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        return repr(value)
    text = " ".join(clean(value).split())
    return f"'{text}" if text.startswith(_FORMULA) else text  # a spreadsheet would run it


def _line(cells: list[str]) -> str:
    out = io.StringIO()
    csv.writer(out).writerow(cells)
    return out.getvalue()
