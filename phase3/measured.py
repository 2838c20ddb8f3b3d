"""The measured target: one clock and one set of words for every way to a model."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from phase3.described import environment_of, process_share, registered_of, worker_share
from phase3.target import (
    Environment,
    LoadTimes,
    Memory,
    Messages,
    Registered,
    Reply,
    TargetError,
    TokenLogprob,
)

PATIENCE_S = 30.0
"""How long a cancelled generation may hold its slot before nobody waits for it any longer."""

_POLL_S = 0.001
_SHORTEST = "Once"
_UNSUPPORTED = "unsupported_parameter"  # JetLLM's code for what an engine cannot do


@dataclass(frozen=True)
class Ask:
    """What one generation is asked for; exactly one of *messages* and *prompt* is set."""

    max_tokens: int
    messages: Messages | None = None
    prompt: str | None = None
    temperature: float = 0.0
    seed: int | None = None
    stop: Sequence[str] = ()
    ignore_eos: bool = False
    cache_prompt: bool = False
    stream: bool = True
    logprobs: bool = False
    echo: bool = False

    def __post_init__(self) -> None:
        if (self.messages is None) == (self.prompt is None):
            raise ValueError("expected messages or a prompt, and not both")


@dataclass(frozen=True)
class Piece:
    """A part of an answer and when it was received, on the monotonic clock; the last one has the rest."""

    arrived_s: float
    text: str = ""
    logprobs: tuple[TokenLogprob, ...] = ()
    end: End | None = None


@dataclass(frozen=True)
class End:
    """What is known when an answer is whole."""

    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    engine_prefill_s: float | None
    engine_decode_s: float | None


@dataclass(frozen=True)
class Exchange:
    """A request on its way: when it was sent, and its answer's pieces as they come."""

    sent_s: float
    pieces: Iterator[Piece]


class MeasuredTarget(ABC):
    """What both targets do alike. A subclass says how JetLLM is reached, and raises `TargetError` only."""

    def __init__(self, model: str, variant: str | None = None) -> None:
        chosen = self._select(model, variant)
        self._model = str(chosen["model"])
        self._variant = str(chosen["variant"])
        self._service_pid: int | None = None  # proven to be of this machine by a worker that is its child

    # The ways to JetLLM.

    @abstractmethod
    def _exchange(self, ask: Ask) -> AbstractContextManager[Exchange]:
        """Send *ask*; leaving the block stops what still runs."""

    @abstractmethod
    def _select(self, model: str, variant: str | None) -> Mapping[str, Any]:
        """Return the explained choice of *variant*, or of the best one, of *model*."""

    @abstractmethod
    def _status(self) -> Mapping[str, Any]:
        """Return the picture of workers and memory."""

    @abstractmethod
    def _device(self) -> Mapping[str, Any]:
        """Return what the machine is and how it is."""

    @abstractmethod
    def _entry(self) -> Mapping[str, Any]:
        """Return the model's entry in the list of models."""

    @abstractmethod
    def _pull(self) -> None:
        """Bring the weights."""

    @abstractmethod
    def _build(self) -> None:
        """Build the weights for their engine."""

    @abstractmethod
    def _load(self) -> None:
        """Load and wait until it is ready."""

    @abstractmethod
    def _unload(self) -> Mapping[str, Any]:
        """Unload and return what that gave back."""

    @abstractmethod
    def record_evidence(self, record: Mapping[str, Any]) -> Mapping[str, Any]:
        """See `Target`."""

    # `Target`.

    @property
    def model(self) -> str:
        """See `Target`."""
        return self._model

    @property
    def variant(self) -> str:
        """See `Target`."""
        return self._variant

    def load(self) -> LoadTimes:
        """See `Target`."""
        pull_s = None if self._described("pulled") else _seconds(self._pull)
        build_s = None if self._described("built") else _seconds(self._build)
        load_s = None if self._is_ready() else _seconds(self._load)
        first = self.generate(max_tokens=1, ignore_eos=True, **self._shortest())
        return LoadTimes(pull_s, build_s, load_s, first.total_s if first.ttft_s is None else first.ttft_s)

    def unload(self) -> int | None:
        """See `Target`."""
        freed: int | None = self._unload().get("freed_bytes")
        return freed

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
        """See `Target`."""
        ask = Ask(
            messages=messages,
            prompt=prompt,
            max_tokens=max_tokens,
            temperature=temperature,
            seed=seed,
            stop=tuple(stop),
            ignore_eos=ignore_eos,
            cache_prompt=cache_prompt,
            stream=stream,
            logprobs=logprobs,
        )
        with self._exchange(ask) as exchange:
            return reply_of(ask, exchange.sent_s, tuple(exchange.pieces))

    def score(self, text: str) -> tuple[TokenLogprob, ...] | None:
        """See `Target`."""
        ask = Ask(prompt=text, max_tokens=0, logprobs=True, echo=True)
        try:
            with self._exchange(ask) as exchange:
                return reply_of(ask, exchange.sent_s, tuple(exchange.pieces)).logprobs
        except TargetError as error:
            if error.code == _UNSUPPORTED:
                return None
            raise

    def cancel_after(self, chunks: int, **request: Any) -> float | None:
        """See `Target`."""
        if chunks < 1:
            raise ValueError(f"chunks: expected at least 1, got {chunks}")
        ask = Ask(**{**request, "stream": True})
        with self._exchange(ask) as exchange:
            _take(exchange.pieces, chunks)
            busy = self._slots_in_use()
            left_s = time.monotonic()
        if busy == 0:
            raise TargetError(
                f"{self.model}: the text had ended before it was cancelled", hint="ask for more tokens"
            )
        while self._slots_in_use() >= busy:
            if time.monotonic() - left_s > PATIENCE_S:
                return None
            time.sleep(_POLL_S)
        return time.monotonic() - left_s

    def memory(self) -> Memory:
        """See `Target`."""
        status = self._status()
        worker, pid = self._worker(status) or {}, status.get("pid")
        used = None
        if self._is_here and worker.get("pid") is not None and pid is not None:
            used = worker_share(int(worker["pid"]), int(pid))
        if used is not None:
            self._service_pid = pid
        service = process_share(int(pid)) if pid is not None and pid == self._service_pid else None
        return Memory(
            available_bytes=(status.get("memory") or {}).get("available_bytes"),
            worker_bytes=None if used is None else used.bytes,
            worker_own_bytes=None if used is None else used.own_bytes,
            service_bytes=None if service is None else service.own_bytes,
        )

    def environment(self) -> Environment:
        """See `Target`."""
        status = self._status()
        return environment_of(
            device=self._device(),
            status=status,
            model=self._entry(),
            variant=self._variant,
            worker=self._worker(status),
        )

    def registered(self) -> Registered:
        """See `Target`."""
        return registered_of(self._entry(), self._select(self._model, self._variant))

    @property
    def _is_here(self) -> bool:
        """Whether the workers run on this machine."""
        return True

    def _worker(self, status: Mapping[str, Any]) -> Mapping[str, Any] | None:
        key = (self._model, self._variant)
        return next((row for row in status["workers"] if (row["model"], row["variant"]) == key), None)

    def _slots_in_use(self) -> int:
        worker = self._worker(self._status())
        return 0 if worker is None else int(worker["leases"])

    def _is_ready(self) -> bool:
        worker = self._worker(self._status())
        return worker is not None and worker["state"] == "ready"

    def _described(self, what: str) -> bool:
        return bool(self._entry()["variants"][self._variant][what])

    def _shortest(self) -> dict[str, Any]:
        if self._entry().get("chat") == "none":
            return {"prompt": _SHORTEST}
        return {"messages": [{"role": "user", "content": _SHORTEST}]}


def reply_of(ask: Ask, sent_s: float, pieces: Sequence[Piece]) -> Reply:
    """Make an answer of its pieces; the last of them ends it, and an empty one is no arrival."""
    end = pieces[-1].end if pieces else None
    if end is None:
        raise TargetError("the answer ended without a reason to finish")
    arrivals_s = tuple(piece.arrived_s - sent_s for piece in pieces if piece.text) if ask.stream else ()
    return Reply(
        text="".join(piece.text for piece in pieces),
        prompt_tokens=end.prompt_tokens,
        completion_tokens=end.completion_tokens,
        finish_reason=end.finish_reason,
        ttft_s=arrivals_s[0] if arrivals_s else None,
        total_s=pieces[-1].arrived_s - sent_s,
        arrivals_s=arrivals_s,
        logprobs=tuple(item for piece in pieces for item in piece.logprobs) if ask.logprobs else None,
        cached_tokens=end.cached_tokens,
        engine_prefill_s=end.engine_prefill_s,
        engine_decode_s=end.engine_decode_s,
    )


def _take(pieces: Iterator[Piece], wanted: int) -> None:
    """Read on until *wanted* pieces of text have come."""
    taken = 0
    for piece in pieces:
        taken += bool(piece.text)
        if taken == wanted:
            return
    raise TargetError(
        f"the text ended after {taken} pieces; it was to be cancelled after {wanted}",
        hint="ask for more tokens, and ignore the end of the turn",
    )


def _seconds(work: Callable[[], Any]) -> float:
    started_s = time.monotonic()
    work()
    return time.monotonic() - started_s
