"""Models: is the registry valid, does the evidence count, are the weights what they should be."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from inference.artifacts.gguf import check_gguf
from inference.artifacts.store import Store
from inference.doctor.finding import Finding, Scene, fail, ok, warn
from inference.errors import RegistryError, UnsafeArtifactError
from inference.measurements import FILE
from inference.registry import Registry, Variant, load_registry
from inference.registry.evidence_file import load_evidence

_QUICK_BYTES = 256 * 2**20  # about half a second of hashing
_SHOWN = 3


def registry(scene: Scene) -> Iterator[Finding]:
    """Is models.json what it should be?"""
    path = scene.settings.registry_path
    try:
        found = load_registry(path)
    except RegistryError as error:
        fix = error.hint or f"mend {path}; its schema: jetllm models schema"
        yield fail(error.message, fix)
    else:
        yield ok(f"{path}: {len(found.models)} models")


def evidence(scene: Scene) -> Iterator[Finding]:
    """Are the measurements of this machine whole?"""
    path = scene.settings.state_path / FILE
    found = load_evidence(path)
    if found.skipped:
        shown = "; ".join(found.skipped[:_SHOWN])
        more = f"; {len(found.skipped)} in all" if len(found.skipped) > _SHOWN else ""
        yield warn(
            f"not used: {shown}{more}", f"remove those lines of {path}, and measure anew: jetllm check"
        )
    else:
        yield ok(f"{len(found.records)} measurements")


def weights(scene: Scene) -> Iterator[Finding]:
    """Are the weights that are here the ones they should be?"""
    try:
        models = load_registry(scene.settings.registry_path)
    except RegistryError:
        return  # told above
    store = Store(scene.settings.cache_path)
    here = unhashed = 0
    for model, name, variant in _variants(models):
        reason = store.quarantine_reason(variant)
        if reason is not None:
            yield fail(f"{model}/{name}: put aside: {reason}", f"jetllm pull {model} --variant {name}")
            continue
        path = store.path_of(model, variant)
        if path is None:
            continue
        here += 1
        size = store.weights_bytes(variant) or 0
        hashed = scene.deep or size <= _QUICK_BYTES
        unhashed += not hashed
        error = _unsound(scene, store, path, variant, f"{model}/{name}", size if hashed else None)
        if error is not None:
            fix = f"jetllm rm {model} --variant {name} && jetllm pull {model} --variant {name}"
            yield fail(f"{model}/{name}: {error}", fix)
    note = f"; of {unhashed} only the beginning was looked at (all: --deep)" if unhashed else ""
    yield ok(f"{here} looked at{note}") if here else ok("none are here yet: jetllm pull MODEL")


def _variants(models: Registry) -> Iterator[tuple[str, str, Variant]]:
    for model, spec in models.models.items():
        for name, variant in spec.variants.items():
            yield model, name, variant


def _unsound(
    scene: Scene, store: Store, path: Path, variant: Variant, name: str, hash_bytes: int | None
) -> str | None:
    """Say what is wrong with weights: their form, and where *hash_bytes* says so their content."""
    try:
        if variant.backend == "llamacpp" and path.is_file():
            check_gguf(path, subject=name)
        if hash_bytes is not None:
            done_bytes = 0

            def advance(count: int) -> None:
                nonlocal done_bytes
                done_bytes += count
                scene.progress(name, done_bytes, hash_bytes)

            intact = store.is_intact(path, variant, advance)
            return None if intact else "its SHA-256 is not the one it should be: damaged or exchanged"
    except UnsafeArtifactError as error:
        return error.message
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return None
