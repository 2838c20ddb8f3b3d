"""A compiled MLC model on disk: complete, unharmed, and seen under the names that an engine looks for."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from inference.errors import LoadFailedError

# The second is what engines before September 2025 look for; neither kind looks for the other.
CACHE_NAMES = ("tensor-cache.json", "ndarray-cache.json")
RECORD = ".jetllm-verified.json"
_CONFIG = "mlc-chat-config.json"
_REBUILD = "build or pull the model again"
_ELF_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_MACHINES = {"x86_64": 62, "aarch64": 183}


@dataclass(frozen=True)
class MlcModel:
    """A model that has all its files.

    Args:
        directory: where an engine is pointed to; links to the files, under every name.
        library: the compiled model.
        config: mlc-chat-config.json.
        weights_bytes: the sum of all shards.
    """

    directory: Path
    library: Path
    config: Mapping[str, Any]
    weights_bytes: int

    @property
    def vocabulary_tokens(self) -> int:
        """Token ids are below this."""
        return int(self.config["vocab_size"])

    @property
    def shape(self) -> Mapping[str, Any]:
        """The numbers that the library was compiled with."""
        shape: Mapping[str, Any] = self.config.get("model_config") or {}
        return shape


def open_model(weights: Path, runtime_dir: Path) -> MlcModel:
    """Check the files of *weights*, and link them into *runtime_dir*; nothing of the model is loaded.

    Lengths are always compared. The MD5 sums, which the engine itself never looks at, are computed
    once: a record beside the shards says that it was done, where the directory can be written.

    Raises:
        LoadFailedError: a file is missing, cut, changed, or made for another machine.
    """
    config = _read_json(weights / _CONFIG)
    if not isinstance(config.get("vocab_size"), int):
        _refuse(f"{_CONFIG}: vocab_size: expected a number of tokens, got {config.get('vocab_size')!r}")
    cache = next((weights / name for name in CACHE_NAMES if (weights / name).is_file()), None)
    if cache is None:
        _refuse(f"{weights.name}: expected {' or '.join(CACHE_NAMES)}; found neither")
    library = _library(weights)
    _check_library(library)
    shards = _read_json(cache).get("records")
    if not isinstance(shards, list) or not shards:
        _refuse(f"{cache.name}: records: expected a list of shards")
    total_bytes = sum(_check_length(weights, shard) for shard in shards)
    _check_sums(weights, shards)
    view = _view(weights, runtime_dir / "model", cache, config)
    return MlcModel(view, library, config, total_bytes)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        _refuse(f"{path.parent.name}: expected {path.name}; there is none")
    except ValueError as error:
        _refuse(f"{path.name}: not JSON: {error}")
    if not isinstance(value, dict):
        _refuse(f"{path.name}: expected a JSON object, got a {type(value).__name__}")
    return value


def _library(weights: Path) -> Path:
    found = sorted(weights.glob("*.so"))
    named = [path for path in found if path.name == "lib.so"] or found
    if len(named) != 1:
        names = ", ".join(path.name for path in found) or "none"
        _refuse(f"{weights.name}: expected one compiled library, lib.so; found {names}")
    return named[0]


def _check_library(path: Path) -> None:
    """Refuse a library that the dynamic linker would die of: a cut one is SIGBUS."""
    size_bytes = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(_ELF_HEADER.size)
    if len(head) < _ELF_HEADER.size or not head.startswith(b"\x7fELF\x02\x01"):
        _refuse(f"{path.name}: expected a 64-bit shared library")
    _, _, machine, _, _, programs, sections, _, _, program_size, program_count, size, count, _ = (
        _ELF_HEADER.unpack(head)
    )
    if max(sections + size * count, programs + program_size * program_count) > size_bytes:
        _refuse(f"{path.name}: cut off after {size_bytes} bytes")
    wanted = _MACHINES.get(platform.machine(), machine)
    if machine != wanted:
        _refuse(f"{path.name}: made for ELF machine {machine}; this one is {wanted}")


def _check_length(weights: Path, shard: Mapping[str, Any]) -> int:
    name, wanted = str(shard.get("dataPath", "")), shard.get("nbytes")
    if not name or name != Path(name).name:
        _refuse(f"shard {name!r}: expected the name of a file beside it")
    try:
        found = (weights / name).stat().st_size
    except FileNotFoundError:
        _refuse(f"{name}: expected a shard of {wanted} bytes; there is none")
    if found != wanted:
        _refuse(f"{name}: expected {wanted} bytes, got {found}")
    return found


def _check_sums(weights: Path, shards: list[Mapping[str, Any]]) -> None:
    seen = {shard["dataPath"]: _fingerprint(weights, shard) for shard in shards}
    with contextlib.suppress(OSError, ValueError):
        if json.loads((weights / RECORD).read_text(encoding="utf-8")) == seen:
            return
    for shard in shards:
        if shard.get("md5sum") not in (None, _md5(weights / shard["dataPath"])):
            _refuse(
                f"{shard['dataPath']}: the file has changed; its MD5 sum is not the one that was recorded"
            )
    with contextlib.suppress(OSError):  # a read-only store is looked at again each time
        temporary = weights / f"{RECORD}.{os.getpid()}"
        temporary.write_text(json.dumps(seen), encoding="utf-8")
        temporary.replace(weights / RECORD)


def _fingerprint(weights: Path, shard: Mapping[str, Any]) -> list[Any]:
    """What is the same as long as nobody wrote to the file."""
    status = (weights / shard["dataPath"]).stat()
    return [shard.get("md5sum"), status.st_size, status.st_mtime_ns, status.st_ino]


def _md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while data := file.read(2**20):
            digest.update(data)
    return digest.hexdigest()


def _view(weights: Path, view: Path, cache: Path, config: Mapping[str, Any]) -> Path:
    """Link every file into *view*, and the cache file under the name that it lacks too."""
    view.mkdir(exist_ok=True)
    links = {path.name: path for path in weights.iterdir()}
    for name in CACHE_NAMES:
        links.setdefault(name, cache)
    for name, path in links.items():
        (view / name).unlink(missing_ok=True)
        if name == _CONFIG:
            (view / name).write_text(json.dumps(_with_end_tokens(config)), encoding="utf-8")
        else:
            (view / name).symlink_to(path.resolve())
    return view


def _with_end_tokens(config: Mapping[str, Any]) -> dict[str, Any]:
    """Let the model's own end tokens end a text: mlc_llm knows only those of its conversation template."""
    template = config.get("conv_template")
    ends = config.get("eos_token_id")
    own = ends if isinstance(ends, list) else [] if ends is None else [ends]
    if not isinstance(template, dict):
        return dict(config)
    stops = template.get("stop_token_ids") or []
    return {**config, "conv_template": {**template, "stop_token_ids": sorted({*stops, *own})}}


def _refuse(problem: str) -> NoReturn:
    raise LoadFailedError(problem, hint=_REBUILD)
