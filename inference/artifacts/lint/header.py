"""The header of a safetensors file: names, types and shapes of its tensors, without their weights.

Layout, from the format's specification (huggingface/safetensors, README): eight bytes of length, little
endian; that many bytes of JSON that begin with ``{``; the data, without holes, to the file's end.
"""

from __future__ import annotations

import math
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inference.errors import UnsafeArtifactError
from inference.registry import strict_json

MAX_HEADER_BYTES = 4 * 2**20  # of 30,000 tensors; JSON of nothing but brackets takes 60 times its size
_MAX_TENSORS = 100_000
_MAX_DIMENSIONS = 8
_LENGTH_BYTES = 8
_DTYPE_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "F8_E8M0": 1, "I16": 2, "U16": 2, "F16": 2,
    "BF16": 2, "I32": 4, "U32": 4, "F32": 4, "F64": 8, "I64": 8, "U64": 8,
}  # fmt: skip


@dataclass(frozen=True)
class Tensor:
    """One tensor's type and shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)

    @property
    def size_bytes(self) -> int:
        """The size of its weights."""
        return self.elements * self.item_bytes

    @property
    def item_bytes(self) -> int:
        """The width of one of its numbers."""
        return _DTYPE_BYTES[self.dtype]


@dataclass(frozen=True)
class Span:
    """A tensor and where its weights lie, in bytes from the file's begin; *end* is behind the last."""

    tensor: Tensor
    begin: int
    end: int


def read_header(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file by their names.

    Raises:
        UnsafeArtifactError: the file is truncated, too large in its header, or not of that format.
        OSError: it cannot be read.
    """
    return {name: span.tensor for name, span in read_spans(path).items()}


def read_spans(path: Path) -> dict[str, Span]:
    """Return the tensors of a safetensors file and their places; raises as `read_header` does."""
    raw, data_bytes = _read(path)
    first = _LENGTH_BYTES + len(raw)
    try:
        tree, wrong = strict_json.parse(raw.decode("utf-8"))
        if wrong:
            raise ValueError(next(iter(wrong.values())))
        found = _tensors(tree, data_bytes)
        return {name: Span(each, first + begin, first + end) for name, (each, (begin, end)) in found.items()}
    except ValueError as error:
        raise UnsafeArtifactError(f"{path.name}: header: {error}") from None


def _read(path: Path) -> tuple[bytes, int]:
    """Return the header's JSON and the number of bytes behind it; a pipe is never waited for."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise UnsafeArtifactError(f"{path.name}: expected a file")
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        rest_bytes = status.st_size - _LENGTH_BYTES - length
        if status.st_size < _LENGTH_BYTES or rest_bytes < 0:
            raise UnsafeArtifactError(
                f"{path.name}: header: it ends after {status.st_size} bytes, within its header; expected more"
            )
        if length > MAX_HEADER_BYTES:
            raise UnsafeArtifactError(
                f"{path.name}: header: {length:,} bytes; expected at most {MAX_HEADER_BYTES:,}"
            )
        raw = file.read(length)
    if not raw.startswith(b"{"):
        raise UnsafeArtifactError(f"{path.name}: header: expected JSON that begins with '{{'")
    return raw, rest_bytes


def _tensors(tree: Any, data_bytes: int) -> dict[str, tuple[Tensor, tuple[int, int]]]:
    if not isinstance(tree, dict):
        raise ValueError("expected an object")
    metadata = tree.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("__metadata__: expected texts")
    if len(tree) > _MAX_TENSORS:
        raise ValueError(f"{len(tree):,} tensors; expected at most {_MAX_TENSORS:,}")
    found = {name: _tensor(name, value) for name, value in tree.items()}
    _check_offsets(sorted(span for _, span in found.values()), data_bytes)
    return found


def _tensor(name: str, value: Any) -> tuple[Tensor, tuple[int, int]]:
    shown = ascii(name[:80])
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{shown}: expected dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _DTYPE_BYTES:
        raise ValueError(f"{shown}: dtype: expected one of {' '.join(_DTYPE_BYTES)}, got {ascii(dtype)[:40]}")
    if not _are_counts(shape) or len(shape) > _MAX_DIMENSIONS:
        raise ValueError(f"{shown}: shape: expected at most {_MAX_DIMENSIONS} sizes, got {ascii(shape)[:60]}")
    if not _are_counts(offsets) or len(offsets) != 2:
        raise ValueError(f"{shown}: data_offsets: expected begin and end, got {ascii(offsets)[:60]}")
    size = math.prod(shape) * _DTYPE_BYTES[dtype]
    if offsets[1] - offsets[0] != size:
        raise ValueError(f"{shown}: data_offsets: expected {size} bytes, got {offsets[1] - offsets[0]}")
    return Tensor(dtype, tuple(shape)), (offsets[0], offsets[1])


def _are_counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(each) is int and 0 <= each < 2**53 for each in value)


def _check_offsets(spans: list[tuple[int, int]], data_bytes: int) -> None:
    """Refuse tensors that overlap or leave a hole, and a file that does not end where they do."""
    end = 0
    for begin, finish in spans:
        if begin != end:
            raise ValueError(f"data_offsets: expected a tensor at byte {end}, got one at {begin}")
        end = finish
    if end != data_bytes:
        raise ValueError(f"the tensors take {end} bytes, but {data_bytes} follow the header")
