"""The removal: of a model's weights and builds from the store, when nobody uses them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from inference.artifacts.holdings import unit_of
from inference.catalog import Catalog
from inference.errors import InvalidRequestError, ModelInUseError, ModelNotFoundError, ModelNotPulledError
from inference.planning import is_called
from inference.registry import Variant
from inference.registry.sources import FileSource
from inference.runtime.supervisor import Supervisor
from inference.settings import Settings


class Removal:
    """Deletes from the catalog's store, never a file of the user's."""

    def __init__(self, settings: Settings, catalog: Catalog, supervisor: Supervisor) -> None:
        self._settings = settings
        self._catalog = catalog
        self._supervisor = supervisor

    def delete(self, name: str, variant: str | None = None) -> dict[str, Any]:
        """Remove the weights and the builds of a model, or of one variant of it.

        What is also a variant's of another model stays, and counts nothing in *freed_bytes*. All that
        is to go is looked at before anything goes.

        Raises:
            ModelNotFoundError: there is no such model or variant.
            ModelInUseError: it is loaded, here or by another process, or the settings keep it.
            ModelNotPulledError: nothing of it is here.
            InvalidRequestError: all that is here of it are files of the user's.
        """
        model, spec = self._catalog.registry.get(name)
        every = self._catalog.variants(spec)
        if variant is not None and variant not in every:
            raise ModelNotFoundError(
                f"{model} has no variant {variant!r}",
                hint=f"its variants: {', '.join(every)}",
                param="variant",
            )
        chosen = {key: each for key, each in every.items() if variant in (None, key)}
        self._raise_if_kept(model)
        self._raise_if_loaded(model, chosen)
        units = {key: self._units(model, key, each) for key, each in chosen.items()}
        going = {unit for found in units.values() for unit in found} - self._of_others(model, chosen)
        if not any(units.values()):
            raise self._nothing_here(model, chosen)
        freed_bytes = self._discard(model, going)
        variants = [key for key, found in units.items() if found]
        return {"model": model, "variants": variants, "freed_bytes": freed_bytes}

    def _raise_if_kept(self, model: str) -> None:
        kept = {"pin": self._settings.pin, "preload": self._settings.preload}
        for setting, names in kept.items():
            if any(is_called(self._catalog.registry, model, each) for each in names):
                raise ModelInUseError(
                    f"{model} is kept here by the setting {setting}",
                    hint=f"take it out of the setting {setting} and start the daemon again",
                )

    def _raise_if_loaded(self, model: str, variants: dict[str, Variant]) -> None:
        for worker in self._supervisor.snapshot():
            if worker.model == model and worker.variant in variants and worker.pid is not None:
                raise ModelInUseError(
                    f"{model}/{worker.variant} is loaded",
                    hint=f"unload it first: jetllm unload {model}",
                    details={"variant": worker.variant},
                )

    def _units(self, model: str, name: str, variant: Variant) -> set[Path]:
        """Return what of the store belongs to a variant: weights, builds, and parts of a pull."""
        store = self._catalog.store
        builds = [b.path for b in self._catalog.compiled.all() if (b.model, b.variant) == (model, name)]
        return {unit_of(store.root, path) for path in (*store.places_of(variant), *builds)}

    def _of_others(self, model: str, chosen: dict[str, Variant]) -> set[Path]:
        """Return what is the content of other variants, too, be they of this model or of another."""
        return {
            unit
            for other, spec in self._catalog.registry.models.items()
            for key, each in self._catalog.variants(spec).items()
            if other != model or key not in chosen
            for unit in self._units(other, key, each)
        }

    def _discard(self, model: str, units: set[Path]) -> int:
        """Remove *units*, or none of them where one is in use; return their bytes."""
        store = self._catalog.store
        holdings = [each for each in store.usage() if each.path in units]
        if any(each.in_use for each in holdings):
            raise self._in_use(model)
        freed_bytes = 0
        try:
            for each in holdings:
                if not store.discard(each.path):  # somebody began to use it just now
                    raise self._in_use(model)
                freed_bytes += each.bytes
        finally:
            self._catalog.forget_weights()
        return freed_bytes

    def _in_use(self, model: str) -> ModelInUseError:
        return ModelInUseError(
            f"{model}: another process uses its weights, or fetches or builds them",
            hint=f"wait for it, or unload the model there: jetllm unload {model}",
        )

    def _nothing_here(self, model: str, chosen: dict[str, Variant]) -> Exception:
        if all(isinstance(each.source, FileSource) for each in chosen.values()):
            return InvalidRequestError(
                f"{model}: its weights are a file of yours, which is never deleted",
                hint="delete the file yourself, or take the model out of models.json",
            )
        return ModelNotPulledError(
            f"{model}: nothing of it is on this machine", hint="what is here: jetllm models", param="model"
        )
