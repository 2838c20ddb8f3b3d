"""Repositories of the hub, from a hub of the tests' own: pinned, without pickles, offline too."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from inference.artifacts import files
from inference.artifacts.store import Store
from inference.errors import DownloadError, MissingDependencyError, UnsafeArtifactError
from inference.registry import HubSource, Variant
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

    def HfApi(self) -> FakeHub:
        """The client."""
        return self

    def model_info(self, repo: str) -> types.SimpleNamespace:
        """The newest commit."""
        if not self.online:
            raise RuntimeError("cannot reach the hub")
        return types.SimpleNamespace(sha=COMMIT)

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
        assert revision == COMMIT
        assert local_dir is not None
        for name, data in self.content.items():
            if any(Path(name).match(pattern) for pattern in allow_patterns):
                (Path(local_dir) / name).parent.mkdir(parents=True, exist_ok=True)
                (Path(local_dir) / name).write_bytes(data)
        (Path(local_dir) / ".cache").mkdir()
        return local_dir


REPOSITORY = {"model.safetensors": b"tensors", "config.json": b"{}", "pytorch_model.bin": b"", "run.py": b""}


def hub_variant(**changes: Any) -> Variant:
    """A variant of a repository of the hub."""
    declared = {"type": "hub", "repo": "owner/name", **changes}
    return Variant(backend="transformers", source=HubSource.model_validate_json(json.dumps(declared)))


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
    hub(cache=cache)
    path = pull(hub_variant(), store, offline=True)
    assert (path / "model.safetensors").read_bytes() == b"tensors"
    assert not (path / "model.safetensors").is_symlink()


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


def test_the_hub_needs_its_library(store: Store) -> None:
    """Without huggingface_hub, the extra that brings it is named."""
    if importlib.util.find_spec("huggingface_hub"):
        pytest.skip("huggingface_hub is installed")
    error = failure(MissingDependencyError, lambda: pull(hub_variant(), store))
    assert error.hint == "pip install jetllm[transformers]"
