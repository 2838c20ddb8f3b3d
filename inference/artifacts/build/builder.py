"""The builder: from an order to a build that stands, down the ladder of quantizations where it must."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from inference.artifacts import files
from inference.artifacts.build.identity import Engine
from inference.artifacts.build.memory import choose_shard_bytes
from inference.artifacts.build.order import Order
from inference.artifacts.build.process import StepMemoryError, StepStarvedError
from inference.artifacts.build.progress import WAIT, Course, Report, usual_s
from inference.artifacts.build.recipe import Recipe
from inference.artifacts.build.records import Build, Builds, Failure, failure_now
from inference.artifacts.build.stage import staging_bytes
from inference.artifacts.build.workshop import Prove, Workshop, check_shards, converted_bytes
from inference.artifacts.lint.checkpoint import read_checkpoint
from inference.artifacts.sources import disk
from inference.artifacts.store import Store
from inference.errors import (
    BackendTimeoutError,
    BuildFailedError,
    JetLLMError,
    LoadFailedError,
    WorkerCrashedError,
)

_LIBRARY_BYTES = 50 * 2**20
_RUNG_ERRORS = (BuildFailedError, LoadFailedError, WorkerCrashedError, BackendTimeoutError)


class Builder:
    """Builds for one engine into one store; safe for any number of threads and processes.

    The kernel kills a step's process when the thread that started it ends: whoever calls `build` waits.

    Args:
        engine: the mlc_llm that the children import.
        prove: tries a build; ``None`` when it cannot be tried on this machine.
        environment: of the children, whole.
        budget_bytes: memory that can be given away now; ``None`` where that is unknown.
    """

    def __init__(
        self,
        store: Store,
        engine: Engine,
        *,
        prove: Prove,
        environment: Mapping[str, str],
        budget_bytes: Callable[[], int | None],
    ) -> None:
        self.builds = Builds(store.root)
        self.engine = engine
        self._store = store
        self._prove = prove
        self._environment = environment
        self._budget_bytes = budget_bytes

    def find(self, order: Order) -> Build | None:
        """Return the best rung of *order* that stands."""
        for quantization in order.rungs:
            if (build := self.builds.find(self._recipe(order, quantization).key)) and build.is_whole:
                return build
        return None

    def build(
        self,
        order: Order,
        *,
        force: bool = False,
        portable: bool = False,
        progress: Report = lambda _: None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Build:
        """Return the build of *order*: the one that stands, or a new one.

        Args:
            force: build anew, also what stands and what is known to fail.
            portable: for another machine: converted, with no library, and not tried.
            cancelled: polled at least every 0.2 s.

        Raises:
            BuildFailedError: no rung holds; ``details`` has each one's reason.
            DoesNotFitError: there is too little memory, even for the slow way.
            InsufficientStorageError: the disk has no room.
            CancelledError: *cancelled* said so; nothing is left behind.
        """
        failures: list[Failure] = []
        for quantization in order.rungs:
            recipe = self._recipe(order, quantization)
            try:
                return self._rung(order, recipe, tuple(failures), force, portable, progress, cancelled)
            except _RungFailedError as error:
                failures.append(error.failure)
        raise _no_rung(order, failures, self.builds.log_path(recipe.key))

    def _recipe(self, order: Order, quantization: str) -> Recipe:
        return order.recipe(quantization, self.engine.identity)

    def _rung(
        self,
        order: Order,
        recipe: Recipe,
        failures: tuple[Failure, ...],
        force: bool,
        portable: bool,
        report: Report,
        cancelled: Callable[[], bool],
    ) -> Build:
        name = f"build-{recipe.key}"
        usual = usual_s(self.builds.all(), self._expected(order, recipe))
        course = Course(report, recipe.quantization, usual)
        stale = self._standing(recipe, portable) if force else None
        with (
            disk.explained(self._store.root, order.model),
            self._store.lock(name, cancelled=cancelled, waiting=lambda: course.begin(WAIT)),
        ):
            found = self._standing(recipe, portable)
            if found is not None and (stale is None or found.created_s != stale.created_s):
                return found  # it stood, or somebody built it while we waited
            if force:
                self.builds.forget_failure(recipe.key)
            elif known := self.builds.failure(recipe.key):
                raise _RungFailedError(known)
            directory = self._store.staging / name
            files.remove(directory)
            try:
                return self._make(directory, order, recipe, failures, portable, course, cancelled)
            finally:
                files.remove(directory)

    def _standing(self, recipe: Recipe, portable: bool) -> Build | None:
        build = self.builds.find(recipe.key)
        return build if build is not None and (portable or build.is_whole) else None

    def _make(
        self,
        directory: Path,
        order: Order,
        recipe: Recipe,
        failures: tuple[Failure, ...],
        portable: bool,
        course: Course,
        cancelled: Callable[[], bool],
    ) -> Build:
        log = self.builds.log_path(recipe.key)
        log.parent.mkdir(parents=True, exist_ok=True)
        log.unlink(missing_ok=True)
        workshop = Workshop(
            directory,
            order,
            recipe,
            log=log,
            environment=self._environment,
            budget_bytes=self._budget_bytes,
            course=course,
            cancelled=cancelled,
        )
        try:
            self._weights(workshop, order, recipe, directory)
            if not portable:
                workshop.compile()
            workshop.verify(None if portable else self._prove)
        except (StepMemoryError, StepStarvedError):
            raise  # no other quantization of this checkpoint takes less
        except _RUNG_ERRORS as error:
            failure = _failure(recipe, workshop.step, error)
            self.builds.note_failure(recipe.key, failure)
            raise _RungFailedError(failure) from error
        return self._publish(workshop, order, recipe, failures, portable)

    def _weights(
        self,
        workshop: Workshop,
        order: Order,
        recipe: Recipe,
        staging: Path,
    ) -> None:
        if order.converted is not None:
            disk.make_space(self._store, order.model, _LIBRARY_BYTES, staging)
            workshop.take_converted()
            return
        headers = read_checkpoint(order.checkpoint).headers
        shard_bytes = choose_shard_bytes(headers, self._budget_bytes(), recipe.quantization)
        expected_bytes = converted_bytes(headers, recipe.quantization)
        staged_bytes = staging_bytes(order.checkpoint, shard_bytes=shard_bytes)
        needed_bytes = staged_bytes + expected_bytes + _LIBRARY_BYTES
        disk.make_space(self._store, order.model, needed_bytes, staging)
        workshop.convert(shard_bytes, expected_bytes)

    def _publish(
        self,
        workshop: Workshop,
        order: Order,
        recipe: Recipe,
        failures: tuple[Failure, ...],
        portable: bool,
    ) -> Build:
        target = self.builds.path(recipe.key)
        build = Build(
            path=target,
            model=order.model,
            variant=order.variant,
            recipe=recipe,
            parameters_bytes=check_shards(workshop.out),
            portable=portable,
            steps=tuple(workshop.steps),
            changes=workshop.changes,
            text=workshop.text,
            failures=failures,
            created_s=time.time(),
        )
        workshop.seal(build.to_dict())
        if not self._store.discard(target):
            raise BuildFailedError(
                f"{order.model}/{order.variant}: the build that stands is in use",
                hint=f"unload it first: jetllm unload {order.model}",
            )
        self._store.commit(workshop.out, target)
        return replace(build, path=target)

    def _expected(self, order: Order, recipe: Recipe) -> int:
        return converted_bytes(read_checkpoint(order.checkpoint).headers, recipe.quantization)


class _RungFailedError(Exception):
    """A rung that does not hold, for the ladder."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(str(failure))
        self.failure = failure


class NoRungError(BuildFailedError):
    """No quantization holds, for reasons that stay."""

    cached = True


def _failure(recipe: Recipe, step: str, error: JetLLMError) -> Failure:
    final = error.cached if isinstance(error, BuildFailedError) else isinstance(error, LoadFailedError)
    return failure_now(recipe.quantization, step, error.message, error.hint, final=final)


def _no_rung(order: Order, failures: list[Failure], log: Path) -> BuildFailedError:
    lines = "\n".join(f"  {failure}" for failure in failures)
    kind = NoRungError if all(failure.final for failure in failures) else BuildFailedError
    return kind(
        f"{order.model}/{order.variant} cannot be built:\n{lines}",
        hint=failures[0].hint
        or f"what mlc_llm said is in {log.name}; jetllm lint {order.model} looks at the checkpoint, and "
        "another variant may run: jetllm models",
        details={
            "failures": [
                {"quantization": f.quantization, "step": f.step, "reason": f.reason} for f in failures
            ],
        },
    )
