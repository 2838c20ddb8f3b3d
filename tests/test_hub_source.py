"""Repositories of the hub, from a hub of the tests' own: pinned, without pickles, offline too."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import sys
import types
from collections.abc import Callable, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

from inference.artifacts import files
from inference.artifacts.store import Store
from inference.errors import DownloadError, MissingDependencyError, UnsafeArtifactError
from inference.registry import HubSource, Variant
from tests import synthetic_gguf
from tests.wheels import failure, leftovers, only_wheels_of, pull

COMMIT = "c" * 40


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store."""
    return Store(tmp_path / "store")


@pytest.fixture(autouse=True)
def links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The package index of the test: a directory of wheels, and no network."""
    return only_wheels_of(tmp_path / "links", monkeypatch)


class FakeHub(types.ModuleType):
    """huggingface_hub as far as it is used: one repository, a local cache, a network."""

    def __init__(self, content: dict[str, bytes], cache: Path | None = None) -> None:
        super().__init__("huggingface_hub")
        self.content = content
        self.cache = cache
        self.online = True
        self.newest = COMMIT
        self.promised: dict[str, bytes] = {}  # what it says of a file, where that is not what it serves
        self.asked: list[str | None] = []  # commits, as all that follows
        self.served: list[str] = []

    def HfApi(self) -> FakeHub:
        """The client."""
        return self

    def model_info(self, repo: str, revision: str | None, files_metadata: bool) -> types.SimpleNamespace:
        """A commit, the newest unless one is named, and what it holds."""
        if not self.online:
            raise RuntimeError("cannot reach the hub")
        assert files_metadata
        self.asked.append(revision)
        return types.SimpleNamespace(
            sha=revision or self.newest, siblings=[self._sibling(name) for name in self.content]
        )

    def _sibling(self, name: str) -> types.SimpleNamespace:
        data = self.promised.get(name, self.content[name])
        lfs = types.SimpleNamespace(sha256=hashlib.sha256(data).hexdigest())
        return types.SimpleNamespace(
            rfilename=name, size=len(data), lfs=None if name.endswith(".json") else lfs
        )

    def snapshot_download(
        self,
        repo_id: str,
        allow_patterns: list[str],
        revision: str | None = None,
        local_dir: str | None = None,
        local_files_only: bool = False,
    ) -> str:
        """The files that match, in *local_dir* or the cache."""
        if local_files_only:
            if self.cache is None:
                raise FileNotFoundError(repo_id)
            return str(self.cache)
        assert revision is not None
        assert local_dir is not None
        self.served.append(revision)
        for name, data in self.content.items():
            if any(fnmatch(name, pattern) for pattern in allow_patterns):
                (Path(local_dir) / name).parent.mkdir(parents=True, exist_ok=True)
                (Path(local_dir) / name).write_bytes(data)
        (Path(local_dir) / ".cache").mkdir()
        return local_dir


REPOSITORY = {"model.safetensors": b"tensors", "config.json": b"{}", "pytorch_model.bin": b"", "run.py": b""}


def hub_variant(backend: str = "transformers", files: Sequence[Any] = (), **changes: Any) -> Variant:
    """A variant of a repository of the hub; a file of it is a name or more."""
    source = {"type": "hub", "repo": "owner/name", **changes}
    listed = [{"name": file} if isinstance(file, str) else file for file in files]
    return Variant.model_validate_json(json.dumps({"backend": backend, "source": source, "files": listed}))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Callable[..., FakeHub]:
    """Install a `FakeHub`."""

    def install(content: dict[str, bytes] = REPOSITORY, cache: Path | None = None) -> FakeHub:
        fake = FakeHub(content, cache)
        monkeypatch.setitem(sys.modules, "huggingface_hub", fake)
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
        return fake

    return install


def test_a_hub_repository_is_pinned_and_its_pickles_stay_there(
    store: Store, hub: Callable[..., FakeHub]
) -> None:
    """Only safetensors and text come; the commit and every file's hash are recorded."""
    hub()
    path = pull(hub_variant(), store)
    assert sorted(p.name for p in path.iterdir()) == ["config.json", "model.safetensors"]
    assert store.path_of("m", hub_variant()) == path
    assert store.pinned_revision(HubSource(type="hub", repo="owner/name")) == path.name == COMMIT
    manifest = json.loads(path.with_name(f"{COMMIT}.json").read_text())
    assert manifest["files"]["model.safetensors"] == {
        "sha256": hashlib.sha256(b"tensors").hexdigest(),
        "bytes": 7,
    }
    assert files.entries(store.staging) == []


def test_the_users_hub_cache_serves_offline(
    store: Store, hub: Callable[..., FakeHub], tmp_path: Path
) -> None:
    """What the hub's own cache has is copied from there, links followed, without network."""
    cache = tmp_path / COMMIT
    cache.mkdir()
    (tmp_path / "blob").write_bytes(b"tensors")
    (cache / "model.safetensors").symlink_to(tmp_path / "blob")
    (cache / "config.json").write_text("{}")
    (cache / "pytorch_model.bin").write_bytes(b"pickle")
    hub(cache=cache)
    path = pull(hub_variant(), store, offline=True)
    assert (path / "model.safetensors").read_bytes() == b"tensors"
    assert not (path / "model.safetensors").is_symlink()
    assert not (path / "pytorch_model.bin").exists()


def test_hub_errors_say_how_to_go_on(store: Store, hub: Callable[..., FakeHub], tmp_path: Path) -> None:
    """Offline, no network, a half cache and pickled weights only: each has its own words."""
    fake = hub()
    assert "offline" in failure(DownloadError, lambda: pull(hub_variant(), store, offline=True)).message
    fake.online = False
    error = failure(DownloadError, lambda: pull(hub_variant(), store))
    assert error.message == "m: cannot reach the hub; needed: owner/name"
    index = json.dumps({"weight_map": {"a": "model-2.safetensors"}}).encode()
    hub({**REPOSITORY, "model.safetensors.index.json": index})
    assert (
        "no complete safetensors" in failure(UnsafeArtifactError, lambda: pull(hub_variant(), store)).message
    )
    hub({"pytorch_model.bin": b"", "config.json": b"{}"})
    assert "pickled" in failure(UnsafeArtifactError, lambda: pull(hub_variant(), store)).message
    hub()
    declared = hub_variant(files=[{"name": "model.safetensors", "sha256": "0" * 64}])
    assert "expected sha256" in failure(UnsafeArtifactError, lambda: pull(declared, store)).message
    assert leftovers(store) == []
    assert store.path_of("m", declared) is None


GGUF = synthetic_gguf.make()
SHARDS = ("q8/big-00001-of-00002.gguf", "q8/big-00002-of-00002.gguf")
GGUF_REPOSITORY = {"a-q4.gguf": GGUF, "a-q8.gguf": GGUF, SHARDS[1]: GGUF, SHARDS[0]: GGUF, "README.md": b""}


def test_only_the_named_gguf_is_taken(store: Store, hub: Callable[..., FakeHub]) -> None:
    """llama.cpp gets the file itself; another quantization of the same commit lies beside it."""
    hub(GGUF_REPOSITORY)
    small, large = (hub_variant("llamacpp", [name]) for name in ("a-q4.gguf", "a-q8.gguf"))
    path = pull(small, store)
    assert path == store.path_of("m", small)
    assert (path.name, path.read_bytes()) == ("a-q4.gguf", GGUF)
    assert [entry.name for entry in path.parent.iterdir()] == ["a-q4.gguf"]
    assert store.path_of("m", large) is None
    assert pull(large, store).name == "a-q8.gguf"
    assert store.path_of("m", small) == path
    assert store.weights_bytes(small) == len(GGUF)
    assert store.weights_sha256(small) == hashlib.sha256(GGUF).hexdigest()


def test_shards_come_together_and_the_first_one_is_opened(store: Store, hub: Callable[..., FakeHub]) -> None:
    """A model cut into shards is here when all are; its size is theirs together."""
    hub(GGUF_REPOSITORY)
    variant = hub_variant("llamacpp", list(reversed(SHARDS)))
    path = pull(variant, store)
    assert str(path).endswith(SHARDS[0])
    assert store.weights_bytes(variant) == 2 * len(GGUF)
    assert store.weights_sha256(variant) not in (None, hashlib.sha256(GGUF).hexdigest())
    (path.parent / Path(SHARDS[1]).name).unlink()
    assert store.path_of("m", variant) is None


def test_a_file_name_is_no_pattern(store: Store, hub: Callable[..., FakeHub]) -> None:
    """Brackets and stars in a name mean themselves."""
    hub({"[ab].gguf": GGUF, "a.gguf": GGUF})
    assert [p.name for p in pull(hub_variant("llamacpp", ["[ab].gguf"]), store).parent.iterdir()] == [
        "[ab].gguf"
    ]


def test_an_unsound_gguf_does_not_get_in(store: Store, hub: Callable[..., FakeHub]) -> None:
    """Every shard's header is checked before the store has any; nothing is pinned or recorded then."""
    hub({**GGUF_REPOSITORY, SHARDS[1]: GGUF[:-1]})
    error = failure(UnsafeArtifactError, lambda: pull(hub_variant("llamacpp", SHARDS), store))
    assert error.message.startswith(f"m: {SHARDS[1]}: truncated")
    assert leftovers(store) == []


def test_the_pin_and_the_hashes_outlive_the_snapshot(store: Store, hub: Callable[..., FakeHub]) -> None:
    """The next pull takes the commit of the first one, and what comes must be what came then."""
    fake = hub(GGUF_REPOSITORY)
    variant = hub_variant("llamacpp", ["a-q4.gguf"])
    path = pull(variant, store)
    fake.newest = "d" * 40
    store.quarantine(path, "bad")
    assert not path.parent.exists()
    assert store.path_of("m", variant) is None
    assert store.quarantine_reason(variant) == "bad"
    assert pull(variant, Store(store.root)) == path
    assert (fake.asked, fake.served) == ([None, COMMIT], [COMMIT, COMMIT])
    assert store.quarantine_reason(variant) is None
    store.quarantine(path, "bad")
    fake.content = {"a-q4.gguf": synthetic_gguf.make(version=2)}
    error = failure(UnsafeArtifactError, lambda: pull(variant, store))
    assert "expected sha256" in error.message
    assert "(says its first pull)" in error.message
    record = path.parent.with_name(f"{path.parent.name}.json")
    assert error.hint == f"to accept it, remove {record}"
    record.unlink()
    assert pull(variant, store) == path


def test_a_flipped_bit_in_a_snapshot_is_noticed(store: Store, hub: Callable[..., FakeHub]) -> None:
    """The recorded hashes tell whether the files still are what was pulled."""
    hub(GGUF_REPOSITORY)
    variant = hub_variant("llamacpp", ["a-q4.gguf"])
    path = pull(variant, store)
    assert store.is_intact(path, variant)
    path.write_bytes(GGUF[:-1] + bytes([GGUF[-1] ^ 1]))
    assert not store.is_intact(path, variant)


def test_what_comes_is_held_against_what_the_hub_says(store: Store, hub: Callable[..., FakeHub]) -> None:
    """A download that was damaged on the way is refused."""
    hub().promised = {"model.safetensors": b"others!"}
    error = failure(UnsafeArtifactError, lambda: pull(hub_variant(), store))
    assert "(says the hub)" in error.message
    assert leftovers(store) == []


def test_declared_files_must_be_there(store: Store, hub: Callable[..., FakeHub]) -> None:
    """A file that the repository does not have is named, before anything is downloaded."""
    fake = hub(GGUF_REPOSITORY)
    error = failure(UnsafeArtifactError, lambda: pull(hub_variant("llamacpp", ["b.gguf"]), store))
    assert error.message.startswith("m: owner/name has no file b.gguf")
    assert fake.served == []


@pytest.mark.parametrize("index", ["tensor-cache.json", "ndarray-cache.json"])
def test_raw_tensors_of_mlc_are_taken_when_whole(
    store: Store, hub: Callable[..., FakeHub], index: str
) -> None:
    """The shards that the index names come; a pickle or a library beside them does not."""
    names = [{"dataPath": "params_shard_0.bin"}, {"dataPath": "params_shard_1.bin"}]
    content = {
        index: json.dumps({"records": names}).encode(),
        "mlc-chat-config.json": b"{}",
        "params_shard_0.bin": b"0",
        "pytorch_model.bin": b"pickle",
        "lib.so": b"code",
    }
    hub(content)
    error = failure(UnsafeArtifactError, lambda: pull(hub_variant("mlc"), store))
    assert f"not all the tensors that {index} names" in error.message
    hub({**content, "params_shard_1.bin": b"1"})
    path = pull(hub_variant("mlc"), store)
    assert sorted(p.name for p in path.iterdir()) == sorted(
        ["mlc-chat-config.json", index, "params_shard_0.bin", "params_shard_1.bin"]
    )


@pytest.mark.parametrize(
    "text", [b"[]", b"{", b'{"weight_map": [1]}', b'{"weight_map": {"a": [1]}}', b"[" * 9999]
)
def test_hostile_indexes_are_no_weights(store: Store, hub: Callable[..., FakeHub], text: bytes) -> None:
    """An index of any shape is answered with a refusal."""
    hub({**REPOSITORY, "model.safetensors.index.json": text})
    error = failure(UnsafeArtifactError, lambda: pull(hub_variant(), store))
    assert "no complete safetensors" in error.message


def test_the_hub_needs_its_library(store: Store) -> None:
    """Without huggingface_hub, the extra that brings it is named."""
    if importlib.util.find_spec("huggingface_hub"):
        pytest.skip("huggingface_hub is installed")
    error = failure(MissingDependencyError, lambda: pull(hub_variant(), store))
    assert error.hint == "pip install jetllm[transformers]"
