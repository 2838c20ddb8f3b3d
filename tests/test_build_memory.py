"""The memory of a build's steps, against numbers computed by hand and against measurements."""

from __future__ import annotations

import pytest

from inference.artifacts.build.memory import (
    COMPILE_BYTES,
    CONVERT_FIXED_BYTES,
    DEVICE_CHECK_BYTES,
    GEN_CONFIG_BYTES,
    Headers,
    choose_shard_bytes,
    convert_bytes,
)
from inference.artifacts.lint.header import Tensor
from inference.errors import DoesNotFitError

MIB = 2**20


def llama(
    hidden: int, inner: int, layers: int, vocabulary: int, dtype: str = "BF16", files: int = 1
) -> Headers:
    """The headers of a Llama with tied embeddings and as many key heads as query heads."""
    tensors = {"model.embed_tokens.weight": Tensor(dtype, (vocabulary, hidden))}
    for layer in range(layers):
        block = f"model.layers.{layer}"
        for name in "qkvo":
            tensors[f"{block}.self_attn.{name}_proj.weight"] = Tensor(dtype, (hidden, hidden))
        for name in ("gate", "up", "down"):
            tensors[f"{block}.mlp.{name}_proj.weight"] = Tensor(dtype, (inner, hidden))
    share = -(-len(tensors) // files)
    items = list(tensors.items())
    return {f"{number}": dict(items[number * share : (number + 1) * share]) for number in range(files)}


def test_one_file_is_held_whole() -> None:
    """Fixed cost, 2 bytes of file and 4 of copy for each BF16 number, 12 for each of the embedding's, and
    8 for each of the next smaller block's, a layer's gate, up and down."""
    headers = llama(hidden=1000, inner=2000, layers=2, vocabulary=50_000)
    elements = 50_000_000 + 2 * (4 * 1_000_000 + 3 * 2_000_000)
    assert elements == 70_000_000
    wanted = 671_088_640 + 70_000_000 * 6 + 50_000_000 * 12 + 6_000_000 * 8
    assert convert_bytes(headers, shard_bytes=None) == wanted == 1_739_088_640


def test_f16_is_not_copied() -> None:
    """Numbers that numpy has are used where the file lies."""
    headers = llama(hidden=1000, inner=2000, layers=2, vocabulary=50_000, dtype="F16")
    wanted = CONVERT_FIXED_BYTES + 140_000_000 + 600_000_000 + 48_000_000
    assert convert_bytes(headers, shard_bytes=None) == wanted


def test_q0f32_takes_more() -> None:
    """26 bytes for each number of the largest parameter."""
    headers = llama(hidden=1000, inner=2000, layers=2, vocabulary=50_000)
    wanted = CONVERT_FIXED_BYTES + 420_000_000 + 50_000_000 * 26 + 6_000_000 * 8
    assert convert_bytes(headers, shard_bytes=None, quantization="q0f32") == wanted


def test_largest_parameter_may_be_a_layers() -> None:
    """Gate and up are one parameter; the block's down_proj is counted with them."""
    headers = llama(hidden=1000, inner=20_000, layers=2, vocabulary=10, dtype="F16")
    wanted = CONVERT_FIXED_BYTES + (10_000 + 2 * 64_000_000) * 2 + 60_000_000 * (12 + 8)
    assert convert_bytes(headers, shard_bytes=None) == wanted


def test_files_that_share_a_block_are_held_together() -> None:
    """A block that lies in two of three files has both open."""
    attention = [f"model.layers.0.self_attn.{name}_proj.weight" for name in "qkv"]
    big, small = Tensor("F16", (10_000, 5000)), Tensor("F16", (10, 10))
    headers = {
        "a": {attention[0]: small, "x.weight": big},
        "b": {attention[1]: small, attention[2]: small},
        "c": {"y.weight": big, "z.weight": big},
    }
    work = CONVERT_FIXED_BYTES + 50_000_000 * (12 + 8)
    assert convert_bytes(headers, shard_bytes=None) == work + 200_000_000
    headers["b"]["w.weight"] = big
    headers["b"]["v.weight"] = big
    assert convert_bytes(headers, shard_bytes=None) == work + 300_000_600


def test_low_memory_mode_holds_one_shard() -> None:
    """Of 140 MB in files of 20 MB the embedding's 100 MB remain, which is a file of its own."""
    headers = llama(hidden=1000, inner=2000, layers=2, vocabulary=50_000, dtype="F16")
    wanted = CONVERT_FIXED_BYTES + 100_000_000 + 600_000_000 + 48_000_000
    assert convert_bytes(headers, shard_bytes=20_000_000) == wanted


MEASURED = [
    # hidden, inner, layers, vocabulary, shard MiB, quantization, peak in MiB
    (768, 2048, 6, 8_000, None, "q4f16_1", 682),
    (1024, 4096, 10, 16_000, None, "q4f16_1", 1065),
    (1024, 4096, 10, 16_000, 64, "q4f16_1", 810),
    (1024, 4096, 10, 16_000, 64, "q4f32_1", 857),
    (1024, 2816, 4, 128_000, None, "q4f16_1", 1834),
    (1024, 2816, 4, 128_000, 64, "q4f16_1", 1826),
    (1024, 2816, 4, 128_000, None, "q4f32_1", 2100),
    (1024, 2816, 4, 128_000, None, "q0f16", 1695),
    (1024, 2816, 4, 128_000, None, "q0f32", 3820),
]


@pytest.mark.parametrize("measured", MEASURED, ids=str)
def test_prediction_is_above_what_was_measured(
    measured: tuple[int, int, int, int, int | None, str, int],
) -> None:
    """No conversion took more than predicted, nor less than a third of it (docs/bench-log.md).

    The engine that was measured holds no copy of BF16 files; that of the r36.4.0 images does.
    """
    hidden, inner, layers, vocabulary, shard_mib, quantization, peak_mib = measured
    shard_bytes = shard_mib * MIB if shard_mib is not None else None
    headers = llama(hidden, inner, layers, vocabulary)
    predicted = convert_bytes(headers, shard_bytes=shard_bytes, quantization=quantization)
    assert peak_mib * MIB <= predicted <= 3 * peak_mib * MIB
    uncopied = llama(hidden, inner, layers, vocabulary, dtype="F16")
    assert peak_mib * MIB <= convert_bytes(uncopied, shard_bytes=shard_bytes, quantization=quantization)


@pytest.mark.parametrize("prefix", ["", "transformer."])
def test_gpt2_embedding_is_two_parameters(prefix: str) -> None:
    """GPT-2's head is made of the embedding, too: 50,257 x 768 numbers twice. Measured for 4 layers of
    it in F32: 1207 MiB (q4f16_1) and 1443 MiB (q4f32_1)."""
    embedding, layers = 50_257 * 768, 4 * 12 * 768 * 768 + 1024 * 768
    headers = {
        "model.safetensors": {
            f"{prefix}wte.weight": Tensor("F32", (50_257, 768)),
            f"{prefix}wpe.weight": Tensor("F32", (1024, 768)),
            **{f"{prefix}h.{i}.mlp.x": Tensor("F32", (12 * 768, 768)) for i in range(4)},
        }
    }
    predicted = convert_bytes(headers, shard_bytes=None)
    assert predicted == CONVERT_FIXED_BYTES + (embedding + layers) * 4 + embedding * (12 + 8)
    assert 1443 * MIB < predicted < 2 * 1443 * MIB


def test_files_stay_as_they_are_where_they_fit() -> None:
    """Without a budget, and with one that is large enough, nothing is rewritten."""
    headers = llama(hidden=1000, inner=2000, layers=2, vocabulary=50_000)
    needed = convert_bytes(headers, shard_bytes=None)
    assert choose_shard_bytes(headers, None) is None
    assert choose_shard_bytes(headers, needed) is None
    assert choose_shard_bytes(headers, needed - 1) is not None


def test_largest_shards_that_fit_are_chosen() -> None:
    """Ten blocks of 168 MB each: with a little less than all of it, the largest size below is taken."""
    headers = llama(hidden=1000, inner=28_000, layers=10, vocabulary=100, dtype="F16")
    whole = convert_bytes(headers, shard_bytes=None)
    chosen = choose_shard_bytes(headers, whole - 1)
    assert chosen == 2**30
    assert convert_bytes(headers, shard_bytes=chosen) < whole


def test_what_never_fits_is_refused_with_numbers() -> None:
    """The hint says to build on a bigger machine."""
    headers = llama(hidden=1000, inner=2000, layers=2, vocabulary=50_000)
    with pytest.raises(DoesNotFitError, match=r"needs about 1,\d+ MiB .* 512 MiB can be given") as caught:
        choose_shard_bytes(headers, 512 * MIB)
    assert "--for BOARD" in str(caught.value.hint)
    assert caught.value.details["budget_bytes"] == 512 * MIB


def test_other_steps_are_above_what_was_measured() -> None:
    """SmolLM2-135M: gen_config took 598 MiB, compile 618 (q4f16_1) and 682 (q0f32)."""
    assert GEN_CONFIG_BYTES > 598 * MIB
    assert COMPILE_BYTES > DEVICE_CHECK_BYTES > 820 * MIB > 682 * MIB


def test_little_takes_what_the_device_check_does() -> None:
    """The check starts a second program, and took 820 MiB where converting took 445."""
    tiny = llama(hidden=128, inner=256, layers=2, vocabulary=512)
    assert convert_bytes({}, shard_bytes=None) == DEVICE_CHECK_BYTES
    assert convert_bytes(tiny, shard_bytes=None) == DEVICE_CHECK_BYTES > 820 * MIB
