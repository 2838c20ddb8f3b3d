"""A compiled MLC model for the fake engine, and the options that load it."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from inference.backends import LoadOptions
from inference.runtime.worker import WorkerSpec
from inference.settings import worker_environment
from tests.fake_mlc.mlc_llm.library import library

FAKE = Path(__file__).resolve().parent / "fake_mlc"
CONTEXT_TOKENS = 512
VOCABULARY_TOKENS = 260
END = 256
CHAT_TEMPLATE = (
    "{% for m in messages %}"
    "{% if m['role'] == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}"
    "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "quantization": "q4f16_1",
    "vocab_size": VOCABULARY_TOKENS,
    "context_window_size": CONTEXT_TOKENS,
    "prefill_chunk_size": 64,
    "bos_token_id": 257,
    "eos_token_id": END,
    "model_config": {
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 64,
        "hidden_size": 128,
        "num_hidden_layers": 2,
        "vocab_size": VOCABULARY_TOKENS,
        "context_window_size": CONTEXT_TOKENS,
        "prefill_chunk_size": 64,
        "max_batch_size": 4,
    },
    "conv_template": {
        "roles": {"user": "user", "assistant": "assistant"},
        "stop_str": [],
        "stop_token_ids": [],
    },
}


def make_model(
    directory: Path,
    *,
    chat_template: str | None = CHAT_TEMPLATE,
    cache_name: str = "tensor-cache.json",
    config: dict[str, Any] | None = None,
    **script: Any,
) -> Path:
    """Write a model; *script* is what the fake engine does with it (see its package)."""
    directory.mkdir(parents=True, exist_ok=True)
    shard = os.urandom(4096)
    record = {"dataPath": "params_shard_0.bin", "nbytes": 4096, "md5sum": hashlib.md5(shard).hexdigest()}  # noqa: S324
    tokenizer = {"eos_token": "<|im_end|>"} | ({"chat_template": chat_template} if chat_template else {})
    texts = {
        "mlc-chat-config.json": {**CONFIG, **(config or {})},
        "tokenizer_config.json": tokenizer,
        "fake.json": {"cache_name": cache_name, **script},
        cache_name: {"metadata": {}, "records": [record]},
    }
    for name, value in texts.items():
        (directory / name).write_text(json.dumps(value), encoding="utf-8")
    (directory / "params_shard_0.bin").write_bytes(shard)
    (directory / "lib.so").write_bytes(library())
    return directory


def load_options(weights: Path, **changes: Any) -> LoadOptions:
    """Options for an engine on the CPU; the private directory is beside the model."""
    runtime_dir = weights.parent / f"{weights.name}.run"
    runtime_dir.mkdir(exist_ok=True)
    options = LoadOptions(
        weights=weights,
        context_tokens=CONTEXT_TOKENS,
        slots=4,
        threads=None,
        prefill_batch_tokens=512,
        prompt_cache_bytes=0,
        runtime_dir=runtime_dir,
        device="cpu",
    )
    return replace(options, **changes)


def worker_spec(weights: Path, name: str = "tiny/mlc", **changes: Any) -> WorkerSpec:
    """What a worker process runs that finds the fake engine where a checkout would be: on PYTHONPATH."""
    options = load_options(weights, **changes).to_dict()
    environment = {**worker_environment(), "PYTHONPATH": str(FAKE)}
    return WorkerSpec(name, "mlc", options, environment)
