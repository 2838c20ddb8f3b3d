"""The making of a bundle: whatever a release is made of, in one directory or one .tar, and signed.

Nothing that verifies is at the output, or beside it under a name of its own, until all of it is there:
the manifest and its signature are written last, and what they describe is moved into place whole.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from inference.appliance import archive
from inference.appliance.bundle import Report, let_all_read, require_space, silent
from inference.appliance.errors import BundleError
from inference.appliance.image_archive import ImageArchive, read_image
from inference.appliance.manifest import (
    MANIFEST,
    SIGNATURE,
    STORE,
    File,
    Golden,
    Image,
    Manifest,
    Model,
    parse_manifest,
)
from inference.appliance.signing import load_private, sign
from inference.artifacts import files

L4T_LABEL, CAPABILITY_LABEL = "org.jetllm.l4t", "org.jetllm.compute-capability"
"""Of the image: lists between commas (containers/Dockerfile)."""

IMAGE, EVIDENCE, REGISTRY = "image.tar", "evidence.jsonl", "models.json"


@dataclass(frozen=True)
class Contents:
    """What a release is made of.

    Args:
        image: an archive of one image, as `docker save` and `podman save` write it.
        reference: the image's name; ``None`` takes the archive's own.
        l4t, compute_capability: of the machines that it is for; ``None`` takes the image's labels.
        store: of each file of weights and builds its path below the store, and where it lies now.
    """

    version: str
    image: Path
    models: Sequence[Model]
    golden: Sequence[Golden]
    store: Mapping[str, Path]
    reference: str | None = None
    l4t: Sequence[str] | None = None
    compute_capability: Sequence[str] | None = None
    boards: Sequence[str] = ()
    evidence: Path | None = None
    registry: Path | None = None


def create_bundle(
    contents: Contents, output: Path, key: Path, report: Report = silent, *, image: ImageArchive | None = None
) -> Manifest:
    """Write and sign a bundle at *output*, a new directory or a new file that ends in .tar.

    Args:
        key: the private key (`signing.generate_keys`).
        image: what `read_image` said of the contents' archive; by default it is read now.

    Raises:
        BundleError: there is something at *output*, or a part cannot be used; nothing was written.
        InsufficientStorageError: the disk has no room.
        OSError: it cannot be written.
    """
    signer = load_private(key)
    if output.exists() or output.is_symlink():
        raise BundleError(f"{output}: it is there already", hint=f"choose another name, or: rm -r {output}")
    sources = _sources(contents)
    draft = _draft(contents, image or read_image(contents.image), sources)
    output = output.absolute()
    require_space(output.parent, output.name, draft.total_bytes)
    temporary = output.with_name(f"{files.TEMPORARY_PREFIX}{output.name}")
    files.remove(temporary)
    write = _write_tar if output.suffix == ".tar" else _write_directory
    try:
        manifest = write(temporary, draft, sources, signer, report)
        temporary.rename(output)
    finally:
        files.remove(temporary)
    files.fsync(output.parent)
    return manifest


def _sources(contents: Contents) -> dict[str, Path]:
    named = {IMAGE: contents.image, EVIDENCE: contents.evidence, REGISTRY: contents.registry}
    found = {name: path for name, path in named.items() if path is not None}
    return found | {f"{STORE}/{name}": path for name, path in contents.store.items()}


def _draft(contents: Contents, image: ImageArchive, sources: Mapping[str, Path]) -> Manifest:
    """Return the manifest without the sums, checked as a device will check it."""
    reference = contents.reference or image.reference
    if reference is None:
        raise BundleError(f"{contents.image.name}: the image has no name", hint="give one: --image-reference")
    draft = Manifest(
        version=contents.version,
        created_unix_s=int(time.time()),
        arch=image.arch,
        l4t=image.listed(L4T_LABEL) if contents.l4t is None else tuple(contents.l4t),
        compute_capability=(
            image.listed(CAPABILITY_LABEL)
            if contents.compute_capability is None
            else tuple(contents.compute_capability)
        ),
        boards=tuple(contents.boards),
        image=Image(IMAGE, reference, image.id, image.bytes),
        models=tuple(contents.models),
        golden=tuple(contents.golden),
        evidence=None if contents.evidence is None else EVIDENCE,
        registry=None if contents.registry is None else REGISTRY,
        files=tuple(File(name, sources[name].stat().st_size, "0" * 64) for name in sorted(sources)),
    )
    try:
        return parse_manifest(draft.to_bytes())
    except BundleError as error:
        raise BundleError(error.message, hint="docs/bundle.md says what each of them may be") from None


def _write_directory(
    directory: Path, draft: Manifest, sources: Mapping[str, Path], signer: Ed25519PrivateKey, report: Report
) -> Manifest:
    directory.mkdir()
    copier = _Copier(draft, sources, report)
    for each in draft.files:
        path = directory / each.path
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as out:
            copier.copy(each, out)
            out.flush()
            os.fsync(out.fileno())
    manifest, data = copier.finished()
    files.write_atomic(directory / MANIFEST, data)
    files.write_atomic(directory / SIGNATURE, sign(data, signer))
    let_all_read(directory)
    for parent, _, _ in os.walk(directory):
        files.fsync(Path(parent))
    return manifest


def _write_tar(
    path: Path, draft: Manifest, sources: Mapping[str, Path], signer: Ed25519PrivateKey, report: Report
) -> Manifest:
    """Write the files behind a gap for the manifest and its signature, which are as long without the sums."""
    data = draft.to_bytes()
    gap = b"".join((*_record(MANIFEST, data), *_record(SIGNATURE, sign(data, signer))))
    copier = _Copier(draft, sources, report)
    with path.open("xb") as out:
        out.write(bytes(len(gap)))
        for each in draft.files:
            out.write(archive.header(each.path, each.bytes))
            copier.copy(each, out)
            out.write(archive.padding(each.bytes))
        out.write(archive.END)
        out.flush()
        os.fsync(out.fileno())
        manifest, data = copier.finished()
        out.seek(0)
        out.writelines((*_record(MANIFEST, data), *_record(SIGNATURE, sign(data, signer))))
        out.flush()
        os.fsync(out.fileno())
    return manifest


def _record(name: str, data: bytes) -> Iterator[bytes]:
    yield archive.header(name, len(data))
    yield data
    yield archive.padding(len(data))


class _Copier:
    """Copies the files of a draft, and keeps their sums."""

    def __init__(self, draft: Manifest, sources: Mapping[str, Path], report: Report) -> None:
        self._draft = draft
        self._sources = sources
        self._report = report
        self._done_bytes = 0
        self._files: list[File] = []

    def copy(self, file: File, out: IO[bytes]) -> None:
        """Copy one file.

        Raises:
            BundleError: it is no longer as long as it was.
        """
        digest, size = hashlib.sha256(), 0
        for block in files.blocks(self._sources[file.path]):
            digest.update(block)
            size += len(block)
            if size > file.bytes:
                break
            out.write(block)
            self._report("pack", self._done_bytes + size, self._draft.total_bytes)
        if size != file.bytes:
            raise BundleError(
                f"{self._sources[file.path]}: it was changed meanwhile",
                hint="try again, and let nobody write there",
            )
        self._done_bytes += size
        self._files.append(replace(file, sha256=digest.hexdigest()))

    def finished(self) -> tuple[Manifest, bytes]:
        """Return the manifest of what was copied, and its bytes."""
        data = replace(self._draft, files=tuple(self._files)).to_bytes()
        return parse_manifest(data), data
