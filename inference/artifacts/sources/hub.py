"""The hub source: a repository of the model hub, through huggingface_hub where that is installed.

Only safetensors and plain text are taken: a pickle runs code when it is loaded, and so does *.py.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from inference.artifacts import files
from inference.artifacts.sources import disk
from inference.artifacts.sources.progress import Progress, Report
from inference.artifacts.store import Store
from inference.errors import CancelledError, DownloadError, MissingDependencyError, UnsafeArtifactError
from inference.registry.spec import HubSource, Variant

_PATTERNS = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.txt", "*.model", "*.jinja"]


def fetch_hub(
    source: HubSource,
    variant: Variant,
    name: str,
    store: Store,
    *,
    progress: Report,
    cancelled: Callable[[], bool],
    offline: bool,
) -> Path:
    """Take one commit of the repository into the store, from the local hub cache if it is there.

    A download inside huggingface_hub cannot be interrupted; *cancelled* is looked at around it.
    """
    library = _library(name)
    key = f"hub-{source.repo.replace('/', '--')}"

    def waiting() -> None:
        progress(Progress("wait", 0, None, None, None))

    with disk.explained(store.root, name), store.lock(key, cancelled=cancelled, waiting=waiting):
        staging = store.staging / key
        try:
            if found := store.path_of(name, variant):
                return found
            disk.require_space(store.root, name, sum(file.bytes or 0 for file in source.files))
            progress(Progress("download", 0, None, None, None))
            revision, snapshot = _snapshot(library, source, name, store, staging / "snapshot", offline)
            if cancelled():
                raise CancelledError(f"the download of {source.repo} was cancelled")
            manifest = _manifest(source, snapshot, name)
            target = store.snapshot_path(source, revision)
            target.parent.mkdir(parents=True, exist_ok=True)
            files.write_atomic(target.with_name(f"{revision}.json"), json.dumps(manifest).encode())
            store.commit(snapshot, target)
            if source.revision is None:
                store.pin(source, revision)
            return target
        finally:
            files.remove(staging)


def _library(name: str) -> Any:
    if importlib.util.find_spec("huggingface_hub") is None:
        raise MissingDependencyError(
            f"{name}: its weights are on the model hub, and huggingface_hub is not installed",
            hint="pip install jetllm[transformers]",
        )
    return importlib.import_module("huggingface_hub")


def _snapshot(
    library: Any, source: HubSource, name: str, store: Store, target: Path, offline: bool
) -> tuple[str, Path]:
    """Put a snapshot at *target*; return its commit too."""
    wanted = store.pinned_revision(source)
    options = {"repo_id": source.repo, "allow_patterns": _PATTERNS}
    if cached := _cached(library, wanted, options):
        shutil.copytree(cached, target)  # follows the cache's links
        return cached.name, target
    if offline:
        raise _unavailable(source, name, "the setting 'offline' forbids the download")
    try:
        revision = wanted or str(library.HfApi().model_info(source.repo).sha)
        library.snapshot_download(**options, revision=revision, local_dir=str(target))
    except OSError as error:
        if error.errno is not None:
            raise
        raise _unavailable(source, name, str(error)) from error
    except Exception as error:  # the library's and its HTTP client's own types, which differ by version
        raise _unavailable(source, name, str(error)) from error
    files.remove(target / ".cache")
    return revision, target


def _cached(library: Any, revision: str | None, options: dict[str, Any]) -> Path | None:
    """Return a complete snapshot in the user's own hub cache."""
    try:
        found = Path(library.snapshot_download(**options, revision=revision, local_files_only=True))
    except (OSError, ValueError):  # LocalEntryNotFoundError is both
        return None
    return found if _weights(found) else None


def _weights(snapshot: Path) -> list[Path]:
    """Return the weights files of a snapshot; none if its index names one that is not there."""
    shards = sorted(snapshot.glob("*.safetensors"))
    for index in snapshot.glob("*.safetensors.index.json"):
        names = set(json.loads(index.read_bytes()).get("weight_map", {}).values())
        if not names <= {shard.name for shard in shards}:
            return []
    return shards


def _manifest(source: HubSource, snapshot: Path, name: str) -> dict[str, Any]:
    """Return the hash and size of every file, checked against those that models.json gives."""
    if not _weights(snapshot):
        raise UnsafeArtifactError(
            f"{name}: {source.repo} has no complete safetensors weights; pickled ones are refused",
            hint="name a repository with safetensors in models.json",
        )
    found = {
        str(path.relative_to(snapshot)): {"sha256": files.sha256_of(path), "bytes": path.stat().st_size}
        for path in sorted(snapshot.rglob("*"))
        if path.is_file()
    }
    for file in source.files:
        have = found.get(file.name, {})
        for key, wanted in (("sha256", file.sha256), ("bytes", file.bytes)):
            if have.get(key) != (wanted or have.get(key)) or not have:
                raise UnsafeArtifactError(
                    f"{name}: {file.name}: expected {key} {wanted}, got {have.get(key)}"
                )
    return {"repo": source.repo, "files": found}


def _unavailable(source: HubSource, name: str, reason: str) -> DownloadError:
    return DownloadError(
        f"{name}: {reason.splitlines()[0] if reason else 'no reason given'}; needed: {source.repo}",
        hint=f"on a machine with network: hf download {source.repo}; copy the directory here and give "
        f"the model a source of type 'file' in models.json",
    )
