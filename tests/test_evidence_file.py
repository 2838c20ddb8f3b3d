"""The evidence file: one line more, whatever happens."""

from __future__ import annotations

import errno
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from inference.errors import InsufficientStorageError
from inference.measurements import FILE
from inference.registry import (
    EvidenceFile,
    EvidenceRecord,
    append_evidence,
    content_sha256,
    load_evidence,
)

ONE = EvidenceRecord(version=1, model="a", variant="b", decode_tokens_per_s=1.5, ttft_s=0.25)


class TestTheFile:
    """`append_evidence`: one line more, whatever happens."""

    def test_a_record_is_read_back_as_it_was_written(self, tmp_path: Path) -> None:
        """The line is sealed, the file is for everybody to read, and its directory is made."""
        path = tmp_path / "state" / FILE
        written = append_evidence(path, ONE)
        assert load_evidence(path) == EvidenceFile((written,))
        assert written == ONE.model_copy(update={"sha256": written.sha256}) and written.sha256
        line = json.loads(path.read_text())
        assert line["sha256"] == content_sha256(line) and "board" not in line
        assert path.stat().st_mode & 0o777 == 0o644

    @pytest.mark.parametrize(
        ("old", "new"),
        [
            ('"decode_tokens_per_s": 1.5', '"decode_tokens_per_s": 15.0'),
            ('"model": "a"', '"model": "c"'),
            ('"ttft_s": 0.25, ', ""),
            ('"version": 1, ', '"version": 1, "mode": "full", '),
        ],
        ids=["figure", "model", "key-less", "key-more"],
    )
    def test_an_edited_line_is_no_evidence(self, tmp_path: Path, old: str, new: str) -> None:
        """Another figure or name, a key less or more: the seal tells."""
        path = tmp_path / FILE
        for _ in range(2):
            append_evidence(path, ONE)
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new, 1))
        found = load_evidence(path)
        assert len(found.records) == 1
        assert found.skipped == (
            f"{FILE}:1: sha256: is not that of the content: the record was changed after it was written",
        )

    def test_a_torn_last_line_is_closed_first(self, tmp_path: Path) -> None:
        """What a crash left of a line costs neither the record before it nor the one after."""
        path = tmp_path / FILE
        first = append_evidence(path, ONE)
        path.write_bytes(path.read_bytes() + b'{"version": 1, "mod')
        second = append_evidence(path, ONE.model_copy(update={"model": "c"}))
        found = load_evidence(path)
        assert found.records == (first, second) and len(found.skipped) == 1

    def test_many_writers_lose_nothing(self, tmp_path: Path) -> None:
        """Each record has its line, whoever writes at the same time."""
        path = tmp_path / FILE
        names = [f"m{number}" for number in range(60)]
        with ThreadPoolExecutor(6) as pool:
            list(pool.map(lambda n: append_evidence(path, ONE.model_copy(update={"model": n})), names))
        found = load_evidence(path)
        assert sorted(each.model for each in found.records) == sorted(names) and found.skipped == ()

    def test_a_full_disk_leaves_the_file_as_it_was(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Half a line is taken back, and the error says why."""
        path = tmp_path / FILE
        append_evidence(path, ONE)
        before, write, calls = path.read_bytes(), os.write, []

        def half(descriptor: int, data: bytes) -> int:
            calls.append(data)
            if len(calls) > 1:
                raise OSError(errno.ENOSPC, "No space left on device")
            return write(descriptor, data[: len(data) // 2])

        monkeypatch.setattr(os, "write", half)
        with pytest.raises(InsufficientStorageError, match="cannot be kept: No space left"):
            append_evidence(path, ONE)
        assert len(calls) == 2 and path.read_bytes() == before

    def test_a_real_full_device_is_an_error(self, tmp_path: Path) -> None:
        """The kernel's own ENOSPC, and a directory that cannot be made."""
        (tmp_path / FILE).symlink_to("/dev/full")
        with pytest.raises(InsufficientStorageError, match="No space left"):
            append_evidence(tmp_path / FILE, ONE)
        (tmp_path / "file").touch()
        with pytest.raises(InsufficientStorageError, match="cannot be kept") as raised:
            append_evidence(tmp_path / "file" / FILE, ONE)
        assert raised.value.hint

    def test_a_file_that_is_too_large_is_not_made_larger(self, tmp_path: Path) -> None:
        """A record that would make the file unreadable is refused."""
        with (tmp_path / FILE).open("wb") as file:
            file.truncate(64 * 2**20 - 10)
        with pytest.raises(InsufficientStorageError, match="move it aside"):
            append_evidence(tmp_path / FILE, ONE)
