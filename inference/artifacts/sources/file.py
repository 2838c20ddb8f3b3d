"""The file source: a user's own weights, used where they lie."""

from __future__ import annotations

from pathlib import Path

from inference.artifacts import files
from inference.artifacts.gguf import check_gguf
from inference.artifacts.sources import disk
from inference.artifacts.sources.progress import Meter, Report
from inference.artifacts.store import Store
from inference.errors import DownloadError, UnsafeArtifactError
from inference.registry.sources import FileSource
from inference.registry.spec import Variant


def fetch_file(source: FileSource, variant: Variant, name: str, store: Store, *, progress: Report) -> Path:
    """Check that the file is there and is the one that models.json means; return its path.

    Raises:
        UnsafeArtifactError: it is another, or was found unsound and has not changed since.
    """
    path = Path(source.path).expanduser()
    if not path.exists():
        raise DownloadError(
            f"{name}: {path} is not there", hint=f"put the weights at {path}, or correct models.json"
        )
    if reason := store.quarantine_reason(variant):
        raise UnsafeArtifactError(
            f"{name}: {path.name} was found unsound and has not changed since: {reason}",
            hint=f"replace {path}",
        )
    try:
        _check(source, variant, path, name, progress)
    except UnsafeArtifactError as error:
        store.quarantine(path, error.message)
        raise
    if source.sha256 is not None:
        with disk.explained(store.root, name):
            store.record_verified(path, source.sha256)
    return path


def _check(source: FileSource, variant: Variant, path: Path, name: str, progress: Report) -> None:
    if path.is_dir() and (source.sha256 or source.bytes):
        raise UnsafeArtifactError(f"{name}: expected a file with that SHA-256 or size, got a directory")
    size = path.stat().st_size
    if source.bytes not in (None, size):
        raise UnsafeArtifactError(f"{name}: expected {source.bytes:,} bytes, got {size:,}")
    if source.sha256 is not None:
        found = files.sha256_of(path, Meter(progress, "check", size).add)
        if found != source.sha256:
            raise UnsafeArtifactError(f"{name}: expected SHA-256 {source.sha256}, got {found}")
    if variant.backend == "llamacpp":
        check_gguf(path, subject=name)
