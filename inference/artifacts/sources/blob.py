"""The blob: one file on its way into the store, held against what models.json says of it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path

from inference.artifacts.gguf import check_gguf
from inference.artifacts.sources.progress import Meter
from inference.errors import CancelledError, UnsafeArtifactError
from inference.registry.sources import PackageFile, PackageSource, UrlSource
from inference.registry.spec import Variant


def write(
    contents: Iterable[bytes],
    path: Path,
    source: PackageSource | PackageFile | UrlSource,
    subject: str,
    meter: Meter,
    cancelled: Callable[[], bool],
) -> None:
    """Write *contents* to *path*, never more than the declared bytes, and check their SHA-256.

    Raises:
        UnsafeArtifactError: they are not what was declared.
    """
    digest, written = hashlib.sha256(), 0
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        for block in contents:
            written += len(block)
            if source.bytes is not None and written > source.bytes:
                break
            digest.update(block)
            file.write(block)
            meter.add(len(block))
            if cancelled():
                raise CancelledError(f"the copy of {subject} was cancelled")
    if source.bytes not in (None, written):
        assert source.bytes is not None  # noqa: S101 - mypy does not see it
        more = "more" if written > source.bytes else f"{written:,}"
        raise not_the_file(f"{subject}: expected {source.bytes:,} bytes, got {more}")
    if digest.hexdigest() != source.sha256:
        raise not_the_file(f"{subject}: expected SHA-256 {source.sha256}, got {digest.hexdigest()}")


def not_the_file(message: str) -> UnsafeArtifactError:
    """Return the error for bytes that came whole and are others than those declared."""
    return UnsafeArtifactError(
        message, hint="pull again; if it repeats, the file that models.json means is not what was served"
    )


def check_format(path: Path, variant: Variant, subject: str) -> None:
    """Look whether a file is what the variant's engine reads, as far as its header tells."""
    if variant.backend == "llamacpp":
        check_gguf(path, subject=subject)
