"""A tiny random GPT-2 checkpoint, made on the spot: real files, no download, the same on every run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from inference.backends import LoadOptions

CONTEXT_TOKENS = 128
END_OF_TEXT = "<|endoftext|>"

CHAT_TEMPLATE = (
    "{% for m in messages %}"
    "{% if m['role'] == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}"
    "[{{ m['role'] }}]{{ m['content'] }}\n"
    "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)


def make_tiny_gpt2(directory: Path, *, chat_template: str | None = None) -> Path:
    """Write a two-layer GPT-2 with random weights and a tokenizer that knows bytes only.

    Every byte is a token, so that most characters beyond ASCII are cut over tokens.
    """
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    tokenizer = _byte_tokenizer(chat_template)
    torch.manual_seed(20260101)
    end = tokenizer.convert_tokens_to_ids(END_OF_TEXT)
    shape = {"n_layer": 2, "n_head": 2, "n_embd": 32, "n_positions": CONTEXT_TOKENS}
    config = GPT2Config(
        vocab_size=len(tokenizer), bos_token_id=end, eos_token_id=end, initializer_range=0.4, **shape
    )
    GPT2LMHeadModel(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def load_options(weights: Path, **changes: Any) -> LoadOptions:
    """Options under which a tiny model loads, and prompts are read in many steps."""
    options = LoadOptions(
        weights=weights,
        context_tokens=2048,
        slots=4,
        threads=2,
        prefill_batch_tokens=16,
        prompt_cache_bytes=0,
        runtime_dir=weights,
        device="cpu",
    )
    return replace(options, **changes)


def _byte_tokenizer(chat_template: str | None) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({symbol: i for i, symbol in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        chat_template=chat_template,
    )
