"""The store: weights by their content, whole or absent, below one directory.

Layout::

    blobs/sha256-<hex>             files of known content, and directories of such
    hub/<owner>--<repo>/           pinned.json: the commit that a source without a revision means
      <commit>/                    a snapshot; <commit>-<hex>/ where only certain files are taken
      <commit>.json                the SHA-256 and size of every file of the snapshot, of its first pull
    builds/<key>/                  what an engine made of weights for this machine
    staging/<key>/                 what is being fetched; belongs to the holder of locks/<key>.lock
      wheels/, partial/            what of it the next fetch goes on from
    quarantine/                    what was found unsound, with a .reason; of a user's file a record
    verified/                      records of user files whose SHA-256 was checked
    used/                          of what was used its mark, whose time of change is that of the last use

Locks are flock: the kernel drops them with their holder, so that all a crash leaves is a staging
directory, for `Store.sweep`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from inference.artifacts import files
from inference.artifacts.holdings import BUILDS, REMOVED, USED, Hold, Holding, Room, hold, unit_of
from inference.errors import CancelledError
from inference.registry.sources import (
    FileSource,
    HubSource,
    PackageDirectory,
    PackageSource,
    UrlSource,
    is_weights_file,
)
from inference.registry.spec import Variant

WHEELS = "wheels"
PARTIAL = "partial"
_COMMIT = re.compile(r"[0-9a-f]{40}")
_POLL_S = 0.1
_log = logging.getLogger(__name__)


class Store:
    """The weights on this machine; safe for any number of threads and processes.

    Nothing is created before it is needed: a store on a read-only disk, or another user's, can be read.

    Args:
        quota_bytes: what the store may take; a fetch makes room within it. ``None``: nothing is ever
            removed by itself.
        keep: names weights that are never removed to make room, in use or not.
    """

    def __init__(
        self,
        root: Path,
        *,
        quota_bytes: int | None = None,
        keep: Callable[[], Collection[Path]] = lambda: (),
    ) -> None:
        self.root = root.absolute()
        self.quota_bytes = quota_bytes
        self._keep = keep
        self.staging = self.root / "staging"
        self._blobs = self.root / "blobs"
        self._hub = self.root / "hub"
        self._quarantined = self.root / "quarantine"
        self._verified = self.root / "verified"
        self._room = Room(self.root)

    def path_of(self, spec_name: str, variant: Variant) -> Path | None:
        """Return where the weights of *variant* are; ``None`` when absent, incomplete or quarantined.

        It costs a few stat calls. *spec_name* is not looked at: content has no model.
        """
        source = variant.source
        if isinstance(source, PackageSource | UrlSource):
            return _of_size(self.blob_path(source), source.bytes)
        if isinstance(source, PackageDirectory):
            root = self.blob_path(source)
            return root if all(_of_size(root / file.name, file.bytes) for file in source.files) else None
        if isinstance(source, FileSource):
            return self._user_file(source)
        return self._snapshot(variant) if isinstance(source, HubSource) else None

    def weights_bytes(self, variant: Variant) -> int | None:
        """Return the size on disk of the weights of *variant*, all shards; ``None`` when not here."""
        path = self.path_of("", variant)
        if path is None:
            return None
        root = self.snapshot_of(variant) or path
        found = map(files.signature, (root,) if root.is_file() else files.below(root))
        return sum(int(each["size"]) for each in found if each)

    def weights_sha256(self, variant: Variant) -> str | None:
        """Return one hash for the weights of *variant*; ``None`` where nobody computed it.

        Of several files it is the SHA-256 of the lines "<sha256>  <name>", sorted by name.
        """
        if isinstance(variant.source, PackageSource | FileSource | UrlSource):
            return variant.source.sha256
        listed = variant.source.files if isinstance(variant.source, PackageDirectory) else variant.files
        declared = {file.name: {"sha256": file.sha256} for file in listed}
        record = self.snapshot_record(variant) or declared
        hashes = {name: each["sha256"] for name, each in record.items() if is_weights_file(name)}
        if len(hashes) <= 1 or None in hashes.values():
            return next(iter(hashes.values()), None) if len(hashes) == 1 else None
        lines = (f"{hashes[name]}  {name}\n" for name in sorted(hashes))
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def blob_path(self, source: PackageSource | PackageDirectory | UrlSource) -> Path:
        """Return where what a source with a known hash has is or will be: a file, or a directory."""
        return self._blobs / f"sha256-{source.sha256}"

    def snapshot_path(self, variant: Variant, revision: str) -> Path:
        """Return where that commit of a hub repository, as far as *variant* takes it, is or will be."""
        assert isinstance(variant.source, HubSource)  # noqa: S101 - the caller's promise
        names = "\n".join(sorted(file.name for file in variant.files))
        part = f"-{hashlib.sha256(names.encode()).hexdigest()[:16]}" if names else ""
        return self._repository(variant.source) / f"{revision}{part}"

    def snapshot_of(self, variant: Variant) -> Path | None:
        """Return where the pinned snapshot of a hub variant is or will be; ``None`` before the first pull."""
        if not isinstance(variant.source, HubSource):
            return None
        revision = self.pinned_revision(variant.source)
        return self.snapshot_path(variant, revision) if revision else None

    def places_of(self, variant: Variant) -> list[Path]:
        """Return what is there for *variant*: its weights, parts of them, and what of it was put aside."""
        source = variant.source
        if isinstance(source, FileSource) or source is None:
            return []
        if isinstance(source, HubSource):
            target, key = self.snapshot_of(variant), f"hub-{source.repo.replace('/', '--')}"
        else:
            target = self.blob_path(source)
            key = target.name
        aside = [] if target is None else [target, self._quarantined / target.name]
        reasons = [_reason_path(path) for path in aside[1:]]
        return [path for path in (*aside, *reasons, self.staging / key) if path.exists()]

    def snapshot_record(self, variant: Variant) -> dict[str, dict[str, Any]]:
        """Return the SHA-256 and size of each file of a hub variant, recorded when it was first pulled."""
        path = self.snapshot_of(variant)
        found = self._read_record(_snapshot_record_path(path)).get("files") if path else None
        if not isinstance(found, dict):
            return {}
        return {name: each for name, each in found.items() if isinstance(each, dict) and "sha256" in each}

    def record_snapshot(self, path: Path, record: dict[str, Any]) -> None:
        """Write the record of the snapshot at *path*; it outlives the snapshot."""
        self._write_record(_snapshot_record_path(path), record)

    def pinned_revision(self, source: HubSource) -> str | None:
        """Return the registry's revision, else the one recorded at the first pull."""
        recorded = source.revision or self._read_record(self._pin(source)).get("revision")
        return recorded if isinstance(recorded, str) and _COMMIT.fullmatch(recorded) else None

    def pin(self, source: HubSource, revision: str) -> None:
        """Record which commit a hub source without a revision means on this machine."""
        self._write_record(self._pin(source), {"revision": revision})

    def is_intact(self, path: Path, variant: Variant, advance: files.Advance = lambda count: None) -> bool:
        """Read the weights and tell whether they still have the SHA-256 declared or recorded."""
        if snapshot := self.snapshot_of(variant):
            recorded = self.snapshot_record(variant).items()
            return all(files.sha256_of(snapshot / name, advance) == each["sha256"] for name, each in recorded)
        if isinstance(variant.source, PackageDirectory):
            listed = variant.source.files
            return all(files.sha256_of(path / each.name, advance) == each.sha256 for each in listed)
        declared = None if isinstance(variant.source, HubSource | None) else variant.source.sha256
        return declared is None or files.sha256_of(path, advance) == declared

    def record_verified(self, path: Path, sha256: str) -> None:
        """Remember that a user's file had that SHA-256, until it changes."""
        if found := files.signature(path):
            self._write_record(_record_path(self._verified, path), {**found, "sha256": sha256})

    def quarantine(self, path: Path, reason: str) -> None:
        """Take unsound weights out of use.

        What lies in the store is moved aside, a snapshot whole. A user's file stays where it lies and
        is remembered by its path, size and time of change, until one of them changes.
        """
        if not path.absolute().is_relative_to(self.root):
            if found := files.signature(path):
                self._write_record(_record_path(self._quarantined, path), {**found, "reason": reason})
            return
        path = unit_of(self.root, path.absolute())
        aside = self._quarantined / path.name
        try:
            self._quarantined.mkdir(parents=True, exist_ok=True)
            files.write_atomic(_reason_path(aside), reason.encode())
            files.remove(aside)
            with suppress(FileNotFoundError):  # another thread was first
                path.replace(aside)
        except OSError as error:  # another user's store: it is refused again at each load
            _log.warning("%s was not put aside: %s", path.name, error.strerror)

    def quarantine_reason(self, variant: Variant) -> str | None:
        """Return why the weights of *variant* were taken out of use; ``None`` if they were not."""
        source = variant.source
        if isinstance(source, FileSource):
            return self._user_file_reason(Path(source.path).expanduser())
        name = None
        if isinstance(source, PackageSource | PackageDirectory | UrlSource):
            name = self.blob_path(source).name
        if snapshot := self.snapshot_of(variant):
            name = snapshot.name
        if name is None or self.path_of("", variant) is not None:
            return None
        with suppress(OSError):
            return _reason_path(self._quarantined / name).read_text(encoding="utf-8")
        return None

    def commit(self, temporary: Path, target: Path) -> Path:
        """Make *temporary*, complete and below the root, appear at *target*, durably."""
        for path in (temporary, *(temporary.rglob("*") if temporary.is_dir() else ())):
            if not path.is_symlink():
                files.fsync(path)
        files.make_directory(target.parent)
        if target.is_dir():  # a damaged one, or one that is made anew
            files.remove(aside := self.staging / f"{REMOVED}{target.name}")
            target.replace(aside)
            files.remove(aside)
        temporary.replace(target)
        files.fsync(target.parent)
        files.remove(self._quarantined / target.name)
        files.remove(_reason_path(self._quarantined / target.name))
        return target

    def hold(self, path: Path) -> Hold:
        """Use the weights or the build at *path*, as `path_of` gave it, until the hold is closed.

        Raises:
            ModelNotPulledError: they were removed meanwhile.
        """
        return hold(self.root, path)

    def usage(self) -> list[Holding]:
        """Return what the store's disk is used for; what may go first comes first."""
        return self._room.usage()

    def make_room(self, wanted_bytes: int, keep: Collection[Path] = ()) -> list[Path]:
        """Remove leftovers, then the weights not used for longest, until *wanted_bytes* are freed.

        Never what is in use or to be kept: by *keep*, or by the store's own.

        Returns:
            What was removed.

        Raises:
            InsufficientStorageError: all that may go is less; nothing was removed.
        """
        kept = {unit_of(self.root, path.absolute()) for path in (*keep, *self._keep())}
        return self._room.make(wanted_bytes, kept)

    def discard(self, path: Path) -> bool:
        """Remove a unit of the store, out of sight in one step; return whether nobody used it."""
        return not path.exists() or self._room.remove(path)

    def reserve(self, staging: Path | None, missing_bytes: int) -> None:
        """Make room within the quota, if there is one, for what will be written to *staging*.

        *staging* is the directory of a lock that the caller holds: until he drops it, the room is his.

        Raises:
            InsufficientStorageError: what may go is less; nothing was removed.
        """
        if self.quota_bytes is not None:
            kept = {unit_of(self.root, path.absolute()) for path in self._keep()}
            self._room.reserve(staging, missing_bytes, self.quota_bytes, kept)

    @contextmanager
    def lock(self, key: str, *, cancelled: Callable[[], bool], waiting: Callable[[], None]) -> Iterator[None]:
        """Hold the lock of *key*; while another does, wait, with calls of *waiting* and *cancelled*.

        Raises:
            CancelledError: while waiting.
        """
        with files.lock_file(self._lock_path(key)) as descriptor:
            while not files.try_lock(descriptor):
                waiting()
                if cancelled():
                    raise CancelledError("cancelled while another download of the same file went on")
                time.sleep(_POLL_S)
            yield

    def tidy(self, staging: Path) -> None:
        """Remove what a fetch left in its staging directory, except what the next can go on from."""
        kept = () if (self._blobs / staging.name).exists() else (WHEELS, PARTIAL)
        for entry in files.entries(staging):
            if entry.name not in kept or not files.entries(entry):
                files.remove(entry)
        with suppress(OSError):  # not empty, or not there
            staging.rmdir()

    def sweep(self) -> None:
        """Remove what crashed fetches left, at a start; what a living fetch holds is not touched.

        Complete wheels and parts of a file stay, so that the next pull goes on from them.
        """
        try:
            for directory in files.entries(self.staging):
                with files.lock_file(self._lock_path(directory.name)) as descriptor:
                    if files.try_lock(descriptor):
                        tidy = files.remove if directory.name.startswith(REMOVED) else self.tidy
                        tidy(directory)
            if self.root.is_dir():
                self._sweep_records()
        except OSError as error:  # a full or read-only disk: what is there can still be served
            _log.warning("the store was not swept: %s", error.strerror)

    def _sweep_records(self) -> None:
        with files.lock_file(self._lock_path("records")) as descriptor:
            if files.try_lock(descriptor):
                named = (self.root / name for name in (BUILDS, USED, "hashes", "failed"))
                for parent in (self._quarantined, self._verified, *named, *files.entries(self._hub)):
                    for leftover in parent.glob(files.TEMPORARY_PREFIX + "*"):
                        files.remove(leftover)

    def _user_file(self, source: FileSource) -> Path | None:
        path = Path(source.path).expanduser()
        found = files.signature(path)
        if found is None or self._user_file_reason(path) is not None:
            return None
        if source.bytes is not None and found["size"] != source.bytes:
            return None
        if source.sha256 is not None:
            record = self._read_record(_record_path(self._verified, path))
            return path if record == {**found, "sha256": source.sha256} else None
        return path

    def _user_file_reason(self, path: Path) -> str | None:
        record = self._read_record(_record_path(self._quarantined, path))
        reason = record.pop("reason", None)
        return reason if record == files.signature(path) else None

    def _snapshot(self, variant: Variant) -> Path | None:
        """Return the snapshot's directory, or the file of it that the engine opens."""
        path = self.snapshot_of(variant)
        if path is None or not path.is_dir():
            return None
        for file in variant.files:
            found = files.signature(path / file.name)
            if found is None or found["size"] != (file.bytes or found["size"]):
                return None
        return path / (variant.entry_file or "")

    def _repository(self, source: HubSource) -> Path:
        return self._hub / source.repo.replace("/", "--")

    def _pin(self, source: HubSource) -> Path:
        return self._repository(source) / "pinned.json"

    def _lock_path(self, key: str) -> Path:
        return self.root / "locks" / f"{key}.lock"

    def _write_record(self, path: Path, record: dict[str, Any]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with self.lock("records", cancelled=lambda: False, waiting=lambda: None):
            files.write_atomic(path, json.dumps(record).encode())

    def _read_record(self, path: Path) -> dict[str, Any]:
        """Return a record; a missing or damaged one says nothing."""
        with suppress(OSError, ValueError):
            record = json.loads(path.read_bytes())
            return record if isinstance(record, dict) else {}
        return {}


def _of_size(path: Path, size_bytes: int | None) -> Path | None:
    found = files.signature(path)
    return path if found and size_bytes in (None, found["size"]) else None


def _record_path(parent: Path, path: Path) -> Path:
    return parent / f"{hashlib.sha256(os.fsencode(path.absolute())).hexdigest()}.json"


def _snapshot_record_path(snapshot: Path) -> Path:
    return snapshot.with_name(f"{snapshot.name}.json")


def _reason_path(aside: Path) -> Path:
    return aside.with_name(f"{aside.name}.reason")
