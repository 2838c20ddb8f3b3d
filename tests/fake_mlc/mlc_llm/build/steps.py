"""The three steps."""

from __future__ import annotations

import json
import platform
import shutil
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

from ..library import library
from .families import family_of, model_config
from .script import KEY, Script
from .shards import Shards, packed
from .source import Weights, detect_weights, log, model_type_of, say
from .templates import template

TOKENIZER_FILES = (
    "tokenizer.model", "tokenizer.json", "vocab.json", "merges.txt", "added_tokens.json",
    "tokenizer_config.json",
)  # fmt: skip
_DEFAULTS = {
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "temperature": 1.0, "presence_penalty": 0.0,
    "frequency_penalty": 0.0, "repetition_penalty": 1.0, "top_p": 1.0,
}  # fmt: skip
_KINDS = ("auto", "cuda", "rocm", "metal", "vulkan", "opencl", "cpu")
_OVERRIDES = ("context_window_size", "prefill_chunk_size", "max_batch_size")


def gen_config(asked: Namespace) -> None:
    """Write mlc-chat-config.json, and copy the tokenizer beside it."""
    source, out = asked.config.parent, asked.output
    tree = _read(asked.config)
    script = Script("gen_config", asked.quantization, tree)
    script.reach("begin")
    model_type = model_type_of(asked.config, asked.model_type)
    config = model_config(family_of(model_type), tree, **{name: getattr(asked, name) for name in _OVERRIDES})
    files = [name for name in TOKENIZER_FILES if (source / name).exists()]
    for name in files:
        shutil.copy(source / name, out / name)
    if "tokenizer.json" in files:
        contents = [token["content"] for token in _read(source / "tokenizer.json").get("added_tokens", ())]
        if len(contents) != len(set(contents)):
            raise ValueError("Duplicated vocab in tokenizer.json")
    said = {**tree, **_read(source / "generation_config.json", {})}
    chat = {
        "version": "0.1.0",
        "model_type": model_type,
        "quantization": asked.quantization,
        "model_config": config,
        **{name: config[name] for name in ("vocab_size", "context_window_size", "prefill_chunk_size")},
        "sliding_window_size": -1,
        "attention_sink_size": -1,
        "tensor_parallel_shards": 1,
        "pipeline_parallel_stages": 1,
        "active_vocab_size": config["vocab_size"],
        **{name: default if said.get(name) is None else said[name] for name, default in _DEFAULTS.items()},
        "tokenizer_files": files,
        "tokenizer_info": {"token_postproc_method": "byte_level", "prepend_space_in_encode": False},
        "conv_template": template(asked.conv_template),
        "model_task": "chat",
        **({KEY: script.own} if script.own else {}),
    }
    text = json.dumps(chat, indent=2)
    path = out / "mlc-chat-config.json"
    path.write_text(text[: len(text) // 2], encoding="utf-8")
    script.reach("middle")
    path.write_text(text, encoding="utf-8")
    log(f"Dumping configuration file to: {path}")
    script.spoil(path)
    script.reach("end")


def convert_weight(asked: Namespace) -> None:
    """Write the shards and their list."""
    tree, out = _read(asked.config), asked.output
    script = Script("convert_weight", asked.quantization, tree)
    try:
        _check_device(asked.device, script)
    except ValueError:  # the type of an option there, of which argparse shows no more
        sys.stderr.write(f"argument --device: invalid detect_device value: {asked.device!r}\n")
        sys.exit(2)
    script.reach("begin")
    source = asked.config.parent if asked.source == "auto" else Path(asked.source)
    listing = detect_weights(source, asked.source_format)
    family = family_of(model_type_of(asked.config, asked.model_type))
    parameters = family.parameters(model_config(family, tree))
    say(f"Weight conversion with arguments:\n  --config {asked.config}\n  --output {out}")
    weights = Weights(listing, family, parameters)
    shards = Shards(out, script["shard_bytes"] or 32 * 2**20, lambda: script.reach("middle"))
    say(f"Start storing to cache {out}")
    for name, parameter in parameters.items():
        data = weights.take(name, parameter)
        for each, shape, dtype in packed(name, parameter, asked.quantization):
            log(f'[Quantized] Parameter: "{each}", shape: {shape}, dtype: {dtype}')
            shards.add(each, shape, dtype, data)
    bits = shards.memory_bytes * 8 / weights.count()
    shards.finish({"ParamSize": shards.count, "ParamBytes": float(shards.memory_bytes), "BitsPerParam": bits})
    log(f"Parameter size after quantization: {shards.memory_bytes / 2**30:.3f} GB")
    log(f"Bits per parameter: {bits:.3f}")
    log(f"Saved to directory: {out}")
    script.spoil(shards.last)
    script.reach("end")


def compile_library(asked: Namespace) -> None:
    """Write the library."""
    tree = _read(asked.model)
    quantization = asked.quantization or tree.get("quantization")
    if quantization is None:
        raise ValueError(
            f"'quantization' not found in: {asked.model}. Please explicitly specify `--quantization` instead."
        )
    script = Script("compile", quantization, tree)
    if asked.device in _KINDS:
        _check_device(asked.device, script)
    elif not asked.device.startswith(("{", "nvidia/", "cuda ", "llvm ")):
        raise ValueError(f"Invalid target: {asked.device}")
    script.reach("begin")
    model_type = model_type_of(asked.model, asked.model_type)
    config = model_config(family_of(model_type), {**tree.get("model_config", {}), **tree})
    say(f"Compiling with arguments:\n  --config {config}\n  --output {asked.output}")
    metadata: dict[str, Any] = {
        "model_type": model_type,
        "quantization": quantization,
        **{name: config[name] for name in _OVERRIDES},
        "target": asked.device,
        "opt": asked.opt,
        "engine": script.engine,
    }
    log(f"Registering metadata: {metadata}")
    machine = "aarch64" if "aarch64" in asked.host else platform.machine()
    data = library(metadata, machine)
    log("Compilation complete! Exporting to disk")
    with asked.output.open("wb") as file:
        file.write(data[: len(data) // 2])
        file.flush()
        script.reach("middle")
        file.write(data[len(data) // 2 :])
    log(f"Generated: {asked.output}")
    script.spoil(asked.output)
    script.reach("end")


def _check_device(device: str, script: Script) -> None:
    kinds = script["devices"] or ["cpu"]
    if device.partition(":")[0] not in ("auto", *kinds):
        raise ValueError(f"Device is not found on your local environment: {device}")


def _read(path: Path, default: dict[str, Any] | None = None) -> dict[str, Any]:
    if default is not None and not path.exists():
        return default
    tree: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return tree
