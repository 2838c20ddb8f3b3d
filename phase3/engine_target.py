"""The engine target: a model in worker processes of this process, through `InferenceEngine`."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from inference.inference_engine import Chunk, GenerationStream, InferenceEngine, JetLLMError
from phase3.measured import Ask, End, Exchange, MeasuredTarget, Piece
from phase3.target import TargetError, TokenLogprob


class EngineTarget(MeasuredTarget):
    """A variant of a model, by default the best one, run by *engine*, which stays the caller's to close.

    Raises:
        TargetError: nothing of that name can run here.
    """

    def __init__(self, engine: InferenceEngine, model: str, variant: str | None = None) -> None:
        self._engine = engine
        super().__init__(model, variant)

    @contextmanager
    def _exchange(self, ask: Ask) -> Iterator[Exchange]:
        with _answering():
            sent_s = time.monotonic()
            if not ask.stream:
                yield Exchange(sent_s, iter((_whole(self._finished(ask)),)))
                return
            with self._started(ask) as stream:
                yield Exchange(sent_s, _pieces(stream))

    def _started(self, ask: Ask) -> GenerationStream:
        if ask.messages is not None:
            return self._engine.stream_chat(ask.messages, **self._options(ask))
        return self._engine.stream(ask.prompt or "", raw=True, **self._options(ask))

    def _finished(self, ask: Ask) -> dict[str, Any]:
        if ask.messages is not None:
            return self._engine.chat(ask.messages, **self._options(ask))
        return self._engine.generate(ask.prompt or "", raw=True, **self._options(ask))

    def _options(self, ask: Ask) -> dict[str, Any]:
        return {
            "model": self._model,
            "variant": self._variant,
            "max_tokens": ask.max_tokens,
            "temperature": ask.temperature,
            "seed": ask.seed,
            "stop": tuple(ask.stop),
            "ignore_eos": ask.ignore_eos,
            "cache_prompt": ask.cache_prompt,
            "logprobs": ask.logprobs,
            "echo": ask.echo,
        }

    def _select(self, model: str, variant: str | None) -> Mapping[str, Any]:
        with _answering():
            return self._engine.select(model, variant)

    def _status(self) -> Mapping[str, Any]:
        with _answering():
            return self._engine.status()

    def _device(self) -> Mapping[str, Any]:
        with _answering():
            return self._engine.device()

    def _entry(self) -> Mapping[str, Any]:
        with _answering():
            return self._engine.model(self._model)

    def _pull(self) -> None:
        with _answering():
            self._engine.pull(self._model, self._variant)

    def _build(self) -> None:
        with _answering():
            self._engine.build(self._model, self._variant)

    def _load(self) -> None:
        with _answering():
            self._engine.load_model(self._model, self._variant)

    def _unload(self) -> Mapping[str, Any]:
        with _answering():
            return self._engine.unload_model(self._model)

    def record_evidence(self, record: Mapping[str, Any]) -> Mapping[str, Any]:
        """See `Target`."""
        with _answering():
            return self._engine.record_evidence(record)


@contextmanager
def _answering() -> Iterator[None]:
    """Turn the engine's errors into the targets' own."""
    try:
        yield
    except JetLLMError as error:
        raise TargetError(error.message, hint=error.hint, code=error.code) from error


def _pieces(stream: GenerationStream) -> Iterator[Piece]:
    for chunk in stream:
        arrived_s = time.monotonic()
        logprobs = tuple(
            TokenLogprob(item.token, item.logprob) for item in chunk.logprobs if item.logprob is not None
        )
        yield Piece(arrived_s, chunk.text, logprobs, _end(chunk))


def _end(chunk: Chunk) -> End | None:
    if chunk.finish_reason is None or chunk.usage is None:
        return None
    timings = chunk.timings
    return End(
        finish_reason=chunk.finish_reason.value,
        prompt_tokens=chunk.usage.prompt_tokens,
        completion_tokens=chunk.usage.completion_tokens,
        cached_tokens=chunk.usage.cached_tokens,
        engine_prefill_s=None if timings is None else timings.prefill_s,
        engine_decode_s=None if timings is None else timings.decode_s,
    )


def _whole(answer: Mapping[str, Any]) -> Piece:
    """Return the facade's finished answer as its one piece."""
    arrived_s = time.monotonic()
    logprobs = tuple(
        TokenLogprob(item["token"], item["logprob"])
        for item in answer["logprobs"]
        if item["logprob"] is not None
    )
    timings = answer["timings"]
    end = End(
        finish_reason=answer["finish_reason"],
        **answer["usage"],
        engine_prefill_s=timings.get("prefill_s"),
        engine_decode_s=timings.get("decode_s"),
    )
    return Piece(arrived_s, answer["text"], logprobs, end)
