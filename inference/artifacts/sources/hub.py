"""The hub source: a repository of the model hub, through huggingface_hub where that is installed.

Only tensors and plain text are taken: a pickle runs code when it is loaded, and so does *.py.
"""

from __future__ import annotations

import glob
import importlib
import importlib.util
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from inference.artifacts import files
from inference.artifacts.gguf import check_gguf
from inference.artifacts.sources import disk
from inference.artifacts.sources.progress import Progress, Report
from inference.artifacts.store import Store
from inference.errors import CancelledError, DownloadError, MissingDependencyError, UnsafeArtifactError
from inference.registry.spec import HubSource, Variant

_TEXT = ("*.json", "*.txt", "*.model", "*.jinja")
_PATTERNS = {
    "transformers": ("*.safetensors", *_TEXT),
    "mlc": ("*.safetensors", "params_shard_*.bin", *_TEXT),
}
_MLC_INDEXES = ("tensor-cache.json", "ndarray-cache.json")  # the second one before September 2025

_Facts = Mapping[str, Mapping[str, Any]]
"""By file name: its "sha256" and "bytes", as far as they are known."""


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
            wanted = _wanted(library, source, variant, name, store, offline)
            disk.require_space(store.root, name, wanted.total_bytes or 0)
            progress(Progress("download", 0, wanted.total_bytes, None, None))
            _bring(library, wanted, source, name, staging / "snapshot")
            if cancelled():
                raise CancelledError(f"the download of {source.repo} was cancelled")
            return _keep(wanted, source, variant, name, store, staging / "snapshot")
        finally:
            files.remove(staging)


@dataclass(frozen=True)
class _Wanted:
    """One commit of a repository, as far as it is wanted.

    Args:
        cached: a complete snapshot in the user's own hub cache, or ``None``.
        facts: what the hub says of the files.
    """

    revision: str
    patterns: tuple[str, ...]
    cached: Path | None = None
    facts: _Facts = field(default_factory=dict)

    @property
    def total_bytes(self) -> int | None:
        """Bytes that will be written, as far as that is known."""
        if self.cached is not None:
            return sum((self.cached / name).stat().st_size for name in self.cached_names())
        return sum(each["bytes"] or 0 for each in self.facts.values()) or None

    def cached_names(self) -> list[str]:
        """What is wanted of the user's hub cache, which may hold pickles, too."""
        assert self.cached is not None  # noqa: S101 - the caller's promise
        names = (str(p.relative_to(self.cached)) for p in self.cached.rglob("*") if p.is_file())
        return sorted(name for name in names if _matches(name, self.patterns))


def _library(name: str) -> Any:
    if importlib.util.find_spec("huggingface_hub") is None:
        raise MissingDependencyError(
            f"{name}: its weights are on the model hub, and huggingface_hub is not installed",
            hint="pip install jetllm[transformers]",
        )
    return importlib.import_module("huggingface_hub")


def _wanted(
    library: Any, source: HubSource, variant: Variant, name: str, store: Store, offline: bool
) -> _Wanted:
    patterns = _patterns(variant)
    pinned = store.pinned_revision(source)
    if cached := _cached(library, source, variant, pinned, patterns):
        return _Wanted(cached.name, patterns, cached)
    if offline:
        raise _unavailable(source, name, "the setting 'offline' forbids the download")
    info = _asked(lambda: library.HfApi().model_info(source.repo, revision=pinned, files_metadata=True))
    if isinstance(info, str):
        raise _unavailable(source, name, info)
    facts = {
        each.rfilename: {"sha256": getattr(each.lfs, "sha256", None), "bytes": each.size}
        for each in info.siblings or ()
        if _matches(each.rfilename, patterns)
    }
    if absent := [file.name for file in variant.files if file.name not in facts]:
        raise _incomplete(source, name, f"no file {', '.join(absent)}")
    return _Wanted(pinned or str(info.sha), patterns, facts=facts)


def _patterns(variant: Variant) -> tuple[str, ...]:
    """Return what to take, in the pattern language of huggingface_hub: fnmatch over the whole path."""
    if variant.files:
        return tuple(glob.escape(file.name) for file in variant.files)
    return _PATTERNS[variant.backend]


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _asked(ask: Callable[[], Any]) -> Any:
    """Return the hub's answer, or as text why there is none; an error of the disk goes on as it is."""
    try:
        return ask()
    except OSError as error:
        if error.errno is not None:
            raise
        return str(error)
    except Exception as error:  # the library's and its HTTP client's own types, which differ by version
        return str(error)


def _cached(
    library: Any, source: HubSource, variant: Variant, revision: str | None, patterns: tuple[str, ...]
) -> Path | None:
    """Return a complete snapshot in the user's own hub cache."""
    try:
        found = Path(
            library.snapshot_download(
                repo_id=source.repo,
                allow_patterns=list(patterns),
                revision=revision,
                local_files_only=True,
            )
        )
    except (OSError, ValueError):  # LocalEntryNotFoundError is both
        return None
    return found if _lacking(variant, found) is None else None


def _bring(library: Any, wanted: _Wanted, source: HubSource, name: str, target: Path) -> None:
    """Put the snapshot at *target*."""
    if wanted.cached is not None:
        for each in wanted.cached_names():
            (target / each).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(wanted.cached / each, target / each)  # follows the cache's links
        return
    answer = _asked(
        lambda: Path(
            library.snapshot_download(
                repo_id=source.repo,
                allow_patterns=list(wanted.patterns),
                revision=wanted.revision,
                local_dir=str(target),
            )
        )
    )
    if isinstance(answer, str):
        raise _unavailable(source, name, answer)
    files.remove(target / ".cache")


def _keep(
    wanted: _Wanted, source: HubSource, variant: Variant, name: str, store: Store, snapshot: Path
) -> Path:
    """Check the snapshot, record it, and make it the store's."""
    if lacking := _lacking(variant, snapshot):
        raise _incomplete(source, name, lacking)
    target = store.snapshot_path(variant, wanted.revision)
    found = {
        str(path.relative_to(snapshot)): {"sha256": files.sha256_of(path), "bytes": path.stat().st_size}
        for path in sorted(snapshot.rglob("*"))
        if path.is_file()
    }
    record = target.with_name(f"{target.name}.json")
    declared = {file.name: {"sha256": file.sha256, "bytes": file.bytes} for file in variant.files}
    _agree(found, declared, name, "models.json", "correct the variant's files in models.json")
    _agree(found, store.snapshot_record(variant), name, "its first pull", f"to accept it, remove {record}")
    _agree(found, wanted.facts, name, "the hub", f"pull it again: jetllm pull {name}")
    for file in variant.files if variant.backend == "llamacpp" else ():
        check_gguf(snapshot / file.name, subject=f"{name}: {file.name}")
    store.record_snapshot(target, {"repo": source.repo, "revision": wanted.revision, "files": found})
    store.commit(snapshot, target)
    if source.revision is None:
        store.pin(source, wanted.revision)
    return target / (variant.entry_file or "")


def _lacking(variant: Variant, snapshot: Path) -> str | None:
    """Return what a snapshot lacks to be run, if anything."""
    absent = [file.name for file in variant.files if not (snapshot / file.name).is_file()]
    if absent:
        return f"no file {', '.join(absent)}"
    if variant.backend == "llamacpp":
        return None
    indexes = [snapshot / index for index in _MLC_INDEXES if variant.backend == "mlc"]
    for index in filter(Path.is_file, indexes):
        records = _read_object(index).get("records")
        paths = [each.get("dataPath") for each in _objects(records)]
        whole = paths and all(isinstance(path, str) and (snapshot / path).is_file() for path in paths)
        return None if whole else f"not all the tensors that {index.name} names"
    return None if _has_safetensors(snapshot) else "no complete safetensors weights"


def _has_safetensors(snapshot: Path) -> bool:
    """Tell whether all weights files are there: those that an index names, or any."""
    shards = {shard.name for shard in snapshot.glob("*.safetensors")}
    for index in snapshot.glob("*.safetensors.index.json"):
        named = _read_object(index).get("weight_map")
        if not isinstance(named, dict) or not all(shard in shards for shard in map(str, named.values())):
            return False
    return bool(shards)


def _read_object(path: Path) -> dict[str, Any]:
    try:
        tree = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return {}
    return tree if isinstance(tree, dict) else {}


def _objects(value: Any) -> list[dict[str, Any]]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def _agree(found: _Facts, expected: _Facts, name: str, who: str, hint: str) -> None:
    """Hold the files that came against what *who* says of them.

    Raises:
        UnsafeArtifactError: one is missing or another; *hint* says what to do.
    """
    for file, facts in expected.items():
        if file not in found:
            raise UnsafeArtifactError(f"{name}: {file} is missing (says {who})", hint=hint)
        for key in ("sha256", "bytes"):
            have, wanted = found[file][key], facts.get(key)
            if wanted not in (None, have):
                raise UnsafeArtifactError(
                    f"{name}: {file}: expected {key} {wanted} (says {who}), got {have}", hint=hint
                )


def _incomplete(source: HubSource, name: str, lacking: str) -> UnsafeArtifactError:
    return UnsafeArtifactError(
        f"{name}: {source.repo} has {lacking}; pickled weights are refused",
        hint="correct the variant's source and files in models.json",
    )


def _unavailable(source: HubSource, name: str, reason: str) -> DownloadError:
    return DownloadError(
        f"{name}: {reason.splitlines()[0] if reason else 'no reason given'}; needed: {source.repo}",
        hint=f"on a machine with network: hf download {source.repo}; copy the directory here and give "
        f"the model a source of type 'file' in models.json",
    )
