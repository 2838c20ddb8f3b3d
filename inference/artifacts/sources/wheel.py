"""The wheel: one file read out of it, in blocks, and nothing else of it trusted or run."""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from inference.artifacts import files
from inference.artifacts.sources.blob import not_the_file
from inference.errors import UnsafeArtifactError
from inference.registry.sources import PackagePart

_ENCRYPTED = 0x1


def is_whole(path: Path, part: PackagePart) -> bool:
    """Tell whether a wheel at hand looks complete: its end is there and it is as long as it should be."""
    try:
        size = path.stat().st_size
        return part.wheel_bytes in (None, size) and zipfile.is_zipfile(path)
    except OSError:
        return False


def find(directory: Path, part: PackagePart) -> Path | None:
    """Return the wheel of *part* in a directory that a user filled."""
    wanted = (_normal(part.name), part.version)
    for path in files.entries(directory):
        name, _, rest = path.name.partition("-")
        if path.suffix == ".whl" and (_normal(name), rest.split("-", 1)[0]) == wanted:
            return path
    return None


def read_member(path: Path, member: str) -> Iterator[bytes]:
    """Yield the bytes of one file of a wheel.

    Raises:
        UnsafeArtifactError: the wheel is damaged, or has no such file.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            info = archive.getinfo(member)
            # bz2 and LZMA may ask for gigabytes of memory; wheels have neither
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise zipfile.BadZipFile("an unusual compression")
            if info.flag_bits & _ENCRYPTED:
                raise zipfile.BadZipFile("encryption")
            with archive.open(info) as file:
                while block := file.read(files.BLOCK_BYTES):
                    yield block
    except KeyError:
        raise UnsafeArtifactError(
            f"{path.name}: expected the file {member!r} inside",
            hint="name the package's own path in models.json; list it: python -m zipfile -l WHEEL",
        ) from None
    # zipfile's answer to an unknown compression is NotImplementedError.
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError) as error:
        raise not_the_file(f"{path.name}: not a sound wheel: {error}") from None


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "_", name).lower()
