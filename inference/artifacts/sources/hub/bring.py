"""The parts: the files of a snapshot on their way into the store, each checked as it is complete."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inference.artifacts import files
from inference.artifacts.sources import disk
from inference.artifacts.sources.blob import not_the_file
from inference.artifacts.sources.download import Download, Patience
from inference.artifacts.sources.hub.listing import RemoteFile
from inference.artifacts.sources.progress import Meter, Progress, Report
from inference.artifacts.sources.web import Limits
from inference.artifacts.store import Store
from inference.errors import CancelledError

_Found = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Parts:
    """The files of one commit that a variant takes, as far as they are in *directory*.

    ``files/`` has the complete ones, by their names; ``downloads/`` the others, each in a directory of
    its own, as `Download` leaves them.
    """

    remote: tuple[RemoteFile, ...]
    urls: Mapping[str, str]
    headers: Mapping[str, str]
    directory: Path
    name: str

    @property
    def total_bytes(self) -> int | None:
        """Bytes of all files, where the hub says it of each."""
        sizes = [each.bytes for each in self.remote]
        return None if None in sizes else sum(size or 0 for size in sizes)

    @property
    def done_bytes(self) -> int:
        """Bytes at hand."""
        return sum(self._done_bytes(each) for each in self.remote)

    @property
    def missing_bytes(self) -> int:
        """Bytes that are still to be written, as far as it is known."""
        return sum(max(0, (each.bytes or 0) - self._done_bytes(each)) for each in self.remote)

    def bring(self, limits: Limits, patience: Patience, report: Report, store: Store) -> _Found:
        """Bring what is missing; return the SHA-256 and size of every file.

        Raises:
            UnsafeArtifactError: what came is not what the hub says; it is removed.
            Interrupted, Refused, CancelledError: what came stays.
        """
        meter = Meter(report, "download", self.total_bytes, self.done_bytes)
        found: _Found = {}
        for each in self.remote:
            path = self._path(each)
            if not path.is_file() or each.bytes not in (None, path.stat().st_size):
                self._download(each, meter, limits, patience, store)
            sha256 = each.is_at(path, lambda _: limits.look())
            if sha256 is None:
                path.unlink()
                raise not_the_file(f"{self.name}: {each.name}: not the bytes that the hub says it has")
            found[each.name] = {"sha256": sha256, "bytes": path.stat().st_size}
        meter.show(sum(each["bytes"] for each in found.values()))
        return found

    def finish(self) -> Path:
        """Return the directory with the files and nothing else."""
        files.remove(self.directory / "downloads")
        return self.directory / "files"

    def _download(
        self,
        remote: RemoteFile,
        meter: Meter,
        limits: Limits,
        patience: Patience,
        store: Store,
    ) -> None:
        others = meter.done_bytes - self._done_bytes(remote)

        def report(progress: Progress) -> None:
            meter.show(others + progress.done_bytes)

        path = self._path(remote)
        files.remove(path)
        if remote.bytes == 0:  # a server answers a range of nothing as it likes
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            return
        data = Download(
            self.urls[remote.name],
            self._scratch(remote),
            total_bytes=remote.bytes,
            limits=limits,
            patience=patience,
            room=lambda missing_bytes: disk.require_space(store.root, self.name, missing_bytes),
            report=report,
            headers=self.headers,
        ).run()
        path.parent.mkdir(parents=True, exist_ok=True)
        data.replace(path)
        files.remove(self._scratch(remote))

    def _path(self, remote: RemoteFile) -> Path:
        return self.directory / "files" / remote.name

    def _scratch(self, remote: RemoteFile) -> Path:
        return self.directory / "downloads" / hashlib.sha256(remote.name.encode()).hexdigest()[:16]

    def _done_bytes(self, remote: RemoteFile) -> int:
        for path in (self._path(remote), self._scratch(remote) / "data"):
            if path.is_file():
                size = path.stat().st_size
                return size if remote.bytes is None else min(size, remote.bytes)
        return 0


def copy(
    sources: Mapping[str, Path], target: Path, report: Report, cancelled: Callable[[], bool], name: str
) -> _Found:
    """Copy files, links followed, into the directory *target*; return the SHA-256 and size of each."""
    meter = Meter(report, "copy", sum(path.stat().st_size for path in sources.values()))
    found: _Found = {}
    for inside, source in sources.items():
        path = target / inside
        path.parent.mkdir(parents=True, exist_ok=True)
        digest, size = hashlib.sha256(), 0
        with path.open("wb") as file:
            for block in files.blocks(source):
                digest.update(block)
                file.write(block)
                size += len(block)
                meter.add(len(block))
                if cancelled():
                    raise CancelledError(f"the copy of {name} was cancelled")
        found[inside] = {"sha256": digest.hexdigest(), "bytes": size}
    return found
