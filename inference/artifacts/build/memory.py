"""Memory of a build's steps, predicted before they start.

Resident bytes of the step's processes, as `inference.artifacts.build.process` counts them: pages of the
weights' files count, although the kernel could take them back. What a GPU's driver takes is not in them.
The constants are measurements of mlc_llm@79d603f on x86-64 with ``--device cpu``, in docs/bench-log.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from inference.artifacts.build.safetensors import Piece, block_of, into_shards
from inference.artifacts.lint.header import Span, Tensor
from inference.errors import DoesNotFitError

Headers = Mapping[str, Mapping[str, Tensor]]

GEN_CONFIG_BYTES = 700 * 2**20
"""Measured 598 MiB for SmolLM2-135M, the rest for a larger vocabulary; nearly all of it is imports."""
DEVICE_CHECK_BYTES = 880 * 2**20
"""Measured 820 MiB: convert_weight and compile start a second program that looks for the device
(support/auto_device.py), and both have imported TVM by then."""
COMPILE_BYTES = 900 * 2**20
"""The device check, or more: the compiler itself took 618 to 682 MiB for SmolLM2-135M. A model's size
hardly matters there, its kinds of layers do."""

CONVERT_FIXED_BYTES = 640 * 2**20
"""Measured 560 to 600 MiB: imports, the model's definition, and the shard of 32 MiB that is being filled
(tvm/contrib/tvmjs.py, dump_tensor_cache, shard_cap_mb)."""
WORK_BYTES_PER_ELEMENT = 12
"""Of the largest parameter: measured 7.4 (q0f16), 8.1 (q4f16_1) and 10.3 (q4f32_1). It is cast
(huggingface_loader.py, map_func), copied into a tensor of TVM's (as_tensor), quantized, and copied out
(tvmjs.py, tobytes)."""
LEFT_BYTES_PER_ELEMENT = 8
"""Of the parameter before it, which is not freed yet: measured 2.0 (q4f16_1) and 6.6 (q4f32_1) for GPT-2,
whose embedding is two parameters, one after the other."""
WORK_BYTES_PER_ELEMENT_F32 = 26
"""The same for q0f32: measured 24.3, because the numbers are cut to bf16 for the disk by numpy, through
several arrays of 32 bits (tvmjs.py, _convert_f32_to_bf16)."""
BF16_COPY_BYTES = 4
"""Per element of a BF16 file: MLC before 2025-04-06 (mlc-ai/mlc-llm@1434760b), as the r36.4.0 images have
it, holds a float32 copy of every tensor of an open file (loader/utils.py, load_safetensor_shard)."""

_SHARD_BYTES = tuple(mib << 20 for mib in (2048, 1024, 512, 256, 128, 64))
_GPT2_EMBEDDING = "wte.weight"


def convert_bytes(headers: Headers, *, shard_bytes: int | None, quantization: str | None = None) -> int:
    """Predict the peak of convert_weight.

    It is what the program takes, the files that are open at once, the work on the largest parameter, and
    what is left of the one before it; and before all that the device check.

    Args:
        headers: the tensors of each weights file.
        shard_bytes: the low-memory mode's size of a file; ``None``: the files are as they are.
        quantization: ``None``: any but q0f32.
    """
    per_element = WORK_BYTES_PER_ELEMENT_F32 if quantization == "q0f32" else WORK_BYTES_PER_ELEMENT
    files = _files(headers) if shard_bytes is None else into_shards(_pieces(headers), shard_bytes)
    largest, second = _largest_elements(headers)
    work_bytes = largest * per_element + second * LEFT_BYTES_PER_ELEMENT
    return max(DEVICE_CHECK_BYTES, CONVERT_FIXED_BYTES + _open_bytes(files) + work_bytes)


def choose_shard_bytes(
    headers: Headers, budget_bytes: int | None, quantization: str | None = None
) -> int | None:
    """Return the largest shards with which a conversion fits *budget_bytes*; ``None``: as the files are.

    Raises:
        DoesNotFitError: it does not fit even with the smallest.
    """
    if (
        budget_bytes is None
        or convert_bytes(headers, shard_bytes=None, quantization=quantization) <= budget_bytes
    ):
        return None
    needed_bytes = 0
    for shard_bytes in _SHARD_BYTES:
        needed_bytes = convert_bytes(headers, shard_bytes=shard_bytes, quantization=quantization)
        if needed_bytes <= budget_bytes:
            return shard_bytes
    raise DoesNotFitError(
        f"the conversion needs about {_mib(needed_bytes)} of memory, with weights in files of"
        f" {_SHARD_BYTES[-1] // 2**20} MiB; {_mib(budget_bytes)} can be given to it now",
        hint="build it on a bigger machine: jetllm build MODEL --for BOARD, then jetllm bundle",
        details={"needed_bytes": needed_bytes, "budget_bytes": budget_bytes},
    )


def _pieces(headers: Headers) -> list[Piece]:
    return [piece for file in _files(headers) for piece in file]


def _files(headers: Headers) -> list[list[Piece]]:
    return [
        [Piece(name, Path(file), Span(tensor, 0, tensor.size_bytes)) for name, tensor in tensors.items()]
        for file, tensors in headers.items()
    ]


def _open_bytes(files: Iterable[list[Piece]]) -> int:
    """Return the most that is held of the files at once.

    MLC closes the files that a parameter does not need when it opens one that it does
    (huggingface_loader.py, _load_mlc_param): what is open together is what a block lies in.
    """
    files_of: dict[str, set[int]] = {}
    sizes = []
    for number, pieces in enumerate(files):
        sizes.append(sum(_loaded_bytes(piece.span.tensor) for piece in pieces))
        for piece in pieces:
            files_of.setdefault(block_of(piece.name), set()).add(number)
    return max((sum(sizes[number] for number in numbers) for numbers in files_of.values()), default=0)


def _loaded_bytes(tensor: Tensor) -> int:
    return tensor.size_bytes + (tensor.elements * BF16_COPY_BYTES if tensor.dtype == "BF16" else 0)


def _largest_elements(headers: Headers) -> tuple[int, int]:
    """Return the elements of the two largest parameters, or more: as if MLC joined all of a block."""
    elements: dict[str, int] = {}
    for tensors in headers.values():
        for name, tensor in tensors.items():
            block = block_of(name)
            elements[block] = elements.get(block, 0) + tensor.elements
            if name.endswith(_GPT2_EMBEDDING):  # it is the head, too (gpt2_loader.py)
                elements["head"] = tensor.elements
    first, second, *_ = (*sorted(elements.values(), reverse=True), 0, 0)
    return first, second


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / 2**20:,.0f} MiB"
