"""Whole models as GGUF files: llama.cpp loads and runs them, in milliseconds, with random weights.

`bert_gguf` writes any BERT, so that a checkpoint for transformers runs on llama.cpp too.
"""

from __future__ import annotations

import json
import random
import string
import struct
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.synthetic_gguf import ARRAY, BOOL, F32_VALUE, STRING, Tensor, entry, make, number, strings, text

_I32 = 5
_NORMAL, _UNKNOWN, _CONTROL, _BYTE = 1, 2, 3, 6
_BLOCK = "\N{LOWER ONE EIGHTH BLOCK}"

Weights = Mapping[str, tuple[tuple[int, ...], bytes]]
"""Of each tensor its shape as PyTorch has it, and its numbers as little-endian float32."""

_OF_BERT = {
    "embeddings.word_embeddings.weight": "token_embd.weight",
    "embeddings.token_type_embeddings.weight": "token_types.weight",
    "embeddings.position_embeddings.weight": "position_embd.weight",
    "embeddings.LayerNorm": "token_embd_norm",
}
_OF_BERT_LAYER = {
    "attention.self.query": "attn_q",
    "attention.self.key": "attn_k",
    "attention.self.value": "attn_v",
    "attention.output.dense": "attn_output",
    "attention.output.LayerNorm": "attn_output_norm",
    "intermediate.dense": "ffn_up",
    "output.dense": "ffn_down",
    "output.LayerNorm": "layer_output_norm",
}
BERT_CONFIG: dict[str, Any] = {
    "architectures": ["BertModel"],
    "model_type": "bert",
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
}


def bert_vocabulary() -> list[str]:
    """The pieces of a vocabulary of letters."""
    letters = string.ascii_lowercase
    return ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *letters, *(f"##{letter}" for letter in letters)]


def tiny_bert() -> bytes:
    """A BERT of one layer with random weights, for mean pooling; its context is 64 tokens."""
    vocabulary = bert_vocabulary()
    width, inner = BERT_CONFIG["hidden_size"], BERT_CONFIG["intermediate_size"]
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (len(vocabulary), width),
        "embeddings.token_type_embeddings.weight": (2, width),
        "embeddings.position_embeddings.weight": (64, width),
        "embeddings.LayerNorm.weight": (width,),
        "embeddings.LayerNorm.bias": (width,),
    }
    for name in _OF_BERT_LAYER:
        out = inner if name == "intermediate.dense" else width
        inside = inner if name == "output.dense" else width
        shape = (out,) if name.endswith("LayerNorm") else (out, inside)
        shapes |= {f"encoder.layer.0.{name}.weight": shape, f"encoder.layer.0.{name}.bias": (out,)}
    return bert_gguf(_random(shapes), vocabulary, BERT_CONFIG)


def bert_gguf(weights: Weights, vocabulary: Sequence[str], config: Mapping[str, Any]) -> bytes:
    """Return a BERT of transformers as a GGUF file, for mean pooling."""
    kinds = [_CONTROL if _is_special(piece) else _NORMAL for piece in vocabulary]
    numbers = {
        "bert.block_count": config["num_hidden_layers"],
        "bert.context_length": config["max_position_embeddings"],
        "bert.embedding_length": config["hidden_size"],
        "bert.feed_forward_length": config["intermediate_size"],
        "bert.attention.head_count": config["num_attention_heads"],
        "bert.pooling_type": 1,
        "tokenizer.ggml.token_type_count": config["type_vocab_size"],
        "tokenizer.ggml.bos_token_id": vocabulary.index("[CLS]"),
        "tokenizer.ggml.cls_token_id": vocabulary.index("[CLS]"),
        "tokenizer.ggml.eos_token_id": vocabulary.index("[SEP]"),
        "tokenizer.ggml.seperator_token_id": vocabulary.index("[SEP]"),
        "tokenizer.ggml.unknown_token_id": vocabulary.index("[UNK]"),
        "tokenizer.ggml.padding_token_id": vocabulary.index("[PAD]"),
    }
    entries = [
        entry("general.architecture", STRING, text("bert")),
        *(number(key, value) for key, value in numbers.items()),
        entry("bert.attention.layer_norm_epsilon", F32_VALUE, struct.pack("<f", config["layer_norm_eps"])),
        entry("bert.attention.causal", BOOL, b"\0"),
        entry("tokenizer.ggml.model", STRING, text("bert")),
        strings("tokenizer.ggml.tokens", [_wordpiece(piece) for piece in vocabulary]),
        _integers("tokenizer.ggml.token_type", kinds),
    ]
    return make(entries, [_tensor(_bert_name(name), *weights[name]) for name in weights])


def safetensors_of(path: Path) -> dict[str, tuple[tuple[int, ...], bytes]]:
    """Return the float32 tensors of a safetensors file."""
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    header.pop("__metadata__", None)
    found = {}
    for name, each in header.items():
        if each["dtype"] == "F32" and "pooler" not in name:
            begin, end = each["data_offsets"]
            found[name] = (tuple(each["shape"]), raw[8 + length + begin : 8 + length + end])
    return found


def tiny_llama() -> bytes:
    """A Llama of one layer with random weights, of bytes and letters; its context is 256 tokens."""
    letters = [_BLOCK, *string.ascii_lowercase, *(_BLOCK + letter for letter in string.ascii_lowercase)]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *letters]
    kinds = [_UNKNOWN, _CONTROL, _CONTROL, *[_BYTE] * 256, *[_NORMAL] * len(letters)]
    width, inner = 32, 64
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (len(tokens), width),
        "output_norm.weight": (width,),
        "blk.0.attn_norm.weight": (width,),
        "blk.0.ffn_norm.weight": (width,),
        **{f"blk.0.attn_{name}.weight": (width, width) for name in ("q", "k", "v", "output")},
        "blk.0.ffn_gate.weight": (inner, width),
        "blk.0.ffn_up.weight": (inner, width),
        "blk.0.ffn_down.weight": (width, inner),
    }
    numbers = {
        "llama.block_count": 1,
        "llama.context_length": 256,
        "llama.embedding_length": width,
        "llama.feed_forward_length": inner,
        "llama.attention.head_count": 2,
        "llama.attention.head_count_kv": 2,
        "llama.rope.dimension_count": width // 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }
    entries = [
        entry("general.architecture", STRING, text("llama")),
        *(number(key, value) for key, value in numbers.items()),
        entry("llama.attention.layer_norm_rms_epsilon", F32_VALUE, struct.pack("<f", 1e-5)),
        entry("tokenizer.ggml.model", STRING, text("llama")),
        strings("tokenizer.ggml.tokens", tokens),
        entry(
            "tokenizer.ggml.scores",
            ARRAY,
            struct.pack("<IQ", F32_VALUE, len(tokens)) + array("f", map(_score, tokens)).tobytes(),
        ),
        _integers("tokenizer.ggml.token_type", kinds),
    ]
    return make(entries, [_tensor(name, *each) for name, each in _random(shapes).items()])


def _score(token: str) -> float:
    return float(len(token)) if token[0] != "<" else -100.0


def _wordpiece(piece: str) -> str:
    """llama.cpp marks the beginnings of words, and BERT the rest."""
    return piece if _is_special(piece) else piece[2:] if piece.startswith("##") else _BLOCK + piece


def _is_special(piece: str) -> bool:
    return len(piece) > 2 and piece[0] == "[" and piece[-1] == "]"


def _bert_name(name: str) -> str:
    if not name.startswith("encoder.layer."):
        stem, _, kind = name.rpartition(".")
        return _OF_BERT.get(name) or f"{_OF_BERT[stem]}.{kind}"
    layer, _, rest = name.removeprefix("encoder.layer.").partition(".")
    stem, _, kind = rest.rpartition(".")
    return f"blk.{layer}.{_OF_BERT_LAYER[stem]}.{kind}"


def _random(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[tuple[int, ...], bytes]]:
    chance = random.Random(7)  # noqa: S311 - no secret
    found = {}
    for name, shape in shapes.items():
        count = shape[0] * (shape[1] if len(shape) > 1 else 1)
        norm = "norm" in name.lower() and name.endswith("weight")
        values = (1.0 if norm else chance.gauss(0, 0.3) for _ in range(count))
        found[name] = (shape, array("f", values).tobytes())
    return found


def _tensor(name: str, shape: tuple[int, ...], data: bytes) -> Tensor:
    return Tensor(name, shape[::-1], 0, len(data), data=data)


def _integers(key: str, values: Sequence[int]) -> bytes:
    return entry(key, ARRAY, struct.pack("<IQ", _I32, len(values)) + array("i", values).tobytes())
