"""Measurements: what the harness found on this machine, what of it counts now, and why the rest does not."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import inference
from inference.artifacts import files
from inference.errors import InvalidRequestError, ModelNotFoundError
from inference.registry import Status, append_evidence, load_evidence
from inference.registry.evidence import (
    SEAL,
    VERSION,
    Conditions,
    Evidence,
    EvidenceFile,
    EvidenceRecord,
    Key,
    latest,
)
from inference.registry.evidence_file import record_of

FILE = "evidence.jsonl"
"""In the state directory."""

_MOST_WARNINGS = 5
_FIGURES = ("decode_tokens_per_s", "prefill_tokens_per_s", "ttft_s", "memory_bytes", "quality")
_BEST_FIRST = tuple(Status)
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Reading:
    """The file as it was read, and what of it counts under some conditions."""

    mark: dict[str, Any] | None
    now: Conditions
    file: EvidenceFile
    evidence: dict[Key, Evidence]
    counting: dict[Key, tuple[EvidenceRecord, ...]]
    last: dict[Key, EvidenceRecord]


class Measurements:
    """The evidence file of one machine; cheap to ask, for it is read again only when it has changed.

    Args:
        now: tells the conditions; the same object as long as nothing has changed.
        variants: gives the registered name of a model, or of an alias, and the names of its variants.
    """

    def __init__(
        self,
        path: Path,
        *,
        now: Callable[[], Conditions],
        variants: Callable[[str], tuple[str, Collection[str]]],
    ) -> None:
        self._path = path
        self._now = now
        self._variants = variants
        self._known: _Reading | None = None

    def evidence(self) -> dict[Key, Evidence]:
        """Return what the selector goes by."""
        return self._reading().evidence

    def skipped(self) -> list[str]:
        """Return what of the file is no evidence, a line of text for each reason."""
        return list(self._reading().file.skipped)

    def rows(self, name: str | None = None) -> list[dict[str, Any]]:
        """Return every record, of one model or of all, in the order of the file.

        Each has ``counts``, and in ``lapsed`` what is not as it was.

        Raises:
            ModelNotFoundError: nothing of that name is registered.
        """
        model = None if name is None else self._variants(name)[0]
        reading = self._reading()
        return [
            {**record.model_dump(mode="json"), "counts": not lapsed, "lapsed": list(lapsed)}
            for record in reading.file.records
            if model in (None, record.model)
            for lapsed in (reading.now.lapses(record),)
        ]

    def describe(self, key: Key, declared: Status) -> dict[str, Any]:
        """Return what is shown of a variant: its status, what was measured, and what that needs to count.

        ``lapsed`` is set where there are records and none of them counts: it is of the last one.
        """
        reading = self._reading()
        counting = reading.counting.get(key, ())
        last = None if counting else reading.last.get(key)
        judged = [record for record in counting if record.status is not None]
        status = judged[-1].status if judged else None
        return {
            "status": (status or declared).value,
            "status_source": "declared" if status is None else "measured",
            "engine": reading.now.engines.get(key),
            "weights_sha256": reading.now.weights_sha256.get(key),
            "measured": _measured(counting, judged) if counting else None,
            "lapsed": None if last is None else list(reading.now.lapses(last)),
        }

    def record(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """Keep what was measured on this machine; return the record as it was written.

        What it leaves out of its conditions was not known when it was measured, and is not filled in.
        Only a model that never ran could name no engine: it is the one that would run it now.

        Raises:
            InvalidRequestError: it is no record, or something is not as it was when it was measured.
            ModelNotFoundError: the registry has no such model or variant.
            InsufficientStorageError: it cannot be written.
        """
        checked, now = self._checked(record), self._now()
        if checked.engine is None and checked.decode_tokens_per_s is None:
            would_run = now.engines.get((checked.model, checked.variant))
            checked = checked.model_copy(update={"engine": would_run})
        differing = now.differences(checked)
        if differing:
            name = f"{checked.model}/{checked.variant}"
            raise InvalidRequestError(
                f"{name}: not kept, for it was measured otherwise: {'; '.join(now.lapses(checked))}",
                hint=f"measure it as it is now: jetllm check {checked.model} --variant {checked.variant}",
                param=differing[0],
                details={"differing": list(differing)},
            )
        return append_evidence(self._path, checked).model_dump(mode="json")

    def _checked(self, record: Mapping[str, Any]) -> EvidenceRecord:
        if SEAL in record:
            raise InvalidRequestError(
                f"{SEAL}: expected nothing, got a hash", param=SEAL, hint="leave it out: JetLLM computes it"
            )
        given = {name: value for name, value in record.items() if value is not None}
        tree = {"version": VERSION, "measured_at": _utc_now(), "jetllm": inference.__version__, **given}
        try:
            checked = record_of(tree)
        except (TypeError, ValueError) as error:
            text = str(error).split("\n")[0]
            name = text.partition(":")[0]
            raise InvalidRequestError(
                text,
                param=name if name in EvidenceRecord.model_fields or name in record else None,
                hint="docs/evidence.md lists the keys of a record",
            ) from None
        model, variants = self._variants(checked.model)
        if checked.variant not in variants:
            raise ModelNotFoundError(
                f"{model} has no variant {checked.variant!r}",
                hint=f"its variants: {', '.join(variants)}",
                param="variant",
            )
        return checked.model_copy(update={"model": model})

    def _reading(self) -> _Reading:
        now, mark = self._now(), files.signature(self._path)
        known = self._known
        if known is not None and known.mark == mark and known.now is now:
            return known
        if known is not None and known.mark == mark:
            file = known.file
        else:
            file = EvidenceFile() if mark is None else load_evidence(self._path)
            _warn(file.skipped)
        last = {(record.model, record.variant): record for record in file.records}
        self._known = _Reading(mark, now, file, file.matching(now), file.counting(now), last)
        return self._known


def model_status(declared: Status, variants: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the status of a model: the best one of its variants that are usable here, as described.

    A variant of which nothing was measured has the model's declared status. So a model is incompatible
    only where every way of running it was found to be.
    """
    usable = [each for each in variants.values() if each["usable"]] or list(variants.values())
    best = min(
        usable,
        key=lambda each: (_BEST_FIRST.index(Status(each["status"])), each["status_source"] != "measured"),
    )
    return {
        "status": best["status"],
        "status_source": best["status_source"],
        "declared_status": declared.value,
    }


def _measured(counting: Collection[EvidenceRecord], judged: Collection[EvidenceRecord]) -> dict[str, Any]:
    """Return the last known figures, when the last of them was measured, and what the last verdict found."""
    last = [*judged][-1:]
    return {
        **latest(counting, _FIGURES),
        **latest(counting, ("measured_at",)),
        "issue": last[0].issue if last else None,
    }


def _warn(skipped: Collection[str]) -> None:
    for line in list(skipped)[:_MOST_WARNINGS]:
        logger.warning("a measurement is not used: %s", line)
    if len(skipped) > _MOST_WARNINGS:
        logger.warning("%s has %d such lines in all", FILE, len(skipped))


def _utc_now() -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
