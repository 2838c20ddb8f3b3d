"""The bundle: one build in one file, to be carried to another machine.

A tar file without compression (quantized weights hold no redundancy): first ``bundle.json``, with the
build's record and the SHA-256 and size of every file, then the files in its order, and nothing else.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from inference.artifacts import files
from inference.artifacts.build.recipe import Target
from inference.artifacts.build.records import LIBRARY, RECORD, Build, Builds
from inference.artifacts.build.workshop import check_shards
from inference.artifacts.sources import Progress, disk
from inference.artifacts.sources.progress import Meter
from inference.artifacts.store import Store
from inference.errors import BuildFailedError, InvalidRequestError, UnsafeArtifactError

MANIFEST = "bundle.json"
SCHEMA = 1
_MAX_MANIFEST_BYTES = 16 * 2**20
_MAX_FILES = 10_000
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class ForeignLibraryError(BuildFailedError):
    """The library of a bundle was made for another machine or by another engine."""

    code = "foreign_library"


@dataclass(frozen=True)
class _Entry:
    name: str
    bytes: int
    sha256: str


def export_bundle(build: Build, path: Path, report: Callable[[Progress], None]) -> int:
    """Write *build* to *path*, whole or not at all; return its size in bytes.

    Raises:
        OSError: the file cannot be written.
    """
    paths = {each.name: each for each in sorted(build.path.iterdir()) if each.is_file()}
    paths = {name: each for name, each in paths.items() if not name.startswith(".")}
    total_bytes = sum(each.stat().st_size for each in paths.values())
    check = Meter(report, "check", total_bytes)
    listed = [
        {"name": name, "bytes": each.stat().st_size, "sha256": files.sha256_of(each, check.add)}
        for name, each in paths.items()
    ]
    content = {"build": build.to_dict(), "files": listed}
    manifest = json.dumps({"schema": SCHEMA, "sha256": _sum(content), **content}, indent=1).encode()
    temporary = path.with_name(f"{files.TEMPORARY_PREFIX}{path.name}")
    copy = Meter(report, "copy", total_bytes)
    try:
        with tarfile.open(temporary, "w", format=tarfile.PAX_FORMAT) as tar:
            tar.addfile(_member(MANIFEST, len(manifest)), io.BytesIO(manifest))
            for name, each in paths.items():
                with each.open("rb") as file:
                    tar.addfile(_member(name, each.stat().st_size), file)
                copy.add(each.stat().st_size)
        files.fsync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    files.fsync(path.absolute().parent)
    return path.stat().st_size


def import_bundle(
    path: Path,
    store: Store,
    *,
    engine: str | None,
    target: Target,
    leave_library: bool,
    report: Callable[[Progress], None],
) -> Build:
    """Take the build of *path* into *store*, and return it.

    Args:
        engine: the identity of this machine's engine; ``None`` where there is none.
        target: what this machine is.
        leave_library: take a bundle whose library does not run here without it.

    Raises:
        UnsafeArtifactError: it is no bundle, or a file of it is not what its manifest says.
        ForeignLibraryError: its library was made for another GPU, processor, system or engine.
        InsufficientStorageError: the disk has no room.
    """
    with _opened(path) as tar:
        build, entries = _manifest(tar, path.name)
        strange = None if build.portable else _why_foreign(build, engine, target)
        if strange is not None and not leave_library:
            raise ForeignLibraryError(
                f"{path.name}: {strange}",
                hint="take its weights and compile the library here: add --weights-only",
            )
        portable = build.portable or strange is not None
        standing = Builds(store.root).find(build.key)
        if standing is not None and (standing.is_whole or portable):
            return standing
        return _extract(tar, replace(build, portable=portable), entries, store, path.name, report)


def _why_foreign(build: Build, engine: str | None, target: Target) -> str | None:
    made = build.recipe.target
    for what, theirs, ours in (
        ("the GPU's compute capability", made.gpu, target.gpu),
        ("the processor", made.arch, target.arch),
        ("the device", made.device, target.device),
        ("L4T", made.l4t, target.l4t),
        ("the processor's name", made.cpu, target.cpu),
        ("mlc_llm", build.recipe.engine[:12], engine and engine[:12]),
    ):
        if theirs != ours:
            return f"its library was made for another machine: {what} is {theirs}; here it is {ours}"
    return None


def _extract(
    tar: tarfile.TarFile,
    build: Build,
    entries: Mapping[str, _Entry],
    store: Store,
    name: str,
    report: Callable[[Progress], None],
) -> Build:
    builds = Builds(store.root)
    target, key = builds.path(build.key), f"build-{build.key}"
    total_bytes = sum(entry.bytes for entry in entries.values())

    def waiting() -> None:
        report(Progress("wait", 0, None, None, None))

    with disk.explained(store.root, name), store.lock(key, cancelled=lambda: False, waiting=waiting):
        directory = store.staging / key
        files.remove(directory)
        try:
            disk.make_space(store, name, total_bytes, directory)
            out = directory / "model"
            out.mkdir(parents=True)
            meter = Meter(report, "copy", total_bytes)
            for entry in entries.values():
                _take(tar, entry, out / entry.name, name, meter)
            if build.portable:
                (out / LIBRARY).unlink(missing_ok=True)
            check_shards(out)
            made = replace(build, path=target, created_s=time.time())
            (out / RECORD).write_text(json.dumps(made.to_dict(), indent=1), encoding="utf-8")
            if not store.discard(target):
                raise InvalidRequestError(
                    f"{name}: the build that stands is in use", hint=f"jetllm unload {build.model}"
                )
            store.commit(out, target)
            return made
        finally:
            files.remove(directory)


def _take(tar: tarfile.TarFile, entry: _Entry, path: Path, name: str, meter: Meter) -> None:
    """Copy the next member, which must be *entry*."""
    member = _next(tar, name)
    if member is None or member.name != entry.name or not member.isreg() or member.size != entry.bytes:
        raise UnsafeArtifactError(f"{name}: expected {entry.name} of {entry.bytes} bytes there; it is not")
    source, digest = tar.extractfile(member), hashlib.sha256()
    assert source is not None  # noqa: S101 - it is a regular file
    with source, path.open("xb") as file:
        while block := _block(source, name):
            digest.update(block)
            file.write(block)
            meter.add(len(block))
    if digest.hexdigest() != entry.sha256:
        raise UnsafeArtifactError(f"{name}: {entry.name} is not the file that its list names")


def _opened(path: Path) -> tarfile.TarFile:
    try:
        return tarfile.open(path, "r:")
    except tarfile.TarError as error:
        raise _no_bundle(path.name, str(error)) from None


def _manifest(tar: tarfile.TarFile, name: str) -> tuple[Build, dict[str, _Entry]]:
    member = _next(tar, name)
    if member is None or member.name != MANIFEST or not member.isreg() or member.size > _MAX_MANIFEST_BYTES:
        raise _no_bundle(name, f"it does not begin with {MANIFEST}")
    source = tar.extractfile(member)
    assert source is not None  # noqa: S101 - it is a regular file
    try:
        data: dict[str, Any] = json.loads(source.read())
        if data["schema"] != SCHEMA:
            raise ValueError("another schema")
        if data["sha256"] != _sum({"build": data["build"], "files": data["files"]}):
            raise ValueError("its own sum")
        entries = [_Entry(str(e["name"]), int(e["bytes"]), str(e["sha256"])) for e in data["files"]]
        build = Build.from_dict(data["build"], Path(name))
    except (ValueError, KeyError, TypeError, RecursionError, tarfile.TarError, OSError) as error:
        raise _no_bundle(name, f"{MANIFEST}: {type(error).__name__}") from None
    named = {entry.name: entry for entry in entries}
    sane = all(_NAME.fullmatch(e.name) and _SHA256.fullmatch(e.sha256) and e.bytes >= 0 for e in entries)
    if (
        not sane
        or len(named) != len(entries)
        or len(entries) > _MAX_FILES
        or build.key != data["build"]["key"]
    ):
        raise _no_bundle(name, f"{MANIFEST}: names, sums or key are not such")
    return build, named


def _sum(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _next(tar: tarfile.TarFile, name: str) -> tarfile.TarInfo | None:
    try:
        return tar.next()
    except (tarfile.TarError, OSError, ValueError) as error:
        raise _no_bundle(name, str(error)) from None


def _block(source: IO[bytes], name: str) -> bytes:
    try:
        return source.read(files.BLOCK_BYTES)
    except (tarfile.TarError, OSError) as error:
        raise _no_bundle(name, str(error)) from None


def _no_bundle(name: str, why: str) -> UnsafeArtifactError:
    return UnsafeArtifactError(
        f"{name}: not a bundle, or a damaged one: {why}",
        hint="write it again on the machine that built it: jetllm bundle export MODEL",
    )


def _member(name: str, size: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size, member.mode = size, 0o644
    return member
