"""A machine to measure on: files of a board that can be changed, and two models whose weights are here."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import inference.catalog
import inference.service
from inference.artifacts.store import Store
from inference.device.detect import IMAGE_FILE, detect
from inference.inference_engine import InferenceEngine

BOARD = Path(__file__).parent / "fixtures" / "devices" / "orin-nano-8gb-super"
IMAGE = "dustynv/mlc:0.20.0-r36.4.0"
MODEL, VARIANT = "one", "gguf"
PREDICTED, MEASURED = "predicted", "measured"
WEIGHTS = b"\0" * 1_000_000


class Machine:
    """The files below *root*; what this process's services detect is read from there.

    There are the models "one", which is also called "uno", and "two", each with the variant "gguf".
    """

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root / "machine"
        self.cache = root / "cache"
        self.registry = root / "models.json"
        self._patch = monkeypatch
        shutil.copytree(BOARD, self.root)
        self.write(IMAGE_FILE, f"{IMAGE}\n")
        self.register()
        monkeypatch.setattr(inference.catalog, "_LOOK_AGAIN_S", 0.0)
        for module in (inference.catalog, inference.service):
            monkeypatch.setattr(module, "detect", lambda: detect(self.root))
        monkeypatch.setenv("JETLLM_REGISTRY", str(self.registry))
        monkeypatch.setenv("JETLLM_CACHE_DIR", str(self.cache))

    def write(self, path: str, text: str) -> None:
        """Change a file of the machine."""
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def bring(self, model: str, content: bytes = WEIGHTS) -> str:
        """Put weights where the registry looks for them, checked; return their hash."""
        weights = self.registry.parent / f"{model}.gguf"
        weights.write_bytes(content)
        sha256 = hashlib.sha256(content).hexdigest()
        Store(self.cache).record_verified(weights, sha256)
        return sha256

    def register(self, content: bytes = WEIGHTS, *, hashed: bool = True) -> None:
        """Write the registry, the models with these weights, and bring them; or without a hash of them."""
        models = {name: self._entry(name, self.bring(name, content), hashed) for name in (MODEL, "two")}
        models[MODEL]["aliases"] = ["uno"]
        self.registry.write_text(json.dumps({"models": models}))

    def _entry(self, name: str, sha256: str, hashed: bool) -> dict[str, Any]:
        path = self.registry.parent / f"{name}.gguf"
        source: dict[str, Any] = {"type": "file", "path": str(path)}
        if hashed:
            source |= {"sha256": sha256, "bytes": path.stat().st_size}
        return {
            "name": name,
            "parameters": "100M",
            "memory_requirement": 600,
            "container": None,
            "status": "experimental",
            "use_cases": ["conversation"],
            "variants": {VARIANT: {"backend": "llamacpp", "quantization": "Q4_0", "source": source}},
        }

    @contextmanager
    def another_engine(self, package: str, version: str) -> Iterator[None]:
        """Within the block, another version of an engine's package is the installed one."""
        site = self.registry.parent / f"site-{version}"
        metadata = site / f"{package}-{version}.dist-info" / "METADATA"
        metadata.parent.mkdir(parents=True)
        metadata.write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
        sys.path.insert(0, str(site))
        try:
            yield
        finally:
            sys.path.remove(str(site))


def record(engine: InferenceEngine, /, **values: Any) -> dict[str, Any]:
    """What the harness would send of "one": its conditions as this machine shows them now."""
    machine, variant = engine.device()["static"], engine.model(MODEL)["variants"][VARIANT]
    return {
        "model": MODEL,
        "variant": VARIANT,
        **{name: machine[name] for name in ("board", "l4t", "power_mode", "image")},
        **{name: variant[name] for name in ("engine", "weights_sha256")},
        "decode_tokens_per_s": 33.0,
        "memory_bytes": 200_000_000,
        "status": "verified",
        **values,
    }


def source_of(engine: InferenceEngine) -> str | None:
    """Where the selector has the speed of "one" from."""
    candidates = engine.select(MODEL)["candidates"]
    source: str | None = next(c["tokens_per_s_source"] for c in candidates if c["model"] == MODEL)
    return source


def shown(engine: InferenceEngine) -> dict[str, Any]:
    """What is shown of the one variant of "one"."""
    found: dict[str, Any] = engine.model(MODEL)["variants"][VARIANT]
    return found
