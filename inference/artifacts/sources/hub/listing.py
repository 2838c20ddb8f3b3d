"""The listing: which files a commit holds, as the hub says, and why it would not say."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inference.artifacts import files
from inference.artifacts.sources.download import Patience, judge, repeated
from inference.artifacts.sources.hub.library import Hub
from inference.artifacts.sources.web import Interrupted, Limits, Refused, Response, get

_MOST_BYTES = 16 * 2**20  # the largest repositories list some ten thousand files
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[^/\\\x00-\x1f][^\\\x00-\x1f]{0,255}")
_UNKNOWN_HINT = "correct the source's repo and revision in models.json"


@dataclass(frozen=True)
class RemoteFile:
    """One file, with what the hub says of it; of a large one the SHA-256, of a small one git's own hash."""

    name: str
    bytes: int | None
    sha256: str | None
    git_sha1: str | None

    def is_at(self, path: Path, advance: Callable[[int], None]) -> str | None:
        """Return the SHA-256 of the file at *path*; ``None`` if it is not the one that is meant."""
        size = path.stat().st_size
        if self.bytes not in (None, size):
            return None
        sha256 = hashlib.sha256()
        git = hashlib.sha1(b"blob %d\x00" % size, usedforsecurity=False)
        for block in files.blocks(path):
            sha256.update(block)
            git.update(block)
            advance(len(block))
        if self.sha256 is not None:
            return self.sha256 if sha256.hexdigest() == self.sha256 else None
        return sha256.hexdigest() if self.git_sha1 in (None, git.hexdigest()) else None


@dataclass(frozen=True)
class Listing:
    """What one commit holds."""

    revision: str
    files: tuple[RemoteFile, ...]


def listed(hub: Hub, repo: str, revision: str | None, limits: Limits, patience: Patience) -> Listing:
    """Ask the hub what a commit holds, the newest one if none is named.

    Raises:
        Interrupted: no answer.
        Refused: it will not say, or what it says cannot be used.
        CancelledError: meanwhile.
    """
    text = repeated(lambda: _asked(hub, hub.info_url(repo, revision), limits), patience, limits)
    return _read(text, revision)


def denied(error: Refused, hub: Hub, repo: str) -> Refused:
    """Return *error* in words for a repository that is not for everybody, or is not there."""
    if error.status in (401, 403):
        who = "the owner of this token" if hub.has_token else "somebody without a token"
        return Refused(
            f"the hub refuses {repo} to {who} (HTTP {error.status}): it is gated, private or not there",
            "ask for access on its page at the hub, then pull with HF_TOKEN set, or after: hf auth login",
            status=error.status,
        )
    if error.status == 404:
        return Refused(
            f"the hub has no such repository, commit or file in {repo} (HTTP 404)",
            _UNKNOWN_HINT,
            status=error.status,
        )
    return error


def _asked(hub: Hub, url: str, limits: Limits) -> bytes:
    with get(url, hub.headers, limits) as answer:
        judge(answer, url)
        return _body(answer)


def _body(answer: Response) -> bytes:
    body = bytearray()
    while block := answer.read(_MOST_BYTES):
        body += block
        if len(body) > _MOST_BYTES:
            raise Refused(f"the hub's list of files is longer than {_MOST_BYTES:,} bytes")
    length = answer.headers.get("content-length", "")
    if length.isdecimal() and len(body) < int(length):
        raise Interrupted("the server closed the connection too early")
    return bytes(body)


def _read(text: bytes, wanted: str | None) -> Listing:
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError):
        raise Refused("the hub's list of files is no JSON") from None
    tree = tree if isinstance(tree, dict) else {}
    revision, siblings = tree.get("sha"), tree.get("siblings")
    if not isinstance(revision, str) or not _COMMIT.fullmatch(revision) or not isinstance(siblings, list):
        raise Refused("the hub does not say which commit and files it has")
    if wanted not in (None, revision):
        raise Refused(f"the hub has commit {revision} where {wanted} was asked for")
    found = [_file(each) for each in siblings if isinstance(each, dict)]
    return Listing(revision, tuple(each for each in found if each is not None))


def _file(entry: dict[str, Any]) -> RemoteFile | None:
    """Return one file; ``None`` for a name that would leave the snapshot, which is nobody's weights."""
    name, size, lfs = entry.get("rfilename"), entry.get("size"), entry.get("lfs")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        return None
    if any(part in ("", ".", "..") for part in name.split("/")):
        return None
    sha256 = lfs.get("sha256") if isinstance(lfs, dict) else None
    is_size = isinstance(size, int) and not isinstance(size, bool) and size >= 0
    git_sha1 = None if lfs else entry.get("blobId")  # of a large file it is the hash of a pointer
    return RemoteFile(
        name,
        size if is_size else None,
        sha256 if isinstance(sha256, str) and _SHA256.fullmatch(sha256) else None,
        git_sha1 if isinstance(git_sha1, str) and _COMMIT.fullmatch(git_sha1) else None,
    )
