"""The cargo: weights and builds as files on their way from one store into another, at the same paths.

What is named by its content is checked against its name; what is not, by the sums that come along, for
which the caller vouches (a release's manifest is signed).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from inference.artifacts import files
from inference.artifacts.build.records import BUILDS, Build, read_build
from inference.artifacts.holdings import unit_of
from inference.artifacts.sources import Progress, disk
from inference.artifacts.sources.progress import Meter
from inference.artifacts.store import Store
from inference.errors import InvalidRequestError, ModelNotPulledError, UnsafeArtifactError
from inference.registry.sources import FileSource, HubSource
from inference.registry.spec import Variant

_BLOB = re.compile(r"sha256-([0-9a-f]{64})")
_KEY = re.compile(r"[0-9a-f]{64}")
_COMMIT = re.compile(r"[0-9a-f]{40}(?:-[0-9a-f]{16})?(?:\.json)?|pinned\.json")
_HINT = "use nothing of this bundle: it is damaged, or was not made by `jetllm bundle create`"


@dataclass(frozen=True)
class Sum:
    """What a file must be."""

    bytes: int
    sha256: str


def weights_of(store: Store, name: str, variant: Variant) -> dict[str, Path]:
    """Return the files of a variant's weights: the path of each below the store, and where it is.

    Raises:
        ModelNotPulledError: they are not here.
        InvalidRequestError: they are the user's own file, which lies outside the store.
    """
    if isinstance(variant.source, FileSource):
        raise InvalidRequestError(
            f"{name}: its weights are a file of yours, {variant.source.path}, which other machines lack",
            hint="give its variant a source that can be pulled (docs/models.md), or leave it out",
        )
    path = store.snapshot_of(variant) or store.path_of(name, variant)
    if path is None or store.path_of(name, variant) is None:
        raise ModelNotPulledError(
            f"{name}: its weights are not here", hint=f"jetllm pull {name.partition('/')[0]}"
        )
    found = _below(store, path)
    if isinstance(variant.source, HubSource):
        records = (path.with_name(f"{path.name}.json"), path.with_name("pinned.json"))
        found |= {_relative(store, each): each for each in records if each.is_file()}
    return found


def files_of(store: Store, build: Build) -> dict[str, Path]:
    """Return the files of a build: the path of each below the store, and where it is."""
    return {name: path for name, path in _below(store, build.path).items() if not path.name.startswith(".")}


def take(
    store: Store, directory: Path, sums: Mapping[str, Sum], report: Callable[[Progress], None]
) -> tuple[int, int]:
    """Take into *store* what lies below *directory* at the paths of *sums*; return the bytes taken and left.

    Each thing (a file of weights, a checkpoint, a build) appears whole or not at all, whenever this ends.
    What is here already, and is what it should be, is left as it is.

    Raises:
        UnsafeArtifactError: a file is not what *sums* says, or lies where the store has nothing.
        InsufficientStorageError: the disk has no room.
        DownloadError: the store cannot be written.
    """
    units = _units(store, sums)
    store.sweep()  # of an earlier one that was killed
    total_bytes = sum(each.bytes for each in sums.values())
    check = Meter(report, "check", total_bytes)
    lacking = {unit: names for unit, names in units.items() if not _is_here(store, names, sums, check)}
    missing_bytes = sum(sums[name].bytes for names in lacking.values() for name in names)
    copy = Meter(report, "copy", missing_bytes)
    for unit, names in lacking.items():
        _take(store, unit, directory, {name: sums[name] for name in names}, copy)
    return missing_bytes, total_bytes - missing_bytes


def _units(store: Store, sums: Mapping[str, Sum]) -> dict[Path, list[str]]:
    """Return what is there or gone as one thing, with its files' paths below the store; pins last."""
    found: dict[Path, list[str]] = {}
    for name in sorted(sums, key=lambda each: (each.endswith("/pinned.json"), each)):
        unit = unit_of(store.root, store.root / name)
        parts = unit.relative_to(store.root).parts
        kind, last = parts[0], parts[-1]
        known = {"blobs": (2, _BLOB), BUILDS: (2, _KEY), "hub": (3, _COMMIT)}.get(kind)
        if known is None or len(parts) != known[0] or not known[1].fullmatch(last):
            raise UnsafeArtifactError(f"{name}: the store has nothing there", hint=_HINT)
        found.setdefault(unit, []).append(name)
    for unit, names in found.items():
        _check_name(store, unit, {name: sums[name] for name in names})
    return found


def _check_name(store: Store, unit: Path, sums: Mapping[str, Sum]) -> None:
    """See that a blob is what its name says: the hash of the file, or of the list of its files."""
    blob = _BLOB.fullmatch(unit.name)
    if blob is None:
        return
    name = _relative(store, unit)
    if name in sums:
        found = sums[name].sha256
    else:
        listed = sorted((each.removeprefix(f"{name}/"), wanted.sha256) for each, wanted in sums.items())
        found = hashlib.sha256("".join(f"{sha256}  {each}\n" for each, sha256 in listed).encode()).hexdigest()
    if found != blob.group(1):
        raise UnsafeArtifactError(f"{name}: its content has another name", hint=_HINT)


def _is_here(store: Store, names: list[str], sums: Mapping[str, Sum], meter: Meter) -> bool:
    for name in names:
        found = files.signature(store.root / name)
        if found is None or found["size"] != sums[name].bytes:
            return False
    return all(files.sha256_of(store.root / name, meter.add) == sums[name].sha256 for name in names)


def _take(store: Store, unit: Path, directory: Path, sums: Mapping[str, Sum], meter: Meter) -> None:
    name, key = _relative(store, unit), _lock_key(store, unit)
    with disk.explained(store.root, name), store.lock(key, cancelled=lambda: False, waiting=lambda: None):
        staging = store.staging / key
        files.remove(staging)
        try:
            disk.make_space(store, name, sum(each.bytes for each in sums.values()), staging)
            out = staging / "cargo"
            for each, wanted in sums.items():
                path = out / (Path(each).relative_to(name) if each != name else "")
                path.parent.mkdir(parents=True, exist_ok=True)
                _copy(directory / each, path, each, wanted, meter)
            if name.startswith(f"{BUILDS}/"):
                _check_build(out, unit.name)
            store.commit(out, unit)
        finally:
            files.remove(staging)


def _lock_key(store: Store, unit: Path) -> str:
    """Return the lock that a pull or a build of the same thing would hold."""
    parts = unit.relative_to(store.root).parts
    return {"hub": f"hub-{parts[1]}", BUILDS: f"build-{parts[1]}"}.get(parts[0], unit.name)


def _copy(source: Path, path: Path, name: str, wanted: Sum, meter: Meter) -> None:
    digest, size = hashlib.sha256(), 0
    with path.open("xb") as out:
        for block in files.blocks(source):
            digest.update(block)
            size += len(block)
            out.write(block)
            meter.add(len(block))
    if (size, digest.hexdigest()) != (wanted.bytes, wanted.sha256):
        raise UnsafeArtifactError(f"{name}: it is not the file that the manifest names", hint=_HINT)


def _check_build(directory: Path, key: str) -> None:
    build = read_build(directory)
    if build is None or build.key != key:
        raise UnsafeArtifactError(f"{BUILDS}/{key}: no build of that key", hint=_HINT)


def _below(store: Store, path: Path) -> dict[str, Path]:
    found: Iterator[Path] = iter((path,)) if path.is_file() else files.below(path)
    return {_relative(store, each): each for each in found}


def _relative(store: Store, path: Path) -> str:
    return path.relative_to(store.root).as_posix()
