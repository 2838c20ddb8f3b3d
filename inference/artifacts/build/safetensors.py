"""A safetensors file made of other files' tensors, under other names and in other files.

Only the spans that a checked header names are read, and no file is held in memory. The layout is in
`inference.artifacts.lint.header`.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inference.artifacts.files import BLOCK_BYTES
from inference.artifacts.lint.header import Span, read_spans
from inference.errors import CancelledError, InsufficientStorageError, UnsafeArtifactError

_ALIGNMENT_BYTES = 8
_FULL = (errno.ENOSPC, errno.EDQUOT)
_BLOCK = re.compile(r"(?:[^.]+\.)*?\d+\.[^.]+")


@dataclass(frozen=True)
class Piece:
    """A tensor by the name that it will have, and where its weights lie now."""

    name: str
    file: Path
    span: Span

    @property
    def size_bytes(self) -> int:
        """The size of its weights."""
        return self.span.end - self.span.begin


def pieces_of(file: Path) -> list[Piece]:
    """Return the tensors of a safetensors file under their own names, in the order of their weights.

    Raises:
        UnsafeArtifactError: as `read_spans`.
    """
    found = [Piece(name, file, span) for name, span in read_spans(file).items()]
    return sorted(found, key=lambda piece: piece.span.begin)


def block_of(name: str) -> str:
    """Return the part of a model that a tensor is in: "model.layers.3.mlp"; its own name outside layers.

    What MLC makes one parameter of (query, key and value; gate and up; all experts) lies in one block.
    """
    found = _BLOCK.match(name)
    return found[0] if found else name


def into_shards(pieces: Iterable[Piece], shard_bytes: int) -> list[list[Piece]]:
    """Share tensors out to files of at most *shard_bytes* of weights, a larger tensor alone.

    Blocks stay whole where they fit, because MLC holds every file that one of its parameters is in.
    """
    blocks: dict[str, list[Piece]] = {}
    for piece in sorted(pieces, key=lambda piece: piece.name):
        blocks.setdefault(block_of(piece.name), []).append(piece)
    shards: list[list[Piece]] = []
    room = 0
    for block in blocks.values():
        whole = sum(piece.size_bytes for piece in block) <= shard_bytes
        for part in [block] if whole else [[piece] for piece in block]:
            size = sum(piece.size_bytes for piece in part)
            if size > room or not shards:
                shards.append([])
                room = shard_bytes
            shards[-1] += part
            room -= size
    return shards


def file_bytes(pieces: Sequence[Piece]) -> int:
    """Return the size of the file that `write` makes."""
    return len(_header(_aligned(pieces))) + sum(piece.size_bytes for piece in pieces)


def write(
    path: Path,
    pieces: Sequence[Piece],
    *,
    cancelled: Callable[[], bool],
    advance: Callable[[int], None],
) -> None:
    """Write a new file; *advance* gets the bytes of each block written.

    Raises:
        CancelledError: *cancelled* came true.
        InsufficientStorageError: the disk is full.
        UnsafeArtifactError: a file that is read has become shorter.
        FileExistsError: there is something at *path*.
    """
    ordered = _aligned(pieces)
    with full_disk_named(path.parent), path.open("xb") as file:
        header = _header(ordered)
        file.write(header)
        advance(len(header))
        for piece in ordered:
            for data in _weights(piece):
                if cancelled():
                    raise CancelledError("the checkpoint's weights: cancelled while they were copied")
                file.write(data)
                advance(len(data))


def index_of(files: Mapping[str, Iterable[str]], total_bytes: int) -> bytes:
    """Return model.safetensors.index.json: the file of each tensor, in the order of the files."""
    weight_map = {name: file for file, names in files.items() for name in names}
    return json_bytes({"metadata": {"total_size": total_bytes}, "weight_map": weight_map})


def json_bytes(tree: Any) -> bytes:
    """Return strict JSON, for a reader and for a person."""
    return (json.dumps(tree, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8")


@contextmanager
def full_disk_named(directory: Path) -> Iterator[None]:
    """Turn the error of a full disk into one that a user can answer."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        free = shutil.disk_usage(directory).free
        raise InsufficientStorageError(
            f"the disk filled up while the checkpoint was prepared; {free / 1e6:,.0f} MB are free now",
            hint="free some space, or build on a larger disk: JETLLM_CACHE_DIR=/path/on/a/larger/disk",
            details={"free_bytes": free},
        ) from error


def _aligned(pieces: Sequence[Piece]) -> list[Piece]:
    """Put the widest numbers first, so that each tensor begins at a multiple of its numbers' width:
    PyTorch refuses to view others."""
    return sorted(pieces, key=lambda piece: -piece.span.tensor.item_bytes)


def _header(ordered: Sequence[Piece]) -> bytes:
    tree: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for piece in ordered:
        begin, end = end, end + piece.size_bytes
        tensor = piece.span.tensor
        tree[piece.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    raw = json.dumps(tree, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    raw += b" " * (-len(raw) % _ALIGNMENT_BYTES)
    return len(raw).to_bytes(8, "little") + raw


def _weights(piece: Piece) -> Iterator[bytes]:
    with piece.file.open("rb", buffering=0) as file:
        file.seek(piece.span.begin, os.SEEK_SET)
        left = piece.size_bytes
        while left:
            data = file.read(min(left, BLOCK_BYTES))
            if not data:
                raise UnsafeArtifactError(f"{piece.file.name}: became shorter while it was read")
            left -= len(data)
            yield data
