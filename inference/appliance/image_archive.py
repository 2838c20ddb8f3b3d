"""The image archive: what a file of `docker save` or `podman save` says it holds."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import tarfile
import zlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from inference.appliance.errors import BundleError
from inference.artifacts.files import BLOCK_BYTES

_MAX_JSON_BYTES = 16 * 2**20
_ARCHITECTURES = {"arm64": "aarch64", "amd64": "x86_64"}
_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"


@dataclass(frozen=True)
class ImageArchive:
    """The one image of an archive.

    Args:
        id: "sha256:" and the hash of its configuration.
        reference: its name there; ``None`` where it was saved without one.
        arch: as `device.detect` calls it.
        bytes: of its layers, unpacked.
        labels: what its Dockerfile says of it.
    """

    id: str
    reference: str | None
    arch: str
    bytes: int
    labels: Mapping[str, str]

    def listed(self, label: str) -> tuple[str, ...]:
        """Return what a label lists, between commas; nothing where there is no such label."""
        return tuple(part for part in re.split(r"[,\s]+", self.labels.get(label, "")) if part)


def read_image(path: Path) -> ImageArchive:
    """Read what an archive holds; every layer is read, and its bytes are counted.

    Raises:
        BundleError: it is not the archive of one image.
    """
    try:
        with tarfile.open(path, "r:") as tar:
            return _image(tar)
    except (tarfile.TarError, ValueError, KeyError, TypeError, LookupError, EOFError, zlib.error) as error:
        why = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise _no_image(path, why) from None
    except OSError as error:  # gzip's own is one, too
        raise _no_image(path, error.strerror or str(error)) from None


def _image(tar: tarfile.TarFile) -> ImageArchive:
    images = json.loads(_bytes(tar, "manifest.json"))
    if len(images) != 1:
        raise ValueError(f"it has {len(images)} images")
    image: Mapping[str, Any] = images[0]
    raw = _bytes(tar, image["Config"])
    sha256 = hashlib.sha256(raw).hexdigest()
    if sha256 not in image["Config"]:  # <hex>.json, or blobs/sha256/<hex>
        raise ValueError("its configuration is not what its name says")
    config = json.loads(raw)
    arch = config["architecture"]
    if arch not in _ARCHITECTURES:
        raise ValueError(f"its architecture is {arch}, expected {' or '.join(_ARCHITECTURES)}")
    sums = config["rootfs"]["diff_ids"]
    if len(sums) != len(image["Layers"]):
        raise ValueError("its layers are not as many as its configuration says")
    sizes = [_layer_bytes(tar, name, sum_) for name, sum_ in zip(image["Layers"], sums, strict=True)]
    names = image.get("RepoTags") or [None]
    return ImageArchive(
        id=f"sha256:{sha256}",
        reference=names[0],
        arch=_ARCHITECTURES[arch],
        bytes=sum(sizes),
        labels={
            str(key): str(value) for key, value in (config.get("config", {}).get("Labels") or {}).items()
        },
    )


def _bytes(tar: tarfile.TarFile, name: str) -> bytes:
    with _opened(tar, name) as file:
        data = file.read(_MAX_JSON_BYTES + 1)
    if len(data) > _MAX_JSON_BYTES:
        raise ValueError(f"{name} has more than {_MAX_JSON_BYTES:,} bytes")
    return data


def _layer_bytes(tar: tarfile.TarFile, name: str, wanted: str) -> int:
    """Return the size of a layer unpacked, which must have the hash that the configuration names."""
    with _opened(tar, name) as packed:
        magic = packed.read(4)
        packed.seek(0)
        if magic == _ZSTD:
            raise ValueError(f"{name} is packed with zstd; save it as a docker-archive")
        layer: IO[bytes] = gzip.GzipFile(fileobj=packed) if magic[:2] == _GZIP else packed  # type: ignore[assignment]
        digest, size = hashlib.sha256(), 0
        while block := layer.read(BLOCK_BYTES):
            digest.update(block)
            size += len(block)
    if f"sha256:{digest.hexdigest()}" != wanted:
        raise ValueError(f"{name} is not the layer that its configuration names")
    return size


def _opened(tar: tarfile.TarFile, name: str) -> IO[bytes]:
    file = None
    with suppress(KeyError):
        file = tar.extractfile(name)  # a link in the archive, as older Docker writes them, is followed there
    if file is None:
        raise ValueError(f"it has no {name}")
    return file


def _no_image(path: Path, why: str) -> BundleError:
    return BundleError(
        f"{path.name}: not the archive of one image: {why}",
        hint=f"write it anew: docker save --output {path.name} IMAGE, or "
        f"podman save --format docker-archive --output {path.name} IMAGE",
    )
