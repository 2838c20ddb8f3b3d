"""The hub source: one commit, only tensors and text, and never other bytes than were declared.

The hub is tests/hub_server.py; huggingface_hub is the real one.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from inference.artifacts import files
from inference.artifacts.store import Store
from inference.errors import DownloadError, OfflineError, UnsafeArtifactError
from inference.registry import HubSource
from tests import synthetic_gguf
from tests.hub_server import COMMIT, REPO, HubServer, hub_variant, info_path, own_cache, pull
from tests.wheels import failure, leftovers

constants = pytest.importorskip("huggingface_hub.constants")

REPOSITORY = {"model.safetensors": b"tensors", "config.json": b"{}", "pytorch_model.bin": b"", "run.py": b""}
GGUF = synthetic_gguf.make()
SHARDS = ("q8/big-00001-of-00002.gguf", "q8/big-00002-of-00002.gguf")
GGUF_REPOSITORY = {"a-q4.gguf": GGUF, "a-q8.gguf": GGUF, SHARDS[1]: GGUF, SHARDS[0]: GGUF, "README.md": b""}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store."""
    return Store(tmp_path / "store")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's own hub cache, empty."""
    return own_cache(tmp_path / "cache", monkeypatch)


@pytest.fixture
def hub(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """The hub that huggingface_hub was told of."""
    with HubServer(REPOSITORY) as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.endpoint)
        yield running


def fill(cache: Path, content: Mapping[str, bytes]) -> None:
    """Put a snapshot into a hub cache as huggingface_hub lays it out: links to blobs."""
    repository = cache / f"models--{REPO.replace('/', '--')}"
    for name in ("blobs", "refs", f"snapshots/{COMMIT}"):
        (repository / name).mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    for name, data in content.items():
        blob = repository / "blobs" / hashlib.sha256(data).hexdigest()
        blob.write_bytes(data)
        (repository / "snapshots" / COMMIT / name).symlink_to(blob)


# --------------------------------------------------------------------------------------- what is taken


def test_a_hub_repository_is_pinned_and_its_pickles_stay_there(store: Store, hub: HubServer) -> None:
    """Only safetensors and text come; the commit and every file's hash are recorded."""
    path = pull(hub_variant(), store)
    assert sorted(p.name for p in path.iterdir()) == ["config.json", "model.safetensors"]
    assert store.path_of("m", hub_variant()) == path
    assert store.pinned_revision(HubSource(type="hub", repo=REPO)) == path.name == COMMIT
    manifest = json.loads(path.with_name(f"{COMMIT}.json").read_text())
    assert manifest["files"]["model.safetensors"] == {
        "sha256": hashlib.sha256(b"tensors").hexdigest(),
        "bytes": 7,
    }
    assert files.entries(store.staging) == []
    assert not hub.asked("pytorch_model.bin")
    assert not hub.asked("run.py")


def test_a_pinned_revision_is_the_one_that_is_asked_for(store: Store, hub: HubServer) -> None:
    """Whatever is newest at the hub; and a hub that names another commit is not believed."""
    older = "b" * 40
    hub.publish({**REPOSITORY, "config.json": b'{"older": 1}'}, commit=older)
    hub.publish(REPOSITORY)
    path = pull(hub_variant(revision=older), store)
    assert (path.name, (path / "config.json").read_bytes()) == (older, b'{"older": 1}')
    hub.files[info_path("d" * 40)] = hub.files[info_path()]
    error = failure(DownloadError, lambda: pull(hub_variant(revision="d" * 40), store))
    assert f"the hub has commit {COMMIT}" in error.message


def test_only_the_named_gguf_is_taken(store: Store, hub: HubServer) -> None:
    """llama.cpp gets the file itself; another quantization of the same commit lies beside it."""
    hub.publish(GGUF_REPOSITORY)
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


def test_shards_come_together_and_the_first_one_is_opened(store: Store, hub: HubServer) -> None:
    """A model cut into shards is here when all are; its size is theirs together."""
    hub.publish(GGUF_REPOSITORY)
    variant = hub_variant("llamacpp", list(reversed(SHARDS)))
    path = pull(variant, store)
    assert str(path).endswith(SHARDS[0])
    assert store.weights_bytes(variant) == 2 * len(GGUF)
    assert store.weights_sha256(variant) not in (None, hashlib.sha256(GGUF).hexdigest())
    (path.parent / Path(SHARDS[1]).name).unlink()
    assert store.path_of("m", variant) is None
    assert pull(variant, store) == path


def test_a_file_name_is_no_pattern(store: Store, hub: HubServer) -> None:
    """Brackets, stars and spaces in a name mean themselves."""
    hub.publish({"[ab] c.gguf": GGUF, "a.gguf": GGUF})
    path = pull(hub_variant("llamacpp", ["[ab] c.gguf"]), store)
    assert [p.name for p in path.parent.iterdir()] == ["[ab] c.gguf"]


@pytest.mark.parametrize("index", ["tensor-cache.json", "ndarray-cache.json"])
def test_raw_tensors_of_mlc_are_taken_when_whole(store: Store, hub: HubServer, index: str) -> None:
    """The shards that the index names come; a pickle or a library beside them does not."""
    names = [{"dataPath": "params_shard_0.bin"}, {"dataPath": "params_shard_1.bin"}]
    content = {
        index: json.dumps({"records": names}).encode(),
        "mlc-chat-config.json": b"{}",
        "params_shard_0.bin": b"0",
        "pytorch_model.bin": b"pickle",
        "lib.so": b"code",
    }
    hub.publish(content)
    error = failure(UnsafeArtifactError, lambda: pull(hub_variant("mlc"), store))
    assert f"not all the tensors that {index} names" in error.message
    hub.publish({**content, "params_shard_1.bin": b"1"})
    path = pull(hub_variant("mlc"), store)
    assert sorted(p.name for p in path.iterdir()) == sorted(
        ["mlc-chat-config.json", index, "params_shard_0.bin", "params_shard_1.bin"]
    )


# -------------------------------------------------------------------------------------- the user's cache


def test_the_users_hub_cache_serves_offline(store: Store, hub: HubServer, cache: Path) -> None:
    """What the hub's own cache has is copied from there, links followed, without network."""
    fill(cache, {"model.safetensors": b"tensors", "config.json": b"{}", "pytorch_model.bin": b"pickle"})
    path = pull(hub_variant(), store, offline=True)
    assert (path / "model.safetensors").read_bytes() == b"tensors"
    assert not (path / "model.safetensors").is_symlink()
    assert sorted(p.name for p in path.iterdir()) == ["config.json", "model.safetensors"]
    assert hub.requests == []
    assert files.entries(store.staging) == []


def test_a_cache_without_all_weights_is_not_taken(store: Store, hub: HubServer, cache: Path) -> None:
    """The index says which tensors there are; what is missing comes from the hub."""
    index = json.dumps({"weight_map": {"a": "model.safetensors", "b": "more.safetensors"}}).encode()
    content = {**REPOSITORY, "model.safetensors.index.json": index, "more.safetensors": b"more"}
    fill(cache, {"model.safetensors": b"tensors", "model.safetensors.index.json": index})
    assert "offline" in failure(OfflineError, lambda: pull(hub_variant(), store, offline=True)).message
    hub.publish(content)
    assert (pull(hub_variant(), store) / "more.safetensors").read_bytes() == b"more"


# ------------------------------------------------------------------------------------ what is not believed


def test_what_cannot_run_is_refused(store: Store, hub: HubServer) -> None:
    """Tensors that an index names and that are not there, and pickled weights only."""
    index = json.dumps({"weight_map": {"a": "model-2.safetensors"}}).encode()
    hub.publish({**REPOSITORY, "model.safetensors.index.json": index})
    error = failure(UnsafeArtifactError, lambda: pull(hub_variant(), store))
    assert "no complete safetensors" in error.message
    hub.publish({"pytorch_model.bin": b"pickle", "config.json": b"{}"})
    del hub.requests[:]
    assert "pickled" in failure(UnsafeArtifactError, lambda: pull(hub_variant(), store)).message
    assert [request.path for request in hub.requests] == [info_path()]
    assert leftovers(store) == []


def test_what_is_declared_is_held_against_the_hub_before_it_comes(store: Store, hub: HubServer) -> None:
    """Another hash, another size or no such file: nothing is downloaded for that."""
    for file in (
        {"name": "model.safetensors", "sha256": "0" * 64},
        {"name": "model.safetensors", "bytes": 8},
    ):
        declared = hub_variant(files=[file])
        error = failure(UnsafeArtifactError, functools.partial(pull, declared, store))
        assert "(says models.json)" in error.message
        assert store.path_of("m", declared) is None
    error = failure(UnsafeArtifactError, lambda: pull(hub_variant("llamacpp", ["b.gguf"]), store))
    assert error.message.startswith("m: owner/name has no file b.gguf")
    assert not hub.asked("/resolve/")
    assert leftovers(store) == []


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_what_comes_is_held_against_what_the_hub_says(store: Store, hub: HubServer, name: str) -> None:
    """Of a large file the SHA-256, of a small one git's hash: other bytes of the same length are refused."""
    hub.publish(REPOSITORY, promised={name: bytes(len(REPOSITORY[name]))})
    error = failure(UnsafeArtifactError, lambda: pull(hub_variant(), store))
    assert f"{name}: not the bytes that the hub says it has" in error.message
    hub.publish(REPOSITORY)
    assert pull(hub_variant(), store)


def test_an_unsound_gguf_does_not_get_in(store: Store, hub: HubServer) -> None:
    """Every shard's header is checked before the store has any; nothing is pinned or recorded then."""
    hub.publish({**GGUF_REPOSITORY, SHARDS[1]: GGUF[:-1]})
    error = failure(UnsafeArtifactError, lambda: pull(hub_variant("llamacpp", SHARDS), store))
    assert error.message.startswith(f"m: {SHARDS[1]}: truncated")
    assert leftovers(store) == []


def test_the_pin_and_the_hashes_outlive_the_snapshot(store: Store, hub: HubServer) -> None:
    """The next pull takes the commit of the first one, and what comes must be what came then."""
    hub.publish(GGUF_REPOSITORY)
    variant = hub_variant("llamacpp", ["a-q4.gguf"])
    path = pull(variant, store)
    hub.publish({"a-q4.gguf": b"newer"}, commit="d" * 40)
    store.quarantine(path, "bad")
    assert not path.parent.exists()
    assert store.path_of("m", variant) is None
    assert store.quarantine_reason(variant) == "bad"
    hub.publish(GGUF_REPOSITORY)
    hub.files[info_path()] = b"nobody asks for the newest any more"
    assert pull(variant, Store(store.root)) == path
    assert store.quarantine_reason(variant) is None
    store.quarantine(path, "bad")
    hub.publish({"a-q4.gguf": synthetic_gguf.make(version=2)})
    error = failure(UnsafeArtifactError, lambda: pull(variant, store))
    assert "expected sha256" in error.message
    assert "(says its first pull)" in error.message
    record = path.parent.with_name(f"{path.parent.name}.json")
    assert error.hint == f"to accept it, remove {record}"
    record.unlink()
    assert pull(variant, store) == path


def test_a_flipped_bit_in_a_snapshot_is_noticed(store: Store, hub: HubServer) -> None:
    """The recorded hashes tell whether the files still are what was pulled."""
    hub.publish(GGUF_REPOSITORY)
    variant = hub_variant("llamacpp", ["a-q4.gguf"])
    path = pull(variant, store)
    assert store.is_intact(path, variant)
    path.write_bytes(GGUF[:-1] + bytes([GGUF[-1] ^ 1]))
    assert not store.is_intact(path, variant)


@pytest.mark.parametrize(
    "text", [b"[]", b"{", b'{"weight_map": [1]}', b'{"weight_map": {"a": [1]}}', b"[" * 9999]
)
def test_hostile_indexes_are_no_weights(store: Store, hub: HubServer, text: bytes) -> None:
    """An index of any shape is answered with a refusal."""
    hub.publish({**REPOSITORY, "model.safetensors.index.json": text})
    error = failure(UnsafeArtifactError, lambda: pull(hub_variant(), store))
    assert "no complete safetensors" in error.message


@pytest.mark.parametrize(
    "text",
    [
        b"[]",
        b"{",
        b"[" * 9999,
        b'{"sha": 1, "siblings": []}',
        b'{"sha": "main", "siblings": []}',
        b'{"sha": "%s"}' % (b"c" * 40),
    ],
)
def test_hostile_listings_are_no_repository(store: Store, hub: HubServer, text: bytes) -> None:
    """An answer of any shape is a failed download, and leaves nothing."""
    hub.files[info_path()] = text
    error = failure(DownloadError, lambda: pull(hub_variant(), store))
    assert error.message.endswith("needed: owner/name")
    assert leftovers(store) == []


@pytest.mark.parametrize(
    "name", ["../../x.json", "/etc/x.json", "a//x.json", "./x.json", "a\\..\\x.json", ""]
)
def test_a_name_that_leaves_the_snapshot_is_nobodys(
    store: Store, hub: HubServer, tmp_path: Path, name: str
) -> None:
    """The hub names files, and a hub can be taken over."""
    info = json.loads(hub.files[info_path()])
    info["siblings"] += [{"rfilename": name, "size": 2}, {"rfilename": None}, 7]
    hub.files[info_path()] = json.dumps(info).encode()
    path = pull(hub_variant(), store)
    assert sorted(p.name for p in path.iterdir()) == ["config.json", "model.safetensors"]
    assert not list(tmp_path.rglob("x.json"))
