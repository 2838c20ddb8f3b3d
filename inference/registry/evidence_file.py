"""The evidence file: a record a line, added by appending; a torn or wrong line costs only itself."""

from __future__ import annotations

import fcntl
import functools
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from inference.errors import InsufficientStorageError
from inference.registry import strict_json
from inference.registry.evidence import SEAL, VERSION, EvidenceFile, EvidenceRecord, content_sha256
from inference.registry.problems import NOTHING, dotted, problems, shown

_MAX_FILE_BYTES = 64 * 2**20
_MODE = 0o644


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
    for number, line in enumerate(raw.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            records.append(_sealed(line))
        except ValueError as error:
            skipped += (f"{path.name}:{number}: {text}" for text in str(error).split("\n"))
    return EvidenceFile(tuple(records), tuple(skipped))


def append_evidence(path: Path, record: EvidenceRecord) -> EvidenceRecord:
    """Add *record* to the file, sealed, and wait until it is on the disk; return it as it stands there.

    Any number of processes may do so at once. What a crash left of a line is closed first.

    Raises:
        InsufficientStorageError: it cannot be written; the file is as it was.
    """
    content = record.model_dump(mode="json", exclude_none=True, exclude={SEAL})
    sealed = {**content, SEAL: content_sha256(content)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, _MODE)
        try:
            with suppress(OSError):  # a mount without locks, on which appending is all there is
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            _append(descriptor, json.dumps(sealed).encode() + b"\n")
        finally:
            os.close(descriptor)
    except OSError as error:
        raise InsufficientStorageError(
            f"{path}: the measurement cannot be kept: {error.strerror}",
            hint="make room on that disk, or let this user write there",
        ) from None
    return record_of(sealed)


def record_of(values: Mapping[str, Any]) -> EvidenceRecord:
    """Check a record's keys and values, its seal not among them.

    Raises:
        TypeError: a value is of a kind that JSON does not have.
        ValueError: it is no record; the text says why, in a line for each key.
    """
    return _checked(_parsed(json.dumps(values)))


def _parsed(text: str) -> dict[str, Any]:
    try:
        tree, wrong = strict_json.parse(text)
    except ValueError as error:
        raise ValueError(f"not JSON: {error}") from None
    if wrong:
        raise ValueError("; ".join(_lines(iter(wrong.items()))))
    if not isinstance(tree, dict):
        raise ValueError(f"expected an object, got {shown(tree)}")
    return tree


def _checked(tree: Mapping[str, Any]) -> EvidenceRecord:
    version = tree.get("version", NOTHING)
    if isinstance(version, bool) or version != VERSION:
        raise ValueError(f"version: expected {VERSION}, got {shown(version)}")
    try:
        return EvidenceRecord.model_validate_json(json.dumps(tree))
    except ValidationError as error:
        raise ValueError("\n".join(_lines(problems(error, _schema())))) from None


@functools.cache
def _schema() -> dict[str, Any]:
    return EvidenceRecord.model_json_schema()


def _sealed(line: bytes) -> EvidenceRecord:
    """Read one line.

    Raises:
        ValueError: it is no record, or not as JetLLM wrote it.
    """
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"not JSON: {error}") from None
    tree = _parsed(text)
    record = _checked(tree)
    if record.sha256 is None:
        raise ValueError(f"{SEAL}: expected the hash of the record's content, got nothing")
    if record.sha256 != content_sha256(tree):
        raise ValueError(f"{SEAL}: is not that of the content: the record was changed after it was written")
    return record


def _append(descriptor: int, line: bytes) -> None:
    """Write *line* as one of its own; undo what was written of it where that fails."""
    size = os.fstat(descriptor).st_size
    torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
    data = b"\n" + line if torn else line
    if size + len(data) > _MAX_FILE_BYTES:
        raise OSError(0, f"it has {size:,} bytes, at most {_MAX_FILE_BYTES:,} are read; move it aside")
    try:
        while data:
            data = data[os.write(descriptor, data) :]
        os.fsync(descriptor)
    except OSError:
        with suppress(OSError):
            os.ftruncate(descriptor, size)
        raise


def _lines(items: Iterator[tuple[strict_json.Loc, str]]) -> Iterator[str]:
    return (f"{dotted(loc)}: {problem}" if loc else problem for loc, problem in items)
