"""A running generation: its chunks as they come, its result when it has ended."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Generator, Iterator
from types import TracebackType

from inference.errors import BackendTimeoutError, CancelledError, InternalError
from inference.generation import Chunk, FinishReason, GenerateRequest, Generation, TokenLogprob, Usage
from inference.runtime.entry import Lease
from inference.runtime.worker import Worker
from inference.selection.selector import Selection

Chunks = Generator[Chunk, None, None]


class Deadline:
    """True once the caller has left; raises once the request's time is over."""

    def __init__(self, cancelled: Callable[[], bool], deadline_s: float) -> None:
        self._cancelled = cancelled
        self.deadline_s = deadline_s

    def __call__(self) -> bool:
        """Whether the caller has left."""
        if time.monotonic() > self.deadline_s:
            raise BackendTimeoutError("the request took longer than request_timeout_s allows")
        return self._cancelled()


class GenerationStream:
    """An iterator of `Chunk`, from the first text on. Close it, or exhaust it, to free its slot.

    *result* is set when the stream has been exhausted. Iterating may raise `JetLLMError`.

    Args:
        through: what the worker's chunks go through on their way.
        dropped_turns: turns of the chat that were left out before it was sent.
    """

    def __init__(
        self,
        worker: Worker,
        request: GenerateRequest,
        selection: Selection,
        lease: Lease,
        guard: Deadline,
        started_s: float,
        dropped_turns: int = 0,
        through: Callable[[Chunks], Chunks] = lambda chunks: chunks,
    ) -> None:
        self.dropped_turns = dropped_turns
        self.selection = selection
        self.model = selection.model
        self.variant = selection.variant
        self.request_id = uuid.uuid4().hex
        self.system_fingerprint = f"{(worker.info or {}).get('engine', '')} {selection.variant}"
        self.result: Generation | None = None
        self._started_s = started_s
        self._lease = lease
        self._chunks = through(worker.generate(request, guard))
        first = next(self._chunks, None)
        if first is None:
            raise CancelledError("the generation ended without a chunk")
        self._iterator = self._relay(first)
        self._ttft_s = time.monotonic() - started_s

    def __iter__(self) -> Iterator[Chunk]:
        return self._iterator

    def __next__(self) -> Chunk:
        return next(self._iterator)

    def _relay(self, chunk: Chunk | None) -> Iterator[Chunk]:
        texts: list[str] = []
        logprobs: list[TokenLogprob] = []
        last: Chunk | None = None
        try:
            while chunk is not None:
                texts.append(chunk.text)
                logprobs += chunk.logprobs
                last = chunk
                if chunk.finish_reason is not None:
                    self._finish(chunk, chunk.finish_reason, texts, logprobs)
                yield chunk
                chunk = next(self._chunks, None)
            if last is None or last.finish_reason is None:
                raise InternalError("the engine ended the generation without a reason")
        finally:
            self.close()

    def _finish(
        self, chunk: Chunk, reason: FinishReason, texts: list[str], logprobs: list[TokenLogprob]
    ) -> None:
        self.result = Generation(
            text="".join(texts),
            finish_reason=reason,
            usage=chunk.usage or Usage(0, 0),
            timings=chunk.timings,
            logprobs=tuple(logprobs),
            model=self.model,
            variant=self.variant,
            ttft_s=self._ttft_s,
            total_s=time.monotonic() - self._started_s,
            tool_calls=chunk.tool_calls,
            dropped_turns=self.dropped_turns,
        )

    def close(self) -> None:
        """Stop generating, if it still does, and free the slot; a second call does nothing."""
        try:
            self._chunks.close()
        finally:
            self._lease.release()

    def __enter__(self) -> GenerationStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
