"""The hub source when the hub, the network or the disk fails: what came stays, and the error says what to do.

The hub is tests/hub_server.py; huggingface_hub is the real one.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from inference.artifacts.sources import Progress
from inference.artifacts.store import Store
from inference.errors import (
    CancelledError,
    DownloadError,
    InsufficientStorageError,
    MissingDependencyError,
    UnsafeArtifactError,
)
from tests.hub_server import (
    REPO,
    HubServer,
    cdn_path,
    file_path,
    hub_variant,
    info_path,
    own_cache,
    pull,
)
from tests.lying_server import DEADLINE_S, Lie
from tests.wheels import failure, leftovers

constants = pytest.importorskip("huggingface_hub.constants")

ROOT = Path(__file__).parent.parent
WEIGHTS = os.urandom(300_000)
NAME = "model.safetensors"
REPOSITORY = {"config.json": b'{"model_type": "gpt2"}', NAME: WEIGHTS, "tokenizer.json": b"{}"}
TOTAL = sum(map(len, REPOSITORY.values()))
VARIANT = hub_variant()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store."""
    return Store(tmp_path / "store")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """The hub that huggingface_hub was told of; its lies are about the weights."""
    own_cache(tmp_path / "cache", monkeypatch)
    with HubServer(REPOSITORY) as running:
        running.lies_about = cdn_path(NAME)
        monkeypatch.setattr(constants, "ENDPOINT", running.endpoint)
        yield running


def whole(path: Path) -> bool:
    """Whether all files of the repository are at *path*."""
    return {p.name: p.read_bytes() for p in path.iterdir()} == REPOSITORY


def ranges(hub: HubServer) -> list[str | None]:
    """The Range header of each request for the weights."""
    return [r.headers.get("range") for r in hub.requests if r.path == cdn_path(NAME)]


# ------------------------------------------------------------------------------------ cut, stalled, lied to


@pytest.mark.parametrize("at", [0, 1, 7, 65_535, 65_536, 65_537, 299_999])
def test_a_cut_pull_goes_on_at_the_byte_where_it_ended(store: Store, hub: HubServer, at: int) -> None:
    """In another process as well: what is whole is not asked for again, what is begun is gone on with."""
    hub.lies = [Lie(cut_at=at)]
    error = failure(DownloadError, lambda: pull(VARIANT, store, tries=1))
    done = at + len(REPOSITORY["config.json"])
    assert f"{done:,} of {TOTAL:,} bytes are here" in error.message
    assert error.hint == "pull again, it goes on from there: jetllm pull m"
    assert error.details == {"repo": REPO, "done_bytes": done}
    assert whole(pull(VARIANT, Store(store.root)))
    assert ranges(hub) == [None, f"bytes={at}-" if at else None]
    assert len(hub.asked("config.json")) == 1
    assert list(store.staging.iterdir()) == []


def test_cuts_and_stalls_are_survived(store: Store, hub: HubServer) -> None:
    """Six tries, each from where the last one ended."""
    hub.lies = [Lie(cut_at=1000), Lie(stall_at=2000), Lie(status=503, body=b""), Lie(cut_at=5000)]
    assert whole(pull(VARIANT, store, stall_s=0.3))
    assert ranges(hub) == [None, "bytes=1000-", "bytes=3000-", "bytes=3000-", "bytes=8000-"]


def test_a_killed_pull_goes_on(store: Store, hub: HubServer) -> None:
    """SIGKILL leaves what came; the next start sweeps and the next pull goes on."""
    hub.lies = [Lie(stall_at=5000)]
    code = (
        "import sys; from pathlib import Path; import huggingface_hub.constants as c\n"
        "c.ENDPOINT, c.HF_HUB_CACHE = sys.argv[2], sys.argv[1] + '/none'\n"
        "from inference.artifacts.store import Store; from tests.hub_server import hub_variant, pull\n"
        "pull(hub_variant(), Store(Path(sys.argv[1])))"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(store.root), hub.endpoint], cwd=ROOT)
    assert hub.stalled.wait(DEADLINE_S)
    end_s = time.monotonic() + DEADLINE_S
    while not any(p.stat().st_size == 5000 for p in store.root.rglob("data")):
        assert time.monotonic() < end_s
        threading.Event().wait(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    hub.release.set()
    store.sweep()
    assert store.path_of("m", VARIANT) is None
    assert whole(pull(VARIANT, store))
    assert ranges(hub) == [None, "bytes=5000-"]


@pytest.mark.parametrize(
    "lie",
    [
        Lie(ignores_range=True),
        Lie(status=206, headers={"Content-Range": "bytes 0-299999/300000"}),
        Lie(headers={"Content-Range": "bytes 5001-300000/300001"}),
        Lie(headers={"ETag": '"two"'}),
        Lie(status=416, body=b""),
    ],
)
def test_lies_about_ranges_do_no_harm(store: Store, hub: HubServer, lie: Lie) -> None:
    """Another part, another version, no part at all: the weights are whole in the end."""
    hub.lies = [Lie(cut_at=5000), lie]
    assert whole(pull(VARIANT, store))


@pytest.mark.parametrize("name", [NAME, "tokenizer.json"])
def test_a_flipped_bit_is_found_before_anything_appears(store: Store, hub: HubServer, name: str) -> None:
    """The file goes, the whole ones stay, and the next pull brings only it."""
    hub.lies_about = cdn_path(name) if name == NAME else file_path(name)
    hub.lies = [Lie(flip_at=1)]
    error = failure(UnsafeArtifactError, lambda: pull(VARIANT, store))
    assert f"{name}: not the bytes that the hub says it has" in error.message
    assert "pull again" in (error.hint or "")
    assert store.path_of("m", VARIANT) is None
    assert whole(pull(VARIANT, store))
    assert len(hub.asked("config.json")) == 1


def test_another_commit_begins_again(store: Store, hub: HubServer) -> None:
    """Files of two commits are never mixed, and what came of the other one goes."""
    hub.lies = [Lie(cut_at=5000)]
    failure(DownloadError, lambda: pull(VARIANT, store, tries=1))
    newer = {**REPOSITORY, "config.json": b"{}"}
    hub.publish(newer, commit="d" * 40)
    path = pull(VARIANT, store)
    assert path.name == "d" * 40
    assert {p.name: p.read_bytes() for p in path.iterdir()} == newer
    assert list(store.staging.iterdir()) == []


# ----------------------------------------------------------------------------------- cancelled, asked twice


@pytest.mark.parametrize("where", [info_path(), cdn_path(NAME)])
def test_cancelling_ends_a_stalled_pull_within_a_second(store: Store, hub: HubServer, where: str) -> None:
    """While the hub is asked what it has as well as in the middle of a file; what came stays."""
    hub.lies_about, hub.lies = where, [Lie(stall_at=10)]
    asked_s: list[float] = []

    def cancelled() -> bool:
        if hub.stalled.is_set():
            asked_s.append(time.monotonic())
        return bool(asked_s)

    failure(CancelledError, lambda: pull(VARIANT, store, cancelled=cancelled))
    assert time.monotonic() - asked_s[0] < 1.0
    hub.release.set()
    assert whole(pull(VARIANT, store))


def test_eight_askers_share_one_download(store: Store, hub: HubServer) -> None:
    """The others wait, with progress that says so, and find the snapshot of the first."""
    hub.lies = [Lie(stall_at=5000)]
    paths: list[Path] = []
    waiting: set[int] = set()
    all_wait = threading.Event()

    def ask() -> None:
        paths.append(pull(VARIANT, Store(store.root), progress=look))

    def look(progress: Progress) -> None:
        if progress.phase == "wait":
            waiting.add(threading.get_ident())
            if len(waiting) == 7:
                all_wait.set()

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    assert all_wait.wait(DEADLINE_S)
    hub.release.set()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert len(paths) == 8
    assert len(set(paths)) == 1
    assert [len(hub.asked(name)) for name in ("/api/", cdn_path(NAME), "config.json")] == [1, 1, 1]


def test_progress_counts_all_files_together(store: Store, hub: HubServer) -> None:
    """Bytes never fall, end at the sum, and begin at what was here."""
    seen: list[Progress] = []
    hub.lies = [Lie(cut_at=200_000)]
    failure(DownloadError, lambda: pull(VARIANT, store, tries=1))
    pull(VARIANT, store, progress=seen.append)
    done = [each.done_bytes for each in seen if each.phase == "download"]
    assert done == sorted(done)
    assert done[0] == 200_000 + len(REPOSITORY["config.json"])
    assert done[-1] == TOTAL
    assert {each.total_bytes for each in seen} == {TOTAL}


# --------------------------------------------------------------------------------------- refused, not there


@pytest.mark.parametrize("guarded", ["/api/", "/resolve/"])
def test_a_gated_repository_asks_for_a_token(
    store: Store, hub: HubServer, monkeypatch: pytest.MonkeyPatch, guarded: str
) -> None:
    """Without one, with one that has no access, and with the right one, which only the hub gets to see."""
    hub.token, hub.guarded = "hf_right", guarded
    error = failure(DownloadError, lambda: pull(VARIANT, store))
    assert "refuses owner/name to somebody without a token (HTTP 401)" in error.message
    assert "HF_TOKEN" in (error.hint or "")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    error = failure(DownloadError, lambda: pull(VARIANT, store))
    assert "to the owner of this token (HTTP 403)" in error.message
    assert "hf_wrong" not in str(error) + repr(error.details)
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    assert whole(pull(VARIANT, store))
    elsewhere = [r for r in hub.requests if r.path == cdn_path(NAME)]
    assert elsewhere
    assert not any("authorization" in request.headers for request in elsewhere)


def test_what_the_hub_does_not_have_is_asked_for_once(store: Store, hub: HubServer) -> None:
    """A repository, a commit or a file that is gone is no reason to try again."""
    failure(DownloadError, lambda: pull(hub_variant(revision="e" * 40), store))
    del hub.files[file_path("config.json")]
    error = failure(DownloadError, lambda: pull(VARIANT, store))
    assert "no such repository, commit or file in owner/name (HTTP 404)" in error.message
    assert [request.path for request in hub.requests][-2:] == [info_path(), file_path("config.json")]
    assert len(hub.requests) == 3


@pytest.mark.parametrize("where", [info_path(), cdn_path(NAME)])
@pytest.mark.parametrize(
    "lie",
    [
        Lie(body=b"<html>sign in", headers={"Content-Type": "text/html; charset=utf-8"}),
        Lie(status=511, body=b""),
    ],
)
def test_a_captive_portal_is_called_by_its_name(store: Store, hub: HubServer, where: str, lie: Lie) -> None:
    """A page instead of a list or of a file is told apart from a hub that is broken."""
    hub.lies_about, hub.lies = where, [lie]
    error = failure(DownloadError, lambda: pull(VARIANT, store))
    assert "sign-in" in (error.hint or "")
    assert whole(pull(VARIANT, store))


def test_a_name_without_address_is_said(
    store: Store, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After six tries, and with the way around."""
    monkeypatch.setattr(constants, "ENDPOINT", "https://hub.invalid")

    def refuse(*args: object, **kwargs: object) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    error = failure(DownloadError, lambda: pull(VARIANT, store))
    assert "the name hub.invalid cannot be resolved (Name or service not known)" in error.message


@pytest.mark.parametrize(
    ("endpoint", "address", "words"),
    [
        ("http://hub.example", "8.8.8.8", "is public and not https://"),
        ("ftp://hub.example", "8.8.8.8", "expected https://host"),
        ("https://", "8.8.8.8", "expected https://host"),
        ("https://hub.example", "169.254.169.254", "no public address"),
    ],
)
def test_an_endpoint_that_must_not_be_asked_is_not(
    store: Store, hub: HubServer, monkeypatch: pytest.MonkeyPatch, endpoint: str, address: str, words: str
) -> None:
    """A token goes over TLS or stays in the house, and nobody asks the cloud's metadata."""
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    answer = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 443))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: answer)
    assert words in failure(DownloadError, lambda: pull(VARIANT, store)).message
    assert hub.requests == []


# --------------------------------------------------------------------------------------------------- disk


def test_a_disk_without_room_is_found_before_the_first_byte(store: Store, hub: HubServer) -> None:
    """The hub says how much there is: nothing is downloaded, nothing is written."""
    huge = 10**15
    info = hub.files[info_path()].decode().replace(f'"size": {len(WEIGHTS)}', f'"size": {huge}')
    hub.files[info_path()] = info.encode()
    error = failure(InsufficientStorageError, lambda: pull(VARIANT, store))
    assert error.details["needed_bytes"] > huge * 1.05
    assert [request.path for request in hub.requests] == [info_path()]
    assert leftovers(store) == []


def test_a_disk_that_fills_up_keeps_what_came(
    store: Store, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error says how much is here and how much is missing; the next pull goes on."""
    hub.lies = [Lie(cut_at=5000)]
    failure(DownloadError, lambda: pull(VARIANT, store, tries=1))
    original = Path.open

    def full(path: Path, mode: str = "r", *rest: Any, **named: Any) -> Any:
        if mode == "ab":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(path, mode, *rest, **named)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", full)
        error = failure(InsufficientStorageError, lambda: pull(VARIANT, store))
    done = 5000 + len(REPOSITORY["config.json"])
    assert error.details == {"done_bytes": done, "missing_bytes": TOTAL - done}
    assert "jetllm pull m" in (error.hint or "")
    assert whole(pull(VARIANT, store))
    assert ranges(hub)[-1] == "bytes=5000-"


def test_a_disk_that_fails_is_called_by_its_name(
    store: Store, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any other error than a full disk has its own words."""

    def broken(path: Path, *rest: Any, **named: Any) -> Any:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr("inference.artifacts.sources.download.files.write_atomic", broken)
        error = failure(DownloadError, lambda: pull(VARIANT, store))
    assert error.message == "m: the weights cannot be written: Input/output error"


def test_a_snapshot_makes_room_within_the_quota(store: Store, hub: HubServer) -> None:
    """What is not used goes for it, once; what is downloaded meanwhile counts."""
    target = store.root / "blobs" / f"sha256-{'0' * 64}"
    temporary = store.staging / "x"
    temporary.mkdir(parents=True)
    (temporary / "file").write_bytes(bytes(1000))
    store.commit(temporary / "file", target)
    temporary.rmdir()
    failure(InsufficientStorageError, lambda: pull(VARIANT, Store(store.root, quota_bytes=TOTAL - 1)))
    assert target.exists()
    limited = Store(store.root, quota_bytes=TOTAL + 999)
    assert whole(pull(VARIANT, limited))
    assert not target.exists()
    assert sum(each.bytes for each in limited.usage()) == TOTAL


# --------------------------------------------------------------------------------- what the user has set up


def in_a_process(store: Store, tmp_path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Pull in a process of its own, whose huggingface_hub reads *environment*."""
    code = (
        "import sys; from pathlib import Path\n"
        "from inference.artifacts.store import Store; from inference.errors import JetLLMError\n"
        "from tests.hub_server import hub_variant, pull\n"
        "try: print(pull(hub_variant(), Store(Path(sys.argv[1]))))\n"
        "except JetLLMError as error: sys.exit(str(error))"
    )
    clean = {name: text for name, text in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    return subprocess.run(
        [sys.executable, "-c", code, str(store.root)],
        cwd=ROOT,
        env={**clean, "HF_HOME": str(tmp_path / "hf"), **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_the_hubs_own_variables_count(store: Store, hub: HubServer, tmp_path: Path) -> None:
    """A mirror, offline mode, a token in a file of a login, one in the environment, which wins."""
    mirror = {"HF_ENDPOINT": hub.endpoint + "/"}
    offline = in_a_process(store, tmp_path, **mirror, HF_HUB_OFFLINE="1")
    assert "HF_HUB_OFFLINE forbids the download" in offline.stderr
    assert hub.requests == []
    hub.token = "hf_right"  # noqa: S105 - the test's
    hub.guarded = "/api/"
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "token").write_text("hf_wrong\n")
    assert "to the owner of this token" in in_a_process(store, tmp_path, **mirror).stderr
    assert in_a_process(store, tmp_path, **mirror, HF_TOKEN="hf_right").returncode == 0  # noqa: S106
    path = store.path_of("m", VARIANT)
    assert path is not None
    assert whole(path)


def test_nothing_but_the_repository_is_asked_for(store: Store, hub: HubServer, tmp_path: Path) -> None:
    """No telemetry and no detection, which the library's own requests bring along."""
    assert in_a_process(store, tmp_path, HF_ENDPOINT=hub.endpoint).returncode == 0
    wanted = {info_path(), *(file_path(name) for name in REPOSITORY), cdn_path(NAME)}
    assert {request.path for request in hub.requests} == wanted
    assert {request.headers["user-agent"] for request in hub.requests} == {"jetllm"}


def test_a_token_is_kept_back_where_that_is_asked(
    store: Store, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HF_HUB_DISABLE_IMPLICIT_TOKEN."""
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", True)
    assert whole(pull(VARIANT, store))
    assert not any("authorization" in request.headers for request in hub.requests)


def test_a_login_that_is_renewed_can_be_cancelled(
    store: Store, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """huggingface_hub asks the hub for a new token by itself, and cannot be interrupted."""
    release, asked = threading.Event(), threading.Event()

    def renew() -> None:
        asked.set()
        release.wait(DEADLINE_S)

    monkeypatch.setattr("huggingface_hub.get_token", renew)
    start_s = time.monotonic()
    try:
        failure(CancelledError, lambda: pull(VARIANT, store, cancelled=asked.is_set))
        assert time.monotonic() - start_s < 1.0
    finally:
        release.set()

    def fail() -> None:
        raise ValueError("the exchange failed")

    monkeypatch.setattr("huggingface_hub.get_token", fail)
    assert "the exchange failed" in failure(DownloadError, lambda: pull(VARIANT, store)).message


def test_the_hub_needs_its_library(store: Store, hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without huggingface_hub, its name is said."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    error = failure(MissingDependencyError, lambda: pull(VARIANT, store))
    assert error.hint == "pip install huggingface_hub"
