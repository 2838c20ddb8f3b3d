"""The registry as seen from this machine: what is here, sound and runnable."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from inference.artifacts.gguf import check_gguf
from inference.artifacts.sources import Progress, fetch, import_file
from inference.artifacts.store import Store
from inference.backends import installed_backends
from inference.device.detect import Device
from inference.device.memory import Memory, read_memory
from inference.errors import ModelNotFoundError, ModelNotPulledError, UnsafeArtifactError
from inference.registry import ModelSpec, Registry, Variant
from inference.selection.selector import Resident, World, effective_variants
from inference.settings import Settings


class Catalog:
    """Joins registry, store and device. Cheap to ask: nothing is read twice that has not changed."""

    def __init__(self, settings: Settings, registry: Registry, device: Device) -> None:
        self.registry = registry
        self.device = device
        self.store = Store(settings.cache_path)
        self.backends = installed_backends()
        self._settings = settings
        self._checked: dict[Path, tuple[int, int]] = {}
        self._lock = threading.Lock()

    def memory(self) -> Memory:
        """What can be given to models now."""
        return read_memory(reserve_bytes=self._settings.memory_reserve_bytes)

    def budget_bytes(self) -> int | None:
        """`Memory.budget_bytes` of now."""
        return self.memory().budget_bytes

    def world(self, residents: Sequence[Resident]) -> World:
        """Everything that a selection depends on, as one value."""
        return World(
            registry=self.registry,
            backends=self.backends,
            weights_bytes=self._weights_bytes(),
            memory=self.memory(),
            residents=tuple(residents),
            bandwidth_bytes_per_s=self.device.bandwidth_bytes_per_s,
            slots=self._settings.slots,
            context_tokens=self._settings.context_tokens,
            prompt_cache_bytes=self._settings.prompt_cache_bytes,
            container="mlc" in self.backends,
            prefill_batch_tokens=self._settings.prefill_batch_tokens,
        )

    def variants(self, spec: ModelSpec) -> dict[str, Variant]:
        """The variants of *spec*, those that its entry leaves unsaid included."""
        return effective_variants(spec, container="mlc" in self.backends)

    def _weights_bytes(self) -> dict[tuple[str, str], int]:
        found = {}
        for model, spec in self.registry.models.items():
            for name, variant in self.variants(spec).items():
                path = self.store.path_of(model, variant)
                if path is not None:
                    found[model, name] = _size(path)
        return found

    def weights(self, model: str, variant_name: str) -> Path:
        """Return sound weights, ready to be loaded.

        Raises:
            ModelNotPulledError: they are not on this machine.
            UnsafeArtifactError: they are malformed; they have been put aside.
        """
        variant = self.variants(self.registry.models[model])[variant_name]
        path = self.store.path_of(model, variant)
        if path is None:
            self.raise_if_quarantined(model, variant_name)
            raise ModelNotPulledError(
                f"{model}/{variant_name}: its weights are not on this machine", hint=f"jetllm pull {model}"
            )
        if path.is_file():
            self._check(model, path)
        return path

    def raise_if_quarantined(self, name: str, variant_name: str | None) -> None:
        """Say of absent weights that they were put aside, when they were.

        Raises:
            UnsafeArtifactError: the weights of *variant_name*, or of any variant, were put aside.
        """
        model, spec = self.registry.get(name)
        for each, variant in self.variants(spec).items():
            reason = self.store.quarantine_reason(variant)
            if reason is not None and variant_name in (None, each):
                raise UnsafeArtifactError(
                    f"{model}/{each}: its weights were put aside: {reason}",
                    hint=f"fetch them again: jetllm pull {model}",
                )

    def _check(self, model: str, path: Path) -> None:
        stat = path.stat()
        mark = (stat.st_size, stat.st_mtime_ns)
        with self._lock:
            if self._checked.get(path) == mark:
                return
        try:
            check_gguf(path, subject=model)
        except UnsafeArtifactError as error:
            self.store.quarantine(path, error.message)
            error.hint = f"fetch it again: jetllm pull {model}"
            raise
        with self._lock:
            self._checked[path] = mark

    def distrust(self, model: str, variant_name: str, why: str) -> None:
        """After an engine refused weights: put them aside when they are not what they should be."""
        variant = self.variants(self.registry.models[model])[variant_name]
        path = self.store.path_of(model, variant)
        if path is None or not path.is_file():
            return
        if not self.store.is_intact(path, variant) or "corrupt" in why or "incomplete" in why:
            self.store.quarantine(path, why)

    def pull(
        self,
        name: str,
        variant_name: str | None,
        *,
        from_path: Path | None,
        progress: Callable[[Progress], None],
        cancelled: Callable[[], bool],
    ) -> tuple[str, str, Path]:
        """Bring a variant's weights onto this machine; return model, variant and path."""
        model, spec = self.registry.get(name)
        chosen = self._pullable(model, spec, variant_name)
        variant = self.variants(spec)[chosen]
        if from_path is not None:
            path = import_file(variant, model, self.store, from_path, progress=progress)
        else:
            path = fetch(
                variant,
                model,
                self.store,
                progress=progress,
                cancelled=cancelled,
                offline=self._settings.offline,
            )
        return model, chosen, path

    def _pullable(self, model: str, spec: ModelSpec, variant_name: str | None) -> str:
        variants = self.variants(spec)
        if variant_name is not None:
            if variant_name in variants:
                return variant_name
            raise ModelNotFoundError(
                f"{model} has no variant {variant_name!r}", hint=f"its variants: {', '.join(variants)}"
            )
        usable = [name for name, variant in variants.items() if variant.backend in self.backends]
        return (usable or list(variants))[0]

    def describe(self, model: str) -> dict[str, Any]:
        """What `jetllm models` and the API show of one entry."""
        spec = self.registry.models[model]
        variants = {
            name: {
                "backend": variant.backend,
                "quantization": variant.quantization,
                "pulled": self.store.path_of(model, variant) is not None,
                "usable": variant.backend in self.backends,
                "quarantined": self.store.quarantine_reason(variant),
            }
            for name, variant in self.variants(spec).items()
        }
        return {
            "id": model,
            "name": spec.name,
            "status": spec.status.value,
            "parameters": spec.parameters,
            "use_cases": list(spec.use_cases),
            "license": spec.license,
            "context_length": spec.context_length,
            "memory_requirement": spec.memory_requirement,
            "aliases": list(spec.aliases),
            "issue": spec.issue,
            "notes": spec.notes,
            "pulled": any(v["pulled"] for v in variants.values()),
            "usable": any(v["usable"] for v in variants.values()),
            "variants": variants,
        }


def _size(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(item.stat().st_size for item in path.rglob("*") if item.is_file())
