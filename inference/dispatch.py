"""The dispatch: which worker a request gets, chosen and leased in one step."""

from __future__ import annotations

import dataclasses
from typing import Any

from inference import views
from inference.catalog import Catalog
from inference.choice import arguments, check_use, resolved
from inference.decision_log import DecisionLog
from inference.errors import JetLLMError, LoadFailedError, ModelNotPulledError
from inference.generation import GenerateRequest
from inference.planning import plan_of, variant_of
from inference.registry import ModelSpec
from inference.runtime.calibration import Calibration
from inference.runtime.entry import Lease, WorkerStatus
from inference.runtime.plan import Plan
from inference.runtime.supervisor import Supervisor
from inference.runtime.worker import Worker
from inference.selection.selector import Selection, World, select
from inference.settings import Settings
from inference.stream import Deadline
from inference.tallies import Tallies


class Dispatch:
    """Joins the selector, which decides, and the supervisor, which carries out.

    Every method may be called from any thread.
    """

    def __init__(
        self, settings: Settings, catalog: Catalog, supervisor: Supervisor, calibration: Calibration
    ) -> None:
        self._settings = settings
        self._catalog = catalog
        self._supervisor = supervisor
        self._calibration = calibration
        self._decisions = DecisionLog(settings.decision_log)
        self.tallies = Tallies(supervisor.snapshot)

    def acquire(self, request: GenerateRequest) -> tuple[Selection, Lease]:
        """Choose what is to serve *request* now and hold a place in it; `wait` for its worker.

        A thread that holds a lease must not ask for a second one: with one slot it would wait for itself.

        Raises:
            JetLLMError: nothing can serve it.
        """
        request = resolved(request)
        with self._supervisor.exclusive() as workers, self.tallies.deciding() as admitted:
            world, selection = self._choose(request, workers)
            lease = self._supervisor.apply(self._plan(world, selection), request.keep_alive_s)
            admitted.append(lease)
        return selection, lease

    def wait(self, selection: Selection, lease: Lease, guard: Deadline) -> Worker:
        """Return the worker of *lease* once it is ready and it is this lease's turn.

        Raises:
            CancelledError: the caller left.
            JetLLMError: it did not load.
        """
        try:
            with self.tallies.waiting(selection.model, lease):
                return self._supervisor.wait(lease, guard, guard.deadline_s)
        except LoadFailedError as error:
            self._catalog.distrust(selection.model, selection.variant, error.message)
            raise

    def select(self, request: GenerateRequest, *, context_tokens: int | None = None) -> Selection:
        """Choose without loading anything; what is chosen may not be on this machine yet."""
        wanted = arguments(request, self._settings.speed, context_tokens)
        return select(self._world(self._supervisor.snapshot()), **wanted)

    def check_use(self, name: str | None, *, embeds: bool) -> None:
        """Refuse a model that is named for what it does not do; `inference.choice.check_use`."""
        check_use(self._catalog.registry, name, embeds=embeds)

    def spec(self, selection: Selection) -> ModelSpec | None:
        """Return what the registry says of the model that was chosen; it may have been read anew since."""
        return self._catalog.registry.models.get(selection.model)

    def _world(self, workers: tuple[WorkerStatus, ...]) -> World:
        world = self._catalog.world([views.resident(worker) for worker in workers])
        return dataclasses.replace(
            world,
            variant_corrections=self._calibration.variant_corrections(world.weights_bytes or {}),
            backend_corrections=self._calibration.backend_corrections(),
        )

    def _choose(self, request: GenerateRequest, workers: tuple[WorkerStatus, ...]) -> tuple[World, Selection]:
        wanted = arguments(request, self._settings.speed)
        world, selection = self._logged_choice(workers, wanted)
        if not selection.pulled:
            # Another process may have brought weights this very moment.
            self._catalog.forget_weights()
            world, selection = self._logged_choice(workers, wanted)
        if not selection.pulled:
            raise self._not_pulled(request, selection)
        return world, selection

    def _logged_choice(
        self, workers: tuple[WorkerStatus, ...], wanted: dict[str, Any]
    ) -> tuple[World, Selection]:
        world = self._world(workers)
        try:
            selection = select(world, **wanted)
        except JetLLMError:
            self._decisions.append(world, wanted, None)
            raise
        self._decisions.append(world, wanted, selection)
        return world, selection

    def _not_pulled(self, request: GenerateRequest, selection: Selection) -> ModelNotPulledError:
        model = selection.model
        if request.model not in (None, "auto"):
            self._catalog.raise_if_quarantined(model, request.variant)
            self._catalog.raise_if_unbuilt(model, selection.variant)
            return ModelNotPulledError(
                f"{model}: its weights are not on this machine",
                hint=selection.pull_command,
                param="model",
                details={"variant": selection.variant},
            )
        return views.nothing_pulled(selection)

    def _plan(self, world: World, selection: Selection) -> Plan:
        variant = variant_of(world, selection)
        weights = self._catalog.weights(selection.model, selection.variant, variant)
        return plan_of(world, selection, weights, self._settings)
