"""The parts of small releases: an image's archive, contents, keys, bundles as a directory and as a .tar."""

from __future__ import annotations

import hashlib
import io
import json
import platform
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inference.appliance import archive
from inference.appliance.creating import Contents, create_bundle
from inference.appliance.manifest import MANIFEST, SIGNATURE, Golden, Manifest, Model
from inference.appliance.signing import generate_keys, load_private, sign

OTHER_NAMES = {"x86_64": "amd64", "aarch64": "arm64"}
BLOB = b"the weights"
BLOB_PATH = f"blobs/sha256-{hashlib.sha256(BLOB).hexdigest()}"


def tar_of(members: dict[str, bytes]) -> bytes:
    """An uncompressed tar with these files."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return out.getvalue()


def image_members(arch: str, labels: dict[str, str] | None = None) -> dict[str, bytes]:
    """What `docker save` writes of an image with one layer."""
    layer = tar_of({"hello": b"hello\n"})
    config = json.dumps(
        {
            "architecture": OTHER_NAMES.get(arch, arch),
            "os": "linux",
            "config": {"Labels": labels},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
        }
    ).encode()
    name = f"{hashlib.sha256(config).hexdigest()}.json"
    image = {"Config": name, "RepoTags": ["jetllm:test"], "Layers": ["layer.tar"]}
    return {"manifest.json": json.dumps([image]).encode(), name: config, "layer.tar": layer}


def make_image(path: Path, arch: str = platform.machine(), labels: dict[str, str] | None = None) -> Path:
    """Write the archive of an image with one layer."""
    path.write_bytes(tar_of(image_members(arch, labels)))
    return path


@dataclass(frozen=True)
class Maker:
    """Makes releases with a key of its own, below *home*."""

    home: Path

    @property
    def key(self) -> Path:
        """The private key; its public one is made with it."""
        path = self.home / "release"
        if not path.exists():
            generate_keys(path)
        return path

    @property
    def trusted(self) -> Path:
        """The public key."""
        return self.key.with_name("release.pub")

    def contents(self, **changes: Any) -> Contents:
        """A release of one small image and one blob."""
        blob = self.home / "blob"
        blob.write_bytes(BLOB)
        image = self.home / "image.tar"
        usual: dict[str, Any] = {
            "version": "1.2.0",
            "image": image if image.exists() else make_image(image),
            "models": [Model("tiny", "gguf")],
            "golden": [Golden("tiny", "gguf", "The capital", " of \u00e9clairs", (5, 6))],
            "store": {BLOB_PATH: blob},
        }
        return Contents(**{**usual, **changes})

    def directory(self, name: str = "bundle", **changes: Any) -> Path:
        """A bundle as a directory."""
        create_bundle(self.contents(**changes), self.home / name, self.key)
        return self.home / name

    def tar(self, name: str = "bundle.tar", **changes: Any) -> Path:
        """A bundle as a .tar."""
        return self.directory(name, **changes)

    def sign(self, directory: Path, manifest: bytes) -> None:
        """Put another manifest into a bundle, signed as the right one would be."""
        (directory / MANIFEST).write_bytes(manifest)
        (directory / SIGNATURE).write_bytes(sign(manifest, load_private(self.key)))

    def archive(self, path: Path, members: list[tuple[str, bytes]]) -> Path:
        """Write a .tar of these files, in this order, as the right one would be."""
        with path.open("wb") as out:
            for name, data in members:
                out.write(archive.header(name, len(data)) + data + archive.padding(len(data)))
            out.write(archive.END)
        return path


def members_of(directory: Path, manifest: Manifest) -> list[tuple[str, bytes]]:
    """The files of a bundle in the order of its .tar."""
    names = [MANIFEST, SIGNATURE, *(each.path for each in manifest.files)]
    return [(name, (directory / name).read_bytes()) for name in names]
