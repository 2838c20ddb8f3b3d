"""An entry of models.json as a checkpoint: what is known of a model whose files are not here.

models.json has types and shapes. How the published checkpoint is written, which decides over two of
the rules, is kept here by its repository on the hub, each with its source.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from inference.artifacts.lint.checkpoint import Checkpoint
from inference.artifacts.lint.report import label
from inference.registry import ModelSpec
from inference.registry.sources import HubSource
from inference.registry.spec import Variant

TIED: Mapping[str, str] = MappingProxyType(
    {
        "HuggingFaceTB/SmolLM2-135M-Instruct": "mlc-ai/mlc-llm@79d603f, model_preset.py smollm2_135m",
        "HuggingFaceTB/SmolLM2-360M-Instruct": "mlc-ai/mlc-llm@79d603f, model_preset.py smollm2_360m",
        "HuggingFaceTB/SmolLM2-1.7B-Instruct": "its 1.71B parameters (docs/models.md): one matrix, not two",
        "microsoft/Phi-4-mini-instruct": "mlc-ai/mlc-llm@79d603f, model_preset.py phi-4",
        "meta-llama/Llama-3.2-1B-Instruct": "mlc-ai/mlc-llm@79d603f, model_preset.py llama3_2_1b",
        "meta-llama/Llama-3.2-3B-Instruct": "mlc-ai/mlc-llm@79d603f, model_preset.py llama3_2_3b",
    }
)
"""Checkpoints whose head is their embedding, so that they have no lm_head.weight, and the source of that."""

PREFIXED: Mapping[str, str] = MappingProxyType(
    dict.fromkeys(
        ("distilbert/distilgpt2", "microsoft/DialoGPT-small"),
        "saved by transformers as GPT2LMHeadModel, whose part with the layers is named transformer",
    )
)
"""Checkpoints of GPT-2 whose tensors have the prefix ``transformer.``, and the source of that."""


_CONVERTED_SUFFIX = "-MLC"  # as mlc-ai names its repositories of converted weights


def of_entry(name: str, spec: ModelSpec, variant: Variant | None = None) -> Checkpoint:
    """Return what models.json says of a model, and what is kept here of the checkpoint of *variant*."""
    said = {
        "model_type": spec.architecture,
        "hidden_size": spec.hidden_size,
        "num_hidden_layers": spec.layers,
        "num_attention_heads": spec.heads,
        "num_key_value_heads": spec.kv_heads,
        "head_dim": spec.head_dim,
        "vocab_size": spec.vocab_size,
        "max_position_embeddings": spec.context_length,
    }
    known = {key: value for key, value in said.items() if value is not None}
    repo = variant.source.repo if variant and isinstance(variant.source, HubSource) else ""
    return Checkpoint(
        label(name),
        name,
        files_read=False,
        config=known,
        is_converted=repo.endswith(_CONVERTED_SUFFIX),
        tied_source=TIED.get(repo),
        prefixed_source=PREFIXED.get(repo),
    )
