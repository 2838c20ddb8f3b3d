"""A small, sound GGUF file, to be served, cut and damaged."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

U32, F32_VALUE, BOOL, STRING, ARRAY = 4, 6, 7, 8, 9


def text(value: str) -> bytes:
    """A GGUF string."""
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def entry(key: str, code: int, payload: bytes) -> bytes:
    """A metadata entry."""
    return text(key) + struct.pack("<I", code) + payload


def number(key: str, value: int) -> bytes:
    """A metadata entry with an unsigned number."""
    return entry(key, U32, struct.pack("<I", value))


def strings(key: str, values: Sequence[str]) -> bytes:
    """A metadata entry with an array of strings."""
    return entry(key, ARRAY, struct.pack("<IQ", STRING, len(values)) + b"".join(map(text, values)))


@dataclass(frozen=True)
class Tensor:
    """A tensor's line in the header; *size* bytes follow where there is no *offset*: *data*, or zeros."""

    name: str
    shape: tuple[int, ...]
    code: int
    size: int
    offset: int | None = None
    data: bytes = b""


ENTRIES = (
    entry("general.architecture", STRING, text("llama")),
    number("llama.block_count", 2),
    number("llama.context_length", 512),
    number("llama.embedding_length", 64),
    number("llama.attention.head_count", 4),
    number("llama.attention.head_count_kv", 2),
    entry("llama.rope.freq_base", F32_VALUE, struct.pack("<f", 10000.0)),
    entry("tokenizer.ggml.add_bos_token", BOOL, b"\x01"),
    strings("tokenizer.ggml.tokens", ["<s>", "</s>", "a", "ä", ""]),
    entry("tokenizer.ggml.scores", ARRAY, struct.pack("<IQ5f", F32_VALUE, 5, *range(5))),
    entry("tokenizer.chat_template", STRING, text("{{ messages }}")),
)
TENSORS = (
    Tensor("token_embd.weight", (64, 5), 0, 1280),
    Tensor("blk.0.weight", (64, 3), 2, 108),  # Q4_0: 6 blocks of 18 bytes
    Tensor("blk.1.weight", (64,), 1, 128),
)


def make(
    entries: Sequence[bytes] = ENTRIES,
    tensors: Sequence[Tensor] = TENSORS,
    *,
    version: int = 3,
    tensor_count: int | None = None,
    entry_count: int | None = None,
) -> bytes:
    """Return the file; counts that lie are given, true ones are computed."""
    header = b"GGUF" + struct.pack(
        "<IQQ",
        version,
        len(tensors) if tensor_count is None else tensor_count,
        len(entries) if entry_count is None else entry_count,
    )
    header += b"".join(entries)
    data = b""
    for tensor in tensors:
        offset = len(data) if tensor.offset is None else tensor.offset
        header += text(tensor.name) + struct.pack("<I", len(tensor.shape))
        header += b"".join(struct.pack("<Q", length) for length in tensor.shape)
        header += struct.pack("<IQ", tensor.code, offset)
        data += (tensor.data or bytes(tensor.size)) + bytes(-tensor.size % 32)
    return header + bytes(-len(header) % 32) + data
