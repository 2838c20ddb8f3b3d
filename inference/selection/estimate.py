"""Estimates: the memory that a variant will hold and the speed at which it will decode; pure arithmetic.

docs/architecture.md has every formula of memory with its source, docs/selection.md those of speed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from inference.registry.sources import HubSource
from inference.registry.spec import ModelSpec, Variant

_MIB = 2**20
_MB = 10**6

# llama.cpp (xllamacpp 2026.10) in a worker, measured on x86 with SmolLM2-135M Q4_1 and Gemma 3 270M
# Q4_K_M, November 2026. A vocabulary entry costs its text and hash nodes once, and per slot its logit
# and its place in the sampler's candidate list. The overhead: interpreter, libraries, repacked tensors.
_LLAMACPP_OVERHEAD_BYTES = 70 * _MIB
_LLAMACPP_BYTES_PER_VOCAB = 128
_LLAMACPP_BYTES_PER_VOCAB_SLOT = 24
_LLAMACPP_BYTES_PER_HIDDEN = 48
_LLAMACPP_CELLS = 256  # a sliding-window cache is rounded up to this many tokens
# Copies of the sliding layers' cache that a slot keeps to go back to. The engine's own default is 32,
# which is 240 MiB per slot with Gemma 3 270M, outside of every other limit: the backend must set this.
LLAMACPP_CHECKPOINTS = 1

_PREFILL_BATCH_TOKENS = {"llamacpp": 64, "mlc": 512, "transformers": 64}  # a GPU is idle with less

# Not calibrated: the interpreter, TVM and a CUDA context. The first observed load corrects it.
_MLC_OVERHEAD_BYTES, _MLC_AUX_BYTES = 512 * _MIB, 48 * _MIB

# transformers held 959 MB with SmolLM2 in f32, whose weights are 538 MB.
_TRANSFORMERS_OVERHEAD_BYTES = 448 * _MIB
_TRANSFORMERS_BYTES_PER_HIDDEN = 64

# Bits per weight, scales included. MLC's follow from its definition of each format: group quantization
# with f16 scales. GGUF's are those that llama.cpp's quantize tool publishes for Llama 3.1 8B, where
# some tensors are kept finer; files of small models have up to 1.5 bits more.
_BITS = {
    "q3f16_0": 3.6,
    "q3f16_1": 3.6,
    "q4f16_0": 4.5,
    "q4f16_1": 4.5,
    "q4bf16_0": 4.5,
    "q4bf16_1": 4.5,
    "q4f32_1": 5.0,
    "q0f16": 16.0,
    "q0bf16": 16.0,
    "q0f32": 32.0,
    "q2_k": 3.2,
    "q3_k_s": 3.7,
    "q3_k_m": 4.0,
    "q3_k_l": 4.3,
    "q4_0": 4.7,
    "q4_1": 5.1,
    "iq4_xs": 4.5,
    "iq4_nl": 4.7,
    "q4_k_s": 4.7,
    "q4_k_m": 4.9,
    "q5_k_s": 5.6,
    "q5_k_m": 5.7,
    "q6_k": 6.6,
    "q8_0": 8.5,
    "mxfp4": 5.3,  # gpt-oss-20b: the experts in 4.25 bits, the rest in 16 (docs/models.md)
    "f16": 16.0,
    "bf16": 16.0,
    "f32": 32.0,
}

# A registry's memory_requirement is what must be available, of which at least this much is kept back.
_LEAST_RESERVE_BYTES = 512 * _MIB

# MLC on a Jetson's GPU: a fit to fifteen published rows of three boards (docs/selection.md). What is
# not reading weights is proportional to the layers, and shrinks with the power mode as reading does.
_GPU_SHARE = 0.91
_GPU_BYTES_PER_LAYER = 19 * _MB


class _Cpu(NamedTuple):
    """How fast an engine on a CPU is: share of the bandwidth, bytes/s of one core, seconds beside that."""

    share: float
    bytes_per_s_core: float
    step_s: float = 0.0


# SmolLM2-135M on two x86 cores and 21.4 GB/s, else extrapolated; the step with a GPT-2 of 34,000 parameters.
_CPU = {"llamacpp": _Cpu(0.25, 2.7e9), "transformers": _Cpu(0.44, 4.7e9, 0.001)}
_CPU_Q4_0 = _Cpu(0.32, 3.4e9)  # repacked for the processor's vector units


@dataclass(frozen=True)
class MemoryEstimate:
    """The bytes that a loaded variant holds in the worst case.

    The parts are ``None`` where *total_bytes* is the registry's declared figure and not a sum.

    Args:
        prompt_cache_bytes: KV caches of earlier prompts. They fill over time, up to their limit, so
            an observation soon after loading lacks them.
        later_bytes: the part of *total_bytes* that is taken with use and not by loading.
    """

    weights_bytes: int | None
    kv_cache_bytes: int | None
    workspace_bytes: int | None
    overhead_bytes: int | None
    prompt_cache_bytes: int
    total_bytes: int
    later_bytes: int | None = None


@dataclass(frozen=True)
class MemoryFormula:
    """The memory of a variant as a function of its context, for all slots together.

    Args:
        sliding: bytes per token, and the tokens after which they grow no more, of each cache of the
            sliding layers.
        checkpoints: the same for the copies of the sliding layers' cache, which prompts leave.
        slot_workspace_bytes: the part of the workspace that slots take when they are first used.
        allocates_late: whether all but weights and overhead is taken with use.
    """

    weights_bytes: int
    overhead_bytes: int
    prompt_cache_bytes: int
    workspace_bytes: int
    workspace_bytes_per_token: int
    kv_bytes_per_token: float
    sliding: tuple[tuple[int, int], ...] = ()
    checkpoints: tuple[int, int] = (0, 0)
    slot_workspace_bytes: int = 0
    allocates_late: bool = False

    def total_bytes(self, context_tokens: int) -> int:
        """Return the bytes that are held at a context; never less at a longer one."""
        growing = self.workspace_bytes_per_token * context_tokens
        return self._fixed_bytes + growing + self.kv_cache_bytes(context_tokens)

    def kv_cache_bytes(self, context_tokens: int) -> int:
        """Return the bytes of the full KV cache of all slots."""
        kv = round(self.kv_bytes_per_token * context_tokens)
        for size, most in (*self.sliding, self.checkpoints) if self.sliding else ():
            kv += size * min(context_tokens, most)
        return kv

    def later_bytes(self, context_tokens: int) -> int:
        """Return the bytes that are taken with use and not by loading."""
        if self.allocates_late:
            return self.total_bytes(context_tokens) - self.weights_bytes - self.overhead_bytes
        size, most = self.checkpoints
        return self.prompt_cache_bytes + self.slot_workspace_bytes + size * min(context_tokens, most)

    def at(self, context_tokens: int) -> MemoryEstimate:
        """Return the parts at a context."""
        return MemoryEstimate(
            self.weights_bytes,
            self.kv_cache_bytes(context_tokens),
            self.workspace_bytes + self.workspace_bytes_per_token * context_tokens,
            self.overhead_bytes,
            self.prompt_cache_bytes,
            self.total_bytes(context_tokens),
            self.later_bytes(context_tokens),
        )

    @cached_property
    def _fixed_bytes(self) -> int:
        return self.weights_bytes + self.overhead_bytes + self.prompt_cache_bytes + self.workspace_bytes


def estimate_memory(
    spec: ModelSpec,
    variant: Variant,
    *,
    context_tokens: int,
    slots: int,
    prompt_cache_bytes: int,
    weights_bytes: int | None,
    prefill_batch_tokens: int | None = 128,
) -> MemoryEstimate:
    """Predict the bytes resident once *variant* is loaded and every slot has been used to the full.

    Args:
        context_tokens: tokens of each of the *slots* sequences.
        prompt_cache_bytes: limit of the cache of earlier prompts; only llamacpp has one.
        weights_bytes: the size on disk where the weights are on this machine.
    """
    formula = memory_formula(
        spec,
        variant,
        slots=slots,
        prompt_cache_bytes=prompt_cache_bytes,
        weights_bytes=weights_bytes,
        prefill_batch_tokens=prefill_batch_tokens,
    )
    if formula is not None:
        return formula.at(context_tokens)
    cache = prompt_cache_bytes if variant.backend == "llamacpp" else 0
    total = declared_memory_bytes(spec, variant, weights_bytes) + cache
    return MemoryEstimate(None, None, None, None, cache, total)


def memory_formula(
    spec: ModelSpec,
    variant: Variant,
    *,
    slots: int,
    prompt_cache_bytes: int,
    weights_bytes: int | None,
    prefill_batch_tokens: int | None = 128,
) -> MemoryFormula | None:
    """Return the formula of `estimate_memory`; ``None`` where a shape number or the weights are unknown."""
    shape = _shape(spec)
    weights = weights_in_memory(spec, variant, weights_bytes)
    if shape is None or weights is None:
        return None
    formula = {"llamacpp": _llamacpp, "mlc": _mlc, "transformers": _transformers}[variant.backend]
    cache = prompt_cache_bytes if variant.backend == "llamacpp" else 0
    return formula(shape, weights, cache, slots, prefill_batch(variant.backend, prefill_batch_tokens))


def prefill_batch(backend: str, wanted_tokens: int | None) -> int:
    """Return the prompt tokens that *backend* computes at once: as wanted, or what suits it."""
    return wanted_tokens or _PREFILL_BATCH_TOKENS[backend]


def declared_memory_bytes(spec: ModelSpec, variant: Variant, weights_bytes: int | None) -> int:
    """Return what is declared, less the least reserve; at least the weights, or half a byte per parameter."""
    weights = weights_in_memory(spec, variant, weights_bytes) or spec.parameter_count // 2
    required_mb = variant.memory_requirement or spec.memory_requirement
    return max(weights, round(required_mb * _MB) - _LEAST_RESERVE_BYTES)


def estimate_decode_tokens_per_s(
    spec: ModelSpec,
    variant: Variant,
    bandwidth_bytes_per_s: float | None,
    *,
    cpu_cores: int | None = None,
    weights_bytes: int | None = None,
) -> float | None:
    """Predict decode speed at batch 1, where every token reads all weights once, or its experts' share.

    ``None`` when the size of the weights is unknown; for MLC also without the bandwidth or the number
    of layers, for the others with neither bandwidth nor cores.
    """
    weights = weights_in_memory(spec, variant, weights_bytes)
    if weights is None:
        return None
    read = weights * spec.active_share
    if variant.backend != "mlc":
        rate = _cpu_bytes_per_s(variant, bandwidth_bytes_per_s, cpu_cores)
        return None if rate is None else 1 / (read / rate + _CPU[variant.backend].step_s)
    if spec.layers is None or bandwidth_bytes_per_s is None:
        return None
    return _GPU_SHARE * bandwidth_bytes_per_s / (read + spec.layers * _GPU_BYTES_PER_LAYER)


def source_bytes(spec: ModelSpec, variant: Variant) -> int | None:
    """Return the size of a variant's weights: as its source declares, else from its quantization."""
    return _declared_bytes(variant) or _quantized_bytes(spec, variant)


def weights_in_memory(spec: ModelSpec, variant: Variant, on_disk_bytes: int | None) -> int | None:
    """Return the bytes of the weights once loaded; ``None`` where nothing tells them."""
    if variant.backend == "transformers":
        return spec.parameter_count * 4  # f32 on a CPU, whatever the checkpoint's own type
    return on_disk_bytes or source_bytes(spec, variant)


def _cpu_bytes_per_s(
    variant: Variant, bandwidth_bytes_per_s: float | None, cores: int | None
) -> float | None:
    is_q4_0 = variant.backend == "llamacpp" and (variant.quantization or "").lower() == "q4_0"
    cpu = _CPU_Q4_0 if is_q4_0 else _CPU[variant.backend]
    limits = [
        None if bandwidth_bytes_per_s is None else cpu.share * bandwidth_bytes_per_s,
        None if cores is None else cpu.bytes_per_s_core * cores,
    ]
    return min((limit for limit in limits if limit is not None), default=None)


def _declared_bytes(variant: Variant) -> int | None:
    source = variant.source
    if isinstance(source, HubSource):
        sizes = [file.bytes for file in variant.files]
        return sum(size or 0 for size in sizes) if sizes and all(sizes) else None
    return source.bytes if source is not None else None


def _quantized_bytes(spec: ModelSpec, variant: Variant) -> int | None:
    bits = _BITS.get((variant.quantization or "").lower())
    return None if bits is None else round(spec.parameter_count * bits / 8)


@dataclass(frozen=True)
class _Shape:
    """The numbers of a model that size its caches and buffers."""

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden_size: int
    vocab_size: int
    window_tokens: int | None  # of the sliding layers
    sliding_layers: int

    @property
    def kv_values_per_token_layer(self) -> int:
        return 2 * self.kv_heads * self.head_dim  # K and V


def _shape(spec: ModelSpec) -> _Shape | None:
    numbers = (spec.layers, spec.kv_heads, spec.head_dim, spec.hidden_size, spec.vocab_size)
    if None in numbers:
        return None
    layers, kv_heads, head_dim, hidden_size, vocab_size = (number or 0 for number in numbers)
    # Twice hidden / head_dim bounds the families with wide heads (Gemma 3, Qwen3).
    heads = spec.heads or max(kv_heads, 2 * hidden_size // head_dim)
    window, sliding = _sliding(spec.architecture, layers, hidden_size)
    return _Shape(layers, heads, kv_heads, head_dim, hidden_size, vocab_size, window, sliding)


def _sliding(architecture: str | None, layers: int, hidden_size: int) -> tuple[int | None, int]:
    """Return the window and the number of layers that see no further than it."""
    if re.fullmatch(r"gemma-?3", (architecture or "").lower()):
        # Five layers of six are local; the window is 512 tokens in 270M and 1B, 1024 in the others.
        return (512 if hidden_size <= 1152 else 1024), layers - layers // 6
    return None, 0


def _llamacpp(shape: _Shape, weights: int, cache: int, slots: int, batch: int) -> MemoryFormula:
    per_token_layer = shape.kv_values_per_token_layer * 2 * slots  # f16; n_ctx is the total over the slots
    sliding: tuple[tuple[int, int], ...] = ()
    checkpoints = (0, 0)
    if shape.window_tokens is not None:
        cell = per_token_layer * shape.sliding_layers
        cells = _rounded_up(shape.window_tokens + batch, _LLAMACPP_CELLS)
        sliding = ((cell, cells),)
        checkpoints = (cell * LLAMACPP_CHECKPOINTS, shape.window_tokens)
    per_slot = shape.vocab_size * slots * _LLAMACPP_BYTES_PER_VOCAB_SLOT
    return MemoryFormula(
        weights,
        _LLAMACPP_OVERHEAD_BYTES,
        cache,
        workspace_bytes=shape.vocab_size * _LLAMACPP_BYTES_PER_VOCAB
        + per_slot
        + batch * shape.hidden_size * _LLAMACPP_BYTES_PER_HIDDEN,
        workspace_bytes_per_token=batch * 4,  # the attention mask
        kv_bytes_per_token=per_token_layer * (shape.layers - shape.sliding_layers),
        sliding=sliding,
        checkpoints=checkpoints,
        slot_workspace_bytes=per_slot,
    )


def _mlc(shape: _Shape, weights: int, cache: int, slots: int, chunk: int) -> MemoryFormula:
    # mlc_llm's own accounting, as in backends/_mlc_memory.py; f16 K and V are assumed even for f32 models
    chunk = max(chunk, _PREFILL_BATCH_TOKENS["mlc"])
    kv_bytes_per_token = slots * (shape.kv_values_per_token_layer * 2 * shape.layers + 1.25)
    aux = (slots + 1) * 88 + chunk * (shape.heads + 1) * 8 + _MLC_AUX_BYTES
    aux += chunk * shape.head_dim * (shape.heads + shape.kv_heads) * 4
    work = chunk * 4 + slots * 4 + (2 * chunk + slots) * shape.head_dim * shape.heads * 2
    logits = slots * 20 + round(slots * shape.vocab_size * 16.125)
    largest_temporary = chunk * shape.hidden_size * 8 * 2  # gate and up projections of the MLP, f16
    return MemoryFormula(
        weights,
        _MLC_OVERHEAD_BYTES,
        cache,
        # A sequence takes whole pages of 16 tokens, and the backend keeps one more free for each.
        # a sequence takes whole pages of 16 tokens, and the backend keeps one more free for each
        workspace_bytes=aux + work + logits + 2 * largest_temporary + round(32 * kv_bytes_per_token),
        workspace_bytes_per_token=0,
        kv_bytes_per_token=kv_bytes_per_token,
        allocates_late=True,  # on a CPU pages count when they are written; of a GPU nothing is learned
    )


def _transformers(shape: _Shape, weights: int, cache: int, slots: int, _batch: int) -> MemoryFormula:
    return MemoryFormula(
        weights,
        _TRANSFORMERS_OVERHEAD_BYTES,
        cache,
        workspace_bytes=slots * shape.vocab_size * 16,
        # it prefills a prompt whole
        workspace_bytes_per_token=shape.hidden_size * _TRANSFORMERS_BYTES_PER_HIDDEN,
        kv_bytes_per_token=shape.kv_values_per_token_layer * 4 * shape.layers * slots,
        allocates_late=True,
    )


def _rounded_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
