"""A checkpoint as the rules see it: what its small files say, and what its weights are called.

Everything that can be wrong with a directory is a value here, so that no rule opens a file.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from inference.artifacts.lint.header import MAX_HEADER_BYTES, Tensor, read_header
from inference.artifacts.lint.report import label
from inference.errors import UnsafeArtifactError
from inference.registry import strict_json

CONFIG, BUILD_CONFIG = "config.json", "mlc-chat-config.json"
INDEX, ONE_FILE = "model.safetensors.index.json", "model.safetensors"
CACHES = ("ndarray-cache.json", "tensor-cache.json")
"""The list of a build's shards: until 2025-09-07 and since (mlc-ai/mlc-llm@91d95f9)."""

_MAX_JSON_BYTES = 4 * 2**20
_MAX_HEADERS_BYTES = 4 * MAX_HEADER_BYTES
_MAX_ENTRIES = 10_000
_TOKENIZER_EDGE_BYTES = 64
_ALIASES = {
    "hidden_size": ("n_embd",),
    "num_hidden_layers": ("n_layer",),
    "num_attention_heads": ("n_head",),
    "intermediate_size": ("n_inner",),
}


@dataclass(frozen=True)
class Checkpoint:
    """A directory, or what models.json says of one that is not here.

    Args:
        name: what it is called in messages; a directory's last name.
        given: the path as it was given, with the slash at its end if it had one.
        problem: why the directory could not be looked into.
        sizes: what lies in it, one level deep and in ``params/``, with its size in bytes.
        dangling: links in it whose target is not there.
        strange: what is neither a file nor a directory nor a link to one: pipes, sockets, devices.
        config: config.json, or what a finished build's mlc-chat-config.json holds in its place.
        unread: why a JSON file or a header could not be read, by the file's name.
        odd: what strict JSON does not have, in config.json.
        headers: the tensors of each safetensors file.
        weight_map: model.safetensors.index.json: the file of each tensor.
        records: the shards that a build's cache file lists, with their sizes; ``None``: no such list.
        is_converted: models.json says that the weights are MLC's already.
        tied_source: where it is known from that the head is the embedding; ``None``: not known to be.
        prefixed_source: the same of tensor names with the prefix ``transformer.``.
    """

    name: str
    given: str
    files_read: bool = True
    problem: str | None = None
    sizes: Mapping[str, int] = field(default_factory=dict)
    dangling: tuple[str, ...] = ()
    strange: tuple[str, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    odd: tuple[str, ...] = ()
    unread: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    weight_map: Mapping[str, str] | None = None
    tokenizer_config: Mapping[str, Any] = field(default_factory=dict)
    records: Mapping[str, int] | None = None
    cache: str | None = None
    is_converted: bool = False
    tied_source: str | None = None
    prefixed_source: str | None = None

    @property
    def is_build(self) -> bool:
        """Whether it is what MLC made of a checkpoint, and no checkpoint besides."""
        return self.is_converted or (BUILD_CONFIG in self.sizes and CONFIG not in self.sizes)

    @property
    def model_type(self) -> str | None:
        """The model's family, as its configuration names it."""
        return self.text("model_type")

    @property
    def tensor_names(self) -> frozenset[str]:
        """The names of all tensors whose headers could be read."""
        return frozenset(name for tensors in self.headers.values() for name in tensors)

    @property
    def names_are_whole(self) -> bool:
        """Whether every weights file was read, so that a name that is absent is absent."""
        weights = {name for name in self.sizes if name.endswith(".safetensors")}
        return bool(weights) and weights == self.headers.keys() and not self.missing_shards

    @property
    def missing_shards(self) -> list[str]:
        """The files that the index names and that are not here."""
        return sorted(set((self.weight_map or {}).values()) - self.sizes.keys())

    def text(self, key: str) -> str | None:
        """A text of the configuration; ``None`` where there is none."""
        value = self.config.get(key)
        return value if isinstance(value, str) and value else None

    def part(self, key: str) -> Mapping[str, Any]:
        """An object of the configuration; empty where there is none."""
        value = self.config.get(key)
        return value if isinstance(value, dict) else {}

    def count(self, key: str) -> int | None:
        """A positive whole number of the configuration or of its text_config, by any of its names."""
        for source in (self.config, self.part("text_config")):
            for name in (key, *_ALIASES.get(key, ())):
                value = source.get(name)
                if type(value) is int and 0 < value < 2**40:
                    return value
        return None

    @property
    def head_dim(self) -> int | None:
        """The width of one attention head."""
        hidden, heads = self.count("hidden_size"), self.count("num_attention_heads")
        return self.count("head_dim") or (hidden // heads or None if hidden and heads else None)


def read_checkpoint(directory: str | Path) -> Checkpoint:
    """Read a directory's small files and the headers of its weights; nothing in it raises or blocks."""
    given, path = os.fspath(directory), Path(directory)
    name = label(path.name or given)
    try:
        sizes, dangling, strange = _listing(path)
    except (OSError, ValueError) as error:
        return Checkpoint(name, given, problem=_reason(error))
    reader = _Reader(path)
    is_build = BUILD_CONFIG in sizes and CONFIG not in sizes
    reader.look_at_tokenizer(sizes)
    config, odd = reader.config(BUILD_CONFIG if is_build else CONFIG, sizes)
    cache = next((each for folder in ("", "params/") for c in CACHES if (each := folder + c) in sizes), None)
    return Checkpoint(
        name,
        given,
        sizes=sizes,
        dangling=dangling,
        strange=strange,
        config=_flat(config) if is_build else config,
        odd=odd,
        headers=reader.headers(sizes),
        weight_map=reader.weight_map() if INDEX in sizes else None,
        tokenizer_config=reader.json("tokenizer_config.json") if "tokenizer_config.json" in sizes else {},
        records=reader.records(cache) if cache else None,
        cache=cache,
        unread=reader.unread,
    )


def _listing(path: Path) -> tuple[dict[str, int], tuple[str, ...], tuple[str, ...]]:
    """Return the sizes of the files, the links to nothing, and what is no file."""
    sizes: dict[str, int] = {}
    dangling, strange = [], []
    for folder in (path, path / "params"):
        for name in _names(folder, required=folder == path):
            entry = folder / name
            key = name if folder == path else f"params/{name}"
            try:
                status = entry.stat()
            except OSError:  # a link to nothing, or to itself
                dangling.append(key)
                continue
            if stat.S_ISREG(status.st_mode):
                sizes[key] = status.st_size
            elif not stat.S_ISDIR(status.st_mode):
                strange.append(key)
    return sizes, tuple(dangling), tuple(strange)


def _names(folder: Path, *, required: bool) -> list[str]:
    if not required and not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        names = [entry.name for entry in islice(entries, _MAX_ENTRIES + 1)]
    if len(names) > _MAX_ENTRIES:
        raise ValueError(f"found more than {_MAX_ENTRIES:,} files")
    return sorted(names)


class _Reader:
    """Reads a directory's files and keeps the reasons for what it cannot read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.unread: dict[str, str] = {}

    def json(self, name: str) -> dict[str, Any]:
        """Return a file's JSON object; what is wrong with it is kept."""
        return self._parse(name)[0]

    def config(self, name: str, sizes: Mapping[str, int]) -> tuple[dict[str, Any], tuple[str, ...]]:
        """Return the configuration, and what of it strict JSON does not have."""
        return self._parse(name) if name in sizes else ({}, ())

    def _parse(self, name: str) -> tuple[dict[str, Any], tuple[str, ...]]:
        try:
            with _open(self._path / name) as file:
                raw = _read(file, _MAX_JSON_BYTES + 1)
            if len(raw) > _MAX_JSON_BYTES:
                raise ValueError(f"expected at most {_MAX_JSON_BYTES:,} bytes, got more")
            tree, wrong = strict_json.parse(raw.decode("utf-8"))
            if not isinstance(tree, dict):
                raise ValueError("expected an object")
        except (OSError, ValueError) as error:
            self.unread[name] = _reason(error)
            return {}, ()
        return tree, tuple(f"{label('.'.join(map(str, loc)))}: {what}" for loc, what in wrong.items())

    def look_at_tokenizer(self, sizes: Mapping[str, int]) -> None:
        """Keep the reason when tokenizer.json does not begin and end as JSON does; it may be large."""
        name = "tokenizer.json"
        if not sizes.get(name):
            return
        try:
            with _open(self._path / name) as file:
                begin = _read(file, _TOKENIZER_EDGE_BYTES)
                file.seek(max(0, os.fstat(file.fileno()).st_size - _TOKENIZER_EDGE_BYTES))
                end = _read(file, _TOKENIZER_EDGE_BYTES)
        except (OSError, ValueError) as error:
            self.unread[name] = _reason(error)
            return
        if not begin.lstrip().startswith(b"{"):
            self.unread[name] = (
                f"begins with {begin[:40].decode('utf-8', 'replace')!a}; expected a JSON object"
            )
        elif not end.rstrip().endswith(b"}"):
            self.unread[name] = f"ends with {end[-20:].decode('utf-8', 'replace')!a}; expected a JSON object"

    def headers(self, sizes: Mapping[str, int]) -> dict[str, dict[str, Tensor]]:
        """Return the tensors of each safetensors file that could be read."""
        found = {}
        read_bytes = 0
        for name in (each for each in sizes if each.endswith(".safetensors") and "/" not in each):
            try:
                read_bytes += self._header_bytes(name)
                if read_bytes > _MAX_HEADERS_BYTES:
                    raise ValueError(f"expected headers of at most {_MAX_HEADERS_BYTES:,} bytes in all files")
                found[name] = read_header(self._path / name)
            except UnsafeArtifactError as error:
                self.unread[name] = label(error.message.removeprefix(f"{name}: "))
            except (OSError, ValueError) as error:
                self.unread[name] = _reason(error)
        return found

    def _header_bytes(self, name: str) -> int:
        with _open(self._path / name) as file:
            said = int.from_bytes(_read(file, 8), "little")
        return said if said <= MAX_HEADER_BYTES else 0

    def weight_map(self) -> dict[str, str] | None:
        """Return the index of the shards; ``None`` where it cannot be read."""
        found = self.json(INDEX).get("weight_map")
        if isinstance(found, dict) and all(_is_plain(file) for file in found.values()):
            return found
        self.unread.setdefault(INDEX, "expected weight_map: the name of a file for each tensor")
        return None

    def records(self, name: str) -> dict[str, int] | None:
        """Return the shards of a build with their sizes; ``None`` where the list cannot be read."""
        tree = self.json(name)
        folder = name.rpartition("/")[0]
        found = {}
        records = tree.get("records")
        for record in records if isinstance(records, list) else ():
            path, size = (
                (record.get("dataPath"), record.get("nbytes")) if isinstance(record, dict) else (0, 0)
            )
            if not _is_plain(path) or type(size) is not int or size < 0:
                self.unread.setdefault(name, f"expected dataPath and nbytes, got {ascii(record)[:80]}")
                return None
            found[f"{folder}/{path}" if folder else str(path)] = size
        if not found:
            self.unread.setdefault(name, "expected records: the shards with their sizes")
            return None
        return found


@contextmanager
def _open(path: Path) -> Iterator[BinaryIO]:
    """Open a file that is one, whatever has taken its place since the directory was listed."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError("expected a file")
        yield file


def _read(file: BinaryIO, size_bytes: int) -> bytes:
    raw: bytes | None = file.read(size_bytes)
    if raw is None:  # such as /proc/kmsg: a file by its type, and nothing to read yet
        raise ValueError("expected a file that can be read without waiting")
    return raw


def _is_plain(name: Any) -> bool:
    """Tell whether *name* is that of a file in the directory itself."""
    return isinstance(name, str) and PurePosixPath(name).name == name and name not in ("", ".", "..")


def _flat(build: Mapping[str, Any]) -> dict[str, Any]:
    """Return mlc-chat-config.json with its model_config on the same level."""
    inner = build.get("model_config")
    return {**(inner if isinstance(inner, dict) else {}), **{k: v for k, v in build.items() if v is not None}}


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON: {error}"
    if isinstance(error, UnicodeDecodeError):
        return "not UTF-8"
    return label(str(error))
