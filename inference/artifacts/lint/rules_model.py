"""Rules about the model: its type, the names of its tensors, its positions, its heads, its vocabulary."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from inference.artifacts.lint.builds import build_for, known_images
from inference.artifacts.lint.checkpoint import INDEX
from inference.artifacts.lint.report import Finding, label
from inference.artifacts.lint.rule import Question, Rule, error, listed, note, shown, warning

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
MLC_ROPE_THETA = 10_000
MLC_CHUNK_TOKENS, MLC_SHORT_CHUNK_TOKENS = 8192, 2048

_CONTEXT_KEYS = ("context_window_size", "max_position_embeddings", "n_positions", "max_sequence_length",
                 "sliding_window", "sliding_window_size", "seq_length")  # fmt: skip
_NO_CONTEXT_NEEDED = frozenset({"rwkv5", "rwkv6", "bert", "medusa", "llava", "phi3_v"})
_LLAMA = "mlc-ai/mlc-llm, python/mlc_llm/model/llama/llama_model.py LlamaConfig"
_ROPE_SCALING = "mlc-ai/mlc-llm, python/mlc_llm/model/*/*_model.py __post_init__"
_STRETCHED = {"llama": ("rope_type", ("llama3",)), "phi3": ("type", ("longrope", "su"))}
_NOT_STRETCHED = frozenset({"mistral", "gemma", "gemma2", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe"})
_TIED_SINCE = "fixed for llama by mlc-ai/mlc-llm@52c0638 (#2667), 2024-07-16"
_LEARNED_POSITIONS = frozenset({"gpt2", "gpt_bigcode"})


def image(question: Question) -> Iterator[Finding]:
    """What the image's MLC knows has been looked up, or is unknown.

    Source: dusty-nv/jetson-containers, packages/llm/mlc/config.py, names the commit of each image.
    """
    if question.build.commit is None:
        yield warning(
            f"image: {question.build.image}: not looked up; expected one of {', '.join(known_images())}",
            "what its MLC knows is unknown: only rules that hold for every MLC were applied",
            "dusty-nv/jetson-containers, packages/llm/mlc/config.py",
        )


def model_type(question: Question) -> Iterator[Finding]:
    """The model's type is one that the image's MLC has a model for.

    Source: MODELS in python/mlc_llm/model/model.py at the image's commit ("Unknown model type"); in
    the old builder supported_model_types ("Model type ... not supported.", Qwen2.5's crash in
    nano_llm:r36.2.0), and after it model_generators, which lacks types that passed the first check.
    """
    checkpoint, build = question.checkpoint, question.build
    found, known = checkpoint.model_type, build.model_types
    if found is None:
        if checkpoint.config or not checkpoint.files_read:
            yield error(
                f"model_type: found {shown(checkpoint.config.get('model_type'))}; expected the family's name",
                "take config.json from the model's own repository",
                build.source("model types"),
            )
        return
    if known is None or found in known:
        return
    if found == "stablelm" and build.legacy:
        yield warning(
            "model_type: 'stablelm' is built as 'stablelm_epoch', which NanoLLM writes in its place",
            "use a later image, which has the type under its own name",
            "dusty-nv/NanoLLM, nano_llm/models/mlc.py",
        )
        return
    yield error(
        f"model_type: {_refusal(question, found)}: found {shown(found)},"
        f" expected {listed(sorted(known), 99)}",
        _image_that_knows(found),
        build.source("model types"),
    )


def _refusal(question: Question, found: str) -> str:
    build, name = question.build, question.checkpoint.name
    if not build.legacy:
        return f"{build.image} stops with 'Unknown model type: {label(found)}'"
    if found in build.refused_types:
        return f"{build.image} passes it in its first check, then stops with 'Model {name} not supported'"
    return f"{build.image} stops with 'Model type {label(found)} not supported.'"


def _image_that_knows(found: str) -> str:
    able = [name for name in known_images() if found in (build_for(name).model_types or ())]
    if not able:
        return "no image that was looked up knows it: use a variant of another backend"
    return f"use an image that knows it ({', '.join(able)}), or a variant of another backend"


def tied_head(question: Question) -> Iterator[Finding]:
    """A checkpoint without lm_head.weight has tied embeddings, and the build can tie them.

    Source: LlamaForCausalLM always had an lm_head until "[Model] Support SmolLM"
    (mlc-ai/mlc-llm@52c0638, #2667, 2024-07-16); the old loader's get_item ends in a bare
    ``assert len(torch_pnames) > 1`` (with an index in a KeyError), which is SmolLM2's crash in
    nano_llm:r36.2.0. Qwen2 has tied
    since @9be4b92, #2535, 2024-06-06.
    """
    checkpoint, build, found = question.checkpoint, question.build, question.checkpoint.model_type
    if checkpoint.is_build or HEAD in checkpoint.tensor_names:
        return
    known = None if checkpoint.files_read else checkpoint.tied_source
    if known is None and not checkpoint.names_are_whole:
        return
    tied = known is not None or checkpoint.config.get("tie_word_embeddings") is True
    if found in build.needs_head:
        bare = "KeyError" if INDEX in checkpoint.sizes else "a bare AssertionError"
        ending = bare if build.legacy else "'extern parameters do not exist'"
        yield error(
            f"{HEAD}: not in the checkpoint{', because its embeddings are tied' if tied else ''};"
            f" expected it: {build.image} stops with {ending} for {found}",
            _image_that_ties(str(found)) if tied else "fetch the checkpoint again",
            f"{known or build.source('names')}; {_TIED_SINCE}",
        )
    elif found in build.ties_head and not tied:
        silent = checkpoint.config.get("tie_word_embeddings") is None
        yield error(
            f"{HEAD}: not in the checkpoint, and tie_word_embeddings is"
            f" {shown(checkpoint.config.get('tie_word_embeddings'))}; expected the one or true",
            "fetch the checkpoint again; only if the model's embeddings are tied,"
            " put tie_word_embeddings: true into config.json",
            build.source("names"),
            fix="config" if silent and EMBEDDING in checkpoint.tensor_names else None,
        )


def _image_that_ties(found: str) -> str:
    able = [name for name in known_images() if found in build_for(name).ties_head]
    if not able:
        return "no image that was looked up ties it: use a variant of another backend"
    return f"use an image that ties the head ({', '.join(able)}), or a variant of another backend"


def gpt2_names(question: Question) -> Iterator[Finding]:
    """GPT-2's tensors are called h.0..., wte.weight; without the prefix that transformers gives.

    Source: python/mlc_llm/model/gpt2/gpt2_loader.py maps h.N...; with transformer.h.N... every
    parameter is missing: "The following extern parameters do not exist in the weight files".
    attn.bias is declared unused there, attn.masked_bias is not: it only costs a warning.
    """
    checkpoint, build = question.checkpoint, question.build
    known = build.model_types or {"gpt2"}
    if checkpoint.model_type != "gpt2" or checkpoint.is_build or "gpt2" not in known:
        return
    source = "mlc-ai/mlc-llm, python/mlc_llm/model/gpt2/gpt2_loader.py"
    prefixed = sorted(name for name in checkpoint.tensor_names if name.startswith("transformer."))
    masks = [name for name in checkpoint.tensor_names if name.endswith(".attn.masked_bias")]
    also = f", and {len(masks)} attn.masked_bias that it has no use for" if masks else ""
    if not checkpoint.files_read and checkpoint.prefixed_source:
        yield error(
            "tensor names: the published ones have the prefix 'transformer.'; expected none:"
            " MLC finds no parameter",
            "the rename pass takes the prefix from the names",
            f"{source}; {checkpoint.prefixed_source}",
            fix="rename",
        )
    elif prefixed:
        yield error(
            f"tensor names: found {len(prefixed)} with the prefix 'transformer.', as in"
            f" {shown(prefixed[0])}{also}; expected none: MLC finds no parameter",
            "the rename pass takes the prefix from the names and leaves attn.masked_bias out",
            source,
            fix="rename",
        )
    elif masks:
        yield note(
            f"tensor names: found {len(masks)} attn.masked_bias; MLC warns of 'Unused extern parameters'",
            "nothing needs to be done",
            source,
        )


def rope_theta(question: Question) -> Iterator[Finding]:
    """rope_theta stands at the top level of config.json, where MLC reads it.

    Source: transformers 5 writes rope_parameters: {rope_theta, rope_type}; LlamaConfig takes
    position_embedding_base = 10000 when rope_theta is not at the top, without a word, and Qwen2Config
    has no default and stops. The model then has wrong positions, so the first is an error, too.
    """
    checkpoint, build = question.checkpoint, question.build
    if checkpoint.is_build or "rope_theta" in checkpoint.config or not checkpoint.files_read:
        return
    source = f"{_LLAMA}; transformers 5, rope_parameters"
    below = checkpoint.part("rope_parameters")
    theta = below.get("rope_theta")
    found = "nowhere" if theta is None else f"{shown(theta)} below rope_parameters"
    hint = (
        "copy rope_theta to the top level of config.json, and rope_scaling unless its rope_type is 'default'"
    )
    if checkpoint.model_type in build.needs_rope_theta:
        yield error(
            f"rope_theta: found {found}; expected it at the top level: MLC stops without it",
            hint,
            source,
            fix=None if theta is None else "config",
        )
    elif theta is not None and theta != MLC_ROPE_THETA:
        yield error(
            f"rope_theta: found {found}; expected it at the top level: MLC silently takes {MLC_ROPE_THETA}",
            hint,
            source,
            fix="config",
        )
    elif any(isinstance(value, dict) for value in below.values()):
        yield warning(
            "rope_parameters: found one set for each kind of layer; expected rope_theta at the top level",
            "write the keys that the model's own configuration had before transformers 5",
            source,
        )


def rope_scaling(question: Question) -> Iterator[Finding]:
    """Stretched positions are of the kind that MLC's model has, and where it reads them.

    Source: LlamaConfig asserts that rope_scaling's rope_type is 'llama3' and drops one without a type;
    Phi3Config asserts that its type is 'longrope' or 'su'; the configurations of the other types in
    _NOT_STRETCHED have no rope_scaling, so that it is dropped without a word.
    """
    checkpoint, build = question.checkpoint, question.build
    found = checkpoint.model_type
    if checkpoint.is_build or build.legacy or found not in {*_STRETCHED, *_NOT_STRETCHED}:
        return
    key, able = _STRETCHED.get(found, ("rope_type", ()))
    scaling = checkpoint.part("rope_scaling")
    read, kind = scaling.get(key), _kind(scaling)
    nested = _kind(checkpoint.part("rope_parameters"))
    if able and read not in (None, *able):
        plain = read == "default"
        yield error(
            f"rope_scaling: {key}: found {shown(read)}; expected {_either(able)}, which MLC asserts",
            "leave rope_scaling out of config.json" if plain else "use a variant of another backend",
            _ROPE_SCALING,
            fix="config" if plain else None,
        )
    elif read is None and kind is None and able and nested not in (None, "default"):
        yield error(
            f"rope_scaling: found {shown(nested)} below rope_parameters; expected it at the top level:"
            " MLC does not see it there",
            "copy the keys of rope_parameters but rope_theta to a rope_scaling at the top level",
            _ROPE_SCALING,
            fix="config" if nested in able else None,
        )
    elif read is None or not able:
        unread = [each for each in (kind, nested) if each not in (None, "default")]
        if unread:
            yield _dropped(found, unread[0])


def _dropped(found: str, kind: Any) -> Finding:
    return warning(
        f"rope_scaling: found {shown(kind)}, which MLC's {found} does not read; expected none: texts"
        " longer than the model's own context come out wrong",
        "ask for no more than the context without the scaling",
        _ROPE_SCALING,
    )


def _kind(scaling: Mapping[str, Any]) -> Any:
    return scaling.get("rope_type", scaling.get("type"))


def _either(names: tuple[str, ...]) -> str:
    return " or ".join(shown(name) for name in names)


def head_dim(question: Question) -> Iterator[Finding]:
    """Attention is computed by FlashInfer where the head's shape allows it, else by TVM's own kernels.

    Source: dispatch_kv_cache_creation.py asks, until 2025-01, for head_dim 128, 1, 4 or 8 query heads
    to a key head, float16 and not GPT-2; in 2025-05 it compiles FlashInfer for any and falls back when
    that fails. Which attention the legacy builder picks has not been looked up.
    """
    checkpoint, build = question.checkpoint, question.build
    wanted, width = build.flashinfer_head_dim, checkpoint.head_dim
    if wanted is None or width is None:
        return
    reasons = []
    if wanted and width != wanted:
        reasons.append(f"head_dim: found {width}, expected {wanted}")
    heads, kv_heads = checkpoint.count("num_attention_heads"), checkpoint.count("num_key_value_heads")
    if wanted and heads and kv_heads and heads // kv_heads not in (1, 4, 8):
        reasons.append(f"query heads to a key head: found {heads // kv_heads}, expected 1, 4 or 8")
    if wanted and checkpoint.model_type == "gpt2":
        reasons.append("model_type: found 'gpt2', which it leaves out")
    if "f32" in question.quantization:
        reasons.append(f"quantization: found {question.quantization}, expected one that computes in float16")
    if reasons:
        yield note(
            f"attention: no FlashInfer kernel: {'; '.join(reasons)}",
            "nothing needs to be done: TVM's own kernels are used, which are slower at long contexts",
            build.source("attention"),
        )


def vocab_size(question: Question) -> Iterator[Finding]:
    """A vocabulary that is a multiple of 8 lets the head's matrix be cut into the kernels' tiles.

    Source: ft_quantization.py sends a layer of int4 whose out_features is no multiple of 8 to the
    group format ("other requirements are from CUTLASS"); GPT-2's 50257 is the case in point.
    """
    size = question.checkpoint.count("vocab_size")
    if size is None or size % 8 == 0:
        return
    yield note(
        f"vocab_size: found {size}, which leaves {size % 8} over; expected a multiple of 8",
        "nothing needs to be done: the head is computed by a kernel without the tiles of 8",
        "mlc-ai/mlc-llm, python/mlc_llm/quantization/ft_quantization.py",
    )


def context(question: Question) -> Iterator[Finding]:
    """The context and the prefill chunk are asked for, not left to MLC's defaults.

    Source: LlamaConfig and GPT2Config take context_window_size from max_position_embeddings or
    n_positions ("Unable to determine the maximum sequence length" without), and a prefill chunk of
    min(context, 8192), of some types 2048; NanoLLM takes max_position_embeddings. The KV cache is
    allocated for all of it.
    """
    checkpoint, wanted = question.checkpoint, question.context_tokens
    known = [count for key in _CONTEXT_KEYS if (count := checkpoint.count(key)) is not None]
    source = "mlc-ai/mlc-llm, python/mlc_llm/model/*/*_model.py __post_init__"
    if not known:
        if checkpoint.model_type is not None and checkpoint.model_type not in _NO_CONTEXT_NEEDED:
            yield error(
                "context: found no max_position_embeddings, n_positions or max_sequence_length;"
                " expected one: 'Unable to determine the maximum sequence length'",
                "take config.json from the model's own repository",
                source,
            )
    elif wanted is None:
        yield _not_asked_for(question, known[0], source)
    elif wanted > known[0]:
        learned = checkpoint.model_type in _LEARNED_POSITIONS or checkpoint.is_build
        yield (error if learned else warning)(
            f"context: asked for {wanted} tokens; expected at most {known[0]}",
            f"ask for {known[0]} tokens or fewer",
            source,
        )


def _not_asked_for(question: Question, most_tokens: int, source: str) -> Finding:
    if question.build.legacy:
        return warning(
            f"context: not asked for; NanoLLM takes {most_tokens} tokens, and memory for all of them",
            "give NanoLLM --max-context-len N",
            "dusty-nv/NanoLLM, nano_llm/models/mlc.py MLCModel.quantize",
        )
    short = question.checkpoint.model_type in question.build.short_chunks
    chunk_tokens = min(most_tokens, MLC_SHORT_CHUNK_TOKENS if short else MLC_CHUNK_TOKENS)
    return warning(
        f"context: not asked for; MLC takes {most_tokens} tokens, and a prefill chunk of {chunk_tokens}",
        "give gen_config both: --context-window-size N --prefill-chunk-size 512; `jetllm build` does",
        source,
    )


RULES: tuple[Rule, ...] = (
    image,
    model_type,
    tied_head,
    gpt2_names,
    rope_theta,
    rope_scaling,
    head_dim,
    vocab_size,
    context,
)
