"""File operations: what an ended write leaves is removed, and nothing else."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

from inference.artifacts.files import TEMPORARY_PREFIX, below, sweep_temporaries


def test_only_abandoned_temporaries_are_swept(tmp_path: Path) -> None:
    """A temporary of yesterday goes; one that may still be written, and every other file, stays."""
    yesterday = time.time() - 86_400
    old, young, other = (tmp_path / name for name in (f"{TEMPORARY_PREFIX}a", f"{TEMPORARY_PREFIX}b", "c"))
    for path in (old, young, other):
        path.write_text("x")
    os.utime(old, (yesterday, yesterday))
    os.utime(other, (yesterday, yesterday))
    sweep_temporaries(tmp_path)
    assert sorted(tmp_path.iterdir()) == [young, other]


def test_a_directory_that_is_not_there_is_swept_in_silence(tmp_path: Path) -> None:
    """The first start has no state yet."""
    sweep_temporaries(tmp_path / "none")


def test_a_directory_that_goes_under_the_walk_is_no_error(tmp_path: Path) -> None:
    """pip removes directories while its progress is looked at: a pull must not fail for that.

    Both are listed when the first is entered; the other is gone when its turn comes.
    """
    both = {tmp_path / name for name in ("a", "b")}
    for each in both:
        each.mkdir()
        (each / "file").touch()
    walk = below(tmp_path)
    entered = next(walk).parent
    shutil.rmtree((both - {entered}).pop())
    assert list(walk) == []
