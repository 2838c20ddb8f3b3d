"""The families of models: what each wants of a configuration, and which tensors its parameters come from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

_NAMES = (
    "llama llama4 mistral ministral3 gemma gemma2 gemma3 gemma3_text gpt2 mixtral gpt_neox gpt_bigcode"
    " phi-msft phi phi3 phi3_v qwen qwen2 qwen2_moe qwen3 qwen3-embedding qwen3_5 qwen3_5_text qwen3_moe"
    " deepseek_v2 deepseek_v3 stablelm baichuan internlm internlm2 rwkv5 orion llava rwkv6 chatglm eagle"
    " bert medusa starcoder2 cohere minicpm deepseek gptj olmo olmo2 nemotron bert-bge"
)
MODEL_TYPES = _NAMES.split()


@dataclass(frozen=True)
class Parameter:
    """One parameter of the engine's, in the shape of its sources put together.

    Args:
        sources: the tensors of the checkpoint, one under the other.
        is_matrix: whether a quantization packs it.
        turned: whether it is stored the other way round.
    """

    sources: tuple[str, ...]
    shape: tuple[int, ...]
    is_matrix: bool = False
    turned: bool = False


@dataclass(frozen=True)
class Family:
    """What the fake knows of a model type."""

    config: str
    required: tuple[str, ...]
    context_keys: tuple[str, ...]
    defaults: Mapping[str, Any]
    parameters: Callable[[Mapping[str, Any]], dict[str, Parameter]]
    unused: str


def family_of(model_type: str) -> Family:
    """Return the family; a type that only the real one knows is no subject for the fake."""
    if model_type not in MODEL_TYPES:
        raise ValueError(f"Unknown model type: {model_type}. Available ones: {MODEL_TYPES}")
    if model_type not in _FAMILIES:
        raise NotImplementedError(f"the fake mlc_llm has no {model_type}")
    return _FAMILIES[model_type]


def model_config(family: Family, source: Mapping[str, Any], **overrides: int | None) -> dict[str, Any]:
    """Return the engine's own configuration; what it does not know is left out."""
    missing = [f"'{name}'" for name in family.required if name not in source]
    if missing:
        several = "s" if len(missing) > 1 else ""
        raise TypeError(
            f"{family.config}.__init__() missing {len(missing)} required positional argument{several}:"
            f" {' and '.join(missing)}"
        )
    known = {name: source[name] for name in (*family.required, *family.defaults) if name in source}
    config = {**family.defaults, **known}
    context = next((source[key] for key in ("context_window_size", *family.context_keys) if key in source), 0)
    if not context:
        raise ValueError(
            "Unable to determine the maximum sequence length, because none of `context_window_size`,"
            f" `{'`, `'.join(family.context_keys)}` is provided in `config.json`."
        )
    if "num_key_value_heads" in config:
        config["num_key_value_heads"] = config["num_key_value_heads"] or config["num_attention_heads"]
    if "position_embedding_base" in config:
        base = config["position_embedding_base"] or source.get("rope_theta")
        config["position_embedding_base"] = base or 10000
    scaling = source.get("rope_scaling") or {}
    if family.config == "LlamaConfig" and "rope_type" in scaling:
        kind = scaling["rope_type"]
        assert kind == "llama3", f"Unsupported RoPE scaling type {kind} for Llama"
    heads = config.get("num_attention_heads") or config["n_head"]
    config["head_dim"] = config["head_dim"] or (config.get("hidden_size") or config["n_embd"]) // heads
    config["context_window_size"] = context
    config |= {name: value for name, value in overrides.items() if value is not None}
    chunk = config.get("prefill_chunk_size") or 8192
    config["prefill_chunk_size"] = min(chunk, config["context_window_size"], 8192)
    return config


def _llama(
    config: Mapping[str, Any], *, qkv: str = "qkv_proj", has_bias: bool = False
) -> dict[str, Parameter]:
    width, inner, vocabulary = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    heads, head_dim = config["num_attention_heads"], config["head_dim"]
    rows = (heads + 2 * config["num_key_value_heads"]) * head_dim
    found = {"model.embed_tokens.weight": _matrix("model.embed_tokens", (vocabulary, width))}
    for i in range(config["num_hidden_layers"]):
        block = f"model.layers.{i}"
        attention, mlp = f"{block}.self_attn", f"{block}.mlp"
        thirds = tuple(f"{attention}.{part}_proj" for part in "qkv")
        found[f"{attention}.{qkv}.weight"] = _matrices(thirds, (rows, width))
        if has_bias:
            found[f"{attention}.{qkv}.bias"] = Parameter(tuple(f"{one}.bias" for one in thirds), (rows,))
        found[f"{attention}.o_proj.weight"] = _matrix(f"{attention}.o_proj", (width, heads * head_dim))
        halves = (f"{mlp}.gate_proj", f"{mlp}.up_proj")
        found[f"{mlp}.gate_up_proj.weight"] = _matrices(halves, (2 * inner, width))
        found[f"{mlp}.down_proj.weight"] = _matrix(f"{mlp}.down_proj", (width, inner))
        for norm in (f"{block}.input_layernorm.weight", f"{block}.post_attention_layernorm.weight"):
            found[norm] = Parameter((norm,), (width,))
    found["model.norm.weight"] = Parameter(("model.norm.weight",), (width,))
    if not config["tie_word_embeddings"]:
        found["lm_head.weight"] = _matrix("lm_head", (vocabulary, width))
    return found


def _gpt2(config: Mapping[str, Any]) -> dict[str, Parameter]:
    width, inner = config["n_embd"], config["n_inner"]
    inner = 4 * width if inner in (None, -1) else inner
    found = {
        "lm_head.weight": _matrix("wte", (config["vocab_size"], width)),
        "transformer.wte.weight": _matrix("wte", (config["vocab_size"], width)),
        "transformer.wpe.weight": _matrix("wpe", (config["context_window_size"], width)),
    }
    for i in range(config["n_layer"]):
        for name, rows, columns in (
            ("attn.c_attn", width, 3 * width),
            ("attn.c_proj", width, width),
            ("mlp.c_fc", width, inner),
            ("mlp.c_proj", inner, width),
        ):
            source = f"h.{i}.{name}"
            weight = Parameter((f"{source}.weight",), (rows, columns), is_matrix=True, turned=True)
            found[f"transformer.{source}.weight"] = weight
            found[f"transformer.{source}.bias"] = Parameter((f"{source}.bias",), (columns,))
        for source in (f"h.{i}.{norm}.{kind}" for norm in ("ln_1", "ln_2") for kind in ("weight", "bias")):
            found[f"transformer.{source}"] = Parameter((source,), (width,))
    for source in ("ln_f.weight", "ln_f.bias"):
        found[f"transformer.{source}"] = Parameter((source,), (width,))
    return found


def _matrix(module: str, shape: tuple[int, ...]) -> Parameter:
    return _matrices((module,), shape)


def _matrices(modules: tuple[str, ...], shape: tuple[int, ...]) -> Parameter:
    return Parameter(tuple(f"{module}.weight" for module in modules), shape, is_matrix=True)


_LLAMA_REQUIRED = (
    "hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "rms_norm_eps",
    "vocab_size",
)  # fmt: skip
_SIZES = {"prefill_chunk_size": 0, "head_dim": 0, "max_batch_size": 1, "tensor_parallel_shards": 1}
_POSITIONS = ("max_position_embeddings", "max_sequence_length")
_FAMILIES = {
    "llama": Family(
        "LlamaConfig",
        _LLAMA_REQUIRED,
        _POSITIONS,
        {**_SIZES, "tie_word_embeddings": False, "num_key_value_heads": 0, "position_embedding_base": 0},
        _llama,
        "self_attn.rotary_emb.inv_freq",
    ),
    "qwen2": Family(
        "QWen2Config",
        ("hidden_act", *_LLAMA_REQUIRED, "num_key_value_heads", "rope_theta"),
        _POSITIONS,
        {**_SIZES, "tie_word_embeddings": False},
        lambda config: _llama(config, qkv="c_attn", has_bias=True),
        "self_attn.rotary_emb.inv_freq",
    ),
    "gpt2": Family(
        "GPT2Config",
        ("vocab_size", "n_embd", "n_layer", "n_head", "layer_norm_epsilon"),
        ("n_positions", "max_sequence_length"),
        {**_SIZES, "n_inner": -1},
        _gpt2,
        "attn.bias",
    ),
}
