"""A small complete service for the API's tests: scripted chunks, blocking, errors."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from inference.errors import (
    CancelledError,
    DrainingError,
    JetLLMError,
    ModelInUseError,
    ModelNotFoundError,
)
from inference.generation import (
    Chunk,
    Embeddings,
    EmbedRequest,
    FinishReason,
    GenerateRequest,
    Generation,
    Timings,
    TokenLogprob,
    Usage,
)
from inference.settings import Settings

MODEL = "smollm2-135m-instruct"
POLL_S = 0.02


def settings_with(**values: Any) -> Settings:
    """Settings on a free port of loopback, with *values* on top."""
    return Settings.model_validate(
        {"port": 0, "state_dir": os.environ.get("JETLLM_STATE_DIR", "unused"), **values}
    )


def end(reason: FinishReason = FinishReason.STOP, tokens: int = 3) -> Chunk:
    """The last chunk of a stream: 10 prompt tokens, 4 of them cached, in 0.3 s; the rest in 0.1 s."""
    return Chunk(
        finish_reason=reason,
        usage=Usage(prompt_tokens=10, completion_tokens=tokens, cached_tokens=4),
        timings=Timings(prefill_s=0.3, decode_s=0.1),
    )


def logprob(token: str, value: float, *others: tuple[str, float]) -> TokenLogprob:
    """A token with its alternatives."""
    return TokenLogprob(token, value, tuple(token.encode()), tuple(TokenLogprob(t, v) for t, v in others))


DEFAULT_SCRIPT: tuple[Any, ...] = (Chunk("Hel"), Chunk("lo "), Chunk("wörld"), end())


class Gate:
    """A step of a script that waits until it is opened or the caller leaves."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.opened = threading.Event()
        self.cancelled_s: float | None = None
        self.left = threading.Event()

    def wait(self, cancelled: Callable[[], bool]) -> None:
        """Wait as the real service does: the question is asked again and again."""
        self.entered.set()
        while not self.opened.wait(POLL_S):
            if cancelled():
                self.cancelled_s = time.monotonic()
                self.left.set()
                raise CancelledError("the caller left")


class FakeStream:
    """Plays a script: chunks are given, errors raised, gates waited at."""

    model = MODEL
    variant = "q4"
    system_fingerprint = "fp_fake"
    request_id = "gen1"
    dropped_turns = 0

    def __init__(self, service: FakeService, script: list[Any], cancelled: Callable[[], bool]) -> None:
        self.selection = SimpleNamespace(reason="the only model\r\nthat fits: 安", to_dict=dict)
        self._service = service
        self._script = script
        self._cancelled = cancelled
        self._seen: list[Chunk] = []
        self.closed = threading.Event()

    def __iter__(self) -> Iterator[Chunk]:
        return self

    def __next__(self) -> Chunk:
        if self.closed.is_set() or not self._script:
            self.close()
            raise StopIteration
        step = self._script.pop(0)
        if isinstance(step, Gate):
            step.wait(self._cancelled)
            return next(self)
        if isinstance(step, Exception):
            raise step
        if callable(step):
            self._script[:0] = list(step())
            return next(self)
        self._seen.append(step)
        assert isinstance(step, Chunk)
        return step

    def close(self) -> None:
        """Free the slot."""
        if not self.closed.is_set():
            self.closed.set()
            self._service.running -= 1

    @property
    def result(self) -> Generation:
        """What was played."""
        last = self._seen[-1]
        assert last.usage is not None and last.finish_reason is not None
        return Generation(
            text="".join(chunk.text for chunk in self._seen),
            finish_reason=last.finish_reason,
            usage=last.usage,
            timings=last.timings,
            logprobs=tuple(item for chunk in self._seen for item in chunk.logprobs),
            model=self.model,
            variant=self.variant,
            ttft_s=0.1,
            total_s=0.2,
            tool_calls=last.tool_calls,
            dropped_turns=self.dropped_turns,
        )


@dataclass
class FakeService:
    """What a test scripts, and what it can look at afterwards.

    *before* is played inside `generate`, before it returns: queue, load and prefill.
    """

    settings: Settings = field(default_factory=settings_with)
    script: tuple[Any, ...] = DEFAULT_SCRIPT
    before: tuple[Any, ...] = ()
    ready: bool = True
    requests: list[GenerateRequest] = field(default_factory=list)
    streams: list[FakeStream] = field(default_factory=list)
    calls: list[tuple[Any, ...]] = field(default_factory=list)
    pulling: tuple[Any, ...] = ()
    load_error: JetLLMError | None = None
    load_gate: Gate | None = None
    draining: bool = False
    running: int = 0
    measurements: Any = None
    registry: Any = field(default_factory=lambda: SimpleNamespace(models={MODEL: None, "org/planned": None}))

    def generate(self, request: GenerateRequest, cancelled: Callable[[], bool]) -> FakeStream:
        """Play *before*, then hand out the stream."""
        if self.draining:
            raise DrainingError("the daemon is stopping", retry_after_s=7)
        if request.model not in (None, MODEL):
            self.model(request.model)
        self.requests.append(request)
        for step in self.before:
            if isinstance(step, Gate):
                step.wait(cancelled)
            else:
                raise step
        self.running += 1
        self.streams.append(FakeStream(self, list(self.script), cancelled))
        return self.streams[-1]

    def embed(self, request: EmbedRequest, cancelled: Callable[[], bool]) -> Embeddings:
        """Return for input number n the vector (1, n, 0.1), whatever its length."""
        self.calls.append(("embed", request))
        vectors = tuple((1.0, float(number), 0.1) for number in range(len(request.inputs)))
        return Embeddings(vectors, 5, MODEL, "q4", 0.001)

    def tokenize(self, model: str | None, text: str, cancelled: Callable[[], bool]) -> dict[str, Any]:
        """Return one token for each character."""
        self.calls.append(("tokenize", model))
        return {"model": MODEL, "variant": "q4", "tokens": [ord(character) for character in text]}

    def detokenize(
        self, model: str | None, ids: Sequence[int], cancelled: Callable[[], bool]
    ) -> dict[str, Any]:
        """Return one character for each token."""
        self.calls.append(("detokenize", model))
        return {"model": MODEL, "variant": "q4", "text": "".join(map(chr, ids))}

    def count_tokens(self, request: GenerateRequest, cancelled: Callable[[], bool]) -> dict[str, Any]:
        """Note the request."""
        self.requests.append(request)
        return {"model": MODEL, "variant": "q4", "tokens": 3, "context_tokens": 512}

    def models(self) -> list[dict[str, Any]]:
        """One model that can answer and one that cannot."""
        ready = {
            "id": MODEL,
            "name": "SmolLM2",
            "state": "ready",
            "pulled": True,
            "usable": True,
            "created": 7,
        }
        planned = {"id": "org/planned", "name": "P", "state": "absent", "pulled": False, "usable": True}
        return [ready, planned | {"created": 0}]

    def model(self, name: str) -> dict[str, Any]:
        """Look a name up."""
        for model in self.models():
            if model["id"] == name:
                return model
        raise ModelNotFoundError(
            f"unknown model '{name}'", hint=f"did you mean '{MODEL}'? list them: jetllm models", param="model"
        )

    def load(
        self,
        name: str,
        *,
        variant: str | None,
        pin: bool | None,
        keep_alive_s: float | None,
        building: Callable[[Any], None],
        cancelled: Callable[[], bool],
    ) -> dict[str, Any]:
        """Note the call; wait at the gate or fail as scripted."""
        kept = () if keep_alive_s is None else (keep_alive_s,)
        self.calls.append(("load", name, variant, pin, *kept))
        if self.load_gate is not None:
            self.load_gate.wait(cancelled)
        if self.load_error is not None:
            raise self.load_error
        return {"model": name, "state": "ready"}

    def delete(self, name: str, *, variant: str | None) -> dict[str, Any]:
        """Note the call; refuse what is in use."""
        self.calls.append(("delete", name, variant))
        if self.model(name)["state"] == "ready":
            raise ModelInUseError(f"{name} is loaded", hint=f"unload it first: jetllm unload {name}")
        return {"model": name, "variants": ["q4"], "freed_bytes": 5}

    def chat_template(self, name: str, variant: str) -> str | None:
        """One without a place for tools."""
        return "{{ messages }}"

    def unload(self, name: str) -> dict[str, Any]:
        """Note the call."""
        self.calls.append(("unload", name))
        return {"model": name, "variant": "q4", "freed_bytes": 5}

    def pull(
        self,
        name: str,
        *,
        variant: str | None,
        progress: Callable[[Any], None],
        cancelled: Callable[[], bool],
    ) -> dict[str, Any]:
        """Tell and wait as scripted in *pulling*, then be done."""
        self.calls.append(("pull", name, variant))
        self.model(name)
        for step in self.pulling:
            if isinstance(step, Gate):
                step.wait(cancelled)
            elif isinstance(step, Exception):
                raise step
            else:
                progress(step)
        return {"model": name, "variant": "q4", "path": "/secret/m.gguf"}

    def build(
        self,
        name: str,
        *,
        variant: str | None,
        force: bool,
        progress: Callable[[Any], None],
        cancelled: Callable[[], bool],
    ) -> dict[str, Any]:
        """Refuse: what is built is built by the real service."""
        raise NotImplementedError

    def select(self, request: GenerateRequest, *, context_tokens: int | None = None) -> Any:
        """Explain."""
        self.requests.append(request)
        return SimpleNamespace(to_dict=lambda: {"model": MODEL, "reason": "fits"})

    def status(self) -> dict[str, Any]:
        """A snapshot with one worker."""
        worker = {
            "model": MODEL,
            "variant": "q4",
            "state": "ready",
            "memory_predicted_bytes": 200,
            "memory_observed_bytes": 180,
        }
        counters = {
            "model_loads_total": [{"model": MODEL, "result": "ok", "value": 2}],
            "worker_restarts_total": [{"model": MODEL, "cause": "sigsegv", "value": 1}],
        }
        return {
            "version": "0.1.0",
            "state": "draining" if self.draining else "serving",
            "queue": {"waiting": 3, "running": self.running},
            "memory": {"available_bytes": 4096},
            "workers": [worker],
            "counters": counters,
        }

    def device(self) -> dict[str, Any]:
        """A board."""
        return {"board": None, "cpu_cores": 2}

    def readiness(self) -> tuple[bool, dict[str, Any]]:
        """As scripted, unless draining."""
        if self.draining:
            return False, {"status": "draining", "phase": None, "percent": None, "reason": None}
        status = "ready" if self.ready else "loading"
        return self.ready, {"status": status, "phase": None, "percent": None, "reason": None}

    def begin_drain(self) -> None:
        """Refuse from now on."""
        self.draining = True
