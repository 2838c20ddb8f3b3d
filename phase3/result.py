"""The result of one run of the harness: what was found, what was measured, and its JSON form."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from phase3 import form, stats

SCHEMA_VERSION = 1
_MAX_FILE_BYTES = 256 * 2**20

Verdict = Literal["pass", "fail", "skip", "unfit", "error"]
Mode = Literal["quick", "full", "soak"]
Scalar = str | int | float | bool | None
Series = tuple[tuple[float, float], ...]


class ReportError(Exception):
    """A report cannot be read or written; *hint* is the next thing to do."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n    hint: {self.hint}" if self.hint else self.message


@dataclass(frozen=True)
class Measured:
    """A quantity's raw samples and their summary; made with `measured`."""

    median: float
    p90: float
    p99: float
    min: float
    max: float
    n: int
    samples: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.samples:
            raise ValueError("expected at least one sample, got none")
        if not all(map(math.isfinite, self.samples)):
            raise ValueError("expected finite samples")
        true = stats.summary(self.samples)
        for name in ("median", "p90", "p99", "min", "max", "n"):
            got, wanted = getattr(self, name), getattr(true, name)
            if not math.isclose(got, wanted, rel_tol=1e-9, abs_tol=1e-12):
                raise ValueError(f"{name} is {got}; its samples say {wanted}")


def measured(samples: Sequence[float]) -> Measured:
    """Return *samples* with their summary.

    Raises:
        ValueError: there is none, or one is not finite.
    """
    kept = tuple(float(sample) for sample in samples)
    if not kept:
        raise ValueError("expected at least one sample, got none")
    found = stats.summary(kept)
    return Measured(found.median, found.p90, found.p99, found.min, found.max, found.n, kept)


@dataclass(frozen=True)
class Finding:
    """What one check measured, the limit that it must keep, and its verdict.

    ``pass`` and ``fail`` are judgements; ``skip`` is a check that does not apply, ``unfit`` one that this
    machine, as it is now, cannot answer, ``error`` a defect of the harness itself.

    Args:
        limit_is: whether *value* may be at most or must be at least *limit*; None where there is no limit.
        detail: what was seen. diagnosis: what it looks like, and what to do.
    """

    check: str
    title: str
    verdict: Verdict
    value: float | None = None
    unit: str | None = None
    limit: float | None = None
    limit_is: Literal["at most", "at least"] | None = None
    detail: str | None = None
    diagnosis: str | None = None

    def __post_init__(self) -> None:
        if (self.limit is None) is not (self.limit_is is None):
            raise ValueError("limit and limit_is: expected both or neither")


@dataclass(frozen=True)
class Row:
    """The benchmark of one prompt length, output length and number of concurrent requests.

    Args:
        throughput_tokens_per_s: all output tokens of a round of *concurrency* requests over its time.
    """

    prompt_tokens: int
    output_tokens: int
    concurrency: int
    ttft_s: Measured
    e2e_s: Measured
    itl_s: Measured | None = None
    prefill_tokens_per_s: Measured | None = None
    decode_tokens_per_s: Measured | None = None
    predicted_decode_tokens_per_s: float | None = None
    throughput_tokens_per_s: Measured | None = None

    def __post_init__(self) -> None:
        for name in ("prompt_tokens", "output_tokens", "concurrency"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        predicted = self.predicted_decode_tokens_per_s
        if predicted is not None and predicted <= 0:
            raise ValueError(f"predicted_decode_tokens_per_s: expected a positive number, got {predicted}")


@dataclass(frozen=True)
class Roofline:
    """What bounds the model's speed here; *source* says where the two machine figures come from."""

    bandwidth_bytes_per_s: float
    bytes_per_token: float
    flop_per_token: float
    peak_flop_per_s: float | None = None
    source: str | None = None

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name != "source" and value is not None and value <= 0:
                raise ValueError(f"{item.name}: expected a positive number, got {value}")


@dataclass(frozen=True)
class Report:
    """One run of the harness on one variant of one model.

    Args:
        environment: the record without which nothing is certified; keys carry units, unknown is None.
        started_at: in UTC, as 2026-11-21T16:00:00Z.
        series: lists of (x, y) named ``<quantity with unit>_over_<x>``: ``worker_bytes_over_s``,
            ``worker_bytes_over_generations``, ``worker_bytes_over_cycles``.
        partial: the run was stopped before its end.
    """

    schema_version: Literal[1]
    model: str
    variant: str
    started_at: str
    mode: Mode
    environment: dict[str, Scalar | dict[str, Scalar] | tuple[Scalar, ...]]
    findings: tuple[Finding, ...] = ()
    benchmark: tuple[Row, ...] = ()
    series: dict[str, Series] = field(default_factory=dict)
    roofline: Roofline | None = None
    duration_s: float | None = None
    partial: bool = False

    def __post_init__(self) -> None:
        try:
            datetime.strptime(self.started_at, "%Y-%m-%dT%H:%M:%SZ")
        except ValueError:
            wanted = "a time in UTC such as 2026-11-21T16:00:00Z"
            raise ValueError(f"started_at: expected {wanted}, got {form.shown(self.started_at)}") from None


def verdict(report: Report) -> Verdict:
    """Return the verdict on the whole: an error first, then a failed gate, then an unfit environment.

    A harness that failed cannot be believed in anything; a gate that was judged and failed stays failed
    whatever else could not be judged. A run that judged nothing, or was stopped before its end without a
    failure, has not shown that the model passes: ``unfit``.
    """
    found = {finding.verdict for finding in report.findings}
    if "error" in found:
        return "error"
    if "fail" in found:
        return "fail"
    if "unfit" in found or report.partial or "pass" not in found:
        return "unfit"
    return "pass"


def exit_code(report: Report) -> int:
    """Return 0 for pass, 1 for a failed gate, 2 where it could not be judged, 3 where the harness failed."""
    codes: dict[Verdict, int] = {"pass": 0, "fail": 1, "unfit": 2, "error": 3}
    return codes[verdict(report)]


def to_dict(report: Report) -> dict[str, Any]:
    """Return the JSON form, which `from_dict` reads back."""
    found: dict[str, Any] = form.encode(report)
    return found


def from_dict(data: Any) -> Report:
    """Read the JSON form.

    Raises:
        ReportError: it is not a report, is one of another version, or contradicts itself.
    """
    if not isinstance(data, dict) or "schema_version" not in data:
        raise ReportError("not a report of JetLLM: no schema_version")
    version = data["schema_version"]
    if version != SCHEMA_VERSION or isinstance(version, bool | float):
        raise ReportError(
            f"report of schema version {form.shown(version)}; this JetLLM reads version {SCHEMA_VERSION}",
            hint="run the harness anew, or read it with the JetLLM that wrote it",
        )
    try:
        return form.decode(Report, data)
    except form.FormError as error:
        raise ReportError(f"damaged report: {error}") from None


def dumps(report: Report) -> str:
    """Return the report as JSON text: the same text for the same report."""
    return json.dumps(to_dict(report), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def save(report: Report, path: Path) -> None:
    """Write the report; a reader sees the old file or the whole new one."""
    write_text(path, dumps(report))


def write_text(path: Path, text: str) -> None:
    """Write *text* beside *path*, then put it in its place.

    Raises:
        ReportError: the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            temporary = Path(file.name)
            try:
                file.write(text.encode("utf-8", "replace"))
                file.flush()
                os.fsync(file.fileno())
                temporary.chmod(0o644)
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)
    except OSError as error:
        hint = "choose another folder: --out DIR"
        raise ReportError(f"{path}: cannot be written: {error.strerror}", hint=hint) from None


def load(path: Path) -> Report:
    """Read a report's file.

    Raises:
        ReportError: there is none, or it is broken, foreign or of another version; names *path*.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ReportError(f"{path}: cannot be read: {error.strerror}") from None
    if len(raw) > _MAX_FILE_BYTES:
        raise ReportError(f"{path}: expected at most {_MAX_FILE_BYTES:,} bytes, got more")
    try:
        return from_dict(_parse(raw))
    except ReportError as error:
        raise ReportError(f"{path}: {error.message}", hint=error.hint) from None


def _parse(raw: bytes) -> Any:
    try:
        return json.loads(raw.decode("utf-8"), object_pairs_hook=_without_twins)
    except UnicodeDecodeError as error:
        raise ReportError(f"not JSON: byte {error.start} is not UTF-8") from None
    except RecursionError:
        raise ReportError("not a report of JetLLM: nested too deeply") from None
    except ValueError as error:
        raise ReportError(f"not JSON: {error}") from None


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ReportError("not JSON that can be trusted: an object names a key twice")
    return found


def schema() -> dict[str, Any]:
    """Return the JSON schema that phase3/report.schema.json publishes."""
    return {"title": "Report of JetLLM's harness", **form.schema(Report)}
