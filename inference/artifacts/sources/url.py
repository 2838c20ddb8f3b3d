"""The url source: one file of a web server, resumed, and kept only with its SHA-256."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from inference.artifacts import files
from inference.artifacts.sources import blob, disk, failures
from inference.artifacts.sources.download import Download, Patience
from inference.artifacts.sources.progress import Meter, Progress, Report
from inference.artifacts.sources.web import Limits, shown
from inference.artifacts.store import PARTIAL, Store
from inference.errors import (
    CancelledError,
    DownloadError,
    InvalidRequestError,
    UnsafeArtifactError,
)
from inference.registry.sources import UrlSource
from inference.registry.spec import Variant


def fetch_url(
    source: UrlSource,
    variant: Variant,
    name: str,
    store: Store,
    *,
    progress: Report,
    cancelled: Callable[[], bool],
    offline: bool,
    patience: Patience | None = None,
    limits: Limits | None = None,
) -> Path:
    """Download and check the file; return where it is in the store.

    What came before a cut, a cancel or a crash stays, and the next call goes on from it. Whoever asks
    for the same file meanwhile waits and finds it.
    """
    if offline:
        raise failures.forbidden(_unavailable(source, name, "the setting 'offline' forbids the download"))
    target = store.blob_path(source)
    staging = store.staging / target.name
    download = Download(
        source.url,
        staging / PARTIAL,
        total_bytes=source.bytes,
        limits=limits or Limits(source.local, cancelled),
        patience=patience or Patience(),
        room=lambda missing_bytes: _see_to(store, source, name, missing_bytes, staging),
        report=progress,
    )

    def waiting() -> None:
        progress(Progress("wait", 0, None, None, None))

    with disk.explained(store.root, name), store.lock(target.name, cancelled=cancelled, waiting=waiting):
        try:
            if found := store.path_of(name, variant):
                return found
            if source.bytes is not None:  # before anybody is asked
                missing_bytes = source.bytes - min(download.done_bytes, source.bytes)
                disk.make_space(store, name, missing_bytes, staging)
            path = _brought(download, source, name)
            _check(path, source, variant, name, progress, cancelled, store)
            return store.commit(path, target)
        finally:
            store.tidy(staging)


def _see_to(store: Store, source: UrlSource, name: str, missing_bytes: int, staging: Path) -> None:
    """See that there is room, once the server said how much it takes; within the quota, if nobody had."""
    if source.bytes is None:
        disk.make_space(store, name, missing_bytes, staging)
    else:
        disk.require_space(store.root, name, missing_bytes)


def import_url(
    source: UrlSource, variant: Variant, name: str, store: Store, path: Path, *, progress: Report
) -> Path:
    """Copy the file from *path*, where a user brought it."""
    if not path.is_file():
        raise InvalidRequestError(f"{path}: expected the weights file", param="from")
    target = store.blob_path(source)
    staging = store.staging / target.name
    temporary = staging / target.name
    size = path.stat().st_size
    with (
        disk.explained(store.root, name),
        store.lock(target.name, cancelled=lambda: False, waiting=lambda: None),
    ):
        try:
            disk.make_space(store, name, size, staging)
            meter = Meter(progress, "copy", size)
            blob.write(files.blocks(path), temporary, source, path.name, meter, lambda: False)
            blob.check_format(temporary, variant, path.name)
            return store.commit(temporary, target)
        finally:
            store.tidy(staging)


def _brought(download: Download, source: UrlSource, name: str) -> Path:
    """Run the download, with every failure as an error that says what remains to do."""

    def unavailable(reason: str, hint: str | None = None, *, done_bytes: int = 0) -> DownloadError:
        return _unavailable(source, name, reason, hint, done_bytes=done_bytes)

    with failures.explained(name, lambda: (download.done_bytes, download.total_bytes), unavailable):
        return download.run()


def _check(
    path: Path,
    source: UrlSource,
    variant: Variant,
    name: str,
    progress: Report,
    cancelled: Callable[[], bool],
    store: Store,
) -> None:
    """Hold the whole file against its SHA-256 and its format; put it aside when it is another."""
    meter = Meter(progress, "check", path.stat().st_size)

    def advance(count: int) -> None:
        meter.add(count)
        if cancelled():
            raise CancelledError(f"the check of {name} was cancelled")

    try:
        found = files.sha256_of(path, advance)
        if found != source.sha256:
            raise blob.not_the_file(f"{name}: expected SHA-256 {source.sha256}, got {found}")
        blob.check_format(path, variant, name)
    except UnsafeArtifactError as error:
        aside = path.rename(path.parent.with_name(store.blob_path(source).name))
        store.quarantine(aside, error.message)
        files.remove(path.parent)  # the next pull must not go on from it
        raise


def _unavailable(
    source: UrlSource, name: str, reason: str, hint: str | None = None, *, done_bytes: int = 0
) -> DownloadError:
    size = f" ({source.bytes:,} bytes)" if source.bytes else ""
    return DownloadError(
        f"{name}: {reason}; needed: {shown(source.url)}{size}",
        hint=hint or f"bring the file from another machine: jetllm pull {name} --from PATH",
        details={"url": shown(source.url), "bytes": source.bytes, "done_bytes": done_bytes},
    )
