"""How much memory an MLC engine takes up front, and the share of the device's total that it may count on."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping
from typing import Any

from inference.errors import LoadFailedError

_PAGE_TOKENS = 16
_MOST = 0.95
_AUX_BYTES = 48 * 2**20
# Where nobody reserved anything. Temporaries of the compiled functions are known only once it is loaded.
_SLACK = 1.25
_SLACK_BYTES = 512 * 2**20


def cache_tokens(slots: int, context_tokens: int, chunk_tokens: int) -> int:
    """Return the tokens of a KV cache in which every sequence can be full.

    A sequence takes whole pages, and one more is there for the 8 tokens per sequence that the engine keeps
    free: without them a prompt of nearly the whole context waits for ever (batch_prefill_base.cc). A cache
    that is smaller than a prefill chunk makes each token as slow as the prompt (seen with 160 and 256).
    """
    pages = -(-context_tokens // _PAGE_TOKENS) + 1
    return max(slots * pages, -(-chunk_tokens // _PAGE_TOKENS) + 1) * _PAGE_TOKENS


def compiled_chunk(config: Mapping[str, Any]) -> int:
    """Return the prefill chunk that the library was compiled for, in tokens."""
    return _first(config.get("model_config") or {}, "prefill_chunk_size") or _first(
        config, "prefill_chunk_size"
    )


def needed_bytes(weights_bytes: int, config: Mapping[str, Any], *, slots: int, context_tokens: int) -> int:
    """Return what the engine allocates up front, by its own accounting (cpp/serve/config.cc).

    Buffers have the size of the prefill chunk that the library was compiled for, whatever is set later.
    """
    shape: Mapping[str, Any] = config.get("model_config") or {}
    heads = _first(shape, "num_attention_heads", "n_head")
    kv_heads = _first(shape, "num_key_value_heads", "multi_query_group_num") or heads
    head_dim = _first(shape, "head_dim") or (_first(shape, "hidden_size", "n_embd") // heads if heads else 0)
    layers = _first(shape, "num_hidden_layers", "n_layer")
    chunk = compiled_chunk(config)
    cache = cache_tokens(slots, context_tokens, chunk) * (head_dim * kv_heads * layers * 4 + 1.25)
    aux = (slots + 1) * 88 + chunk * ((heads + 1) * 8 + head_dim * (heads + kv_heads) * 4) + _AUX_BYTES
    work = chunk * 4 + slots * 4 + (2 * chunk + slots) * head_dim * heads * 2
    logits = slots * (20 + int(config["vocab_size"]) * 16.125)
    return round(weights_bytes + cache + aux + work + logits)


def utilization(needed: int, reserved_bytes: int | None, total_bytes: int) -> float:
    """Return the share of *total_bytes* that the engine may count on: what was reserved for it.

    The engine itself compares only weights and buffers with it, and then allocates a KV cache of any size.

    Raises:
        LoadFailedError: the KV cache and the rest would take more than was reserved.
    """
    if reserved_bytes is None:
        return min(_MOST, (needed * _SLACK + _SLACK_BYTES) / total_bytes)
    if needed > reserved_bytes:
        wanted, given = f"{needed / 2**30:.2f} GiB", f"{reserved_bytes / 2**30:.2f} GiB"
        raise LoadFailedError(
            f"mlc_llm would take {wanted}; {given} are reserved for it",
            hint="use fewer slots or a shorter context, or give the model's shape in models.json",
            details={"needed_bytes": needed, "reserved_bytes": reserved_bytes},
        )
    return min(_MOST, reserved_bytes / total_bytes)


def device_total_bytes(device: str) -> int:
    """Return the memory that the engine takes its share of: the GPU's, or the machine's."""
    name, _, number = device.partition(":")
    return (_cuda_total_bytes(int(number or 0)) if name == "cuda" else None) or _ram_bytes()


def _ram_bytes() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _cuda_total_bytes(number: int) -> int | None:
    """Ask the driver, because a card has memory of its own; ``None`` where it cannot say."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    device, total = ctypes.c_int(), ctypes.c_size_t()
    done = (
        cuda.cuInit(0) == 0
        and cuda.cuDeviceGet(ctypes.byref(device), number) == 0
        and cuda.cuDeviceTotalMem_v2(ctypes.byref(total), device) == 0
    )
    return total.value if done else None


def _first(shape: Mapping[str, Any], *names: str) -> int:
    return next((int(shape[name]) for name in names if shape.get(name)), 0)
