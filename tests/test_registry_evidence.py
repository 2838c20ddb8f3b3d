"""Evidence: what was measured counts on the very machine, engine and weights that it was measured with."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from inference.registry import Conditions, Evidence, Status, content_sha256, load_evidence

SHA256 = "a" * 64
RECORD: dict[str, Any] = {
    "version": 1,
    "model": "gpt2",
    "variant": "transformers",
    "measured_at": "2026-11-21T10:00:00Z",
    "board": "Orin Nano",
    "l4t": "36.4.0",
    "power_mode": "15W",
    "engine": "transformers 4.57.1",
    "image": "dustynv/mlc:r36.4.0",
    "weights_sha256": SHA256,
    "decode_tokens_per_s": 21.5,
    "memory_bytes": 700_000_000,
    "quality": None,
    "status": "verified",
}
KEY = ("gpt2", "transformers")
HERE = Conditions(
    board="Orin Nano",
    l4t="36.4.0",
    power_mode="15W",
    image="dustynv/mlc:r36.4.0",
    engines={KEY: "transformers 4.57.1"},
    weights_sha256={KEY: SHA256},
)
MEASURED = Evidence(21.5, 700_000_000, None, Status.VERIFIED)


def write(tmp_path: Path, *lines: Any) -> Path:
    """A file of these records, sealed, or texts."""
    path = tmp_path / "evidence.jsonl"
    path.write_text(
        "".join(f"{line if isinstance(line, str) else json.dumps(sealed(line))}\n" for line in lines)
    )
    return path


def sealed(record: Any) -> Any:
    """The record with the hash of its content."""
    return {**record, "sha256": content_sha256(record)}


def test_a_record_counts_where_it_was_measured(tmp_path: Path) -> None:
    """Same machine, engine, image and weights: its figures and its status."""
    found = load_evidence(write(tmp_path, RECORD))
    assert found.skipped == ()
    assert found.matching(HERE) == {KEY: MEASURED}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("board", "AGX Orin"),
        ("l4t", "36.4.3"),
        ("power_mode", "25W"),
        ("image", "dustynv/mlc:r36.2.0"),
        ("engines", {KEY: "transformers 4.57.2"}),
        ("weights_sha256", {KEY: "b" * 64}),
    ],
)
def test_a_record_of_anything_else_does_not(tmp_path: Path, field: str, value: Any) -> None:
    """One difference is enough, and so is not knowing on one side; not knowing on both is agreement."""
    record_key = {"engines": "engine"}.get(field, field)
    unknown: Any = {} if isinstance(value, dict) else None
    known = load_evidence(write(tmp_path, RECORD))
    assert known.matching(replace(HERE, **{field: value})) == {}
    assert known.matching(replace(HERE, **{field: unknown})) == {}
    blind = load_evidence(write(tmp_path, {**RECORD, record_key: None}))
    assert blind.matching(HERE) == {}
    assert blind.matching(replace(HERE, **{field: unknown})) == {KEY: MEASURED}


def test_the_last_known_figure_counts(tmp_path: Path) -> None:
    """A later record replaces what it knows and leaves the rest."""
    later = {**RECORD, "decode_tokens_per_s": 30, "memory_bytes": None, "status": None, "quality": 0.5}
    found = load_evidence(write(tmp_path, RECORD, later)).matching(HERE)
    assert found == {KEY: Evidence(30.0, 700_000_000, 0.5, Status.VERIFIED)}


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("{", "not JSON: "),
        ("[]", "expected an object, got a list"),
        ("\ufeff{}", "not JSON: "),
        ("[" * 100_000, "not JSON: nested deeper than 32"),
        ({**RECORD, "version": 2}, "version: expected 1, got 2"),
        ({**RECORD, "version": True}, "version: expected 1, got true"),
        ({}, "version: expected 1, got nothing"),
        ({**RECORD, "speed": 3}, "speed: unknown key"),
        ({**RECORD, "memory_byte": 3}, "memory_byte: unknown key; did you mean 'memory_bytes'?"),
        (
            {**RECORD, "decode_tokens_per_s": -1},
            "decode_tokens_per_s: expected a positive number of tokens/s",
        ),
        ({**RECORD, "status": "good"}, "status: expected a status of models.json, got 'good'"),
        ({"version": 1, "model": "a"}, "variant: expected a name of 1 to 96 letters"),
        (json.dumps(RECORD), "sha256: expected the hash of the record's content, got nothing"),
        (json.dumps({**sealed(RECORD), "decode_tokens_per_s": 215}), "sha256: is not that of the content"),
        (json.dumps({**sealed(RECORD), "sha256": "short"}), "sha256: expected a SHA-256"),
        ('{"version": 1, "version": 1}', "version: expected this key once, found it again"),
        ('{"version": 1, "quality": NaN}', "quality: expected a finite number, got NaN"),
        ({**RECORD, "board": "\ud800"}, "board: expected valid Unicode text"),
    ],
)
def test_a_bad_record_hides_no_other(tmp_path: Path, line: Any, why: str) -> None:
    """It is skipped with its line and the reason; the records around it count."""
    found = load_evidence(write(tmp_path, {**RECORD, "variant": "a"}, line, RECORD))
    assert [record.variant for record in found.records] == ["a", "transformers"]
    assert len(found.skipped) == 1
    assert found.skipped[0].startswith(f"evidence.jsonl:2: {why}")
    found.skipped[0].encode()


def test_a_torn_last_line_and_bytes_that_are_no_text_are_skipped(tmp_path: Path) -> None:
    """A crash in the middle of a write costs that record only."""
    path = write(tmp_path, RECORD)
    path.write_bytes(path.read_bytes() + b'\n{"model": "\xff"}\n{"version": 1, "mod')
    found = load_evidence(path)
    assert len(found.records) == 1
    assert [line.split(": ")[0] for line in found.skipped] == ["evidence.jsonl:3", "evidence.jsonl:4"]


def test_no_file_is_no_evidence(tmp_path: Path) -> None:
    """An absent file says nothing; one that cannot be read is reported, and so is a huge one."""
    assert load_evidence(tmp_path / "absent") == load_evidence(write(tmp_path))
    assert load_evidence(tmp_path).skipped == (f"{tmp_path.name}: Is a directory",)
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(65 * 2**20)
    found = load_evidence(tmp_path / "huge")
    assert found.records == ()
    assert found.skipped == ("huge: expected at most 67,108,864 bytes, got more",)
