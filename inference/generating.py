"""Generating: from a request to the stream of its worker."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

from inference.choice import check, resolved
from inference.dispatch import Dispatch
from inference.errors import ContextLengthExceededError, WorkerCrashedError
from inference.generation import GenerateRequest, Message
from inference.runtime.worker import Worker
from inference.settings import Settings
from inference.shaping import shaped
from inference.sliding import reserved_tokens, slide
from inference.stream import Chunks, Deadline, GenerationStream
from inference.transcript import trimmed, written_out


class Generating:
    """Starts generations on the workers that *dispatch* gives."""

    def __init__(self, settings: Settings, dispatch: Dispatch) -> None:
        self._settings = settings
        self._dispatch = dispatch

    def start(self, request: GenerateRequest, cancelled: Callable[[], bool]) -> GenerationStream:
        """Return with the first text; see `inference.service.Service.generate`."""
        request = resolved(request)
        check(request)
        self._dispatch.check_use(request.model, embeds=False)
        started_s = time.monotonic()
        guard = Deadline(cancelled, started_s + self._settings.request_timeout_s)
        try:
            return self._attempt(request, guard, started_s)
        except WorkerCrashedError:
            # Nothing of it was sent yet: a new worker gets the request, once.
            return self._attempt(request, guard, started_s)

    def _attempt(self, request: GenerateRequest, guard: Deadline, started_s: float) -> GenerationStream:
        selection, lease = self._dispatch.acquire(request)
        try:
            worker = self._dispatch.wait(selection, lease, guard)
            spec = self._dispatch.spec(selection)
            request = shaped(request, spec, selection.task)
            base = request.messages is not None and spec is not None and spec.chat == "none"
            form, through = (written_out, trimmed) if base else (_as_it_is, _as_they_come)
            fitting = _slid(request, form, worker, guard)
            return GenerationStream(
                worker,
                form(fitting),
                selection,
                lease,
                guard,
                started_s,
                dropped_turns=len(request.messages or ()) - len(fitting.messages or ()),
                through=through,
            )
        except BaseException:
            lease.release()
            raise


_Form = Callable[[GenerateRequest], GenerateRequest]


def _as_it_is(request: GenerateRequest) -> GenerateRequest:
    return request


def _as_they_come(chunks: Chunks) -> Chunks:
    return chunks


def _slid(request: GenerateRequest, form: _Form, worker: Worker, guard: Deadline) -> GenerateRequest:
    """Return *request* without the turns that its context has no room for, if it wants that."""
    if request.context_overflow != "slide" or request.messages is None:
        return request

    def count(turns: tuple[Message, ...]) -> int:
        sent = form(dataclasses.replace(request, messages=turns))
        try:
            return len(worker.ask("prompt_tokens", cancelled=guard, request=sent.to_dict()))
        except ContextLengthExceededError as error:
            return int(error.details["prompt_tokens"])

    context_tokens: int = (worker.info or {})["context_tokens"]
    room_tokens = context_tokens - reserved_tokens(request.max_tokens, context_tokens)
    return dataclasses.replace(request, messages=slide(request.messages, room_tokens, count))
