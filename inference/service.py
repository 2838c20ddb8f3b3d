"""The use cases: generate, select, load, unload, pull, status; `build_service` joins the parts."""

from __future__ import annotations

import dataclasses
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import inference
from inference import views
from inference.artifacts.build import BuildProgress
from inference.artifacts.sources import Progress
from inference.building import Building
from inference.canary import Canary
from inference.catalog import Catalog
from inference.device.detect import detect
from inference.dispatch import Dispatch
from inference.embedding import Embedding
from inference.errors import (
    BackendTimeoutError,
    BuildFailedError,
    JetLLMError,
    ModelNotBuiltError,
    RegistryError,
)
from inference.gauges import Gauges
from inference.generating import Generating
from inference.generation import Embeddings, EmbedRequest, GenerateRequest
from inference.planning import calibration_of, is_called, limits_of
from inference.registry import Registry, load_registry
from inference.removal import Removal
from inference.runtime.entry import State, WorkerStatus
from inference.runtime.supervisor import Supervisor
from inference.selection.selector import Selection
from inference.settings import Settings
from inference.stream import Deadline, GenerationStream

logger = logging.getLogger(__name__)


def _never() -> bool:
    return False


class Service:
    """What JetLLM can do, for the API, the command line and the library alike.

    Every method may be called from any thread. `close` it, or its workers live on until exit.
    """

    def __init__(self, settings: Settings, catalog: Catalog) -> None:
        self.settings = settings
        self._catalog = catalog
        self._gauges = Gauges(settings, catalog.device)
        calibration = calibration_of(settings)
        self.building = Building(settings, catalog)
        self.measurements = catalog.measurements
        self._supervisor = Supervisor(
            limits_of(settings), budget=catalog.budget_bytes, calibration=calibration
        )
        self.canary = Canary(self._supervisor.idle, self._supervisor.look, settings.canary_interval_s)
        self._dispatch = Dispatch(settings, catalog, self._supervisor, calibration)
        self._generating = Generating(settings, self._dispatch)
        self._embedding = Embedding(settings, self._dispatch)
        self._removal = Removal(settings, catalog, self._supervisor)
        self._registry_error: str | None = None
        self._started_s = time.monotonic()
        self._preloading: dict[str, JetLLMError | None] = dict.fromkeys(settings.preload)
        self._preloaded = threading.Event()
        if not settings.preload:
            self._preloaded.set()

    @property
    def registry(self) -> Registry:
        """The registry in force."""
        return self._catalog.registry

    def generate(self, request: GenerateRequest, cancelled: Callable[[], bool] = _never) -> GenerationStream:
        """Start generating; returns with the first text, so that earlier errors are raised here.

        Args:
            cancelled: looked at every 0.1 s while waiting and at every chunk; when it returns
                true the work is stopped and `CancelledError` raised.

        Raises:
            JetLLMError: whatever keeps the request from its first token.
        """
        return self._generating.start(request, cancelled)

    def embed(self, request: EmbedRequest, cancelled: Callable[[], bool] = _never) -> Embeddings:
        """Return a vector of unit length for each input; `Embedding.embed`."""
        return self._embedding.embed(request, cancelled)

    def tokenize(
        self, model: str | None, text: str, cancelled: Callable[[], bool] = _never
    ) -> dict[str, Any]:
        """Return "model", "variant" and the "tokens" of *text*, to which nothing is added."""
        return self._embedding.tokenize(model, text, cancelled)

    def detokenize(
        self, model: str | None, ids: Sequence[int], cancelled: Callable[[], bool] = _never
    ) -> dict[str, Any]:
        """Return "model", "variant" and the "text" of token ids."""
        return self._embedding.detokenize(model, ids, cancelled)

    def count_tokens(
        self, request: GenerateRequest, cancelled: Callable[[], bool] = _never
    ) -> dict[str, Any]:
        """Return "model", "variant", the "tokens" that it would read of *request*, and "context_tokens"."""
        return self._embedding.count_tokens(request, cancelled)

    def select(self, request: GenerateRequest, *, context_tokens: int | None = None) -> Selection:
        """Choose without loading anything; what is chosen may not be on this machine yet.

        Args:
            context_tokens: what the request needs; by default the setting, or less where that fits.
        """
        return self._dispatch.select(request, context_tokens=context_tokens)

    def load(
        self,
        name: str,
        *,
        variant: str | None = None,
        pin: bool | None = None,
        keep_alive_s: float | None = None,
        building: Callable[[BuildProgress], None] = lambda _: None,
        cancelled: Callable[[], bool] = _never,
    ) -> dict[str, Any]:
        """Load a model and wait until it can generate; return its row of `status`.

        A model for MLC is built first when it is not; *building* is told how far that is.
        """
        guard = Deadline(cancelled, float("inf"))
        request = GenerateRequest(model=name, variant=variant, keep_alive_s=keep_alive_s)
        try:
            selection, lease = self._dispatch.acquire(request)
        except ModelNotBuiltError as error:
            chosen = error.details["variant"]
            self.build_or_pass(name, variant, chosen, progress=building, cancelled=cancelled)
            selection, lease = self._dispatch.acquire(request)
        try:
            self._dispatch.wait(selection, lease, guard)
        finally:
            lease.release()
        key = (selection.model, selection.variant)
        for preload in self._preloading:
            if is_called(self.registry, selection.model, preload):
                self._preloading[preload] = None  # what failed at the start has been mended
        if pin is not None:
            self._supervisor.pin(key, pin)
        row = next((w for w in self._supervisor.snapshot() if w.key == key), None)
        return views.row(row) if row else {"model": key[0], "variant": key[1], "state": "absent"}

    def build_or_pass(
        self,
        name: str,
        wanted: str | None,
        variant: str,
        *,
        progress: Callable[[BuildProgress], None] = lambda _: None,
        cancelled: Callable[[], bool] = _never,
    ) -> None:
        """Build *variant*; where nothing holds and none was *wanted*, leave it to the next backend."""
        try:
            self.build(name, variant=variant, progress=progress, cancelled=cancelled)
        except BuildFailedError as error:
            if wanted is not None or not error.cached:
                raise
            self._catalog.forget_weights()
            logger.warning("%s\nanother backend's variant is taken", error.message)

    def build(
        self,
        name: str,
        *,
        variant: str | None = None,
        force: bool = False,
        board: str | None = None,
        progress: Callable[[BuildProgress], None] = lambda _: None,
        cancelled: Callable[[], bool] = _never,
    ) -> dict[str, Any]:
        """Convert and compile a pulled model for MLC, once; return its record and its path.

        Without *variant* it is the first for MLC. It may take minutes; the calling thread waits.
        """
        build = self.building.build(
            name, variant, force=force, board=board, progress=progress, cancelled=cancelled
        )
        return {**build.to_dict(), "path": str(build.path)}

    def unload(self, name: str) -> dict[str, Any]:
        """Let a model finish its requests and end its processes; return what that gave back."""
        model, _ = self.registry.get(name)
        loaded = [w for w in self._supervisor.snapshot() if w.model == model and w.pid is not None]
        before = self._catalog.memory().available_bytes
        for worker in loaded:
            if not self._supervisor.unload(worker.key, self.settings.request_timeout_s):
                raise BackendTimeoutError(
                    f"{model}: still serving after {self.settings.request_timeout_s:.0f} s"
                )
        after = self._catalog.memory().available_bytes
        freed = None if before is None or after is None or not loaded else max(0, after - before)
        variants = [worker.variant for worker in loaded]
        return {"model": model, "variants": variants, "state": "absent", "freed_bytes": freed}

    def pull(
        self,
        name: str,
        *,
        variant: str | None = None,
        from_path: Path | None = None,
        progress: Callable[[Progress], None] = lambda _: None,
        cancelled: Callable[[], bool] = _never,
    ) -> dict[str, Any]:
        """Bring a model's weights onto this machine, from its source or from *from_path*.

        Without *variant* they are those of the first variant that runs here.
        """
        model, chosen, path = self._catalog.pull(
            name, variant, from_path=from_path, progress=progress, cancelled=cancelled
        )
        return {"model": model, "variant": chosen, "path": str(path)}

    def delete(self, name: str, *, variant: str | None = None) -> dict[str, Any]:
        """Remove what is on this machine of a model, or of one variant; `Removal.delete`."""
        return self._removal.delete(name, variant)

    def chat_template(self, name: str, variant: str) -> str | None:
        """Return the Jinja template that the weights of *variant* bring along, if they do."""
        return self._catalog.chat_template(self.registry.get(name)[0], variant)

    def models(self) -> list[dict[str, Any]]:
        """Every registered model with what is known of it here."""
        registry, workers = self.registry, self._supervisor.snapshot()
        return [self._model(registry, key, workers) for key in registry.models]

    def model(self, name: str) -> dict[str, Any]:
        """One entry of `models`; *name* may be an alias."""
        registry = self.registry
        return self._model(registry, registry.get(name)[0], self._supervisor.snapshot())

    def _model(self, registry: Registry, key: str, workers: tuple[WorkerStatus, ...]) -> dict[str, Any]:
        states = [worker.state.value for worker in workers if worker.model == key]
        created = int(registry.path.stat().st_mtime) if registry.path.exists() else 0
        described = self._catalog.describe(key, registry.models[key])
        return {**described, "state": states[0] if states else "absent", "created": created}

    def reload_registry(self) -> bool:
        """Read the registry's file again and put it in force; return whether anything changed.

        A bad file leaves the old registry in force, whole, and its errors in `status`. What is loaded
        and no longer registered so finishes its requests and leaves.
        """
        try:
            registry = load_registry(self.registry.path)
        except RegistryError as error:
            self._registry_error = error.message.replace(f"{self.registry.path.parent}/", "")
            logger.error("the registry stays as it was:\n%s", error.message)
            return False
        self._registry_error = None
        former = self.registry
        if registry.digest == former.digest:
            return False
        self._catalog.replace_registry(registry)
        logger.info("the registry was read again: %d models", len(registry.models))
        for worker in self._supervisor.snapshot():
            variants = (self._catalog.variant(r, worker.model, worker.variant) for r in (former, registry))
            if next(variants) != next(variants):
                self._supervisor.unload((worker.model, worker.variant), 0.0)
        return True

    def status(self) -> dict[str, Any]:
        """A picture of now; takes no lock that work holds."""
        workers = self._supervisor.snapshot()
        return {
            "version": inference.__version__,
            "pid": os.getpid(),
            "uptime_s": time.monotonic() - self._started_s,
            "state": "draining" if self._supervisor.draining else "serving",
            "queue": {
                "waiting": sum(worker.waiting for worker in workers),
                "running": sum(worker.leases - worker.waiting for worker in workers),
            },
            "registry": {
                "models": len(self.registry.models),
                "digest": self.registry.digest,
                "error": self._registry_error,
            },
            "memory": dataclasses.asdict(self._catalog.memory()),
            "workers": [views.row(worker) for worker in workers],
            "counters": views.counters(self._supervisor.loads, self._supervisor.restarts)
            | self._dispatch.tallies.rows(),
        }

    def device(self) -> dict[str, Any]:
        """What this machine is, and how it is now."""
        return self._gauges.picture(self._catalog.device_now(), self._catalog.memory())

    def preload(self) -> None:
        """Load what the settings name, in their order; a failure is kept for `readiness`."""
        for name in self.settings.preload:
            try:
                self.load(name)
            except JetLLMError as error:
                self._preloading[name] = error
        self._preloaded.set()

    def readiness(self) -> tuple[bool, dict[str, Any]]:
        """Whether work can be accepted, and what it waits for."""
        if self._supervisor.draining:
            return False, views.readiness("draining")
        failed = [error for error in self._preloading.values() if error is not None]
        if failed:
            return False, views.readiness("failed", reason=failed[0].message)
        if not self._preloaded.is_set():
            loading = [w for w in self._supervisor.snapshot() if w.state is State.STARTING]
            percent = 100 * (loading[0].progress or 0.0) if loading else None
            phase = loading[0].model if loading else None
            return False, views.readiness("loading", phase=phase, percent=percent)
        silent = self.canary.failure()
        if silent is not None:
            return False, views.readiness("failed", phase="canary", reason=silent)
        return True, views.readiness("ready")

    def begin_drain(self) -> None:
        """Accept no new work; a signal handler may call this."""
        self._supervisor.begin_drain()

    def drain(self, timeout_s: float) -> bool:
        """Accept no new work; return whether the accepted work ended in time."""
        return self._supervisor.drain(timeout_s)

    def close(self) -> None:
        """Stop every worker, and what looks after them and reads the gauges."""
        self.canary.stop()
        self._supervisor.close()
        self.canary.close()
        self._gauges.close()


def build_service(settings: Settings) -> Service:
    """Join registry, device, store and supervisor.

    Raises:
        RegistryError: models.json is not what it should be.
    """
    registry = load_registry(settings.registry_path)
    for name in (*settings.preload, *settings.pin):
        registry.get(name)
    catalog = Catalog(settings, registry, detect())
    catalog.store.sweep()
    return Service(settings, catalog)
