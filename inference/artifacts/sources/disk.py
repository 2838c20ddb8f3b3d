"""Disk space: what a fetch needs is asked for first, and a full disk is called by its name."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from inference.artifacts.store import Store
from inference.errors import DownloadError, InsufficientStorageError

_RESERVE_BYTES = 64 * 2**20
_FULL = (errno.ENOSPC, errno.EDQUOT)


def free_bytes(path: Path) -> int:
    """Return what may still be written below *path*, which need not be there yet."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def make_space(store: Store, name: str, missing_bytes: int, staging: Path | None = None) -> None:
    """Make room within the store's quota, if it has one, and see that the disk has it, too.

    Args:
        staging: where it will be written; with it the room is the caller's for as long as he holds its lock.

    Raises:
        InsufficientStorageError: what may be removed is not enough, or the disk is too full.
    """
    store.reserve(staging, missing_bytes)
    require_space(store.root, name, missing_bytes)


def require_space(root: Path, name: str, missing_bytes: int) -> None:
    """Refuse a fetch that would fill the disk: *missing_bytes*, 5 % and 64 MiB must be free.

    Raises:
        InsufficientStorageError: with both numbers.
    """
    needed = missing_bytes + missing_bytes // 20 + _RESERVE_BYTES
    free = free_bytes(root)
    if free < needed:
        raise InsufficientStorageError(
            f"{name} needs {_mb(needed)} of disk; {_mb(free)} are free",
            hint=_HINT,
            details={"needed_bytes": needed, "free_bytes": free},
        )


_HINT = "free some space, or keep the weights elsewhere: JETLLM_CACHE_DIR=/path/on/a/larger/disk"


def full_disk(root: Path, name: str) -> InsufficientStorageError:
    """Return the error for a disk that filled up on the way."""
    free = free_bytes(root)
    return InsufficientStorageError(
        f"{name}: the disk filled up while the weights were written; {_mb(free)} are free now",
        hint=_HINT,
        details={"free_bytes": free},
    )


@contextmanager
def explained(root: Path, name: str) -> Iterator[None]:
    """Turn an OSError of the store's disk into an error that a user can answer."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise full_disk(root, name) from error
        raise DownloadError(
            f"{name}: the weights cannot be written: {error.strerror}",
            hint="name a directory that you may write to: JETLLM_CACHE_DIR=/path",
        ) from error


def _mb(count: int) -> str:
    return f"{count / 1e6:,.0f} MB"
