"""The changes to a root file system: all of them are made, or none is.

They are prepared in a directory of the tree itself, so that each is then a rename. A journal written
before the first one says what to take back, to this run after an error or to the next one after a kill.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from containers.flash.boards import FlashError
from inference.artifacts import files

STAGING = ".jetllm-overlay"
_JOURNAL = "journal.json"

Owner = tuple[int, int] | None


class Changes:
    """What is to be put below *root*; nothing shows there before `apply`."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._staging = root / STAGING
        self._targets: list[Path] = []
        self._directories: dict[Path, tuple[int, Owner]] = {}

    def __enter__(self) -> Changes:
        """Take back what a killed run left, and prepare anew."""
        self._revert()
        for name in ("new", "old"):
            (self._staging / name).mkdir(parents=True)
        self._staging.chmod(0o700)
        return self

    def __exit__(self, *error: object) -> None:
        """Remove the preparations; of changes that were begun and not ended, take all back."""
        self._revert()

    @property
    def workspace(self) -> Path:
        """A directory for what is not to be kept."""
        path = self._staging / "workspace"
        path.mkdir(exist_ok=True)
        return path

    def put(self, target: str, data: bytes, mode: int = 0o644, owner: Owner = None) -> None:
        """Write a file; *owner* is its user's and group's number, root's or the caller's by default."""
        path = self._stage(target)
        path.write_bytes(data)
        path.chmod(mode)
        _give(path, owner)

    def want_directory(self, target: str, mode: int, owner: Owner = None) -> None:
        """Say how a directory is to be made where there is none; others are root's and for all to read."""
        self._directories[self._root / target] = (mode, owner)

    def put_link(self, target: str, to: str) -> None:
        """Make a symbolic link."""
        self._stage(target).symlink_to(to)

    def put_directory(self, target: str, sources: Iterable[tuple[str, Path]], *, move: bool = False) -> None:
        """Write a directory in place of the one that is there.

        Args:
            sources: names in it, and the files to copy there.
            move: move them instead; they lie in the `workspace`.
        """
        path = self._stage(target)
        path.mkdir()
        for name, source in sources:
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            if move:
                source.rename(path / name)
            else:
                shutil.copyfile(source, path / name)
            (path / name).chmod(0o644)
        for parent, _, _ in os.walk(path):
            Path(parent).chmod(0o755)

    def apply(self) -> None:
        """Make all the changes."""
        made = self._missing_directories()
        journal = {"targets": [str(path) for path in self._targets], "made": [str(path) for path in made]}
        for path in files.below(self._staging / "new"):
            if not path.is_symlink():
                files.fsync(path)
        files.write_atomic(self._staging / _JOURNAL, json.dumps(journal).encode())
        for directory in made:
            mode, owner = self._directories.get(directory, (0o755, None))
            directory.mkdir(exist_ok=True)
            directory.chmod(mode)
            _give(directory, owner)
        for index, target in enumerate(self._targets):
            if os.path.lexists(target):
                target.rename(self._staging / "old" / str(index))
            (self._staging / "new" / str(index)).rename(target)
        for directory in {path.parent for path in self._targets}:
            files.fsync(directory)
        # From here on they stand.
        (self._staging / _JOURNAL).unlink()
        files.fsync(self._staging)

    def _stage(self, target: str) -> Path:
        path = self._root / target
        # A link in the tree that leads out of it would have us write into the running system.
        if not path.parent.resolve().is_relative_to(self._root.resolve()):
            raise FlashError(
                f"{path.parent} leads out of the root file system, to {path.parent.resolve()}",
                hint="unpack NVIDIA's sample root file system anew",
            )
        self._targets.append(path)
        return self._staging / "new" / str(len(self._targets) - 1)

    def _missing_directories(self) -> list[Path]:
        """Return the directories that have to be made, those above before those in them."""
        wanted = {parent for path in self._targets for parent in path.parents}
        return sorted(path for path in wanted if self._root in path.parents and not path.is_dir())

    def _revert(self) -> None:
        with suppress(FileNotFoundError):
            journal = json.loads((self._staging / _JOURNAL).read_bytes())
            for index, target in reversed(list(enumerate(map(Path, journal["targets"])))):
                if not os.path.lexists(self._staging / "new" / str(index)):
                    files.remove(target)
                with suppress(FileNotFoundError):
                    (self._staging / "old" / str(index)).rename(target)
            for directory in reversed(journal["made"]):
                with suppress(OSError):
                    Path(directory).rmdir()
        files.remove(self._staging)


def _give(path: Path, owner: Owner) -> None:
    if owner is not None and os.geteuid() == 0:
        os.chown(path, *owner)
