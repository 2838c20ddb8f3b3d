"""The store's disk: who uses what, what goes when room is needed, and what a foreign store allows."""

from __future__ import annotations

import dataclasses
import fcntl
import functools
import hashlib
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from inference.artifacts import files
from inference.artifacts.holdings import LEFTOVER, WEIGHTS
from inference.artifacts.store import Store
from inference.errors import DownloadError, InsufficientStorageError, ModelNotPulledError
from inference.registry import FileSource, HubSource, UrlSource, Variant
from inference.runtime.worker import Worker, WorkerSpec
from tests.conftest import Scripted, wait_until
from tests.lying_server import DEADLINE_S, Lie, LyingServer
from tests.synthetic_gguf import make
from tests.wheels import failure, pull

ROOT = Path(__file__).parent.parent
NOBODY = 65534
HUB = Variant(backend="transformers", source=HubSource(type="hub", repo="owner/name", revision="a" * 40))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store."""
    return Store(tmp_path / "store")


def variant_of(content: bytes, url: str = "https://models.example/m") -> Variant:
    """A variant whose weights are *content*."""
    digest = hashlib.sha256(content).hexdigest()
    source = UrlSource(type="url", url=url, sha256=digest, bytes=len(content), local=url.startswith("http:"))
    return Variant(backend="llamacpp", source=source)


def put(store: Store, content: bytes, used_s: float = 0) -> Path:
    """Commit a blob, used last at *used_s*."""
    source = variant_of(content).source
    assert isinstance(source, UrlSource)
    temporary = store.staging / "x" / "file"
    temporary.parent.mkdir(parents=True, exist_ok=True)
    temporary.write_bytes(content)
    path = store.commit(temporary, store.blob_path(source))
    temporary.parent.rmdir()
    os.utime(path, (used_s, used_s))
    return path


def put_snapshot(store: Store, used_s: float = 0) -> Path:
    """Commit the snapshot of `HUB`: 30 bytes in two files."""
    temporary = store.staging / "hub"
    (temporary / "sub").mkdir(parents=True)
    (temporary / "config.json").write_bytes(b"x" * 10)
    (temporary / "sub" / "m.safetensors").write_bytes(b"x" * 20)
    path = store.commit(temporary, store.snapshot_path(HUB, "a" * 40))
    os.utime(path, (used_s, used_s))
    return path


# ------------------------------------------------------------------------------------------ removal


def test_usage_lists_what_may_go_first(store: Store) -> None:
    """Leftovers come before weights, and of each kind what was not used for longest."""
    new, old = put(store, b"new" * 10, used_s=200), put(store, b"older", used_s=100)
    snapshot = put_snapshot(store, used_s=150)
    bad = put(store, b"bad")
    store.quarantine(bad, "why")
    listed = store.usage()
    assert [each.kind for each in listed] == [LEFTOVER, LEFTOVER, WEIGHTS, WEIGHTS, WEIGHTS]
    assert [(each.path, each.bytes) for each in listed if each.kind == WEIGHTS] == [
        (old, 5),
        (snapshot, 30),
        (new, 30),
    ]
    assert sum(each.bytes for each in listed) == 65 + len("bad") + len("why")
    assert not any(each.in_use for each in listed)
    assert Store(store.root.with_name("none")).usage() == []


def test_room_is_made_by_removing_what_was_used_least_recently(store: Store) -> None:
    """No more goes than is needed; what goes is absent to the next look."""
    old, middle, new = (put(store, name * 10, used_s=s) for s, name in enumerate((b"a", b"b", b"c")))
    assert store.make_room(11) == [old, middle]
    assert store.path_of("m", variant_of(b"a" * 10)) is None
    assert new.exists()
    assert list(store.staging.iterdir()) == []
    assert store.make_room(0) == []


def test_loading_counts_as_use(store: Store) -> None:
    """What was held last goes last; holding changes neither content nor time of change."""
    first, second = put(store, b"a" * 10, used_s=1), put(store, b"b" * 10, used_s=2)
    before = first.stat().st_mtime_ns
    store.hold(first).close()
    assert first.stat().st_mtime_ns == before
    assert store.make_room(1) == [second]
    assert [mark.name for mark in (store.root / "used").iterdir()] == [f"blobs--{first.name}"]
    assert store.make_room(1) == [first]
    assert list((store.root / "used").iterdir()) == []


def test_reading_is_no_use(store: Store) -> None:
    """Times of access, which a mount may move or not, decide nothing: looking at a model is not using it."""
    first, second = put(store, b"a" * 10, used_s=1), put(store, b"b" * 10, used_s=2)
    os.utime(first, (10**9, 1))
    assert store.make_room(1) == [first]
    assert second.exists()


def test_a_build_is_a_holding_like_weights(store: Store) -> None:
    """It counts, its links do not; it is held by a file of it; it goes by its last use, whole."""
    build, blob = store.root / "builds" / "key", put(store, b"a" * 10, used_s=5)
    temporary = store.staging / "build-key"
    (temporary / "sub").mkdir(parents=True)
    (temporary / "lib.so").write_bytes(b"x" * 20)
    (temporary / "sub" / "link").symlink_to(blob)
    store.commit(temporary, build)
    os.utime(build, (3, 3))
    (build.parent / "note.json").write_text("{}")
    assert [(each.path, each.bytes) for each in store.usage()] == [(build, 20), (blob, 10)]
    with store.hold(build / "sub" / "link"):
        assert [each.path for each in store.usage() if each.in_use] == [build]
        assert store.make_room(1) == [blob]
    assert store.make_room(1) == [build]
    assert [path.name for path in build.parent.iterdir()] == ["note.json"]


def test_looks_at_the_same_time_are_no_use(store: Store) -> None:
    """Several processes may count the disk at once; none takes another's look for a user."""
    for index in range(20):
        put(store, bytes([index]) * 10)
    others = [Store(store.root) for _ in range(4)]
    seen: list[bool] = []

    def look(each: Store) -> None:
        for _ in range(10):
            seen.extend(holding.in_use for holding in each.usage())

    threads = [threading.Thread(target=look, args=(each,)) for each in others]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 4 * 10 * 20
    assert not any(seen)


def test_who_counts_or_removes_is_alone(store: Store) -> None:
    """In any process: what one is about to remove, another does not count on."""
    path = put(store, b"a" * 10)
    removed: list[Path] = []
    thread = threading.Thread(target=lambda: removed.extend(store.make_room(1)))
    with files.lock_file(store.root / "locks" / "room.lock") as descriptor:
        assert files.try_lock(descriptor)
        thread.start()
        thread.join(0.2)
        assert path.exists()
    thread.join(DEADLINE_S)
    assert removed == [path]


def test_anothers_look_is_waited_for(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nobody can be alone, on a read-only disk, a lock that is gone soon was no use."""
    path = put(store, b"a" * 10)
    descriptor = os.open(path, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    monkeypatch.setattr("inference.artifacts.holdings.time.sleep", lambda seconds: os.close(descriptor))
    assert [each.in_use for each in store.usage()] == [False]


def test_a_worker_uses_its_weights_as_long_as_it_lives(
    store: Store, scripted: Scripted, start_worker: Callable[[WorkerSpec], Worker]
) -> None:
    """Nobody removes them under it, and its end, even by SIGKILL, gives them free."""
    weights = put(store, b"{}")
    spec = scripted.spec()
    options = {**spec.options, "weights": str(weights)}
    spec = dataclasses.replace(spec, options=options, store=str(store.root))
    worker = start_worker(spec)
    assert worker.ready
    assert [each.in_use for each in store.usage()] == [True]
    failure(InsufficientStorageError, lambda: store.make_room(1))
    worker.kill()
    assert worker.wait(DEADLINE_S)
    assert store.make_room(1) == [weights]
    gone = start_worker(spec)
    assert isinstance(gone.exit_error, ModelNotPulledError)


def test_what_is_in_use_is_never_removed(store: Store) -> None:
    """Each of several users counts; when the last has left, it may go."""
    path = put(store, b"a" * 10)
    with store.hold(path):
        with store.hold(path):
            assert [each.in_use for each in store.usage()] == [True]
        error = failure(InsufficientStorageError, lambda: store.make_room(1))
    assert error.details == {"wanted_bytes": 1, "available_bytes": 0}
    assert error.hint
    assert store.make_room(1) == [path]


def test_the_use_by_another_process_counts_and_ends_with_it(store: Store) -> None:
    """The lock is the kernel's: SIGKILL ends it."""
    path = put(store, b"a" * 10)
    code = (
        "import sys; from pathlib import Path\n"
        "from inference.artifacts.store import Store\n"
        "hold = Store(Path(sys.argv[1])).hold(Path(sys.argv[2])); print(flush=True); sys.stdin.read()"
    )
    argv = [sys.executable, "-c", code, str(store.root), str(path)]
    with subprocess.Popen(argv, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout
        other.stdout.readline()
        failure(InsufficientStorageError, lambda: store.make_room(1))
        other.kill()
        other.wait()
    assert store.make_room(1) == [path]


def test_a_file_of_a_snapshot_holds_the_whole(store: Store) -> None:
    """A snapshot goes whole or stays whole, however deep the file that an engine opened."""
    snapshot = put_snapshot(store)
    with store.hold(snapshot / "sub" / "m.safetensors"):
        failure(InsufficientStorageError, lambda: store.make_room(1))
    assert store.make_room(1) == [snapshot]
    assert store.pinned_revision(HUB.source) if isinstance(HUB.source, HubSource) else False


def test_what_is_pinned_is_never_removed(store: Store) -> None:
    """By the caller's list or by the store's own, by the path that an engine gets."""
    first, snapshot = put(store, b"a" * 10), put_snapshot(store)
    failure(InsufficientStorageError, lambda: store.make_room(1, keep=[first, snapshot / "config.json"]))
    failure(InsufficientStorageError, lambda: Store(store.root, keep=lambda: [first, snapshot]).make_room(1))
    assert first.exists()
    assert snapshot.exists()


def test_when_all_would_not_do_nothing_is_removed(store: Store) -> None:
    """Models are not given up for a fetch that has no room anyway."""
    path = put(store, b"a" * 10)
    error = failure(InsufficientStorageError, lambda: store.make_room(11))
    assert "give up 11 bytes; 10 are neither in use nor pinned" in error.message
    assert path.exists()


def test_weights_that_went_cannot_be_held(store: Store) -> None:
    """Between a look and a load they may be removed: that is an absent model, not a crash."""
    path = put(store, b"a" * 10)
    store.make_room(1)
    error = failure(ModelNotPulledError, lambda: store.hold(path))
    assert "jetllm pull" in (error.hint or "")


def test_a_removal_that_crashed_is_swept(store: Store) -> None:
    """What was moved out of sight, a file or a tree, is off the disk after the next start."""
    store.staging.mkdir(parents=True)
    (store.staging / "removed-sha256-x").write_bytes(b"x")
    (store.staging / "removed-snapshot" / "partial").mkdir(parents=True)
    (store.staging / "removed-snapshot" / "partial" / "y").write_bytes(b"y")
    store.sweep()
    assert list(store.staging.iterdir()) == []


# -------------------------------------------------------------------------------------------- quota


def test_a_fetch_makes_room_within_the_quota(store: Store) -> None:
    """The least recently used goes, the pinned one and what is fetched now stay."""
    content = make() + bytes(1000)
    pinned, old, new = (put(store, name * 1000, used_s=s) for s, name in enumerate((b"a", b"b", b"c")))
    quota = 2000 + len(content)
    limited = Store(store.root, quota_bytes=quota, keep=lambda: [pinned])
    with LyingServer({"/m": content}) as server:
        path = pull(variant_of(content, server.url("/m")), limited)
    assert path.read_bytes() == content
    assert (pinned.exists(), old.exists(), new.exists()) == (True, False, True)
    assert sum(each.bytes for each in limited.usage()) <= quota


def test_two_fetches_do_not_count_on_the_same_room(store: Store) -> None:
    """What one is about to write counts from its start, and no longer when it ends or is killed."""
    contents = {f"/{name}": make() + name.encode() * 100_000 for name in "ab"}
    quota = sum(map(len, contents.values())) - 1
    limited = Store(store.root, quota_bytes=quota)
    with LyingServer(contents) as server:
        first, second = (variant_of(content, server.url(path)) for path, content in contents.items())
        server.lies = [Lie(stall_at=1000)]
        fetch = threading.Thread(target=pull, args=(first, limited))
        fetch.start()
        assert server.stalled.wait(DEADLINE_S)
        failure(InsufficientStorageError, lambda: pull(second, limited))
        server.release.set()
        fetch.join(DEADLINE_S)
        assert store.path_of("m", first)
        assert pull(second, limited)
    assert store.path_of("m", first) is None


def test_what_a_killed_fetch_had_reserved_is_free(store: Store) -> None:
    """Nobody holds its lock: what is there counts, what was to come does not."""
    (store.staging / "x").mkdir(parents=True)
    (store.staging / "x" / ".reserved").write_text("1000")
    assert [each.bytes for each in store.usage()] == [0]
    store.sweep()
    assert list(store.staging.iterdir()) == []


def test_a_file_beyond_the_quota_is_refused(store: Store) -> None:
    """Before anybody is asked, and with all models still here."""
    content = make()
    path = put(store, b"a" * 10)
    with LyingServer({"/m": content}) as server:
        variant = variant_of(content, server.url("/m"))
        failure(InsufficientStorageError, lambda: pull(variant, Store(store.root, quota_bytes=100)))
        assert server.requests == []
    assert path.exists()


def test_without_a_quota_nothing_is_removed_by_itself(store: Store) -> None:
    """A disk without room is an error, and the user decides."""
    path = put(store, b"a" * 10)
    huge = variant_of(b"x")
    assert isinstance(huge.source, UrlSource)
    source = huge.source.model_copy(update={"bytes": 10**15})
    failure(InsufficientStorageError, lambda: pull(huge.model_copy(update={"source": source}), store))
    assert path.exists()


def test_what_is_being_fetched_is_in_use(store: Store) -> None:
    """The part of a file that a living fetch writes is no leftover that may go."""
    content = make() + bytes(300_000)
    with LyingServer({"/m": content}) as server:
        server.lies = [Lie(stall_at=200_000)]
        variant = variant_of(content, server.url("/m"))
        fetch = threading.Thread(target=pull, args=(variant, store))
        fetch.start()
        assert server.stalled.wait(DEADLINE_S)
        wait_until(lambda: any(each.bytes for each in store.usage()), "a part is here")
        failure(InsufficientStorageError, lambda: store.make_room(1))
        server.release.set()
        fetch.join(DEADLINE_S)
    assert store.path_of("m", variant) is not None


# ------------------------------------------------------------------------------- another user's store


@contextmanager
def read_only(root: Path) -> Iterator[None]:
    """Let nobody write below *root*; root itself becomes another user meanwhile."""
    below = sorted(root.rglob("*"), reverse=True)
    for path in (*below, root):
        path.chmod(0o555 if path.is_dir() else 0o444)
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)
        for path in (root, *reversed(below)):
            path.chmod(0o755 if path.is_dir() else 0o644)


def test_another_users_store_serves_and_cannot_be_changed(store: Store) -> None:
    """Weights are found, checked and held; what would write is refused with a way out."""
    with tempfile.TemporaryDirectory() as shared:
        Path(shared).chmod(0o755)
        theirs = Store(Path(shared) / "store")
        content, absent = make(), make() + b"x"
        variant = variant_of(content)
        put(theirs, content)
        put_snapshot(theirs)
        mine = Path(shared) / "mine.gguf"
        mine.write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        checked = FileSource(type="file", path=str(mine), sha256=digest)
        with read_only(theirs.root):
            path = theirs.path_of("m", variant)
            assert path is not None
            assert pull(variant, theirs) == path
            assert theirs.is_intact(path, variant)
            assert theirs.weights_bytes(HUB) == 30
            with theirs.hold(path):
                assert [each.in_use for each in theirs.usage() if each.path == path] == [True]
            theirs.sweep()
            theirs.quarantine(path, "unsound")
            assert theirs.path_of("m", variant) == path
            for other in (variant_of(absent), Variant(backend="llamacpp", source=checked)):
                error = failure(DownloadError, functools.partial(pull, other, theirs))
                assert "cannot be written" in error.message
                assert "JETLLM_CACHE_DIR" in (error.hint or "")
            with pytest.raises(OSError, match="Permission denied"):
                theirs.make_room(1)
