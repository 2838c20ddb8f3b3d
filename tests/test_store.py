"""The store: content-addressed, atomic, swept of what crashes leave, and careful with users' files."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from inference.artifacts import files
from inference.artifacts.store import Store
from inference.errors import CancelledError
from inference.registry import FileSource, HubSource, PackageSource, Variant

CONTENT = b"weights"
SHA256 = hashlib.sha256(CONTENT).hexdigest()
PACKAGE = PackageSource(type="package", name="p", version="1", file="p/a", sha256=SHA256, bytes=len(CONTENT))
PACKAGED = Variant(backend="llamacpp", source=PACKAGE)
HUB = HubSource(type="hub", repo="owner/name")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store."""
    return Store(tmp_path / "store")


def put(store: Store, content: bytes = CONTENT) -> Path:
    """Commit a blob as a fetch does."""
    temporary = store.staging / "x" / "file"
    temporary.parent.mkdir(parents=True, exist_ok=True)
    temporary.write_bytes(content)
    return store.commit(temporary, store.blob_path(PACKAGE))


def users(path: Path, **declared: object) -> Variant:
    """A variant that uses a file of the user's."""
    return Variant(
        backend="llamacpp", source=FileSource.model_validate({"type": "file", "path": str(path), **declared})
    )


def test_nothing_is_created_before_it_is_needed(store: Store) -> None:
    """Looking at an empty store, or sweeping it, leaves no trace on the disk."""
    assert store.path_of("m", PACKAGED) is None
    assert store.quarantine_reason(PACKAGED) is None
    store.sweep()
    assert not store.root.exists()


def test_a_committed_file_is_found_by_its_content(store: Store) -> None:
    """A blob is where its SHA-256 says, for whichever model names it."""
    path = put(store)
    assert store.path_of("a", PACKAGED) == store.path_of("b", PACKAGED) == path
    assert path.name == f"sha256-{SHA256}"
    assert store.path_of("m", Variant(backend="mlc")) is None


def test_a_file_of_the_wrong_length_is_absent(store: Store) -> None:
    """A blob that lost bytes is not offered."""
    os.truncate(put(store), 3)
    assert store.path_of("m", PACKAGED) is None


def test_changed_bytes_are_seen_when_asked_for(store: Store) -> None:
    """A flipped bit leaves the length alone; is_intact reads the file."""
    path = put(store)
    assert store.is_intact(path, PACKAGED)
    path.write_bytes(CONTENT[:-1] + b"!")
    assert store.path_of("m", PACKAGED) == path
    assert not store.is_intact(path, PACKAGED)
    assert store.is_intact(path, users(path))


def test_quarantine_moves_aside_what_is_in_the_store(store: Store) -> None:
    """An unsound blob is kept for a look with its reason, and is absent from then on."""
    path = put(store)
    store.quarantine(path, "tensor 'a' is missing")
    assert store.path_of("m", PACKAGED) is None
    assert store.quarantine_reason(PACKAGED) == "tensor 'a' is missing"
    assert (store.root / "quarantine" / path.name).read_bytes() == CONTENT
    store.quarantine(path, "again")  # gone already: another thread was first


def test_a_sound_file_ends_the_quarantine(store: Store) -> None:
    """Committing the file again removes the unsound one and its reason."""
    path = put(store)
    store.quarantine(path, "bad")
    put(store)
    assert store.path_of("m", PACKAGED) == path
    assert store.quarantine_reason(PACKAGED) is None
    assert files.entries(store.root / "quarantine") == []


def test_a_users_file_is_never_moved(store: Store, tmp_path: Path) -> None:
    """It is remembered instead, and trusted again once it has changed."""
    path = tmp_path / "mine.gguf"
    path.write_bytes(CONTENT)
    variant = users(path)
    assert store.path_of("m", variant) == path
    store.quarantine(path, "truncated")
    assert path.read_bytes() == CONTENT
    assert store.path_of("m", variant) is None
    assert store.quarantine_reason(variant) == "truncated"
    path.write_bytes(CONTENT + b"more")
    assert store.path_of("m", variant) == path
    assert store.quarantine_reason(variant) is None


def test_a_users_file_must_have_the_declared_size(store: Store, tmp_path: Path) -> None:
    """A file of another length is not the one that models.json means."""
    path = tmp_path / "mine.gguf"
    path.write_bytes(CONTENT)
    assert store.path_of("m", users(path, bytes=8)) is None
    assert store.path_of("m", users(path, bytes=7)) == path
    assert store.path_of("m", users(tmp_path / "absent")) is None


def test_a_users_file_with_a_hash_is_used_once_it_was_checked(store: Store, tmp_path: Path) -> None:
    """The check is remembered until the file changes; another hash needs its own check."""
    path = tmp_path / "mine.gguf"
    path.write_bytes(CONTENT)
    assert store.path_of("m", users(path, sha256=SHA256)) is None
    store.record_verified(path, SHA256)
    assert store.path_of("m", users(path, sha256=SHA256)) == path
    assert store.path_of("m", users(path, sha256="0" * 64)) is None
    path.write_bytes(b"changed")
    os.utime(path, ns=(1, 1))
    assert store.path_of("m", users(path, sha256=SHA256)) is None


def test_a_hub_revision_is_pinned_once_it_was_pulled(store: Store) -> None:
    """Without a revision in the registry, the recorded one counts; a given one wins."""
    assert store.pinned_revision(HUB) is None
    store.pin(HUB, "a" * 40)
    assert store.pinned_revision(HUB) == "a" * 40
    assert store.pinned_revision(HUB.model_copy(update={"revision": "b" * 40})) == "b" * 40


def test_hub_snapshots_are_found_and_quarantined_whole(store: Store) -> None:
    """A snapshot directory is present or absent as one thing."""
    variant = Variant(backend="transformers", source=HUB)
    store.pin(HUB, "a" * 40)
    assert store.path_of("m", variant) is None
    temporary = store.staging / "hub" / "snapshot"
    temporary.mkdir(parents=True)
    (temporary / "config.json").write_text("{}")
    path = store.commit(temporary, store.snapshot_path(variant, "a" * 40))
    assert store.path_of("m", variant) == path
    store.quarantine(path, "bad shard")
    assert store.path_of("m", variant) is None
    assert store.quarantine_reason(variant) == "bad shard"


def test_damaged_records_say_nothing(store: Store, tmp_path: Path) -> None:
    """A torn or foreign record neither blocks a file nor crashes a look-up."""
    path = tmp_path / "mine.gguf"
    path.write_bytes(CONTENT)
    store.quarantine(path, "bad")
    record = next((store.root / "quarantine").glob("*.json"))
    for text in ("", "{", "[]", '"x"', '{"reason": "bad"}'):
        record.write_text(text)
        assert store.path_of("m", users(path)) == path


def test_sweep_removes_what_a_crash_left(store: Store) -> None:
    """Half-written files and pip's leftovers go; complete wheels stay for the next pull."""
    crashed = store.staging / f"sha256-{SHA256}"
    (crashed / "pip" / "out").mkdir(parents=True)
    (crashed / f"sha256-{SHA256}").write_bytes(b"half")
    (crashed / "wheels").mkdir()
    (crashed / "wheels" / "p-1.whl").write_bytes(b"whole")
    (store.staging / "sha256-other" / "pip").mkdir(parents=True)
    (store.root / "quarantine").mkdir()
    (store.root / "quarantine" / ".tmp-1").write_bytes(b"half a record")
    store.sweep()
    assert [path.name for path in store.staging.rglob("*")] == [crashed.name, "wheels", "p-1.whl"]
    assert files.entries(store.root / "quarantine") == []


def test_sweep_removes_wheels_whose_file_is_there(store: Store) -> None:
    """A crash between the rename and the clean-up leaves nothing for ever."""
    put(store)
    wheels = store.staging / f"sha256-{SHA256}" / "wheels"
    wheels.mkdir(parents=True)
    (wheels / "p-1.whl").write_bytes(b"whole")
    store.sweep()
    assert not wheels.parent.exists()


def test_sweep_leaves_alone_what_a_living_fetch_holds(store: Store) -> None:
    """Who holds the lock is alive, whatever pid it has."""
    half = store.staging / "k" / "half"
    half.parent.mkdir(parents=True)
    half.write_bytes(b"half")
    with store.lock("k", cancelled=lambda: False, waiting=lambda: None):
        store.sweep()
        assert half.exists()
    store.sweep()
    assert not half.exists()


def test_sweep_of_a_disk_that_refuses_is_no_error(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon on a read-only disk starts and serves what is there."""
    path = put(store)

    def read_only(path: Path) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(files, "lock_file", read_only)
    store.sweep()
    assert store.path_of("m", PACKAGED) == path


def test_waiting_for_a_lock_can_be_cancelled(store: Store) -> None:
    """The second asker is told that it waits and may give up."""
    calls: list[str] = []
    with store.lock("k", cancelled=lambda: False, waiting=lambda: calls.append("first")):
        waits = store.lock("k", cancelled=lambda: len(calls) == 2, waiting=lambda: calls.append("second"))
        with pytest.raises(CancelledError), waits:
            pytest.fail("the lock was given twice")
    assert calls == ["second", "second"]


def test_writes_are_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that fails keeps the old bytes and leaves no temporary."""
    path = tmp_path / "record"
    files.write_atomic(path, b"old")

    def fails(descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(OSError, match="Input/output"):
        files.write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert files.entries(tmp_path) == [path]


def test_commits_reach_the_disk_before_they_appear(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """All bytes and entries are synced before the rename, the directories above after it; no link is."""
    order: list[str] = []
    sync, rename = os.fsync, Path.replace

    def fsync(descriptor: int) -> None:
        order.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        sync(descriptor)

    def replace(path: Path, target: Path) -> Path:
        order.append("rename")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", replace)
    put(store)
    assert order == ["file", "store", "rename", "blobs"]
    order.clear()
    tree = store.staging / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "sub" / "file").write_bytes(CONTENT)
    (tree / "link").symlink_to("nowhere")
    store.commit(tree, store.root / "hub" / "owner--name" / "commit")
    assert sorted(order[:3]) == ["file", "sub", "tree"]
    assert sorted(order[3:5]) == ["hub", "store"]
    assert order[5:] == ["rename", "owner--name"]


def test_a_damaged_tree_is_replaced(store: Store) -> None:
    """A snapshot with a file too short counts as absent, and the pull of the whole one takes its place."""
    target = store.root / "hub" / "owner--name" / "commit"
    for content in (b"cut", CONTENT):
        tree = store.staging / "tree"
        tree.mkdir(parents=True)
        (tree / "file").write_bytes(content)
        assert store.commit(tree, target) == target
    assert [(p.name, p.read_bytes()) for p in target.iterdir()] == [("file", CONTENT)]
    assert list(store.staging.iterdir()) == []
