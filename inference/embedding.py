"""Embedding, and the tokens of a model: what it makes of texts other than an answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from inference.dispatch import Dispatch
from inference.errors import InvalidRequestError, WorkerCrashedError
from inference.generation import Embeddings, EmbedRequest, GenerateRequest
from inference.runtime.worker import Worker
from inference.selection.selector import Selection
from inference.selection.tasks import Task
from inference.settings import Settings
from inference.stream import Deadline
from inference.transcript import written_out

# What a worker gets at once: the caller may leave between two of them, and each is a sign of life.
_AT_ONCE_INPUTS = 16
_AT_ONCE_LENGTH = 16_384  # characters or tokens

Input = str | tuple[int, ...]
_T = TypeVar("_T")


def _never() -> bool:
    return False


class Embedding:
    """Asks the workers that *dispatch* gives; every method loads the model if need be."""

    def __init__(self, settings: Settings, dispatch: Dispatch) -> None:
        self._settings = settings
        self._dispatch = dispatch

    def embed(self, request: EmbedRequest, cancelled: Callable[[], bool] = _never) -> Embeddings:
        """Return a vector for each input, of unit length.

        Raises:
            InvalidRequestError: there is no input, or the model named generates text.
            ContextLengthExceededError: an input is longer than the model's context.
            JetLLMError: whatever keeps the model from being loaded.
        """
        if not request.inputs:
            raise InvalidRequestError("input: expected at least one text, got none", param="input")
        self._dispatch.check_use(request.model, embeds=True)
        wanted = GenerateRequest(
            model=request.model,
            variant=request.variant,
            task=Task.EMBEDDING.value,
            keep_alive_s=request.keep_alive_s,
        )
        started_s = time.monotonic()
        try:
            return self._embedded(request.inputs, wanted, cancelled, started_s)
        except WorkerCrashedError:
            # Nothing of it was sent yet: a new worker gets the request, once.
            return self._embedded(request.inputs, wanted, cancelled, started_s)

    def _embedded(
        self,
        inputs: Sequence[Input],
        wanted: GenerateRequest,
        cancelled: Callable[[], bool],
        started_s: float,
    ) -> Embeddings:
        vectors: list[tuple[float, ...]] = []
        tokens = 0
        guard = self._guard(cancelled, started_s)
        with self._leased(wanted, guard) as (selection, worker):
            for group in _groups(inputs):
                found = worker.ask("embed", cancelled=guard, inputs=group)
                vectors += map(tuple, found["vectors"])
                tokens += int(found["prompt_tokens"])
        total_s = time.monotonic() - started_s
        return Embeddings(tuple(vectors), tokens, selection.model, selection.variant, total_s)

    def tokenize(
        self, model: str | None, text: str, cancelled: Callable[[], bool] = _never
    ) -> dict[str, Any]:
        """Return "model", "variant" and the "tokens" of *text* as it stands."""
        wanted = GenerateRequest(model=model)
        return self._told(wanted, "tokens", cancelled, lambda worker: worker.ask("tokenize", text=text))

    def detokenize(
        self, model: str | None, ids: Sequence[int], cancelled: Callable[[], bool] = _never
    ) -> dict[str, Any]:
        """Return "model", "variant" and the "text" of token ids.

        Raises:
            InvalidRequestError: the model has no such tokens.
        """
        wanted = GenerateRequest(model=model)
        return self._told(wanted, "text", cancelled, lambda worker: worker.ask("detokenize", ids=list(ids)))

    def count_tokens(
        self, request: GenerateRequest, cancelled: Callable[[], bool] = _never
    ) -> dict[str, Any]:
        """Return "model", "variant", the "tokens" that it would read of *request*, and "context_tokens"."""
        guard = self._guard(cancelled, time.monotonic())
        with self._leased(request, guard) as (selection, worker):
            spec = self._dispatch.spec(selection)
            is_base = request.messages is not None and spec is not None and spec.chat == "none"
            read = written_out(request) if is_base else request
            ids = worker.ask("prompt_tokens", cancelled=guard, request=read.to_dict())
            return {
                "model": selection.model,
                "variant": selection.variant,
                "tokens": len(ids),
                "context_tokens": int((worker.info or {})["context_tokens"]),
            }

    def _told(
        self, wanted: GenerateRequest, key: str, cancelled: Callable[[], bool], ask: Callable[[Worker], _T]
    ) -> dict[str, Any]:
        guard = self._guard(cancelled, time.monotonic())
        with self._leased(wanted, guard) as (selection, worker):
            return {"model": selection.model, "variant": selection.variant, key: ask(worker)}

    def _guard(self, cancelled: Callable[[], bool], started_s: float) -> Deadline:
        return Deadline(cancelled, started_s + self._settings.request_timeout_s)

    @contextmanager
    def _leased(self, wanted: GenerateRequest, guard: Deadline) -> Iterator[tuple[Selection, Worker]]:
        selection, lease = self._dispatch.acquire(wanted)
        try:
            yield selection, self._dispatch.wait(selection, lease, guard)
        finally:
            lease.release()


def _groups(inputs: Sequence[Input]) -> Iterator[list[Input]]:
    """Yield the inputs in order, as many at once as the bounds let."""
    group: list[Input] = []
    length = 0
    for item in inputs:
        if group and (len(group) >= _AT_ONCE_INPUTS or length + len(item) > _AT_ONCE_LENGTH):
            yield group
            group, length = [], 0
        group.append(item)
        length += len(item)
    if group:
        yield group
