"""The registry as seen from this machine: what is here, sound and runnable."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from inference.artifacts import files
from inference.artifacts.build import Build
from inference.artifacts.gguf import check_gguf
from inference.artifacts.sources import Progress, fetch, import_file
from inference.artifacts.store import Store
from inference.artifacts.template import chat_template
from inference.backends import engine_versions, installed_backends
from inference.choice import unfit
from inference.compiled import BACKEND as MLC
from inference.compiled import Compiled
from inference.device.detect import Device, detect
from inference.device.memory import Memory, read_memory
from inference.errors import JetLLMError, ModelNotFoundError, ModelNotPulledError, UnsafeArtifactError
from inference.measurements import FILE, Measurements, model_status
from inference.planning import is_called
from inference.registry import Conditions, ModelSpec, Registry, Variant
from inference.registry.evidence import Key
from inference.selection.selector import Resident, World, effective_variants
from inference.settings import Settings

_LOOK_AGAIN_S = 1.0  # weights that another process brings, or another power mode, are seen this late


class Catalog:
    """Joins registry, store and device. Cheap to ask: nothing is read twice that has not changed."""

    def __init__(self, settings: Settings, registry: Registry, device: Device) -> None:
        self.device = device
        self.store = Store(
            settings.cache_path, quota_bytes=settings.store_quota_bytes, keep=self._pinned_weights
        )
        self.backends = installed_backends()
        self.compiled = Compiled(self.store, device, slots=settings.slots, mlc_device=settings.mlc_device)
        self._settings = settings
        self._checked: dict[Path, tuple[int, int]] = {}
        self._lock = threading.Lock()
        self.measurements = Measurements(
            settings.state_path / FILE, now=self.conditions, variants=self._variants_of
        )
        self._engines: tuple[float, Any, dict[str, str]] | None = None
        self._conditions: tuple[dict[Key, int], Device, dict[str, str], Conditions] | None = None
        self._device_looked_s = time.monotonic()
        self.replace_registry(registry)

    @property
    def registry(self) -> Registry:
        """The registry in force."""
        return self._registry

    def replace_registry(self, registry: Registry) -> None:
        """Put another registry in force; what was chosen from the former one goes on."""
        self._registry = registry
        self._incompatible = unfit(registry, self.device, container=self._container)
        self.forget_weights()

    @property
    def _container(self) -> bool:
        return "mlc" in self.backends

    def forget_weights(self) -> None:
        """Look anew which weights are here when the next world is made."""
        self._weights: tuple[Registry, float, dict[Key, int], dict[Key, str]] | None = None
        self._unfit_known: tuple[dict[Key, int], dict[Key, str]] | None = None

    def device_now(self) -> Device:
        """Return what the machine is; another power mode is noticed, which the memory's bandwidth follows."""
        now_s = time.monotonic()
        if now_s - self._device_looked_s < _LOOK_AGAIN_S:
            return self.device
        self._device_looked_s = now_s
        device = detect()
        if device != self.device:
            self.device = device
        return self.device

    def _pinned_weights(self) -> list[Path]:
        """Where the weights of the models are that the settings pin, of every variant, and their builds."""
        registry, pins = self._registry, self._settings.pin
        models = [name for name in registry.models if any(is_called(registry, name, pin) for pin in pins)]
        variants = [each for name in models for each in self.variants(registry.models[name]).values()]
        weights = [path for each in variants if (path := self.store.path_of("", each))]
        return weights + [build.path for build in self.compiled.builds.all() if build.model in models]

    def memory(self) -> Memory:
        """What can be given to models now."""
        return read_memory(reserve_bytes=self._settings.memory_reserve_bytes)

    def budget_bytes(self) -> int | None:
        """`Memory.budget_bytes` of now."""
        return self.memory().budget_bytes

    def world(self, residents: Sequence[Resident]) -> World:
        """Everything that a selection depends on, as one value."""
        registry = self._registry
        self.device_now()
        return World(
            registry=registry,
            backends=self.backends,
            weights_bytes=self._weights_bytes(registry),
            memory=self.memory(),
            residents=tuple(residents),
            bandwidth_bytes_per_s=self.device.bandwidth_bytes_per_s,
            slots=self._settings.slots,
            context_tokens=self._settings.context_tokens,
            prompt_cache_bytes=self._settings.prompt_cache_bytes,
            container=self._container,
            incompatible=self._unfit(registry),
            evidence=self.measurements.evidence(),
            prefill_batch_tokens=self._settings.prefill_batch_tokens,
            cpu_cores=self.device.cpu_cores,
        )

    def variants(self, spec: ModelSpec) -> dict[str, Variant]:
        """The variants of *spec*, those that its entry leaves unsaid included."""
        return effective_variants(spec, container=self._container)

    def variant(self, registry: Registry, model: str, name: str) -> Variant | None:
        """What *registry* says of one variant; ``None`` when it has none of that name."""
        spec = registry.models.get(model)
        return None if spec is None else self.variants(spec).get(name)

    def _weights_bytes(self, registry: Registry) -> dict[Key, int]:
        return self._weights_here(registry)[0]

    def _weights_here(self, registry: Registry) -> tuple[dict[Key, int], dict[Key, str]]:
        """Sizes and hashes of what could be loaded: the same objects as long as nothing has changed."""
        known, now_s = self._weights, time.monotonic()
        if known is not None and known[0] is registry and now_s - known[1] < _LOOK_AGAIN_S:
            return known[2:]
        found = {
            (model, name): held
            for model, spec in registry.models.items()
            for name, variant in self.variants(spec).items()
            if (held := self._held(model, spec, name, variant)) is not None
        }
        sizes = {key: size for key, (size, _) in found.items()}
        hashes = {key: sha256 for key, (_, sha256) in found.items()}
        if known is not None and known[2:] == (sizes, hashes):
            sizes, hashes = known[2:]  # what was derived from them stays valid
        self._weights = (registry, now_s, sizes, hashes)
        return sizes, hashes

    def _unfit(self, registry: Registry) -> dict[Key, str]:
        """What does not run here, and why: by its container, or because every way to build it failed."""
        weights = self._weights_bytes(registry)
        if self._unfit_known is None or self._unfit_known[0] is not weights:
            failed = {
                (model, name): f"it cannot be built: {why}"
                for model, spec in registry.models.items()
                for name, variant in self.variants(spec).items()
                if variant.backend == MLC and MLC in self.backends and (model, name) not in weights
                if (why := self.compiled.why_unbuildable(model, spec, name, variant))
            }
            self._unfit_known = (weights, {**failed, **self._incompatible})
        return self._unfit_known[1]

    def _held(self, model: str, spec: ModelSpec, name: str, variant: Variant) -> tuple[int, str] | None:
        """Size and hash of what would be loaded; of a variant for MLC only once it is built."""
        if variant.backend == MLC:
            build = self._build(model, spec, name, variant)
            # A build's key is the hash of all that it is made of and for.
            return None if build is None else (build.parameters_bytes, build.key)
        size, path = self.store.weights_bytes(variant), self.store.path_of(model, variant)
        if size is None or path is None:
            return None
        return size, self.store.weights_sha256(variant) or files.stamp(path)

    def _build(self, model: str, spec: ModelSpec, name: str, variant: Variant) -> Build | None:
        if MLC not in self.backends:
            return None
        try:
            return self.compiled.build(model, spec, name, variant)
        except JetLLMError:  # what was pulled is damaged: `weights` says how
            return None

    def conditions(self) -> Conditions:
        """What measurements depend on now, of loaded models and of others."""
        registry, device = self._registry, self.device_now()
        (weights, hashes), engines = self._weights_here(registry), self._engine_versions()
        known = self._conditions
        if known is not None and known[0] is weights and known[1] is device and known[2] is engines:
            return known[3]
        found = Conditions(
            board=device.board,
            l4t=device.l4t,
            power_mode=device.power_mode,
            image=device.image,
            engines={
                (model, name): engines[variant.backend]
                for model, spec in registry.models.items()
                for name, variant in self.variants(spec).items()
                if variant.backend in engines
            },
            weights_sha256=hashes,
        )
        self._conditions = (weights, device, engines, found)
        return found

    def _engine_versions(self) -> dict[str, str]:
        """The engines that the next worker would run: an installation changes its directory's time."""
        known, now_s = self._engines, time.monotonic()
        if known is not None and now_s - known[0] < _LOOK_AGAIN_S:
            return known[2]
        marks = [files.signature(Path(directory)) for directory in sys.path]
        if known is not None and known[1] == marks:
            found = known[2]
        else:
            found = engine_versions()
            found = known[2] if known is not None and known[2] == found else found
        self._engines = (now_s, marks, found)
        return found

    def _variants_of(self, name: str) -> tuple[str, list[str]]:
        model, spec = self._registry.get(name)
        return model, list(self.variants(spec))

    def weights(self, model: str, variant_name: str, variant: Variant) -> Path:
        """Return sound weights, ready to be loaded.

        Raises:
            ModelNotPulledError: they are not on this machine.
            UnsafeArtifactError: they are malformed; they have been put aside.
        """
        if variant.backend == MLC:
            return self.compiled.path(model, self.registry.get(model)[1], variant_name, variant)
        path = self.store.path_of(model, variant)
        if path is None:
            self.forget_weights()
            self.raise_if_quarantined(model, variant_name)
            raise ModelNotPulledError(
                f"{model}/{variant_name}: its weights are not on this machine", hint=f"jetllm pull {model}"
            )
        if path.is_file():
            self._check(model, path)
        return path

    def chat_template(self, model: str, variant_name: str) -> str | None:
        """Return the template that a variant's weights bring along; ``None`` where there is none.

        Raises:
            UnsafeArtifactError: they are malformed.
        """
        variant = self.variant(self._registry, model, variant_name)
        path = None if variant is None else self.store.path_of(model, variant)
        return None if path is None else chat_template(path)

    def raise_if_unbuilt(self, model: str, variant_name: str) -> None:
        """Say of a variant for MLC whose checkpoint is here that it has to be built.

        Raises:
            ModelNotBuiltError: so it is.
        """
        spec = self.registry.get(model)[1]
        variant = self.variants(spec).get(variant_name)
        if variant is not None and variant.backend == MLC:
            self.compiled.raise_if_unbuilt(model, spec, variant_name, variant)

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
            self.forget_weights()
            error.hint = f"fetch it again: jetllm pull {model}"
            raise
        with self._lock:
            self._checked[path] = mark

    def distrust(self, model: str, variant_name: str, why: str) -> None:
        """After an engine refused weights: put them aside when they are not what they should be."""
        variant = self.variant(self.registry, model, variant_name)
        path = None if variant is None else self.store.path_of(model, variant)
        if variant is None or path is None or not path.is_file():
            return
        self.forget_weights()
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
        self.forget_weights()
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

    def describe(self, model: str, spec: ModelSpec) -> dict[str, Any]:
        """What `jetllm models` and the API show of one entry."""
        sizes, digests = self._weights_here(self.registry)
        variants = {}
        for name, variant in self.variants(spec).items():
            key, path = (model, name), self.store.path_of(model, variant)
            variants[name] = {
                "backend": variant.backend,
                "quantization": variant.quantization,
                "pulled": path is not None,
                "built": variant.backend != MLC or key in sizes,
                "bytes": sizes.get(key) or self.store.weights_bytes(variant),
                "digest": digests.get(key) or self.store.weights_sha256(variant),
                "modified_s": None if path is None else int(path.stat().st_mtime),
                "usable": variant.backend in self.backends,
                "memory_requirement": variant.memory_requirement or spec.memory_requirement,
                "quarantined": self.store.quarantine_reason(variant),
                **self.measurements.describe((model, name), spec.status),
            }
        return {
            "id": model,
            "name": spec.name,
            **model_status(spec.status, variants),
            "parameters": spec.parameters,
            "use_cases": list(spec.use_cases),
            "license": spec.license,
            "context_length": spec.context_length,
            "chat": spec.chat,
            "memory_requirement": spec.memory_requirement,
            "container": spec.container,
            "aliases": list(spec.aliases),
            "issue": spec.issue,
            "notes": spec.notes,
            "pulled": any(v["pulled"] for v in variants.values()),
            "usable": any(v["usable"] for v in variants.values()),
            "variants": variants,
        }
