"""The snapshot: which files a variant takes, and whether those that came are what they should be."""

from __future__ import annotations

import glob
import json
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from inference.errors import UnsafeArtifactError
from inference.registry.spec import Variant

_TEXT = ("*.json", "*.txt", "*.model", "*.jinja")
_PATTERNS = {
    "transformers": ("*.safetensors", *_TEXT),
    "mlc": ("*.safetensors", "params_shard_*.bin", *_TEXT),
}
_MLC_INDEXES = ("tensor-cache.json", "ndarray-cache.json")  # the second one before September 2025

Facts = Mapping[str, Mapping[str, Any]]
"""By file name: its "sha256" and "bytes", as far as they are known."""


def patterns_of(variant: Variant) -> tuple[str, ...]:
    """Return what to take, in the pattern language of huggingface_hub: fnmatch over the whole path."""
    if variant.files:
        return tuple(glob.escape(file.name) for file in variant.files)
    return _PATTERNS[variant.backend]


def matches(name: str, patterns: tuple[str, ...]) -> bool:
    """Tell whether a file is taken."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def declared_facts(variant: Variant) -> Facts:
    """Return what models.json says of the files."""
    return {file.name: {"sha256": file.sha256, "bytes": file.bytes} for file in variant.files}


def lacking(variant: Variant, snapshot: Path) -> str | None:
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


def agree(found: Facts, expected: Facts, name: str, who: str, hint: str) -> None:
    """Hold the files that came, or are to come, against what *who* says of them.

    Raises:
        UnsafeArtifactError: one is missing or another; *hint* says what to do.
    """
    for file, facts in expected.items():
        if file not in found:
            raise UnsafeArtifactError(f"{name}: {file} is missing (says {who})", hint=hint)
        for key in ("sha256", "bytes"):
            have, wanted = found[file][key], facts.get(key)
            if None not in (wanted, have) and wanted != have:
                raise UnsafeArtifactError(
                    f"{name}: {file}: expected {key} {wanted} (says {who}), got {have}", hint=hint
                )


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
