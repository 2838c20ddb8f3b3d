"""File operations that survive a power cut and a second writer."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

TEMPORARY_PREFIX = ".tmp-"
BLOCK_BYTES = 2**20
_ABANDONED_S = 3600.0


def write_atomic(path: Path, data: bytes) -> None:
    """Make *path* hold *data*; whoever reads, whenever, finds the old bytes or the new ones."""
    descriptor, temporary = tempfile.mkstemp(prefix=TEMPORARY_PREFIX, dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        remove(Path(temporary))
        raise
    fsync(path.parent)


def sweep_temporaries(directory: Path) -> None:
    """Remove what writes that a power cut ended have left; what is younger than an hour may be at work."""
    with suppress(OSError):
        for path in directory.glob(f"{TEMPORARY_PREFIX}*"):
            if time.time() - path.stat().st_mtime > _ABANDONED_S:
                path.unlink()


def fsync(path: Path) -> None:
    """Wait until a file's bytes, or a directory's entries, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_directory(path: Path) -> None:
    """Make a directory and those above it, each with its entry on the disk."""
    missing = [each for each in (path, *path.parents) if not each.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for each in missing:
        fsync(each.parent)


def remove(path: Path) -> None:
    """Remove a file or a tree, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def entries(directory: Path) -> list[Path]:
    """Return what is in *directory*, sorted; nothing if it is not there."""
    try:
        return sorted(directory.iterdir())
    except FileNotFoundError:
        return []


def below(directory: Path) -> Iterator[Path]:
    """Yield the files in *directory* and below, except what goes meanwhile, alone or with its directory.

    Path.rglob fails on a directory that somebody removes between its two looks at it.
    """
    for parent, _, names in os.walk(directory):
        yield from (Path(parent, name) for name in names)


def signature(path: Path) -> dict[str, Any] | None:
    """Return what tells that a file changed: its path, size and time of change."""
    with suppress(OSError):
        status = path.stat()
        return {"path": str(path.absolute()), "size": status.st_size, "mtime_ns": status.st_mtime_ns}
    return None


def stamp(path: Path) -> str:
    """Return a hash of the names, sizes and times of change of a file, or of all files in a directory."""
    found = [path] if path.is_file() else sorted(each for each in path.rglob("*") if each.is_file())
    marks = ((each.relative_to(path.parent), each.stat()) for each in found)
    lines = (f"{name} {status.st_size} {status.st_mtime_ns}\n" for name, status in marks)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def blocks(path: Path) -> Iterator[bytes]:
    """Yield a file's bytes, a block at a time."""
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            yield block


Advance = Callable[[int], None]
"""Gets the bytes of each block that was read."""


def sha256_of(path: Path, advance: Advance = lambda count: None) -> str:
    """Return the SHA-256 of a file; *advance* gets the bytes of each block read."""
    digest = hashlib.sha256()
    for block in blocks(path):
        digest.update(block)
        advance(len(block))
    return digest.hexdigest()


@contextmanager
def lock_file(path: Path) -> Iterator[int]:
    """Open a lock file, which is created and never removed: removing one breaks flock's promise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def try_lock(descriptor: int) -> bool:
    """Take the lock if nobody has it; it is dropped when the descriptor is closed."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
