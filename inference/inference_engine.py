"""InferenceEngine: load a model and generate, from Python."""

from __future__ import annotations

import atexit
import dataclasses
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from types import TracebackType
from typing import Any

from inference.artifacts.build import BuildProgress
from inference.artifacts.sources import Progress
from inference.errors import InvalidRequestError, JetLLMError
from inference.generation import Chunk, EmbedRequest, GenerateRequest, Generation, Message, ToolCall
from inference.provision import provided
from inference.service import Service, build_service
from inference.settings import Settings, load_settings
from inference.stream import GenerationStream

__all__ = ["Chunk", "GenerationStream", "InferenceEngine", "JetLLMError", "as_dict"]

_OPTIONS = {f.name for f in dataclasses.fields(GenerateRequest)} - {"messages", "prompt"}


class InferenceEngine:
    """Runs models in worker processes of this process.

    >>> engine = InferenceEngine()
    >>> engine.load_model("smollm2-135m-instruct")
    >>> engine.generate("Hello, world!")["text"]

    Args:
        settings: by default what flags, environment and jetllm.yaml say, as for the daemon, but
            nothing is unloaded for being idle.
        overrides: single settings, by name.
    """

    def __init__(self, settings: Settings | None = None, **overrides: Any) -> None:
        if settings is None:
            settings = load_settings({"keep_alive_s": -1, **overrides})
        elif overrides:
            raise InvalidRequestError("give settings or single overrides, not both")
        self._service: Service = build_service(settings)
        self._model: str | None = None
        reference = weakref.ref(self)
        self._at_exit: Callable[[], None] = lambda: _close(reference)
        atexit.register(self._at_exit)

    def load_model(
        self,
        name: str,
        variant: str | None = None,
        *,
        progress: Callable[[Progress], None] = lambda _: None,
        building: Callable[[BuildProgress], None] = lambda _: None,
    ) -> dict[str, Any]:
        """Load *name*; what is not here is fetched, and for MLC built, first. Return its status row.

        Raises:
            ModelNotFoundError: nothing of that name is registered; the hint has the likely name.
            DownloadError: the weights could not be fetched.
            DoesNotFitError, MemoryPressureError: there is too little memory.
            LoadFailedError, UnsafeArtifactError: the weights are not usable.
            BuildFailedError: MLC makes nothing of its checkpoint.
        """
        row = provided(
            lambda: self._service.load(name, variant=variant, building=building),
            self._service,
            name,
            variant,
            pulling=lambda: nullcontext(progress),
            building=lambda: nullcontext(building),
        )
        self._model = str(row["model"])
        return row

    def generate(self, prompt: str, **options: Any) -> dict[str, Any]:
        """Answer *prompt*: as a user's turn when the model has a chat template, else by continuing it.

        Args:
            options: any field of `GenerateRequest` (``max_tokens``, ``temperature``, ``seed``,
                ``stop``, ...), and ``raw=True`` to continue the text as it stands.

        Returns:
            ``text``, ``model``, ``variant``, ``finish_reason``, ``usage`` (token counts) and
            ``timings`` (seconds).
        """
        with self.stream(prompt, **options) as stream:
            return _finished(stream)

    def stream(self, prompt: str, *, raw: bool = False, **options: Any) -> GenerationStream:
        """Like `generate`, but returns the running stream: iterate it, and close it."""
        request = self._request(options)
        if not raw and self._chats(request.model):
            return self._service.generate(dataclasses.replace(request, messages=(Message("user", prompt),)))
        return self._service.generate(dataclasses.replace(request, prompt=prompt))

    def chat(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> dict[str, Any]:
        """Answer a conversation of ``{"role": ..., "content": ...}`` turns.

        With the option ``tools`` the answer may have ``tool_calls``; send them back as they are in a turn of
        the assistant, and what came of each in a turn of role "tool" with its ``tool_call_id``.
        """
        with self.stream_chat(messages, **options) as stream:
            return _finished(stream)

    def stream_chat(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> GenerationStream:
        """Like `chat`, but returns the running stream: iterate it, and close it."""
        turns = tuple(map(_turn, messages))
        return self._service.generate(dataclasses.replace(self._request(options), messages=turns))

    def embed(
        self, text: str | Sequence[str], *, model: str | None = None, variant: str | None = None
    ) -> dict[str, Any]:
        """Make a vector of length 1 of *text*, or of each of a list, with *model* or any embedding model.

        Returns:
            ``embeddings`` (a list for each text), ``model``, ``variant`` and ``usage`` (token counts).
        """
        inputs = (text,) if isinstance(text, str) else tuple(text)
        found = self._service.embed(EmbedRequest(inputs=inputs, model=model, variant=variant))
        return {
            "embeddings": [list(vector) for vector in found.vectors],
            "model": found.model,
            "variant": found.variant,
            "usage": {"prompt_tokens": found.prompt_tokens},
        }

    def unload_model(self, name: str | None = None) -> dict[str, Any]:
        """Unload *name*, by default the model that was loaded last."""
        name = name or self._model
        if name is None:
            raise InvalidRequestError("no model is loaded", hint="engine.load_model(NAME)")
        if name == self._model:
            self._model = None
        return self._service.unload(name)

    def status(self) -> dict[str, Any]:
        """What is loaded, and how much memory there is."""
        return self._service.status()

    def device(self) -> dict[str, Any]:
        """What this machine is (``static``), and how it is now (``live``)."""
        return self._service.device()

    def models(self) -> list[dict[str, Any]]:
        """Every registered model, with what is known of it here."""
        return self._service.models()

    def model(self, name: str) -> dict[str, Any]:
        """One entry of `models`; *name* may be an alias."""
        return self._service.model(name)

    def select(self, name: str | None = None, variant: str | None = None) -> dict[str, Any]:
        """Explain what would be run, with every candidate and its numbers; loads nothing."""
        return self._service.select(GenerateRequest(model=name, variant=variant)).to_dict()

    def evidence(self, name: str | None = None) -> list[dict[str, Any]]:
        """What the harness measured here, of *name* or of all; whether each record counts, else why not."""
        return self._service.measurements.rows(name)

    def record_evidence(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """Keep a measurement of this machine as it is now; return the record as it was written."""
        return self._service.measurements.record(record)

    def pull(
        self,
        name: str,
        variant: str | None = None,
        *,
        progress: Callable[[Progress], None] = lambda _: None,
    ) -> dict[str, Any]:
        """Bring the weights of *name* here; without *variant*, of the first one that runs here."""
        return self._service.pull(name, variant=variant, progress=progress)

    def build(
        self,
        name: str,
        variant: str | None = None,
        *,
        progress: Callable[[BuildProgress], None] = lambda _: None,
    ) -> dict[str, Any]:
        """Build a pulled model for MLC; without *variant*, its first one for MLC."""
        return self._service.build(name, variant=variant, progress=progress)

    def close(self) -> None:
        """End the workers; a second call does nothing."""
        atexit.unregister(self._at_exit)
        self._service.close()

    def __enter__(self) -> InferenceEngine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _request(self, options: Mapping[str, Any]) -> GenerateRequest:
        unknown = sorted(set(options) - _OPTIONS)
        if unknown:
            raise InvalidRequestError(
                f"unknown option{'s' if len(unknown) > 1 else ''} {', '.join(unknown)}",
                hint=f"options: {', '.join(sorted(_OPTIONS))}",
            )
        stop = options.get("stop", ())
        stop = (stop,) if isinstance(stop, str) else tuple(stop or ())
        tools = tuple(options.get("tools") or ())
        return GenerateRequest(**{"model": self._model, **options, "stop": stop, "tools": tools})

    def _chats(self, model: str | None) -> bool:
        if model is None or model == "auto":
            return True
        return self._service.registry.get(model)[1].chat != "none"


def _finished(stream: GenerationStream) -> dict[str, Any]:
    for _ in stream:
        pass
    result = stream.result
    if result is None:
        raise InvalidRequestError("the generation was closed before its end")
    return as_dict(result)


def as_dict(result: Generation) -> dict[str, Any]:
    """The result in plain values; times in seconds."""
    timings = {"ttft_s": result.ttft_s, "total_s": result.total_s}
    if result.timings is not None:
        timings |= dataclasses.asdict(result.timings)
    return {
        "text": result.text,
        "model": result.model,
        "variant": result.variant,
        "finish_reason": result.finish_reason.value,
        "usage": dataclasses.asdict(result.usage),
        "timings": timings,
        "logprobs": [dataclasses.asdict(item) for item in result.logprobs],
        "tool_calls": [dataclasses.asdict(call) for call in result.tool_calls],
        "dropped_turns": result.dropped_turns,
    }


def _turn(turn: Mapping[str, Any]) -> Message:
    """Return a turn; its calls are as `as_dict` gives them."""
    calls = tuple(ToolCall(**call) for call in turn.get("tool_calls") or ())
    return Message(turn["role"], turn.get("content") or "", calls, turn.get("tool_call_id"))


def _close(reference: weakref.ref[InferenceEngine]) -> None:
    engine = reference()
    if engine is not None:
        engine.close()
