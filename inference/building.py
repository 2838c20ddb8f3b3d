"""Building: from a pulled checkpoint to a build that this machine's worker has loaded and heard speak."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from inference.artifacts.build import (
    Build,
    Builder,
    BuildProgress,
    Order,
    Proof,
    Target,
    export_bundle,
    import_bundle,
)
from inference.artifacts.sources import Progress
from inference.backends import LoadOptions
from inference.catalog import Catalog
from inference.compiled import BACKEND
from inference.device.detect import compute_capability, known_boards
from inference.errors import (
    BackendTimeoutError,
    CancelledError,
    DoesNotFitError,
    InvalidRequestError,
    LoadFailedError,
    MissingDependencyError,
    ModelNotBuiltError,
    ModelNotFoundError,
    WorkerCrashedError,
)
from inference.generation import GenerateRequest, Message
from inference.registry import ModelSpec, Variant
from inference.runtime.worker import Worker, WorkerSpec
from inference.selection.estimate import estimate_memory
from inference.settings import Settings, worker_environment

_ANSWER_TOKENS = 48
_TRY_CONTEXT_TOKENS = 512
_POLL_S = 0.05
_QUESTION = "What is the capital of France? Answer in one sentence."
_BEGINNING = "The capital of France is"


class Building:
    """Builds variants of the catalog's registry into its store."""

    def __init__(self, settings: Settings, catalog: Catalog) -> None:
        self._settings = settings
        self._catalog = catalog

    def build(
        self,
        name: str,
        variant_name: str | None,
        *,
        force: bool = False,
        board: str | None = None,
        progress: Callable[[BuildProgress], None] = lambda _: None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Build:
        """Return the build of a pulled variant, made now if there is none.

        Args:
            board: another machine; unless this one has its GPU and processor, weights alone are
                converted, and the library is left for it.

        Raises:
            ModelNotFoundError, InvalidRequestError: there is no such variant, or it needs no build.
            ModelNotPulledError: its checkpoint is not here.
            MissingDependencyError: there is no mlc_llm here.
            BuildFailedError, DoesNotFitError, InsufficientStorageError, CancelledError: as the builder's.
        """
        model, spec, chosen, variant = self._variant(name, variant_name)
        compiled = self._catalog.compiled
        order = compiled.order(model, spec, chosen, variant)
        builder = self._builder()
        portable = False
        if board is not None:
            target = board_target(board, compiled.target)
            portable = not can_compile(compiled.target, target)
            order = replace(order, target=target)
        with self._held(order.checkpoint):
            build = builder.build(
                order, force=force, portable=portable, progress=progress, cancelled=cancelled
            )
        self._catalog.forget_weights()
        return build

    def export(
        self, name: str, variant_name: str | None, output: Path | None, progress: Callable[[Progress], None]
    ) -> dict[str, Any]:
        """Write the build of a variant, this machine's or another's, into one file.

        Raises:
            ModelNotBuiltError: there is no build of it.
        """
        model, _ = self._catalog.registry.get(name)
        found = [
            build
            for build in self._catalog.compiled.all()
            if build.model == model and variant_name in (None, build.variant)
        ]
        if not found:
            raise ModelNotBuiltError(
                f"{model}: nothing is built of {variant_name or 'any variant'}",
                hint=f"jetllm build {model}",
                details={"variant": variant_name},
            )
        newest = max(found, key=lambda build: build.created_s)
        path = (output or Path(f"{model.replace('/', '--')}.jetllm.tar")).absolute()
        with self._catalog.store.hold(newest.path):
            size = export_bundle(newest, path, progress)
        return {"model": model, "variant": newest.variant, "path": str(path), "bytes": size}

    def take(self, path: Path, *, leave_library: bool, progress: Callable[[Progress], None]) -> Build:
        """Take the build of a bundle into the store; `inference.artifacts.build.import_bundle`."""
        compiled = self._catalog.compiled
        try:
            engine = compiled.engine.identity
        except MissingDependencyError:
            engine = None
        build = import_bundle(
            path,
            self._catalog.store,
            engine=engine,
            target=compiled.target,
            leave_library=leave_library,
            report=progress,
        )
        self._catalog.forget_weights()
        return build

    def mlc_variant(self, name: str) -> str:
        """Return the variant of a model that is built when none is named."""
        return self._variant(name, None)[2]

    def _held(self, checkpoint: Path) -> AbstractContextManager[Any]:
        """Keep a checkpoint of the store from being removed to make room; a user's own never is."""
        store = self._catalog.store
        return store.hold(checkpoint) if checkpoint.is_relative_to(store.root) else nullcontext()

    def _builder(self) -> Builder:
        return Builder(
            self._catalog.store,
            self._catalog.compiled.engine,
            prove=self._prove,
            environment=worker_environment(),
            budget_bytes=self._catalog.budget_bytes,
        )

    def _prove(self, path: Path, order: Order, cancelled: Callable[[], bool]) -> Proof:
        """Try a build, if there is the memory for it.

        Raises:
            DoesNotFitError: there is not.
            JetLLMError: of `prove`.
        """
        model, spec = self._catalog.registry.get(order.model)
        variant = self._catalog.variants(spec)[order.variant]
        needed_bytes = estimate_memory(
            spec,
            variant,
            context_tokens=min(_TRY_CONTEXT_TOKENS, order.context_tokens),
            slots=1,
            prompt_cache_bytes=0,
            weights_bytes=sum(each.stat().st_size for each in path.glob("params_shard_*")),
            prefill_batch_tokens=order.chunk_tokens,
        ).total_bytes
        budget_bytes = self._catalog.budget_bytes()
        if budget_bytes is not None and needed_bytes > budget_bytes:
            raise DoesNotFitError(
                f"{model}: to try what was built needs {needed_bytes / 2**20:,.0f} MiB; "
                f"{budget_bytes / 2**20:,.0f} MiB can be given to it now",
                hint="unload models first (jetllm ps), or choose a smaller model",
                details={"needed_bytes": needed_bytes, "budget_bytes": budget_bytes},
            )
        return prove(path, order, self._settings, cancelled)

    def _variant(self, name: str, variant_name: str | None) -> tuple[str, ModelSpec, str, Variant]:
        model, spec = self._catalog.registry.get(name)
        every = self._catalog.variants(spec)
        variants = {key: each for key, each in every.items() if each.backend == BACKEND}
        if variant_name is None and variants:
            variant_name = next(iter(variants))
        if variant_name in variants:
            return model, spec, variant_name, variants[variant_name]
        if variant_name in every:
            raise InvalidRequestError(
                f"{model}/{variant_name} runs on {every[variant_name].backend}: it needs no build",
                hint=f"jetllm run --model {model} --variant {variant_name} PROMPT",
                param="variant",
            )
        raise ModelNotFoundError(
            f"{model} has no variant {variant_name!r} for MLC",
            hint=f"its variants for MLC: {', '.join(variants) or 'none'}",
        )


def can_compile(here: Target, there: Target) -> bool:
    """Whether a library that is compiled and tried here runs there: same GPU, processor and L4T."""
    return (here.device, here.gpu, here.arch, here.l4t) == (there.device, there.gpu, there.arch, there.l4t)


def board_target(board: str, here: Target) -> Target:
    """Return what to build for a board: for its GPU, and the L4T of this machine if it has one.

    Raises:
        InvalidRequestError: no such board is known.
    """
    if board not in known_boards():
        raise InvalidRequestError(
            f"--for: expected a board, got {board!r}",
            hint=f"boards: {', '.join(known_boards())}",
            param="for",
        )
    return Target("cuda", compute_capability(board), "aarch64", None, here.l4t)


def prove(path: Path, order: Order, settings: Settings, cancelled: Callable[[], bool]) -> Proof:
    """Load the build at *path* in a worker, as it will be served, and let it answer greedily.

    Raises:
        LoadFailedError, WorkerCrashedError, BackendTimeoutError: it does not load, or dies answering.
        CancelledError: *cancelled* said so.
    """
    options = LoadOptions(
        weights=path,
        context_tokens=min(_TRY_CONTEXT_TOKENS, order.context_tokens),
        slots=1,
        threads=settings.threads,
        prefill_batch_tokens=order.chunk_tokens,
        prompt_cache_bytes=0,
        runtime_dir=Path(),
        device=order.device,
    )
    spec = WorkerSpec(f"{order.model}/{order.variant}", BACKEND, options.to_dict(), worker_environment())
    worker = Worker(spec, on_change=lambda: None)
    worker.start()
    try:
        _wait_ready(worker, settings.load_timeout_s, cancelled)
        return _answer(worker, order, cancelled)
    finally:
        if not worker.exited:
            worker.stop()
            if not worker.wait(settings.stop_timeout_s):
                worker.kill()
                worker.wait(settings.stop_timeout_s)


def _wait_ready(worker: Worker, silence_s: float, cancelled: Callable[[], bool]) -> None:
    """Wait until it has loaded, ended, or done nothing for *silence_s*."""
    cpu_s, since_s = 0.0, time.monotonic()
    while not worker.ready:
        if worker.wait(_POLL_S):
            raise worker.exit_error or WorkerCrashedError(f"{worker.spec.name}: the worker ended")
        if cancelled():
            raise CancelledError("the build was cancelled")
        vitals = worker.vitals()
        if vitals is not None and vitals.cpu_s > cpu_s + 0.1:
            cpu_s, since_s = vitals.cpu_s, time.monotonic()
        elif time.monotonic() - since_s > silence_s:
            raise LoadFailedError(f"{worker.spec.name}: loading did nothing for {silence_s:.0f} s")


_SILENCE_S = 120.0


def _answer(worker: Worker, order: Order, cancelled: Callable[[], bool]) -> Proof:
    asked: Mapping[str, Any] = (
        {"messages": (Message("user", _QUESTION),)} if order.chats else {"prompt": _BEGINNING}
    )
    request = GenerateRequest(**asked, max_tokens=_ANSWER_TOKENS, temperature=0.0)
    text, tokens = [], 0
    started_s = time.monotonic()

    def halted() -> bool:
        return cancelled() or worker.silent_s(time.monotonic()) > _SILENCE_S

    try:
        for chunk in worker.generate(request, halted):
            text.append(chunk.text)
            tokens = chunk.usage.completion_tokens if chunk.usage is not None else tokens
    except CancelledError:
        if cancelled():
            raise
        waited_s = time.monotonic() - started_s
        raise BackendTimeoutError(f"{worker.spec.name}: no answer after {waited_s:.0f} s") from None
    return Proof("".join(text), tokens)
