"""The GGUF header: is the file whole and well-formed, and what does it say of the model.

The engine parses the same bytes in C++, in the worker; this check comes first, in Python, so that a
truncated or hostile file is refused with a reason before any native code sees it. Layout:
the GGUF specification in the ggml repository (docs/gguf.md).
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NoReturn

from inference.errors import UnsafeArtifactError

Value = int | float | bool | str

_MAX_COUNT = 100_000  # tensors, and metadata entries
_MAX_KEY_BYTES = 64 * 1024
_MAX_STRING_BYTES = 2**20
_MAX_TENSOR_NAME_BYTES = 256
_MAX_METADATA_BYTES = 16 * 2**20  # all strings that are kept
_MAX_ARRAY_STRINGS = 4_000_000  # vocabularies and merges have under a million; the walk takes 0.2 us each
_MAX_DIMENSIONS = 4
_WINDOW_BYTES = 2**20

_UINT32, _BOOL, _STRING, _ARRAY = 4, 7, 8, 9
_SCALARS = {
    code: struct.Struct("<" + letter)
    for code, letter in {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B"}.items()
} | {10: struct.Struct("<Q"), 11: struct.Struct("<q"), 12: struct.Struct("<d")}
_U32, _U64 = _SCALARS[4], _SCALARS[10]

# ggml type -> (weights per block, bytes per block), from the block structures in ggml-common.h
_BLOCKS = {
    0: (1, 4),  # F32
    1: (1, 2),  # F16
    2: (32, 18),  # Q4_0
    3: (32, 20),  # Q4_1
    6: (32, 22),  # Q5_0
    7: (32, 24),  # Q5_1
    8: (32, 34),  # Q8_0
    9: (32, 36),  # Q8_1
    10: (256, 84),  # Q2_K
    11: (256, 110),  # Q3_K
    12: (256, 144),  # Q4_K
    13: (256, 176),  # Q5_K
    14: (256, 210),  # Q6_K
    15: (256, 292),  # Q8_K
    16: (256, 66),  # IQ2_XXS
    17: (256, 74),  # IQ2_XS
    18: (256, 98),  # IQ3_XXS
    19: (256, 50),  # IQ1_S
    20: (32, 18),  # IQ4_NL
    21: (256, 110),  # IQ3_S
    22: (256, 82),  # IQ2_S
    23: (256, 136),  # IQ4_XS
    24: (1, 1),  # I8
    25: (1, 2),  # I16
    26: (1, 4),  # I32
    27: (1, 8),  # I64
    28: (1, 8),  # F64
    29: (256, 56),  # IQ1_M
    30: (1, 2),  # BF16
    34: (256, 54),  # TQ1_0
    35: (256, 66),  # TQ2_0
    39: (32, 17),  # MXFP4
    40: (64, 36),  # NVFP4
}


@dataclass(frozen=True)
class GGUFHeader:
    """What a GGUF file says of itself.

    Args:
        metadata: its scalars and strings.
        array_lengths: elements in each of its arrays; their contents are not kept.
        tensor_bytes: bytes of all tensors, without the padding between them.
    """

    version: int
    metadata: Mapping[str, Value]
    array_lengths: Mapping[str, int]
    tensor_count: int
    tensor_bytes: int
    file_bytes: int

    @property
    def architecture(self) -> str | None:
        """The model family, as llama.cpp names it: "llama", "gemma3"."""
        value = self.metadata.get("general.architecture")
        return value if isinstance(value, str) else None

    @property
    def context_length(self) -> int | None:
        """Tokens the model was trained to attend to."""
        return self._number("context_length")

    @property
    def layers(self) -> int | None:
        """Transformer blocks."""
        return self._number("block_count")

    @property
    def hidden_size(self) -> int | None:
        """Width of the residual stream."""
        return self._number("embedding_length")

    @property
    def kv_heads(self) -> int | None:
        """Key and value heads of a layer; ``None`` where layers differ."""
        if f"{self.architecture}.attention.head_count_kv" in self.array_lengths:
            return None
        return self._number("attention.head_count_kv") or self._number("attention.head_count")

    @property
    def head_dim(self) -> int | None:
        """Width of one attention head."""
        heads, width = self._number("attention.head_count"), self.hidden_size
        return self._number("attention.key_length") or (width // heads if heads and width else None)

    @property
    def vocab_size(self) -> int | None:
        """Tokens in the vocabulary."""
        return self._number("vocab_size") or self.array_lengths.get("tokenizer.ggml.tokens")

    @property
    def has_chat_template(self) -> bool:
        """Whether the file says how a conversation is written out."""
        return "tokenizer.chat_template" in self.metadata

    def _number(self, key: str) -> int | None:
        value = self.metadata.get(f"{self.architecture}.{key}")
        return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def check_gguf(path: Path, *, subject: str | None = None) -> GGUFHeader:
    """Read the header of *path* and hold it against the file's length; tensor data is not read.

    Args:
        subject: what to call the file in an error; its own name by default.

    Raises:
        UnsafeArtifactError: it is not a whole, well-formed GGUF file; the message says why.
    """
    name = subject or path.name
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise _refusal(name, "not a file")
        with path.open("rb") as file:
            return _read_header(_Reader(file, status.st_size, name))
    except OSError as error:
        raise _refusal(name, f"cannot be read: {error.strerror}") from None


def _refusal(subject: str, reason: str) -> UnsafeArtifactError:
    return UnsafeArtifactError(
        f"{subject}: {reason}", hint="fetch the file again, or name another one in models.json"
    )


class _Reader:
    """A position in a file of *size* bytes, seen through a window; never reads beyond the end."""

    def __init__(self, file: BinaryIO, size: int, subject: str) -> None:
        self.size = size
        self._file = file
        self._subject = subject
        self._window = b""
        self._window_start = 0
        self._at = 0  # inside the window

    @property
    def position(self) -> int:
        return self._window_start + self._at

    @property
    def remaining(self) -> int:
        return self.size - self.position

    def refuse(self, reason: str) -> NoReturn:
        raise _refusal(self._subject, reason)

    def take(self, count: int, what: str) -> bytes:
        self._fill(count, what)
        start, self._at = self._at, self._at + count
        return self._window[start : self._at]

    def number(self, form: struct.Struct, what: str) -> int | float:
        value: int | float = form.unpack(self.take(form.size, what))[0]
        return value

    def unsigned(self, form: struct.Struct, what: str) -> int:
        return int(self.number(form, what))

    def text(self, limit: int, what: str) -> str:
        length = self.unsigned(_U64, what)
        if length > limit:
            self.refuse(f"{what} of {length} bytes; at most {limit} are allowed")
        return self.take(length, what).decode("utf-8", errors="replace")

    def skip(self, count: int, what: str) -> None:
        if count > self.remaining:
            self._truncated(what)
        self._window_start, self._window, self._at = self.position + count, b"", 0

    def skip_strings(self, count: int, what: str) -> None:
        """Step over *count* strings; one Python loop, as a vocabulary has 50,000 to 500,000."""
        unpack, window, at = _U64.unpack_from, self._window, self._at
        for _ in range(count):
            if at + 8 > len(window):
                self._at = at
                self._fill(8, what)
                window, at = self._window, self._at
            length = unpack(window, at)[0]
            at += 8 + length
            if at > len(window):
                if length > _MAX_STRING_BYTES:
                    self.refuse(f"{what} of {length} bytes; at most {_MAX_STRING_BYTES} are allowed")
                self._at = at - length
                self.skip(length, what)
                window, at = self._window, self._at
        self._at = at

    def _fill(self, count: int, what: str) -> None:
        if self._at + count <= len(self._window):
            return
        if count > self.remaining:
            self._truncated(what)
        self._window_start, self._at = self.position, 0
        self._file.seek(self._window_start)
        self._window = self._file.read(max(count, _WINDOW_BYTES))
        if len(self._window) < count:
            self._truncated(what)

    def _truncated(self, what: str) -> NoReturn:
        self.refuse(f"truncated: its {self.size} bytes end inside {what}")


def _read_header(reader: _Reader) -> GGUFHeader:
    version = _read_preamble(reader)
    tensor_count = reader.unsigned(_U64, "the header")
    entry_count = reader.unsigned(_U64, "the header")
    if tensor_count > _MAX_COUNT:
        reader.refuse(f"declares {tensor_count} tensors; expected 1 to {_MAX_COUNT}")
    if entry_count > _MAX_COUNT:
        reader.refuse(f"declares {entry_count} metadata entries; at most {_MAX_COUNT} are allowed")
    metadata, arrays = _read_metadata(reader, entry_count)
    if tensor_count == 0 and metadata.get("split.no") != 0:  # a first shard may hold metadata only
        reader.refuse(f"declares 0 tensors; expected 1 to {_MAX_COUNT}")
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment <= 0 or alignment & (alignment - 1):
        reader.refuse(f"expected an alignment that is a power of two, found {alignment!r}")
    tensor_bytes = _check_tensors(reader, tensor_count, alignment)
    return GGUFHeader(version, metadata, arrays, tensor_count, tensor_bytes, reader.size)


def _read_preamble(reader: _Reader) -> int:
    if reader.size == 0:
        reader.refuse("the file is empty")
    magic = reader.take(min(4, reader.size), "the header")
    if magic != b"GGUF":
        reader.refuse(f"not a GGUF file: it begins with {magic!r}")
    version = reader.unsigned(_U32, "the header")
    if version not in (2, 3):
        swapped = " (big-endian)" if version in (2 << 24, 3 << 24) else ""
        reader.refuse(f"GGUF version {version}{swapped}; expected 2 or 3, little-endian")
    return version


def _read_metadata(reader: _Reader, count: int) -> tuple[dict[str, Value], dict[str, int]]:
    metadata: dict[str, Value] = {}
    arrays: dict[str, int] = {}
    walked_strings, kept_bytes = 0, 0
    for _ in range(count):
        key = reader.text(_MAX_KEY_BYTES, "a metadata key")
        if key in metadata or key in arrays:
            reader.refuse(f"metadata key {key[:64]!r} appears twice")
        code = reader.unsigned(_U32, "the metadata")
        if code == _ARRAY:
            arrays[key], strings = _skip_array(reader, key)
            walked_strings += strings
        else:
            metadata[key] = _read_value(reader, code, key)
        kept_bytes += len(key) + len(str(metadata.get(key, "")))
        if walked_strings > _MAX_ARRAY_STRINGS or kept_bytes > _MAX_METADATA_BYTES:
            reader.refuse("more metadata than any model has")
    return metadata, arrays


def _read_value(reader: _Reader, code: int, key: str) -> Value:
    if code == _STRING:
        return reader.text(_MAX_STRING_BYTES, "a metadata string")
    if code not in _SCALARS:
        reader.refuse(f"metadata key {key[:64]!r} has unknown type {code}")
    value = reader.number(_SCALARS[code], "the metadata")
    if code != _BOOL:
        return value
    if value not in (0, 1):
        reader.refuse(f"metadata key {key[:64]!r}: expected a boolean, found byte {value}")
    return bool(value)


def _skip_array(reader: _Reader, key: str) -> tuple[int, int]:
    """Step over an array; return its length and how many strings were walked."""
    what = f"the array {key[:64]!r}"
    code = reader.unsigned(_U32, what)
    length = reader.unsigned(_U64, what)
    if code == _STRING:
        if length > min(reader.remaining // 8, _MAX_ARRAY_STRINGS):
            reader.refuse(f"truncated: {what} declares {length} strings")
        reader.skip_strings(length, what)
        return length, length
    if code not in _SCALARS:
        reader.refuse(f"{what} has elements of unknown type {code}")
    reader.skip(length * _SCALARS[code].size, what)
    return length, 0


def _check_tensors(reader: _Reader, count: int, alignment: int) -> int:
    """Hold every tensor against the file's length; return the bytes of all.

    Offsets must be those that packing in order gives, as the engine demands: this leaves no room
    for a gap, an overlap or a tensor outside the file.
    """
    names: set[str] = set()
    expected = end = total = 0
    for _ in range(count):
        name = reader.text(_MAX_TENSOR_NAME_BYTES, "a tensor name")
        if name in names:
            reader.refuse(f"tensor {name!r} appears twice")
        names.add(name)
        size, offset = _read_tensor(reader, name)
        if offset != expected:
            reader.refuse(f"tensor {name!r} is at offset {offset}; expected {expected}")
        total += size
        end = offset + size
        expected = -(-end // alignment) * alignment
    data_start = -(-reader.position // alignment) * alignment
    if end and data_start + end > reader.size:
        reader.refuse(f"truncated: it has {reader.size} bytes; its tensors end at {data_start + end}")
    return total


def _read_tensor(reader: _Reader, name: str) -> tuple[int, int]:
    """Return the bytes of a tensor and its offset in the data section."""
    dimensions = reader.unsigned(_U32, "the tensor list")
    if not 0 < dimensions <= _MAX_DIMENSIONS:
        reader.refuse(f"tensor {name!r} has {dimensions} dimensions; expected 1 to {_MAX_DIMENSIONS}")
    shape = [reader.unsigned(_U64, "the tensor list") for _ in range(dimensions)]
    code = reader.unsigned(_U32, "the tensor list")
    offset = reader.unsigned(_U64, "the tensor list")
    if code not in _BLOCKS:
        reader.refuse(f"tensor {name!r} has unknown type {code}")
    block_weights, block_bytes = _BLOCKS[code]
    weights = 1
    for length in shape:
        weights *= length
    if not 0 < weights < 2**63 or shape[0] % block_weights:
        reader.refuse(f"tensor {name!r} has the impossible shape {shape}")
    return weights // block_weights * block_bytes, offset
