"""Estimates: the memory that a variant will hold and the speed at which it will decode; pure arithmetic.

docs/selection.md has every formula with its source and the measurements behind its constants.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from inference.registry.spec import HubSource, ModelSpec, Variant

_MIB = 2**20
_MB = 10**6

# llama.cpp (xllamacpp 2026.10) in a worker, measured on x86 with SmolLM2-135M Q4_1 and Gemma 3 270M
# Q4_K_M, November 2026. A vocabulary entry costs its text and hash nodes once, and per slot its logit
# and its place in the sampler's candidate list. The overhead holds the interpreter, the libraries
# and a few MiB of tensors that are repacked for the processor.
_LLAMACPP_OVERHEAD_BYTES = 70 * _MIB
_LLAMACPP_BYTES_PER_VOCAB = 128
_LLAMACPP_BYTES_PER_VOCAB_SLOT = 24
_LLAMACPP_BYTES_PER_HIDDEN = 48
_LLAMACPP_CELLS = 256  # a sliding-window cache is rounded up to this many tokens
# Copies of the sliding layers' cache that a slot keeps to go back to. The engine's own default is 32,
# which is 240 MiB per slot with Gemma 3 270M, outside of every other limit: the backend must set this.
LLAMACPP_CHECKPOINTS = 1

# Not calibrated: the interpreter, TVM and a CUDA context. The first observed load corrects it.
_MLC_OVERHEAD_BYTES = 512 * _MIB
_MLC_AUX_BYTES = 48 * _MIB

# transformers held 959 MB with SmolLM2 in f32, whose weights are 538 MB.
_TRANSFORMERS_OVERHEAD_BYTES = 448 * _MIB
_TRANSFORMERS_BYTES_PER_HIDDEN = 64

# bits per weight, scales included; MLC's are exact, GGUF's mixtures are typical of 1B to 8B models
_BITS = {
    "q4f16_1": 4.5,
    "q4f32_1": 5.0,
    "q0f16": 16.0,
    "q0f32": 32.0,
    "q3_k_m": 3.9,
    "q4_0": 4.6,
    "q4_1": 5.1,
    "iq4_nl": 4.6,
    "q4_k_s": 4.7,
    "q4_k_m": 4.9,
    "q5_k_m": 5.7,
    "q6_k": 6.6,
    "q8_0": 8.5,
    "f16": 16.0,
    "bf16": 16.0,
    "f32": 32.0,
}

# a fit to nine published rows of Orin Nano and AGX Orin, see docs/selection.md
_BANDWIDTH_SHARE = 0.96
_S_PER_LAYER = 0.28e-3


@dataclass(frozen=True)
class MemoryEstimate:
    """The bytes that a loaded variant holds in the worst case.

    The parts are ``None`` where *total_bytes* is the registry's declared figure and not a sum.

    Args:
        prompt_cache_bytes: KV caches of earlier prompts. They fill over time, up to their limit, so
            an observation soon after loading lacks them.
    """

    weights_bytes: int | None
    kv_cache_bytes: int | None
    workspace_bytes: int | None
    overhead_bytes: int | None
    prompt_cache_bytes: int
    total_bytes: int


@dataclass(frozen=True)
class _Shape:
    """The numbers of a model that size its caches and buffers."""

    layers: int
    kv_heads: int
    head_dim: int
    hidden_size: int
    vocab_size: int
    window_tokens: int | None  # of the sliding layers
    sliding_layers: int

    @property
    def kv_values_per_token_layer(self) -> int:
        return 2 * self.kv_heads * self.head_dim  # K and V


def estimate_memory(
    spec: ModelSpec,
    variant: Variant,
    *,
    context_tokens: int,
    slots: int,
    prompt_cache_bytes: int,
    weights_bytes: int | None,
    prefill_batch_tokens: int = 128,
) -> MemoryEstimate:
    """Predict the bytes resident once *variant* is loaded and every slot has been used to the full.

    Args:
        context_tokens: tokens of each of the *slots* sequences.
        prompt_cache_bytes: limit of the cache of earlier prompts; only llamacpp has one.
        weights_bytes: the size on disk where the weights are on this machine.
    """
    shape = _shape(spec)
    weights = _weights_in_memory(spec, variant, weights_bytes)
    cache = prompt_cache_bytes if variant.backend == "llamacpp" else 0
    if shape is None or weights is None:
        declared = round(spec.memory_requirement * _MB)
        return MemoryEstimate(None, None, None, None, cache, max(declared, weights or 0) + cache)
    parts = {"llamacpp": _llamacpp, "mlc": _mlc, "transformers": _transformers}[variant.backend]
    kv, workspace, overhead = parts(shape, context_tokens, slots, prefill_batch_tokens)
    return MemoryEstimate(
        weights, kv, workspace, overhead, cache, weights + kv + workspace + overhead + cache
    )


def estimate_decode_tokens_per_s(
    spec: ModelSpec,
    variant: Variant,
    bandwidth_bytes_per_s: float | None,
    *,
    weights_bytes: int | None = None,
) -> float | None:
    """Predict decode speed at batch 1: every token reads all weights once and launches every layer.

    ``None`` when the bandwidth, the layers or the size of the weights is unknown.
    """
    weights = _weights_in_memory(spec, variant, weights_bytes)
    if bandwidth_bytes_per_s is None or spec.layers is None or weights is None:
        return None
    s_per_token = weights / (_BANDWIDTH_SHARE * bandwidth_bytes_per_s) + spec.layers * _S_PER_LAYER
    return 1 / s_per_token


def source_bytes(spec: ModelSpec, variant: Variant) -> int | None:
    """Return the size of a variant's weights: as its source declares, else from its quantization."""
    return _declared_bytes(variant) or _quantized_bytes(spec, variant)


def _declared_bytes(variant: Variant) -> int | None:
    source = variant.source
    if isinstance(source, HubSource):
        sizes = [file.bytes for file in source.files]
        return sum(size or 0 for size in sizes) if sizes and all(sizes) else None
    return source.bytes if source is not None else None


def _quantized_bytes(spec: ModelSpec, variant: Variant) -> int | None:
    bits = _BITS.get((variant.quantization or "").lower())
    return None if bits is None else round(spec.parameter_count * bits / 8)


def _weights_in_memory(spec: ModelSpec, variant: Variant, on_disk_bytes: int | None) -> int | None:
    if variant.backend == "transformers":
        return spec.parameter_count * 4  # f32 on a CPU, whatever the checkpoint's own type
    return on_disk_bytes or source_bytes(spec, variant)


def _shape(spec: ModelSpec) -> _Shape | None:
    numbers = (spec.layers, spec.kv_heads, spec.head_dim, spec.hidden_size, spec.vocab_size)
    if None in numbers:
        return None
    layers, kv_heads, head_dim, hidden_size, vocab_size = (number or 0 for number in numbers)
    window, sliding = _sliding(spec.architecture, layers, hidden_size)
    return _Shape(layers, kv_heads, head_dim, hidden_size, vocab_size, window, sliding)


def _sliding(architecture: str | None, layers: int, hidden_size: int) -> tuple[int | None, int]:
    """Return the window and the number of layers that see no further than it."""
    if re.fullmatch(r"gemma-?3", (architecture or "").lower()):
        # Five layers of six are local; the window is 512 tokens in 270M and 1B, 1024 in the others.
        return (512 if hidden_size <= 1152 else 1024), layers - layers // 6
    return None, 0


def _llamacpp(shape: _Shape, context: int, slots: int, batch: int) -> tuple[int, int, int]:
    local_cells = checkpoint_cells = 0
    if shape.window_tokens is not None:
        local_cells = min(context, _rounded_up(shape.window_tokens + batch, _LLAMACPP_CELLS))
        checkpoint_cells = LLAMACPP_CHECKPOINTS * min(context, shape.window_tokens)
    cells = (shape.layers - shape.sliding_layers) * context
    cells += shape.sliding_layers * (local_cells + checkpoint_cells)
    kv = shape.kv_values_per_token_layer * 2 * cells * slots  # f16; n_ctx is the total over the slots
    workspace = (
        shape.vocab_size * (_LLAMACPP_BYTES_PER_VOCAB + slots * _LLAMACPP_BYTES_PER_VOCAB_SLOT)
        + batch * shape.hidden_size * _LLAMACPP_BYTES_PER_HIDDEN
        + batch * context * 4  # the attention mask
    )
    return kv, workspace, _LLAMACPP_OVERHEAD_BYTES


def _mlc(shape: _Shape, context: int, slots: int, chunk: int) -> tuple[int, int, int]:
    # mlc_llm's own accounting, as read in its source; f16 K and V are assumed even for f32 models
    kv = round(context * slots * (shape.kv_values_per_token_layer * 2 * shape.layers + 1.25))
    # The registry has no count of query heads. Twice hidden / head_dim bounds the families with
    # wide heads (Gemma 3, Qwen3); the terms are small.
    heads = max(shape.kv_heads, 2 * shape.hidden_size // shape.head_dim)
    aux = (slots + 1) * 88 + chunk * (heads + 1) * 8
    aux += chunk * shape.head_dim * (heads + shape.kv_heads) * 4 + _MLC_AUX_BYTES
    work = chunk * 4 + slots * 4 + (2 * chunk + slots) * shape.hidden_size * 2
    logits = slots * 20 + round(slots * shape.vocab_size * 16.125)
    largest_temporary = chunk * shape.hidden_size * 8 * 2  # gate and up projections of the MLP, f16
    return kv, aux + work + logits + 2 * largest_temporary, _MLC_OVERHEAD_BYTES


def _transformers(shape: _Shape, context: int, slots: int, _batch: int) -> tuple[int, int, int]:
    kv = shape.kv_values_per_token_layer * 4 * shape.layers * context * slots
    workspace = context * shape.hidden_size * _TRANSFORMERS_BYTES_PER_HIDDEN  # it prefills a prompt whole
    workspace += slots * shape.vocab_size * 16
    return kv, workspace, _TRANSFORMERS_OVERHEAD_BYTES


def _rounded_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
