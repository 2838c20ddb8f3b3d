"""The evidence: what a report has proven, in the form of the registry's records."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from phase3.report import words
from phase3.result import Report, verdict

_UNUSABLE = frozenset({"load", "coherence"})


def record_of(report: Report, path: Path) -> dict[str, Any] | None:
    """Return the record that the registry keeps; ``None`` where the report proves nothing.

    It names the SHA-256 of the report's file at *path*: `sha256sum report.json` says the same.

    A quick run measures and judges nothing for good: its record has no status. A partial run, one on an
    unfit machine and one in which the harness failed leave no record at all.
    """
    if report.partial or verdict(report) not in ("pass", "fail"):
        return None
    row = words.headline(report)
    environment = report.environment
    peak = [y for _, y in report.series.get("worker_bytes_over_s", ())]
    failed = [finding for finding in report.findings if finding.verdict == "fail"]
    return {
        "version": 1,
        "model": report.model,
        "variant": report.variant,
        "measured_at": report.started_at,
        **{key: environment.get(key) for key in ("board", "l4t", "power_mode", "image", "engine")},
        "weights_sha256": environment.get("weights_sha256"),
        "decode_tokens_per_s": _median(row and row.decode_tokens_per_s),
        "ttft_s": _median(row and row.ttft_s),
        "prefill_tokens_per_s": _median(row and row.prefill_tokens_per_s),
        "memory_bytes": round(max(peak)) if peak else None,
        "mode": report.mode,
        "status": None if report.mode == "quick" else _status({finding.check for finding in failed}),
        "issue": "; ".join(f"{f.title}: {f.detail or words.value(f)}" for f in failed)[:500] or None,
        "report_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }


def _status(failed: set[str]) -> str:
    if not failed:
        return "verified"
    return "incompatible" if failed & _UNUSABLE else "experimental"


def _median(figure: Any) -> float | None:
    return None if figure is None else float(figure.median)


def shown(record: Mapping[str, Any]) -> str:
    """Return in a line what was kept."""
    status = record["status"] or "measured, not judged"
    return f"evidence kept: {record['model']} {record['variant']} is {status}"
