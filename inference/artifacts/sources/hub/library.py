"""The library: what huggingface_hub knows of this machine, its user and its cache."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from inference.errors import MissingDependencyError

_NAME = "huggingface_hub"


@dataclass(frozen=True)
class Hub:
    """Where the hub is and who asks.

    Args:
        endpoint: the hub's address, or a mirror's (HF_ENDPOINT).
        headers: who asks: the token (HF_TOKEN, HF_TOKEN_PATH or a login), if there is one.
        stall_s: HF_HUB_DOWNLOAD_TIMEOUT, where it is longer than ours.
    """

    endpoint: str
    headers: Mapping[str, str] = field(repr=False)
    stall_s: float

    def info_url(self, repo: str, revision: str | None) -> str:
        """Return where the hub says what a repository holds."""
        commit = "" if revision is None else f"/revision/{revision}"
        return f"{self.endpoint}/api/models/{repo}{commit}?blobs=True"

    def file_url(self, repo: str, revision: str, name: str) -> str:
        """Return where one file of a commit is."""
        return f"{self.endpoint}/{repo}/resolve/{revision}/{quote(name)}"

    @property
    def has_token(self) -> bool:
        """Whether anybody in particular asks."""
        return "authorization" in self.headers


def open_hub(name: str) -> Hub:
    """Read what huggingface_hub was told. It may ask the hub to renew a login that is about to end.

    Raises:
        MissingDependencyError: it is not installed.
    """
    constants = _module(name, ".constants")
    token = None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else _module(name).get_token()
    return Hub(
        endpoint=str(constants.ENDPOINT).rstrip("/"),
        headers={} if token is None else {"authorization": f"Bearer {token}"},
        stall_s=max(30.0, float(constants.HF_HUB_DOWNLOAD_TIMEOUT)),
    )


def is_offline(name: str) -> bool:
    """Tell whether huggingface_hub was told to ask nobody (HF_HUB_OFFLINE).

    Raises:
        MissingDependencyError: it is not installed.
    """
    return bool(_module(name, ".constants").HF_HUB_OFFLINE)


def cached_snapshot(name: str, repo: str, revision: str | None, patterns: Sequence[str]) -> Path | None:
    """Return what the user's own hub cache has of a repository, complete or not; nothing is asked."""
    try:
        return Path(
            _module(name).snapshot_download(
                repo_id=repo, allow_patterns=list(patterns), revision=revision, local_files_only=True
            )
        )
    except (OSError, ValueError):  # LocalEntryNotFoundError is both
        return None


def _module(name: str, part: str = "") -> Any:
    if importlib.util.find_spec(_NAME) is None:
        raise MissingDependencyError(
            f"{name}: its weights are on the model hub, and {_NAME} is not installed",
            hint=f"pip install {_NAME}",
        )
    return importlib.import_module(_NAME + part)
