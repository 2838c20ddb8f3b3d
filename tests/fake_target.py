"""A fake target: keeps `Target`, answers what a test scripts, and remembers what it was asked."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from phase3.case import Case
from phase3.measured import Ask
from phase3.plan import QUICK, Plan
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

MODEL, VARIANT = "fake", "fake-f32"
CONTEXT_TOKENS = 1024

_WORDS = (
    "the keeper of the light walks down to the sea in the morning and there is a small boat that he"
    " has to mend before the wind comes in from the north so it can go out again with all of them"
)

ENVIRONMENT = Environment(
    version="0.1.0",
    board=None,
    soc=None,
    l4t=None,
    jetpack=None,
    image=None,
    in_container=False,
    arch="x86_64",
    cpu_model="a CPU",
    cpu_cores=2,
    memory_total_bytes=8 * 2**30,
    memory_available_bytes=6 * 2**30,
    swap_used_bytes=0,
    load_average_1m=0.1,
    power_mode=None,
    power_watts=None,
    gpu_clock_hz=None,
    gpu_clock_max_hz=None,
    memory_clock_hz=None,
    memory_clock_max_hz=None,
    hottest_celsius=45.0,
    throttled=False,
    throttled_by=(),
    over_current_events=0,
    model=MODEL,
    variant=VARIANT,
    backend="fake",
    engine="fake 1.0",
    quantization="F32",
    weights_sha256="0" * 64,
    context_tokens=CONTEXT_TOKENS,
    slots=4,
)
"""Of the loaded model; before loading, engine, context_tokens and slots are None."""

REGISTERED = Registered(
    status="verified",
    is_chat=True,
    context_length_tokens=8192,
    memory_requirement_bytes=10**9,
    predicted_memory_bytes=500 * 10**6,
    predicted_decode_tokens_per_s=100.0,
    predicted_source="predicted",
)


def reply(
    text: str,
    *,
    prompt_tokens: int = 10,
    finish_reason: str = "stop",
    ttft_s: float = 0.1,
    itl_s: float = 0.01,
    tokens: Sequence[str] | None = None,
    logprobs: Sequence[float] | None = None,
    **changes: Any,
) -> Reply:
    """Make a streamed answer of *text*, a token for each of *tokens* (its words, where there are none).

    Its times are exact: the first text after *ttft_s*, each further one *itl_s* later. *changes* are
    further fields of `Reply`.
    """
    pieces = tuple(_pieces(text) if tokens is None else tokens)
    arrivals_s = tuple(ttft_s + i * itl_s for i in range(len(pieces)))
    made = Reply(
        text=text,
        prompt_tokens=prompt_tokens,
        completion_tokens=len(pieces),
        finish_reason=finish_reason,
        ttft_s=arrivals_s[0] if pieces else None,
        total_s=arrivals_s[-1] if pieces else ttft_s,
        arrivals_s=arrivals_s,
        logprobs=None if logprobs is None else tuple(map(TokenLogprob, pieces, logprobs)),
    )
    return replace(made, **changes)


def prompt_tokens(ask: Ask) -> int:
    """How many tokens a prompt has: a word is one, and a turn of a chat three more, as is its end."""
    if ask.prompt is not None:
        return len(ask.prompt.split())
    return 3 + sum(3 + len(turn["content"].split()) for turn in ask.messages or ())


def healthy(ask: Ask, *, own_end: int = 40, context_tokens: int = CONTEXT_TOKENS) -> Reply:
    """Answer as a good model does: common words, the same ones for the same request.

    A chat's answer ends by itself after *own_end* tokens; *stop*, *max_tokens*, *ignore_eos*, *seed*,
    *logprobs* and *stream* are honoured, and so is the context.
    """
    room = context_tokens - prompt_tokens(ask)
    if room < 1:
        raise TargetError("the prompt is longer than the context", code="context_length_exceeded")
    limit = min(ask.max_tokens, room)
    ends = ask.messages is not None and not ask.ignore_eos and own_end <= limit
    pieces = _said(ask, own_end if ends else limit)
    text, reason = "".join(pieces), "stop" if ends else "length"
    stops = [at for at in (text.find(end) for end in ask.stop) if at >= 0]
    if stops:
        text, reason = text[: min(stops)], "stop"
        pieces = _pieces(text)
    made = reply(
        text,
        prompt_tokens=prompt_tokens(ask),
        finish_reason=reason,
        tokens=pieces,
        logprobs=[-0.5] * len(pieces) if ask.logprobs else None,
    )
    return made if ask.stream else replace(made, ttft_s=None, arrivals_s=())


def even_score(text: str, bits_per_byte: float = 1.0) -> tuple[TokenLogprob, ...]:
    """Score *text*: every word a token, each byte of which costs *bits_per_byte*; the first has no score."""
    nats = bits_per_byte * 0.6931471805599453
    return tuple(TokenLogprob(piece, -nats * len(piece.encode())) for piece in _pieces(text)[1:])


class FakeTarget:
    """A target of which every answer can be scripted; what is not scripted is healthy.

    A callable may raise `TargetError`. `asked` has every request of `generate` in order, `events`
    the names of the methods called.

    Args:
        answer: of `generate`.
        score: of `score`; the default costs one bit for each byte.
        registered: what was declared; ``replace(REGISTERED, ...)`` for another model.
        environment: of the machine and the loaded model, or a callable that says it anew each time.
        memory: called for each `memory`.
        load: called for each `load`.
        unload: called for each `unload`.
        cancel: of `cancel_after`: pieces and the request, to the seconds.
    """

    def __init__(
        self,
        answer: Callable[[Ask], Reply] = healthy,
        *,
        score: Callable[[str], tuple[TokenLogprob, ...] | None] = even_score,
        registered: Registered = REGISTERED,
        environment: Environment | Callable[[], Environment] = ENVIRONMENT,
        memory: Callable[[], Memory] = lambda: Memory(6 * 2**30, 400 * 2**20),
        load: Callable[[], LoadTimes] = lambda: LoadTimes(None, None, 1.5, 0.1),
        unload: Callable[[], int | None] = lambda: 400 * 2**20,
        cancel: Callable[[int, Ask], float | None] = lambda _chunks, _ask: 0.05,
        model: str = MODEL,
        variant: str = VARIANT,
    ) -> None:
        self._answer = answer
        self._score = score
        self._registered = registered
        self._environment = environment
        self._memory = memory
        self._load = load
        self._unload = unload
        self._cancel = cancel
        self._name = (model, variant)
        self.asked: list[Ask] = []
        self.events: list[str] = []

    @property
    def model(self) -> str:
        """See `Target`."""
        return self._name[0]

    @property
    def variant(self) -> str:
        """See `Target`."""
        return self._name[1]

    def load(self) -> LoadTimes:
        """See `Target`."""
        self.events.append("load")
        return self._load()

    def unload(self) -> int | None:
        """See `Target`."""
        self.events.append("unload")
        return self._unload()

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
        self.events.append("generate")
        self.asked.append(ask)
        return self._answer(ask)

    def cancel_after(self, chunks: int, **request: Any) -> float | None:
        """See `Target`."""
        self.events.append("cancel_after")
        return self._cancel(chunks, Ask(**{**request, "stream": True}))

    def score(self, text: str) -> tuple[TokenLogprob, ...] | None:
        """See `Target`."""
        self.events.append("score")
        return self._score(text)

    def memory(self) -> Memory:
        """See `Target`."""
        return self._memory()

    def environment(self) -> Environment:
        """See `Target`."""
        return self._environment() if callable(self._environment) else self._environment

    def registered(self) -> Registered:
        """See `Target`."""
        return self._registered

    def record_evidence(self, record: Mapping[str, Any]) -> Mapping[str, Any]:
        """See `Target`."""
        return record


def case_of(target: FakeTarget, plan: Plan = QUICK) -> Case:
    """A case about a loaded *target*."""
    environment = target.environment()
    return Case(target, plan, before=environment, loaded=environment, idle_worker_bytes=400 * 2**20)


def refusal(code: str = "invalid_request", message: str = "refused") -> Callable[[Ask], Reply]:
    """An answer that is an error."""

    def answer(_: Ask) -> Reply:
        raise TargetError(message, code=code)

    return answer


def _pieces(text: str) -> list[str]:
    """Cut *text* before each space: the pieces make it again."""
    words = text.split(" ")
    return [word for word in [words[0], *(f" {word}" for word in words[1:])] if word]


def _said(ask: Ask, tokens: int) -> list[str]:
    """Choose so many words by what is asked, and by the seed unless greedy."""
    asked = repr(ask.prompt or [sorted(turn.items()) for turn in ask.messages or ()])
    chance = ask.seed if ask.temperature else None
    return [_word(f"{asked}|{chance}", position) for position in range(tokens)]


def _word(asked: str, position: int) -> str:
    words = _WORDS.split()
    digest = hashlib.sha256(f"{asked}|{position // 8}".encode()).digest()
    return f" {words[(digest[0] + position) % len(words)]}"
