"""The archive: files in one POSIX tar, of which for the same files there is only one right sequence of bytes.

Nothing in a tar is believed, not even read: what stands there must be the header that this module would
write for the file that is wanted next. So there is no link, device, sparse map, long name, path or
padding to be deceived with. `tar -xf` reads what this writes; it writes what this reads only by chance.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO

from inference.appliance.errors import BundleError
from inference.artifacts.files import BLOCK_BYTES

RECORD_BYTES = 512
END = bytes(2 * RECORD_BYTES)
_OCTAL_LIMIT = 8**11
_NAME_BYTES, _PREFIX_BYTES = 100, 155
_KINDS = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a device",
    b"4": "a device",
    b"5": "a directory",
    b"6": "a pipe",
}


def header(path: str, size_bytes: int) -> bytes:
    """Return the record that stands before a file's bytes.

    Raises:
        BundleError: a tar has no room for such a path.
    """
    prefix, name = _parted(path)
    # From 8 GiB on the number is binary, as GNU tar, bsdtar and Python write it.
    size = b"%011o\0" % size_bytes if size_bytes < _OCTAL_LIMIT else b"\x80" + size_bytes.to_bytes(11, "big")
    before = name.ljust(_NAME_BYTES, b"\0") + b"0000644\0" + b"0000000\0" * 2 + size + b"%011o\0" % 0
    after = (
        b"0" + bytes(100) + b"ustar\x0000" + bytes(64) + b"0000000\0" * 2 + prefix.ljust(_PREFIX_BYTES, b"\0")
    )
    total = sum(before) + sum(b" " * 8) + sum(after)
    return (before + b"%06o\0 " % total + after).ljust(RECORD_BYTES, b"\0")


def padding(size_bytes: int) -> bytes:
    """Return what fills the last record of a file."""
    return bytes(-size_bytes % RECORD_BYTES)


def total_bytes(sizes: Iterator[int]) -> int:
    """Return the size of the archive of files of such sizes."""
    return sum(RECORD_BYTES + size + len(padding(size)) for size in sizes) + len(END)


def read_unsized(archive: IO[bytes], path: str, most_bytes: int) -> bytes:
    """Read a file of which only the path is known.

    Raises:
        BundleError: it is not what comes next, or larger than *most_bytes*.
    """
    found = archive.read(RECORD_BYTES)
    digits = found[124:135]
    size_bytes = int(digits, 8) if digits and not digits.strip(b"01234567") else -1
    if not 0 <= size_bytes <= most_bytes or found != header(path, size_bytes):
        raise _not_next(path, found)
    return b"".join(_content(archive, path, size_bytes))


def read(archive: IO[bytes], path: str, size_bytes: int) -> Iterator[bytes]:
    """Yield the bytes of a file, a block at a time.

    Raises:
        BundleError: it is not what comes next, or the archive ends in it.
    """
    found = archive.read(RECORD_BYTES)
    if found != header(path, size_bytes):
        raise _not_next(path, found)
    return _content(archive, path, size_bytes)


def read_end(archive: IO[bytes]) -> None:
    """Read the end.

    Raises:
        BundleError: there is more, or less.
    """
    found = archive.read(len(END) + 1)
    if found != END:
        raise _damaged(f"expected its end after the last file, got {_described(found)}")


def _content(archive: IO[bytes], path: str, size_bytes: int) -> Iterator[bytes]:
    left = size_bytes
    while left:
        block = archive.read(min(left, BLOCK_BYTES))
        if not block:
            raise _damaged(f"it ends within {path}")
        left -= len(block)
        yield block
    fill = padding(size_bytes)
    if archive.read(len(fill)) != fill:
        raise _damaged(f"expected zeros after {path}")


def _parted(path: str) -> tuple[bytes, bytes]:
    """Return prefix and name: a tar's header has two fields for a path that is long."""
    whole = path.encode("ascii")
    if len(whole) <= _NAME_BYTES:
        return b"", whole
    for place in (place for place, byte in enumerate(whole) if byte == ord("/")):
        prefix, name = whole[:place], whole[place + 1 :]
        if len(prefix) <= _PREFIX_BYTES and len(name) <= _NAME_BYTES:
            return prefix, name
    raise BundleError(f"{path}: a tar has no room for this path", hint="make a directory instead of a .tar")


def _not_next(path: str, found: bytes) -> BundleError:
    return _damaged(f"expected {path} next, got {_described(found)}")


def _described(found: bytes) -> str:
    """Say what a record seems to be; it is shown, not used."""
    if len(found) < RECORD_BYTES:
        return "the end of the file"
    if not found.strip(b"\0"):
        return "the end of the archive"
    if found[257:262] != b"ustar":
        return "no header of a file"
    name = found[:_NAME_BYTES].rstrip(b"\0").decode("ascii", "backslashreplace")
    return f"{_KINDS.get(found[156:157], 'another header, of')} {name!r}"


def _damaged(what: str) -> BundleError:
    return BundleError(
        f"not a bundle's .tar, or a damaged one: {what}",
        hint="only `jetllm bundle create` writes it: unpack another's with tar, and use the directory",
    )
