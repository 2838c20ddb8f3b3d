"""Evidence: what was measured of a model on one machine, kept as one record a line.

The file is JSON Lines, so that a record is added by appending and a torn or wrong line costs only
itself. A record of version 1::

    {"version": 1, "model": "gpt2", "variant": "transformers", "measured_at": "2026-11-21T10:00:00Z",
     "board": "NVIDIA Jetson Orin Nano", "l4t": "36.4.0", "power_mode": "15W",
     "engine": "transformers 4.57.1", "image": "dustynv/mlc:r36.4.0", "weights_sha256": "<64 hex digits>",
     "decode_tokens_per_s": 21.5, "memory_bytes": 700000000, "quality": null, "status": "verified"}

Every key but the first three may be null or absent: unknown. Another version is skipped and said so.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from inference.registry import strict_json
from inference.registry.problems import NOTHING, dotted, problems, shown
from inference.registry.spec import Bytes, Fraction, Name, Sha256, Spec, Status, Text

VERSION = 1
_MAX_FILE_BYTES = 64 * 2**20

Key = tuple[str, str]
"""A model and its variant."""


@dataclass(frozen=True)
class Evidence:
    """What was measured of a variant on this very machine; ``None`` where nothing was."""

    decode_tokens_per_s: float | None = None
    memory_bytes: int | None = None
    quality: float | None = None
    status: Status | None = None


class EvidenceRecord(Spec):
    """One line of the file: a measurement, and all that must be equal for it to count."""

    version: Annotated[Literal[1], Field(title="form of the record", description="1")]
    model: Annotated[Name, Field(title="its name in the registry")]
    variant: Annotated[Name, Field(title="the variant's name")]
    measured_at: Annotated[Text | None, Field(title="when, in UTC, as RFC 3339 writes it")] = None
    board: Annotated[Text | None, Field(title="the machine's model")] = None
    l4t: Annotated[Text | None, Field(title="its Jetson Linux")] = None
    power_mode: Annotated[Text | None, Field(title="its power mode")] = None
    image: Annotated[Text | None, Field(title="container image that ran the engine")] = None
    engine: Annotated[Text | None, Field(title="engine and its version")] = None
    weights_sha256: Annotated[Sha256 | None, Field(title="hash of the weights")] = None
    decode_tokens_per_s: Annotated[
        Annotated[float, Field(gt=0, le=1_000_000, description="a positive number of tokens/s")] | None,
        Field(title="median decode speed of one sequence"),
    ] = None
    memory_bytes: Annotated[Bytes | None, Field(title="peak while loaded, at the full context")] = None
    quality: Annotated[Fraction | None, Field(title="measured quality")] = None
    status: Annotated[
        Status | None, Field(title="what the harness found", description="a status of models.json")
    ] = None


@dataclass(frozen=True)
class EvidenceFile:
    """The sound records of a file, in its order, and what was skipped: a line of text for each."""

    records: tuple[EvidenceRecord, ...] = ()
    skipped: tuple[str, ...] = ()

    def matching(
        self,
        *,
        board: str | None,
        l4t: str | None,
        power_mode: str | None,
        image: str | None,
        engines: Mapping[Key, str],
        weights_sha256: Mapping[Key, str],
    ) -> dict[Key, Evidence]:
        """Return what counts here: the records that agree in all of this, unknown with unknown only.

        Where several do, the last known figure of each kind counts.

        Args:
            engines: the engine, with its version, that would run each variant; absent: not known.
            weights_sha256: the hash of each variant's weights; absent: not known.
        """
        here = (board, l4t, power_mode, image)
        found: dict[Key, Evidence] = {}
        for record in self.records:
            key = (record.model, record.variant)
            there = (record.board, record.l4t, record.power_mode, record.image)
            what = (record.engine, record.weights_sha256)
            if there == here and what == (engines.get(key), weights_sha256.get(key)):
                found[key] = _newer(found.get(key, Evidence()), record)
        return found


def load_evidence(path: Path) -> EvidenceFile:
    """Read the records of *path*; no file is no evidence, and nothing is ever raised."""
    try:
        with path.open("rb") as file:
            raw = file.read(_MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        return EvidenceFile()
    except OSError as error:
        return EvidenceFile(skipped=(f"{path.name}: {error.strerror}",))
    if len(raw) > _MAX_FILE_BYTES:
        return EvidenceFile(skipped=(f"{path.name}: expected at most {_MAX_FILE_BYTES:,} bytes, got more",))
    records: list[EvidenceRecord] = []
    skipped: list[str] = []
    schema = functools.cache(EvidenceRecord.model_json_schema)
    for number, line in enumerate(raw.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            records.append(_record(line))
        except ValidationError as error:
            skipped += (f"{path.name}:{number}: {text}" for text in _lines(problems(error, schema())))
        except ValueError as error:
            skipped.append(f"{path.name}:{number}: {error}")
    return EvidenceFile(tuple(records), tuple(skipped))


def _record(line: bytes) -> EvidenceRecord:
    """Read one line.

    Raises:
        ValidationError: it is no record of this version.
        ValueError: it is not JSON, or of another version; the text says so.
    """
    try:
        tree, wrong = strict_json.parse(line.decode("utf-8"))
    except ValueError as error:
        raise ValueError(f"not JSON: {error}") from None
    if wrong:
        raise ValueError("; ".join(_lines(iter(wrong.items()))))
    if not isinstance(tree, dict):
        raise ValueError(f"expected an object, got {shown(tree)}")
    version = tree.get("version", NOTHING)
    if isinstance(version, bool) or version != VERSION:
        raise ValueError(f"version: expected {VERSION}, got {shown(version)}")
    return EvidenceRecord.model_validate_json(json.dumps(tree))


def _lines(items: Iterator[tuple[strict_json.Loc, str]]) -> Iterator[str]:
    return (f"{dotted(loc)}: {problem}" if loc else problem for loc, problem in items)


def _newer(old: Evidence, record: EvidenceRecord) -> Evidence:
    figures: dict[str, Any] = {field.name: getattr(record, field.name) for field in fields(Evidence)}
    return replace(old, **{name: value for name, value in figures.items() if value is not None})
