"""A model hub on the loopback: what its HTTP API says of one repository, on top of `LyingServer`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from inference.artifacts.sources import Progress
from inference.artifacts.sources.download import Patience
from inference.artifacts.sources.hub import fetch_hub
from inference.artifacts.store import Store
from inference.registry import HubSource, Variant
from tests.lying_server import DEADLINE_S, LyingServer

COMMIT = "c" * 40
REPO = "owner/name"
_LARGE = (".safetensors", ".gguf", ".bin")


class HubServer(LyingServer):
    """One repository. Large files are on another host, where a redirect leads.

    Args:
        promised: contents that the hub says it has, where they are not those that it serves.
    """

    def __init__(self, content: Mapping[str, bytes], promised: Mapping[str, bytes] | None = None) -> None:
        super().__init__({})
        self.content = dict(content)
        self.publish(content, promised)

    @property
    def endpoint(self) -> str:
        """What HF_ENDPOINT is set to."""
        return self.url("")

    def publish(
        self, content: Mapping[str, bytes], promised: Mapping[str, bytes] | None = None, commit: str = COMMIT
    ) -> None:
        """Make *commit* the newest one."""
        self.content = dict(content)
        said = {**content, **(promised or {})}
        siblings = [sibling(name, said[name]) for name in content]
        info = json.dumps({"id": REPO, "sha": commit, "siblings": siblings}).encode()
        for path in (info_path(), info_path(commit)):
            self.files[path] = info
            self.types[path] = "application/json"
        for name, data in content.items():
            path = file_path(name, commit)
            self.files[path] = data
            if name.endswith(_LARGE):
                self.files[cdn_path(name)] = data
                self.redirects[path] = self.url(cdn_path(name)).replace("127.0.0.1", "localhost")

    def asked(self, part: str) -> list[str]:
        """The paths of the requests that have *part* in them."""
        return [request.path for request in self.requests if part in request.path]


def sibling(name: str, data: bytes) -> dict[str, Any]:
    """What the hub says of a file."""
    said: dict[str, Any] = {"rfilename": name, "size": len(data)}
    if name.endswith(_LARGE):
        return said | {"blobId": "f" * 40, "lfs": {"sha256": hashlib.sha256(data).hexdigest()}}
    return said | {"blobId": hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()}  # noqa: S324 - git's


def info_path(commit: str | None = None) -> str:
    """Where the hub says what a commit holds."""
    return f"/api/models/{REPO}{f'/revision/{commit}' if commit else ''}?blobs=True"


def file_path(name: str, commit: str = COMMIT) -> str:
    """Where a file is asked for."""
    return f"/{REPO}/resolve/{commit}/{quote(name)}"


def cdn_path(name: str) -> str:
    """Where a large file is."""
    return f"/cdn/{quote(name)}"


def own_cache(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make *directory* the user's hub cache, and let no token of the developer's be known."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(directory))
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(directory / "no-token"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    return directory


def hub_variant(backend: str = "transformers", files: Sequence[Any] = (), **changes: Any) -> Variant:
    """A variant of the repository; a file of it is a name or more."""
    source = {"type": "hub", "repo": REPO, **changes}
    listed = [{"name": file} if isinstance(file, str) else file for file in files]
    return Variant.model_validate_json(json.dumps({"backend": backend, "source": source, "files": listed}))


def pull(
    variant: Variant,
    store: Store,
    *,
    tries: int = 6,
    stall_s: float = DEADLINE_S,
    progress: Callable[[Progress], None] = lambda _: None,
    cancelled: Callable[[], bool] = lambda: False,
    offline: bool = False,
) -> Path:
    """Fetch *variant* without waiting between tries."""
    assert isinstance(variant.source, HubSource)
    return fetch_hub(
        variant.source,
        variant,
        "m",
        store,
        progress=progress,
        cancelled=cancelled,
        offline=offline,
        patience=Patience(tries, lambda seconds: None),
        stall_s=stall_s,
    )
