"""The target: a model on a machine, as the checks see it, whichever way they reach it.

`EngineTarget` reaches it in this process and `HttpTarget` through a daemon; both keep `Target`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

Messages = Sequence[Mapping[str, str]]
"""Turns of a conversation: ``{"role": ..., "content": ...}``."""


class TargetError(Exception):
    """The target refused, failed or did not answer.

    Args:
        message: the subject and what is wrong with it.
        hint: the next thing to do.
        code: JetLLM's own name of the error ("model_not_found"); ``None`` where nobody gave one.
    """

    def __init__(self, message: str, *, hint: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.code = code

    def __str__(self) -> str:
        return f"{self.message}\n    hint: {self.hint}" if self.hint else self.message


@dataclass(frozen=True)
class TokenLogprob:
    """A token's text and the natural logarithm of its probability."""

    token: str
    logprob: float


@dataclass(frozen=True)
class Reply:
    """One answer, its tokens in the model's own, its times on the monotonic clock of who asked.

    Args:
        ttft_s: from the sending of the request to the first text; ``None`` if there was none, or it
            was not streamed.
        total_s: from the sending to the end of the answer.
        arrivals_s: when each piece of text came, in seconds after the sending; empty if not streamed.
            Tokens that make no text of their own share a piece with their neighbours.
        logprobs: one for each generated token; ``None`` if they were not asked for.
        cached_tokens: those of the prompt that were not computed again.
        engine_prefill_s: by the engine's own clock; ``None`` where it keeps none.
        engine_decode_s: likewise.
    """

    text: str
    prompt_tokens: int
    completion_tokens: int
    finish_reason: str
    ttft_s: float | None
    total_s: float
    arrivals_s: tuple[float, ...] = ()
    logprobs: tuple[TokenLogprob, ...] | None = None
    cached_tokens: int = 0
    engine_prefill_s: float | None = None
    engine_decode_s: float | None = None

    @property
    def itl_s(self) -> float | None:
        """Inter-token latency: from the first text to the last, over the tokens after the first.

        An end-of-turn token is counted and has no text; where that matters, ask with *ignore_eos*.
        """
        if len(self.arrivals_s) < 2 or self.completion_tokens < 2:
            return None
        return (self.arrivals_s[-1] - self.arrivals_s[0]) / (self.completion_tokens - 1)

    @property
    def decode_tokens_per_s(self) -> float | None:
        """The reciprocal of `itl_s`."""
        return 1 / self.itl_s if self.itl_s else None

    def prefill_tokens_per_s(self, queue_s: float = 0.0) -> float | None:
        """Prompt tokens over the time to the first text, less the *queue_s* spent waiting for a slot."""
        busy_s = (self.ttft_s or 0.0) - queue_s
        return self.prompt_tokens / busy_s if busy_s > 0 else None


@dataclass(frozen=True)
class LoadTimes:
    """How long each step to the first token took; ``None`` where the step was not needed."""

    pull_s: float | None
    build_s: float | None
    load_s: float | None
    first_token_s: float


@dataclass(frozen=True)
class Memory:
    """Memory at one moment: the system's available part, and the shares of processes; None if unknown.

    The shares are unknown of another machine's processes, and hold no GPU memory.

    Args:
        worker_bytes: the worker's proportional set size, or what is resident where the kernel does not
            tell.
        worker_own_bytes: the part of it that is no file's: a leak is in it, the page cache is not.
        service_bytes: likewise of the daemon, or of this process, that started the worker; known once
            a worker of it was seen.
    """

    available_bytes: int | None
    worker_bytes: int | None
    worker_own_bytes: int | None = None
    service_bytes: int | None = None


@dataclass(frozen=True)
class Environment:
    """All that a measurement depends on beside the model's words; ``None`` is unknown.

    Args:
        version: JetLLM's own.
        engine: its packages with their versions, as evidence names them; known of a loaded model.
        weights_sha256: hash of the weights as the registry's evidence names it.
        context_tokens: of each of *slots* sequences; known of a loaded model.
        throttled: whether the clocks are held down now, *throttled_by* what.
        over_current_events: since the machine started.
        memory_bandwidth_bytes_per_s: of the board in its power mode, as published.
    """

    version: str | None
    board: str | None
    soc: str | None
    l4t: str | None
    jetpack: str | None
    image: str | None
    in_container: bool | None
    arch: str | None
    cpu_model: str | None
    cpu_cores: int | None
    memory_total_bytes: int | None
    memory_available_bytes: int | None
    swap_used_bytes: int | None
    load_average_1m: float | None
    power_mode: str | None
    power_watts: float | None
    gpu_clock_hz: int | None
    gpu_clock_max_hz: int | None
    memory_clock_hz: int | None
    memory_clock_max_hz: int | None
    hottest_celsius: float | None
    throttled: bool | None
    throttled_by: tuple[str, ...]
    over_current_events: int | None
    model: str
    variant: str
    backend: str | None
    engine: str | None
    quantization: str | None
    weights_sha256: str | None
    context_tokens: int | None
    slots: int | None
    memory_bandwidth_bytes_per_s: float | None = None

    @property
    def is_jetson(self) -> bool:
        """Whether its processors share one memory, so that the GPU's is in no process's share."""
        return self.l4t is not None or self.board is not None


@dataclass(frozen=True)
class Registered:
    """What the registry and the selector say of the model before anything is measured.

    Args:
        is_chat: whether it has a chat template; ``None`` where nobody said so.
        context_length_tokens: what it was trained to attend to.
        predicted_decode_tokens_per_s: by the formula alone, whatever was measured before.
        predicted_source: what the selector goes by: "predicted", or "measured" once there is evidence.
        bytes_per_token: what decode reads for every token, as the prediction takes it.
        flop_per_token: what a token computes.
        container: the image that runs it, as the registry names it.
    """

    status: str | None
    is_chat: bool | None
    context_length_tokens: int | None
    memory_requirement_bytes: int | None
    predicted_memory_bytes: int | None
    predicted_decode_tokens_per_s: float | None
    predicted_source: str | None
    bytes_per_token: float | None = None
    flop_per_token: float | None = None
    container: str | None = None


class Target(Protocol):
    """A model under test; every method may be called from any thread, and raises `TargetError`."""

    @property
    def model(self) -> str:
        """Its name in the registry."""

    @property
    def variant(self) -> str:
        """Which way of running it."""

    def load(self) -> LoadTimes:
        """Bring, build and load what is not, and generate a token; say how long each step took."""

    def unload(self) -> int | None:
        """End its workers; return the bytes that the system got back, ``None`` if unknown."""

    def generate(
        self,
        *,
        messages: Messages | None = None,
        prompt: str | None = None,
        max_tokens: int,
        temperature: float = 0.0,
        seed: int | None = None,
        stop: Sequence[str] = (),
        ignore_eos: bool = False,
        cache_prompt: bool = False,
        stream: bool = True,
        logprobs: bool = False,
    ) -> Reply:
        """Answer *messages*, or continue *prompt* as it stands; greedy and uncached unless told otherwise."""

    def score(self, text: str) -> tuple[TokenLogprob, ...] | None:
        """Return the tokens of *text*, each with its probability given those before it.

        The first token has none and is left out, unless the model puts one of its own before every
        text. ``None``: the engine does not tell.
        """

    def cancel_after(self, chunks: int, **request: Any) -> float | None:
        """Leave a generation after so many pieces of text; return the seconds until its slot was free.

        ``None``: it was not free within the target's patience. *request* is as of `generate`. No
        other request may begin or end meanwhile: the slots in use are counted.
        """

    def memory(self) -> Memory:
        """Memory now."""

    def environment(self) -> Environment:
        """The machine, the engine and the weights now."""

    def registered(self) -> Registered:
        """What was declared and predicted."""

    def record_evidence(self, record: Mapping[str, Any]) -> Mapping[str, Any]:
        """Have a measurement kept for the selector; refused where something is not as it was measured."""
