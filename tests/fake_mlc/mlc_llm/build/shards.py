"""The shards: as large as the real ones, with bytes that follow from those of the checkpoint."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .families import Parameter

_NAMES = (
    "q0f16 q0bf16 q0f32 q3f16_0 q3f16_1 q4f16_0 q4f16_1 q4bf16_0 q4bf16_1 q4f32_1 q4f16_2 q4f16_autoawq"
    " q4f16_ft e5m2_e5m2_f16 e4m3_e4m3_f16 e4m3_e4m3_f16_max_calibrate fp8_e4m3fn_bf16_block_scale"
    " fp8_e4m3fn_bf16_block_scale_static_activation"
)
QUANTIZATIONS = _NAMES.split()
_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4, "uint32": 4}
_WORDS_IN_A_GROUP = 4


def packed(name: str, parameter: Parameter, quantization: str) -> Iterator[tuple[str, tuple[int, ...], str]]:
    """Yield the name, shape and type of what a parameter becomes."""
    dtype = "bfloat16" if "bf16" in quantization else "float32" if "f32" in quantization else "float16"
    shape = parameter.shape[::-1] if parameter.turned else parameter.shape
    if quantization.startswith("q0") or not parameter.is_matrix:
        yield name, shape, dtype
        return
    groups = math.ceil(shape[1] / (40 if quantization.startswith("q3") else 32))
    module = name.removesuffix(".weight")
    yield f"{module}.q_weight", (shape[0], groups * _WORDS_IN_A_GROUP), "uint32"
    yield f"{module}.q_scale", (shape[0], groups), dtype


class Shards:
    """Writes parameters into files of bounded size, and at last the list of them."""

    def __init__(self, directory: Path, bound_bytes: int, on_half: Callable[[], None]) -> None:
        self.last = directory
        self._directory, self._bound_bytes, self._on_half = directory, bound_bytes, on_half
        self._data, self._records = bytearray(), []  # type: tuple[bytearray, list[dict[str, Any]]]
        self._shards: list[dict[str, Any]] = []
        self.count, self.memory_bytes = 0, 0

    def add(self, name: str, shape: tuple[int, ...], dtype: str, seed: bytes) -> None:
        """Write one parameter; singles are halves on the disk, as in the real one."""
        numbers = math.prod(shape)
        size = numbers * (2 if dtype == "float32" else _BYTES[dtype])
        self.count, self.memory_bytes = self.count + 1, self.memory_bytes + numbers * _BYTES[dtype]
        if self._data and len(self._data) + size >= self._bound_bytes:
            self._flush()
        self._records.append(
            {"name": name, "shape": list(shape), "dtype": dtype, "format": "f32-to-bf16",
             "nbytes": size, "byteOffset": len(self._data)}
        )  # fmt: skip
        self._data += hashlib.shake_128(f"{name} {dtype} ".encode() + seed).digest(size)

    def finish(self, metadata: dict[str, Any]) -> None:
        """Write what is left and the list, under its own name and, for singles, as halves."""
        self._flush()
        self._list("tensor-cache.json", metadata)
        if any(record["dtype"] == "float32" for shard in self._shards for record in shard["records"]):
            for record in (record for shard in self._shards for record in shard["records"]):
                if record["dtype"] == "float32":
                    record |= {"dtype": "bfloat16", "format": "raw"}
            self._list("tensor-cache-b16.json", metadata)

    def _list(self, name: str, metadata: dict[str, Any]) -> None:
        tree = {"metadata": metadata, "records": self._shards}
        (self._directory / name).write_text(json.dumps(tree, indent=4), encoding="utf-8")

    def _flush(self) -> None:
        self.last = self._directory / f"params_shard_{len(self._shards)}.bin"
        half = len(self._data) // 2
        with self.last.open("wb") as file:
            file.write(self._data[:half])
            if not self._shards:
                file.flush()
                self._on_half()
            file.write(self._data[half:])
        md5 = hashlib.md5(self._data, usedforsecurity=False).hexdigest()
        self._shards.append(
            {"dataPath": self.last.name, "format": "raw-shard", "nbytes": len(self._data),
             "records": self._records, "md5sum": md5}
        )  # fmt: skip
        self._data, self._records = bytearray(), []
