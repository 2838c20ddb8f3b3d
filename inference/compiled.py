"""Compiled models: which variants for MLC are built for this machine, and what to order where not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from inference.artifacts import files
from inference.artifacts.build import Build, Builds, Engine, Order, Target, find_engine, order_for, target_of
from inference.artifacts.store import Store
from inference.device.detect import Device
from inference.errors import BuildFailedError, MissingDependencyError, ModelNotBuiltError, ModelNotPulledError
from inference.registry import ModelSpec
from inference.registry.spec import Variant

BACKEND = "mlc"
_GPU_FILES = ("nvidia0", "nvhost-gpu", "nvgpu", "nvhost-ctrl-gpu", "nvmap")


class Compiled:
    """The builds of one store, as this machine's MLC can use them.

    Args:
        mlc_device: "cuda" or "cpu"; ``None`` leaves the choice to what is in *devices*.
    """

    def __init__(
        self,
        store: Store,
        device: Device,
        *,
        slots: int,
        mlc_device: str | None,
        devices: Path = Path("/dev"),
    ) -> None:
        self.builds = Builds(store.root)
        self.device = mlc_device or default_device(devices)
        self.target: Target = target_of(device, self.device)
        self._store = store
        self._slots = slots
        self._engine: Engine | None = None
        self._listed: tuple[dict[str, Any] | None, tuple[Build, ...]] | None = None
        self._orders: dict[tuple[str, str, Path], tuple[Variant, Order]] = {}

    @property
    def engine(self) -> Engine:
        """The MLC of this machine.

        Raises:
            MissingDependencyError: there is none.
        """
        if self._engine is None:
            self._engine = find_engine(self._store.root)
        return self._engine

    def order(self, model: str, spec: ModelSpec, name: str, variant: Variant) -> Order:
        """Return what to order of the builder for a variant.

        Where the checkpoint is not here, weights that came converted in a bundle take its place.

        Raises:
            ModelNotPulledError: neither is here.
            BuildFailedError: what was pulled is no checkpoint.
        """
        checkpoint = self._store.path_of(model, variant)
        if checkpoint is None:
            return self._order_from_bundle(model, spec, name, variant)
        known = self._orders.get((model, name, checkpoint))
        if known is not None and known[0] == variant:
            return known[1]
        order = self._order(model, spec, name, variant, checkpoint)
        self._orders[model, name, checkpoint] = (variant, order)
        return order

    def _order_from_bundle(self, model: str, spec: ModelSpec, name: str, variant: Variant) -> Order:
        imported = self._imported(model, name)
        if imported is None:
            raise ModelNotPulledError(
                f"{model}/{name}: its checkpoint is not on this machine",
                hint=f"jetllm pull {model} --variant {name}",
            )
        order = self._order(model, spec, name, variant, imported.path)
        return replace(order, content=imported.recipe.checkpoint)

    def _imported(self, model: str, name: str) -> Build | None:
        """Return what came in a bundle for a variant: the newest, whole or not."""
        found = [build for build in self.all() if (build.model, build.variant) == (model, name)]
        return max(found, key=lambda build: build.created_s, default=None)

    def _order(self, model: str, spec: ModelSpec, name: str, variant: Variant, checkpoint: Path) -> Order:
        return order_for(
            self._store,
            model,
            spec,
            name,
            variant,
            checkpoint=checkpoint,
            slots=self._slots,
            target=self.target,
            device=self.device,
        )

    def build(self, model: str, spec: ModelSpec, name: str, variant: Variant) -> Build | None:
        """Return the build that would be loaded for a variant; ``None`` where there is none.

        Only one that this very engine made, for this very machine, counts.
        """
        try:
            order = self.order(model, spec, name, variant)
            recipes = [order.recipe(quantization, self.engine.identity) for quantization in order.rungs]
        except (ModelNotPulledError, MissingDependencyError):
            return None
        found = (self.builds.find(recipe.key) for recipe in recipes)
        return next((build for build in found if build is not None and build.is_whole), None)

    def path(self, model: str, spec: ModelSpec, name: str, variant: Variant) -> Path:
        """Return the directory that the engine loads.

        Raises:
            ModelNotPulledError: there is nothing to build it from.
            ModelNotBuiltError: there is no build of it.
        """
        build = self.build(model, spec, name, variant)
        if build is not None:
            return build.path
        self.order(model, spec, name, variant)
        raise _not_built(model, name)

    def raise_if_unbuilt(self, model: str, spec: ModelSpec, name: str, variant: Variant) -> None:
        """Tell what is not here from what only has to be built.

        Raises:
            ModelNotBuiltError: the checkpoint of the variant is here, and no build of it.
            BuildFailedError: there will be none: all that could be tried was tried.
        """
        try:
            self.order(model, spec, name, variant)
        except ModelNotPulledError:
            return
        if self.build(model, spec, name, variant) is None:
            if why := self.why_unbuildable(model, spec, name, variant):
                raise BuildFailedError(
                    f"{model}/{name} cannot be built: {why}",
                    hint=f"try again all the same: jetllm build {model} --variant {name} --force",
                )
            raise _not_built(model, name)

    def why_unbuildable(self, model: str, spec: ModelSpec, name: str, variant: Variant) -> str | None:
        """Say why no quantization of a variant holds here, if all were tried; else ``None``."""
        try:
            order = self.order(model, spec, name, variant)
            recipes = [order.recipe(quantization, self.engine.identity) for quantization in order.rungs]
        except (ModelNotPulledError, MissingDependencyError):
            return None
        except BuildFailedError as error:
            return error.message
        failures = [self.builds.failure(recipe.key) for recipe in recipes]
        return "; ".join(map(str, failures)) if all(failures) else None

    def all(self) -> tuple[Build, ...]:
        """Every build in the store, this machine's or not."""
        mark = files.signature(self.builds.directory)
        if self._listed is None or self._listed[0] != mark:
            self._listed = (mark, tuple(self.builds.all()))
        return self._listed[1]


def _not_built(model: str, name: str) -> ModelNotBuiltError:
    return ModelNotBuiltError(
        f"{model}/{name}: its checkpoint is here, but it is not built for this machine",
        hint=f"jetllm build {model} --variant {name}",
        details={"variant": name},
    )


def default_device(devices: Path) -> str:
    """Return "cuda" where there is an NVIDIA GPU; mlc_llm's own "auto" would try every API there is."""
    return "cuda" if any((devices / name).exists() for name in _GPU_FILES) else "cpu"
