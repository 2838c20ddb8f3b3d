"""The scripted service as Ollama's dialect asks it: described models, workers, vectors."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from inference.errors import JetLLMError
from inference.generation import Embeddings, EmbedRequest, GenerateRequest
from inference.registry import ModelSpec, Registry
from tests.fake_service import MODEL, FakeService, FakeStream

BASE = "org/base"
EMBEDDER = "embedder"
ABSENT = "absent"
SHA = "ab" * 32

_ENTRY = {
    "name": "SmolLM2",
    "parameters": "135M",
    "memory_requirement": 300,
    "container": None,
    "status": "verified",
    "use_cases": ["conversation"],
    "architecture": "llama",
    "license": "Apache-2.0",
    "context_length": 8192,
    "layers": 30,
    "heads": 9,
    "kv_heads": 3,
    "head_dim": 64,
    "hidden_size": 576,
    "vocab_size": 49152,
    "chat": "embedded",
}


def registry() -> Registry:
    """Four models: one for chats, a base model, one for vectors, and one that is not here."""
    entries = {
        MODEL: {**_ENTRY, "aliases": ["smol"]},
        BASE: {**_ENTRY, "name": "Base", "chat": "none", "architecture": None, "heads": None},
        EMBEDDER: {**_ENTRY, "name": "E", "use_cases": ["embedding"], "architecture": "bert"},
        ABSENT: _ENTRY,
    }
    models = {name: ModelSpec.model_validate_json(json.dumps(entry)) for name, entry in entries.items()}
    return Registry(models, Path("models.json"))


def variant(backend: str, quantization: str | None, **more: Any) -> dict[str, Any]:
    """A variant as the service describes it, here and usable unless *more* says otherwise."""
    usual = {"pulled": True, "usable": True, "bytes": 1000, "digest": SHA, "modified_s": 1_700_000_000}
    return {"backend": backend, "quantization": quantization, **usual, **more}


def worker(model: str, name: str, **more: Any) -> dict[str, Any]:
    """A row of the status: idle, on the CPU, leaving in a minute unless *more* says otherwise."""
    return {
        "model": model,
        "variant": name,
        "state": "ready",
        "leases": 0,
        "pinned": False,
        "keep_alive_s": 300.0,
        "expires_in_s": 60.0,
        "memory_predicted_bytes": 200,
        "memory_observed_bytes": 180,
        "context_tokens": 1024,
        "on_gpu": False,
        "capabilities": ("chat", "tools"),
        **more,
    }


@dataclass
class OllamaService(FakeService):
    """See the module; *template* is every model's, *workers* what is loaded, *refusals* of `delete`."""

    registry: Any = field(default_factory=registry)
    template: str | None = "{{ messages }} {{ tools }}"
    workers: list[dict[str, Any]] = field(default_factory=list)
    refusals: list[JetLLMError] = field(default_factory=list)
    embedded: list[EmbedRequest] = field(default_factory=list)
    variants: dict[str, dict[str, Any]] = field(
        default_factory=lambda: {
            MODEL: {
                "q4": variant("llamacpp", "q4_1"),
                "away": variant("mlc", "q4f16_1", pulled=False, digest="cd" * 32),
                "f32": variant("transformers", None, digest=None, bytes=4000),
            },
            BASE: {"mlc": variant("mlc", "q4f16_1")},
            EMBEDDER: {"f16": variant("llamacpp", "f16")},
            ABSENT: {"gone": variant("llamacpp", "q4_1", pulled=False, digest="ef" * 32)},
        }
    )

    def note(self, request: GenerateRequest, cancelled: Callable[[], bool]) -> FakeStream:
        """Play the script whatever model is asked for."""
        self.requests.append(request)
        self.running += 1
        return FakeStream(self, list(self.script), cancelled)

    def models(self) -> list[dict[str, Any]]:
        """Every model of the registry."""
        return [self._described(name) for name in self.registry.models]

    def model(self, name: str) -> dict[str, Any]:
        """Look a name or an alias up."""
        return self._described(self.registry.get(name)[0])

    def _described(self, name: str) -> dict[str, Any]:
        spec, variants = self.registry.models[name], self.variants[name]
        pulled = any(each["pulled"] for each in variants.values())
        common = {"id": name, "license": spec.license, "use_cases": list(spec.use_cases), "usable": True}
        return {**common, "variants": variants, "pulled": pulled, "state": "absent"}

    def chat_template(self, name: str, variant: str) -> str | None:
        """As scripted."""
        self.calls.append(("chat_template", name, variant))
        return self.template

    def delete(self, name: str, *, variant: str | None) -> dict[str, Any]:
        """Note the call; refuse as often as scripted."""
        self.calls.append(("delete", name, variant))
        if self.refusals:
            raise self.refusals.pop(0)
        return {"model": name, "variants": ["q4"], "freed_bytes": 5}

    def embed(self, request: EmbedRequest, cancelled: Callable[[], bool]) -> Embeddings:
        """Return (0.6, 0.8, 0) for each input."""
        self.embedded.append(request)
        vectors = tuple((0.6, 0.8, 0.0) for _ in request.inputs)
        return Embeddings(vectors, 7, EMBEDDER, "f16", 0.001)

    def status(self) -> dict[str, Any]:
        """With the scripted workers."""
        return {**super().status(), "workers": self.workers}
