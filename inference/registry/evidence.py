"""Evidence: what was measured of a model on one machine, and when it counts.

A record of version 1::

    {"version": 1, "model": "gpt2", "variant": "transformers", "measured_at": "2026-11-21T10:00:00Z",
     "board": "orin-nano-8gb", "l4t": "36.4.0", "power_mode": "15W", "image": "dustynv/mlc:r36.4.0",
     "engine": "torch 2.9.1, transformers 4.57.1", "weights_sha256": "<64 hex digits>",
     "decode_tokens_per_s": 21.5, "memory_bytes": 700000000, "status": "verified",
     "report_sha256": "<64 hex digits>", "sha256": "<64 hex digits>"}

Every key but the first three and the last may be null or absent: unknown. `content_sha256` says what the
last one is; docs/evidence.md says what is done with all of it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal

from pydantic import Field

from inference.registry.sources import Bytes, Sha256, Spec
from inference.registry.spec import Fraction, Name, Status, Text

VERSION = 1
SEAL = "sha256"
"""The key of a record's own hash."""

CONDITIONS = ("board", "l4t", "power_mode", "image", "engine", "weights_sha256")
"""What has to be as it was for a record to count."""

_SHOWN_DIGITS = 12

Key = tuple[str, str]
"""A model and its variant."""

_Rate = Annotated[float, Field(gt=0, le=1_000_000, description="a positive number of tokens/s")]
_Seconds = Annotated[float, Field(gt=0, le=1_000_000, description="a positive number of seconds")]


@dataclass(frozen=True)
class Evidence:
    """What was measured of a variant on this very machine; ``None`` where nothing was."""

    decode_tokens_per_s: float | None = None
    memory_bytes: int | None = None
    quality: float | None = None
    status: Status | None = None


class EvidenceRecord(Spec):
    """A measurement, and all that must be equal for it to count."""

    version: Annotated[Literal[1], Field(title="form of the record", description="1")]
    model: Annotated[Name, Field(title="its name in the registry")]
    variant: Annotated[Name, Field(title="the variant's name")]
    measured_at: Annotated[Text | None, Field(title="when, in UTC, as RFC 3339 writes it")] = None
    board: Annotated[Text | None, Field(title="our name of the machine's module")] = None
    l4t: Annotated[Text | None, Field(title="its Jetson Linux")] = None
    power_mode: Annotated[Text | None, Field(title="its power mode")] = None
    image: Annotated[Text | None, Field(title="container image that ran the engine")] = None
    engine: Annotated[Text | None, Field(title="packages of the engine with their versions")] = None
    weights_sha256: Annotated[Sha256 | None, Field(title="hash of the weights, or for MLC of the build")] = (
        None
    )
    decode_tokens_per_s: Annotated[_Rate | None, Field(title="median decode speed of one sequence")] = None
    prefill_tokens_per_s: Annotated[_Rate | None, Field(title="median prefill speed of one sequence")] = None
    ttft_s: Annotated[_Seconds | None, Field(title="median time to the first token")] = None
    memory_bytes: Annotated[Bytes | None, Field(title="peak while loaded, at the full context")] = None
    quality: Annotated[Fraction | None, Field(title="measured quality, on the scale of models.json")] = None
    status: Annotated[
        Status | None, Field(title="what the harness found", description="a status of models.json")
    ] = None
    issue: Annotated[Text | None, Field(title="which checks failed, and how")] = None
    mode: Annotated[
        Literal["quick", "full", "soak"] | None,
        Field(title="how much was measured", description="quick, full or soak"),
    ] = None
    jetllm: Annotated[Text | None, Field(title="version of JetLLM that wrote the record")] = None
    report_sha256: Annotated[Sha256 | None, Field(title="hash of the report that it comes from")] = None
    sha256: Annotated[Sha256 | None, Field(title="hash of the record's other keys")] = None


@dataclass(frozen=True)
class Conditions:
    """What measurements depend on, as it is now; what is absent or ``None`` is not known.

    Args:
        engines: the engine that would run each variant, loaded or not: its packages and their versions.
        weights_sha256: the hash of what would be loaded for each variant, where that is on this machine.
    """

    board: str | None
    l4t: str | None
    power_mode: str | None
    image: str | None
    engines: Mapping[Key, str]
    weights_sha256: Mapping[Key, str]

    def of(self, key: Key) -> dict[str, str | None]:
        """Return each of `CONDITIONS` for a variant."""
        machine = {name: getattr(self, name) for name in CONDITIONS[:4]}
        return {**machine, "engine": self.engines.get(key), "weights_sha256": self.weights_sha256.get(key)}

    def differences(self, record: EvidenceRecord) -> tuple[str, ...]:
        """Return which of `CONDITIONS` is not as it was; unknown agrees with unknown only."""
        now = self.of((record.model, record.variant))
        return tuple(name for name in CONDITIONS if getattr(record, name) != now[name])

    def lapses(self, record: EvidenceRecord) -> tuple[str, ...]:
        """Say of each difference what it was and what it is; nothing where the record counts."""
        now = self.of((record.model, record.variant))
        return tuple(_lapse(name, getattr(record, name), now[name]) for name in self.differences(record))


@dataclass(frozen=True)
class EvidenceFile:
    """The sound records of a file, in its order, and what was skipped: a line of text for each."""

    records: tuple[EvidenceRecord, ...] = ()
    skipped: tuple[str, ...] = ()

    def counting(self, now: Conditions) -> dict[Key, tuple[EvidenceRecord, ...]]:
        """Return the records that count, by variant."""
        found: dict[Key, tuple[EvidenceRecord, ...]] = {}
        for record in self.records:
            if not now.differences(record):
                key = (record.model, record.variant)
                found[key] = (*found.get(key, ()), record)
        return found

    def matching(self, now: Conditions) -> dict[Key, Evidence]:
        """Return what counts; where several records do, the last known figure of each kind."""
        names = [field.name for field in fields(Evidence)]
        return {key: Evidence(**latest(records, names)) for key, records in self.counting(now).items()}


def latest(records: Iterable[EvidenceRecord], names: Iterable[str]) -> dict[str, Any]:
    """Return the last known value of each of the fields *names*."""
    known = [vars(record) for record in records]
    return {
        name: next((values[name] for values in reversed(known) if values[name] is not None), None)
        for name in names
    }


def content_sha256(record: Mapping[str, Any]) -> str:
    """Return the hash that seals a record: that of its JSON without the key "sha256".

    Its keys are sorted, there is no space in it, and it is ASCII. It tells a line that was edited or
    damaged from one that JetLLM wrote; it is no signature, for whoever can write the file can compute it.
    """
    content = {name: value for name, value in record.items() if name != SEAL}
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _lapse(name: str, then: str | None, now: str | None) -> str:
    if name == "weights_sha256":
        return f"weights: measured with {_short(then)}, now {'not here' if now is None else _short(now)}"
    return f"{name}: measured with {then or 'unknown'}, now {now or 'unknown'}"


def _short(sha256: str | None) -> str:
    return "unknown" if sha256 is None else sha256[:_SHOWN_DIGITS]
