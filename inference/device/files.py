"""Files of the kernel: read without waiting and without raising."""

from __future__ import annotations

import os
import re
from pathlib import Path

_MOST_BYTES = 2**20
_MOST_LINKS = 40
_INTEGER = re.compile(r"[+-]?[0-9]{1,19}")  # more digits are no 64-bit number, and int() refuses 4,300


def read_text(path: Path) -> str:
    """Return what *path* holds, "" where it is missing or unreadable.

    A pipe in place of a file (a broken mount, a fixture) must not block its reader; a sensor that is
    off answers with EIO, EINVAL or EAGAIN.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        return _content(descriptor).decode("utf-8", "replace")
    except OSError:
        return ""
    finally:
        os.close(descriptor)


def _content(descriptor: int) -> bytes:
    content = b""
    while len(content) < _MOST_BYTES and (block := os.read(descriptor, 65536)):
        content += block
    return content


def read_line(path: Path) -> str | None:
    """Return the first line of *path* without blanks and NULs around it; ``None`` where there is none."""
    return read_text(path).partition("\n")[0].strip("\0 \t\r") or None


def read_integer(path: Path) -> int | None:
    """Return the decimal number that *path* holds and nothing else beside it."""
    text = read_text(path).strip("\0 \t\r\n")
    return int(text) if _INTEGER.fullmatch(text) else None


def read_count(path: Path) -> int | None:
    """Return the number that *path* holds where it is not negative: drivers write -1 for "unknown"."""
    value = read_integer(path)
    return value if value is not None and value >= 0 else None


def exists(path: Path) -> bool:
    """Whether *path* is seen to exist; what may not be looked at is not seen."""
    try:
        return path.exists()
    except OSError:
        return False


def entries(directory: Path, pattern: str = "") -> tuple[Path, ...] | None:
    """Return what in *directory* has a name that *pattern* is found in; numbers are ordered as numbers.

    ``None`` where the directory cannot be listed: what it would hold is unknown, not absent.
    """
    try:
        found = [path for path in directory.iterdir() if re.search(pattern, path.name)]
    except OSError:
        return None
    return tuple(sorted(found, key=lambda path: _natural(path.name)))


def _natural(name: str) -> list[tuple[int, str]]:
    parts = re.split(r"([0-9]{1,18})", name)
    return [(int(part), "") if index % 2 else (0, part) for index, part in enumerate(parts)]


def below(root: Path, path: str) -> Path:
    """Return *path* below *root* with its links followed as if *root* were "/".

    /proc/device-tree and /etc/nvpmodel.conf are absolute links: in another machine's tree they would
    lead to this machine's files.
    """
    left, found = [part for part in path.split("/") if part], root
    for _ in range(_MOST_LINKS):
        if not left:
            return found
        step = found / left[0]
        target = _link(step)
        if target is None:
            found, left = step, left[1:]
            continue
        found = root if target.startswith("/") else found
        left = [part for part in target.split("/") if part not in ("", ".")] + left[1:]
        found, left = _climb(root, found, left)
    return found.joinpath(*left)


def _climb(root: Path, found: Path, left: list[str]) -> tuple[Path, list[str]]:
    while left and left[0] == "..":
        found, left = (found if found == root else found.parent), left[1:]
    return found, left


def _link(path: Path) -> str | None:
    try:
        return str(path.readlink())
    except OSError:
        return None
