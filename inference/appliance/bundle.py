"""The bundle: a release as a directory, or as one .tar of it, believed only once all of it is checked.

`inference.appliance.creating` writes what is read here.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from inference.appliance import archive
from inference.appliance.errors import BundleError
from inference.appliance.manifest import MANIFEST, MAX_BYTES, SIGNATURE, File, Manifest, parse_manifest
from inference.appliance.signing import MAX_SIGNATURE_BYTES, load_trusted, verify
from inference.artifacts import files
from inference.device.detect import Device
from inference.device.images import image_for
from inference.errors import InsufficientStorageError

Report = Callable[[str, int, int], None]
"""Gets what is done ("check", "copy", "pack"), the bytes of it that are done, and those of all of it."""

_UNPACKED = f"{files.TEMPORARY_PREFIX}bundle-"
_RESERVE_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Bundle:
    """A bundle of which every byte was checked.

    Args:
        directory: where its files lie; of a .tar a directory that goes with the context.
        signer: the name of the trusted key that signed it (its file's, without ``.pub``).
    """

    manifest: Manifest
    directory: Path
    signer: str


def silent(what: str, done_bytes: int, total_bytes: int) -> None:
    """Report nothing."""


@contextmanager
def open_bundle(path: Path, trusted: Path, *, workspace: Path, report: Report = silent) -> Iterator[Bundle]:
    """Check the signature and every file of a bundle; a .tar is unpacked below *workspace* meanwhile.

    A directory is used where it lies: who can write there can change it afterwards. What an earlier
    process that was killed had unpacked is removed.

    Args:
        trusted: a public key, or a directory of such (``*.pub``, PEM): `Layout.trusted`.
        workspace: a directory on a disk with room for the whole bundle; made if it is not there.

    Raises:
        BundleError: it is not what its manifest says, or signed by nobody who is trusted.
        InsufficientStorageError: the disk has no room for what is in the .tar.
    """
    if path.is_dir():
        manifest, signer = _check_directory(path, trusted, report)
        yield Bundle(manifest, path, signer)
        return
    with _opened_tar(path) as tar, _unpacking(workspace) as directory:
        manifest, signer = _check_tar(tar, path, trusted, report, directory)
        yield Bundle(manifest, directory, signer)


def check_bundle(path: Path, trusted: Path, report: Report = silent) -> tuple[Manifest, str]:
    """Check a bundle, of a .tar without unpacking it; return its manifest and the name of its key.

    Raises:
        BundleError: as `open_bundle`.
    """
    if path.is_dir():
        return _check_directory(path, trusted, report)
    with _opened_tar(path) as tar:
        return _check_tar(tar, path, trusted, report, None)


def is_release(path: Path) -> bool:
    """Whether *path* looks like a release's bundle; another .tar may be a build's."""
    if path.is_dir():
        return True
    try:
        with path.open("rb") as file:
            return file.read(len(MANIFEST) + 1) == MANIFEST.encode() + b"\0"
    except OSError as error:
        raise _unreadable(path, error) from None


def why_unfit(manifest: Manifest, device: Device, *, unknown_fits: bool = False) -> str | None:
    """Say why a release does not run on *device*, and what would; ``None`` where it does.

    Args:
        unknown_fits: whether what is not known of the device fits: in a container not all of it is seen.
    """
    asked = (
        ("the processor", (manifest.arch,), device.arch, _is_one_of),
        ("L4T", manifest.l4t, device.l4t, _is_release_of),
        ("the compute capability", manifest.compute_capability, device.compute_capability, _is_one_of),
        ("the board", manifest.boards, device.board, _is_one_of),
    )
    problems = [
        f"the release is for {what} {' or '.join(wanted)}; this machine has {found or 'none'}"
        for what, wanted, found, fits in asked
        if wanted and not (unknown_fits if found is None else fits(found, wanted))
    ]
    if not problems:
        return None
    return f"{'; '.join(problems)}; it needs {_needs(device)}"


def _is_one_of(found: str, wanted: Collection[str]) -> bool:
    return found in wanted


def _is_release_of(found: str, wanted: Collection[str]) -> bool:
    return any(f"{found}.".startswith(f"{release}.") for release in wanted)


def _needs(device: Device) -> str:
    """Return what a release for *device* is, in words."""
    facts = (
        ("the processor", device.arch),
        ("L4T", device.l4t),
        ("the compute capability", device.compute_capability),
        ("the board", device.board),
    )
    text = f"a release for {', '.join(f'{what} {found}' for what, found in facts if found) or 'any machine'}"
    if device.l4t is None:
        return text
    image = image_for(device)
    if image is None or "mlc" not in image.backends:
        return f"{text}; no image with MLC is published for it: one for the CPU (containers/Dockerfile.cpu)"
    return f"{text}, built on {image.tag}"


def _check_directory(path: Path, trusted: Path, report: Report) -> tuple[Manifest, str]:
    keys = load_trusted(trusted)
    data, signature = _small(path, MANIFEST, MAX_BYTES), _small(path, SIGNATURE, MAX_SIGNATURE_BYTES)
    signer = verify(data, signature, keys)
    manifest = parse_manifest(data)
    _check_listing(path, manifest)
    done_bytes = 0
    for each in manifest.files:
        digest = hashlib.sha256()
        with _regular(path, each.path) as (file, size_bytes):
            if size_bytes != each.bytes:
                raise _changed(each, f"{size_bytes:,} bytes")
            while block := file.read(files.BLOCK_BYTES):
                digest.update(block)
                done_bytes += len(block)
                report("check", done_bytes, manifest.total_bytes)
        _compare(each, digest.hexdigest())
    return manifest, signer


def _check_listing(path: Path, manifest: Manifest) -> None:
    """See that there is every file, and nothing else.

    Raises:
        BundleError: so it is not.
    """
    wanted = {each.path for each in manifest.files} | {MANIFEST, SIGNATURE}
    directories = {
        "/".join(parts[:n]) for each in wanted for parts in [each.split("/")] for n in range(1, len(parts))
    }
    found: set[str] = set()
    pending = [path]
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                name = Path(entry.path).relative_to(path).as_posix()
                is_directory = entry.is_dir(follow_symlinks=False)
                if entry.is_symlink() or name not in (directories if is_directory else wanted):
                    raise BundleError(f"{name}: nothing of this bundle", hint=_HINT)
                if is_directory:
                    pending.append(Path(entry.path))
                else:
                    found.add(name)
    if missing := sorted(wanted - found):
        raise BundleError(f"{missing[0]}: it is missing", hint=_HINT)


def _check_tar(
    tar: IO[bytes], path: Path, trusted: Path, report: Report, into: Path | None
) -> tuple[Manifest, str]:
    keys = load_trusted(trusted)
    data = archive.read_unsized(tar, MANIFEST, MAX_BYTES)
    signature = archive.read_unsized(tar, SIGNATURE, MAX_SIGNATURE_BYTES)
    signer = verify(data, signature, keys)
    manifest = parse_manifest(data)
    if into is not None:
        require_space(into, path.name, manifest.total_bytes)
    sizes = (len(data), len(signature), *(each.bytes for each in manifest.files))
    wanted_bytes, found_bytes = archive.total_bytes(iter(sizes)), os.fstat(tar.fileno()).st_size
    if found_bytes != wanted_bytes:
        raise BundleError(f"{path.name}: expected {wanted_bytes:,} bytes, got {found_bytes:,}", hint=_HINT)
    if into is not None:
        (into / MANIFEST).write_bytes(data)
        (into / SIGNATURE).write_bytes(signature)
    done_bytes = 0
    for each in manifest.files:
        digest = hashlib.sha256()
        with _created(into, each.path) as file:
            for block in archive.read(tar, each.path, each.bytes):
                digest.update(block)
                file.write(block)
                done_bytes += len(block)
                report("check", done_bytes, manifest.total_bytes)
        _compare(each, digest.hexdigest())
    archive.read_end(tar)
    if into is not None:
        let_all_read(into)
    return manifest, signer


def let_all_read(directory: Path) -> None:
    """Let others read a bundle, whatever the umask: an import in a container is another user's."""
    for parent, _, names in os.walk(directory):
        Path(parent).chmod(0o755)
        for name in names:
            Path(parent, name).chmod(0o644)


def require_space(directory: Path, name: str, wanted_bytes: int) -> None:
    """See that the disk of *directory* has room for so much, 5 % and 64 MiB.

    Raises:
        InsufficientStorageError: it has not.
    """
    needed = wanted_bytes + wanted_bytes // 20 + _RESERVE_BYTES
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise InsufficientStorageError(
            f"{name} needs {needed / 1e6:,.0f} MB of disk at {directory}; {free / 1e6:,.0f} MB are free",
            hint="free some space there (df shows it)",
            details={"needed_bytes": needed, "free_bytes": free},
        )


@contextmanager
def _unpacking(workspace: Path) -> Iterator[Path]:
    """Yield a new directory, which others may read; it is removed with the context, or by the next one."""
    files.make_directory(workspace)
    for leftover in workspace.glob(f"{_UNPACKED}*"):
        with suppress(OSError), _locked(leftover) as is_free:
            if is_free:
                files.remove(leftover)
    directory = Path(tempfile.mkdtemp(prefix=_UNPACKED, dir=workspace))
    try:
        with _locked(directory):
            yield directory
    finally:
        files.remove(directory)


@contextmanager
def _locked(directory: Path) -> Iterator[bool]:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield files.try_lock(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _created(directory: Path | None, name: str) -> Iterator[IO[bytes]]:
    if directory is None:
        with Path(os.devnull).open("wb") as nothing:
            yield nothing
        return
    path = directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as file:
        yield file


@contextmanager
def _opened_tar(path: Path) -> Iterator[IO[bytes]]:
    try:
        # Not path.open: on a pipe that nobody writes to it would wait for ever.
        file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    except OSError as error:
        raise _unreadable(path, error) from None
    with file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise BundleError(f"{path}: expected a directory or a .tar", hint=_HINT)
        yield file


@contextmanager
def _regular(directory: Path, name: str) -> Iterator[tuple[IO[bytes], int]]:
    """Open a file of a directory, and tell its size; nothing but a regular one, and through no link."""
    path = directory / name
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise BundleError(f"{name}: it is missing", hint=_HINT) from None
    except OSError as error:
        raise _unreadable(path, error) from None
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise BundleError(f"{name}: expected a file", hint=_HINT)
        yield file, status.st_size


def _small(directory: Path, name: str, most_bytes: int) -> bytes:
    with _regular(directory, name) as (file, _):
        data = file.read(most_bytes + 1)
    if len(data) > most_bytes:
        raise BundleError(f"{name}: expected at most {most_bytes:,} bytes, got more", hint=_HINT)
    return data


def _compare(file: File, sha256: str) -> None:
    if sha256 != file.sha256:
        raise _changed(file, f"the SHA-256 {sha256[:12]}...")


def _changed(file: File, found: str) -> BundleError:
    return BundleError(
        f"{file.path}: expected {file.bytes:,} bytes with the SHA-256 {file.sha256[:12]}..., got {found}",
        hint=_HINT,
    )


def _unreadable(path: Path, error: OSError) -> BundleError:
    return BundleError(f"{path}: it cannot be read: {error.strerror}", hint=_HINT)


_HINT = "use nothing of it; take the bundle from where it was made once more"
