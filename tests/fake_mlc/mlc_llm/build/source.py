"""The source directory as the real loader sees it, with its side effect and its errors."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from .families import Family, Parameter

INDEX, ONE_FILE = "model.safetensors.index.json", "model.safetensors"


class UnpicklingError(Exception):
    """A pickle was opened; in the real one it may have run code by now."""


class SafetensorError(Exception):
    """A file is not of the format."""


Tensors = dict[str, tuple[str, tuple[int, ...], memoryview]]


def log(message: str) -> None:
    """Write a line as the real one logs."""
    sys.stderr.write(f"[{time.strftime('%Y-%m-%d %H:%M:%S')}] INFO fake.py:1: {message}\n")


def say(text: str) -> None:
    """Write to stdout."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def detect_config(text: str) -> Path:
    """Return config.json of a directory, or the path itself."""
    return _detect(text, "config.json")


def detect_mlc_chat_config(text: str) -> Path:
    """Return mlc-chat-config.json of a directory, or the path itself."""
    return _detect(text, "mlc-chat-config.json")


def _detect(text: str, name: str) -> Path:
    path = Path(text)
    if not path.exists():
        raise ValueError(f"{path} does not exist.")
    if path.is_dir():
        if not (path / name).exists():
            raise ValueError(f"Fail to find {name} under {path}.")
        path /= name
    log(f"Found model configuration: {path}")
    return path


def model_type_of(config: Path, asked: str) -> str:
    """Return the model's type."""
    if asked != "auto":
        return asked
    tree = json.loads(config.read_text(encoding="utf-8"))
    found = tree.get("model_type") or (tree.get("model_config") or {}).get("model_type")
    if found is None:
        raise ValueError(
            f"'model_type' not found in: {config}. Please explicitly specify `--model-type` instead."
        )
    log(f"Found model type: {found}. Use `--model-type` to override.")
    return str(found)


def detect_weights(directory: Path, wanted: str) -> Path:
    """Return what lists the weights; for a single file that list is written first, into *directory*."""
    log(f"Finding weights in: {directory}")
    if wanted != "huggingface-safetensor":
        for name in ("pytorch_model.bin.index.json", "pytorch_model.bin"):
            if (directory / name).exists():
                return directory / name
    if not (directory / INDEX).exists():
        if not (directory / ONE_FILE).exists():
            raise ValueError(
                "Fail to detect source weight format. Use `--source-format` to explicitly specify the format."
            )
        weight_map = dict.fromkeys(read_safetensors(directory / ONE_FILE), ONE_FILE)
        (directory / INDEX).write_text(json.dumps({"weight_map": weight_map}, indent=2), encoding="utf-8")
    log(f"Using source weight configuration: {directory / INDEX}. Use `--source` to override.")
    return directory / INDEX


class Weights:
    """The tensors of a source, looked up by the list that it has of them."""

    def __init__(self, listing: Path, family: Family, parameters: dict[str, Parameter]) -> None:
        if listing.name.startswith("pytorch_model"):
            raise UnpicklingError(f"Weights only load failed: {listing}")
        self._places: dict[str, str] = json.loads(listing.read_text(encoding="utf-8"))["weight_map"]
        self._directory = listing.parent
        self._files: dict[str, Tensors] = {}
        self._unused = family.unused
        used = {name for parameter in parameters.values() for name in parameter.sources}
        surplus = sorted(n for n in self._places.keys() - used if not n.endswith(family.unused))
        if surplus:
            log(f"Unused extern parameters: {', '.join(surplus)}")
        if absent := sorted(used - self._places.keys()):
            raise ValueError(
                "The following extern parameters do not exist in the weight files:\n  " + "\n  ".join(absent)
            )

    def take(self, name: str, parameter: Parameter) -> bytes:
        """Return the bytes of one parameter's tensors."""
        found = [self._tensor(source) for source in parameter.sources]
        shapes = [shape for _, shape, _ in found]
        shape = (sum(each[0] for each in shapes), *shapes[0][1:])
        is_embedding = name.endswith(("embed_tokens.weight", "wte.weight", "lm_head.weight"))
        if shape[1:] != parameter.shape[1:] or (shape[0] != parameter.shape[0] and not is_embedding):
            raise ValueError(f"Parameter {name} has shape {shape}, but expected {parameter.shape}")
        return b"".join(data for _, _, data in found)

    def count(self) -> int:
        """Return how many numbers all files hold, but those that are declared unused."""
        total = 0
        for file in sorted(set(self._places.values())):
            for name, (_, shape, _) in self._load(file).items():
                if not name.endswith(self._unused):
                    size = 1
                    for length in shape:
                        size *= length
                    total += size
        return total

    def _tensor(self, name: str) -> tuple[str, tuple[int, ...], memoryview]:
        return self._load(self._places[name])[name]

    def _load(self, file: str) -> Tensors:
        if file not in self._files:
            log(f"Loading HF parameters from: {self._directory / file}")
            self._files[file] = read_safetensors(self._directory / file)
        return self._files[file]


def read_safetensors(path: Path) -> Tensors:
    """Return a file's tensors: type, shape and bytes by name."""
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    if size > len(raw) - 8:
        raise SafetensorError("Error while deserializing header: header too large")
    tree: dict[str, Any] = json.loads(raw[8 : 8 + size])
    tree.pop("__metadata__", None)
    body = memoryview(raw)[8 + size :]
    if max((each["data_offsets"][1] for each in tree.values()), default=0) != len(body):
        raise SafetensorError("Error while deserializing header: incomplete metadata, file not fully covered")
    return {
        name: (each["dtype"], tuple(each["shape"]), body[slice(*each["data_offsets"])])
        for name, each in tree.items()
    }
