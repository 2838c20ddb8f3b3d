"""MLC builds: which commit of mlc-ai/mlc-llm an image carries, and what that commit knows.

The commits are those of dusty-nv/jetson-containers, ``packages/llm/mlc/config.py``, as it stood when
the image was published (20 April 2024, 14 February 2025, 3 May 2025); the lists were read in
mlc-ai/mlc-llm at these commits. An image that is not here has not been looked up: what it knows is
unknown, never guessed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from inference.errors import InvalidRequestError

NEWEST_IMAGE = "dustynv/mlc:0.20.0-r36.4.0"

_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:@-]{0,199}")


@dataclass(frozen=True)
class MLCBuild:
    """What one image's MLC takes; ``None`` is not known.

    Args:
        also: other tags of the same commit, as jetson-containers' config.py of their days has it.
        legacy: NanoLLM and the builder ``mlc_llm.build`` of before 2024-03, not today's three steps.
        model_types: the values of config.json's model_type for which it has a model.
        refused_types: types that pass its first check and have no model behind it, or none under that name.
        quantizations: the names that it knows.
        ties_head: types that it can build from a checkpoint without lm_head.weight when their
            embeddings are tied.
        needs_head: types whose loader wants lm_head.weight in any case.
        needs_rope_theta: types whose configuration has no default for rope_theta.
        short_chunks: types whose prefill chunk is at most 2048 tokens by default; of the others, 8192.
        flashinfer_head_dim: the one width of a head for which it asks for FlashInfer; 0: any.
    """

    image: str
    commit: str | None = None
    dated: str | None = None
    also: tuple[str, ...] = ()
    legacy: bool = False
    model_types: frozenset[str] | None = None
    refused_types: frozenset[str] = frozenset()
    quantizations: frozenset[str] | None = None
    ties_head: frozenset[str] = frozenset()
    needs_head: frozenset[str] = frozenset()
    needs_rope_theta: frozenset[str] = frozenset()
    short_chunks: frozenset[str] = frozenset()
    flashinfer_head_dim: int | None = None
    files: Mapping[str, str] = field(default_factory=dict)

    def source(self, file: str) -> str:
        """Name a file of the build's own source."""
        at = f"@{self.commit}" if self.commit else ""
        return f"mlc-ai/mlc-llm{at}, {self.files.get(file) or _FILES[file]}"


def build_for(image: str) -> MLCBuild:
    """Return what is known of an image's MLC; of an image that was not looked up only its name.

    Args:
        image: a tag; the registry user and, where that is clear, the repository may be left out.

    Raises:
        InvalidRequestError: *image* cannot be the name of an image.
    """
    if not _IMAGE.fullmatch(image):
        raise InvalidRequestError(
            f"image: expected a name such as {NEWEST_IMAGE}, got {image[:60]!a}",
            hint=f"known: {', '.join(known_images())}",
            param="image",
        )
    short = "/".join(image.split("/")[-2:]).removeprefix("dustynv/")  # without the name of a registry
    for build in _BUILDS:
        if short in (build.image.removeprefix("dustynv/"), build.image.rpartition(":")[2]):
            return build
        if short.removeprefix("mlc:") in build.also:
            return replace(build, image=f"dustynv/mlc:{short.removeprefix('mlc:')}")
    return MLCBuild(image)


def known_images() -> list[str]:
    """Return the images whose MLC was looked up, oldest first."""
    return [build.image for build in _BUILDS]


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_FILES = {
    "model types": "python/mlc_llm/model/model.py MODELS",
    "quantizations": "python/mlc_llm/quantization/quantization.py QUANTIZATION",
    "names": "python/mlc_llm/loader/utils.py check_parameter_usage",
    "attention": "python/mlc_llm/compiler_pass/dispatch_kv_cache_creation.py",
}

_TYPES_2024_09 = _words(
    "llama mistral gemma gemma2 gpt2 mixtral gpt_neox gpt_bigcode phi-msft phi phi3"
    " phi3_v qwen qwen2 qwen2_moe stablelm baichuan internlm internlm2 rwkv5 orion"
    " llava rwkv6 chatglm eagle bert medusa starcoder2 cohere minicpm"
)
_TYPES_2025_01 = _TYPES_2024_09 | {"deepseek_v2", "deepseek", "gptj", "olmo", "nemotron"}
_TYPES_2025_05 = _TYPES_2025_01 | {"gemma3", "gemma3_text", "qwen3", "qwen3_moe", "deepseek_v3"}

_QUANTIZATIONS_2025_01 = _words(
    "q0f16 q0f32 q3f16_0 q3f16_1 q4f16_0 q4f16_1 q4f32_1 q4f16_2 q4f16_autoawq"
    " q4f16_ft e5m2_e5m2_f16 e4m3_e4m3_f16 e4m3_e4m3_f16_max_calibrate"
)
_QUANTIZATIONS_2025_05 = _QUANTIZATIONS_2025_01 | {
    "q0bf16", "q4bf16_0", "q4bf16_1", "fp8_e4m3fn_bf16_block_scale",
}  # fmt: skip

_NEEDS_HEAD = _words("mistral phi3 qwen2_moe starcoder2 internlm orion deepseek deepseek_v2 baichuan")
_NEEDS_ROPE_THETA = _words("qwen2 qwen2_moe internlm2 stablelm starcoder2 deepseek_v2")

_BUILDS = (
    MLCBuild(
        "nano_llm:r36.2.0",
        commit="607dc5a",
        dated="2024-02-27",
        also=("r36.2.0", "607dc5a-r36.2.0"),
        legacy=True,
        # Those of the legacy builder's model_generators, and the two that NanoLLM hands to mlc_chat.
        model_types=_words(
            "llama mistral stablelm_epoch gpt_neox gpt_bigcode minigpt gptj rwkv chatglm phi gemma"
        ),
        # In utils.supported_model_types, but not in build_model_from_args's model_generators.
        refused_types=frozenset({"gpt2", "qwen", "moss"}),
        quantizations=_words(
            "autogptq_llama_q4f16_0 autogptq_llama_q4f16_1 q0f16 q0f32 q3f16_0 q3f16_1 q4f16_0"
            " q4f16_1 q4f16_2 q4f16_ft q4f16_ft_group q4f32_0 q4f32_1 q8f16_ft q8f16_ft_group"
            " q8f16_1"
        ),
        needs_head=frozenset({"llama", "mistral", "stablelm_epoch"}),
        files={
            "model types": "mlc_llm/utils.py supported_model_types and mlc_llm/core.py model_generators",
            "quantizations": "mlc_llm/quantization/__init__.py quantization_schemes",
            "names": "mlc_llm/relax_model/param_manager.py get_item",
        },
    ),
    MLCBuild(
        "dustynv/mlc:0.1.2-r36.3.0",
        commit="9336b4a",
        dated="2024-09-24",
        model_types=_TYPES_2024_09,
        quantizations=_QUANTIZATIONS_2025_01,
        ties_head=_words("llama qwen2 minicpm"),
        needs_head=_NEEDS_HEAD - {"deepseek", "deepseek_v2"},
        needs_rope_theta=_NEEDS_ROPE_THETA - {"deepseek_v2"},
        flashinfer_head_dim=128,
        files=_FILES,
    ),
    MLCBuild(
        "dustynv/mlc:r36.4.0",
        commit="cf7ae82",
        dated="2025-01-08",
        also=("0.19.0-r36.4.0",),
        model_types=_TYPES_2025_01,
        quantizations=_QUANTIZATIONS_2025_01,
        ties_head=_words("llama qwen2 minicpm nemotron olmo"),
        needs_head=_NEEDS_HEAD,
        needs_rope_theta=_NEEDS_ROPE_THETA,
        short_chunks=frozenset({"deepseek_v2", "internlm2"}),
        flashinfer_head_dim=128,
        files=_FILES,
    ),
    MLCBuild(
        NEWEST_IMAGE,
        commit="d2118b3",
        dated="2025-05-01",
        model_types=_TYPES_2025_05,
        quantizations=_QUANTIZATIONS_2025_05,
        ties_head=_words("llama qwen2 qwen3 minicpm nemotron olmo"),
        needs_head=_NEEDS_HEAD | {"qwen3_moe"},
        needs_rope_theta=_NEEDS_ROPE_THETA | {"qwen3", "qwen3_moe"},
        short_chunks=frozenset({"deepseek_v2", "internlm2", "qwen3", "qwen3_moe"}),
        flashinfer_head_dim=0,
        files=_FILES,
    ),
)
