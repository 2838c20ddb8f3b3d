"""`inference.backends._mlc_memory` and the estimate of `inference.selection` say the same of an engine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from inference.backends._mlc_memory import cache_tokens, device_total_bytes, needed_bytes, utilization
from inference.errors import LoadFailedError
from inference.registry.spec import ModelSpec, Variant
from inference.selection.estimate import estimate_memory, prefill_batch, weights_in_memory

SMOLLM2 = {"layers": 30, "heads": 9, "kv_heads": 3, "head_dim": 64, "hidden_size": 576, "vocab_size": 49152}
QWEN3 = {"layers": 28, "heads": 16, "kv_heads": 8, "head_dim": 128, "hidden_size": 1024, "vocab_size": 151936}
WEIGHTS_BYTES = 75_715_200


def config(shape: dict[str, int], chunk_tokens: int = 512) -> dict[str, Any]:
    return {
        "vocab_size": shape["vocab_size"],
        "prefill_chunk_size": 64,
        "model_config": {
            "num_attention_heads": shape["heads"],
            "num_key_value_heads": shape["kv_heads"],
            "head_dim": shape["head_dim"],
            "hidden_size": shape["hidden_size"],
            "num_hidden_layers": shape["layers"],
            "prefill_chunk_size": chunk_tokens,
        },
    }


def a_model(**shape: int) -> ModelSpec:
    entry = {
        "name": "x",
        "parameters": "1M",
        "memory_requirement": 1,
        "container": None,
        "status": "planned",
        "use_cases": ["conversation"],
        **shape,
    }
    return ModelSpec.model_validate_json(json.dumps(entry))


def test_needed_by_hand() -> None:
    """Weights, KV cache, auxiliary buffers, workspace, logits, as in cpp/serve/config.cc."""
    kv = 2 * (2048 + 16) * (64 * 3 * 30 * 4 + 1.25)
    aux = 3 * 88 + 512 * 10 * 8 + 512 * 64 * 12 * 4 + 48 * 2**20
    work = 512 * 4 + 2 * 4 + (2 * 512 + 2) * 576 * 2
    logits = 2 * (20 + 49152 * 16.125)
    found = needed_bytes(WEIGHTS_BYTES, config(SMOLLM2), slots=2, context_tokens=2048)
    assert found == round(WEIGHTS_BYTES + kv + aux + work + logits)


def test_gpt2_has_other_names_for_its_shape() -> None:
    """n_head, n_embd and n_layer; a head's size follows from them."""
    gpt2 = {"n_head": 12, "n_embd": 768, "n_layer": 12, "prefill_chunk_size": 512}
    shape = {
        "layers": 12,
        "heads": 12,
        "kv_heads": 12,
        "head_dim": 64,
        "hidden_size": 768,
        "vocab_size": 50257,
    }
    sizes = {"slots": 1, "context_tokens": 1024}
    named = needed_bytes(0, {"vocab_size": 50257, "model_config": gpt2}, **sizes)
    assert named == needed_bytes(0, config(shape), **sizes)


@pytest.mark.parametrize("shape", [SMOLLM2, QWEN3], ids=["smollm2", "qwen3"])
@pytest.mark.parametrize(("slots", "context_tokens"), [(1, 512), (4, 4096), (8, 1000)])
def test_the_reservation_is_enough_and_no_more_than_its_overhead_too_much(
    shape: dict[str, int], slots: int, context_tokens: int
) -> None:
    """The ledger reserves what the estimate says: below what the engine takes it would never load."""
    spec = a_model(**shape)
    variant = Variant(backend="mlc", quantization="q4f16_1")
    estimate = estimate_memory(
        spec,
        variant,
        context_tokens=context_tokens,
        slots=slots,
        prompt_cache_bytes=0,
        weights_bytes=WEIGHTS_BYTES,
        prefill_batch_tokens=None,
    )
    needed = needed_bytes(WEIGHTS_BYTES, config(shape), slots=slots, context_tokens=context_tokens)
    assert estimate.overhead_bytes is not None
    margin = estimate.total_bytes - estimate.overhead_bytes - needed
    temporaries = 2 * 512 * shape["hidden_size"] * 16
    page = 32 * slots * (shape["head_dim"] * shape["kv_heads"] * shape["layers"] * 4 + 1.25)
    assert 0 <= margin <= temporaries + page


@pytest.mark.parametrize(
    ("backend", "wanted", "tokens"),
    [("mlc", None, 512), ("llamacpp", None, 64), ("transformers", None, 64), ("mlc", 128, 128)],
)
def test_each_backend_has_a_batch_of_its_own(backend: str, wanted: int | None, tokens: int) -> None:
    """What a CPU does in a moment leaves a GPU idle; a setting is for all."""
    assert prefill_batch(backend, wanted) == tokens


@pytest.mark.parametrize(("context_tokens", "tokens"), [(1, 32), (16, 32), (17, 48), (512, 528)])
def test_sequences_have_whole_pages_and_one_more(context_tokens: int, tokens: int) -> None:
    """The engine keeps 8 tokens free per sequence, without which a full prompt waits for ever."""
    assert cache_tokens(1, context_tokens, 16) == tokens
    assert cache_tokens(3, context_tokens, 16) == 3 * tokens


def test_a_cache_is_larger_than_a_chunk() -> None:
    """With one of 160 tokens and a chunk of 256 every token took as long as the whole prompt."""
    assert cache_tokens(2, 64, 256) == 272
    assert cache_tokens(4, 64, 256) == 320


def test_the_share_is_of_what_was_reserved() -> None:
    """Never the engine's own 85 %, and never all."""
    assert utilization(10**9, 2 * 10**9, 8 * 10**9) == 0.25
    assert utilization(10**9, 8 * 10**9, 8 * 10**9) == 0.95
    assert utilization(10**6, None, 10**12) == (10**6 * 1.25 + 512 * 2**20) / 10**12


def test_too_little_is_refused_with_both_figures() -> None:
    """The engine would compare only a part of it, and take the rest all the same."""
    with pytest.raises(LoadFailedError, match=r"would take 3.00 GiB; 2.00 GiB are reserved") as caught:
        utilization(3 * 2**30, 2 * 2**30, 8 * 2**30)
    assert caught.value.details == {"needed_bytes": 3 * 2**30, "reserved_bytes": 2 * 2**30}


def test_a_processors_memory_is_the_machines() -> None:
    """Where no driver answers, also for a GPU."""
    meminfo = Path("/proc/meminfo").read_text(encoding="ascii").split()
    assert device_total_bytes("cpu") == pytest.approx(int(meminfo[1]) * 1024, rel=0.01)
    assert device_total_bytes("cuda:7") >= 2**20


def test_weights_are_counted_as_they_are_on_disk() -> None:
    """MLC loads its shards as they are."""
    spec = a_model()
    assert weights_in_memory(spec, Variant(backend="mlc"), WEIGHTS_BYTES) == WEIGHTS_BYTES
