"""The url source: a file comes whole and checked or not at all, whatever the server does meanwhile.

The server is tests/lying_server.py; nothing leaves the machine and nothing waits for a clock.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from inference.artifacts.sources import Progress, import_file
from inference.artifacts.sources.download import Patience
from inference.artifacts.sources.url import fetch_url
from inference.artifacts.sources.web import Limits
from inference.artifacts.store import Store
from inference.errors import (
    CancelledError,
    DownloadError,
    InsufficientStorageError,
    InvalidRequestError,
    OfflineError,
    UnsafeArtifactError,
)
from inference.registry import UrlSource, Variant
from tests.conftest import wait_until
from tests.lying_server import DEADLINE_S, Lie, LyingServer
from tests.synthetic_gguf import make
from tests.wheels import failure, leftovers, pull

WEIGHTS = make() + os.urandom(300_000)
LENGTH = len(WEIGHTS)
SHA256 = hashlib.sha256(WEIGHTS).hexdigest()
PATH = "/models/m.gguf"
ROOT = Path(__file__).parent.parent


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store."""
    return Store(tmp_path / "store")


@pytest.fixture
def server() -> Iterator[LyingServer]:
    """See `LyingServer`."""
    with LyingServer({PATH: WEIGHTS}) as running:
        yield running


def source_at(server: LyingServer, **changes: Any) -> UrlSource:
    """The source of the weights on *server*."""
    declared = {"type": "url", "url": server.url(PATH), "sha256": SHA256, "bytes": LENGTH, "local": True}
    return UrlSource.model_validate({**declared, **changes})


class Bringer:
    """Fetches with a clock of its own; *pauses* are the seconds it would have waited."""

    def __init__(self, server: LyingServer, store: Store) -> None:
        self._server = server
        self._store = store
        self.pauses: list[float] = []

    def __call__(
        self,
        *,
        tries: int = 6,
        stall_s: float = DEADLINE_S,
        progress: Callable[[Progress], None] = lambda _: None,
        cancelled: Callable[[], bool] = lambda: False,
        **changes: Any,
    ) -> Path:
        """Fetch the weights, as their source with *changes* says."""
        source = source_at(self._server, **changes)
        return fetch_url(
            source,
            Variant(backend="llamacpp", source=source),
            "m",
            self._store,
            progress=progress,
            cancelled=cancelled,
            offline=False,
            patience=Patience(tries, self.pauses.append, lambda: 1.0),
            limits=Limits(source.local, cancelled, stall_s=stall_s),
        )


@pytest.fixture
def bring(server: LyingServer, store: Store) -> Bringer:
    """See `Bringer`."""
    return Bringer(server, store)


# ------------------------------------------------------------------------------------- what arrives


def test_a_file_is_downloaded_checked_and_kept(server: LyingServer, store: Store) -> None:
    """One request brings it; nothing else remains, and the progress ends at the true total."""
    variant = Variant(backend="llamacpp", source=source_at(server))
    reports: list[Progress] = []
    path = pull(variant, store, progress=reports.append)
    assert path.read_bytes() == WEIGHTS
    assert store.path_of("m", variant) == path == pull(variant, store, offline=True)
    assert store.weights_sha256(variant) == SHA256
    assert store.is_intact(path, variant)
    assert server.ranges() == [None]
    assert leftovers(store) == []
    downloads = [r for r in reports if r.phase == "download"]
    assert {r.total_bytes for r in downloads} == {LENGTH}
    assert downloads[-1].done_bytes == LENGTH
    assert reports[-1].phase == "check"


@pytest.mark.parametrize("cut", [0, 1, 4096, LENGTH // 2, LENGTH - 1])
def test_a_cut_download_goes_on_at_the_byte_where_it_ended(
    server: LyingServer, bring: Bringer, cut: int
) -> None:
    """What came is not asked for again, and only of the same version of the file."""
    server.lies = [Lie(cut_at=cut)]
    assert bring().read_bytes() == WEIGHTS
    assert server.ranges() == [None, f"bytes={cut}-" if cut else None]
    assert server.requests[1].headers.get("if-range") == ('"one"' if cut else None)


def test_several_cuts_are_survived(server: LyingServer, bring: Bringer) -> None:
    """Each try adds what it got; the pauses double."""
    server.lies = [Lie(cut_at=1000)] * 5
    assert bring().read_bytes() == WEIGHTS
    assert server.ranges() == [None, *(f"bytes={n}000-" for n in range(1, 6))]
    assert sum(bring.pauses) == pytest.approx(1 + 2 + 4 + 8 + 16)
    assert max(bring.pauses) <= 0.2


def test_a_download_goes_on_after_a_restart(server: LyingServer, store: Store, bring: Bringer) -> None:
    """The last try's error says what is here; the next call, after a sweep, asks for the rest only."""
    server.lies = [Lie(cut_at=1000)] * 6
    error = failure(DownloadError, bring)
    assert f"closed the connection too early; 6,000 of {LENGTH:,} bytes are here" in error.message
    assert error.hint == "pull again, it goes on from there: jetllm pull m"
    assert error.details["done_bytes"] == 6000
    assert len(server.requests) == 6
    Store(store.root).sweep()
    assert bring().read_bytes() == WEIGHTS
    assert server.ranges()[6:] == ["bytes=6000-"]
    assert leftovers(store) == []


def test_a_killed_download_goes_on(server: LyingServer, store: Store, bring: Bringer) -> None:
    """SIGKILL leaves a part that the next process goes on from, and no lock."""
    server.lies = [Lie(stall_at=LENGTH - 10)]
    code = (
        "import sys; from pathlib import Path\n"
        "from inference.artifacts.sources import fetch; from inference.artifacts.store import Store\n"
        "from inference.registry import Variant\n"
        "fetch(Variant.model_validate_json(sys.argv[1]), 'm', Store(Path(sys.argv[2])),"
        " progress=lambda p: None, cancelled=lambda: False, offline=False)"
    )
    variant = Variant(backend="llamacpp", source=source_at(server))
    argv = [sys.executable, "-c", code, variant.model_dump_json(), str(store.root)]
    partial = store.staging / f"sha256-{SHA256}" / "partial" / "data"
    daemon = subprocess.Popen(argv, cwd=ROOT)
    try:
        assert server.stalled.wait(DEADLINE_S)
        wait_until(lambda: partial.exists() and partial.stat().st_size > 0, "something was written")
    finally:
        daemon.send_signal(signal.SIGKILL)
        daemon.wait()
    server.release.set()
    store.sweep()
    have = partial.stat().st_size
    assert bring().read_bytes() == WEIGHTS
    assert server.ranges() == [None, f"bytes={have}-"]


def test_versions_are_never_spliced(server: LyingServer, bring: Bringer) -> None:
    """A file that changed on the server begins again, whether the server says so or hides it."""
    for lie in (Lie(), Lie(heeds_if_range=False)):
        server.requests.clear()
        server.files[PATH], server.etag = bytes(LENGTH), '"old"'
        server.lies = [Lie(cut_at=5000)]
        failure(DownloadError, lambda: bring(tries=1))
        server.files[PATH], server.etag = WEIGHTS, '"new"'
        server.lies = [lie]
        path = bring()
        assert path.read_bytes() == WEIGHTS
        assert server.ranges()[1] == "bytes=5000-"
        path.unlink()


def test_without_a_validator_a_download_begins_again(server: LyingServer, bring: Bringer) -> None:
    """Nobody can say that the rest would be of the same version; a weak ETag does not."""
    for tag in (None, 'W/"one"'):
        server.requests.clear()
        server.lies = [Lie(cut_at=5000, headers={"ETag": tag})]
        path = bring()
        assert server.ranges() == [None, None]
        path.unlink()


def test_another_address_begins_again(server: LyingServer, bring: Bringer) -> None:
    """A part belongs to the address that it came from: two mirrors may use one ETag for two files."""
    server.lies = [Lie(cut_at=5000)]
    failure(DownloadError, lambda: bring(tries=1))
    server.files["/mirror"] = WEIGHTS
    assert bring(url=server.url("/mirror")).read_bytes() == WEIGHTS
    assert server.ranges() == [None, None]


@pytest.mark.parametrize(
    "lie",
    [
        Lie(ignores_range=True),
        Lie(headers={"Content-Range": f"bytes 4999-{LENGTH - 1}/{LENGTH}"}),
        Lie(headers={"Content-Range": f"bytes 5000-{LENGTH - 1}/{LENGTH + 1}"}),
        Lie(headers={"Content-Range": None}),
        Lie(headers={"Content-Range": "bytes */1"}),
        Lie(status=416, body=b""),
        Lie(status=503, body=b"", headers={"Retry-After": "soon"}),
    ],
    ids=["ignored", "other start", "other length", "none", "nonsense", "416", "busy"],
)
def test_lies_about_ranges_do_no_harm(server: LyingServer, bring: Bringer, lie: Lie) -> None:
    """A server that answers a range with something else ends in the right file all the same."""
    server.lies = [Lie(cut_at=5000), lie]
    assert bring().read_bytes() == WEIGHTS


def test_a_wrong_part_that_claims_to_be_right_is_found_by_its_hash(
    server: LyingServer, store: Store, bring: Bringer
) -> None:
    """A flipped byte puts the whole file aside; the next pull begins at its first byte."""
    server.lies = [Lie(cut_at=5000), Lie(flip_at=LENGTH - 3)]
    error = failure(UnsafeArtifactError, bring)
    assert f"m: expected SHA-256 {SHA256}, got " in error.message
    variant = Variant(backend="llamacpp", source=source_at(server))
    assert store.path_of("m", variant) is None
    assert "expected SHA-256" in (store.quarantine_reason(variant) or "")
    server.requests.clear()
    assert bring().read_bytes() == WEIGHTS
    assert server.ranges() == [None]
    assert store.quarantine_reason(variant) is None


def test_a_file_that_is_no_model_is_put_aside(server: LyingServer, store: Store, bring: Bringer) -> None:
    """The right hash of a file that the engine cannot read is no reason to keep it."""
    junk = b"x" * 1000
    server.files[PATH] = junk
    failure(UnsafeArtifactError, lambda: bring(sha256=hashlib.sha256(junk).hexdigest(), bytes=None))
    assert not (store.root / "blobs").exists()


def test_a_part_on_the_disk_that_changed_is_found(server: LyingServer, store: Store, bring: Bringer) -> None:
    """What a power cut did to the part at hand cannot reach an engine."""
    server.lies = [Lie(cut_at=5000)]
    failure(DownloadError, lambda: bring(tries=1))
    partial = store.staging / f"sha256-{SHA256}" / "partial"
    (partial / "data").write_bytes(bytes(5000))
    failure(UnsafeArtifactError, bring)
    assert bring().read_bytes() == WEIGHTS
    for record in ("", "{", "[]", json.dumps({"url_sha256": 1})):
        (store.root / "blobs" / f"sha256-{SHA256}").unlink()
        partial.mkdir(parents=True)
        (partial / "origin.json").write_text(record)
        (partial / "data").write_bytes(bytes(5000))
        assert bring().read_bytes() == WEIGHTS


# --------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    "lie",
    [
        Lie(body=b"<html>Sign in</html>", headers={"Content-Type": "text/html; charset=utf-8"}),
        Lie(body=(b"\n<!DOCTYPE html><title>Welcome</title>" + b" " * LENGTH)[:LENGTH]),
        Lie(status=511, body=b""),
    ],
    ids=["by its type", "by its first bytes", "by its status"],
)
def test_a_captive_portal_is_called_by_its_name(server: LyingServer, bring: Bringer, lie: Lie) -> None:
    """The network's sign-in page is no file; asking again would not help, signing in would."""
    server.lies = [lie]
    error = failure(DownloadError, bring)
    assert "web page" in error.message or "sign-in" in error.message
    assert "open any web page in a browser" in (error.hint or "")
    assert len(server.requests) == 1
    assert bring().read_bytes() == WEIGHTS
    assert server.ranges() == [None, None]


@pytest.mark.parametrize("status", [401, 403, 404, 410, 206])
def test_what_the_server_refuses_is_asked_once(server: LyingServer, bring: Bringer, status: int) -> None:
    """The error names the status, the address and how to bring the file by hand."""
    server.lies = [Lie(status=status, body=b"no")]
    error = failure(DownloadError, bring)
    assert f"HTTP {status}" in error.message
    assert server.url(PATH) in error.message
    assert error.hint == "bring the file from another machine: jetllm pull m --from PATH"
    assert len(server.requests) == 1


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_server_is_asked_six_times(server: LyingServer, bring: Bringer, status: int) -> None:
    """As late as it wishes, within a minute."""
    server.lies = [Lie(status=status, body=b"", headers={"Retry-After": "7"})] * 6
    error = failure(DownloadError, bring)
    assert f"HTTP {status}; 0 of {LENGTH:,} bytes are here" in error.message
    assert len(server.requests) == 6
    assert sum(bring.pauses) == pytest.approx(7 + 7 + 7 + 8 + 16)


def test_pauses_are_bounded_and_scattered() -> None:
    """Doubling ends at 30 s, a server's wish at 60 s; the jitter takes up to half."""
    late, early = Patience(jitter=lambda: 1.0), Patience(jitter=lambda: 0.0)
    assert [late.pause_s(n, 0) for n in (1, 2, 5, 6, 60)] == [1, 2, 16, 30, 30]
    assert [early.pause_s(n, 0) for n in (1, 2)] == [0.5, 1]
    assert late.pause_s(1, 1e9) == 60


def test_a_file_of_another_length_is_refused_before_it_comes(server: LyingServer, bring: Bringer) -> None:
    """Gigabytes of the wrong file are not fetched to learn that."""
    server.files[PATH] = WEIGHTS + b"more"
    error = failure(UnsafeArtifactError, bring)
    assert f"expected {LENGTH:,} bytes, the server has {LENGTH + 4:,}" in error.message
    assert len(server.requests) == 1


def test_a_length_must_be_known(server: LyingServer, bring: Bringer) -> None:
    """From models.json or from the server: without it no disk can be checked and no end be known."""
    server.lies = [Lie(headers={"Content-Length": None})]
    error = failure(DownloadError, lambda: bring(bytes=None))
    assert "does not say how long" in error.message
    assert error.hint == 'give the source its "bytes"'
    server.lies = [Lie(headers={"Content-Length": None})]
    assert bring().read_bytes() == WEIGHTS


def test_a_compressed_answer_is_refused(server: LyingServer, bring: Bringer) -> None:
    """Its bytes are not the file's."""
    server.lies = [Lie(headers={"Content-Encoding": "gzip"})]
    assert "compresses" in failure(DownloadError, bring).message


# ------------------------------------------------------------------------------- time, disk, company


def test_a_stalled_download_is_tried_again(server: LyingServer, bring: Bringer) -> None:
    """Silence ends a try; the next goes on where it was."""
    server.lies = [Lie(stall_at=5000)]
    assert bring(stall_s=0.3).read_bytes() == WEIGHTS
    assert server.ranges() == [None, "bytes=5000-"]


def test_cancelling_ends_a_stalled_download_within_a_second(
    server: LyingServer, store: Store, bring: Bringer
) -> None:
    """What came stays for the next pull."""
    server.lies = [Lie(stall_at=5000)]
    asked_s: list[float] = []

    def cancelled() -> bool:
        if server.stalled.is_set():
            asked_s.append(time.monotonic())
        return bool(asked_s)

    failure(CancelledError, lambda: bring(cancelled=cancelled))
    assert time.monotonic() - asked_s[0] < 1.0
    server.release.set()
    assert bring().read_bytes() == WEIGHTS
    assert server.ranges() == [None, "bytes=5000-"]


def test_cancelling_ends_a_pause(server: LyingServer, bring: Bringer) -> None:
    """A try that waits for its turn looks at cancellation five times a second."""
    server.lies = [Lie(status=503, body=b"", headers={"Retry-After": "60"})]
    failure(CancelledError, lambda: bring(cancelled=lambda: len(bring.pauses) == 3))
    assert len(bring.pauses) == 3


def test_a_disk_without_room_is_found_before_the_first_byte(
    server: LyingServer, store: Store, bring: Bringer
) -> None:
    """With a declared size before anybody is asked, else when the server has named it."""
    huge = 10**15
    error = failure(InsufficientStorageError, lambda: bring(bytes=huge))
    assert error.details["needed_bytes"] > huge * 1.05
    assert server.requests == []
    server.lies = [Lie(headers={"Content-Length": str(huge)})]
    failure(InsufficientStorageError, lambda: bring(bytes=None))
    assert list(store.root.rglob("data")) == []


def test_a_disk_that_fills_up_keeps_what_came(
    server: LyingServer, bring: Bringer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error says how much is here and how much is missing; the next pull goes on."""
    server.lies = [Lie(cut_at=5000)]
    failure(DownloadError, lambda: bring(tries=1))
    original = Path.open

    def full(path: Path, mode: str = "r", *rest: Any) -> Any:
        if mode == "ab":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(path, mode, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", full)
        error = failure(InsufficientStorageError, bring)
    assert f"the disk filled up; 5,000 of {LENGTH:,} bytes are here" in error.message
    assert error.details == {"done_bytes": 5000, "missing_bytes": LENGTH - 5000}
    assert "jetllm pull m" in (error.hint or "")
    assert bring().read_bytes() == WEIGHTS
    assert server.ranges()[-1] == "bytes=5000-"


def test_two_askers_share_one_download(server: LyingServer, bring: Bringer) -> None:
    """The second waits and finds the file of the first."""
    server.lies = [Lie(stall_at=5000)]
    paths: list[Path] = []
    waits = threading.Event()

    def second() -> None:
        assert server.stalled.wait(DEADLINE_S)
        paths.append(bring(progress=lambda p: waits.set() if p.phase == "wait" else None))

    threads = [threading.Thread(target=target) for target in (lambda: paths.append(bring()), second)]
    for thread in threads:
        thread.start()
    assert waits.wait(DEADLINE_S)
    server.release.set()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert len(paths) == 2
    assert paths[0] == paths[1]
    assert len(server.requests) == 1


def test_offline_nothing_is_asked(server: LyingServer, store: Store) -> None:
    """The error says what to bring and how."""
    variant = Variant(backend="llamacpp", source=source_at(server, url=server.url(PATH) + "?secret=1"))
    error = failure(OfflineError, lambda: pull(variant, store, offline=True))
    assert "'offline' forbids" in error.message
    assert f"{server.url(PATH)} ({LENGTH:,} bytes)" in error.message
    assert "secret" not in str(error) + str(error.details)
    assert server.requests == []


def test_a_file_brought_by_hand_is_checked(server: LyingServer, store: Store, tmp_path: Path) -> None:
    """`pull --from` takes the file itself, and no other."""
    variant = Variant(backend="llamacpp", source=source_at(server, bytes=None))
    brought = tmp_path / "usb.gguf"

    def bring_it() -> Path:
        return import_file(variant, "m", store, brought, lambda _: None)

    failure(InvalidRequestError, bring_it)
    brought.write_bytes(WEIGHTS + b"x")
    failure(UnsafeArtifactError, bring_it)
    brought.write_bytes(WEIGHTS)
    assert bring_it().read_bytes() == WEIGHTS
    assert leftovers(store) == []
    assert server.requests == []
