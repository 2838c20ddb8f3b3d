"""The changes of the flash overlay: all of them are made, or none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from containers.flash.changes import STAGING, Changes
from tests.documents import ROOT
from tests.linux_for_tegra import (
    content,
)

PREPARED = """
import os, sys
from pathlib import Path
from containers.flash.changes import Changes
root, last = Path(sys.argv[1]), int(sys.argv[2])
real, count = Path.rename, 0

def rename(self, target):
    global count
    if count == last:
        os._exit(9)
    count += 1
    return real(self, target)

Path.rename = rename
with Changes(root) as changes:
    changes.put("etc/new/one", b"1")
    changes.put("etc/old", b"2")
    changes.put_link("etc/link", "to")
    changes.put_directory("var/pool", [("a", root / "etc/old")])
    changes.apply()
print(count)
"""


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A root file system with something to replace."""
    root = tmp_path / "rootfs"
    (root / "etc").mkdir(parents=True)
    (root / "etc/old").write_text("0")
    (root / "etc/link").symlink_to("from")
    (root / "var/pool").mkdir(parents=True)
    (root / "var/pool/z").write_text("z")
    return root


def prepared(root: Path, last: int) -> subprocess.CompletedProcess[str]:
    """Make four changes in a process of its own, which is killed before rename number *last*."""
    return subprocess.run(
        [sys.executable, "-c", PREPARED, root, str(last)], cwd=ROOT, capture_output=True, text=True
    )


def test_a_kill_leaves_what_the_next_run_takes_back(small: Path) -> None:
    """Killed at any rename, the next run finds the tree as it was before, and then makes all the changes."""
    before = content(small)
    done = prepared(small, 1000)
    renames = int(done.stdout)
    after = content(small)
    assert (small / "etc/new/one").read_bytes() == b"1"
    assert [path.name for path in (small / "var/pool").iterdir()] == ["a"]
    assert STAGING not in after
    assert renames == 7
    with Changes(small) as changes:
        changes.put("etc/old", b"0")
        changes.put_link("etc/link", "from")
        changes.put_directory("var/pool", [])
        changes.apply()
    (small / "etc/new/one").unlink()
    (small / "etc/new").rmdir()
    (small / "var/pool/z").write_text("z")
    assert content(small) == before
    for last in range(renames):
        assert prepared(small, last).returncode == 9
        assert content(small) != before
        with Changes(small):
            assert {name: each for name, each in content(small).items() if STAGING not in name} == before
        assert content(small) == before


def test_an_error_takes_everything_back(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fails in the middle leaves the tree as it was."""
    before = content(small)
    real = Path.rename
    count = 0

    def rename(self: Path, target: Path) -> Path:
        nonlocal count
        count += 1
        if count == 3:
            raise OSError(5, "Input/output error")
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(OSError, match="Input/output"), Changes(small) as changes:
        changes.put("etc/new/one", b"1")
        changes.put("etc/old", b"2")
        changes.put("etc/link", b"3")
        changes.apply()
    assert content(small) == before
