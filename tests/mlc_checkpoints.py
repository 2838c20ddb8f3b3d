"""Tiny checkpoints with real weights, made without numpy: what mlc_llm converts, compiles and runs.

The weights are random, but the same on every machine. Rows of the embedding that belong to words are
larger than all others, so that such a model writes words, whatever it is asked.
"""

from __future__ import annotations

import json
import math
import random
import struct
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from statistics import NormalDist
from typing import Any, Literal

from tests.mlc_tokenizer import END_OF_TEXT, IM_END, IM_START, specials, word_ids, write_json, write_tokenizer

VOCABULARY_TOKENS = 512
CONTEXT_TOKENS = 256

Dtype = Literal["F32", "F16", "BF16"]
Tensors = dict[str, tuple[tuple[int, ...], bytes]]
_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
_WIDTH, _INNER, _LAYERS, _HEADS = 128, 256, 2, 2
_WORD_SCALE, _OTHER_SCALE, _MATRIX_SCALE = 0.05, 0.002, 0.3


def make_llama(directory: Path, *, tied: bool = True, **options: Any) -> Path:
    """Write a model of SmolLM2's kind; *options* are those of `_write`."""
    config = {**_llama_config("llama", tied), "architectures": ["LlamaForCausalLM"]}
    return _write(directory, config, _llama_shapes(config), **options)


def make_qwen2(directory: Path, *, tied: bool = True, **options: Any) -> Path:
    """Write a model of Qwen2.5's kind: as `make_llama`, with biases."""
    config = {**_llama_config("qwen2", tied), "architectures": ["Qwen2ForCausalLM"]}
    return _write(directory, config, _llama_shapes(config), **options)


def make_gpt2(directory: Path, *, prefixed: bool = False, **options: Any) -> Path:
    """Write a GPT-2; *prefixed*: as transformers saves DistilGPT-2, with masks that are no weights."""
    shapes = _gpt2_shapes(masked=prefixed)
    if prefixed:
        shapes = {f"transformer.{name}": shape for name, shape in shapes.items()}
    return _write(directory, _gpt2_config(), shapes, **{"dtype": "F32", "chat": False, **options})


def _write(
    directory: Path,
    config: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    *,
    dtype: Dtype = "BF16",
    shards: int = 1,
    seed: int = 1,
    tokenizer: Literal["json", "vocab"] = "json",
    chat: bool = True,
    **changes: Any,
) -> Path:
    """Write a checkpoint to a new *directory*.

    Args:
        shards: how many files the weights are in; more than one come with an index.
        tokenizer: "vocab": vocab.json and merges.txt alone, as DialoGPT has.
        chat: whether tokenizer_config.json has a template.
        changes: of config.json; None removes a key.
    """
    directory.mkdir(parents=True)
    torch_dtype = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}[dtype]
    tree = {**config, "torch_dtype": torch_dtype, **changes}
    write_json(directory / "config.json", {key: each for key, each in tree.items() if each is not None})
    write_tokenizer(directory, tokenizer, chat, CONTEXT_TOKENS)
    write_weights(directory, dict(_weights(shapes, dtype, seed)), dtype, shards)
    return directory


# What is wrong with a checkpoint, by name: a test breaks a sound one.


def break_checkpoint(directory: Path, how: str) -> Path:
    """Damage a checkpoint of one weights file in one of the ways of `BREAKS`."""
    BREAKS[how](directory)
    return directory


def _change(directory: Path, **changes: Any) -> None:
    path = directory / "config.json"
    tree = {**json.loads(path.read_text()), **changes}
    write_json(path, {key: each for key, each in tree.items() if each is not None})


def _transformers_5(directory: Path) -> None:
    theta = json.loads((directory / "config.json").read_text())["rope_theta"]
    below = {"rope_theta": theta, "rope_type": "default"}
    _change(directory, rope_theta=None, torch_dtype=None, dtype="bfloat16", rope_parameters=below)


def _stale_index(directory: Path) -> None:
    """The index of the same model in another shape: fewer tensors, and another name."""
    names = {"model.embed_tokens.weight": "model.safetensors", "model.gone.weight": "model.safetensors"}
    write_json(directory / "model.safetensors.index.json", {"weight_map": names})


def _absent_shard(directory: Path) -> None:
    header = read_safetensors(directory / "model.safetensors")
    names = {name: "model-00001-of-00001.safetensors" for name in header}
    write_json(directory / "model.safetensors.index.json", {"weight_map": names})


def _cut(directory: Path) -> None:
    path = directory / "model.safetensors"
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 1000)


def _pickle(directory: Path) -> None:
    """Bytes that begin as torch.save's do; whoever unpickles them fails."""
    (directory / "pytorch_model.bin").write_bytes(b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.")


def _pickle_only(directory: Path) -> None:
    _pickle(directory)
    (directory / "model.safetensors").unlink()


def _without(directory: Path, name: str) -> None:
    path = directory / "model.safetensors"
    dtype, tensors = _read_all(path)
    del tensors[name]
    write_safetensors(path, tensors, dtype)


BREAKS: dict[str, Callable[[Path], None]] = {
    "unknown model_type": lambda directory: _change(directory, model_type="novelty"),
    "no model_type": lambda directory: _change(directory, model_type=None),
    "no head": lambda directory: _without(directory, "lm_head.weight"),
    "no norm": lambda directory: _without(directory, "model.norm.weight"),
    "rope_parameters": _transformers_5,
    "stale index": _stale_index,
    "absent shard": _absent_shard,
    "cut": _cut,
    "pickle beside": _pickle,
    "pickle only": _pickle_only,
    "no weights": lambda directory: (directory / "model.safetensors").unlink(),
    "no config": lambda directory: (directory / "config.json").unlink(),
    "no tokenizer": lambda directory: (directory / "tokenizer.json").unlink(),
}


# safetensors: eight bytes of length, JSON, data (huggingface/safetensors, README: format).


def write_weights(directory: Path, tensors: Tensors, dtype: Dtype, shards: int = 1) -> None:
    """Write model.safetensors, or as many shards with their index."""
    if shards == 1:
        write_safetensors(directory / "model.safetensors", tensors, dtype)
        return
    names = list(tensors)
    weight_map: dict[str, str] = {}
    for part in range(shards):
        file = f"model-{part + 1:05}-of-{shards:05}.safetensors"
        own = {name: tensors[name] for name in names[part::shards]}
        write_safetensors(directory / file, own, dtype)
        weight_map |= {name: file for name in own}
    total = sum(len(data) for _, data in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    write_json(directory / "model.safetensors.index.json", index)


def write_safetensors(path: Path, tensors: Tensors, dtype: Dtype) -> None:
    """Write one file."""
    tree: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (shape, data) in tensors.items():
        begin, end = end, end + len(data)
        tree[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    header = json.dumps(tree).encode()
    header += b" " * (-len(header) % 8)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.writelines(data for _, data in tensors.values())


def read_safetensors(path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Return a file's tensors: type, shape and bytes by name."""
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    tree = json.loads(raw[8 : 8 + size])
    tree.pop("__metadata__", None)
    body = memoryview(raw)[8 + size :]
    return {
        name: (each["dtype"], tuple(each["shape"]), bytes(body[slice(*each["data_offsets"])]))
        for name, each in tree.items()
    }


def _read_all(path: Path) -> tuple[Dtype, Tensors]:
    found = read_safetensors(path)
    dtype: Any = next(iter(found.values()))[0]
    return dtype, {name: (shape, data) for name, (_, shape, data) in found.items()}


# The models: configuration, shapes, weights.


def _llama_config(model_type: str, tied: bool) -> dict[str, Any]:
    return {
        "model_type": model_type,
        "hidden_act": "silu",
        "hidden_size": _WIDTH,
        "intermediate_size": _INNER,
        "num_hidden_layers": _LAYERS,
        "num_attention_heads": _HEADS,
        "num_key_value_heads": 1,
        "max_position_embeddings": CONTEXT_TOKENS,
        "rms_norm_eps": 1e-5,
        "rope_theta": 100000.0,
        "tie_word_embeddings": tied,
        "vocab_size": VOCABULARY_TOKENS,
        "bos_token_id": specials()[IM_START],
        "eos_token_id": specials()[IM_END],
    }


def _gpt2_config() -> dict[str, Any]:
    end = specials()[END_OF_TEXT]
    return {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "activation_function": "gelu_new",
        "n_embd": _WIDTH,
        "n_layer": _LAYERS,
        "n_head": _HEADS,
        "n_positions": CONTEXT_TOKENS,
        "n_ctx": CONTEXT_TOKENS,
        "layer_norm_epsilon": 1e-5,
        "vocab_size": VOCABULARY_TOKENS,
        "bos_token_id": end,
        "eos_token_id": end,
    }


def _llama_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    narrow = _WIDTH // _HEADS
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY_TOKENS, _WIDTH)}
    for i in range(_LAYERS):
        block = f"model.layers.{i}"
        for name, rows in (("q_proj", _WIDTH), ("k_proj", narrow), ("v_proj", narrow)):
            shapes[f"{block}.self_attn.{name}.weight"] = (rows, _WIDTH)
            if config["model_type"] == "qwen2":
                shapes[f"{block}.self_attn.{name}.bias"] = (rows,)
        shapes |= {
            f"{block}.self_attn.o_proj.weight": (_WIDTH, _WIDTH),
            f"{block}.mlp.gate_proj.weight": (_INNER, _WIDTH),
            f"{block}.mlp.up_proj.weight": (_INNER, _WIDTH),
            f"{block}.mlp.down_proj.weight": (_WIDTH, _INNER),
            f"{block}.input_layernorm.weight": (_WIDTH,),
            f"{block}.post_attention_layernorm.weight": (_WIDTH,),
        }
    shapes["model.norm.weight"] = (_WIDTH,)
    head = {} if config["tie_word_embeddings"] else {"lm_head.weight": (VOCABULARY_TOKENS, _WIDTH)}
    return {**shapes, **head}


def _gpt2_shapes(masked: bool) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        "wte.weight": (VOCABULARY_TOKENS, _WIDTH),
        "wpe.weight": (CONTEXT_TOKENS, _WIDTH),
    }
    for i in range(_LAYERS):
        block = f"h.{i}"
        if masked:
            shapes[f"{block}.attn.bias"] = (1, 1, CONTEXT_TOKENS, CONTEXT_TOKENS)
            shapes[f"{block}.attn.masked_bias"] = ()
        for norm in ("ln_1", "ln_2"):
            shapes |= {f"{block}.{norm}.weight": (_WIDTH,), f"{block}.{norm}.bias": (_WIDTH,)}
        for name, rows, columns in (
            ("attn.c_attn", _WIDTH, 3 * _WIDTH),
            ("attn.c_proj", _WIDTH, _WIDTH),
            ("mlp.c_fc", _WIDTH, 4 * _WIDTH),
            ("mlp.c_proj", 4 * _WIDTH, _WIDTH),
        ):
            shapes |= {f"{block}.{name}.weight": (rows, columns), f"{block}.{name}.bias": (columns,)}
    return {**shapes, "ln_f.weight": (_WIDTH,), "ln_f.bias": (_WIDTH,)}


def _weights(
    shapes: Mapping[str, tuple[int, ...]], dtype: Dtype, seed: int
) -> Iterator[tuple[str, tuple[tuple[int, ...], bytes]]]:
    """Yield each tensor; its numbers follow from its name without the prefix, and from *seed*."""
    words = word_ids()
    for name, shape in shapes.items():
        plain = name.removeprefix("transformer.")
        rng = random.Random(f"{seed} {plain}")  # noqa: S311 - the same everywhere
        if plain in ("model.embed_tokens.weight", "wte.weight", "lm_head.weight"):
            data = b"".join(
                _normal(rng, shape[1], _WORD_SCALE if token in words else _OTHER_SCALE, dtype)
                for token in range(shape[0])
            )
        elif plain == "wpe.weight":
            data = _normal(rng, math.prod(shape), _WORD_SCALE, dtype)
        elif len(shape) == 2 or plain.endswith("_proj.bias"):
            data = _normal(rng, math.prod(shape), _MATRIX_SCALE, dtype)
        else:
            is_norm = plain.endswith(("norm.weight", "ln_1.weight", "ln_2.weight", "ln_f.weight"))
            data = _number(1.0 if is_norm else 0.0, dtype) * math.prod(shape)
        yield name, (shape, data)


def _normal(rng: random.Random, count: int, scale: float, dtype: Dtype) -> bytes:
    """Return normally distributed numbers, of 256 different ones, so that no number costs a call."""
    choice, size = rng.randbytes(count), _BYTES[dtype]
    data = bytearray(count * size)
    for at, table in enumerate(_tables(scale, dtype)):
        data[at::size] = choice.translate(table)
    return bytes(data)


@lru_cache
def _tables(scale: float, dtype: Dtype) -> tuple[bytes, ...]:
    """Return for each byte of a number what it is in each of 256 numbers."""
    normal = NormalDist(0, scale)
    numbers = [_number(normal.inv_cdf((i + 0.5) / 256), dtype) for i in range(256)]
    return tuple(bytes(each[at] for each in numbers) for at in range(_BYTES[dtype]))


def _number(value: float, dtype: Dtype) -> bytes:
    if dtype == "F16":
        return struct.pack("<e", value)
    return struct.pack("<f", value)[2 if dtype == "BF16" else 0 :]
