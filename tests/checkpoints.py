"""Checkpoints without weights: real names, types and shapes, and a hole where the weights would be."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

FIXTURES = Path(__file__).resolve().parent / "fixtures" / "checkpoints"
MODELS = ("distilgpt2", "dialogpt-small", "gpt2", "smollm2-135m-instruct", "qwen2.5-0.5b-instruct")
PREFIXED = ("distilgpt2", "dialogpt-small")

Shapes = dict[str, tuple[int, ...]]
_BYTES = {"F32": 4, "BF16": 2}


def make_checkpoint(model: str, directory: Path, **changes: Any) -> Path:
    """Write one of the guide's models to *directory*; *changes* of its configuration, None removes a key."""
    shutil.copytree(FIXTURES / model, directory)
    path = directory / "config.json"
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    shapes = shapes_of(json.loads((FIXTURES / model / "config.json").read_text()))
    if model in PREFIXED:
        shapes |= {f"h.{i}.attn.masked_bias": () for i in range(_layers(shapes))}
        shapes = {f"transformer.{name}": shape for name, shape in shapes.items()}
    write_safetensors(directory / "model.safetensors", shapes, "F32" if "gpt" in model else "BF16")
    return directory


def write_safetensors(path: Path, shapes: Shapes, dtype: str = "F32", **header: Any) -> None:
    """Write a header, and after it as many bytes as its tensors take, which take no room on the disk."""
    tree: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + math.prod(shape) * _BYTES[dtype]
        tree[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    raw = json.dumps({**tree, **header}).encode()
    with path.open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        file.truncate(8 + len(raw) + end)


def shapes_of(config: dict[str, Any]) -> Shapes:
    """Return the tensors of a model with tied embeddings, as its own repository names them."""
    return _gpt2(config) if config["model_type"] == "gpt2" else _llama(config)


def _gpt2(config: dict[str, Any]) -> Shapes:
    width, positions = config["n_embd"], config["n_positions"]
    shapes: Shapes = {"wte.weight": (config["vocab_size"], width), "wpe.weight": (positions, width)}
    for i in range(config["n_layer"]):
        block = f"h.{i}"
        shapes[f"{block}.attn.bias"] = (1, 1, positions, positions)
        for norm in ("ln_1", "ln_2"):
            shapes |= {f"{block}.{norm}.weight": (width,), f"{block}.{norm}.bias": (width,)}
        for name, rows, columns in (
            ("attn.c_attn", width, 3 * width),
            ("attn.c_proj", width, width),
            ("mlp.c_fc", width, 4 * width),
            ("mlp.c_proj", 4 * width, width),
        ):
            shapes |= {f"{block}.{name}.weight": (rows, columns), f"{block}.{name}.bias": (columns,)}
    return {**shapes, "ln_f.weight": (width,), "ln_f.bias": (width,)}


def _llama(config: dict[str, Any]) -> Shapes:
    width, inner = config["hidden_size"], config["intermediate_size"]
    key_width = width // config["num_attention_heads"] * config["num_key_value_heads"]
    shapes: Shapes = {"model.embed_tokens.weight": (config["vocab_size"], width)}
    for i in range(config["num_hidden_layers"]):
        block = f"model.layers.{i}"
        for name, rows in (("q_proj", width), ("k_proj", key_width), ("v_proj", key_width)):
            shapes[f"{block}.self_attn.{name}.weight"] = (rows, width)
            if config["model_type"] == "qwen2":
                shapes[f"{block}.self_attn.{name}.bias"] = (rows,)
        shapes[f"{block}.self_attn.o_proj.weight"] = (width, width)
        for name in ("gate_proj", "up_proj"):
            shapes[f"{block}.mlp.{name}.weight"] = (inner, width)
        shapes[f"{block}.mlp.down_proj.weight"] = (width, inner)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{block}.{norm}.weight"] = (width,)
    return {**shapes, "model.norm.weight": (width,)}


def _layers(shapes: Shapes) -> int:
    return sum(name.endswith("ln_1.weight") for name in shapes)
