"""The scripted model: a backend that keeps the whole contract with known words on exact times.

Its weights are a directory with a script (tests/model_script.py), which may plant one defect.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import random
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

from inference.backends import Capability, LoadOptions
from inference.backends._text import StoppingText
from inference.errors import (
    ContextLengthExceededError,
    InternalError,
    LoadFailedError,
    UnsupportedParameterError,
)
from inference.generation import Chunk, FinishReason, GenerateRequest, Timings, TokenLogprob, Usage
from tests import scripted_text
from tests.model_script import SEGMENT, SHARED_MEMORY, ModelScript, parsed, read_script

# The kernel wakes a waiter some 60 us late; less than this before its time a token is waited for busily.
_SPIN_S = 0.000_1
_LOOK_S = 0.02
_DEAF_S = 5.0
_NATS_PER_BYTE = -math.log(2)  # one bit
_TURN_TOKENS = 4  # <|im_start|>, the role, the line's end, <|im_end|>
_LIVES = 2
_HUNGRY = 3


class Model:
    """See the module; `inference.backends.BackendProtocol` has the contract."""

    capabilities: frozenset[Capability] = frozenset(
        {"chat", "completion", "logprobs", "score", "seed", "tokenize"}
    )

    def __init__(self, options: LoadOptions) -> None:
        self._script = parsed(read_script(options.weights))
        self.slots = self._script.slots or options.slots
        self.context_tokens = options.context_tokens
        self.engine = "scripted model 1"
        if self._has("refuses_to_load") or (self._has("wears_out") and _loads(options.weights) > _LIVES):
            raise LoadFailedError("the weights are worn out")
        self._memory = _Memory(self._script)
        self._running: dict[int, list[str]] = {}
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._heard: dict[int, str] = {}
        if self._has("slow_unload"):
            # The engine's own end, which the worker cannot hurry.
            os._exit = _late(os._exit, self._script.unload_s)  # type: ignore[assignment]
        if self._has("keeps_memory"):
            _leave_behind(self._script.kept_bytes)

    def generate(self, request: GenerateRequest, cancelled: Callable[[], bool]) -> Iterator[Chunk]:
        """Yield a chunk for every token, at its time."""
        started_s = time.monotonic()
        if request.prompt_ids is not None:
            request = replace(request, prompt=self.detokenize(request.prompt_ids), prompt_ids=None)
        prompt = self._prompt(request)
        answer = self._answer(request, prompt)
        with self._memory.in_use(), self._among_others(answer):
            schedule = _Schedule(self._script, started_s, prompt.tokens, cancelled)
            try:
                yield from _speak(request, prompt, answer, schedule)
            finally:
                if self._has("slot_never_frees") and cancelled():
                    threading.Event().wait(_DEAF_S)
                schedule.log()

    def tokenize(self, text: str) -> list[int]:
        """Return a number for each word with the space before it."""
        numbers = scripted_text.token_ids(text)
        self._heard.update(zip(numbers, scripted_text.pieces(text), strict=True))
        return numbers

    def detokenize(self, ids: Sequence[int]) -> str:
        """Return the words of these numbers, as far as they were heard here."""
        return "".join(self._heard.get(number, "\N{REPLACEMENT CHARACTER}") for number in ids)

    def prompt_tokens(self, request: GenerateRequest) -> list[int]:
        """Return the numbers of the words that the model sees."""
        return self.tokenize(self._prompt(request).text)

    def embed(
        self, inputs: Sequence[str | Sequence[int]], cancelled: Callable[[], bool]
    ) -> tuple[list[list[float]], int]:
        """Refuse: it speaks."""
        raise UnsupportedParameterError("input: the scripted model makes no embeddings", param="input")

    def close(self) -> None:
        """Give the memory back."""
        self._memory.close()

    def _has(self, defect: str) -> bool:
        return self._script.defect == defect

    def _prompt(self, request: GenerateRequest) -> _Prompt:
        prompt = _prompt(request, templated=not self._has("no_template"))
        if prompt.tokens < self.context_tokens:
            return prompt
        if self._has("truncates_context"):
            return replace(prompt, tokens=self.context_tokens // 2)
        raise ContextLengthExceededError(
            f"the prompt has {prompt.tokens} tokens; prompt and answer may have {self.context_tokens}",
            hint="shorten the prompt, or serve the model with a larger context",
            param="prompt" if request.messages is None else "messages",
            details={"prompt_tokens": prompt.tokens, "context_tokens": self.context_tokens},
        )

    def _answer(self, request: GenerateRequest, prompt: _Prompt) -> _Answer:
        """Return all tokens that are going to be said; which is cheap, as nothing is computed."""
        room = self.context_tokens - prompt.tokens
        limit = room if request.max_tokens is None else min(request.max_tokens, room)
        if self._has("ignores_max_tokens"):
            limit = min(limit + 8, room)
        key = self._key(request, prompt)
        words = scripted_text.prose(key, prompt.asked)
        if self._has("gibberish"):
            words = scripted_text.gibberish(key)
        elif self._has("loop"):
            words = itertools.repeat(" the")
        if prompt.is_chat and not request.ignore_eos and not self._has("no_template"):
            least = 30 + zlib.crc32(prompt.text.encode(errors="replace")) % 20
            words = itertools.islice(words, least) if self._has("loop") else _ended(words, least)
            if self._has("special_tokens"):
                words = itertools.chain(words, ("<|im_end|>",))
        said = list(itertools.islice(words, limit))
        if prompt.is_chat and said:
            said[0] = said[0].lstrip()
        if self._has("torn_unicode"):
            said = [word if word.isascii() else _torn(word) for word in said]
        stop = () if self._has("ignores_stop") else request.stop
        return _Answer(said, is_whole=len(said) < limit, stop=stop)

    def _key(self, request: GenerateRequest, prompt: _Prompt) -> str:
        digest = hashlib.sha256(prompt.text.encode(errors="replace")).hexdigest()
        is_greedy = not request.temperature
        if is_greedy and not self._has("nondeterministic"):
            return digest
        is_seeded = request.seed is not None and not self._has("ignores_seed")
        return f"{digest} {request.seed if is_seeded and not is_greedy else os.urandom(8).hex()}"

    @contextmanager
    def _among_others(self, answer: _Answer) -> Iterator[None]:
        """Hold a slot; what is wrong with being one of several happens here."""
        number = next(self._numbers)
        with self._lock:
            others = list(self._running.values())
            self._running[number] = answer.pieces
        try:
            if self._has("mixes_slots") and others:
                _mix(answer.pieces, others[-1])
            if self._has("fails_under_load") and others:
                raise InternalError("no memory for a second sequence")
            yield
        finally:
            with self._lock:
                del self._running[number]


@dataclass(frozen=True)
class _Prompt:
    """The *text* that the model sees, what was *asked* of it last, and how many tokens the text has."""

    text: str
    asked: str
    pieces: tuple[str, ...]
    tokens: int
    is_chat: bool


@dataclass(frozen=True)
class _Answer:
    """The tokens to be said; *is_whole*: the model ends it, with a token that has no text."""

    pieces: list[str]
    is_whole: bool
    stop: tuple[str, ...]


class _Schedule:
    """When each token is to be sent, and when it was."""

    def __init__(
        self, script: ModelScript, started_s: float, prompt_tokens: int, cancelled: Callable[[], bool]
    ) -> None:
        self.started_s = started_s
        self.prefill_s = script.ttft_s + prompt_tokens * script.prefill_s
        self._prompt_tokens = prompt_tokens
        self._script = script
        self._cancelled = cancelled
        self._sent_s: list[float] = []

    def reach(self, number: int) -> bool:
        """Wait until it is the time of token *number*; return false when nobody waits for it."""
        due_s = self.started_s + self.prefill_s + number * self._script.itl_s
        while (left_s := due_s - time.monotonic()) > _SPIN_S:
            if self._cancelled():
                return False
            threading.Event().wait(min(left_s - _SPIN_S, _LOOK_S))
        while time.monotonic() < due_s:
            pass
        return not self._cancelled()

    def sent(self) -> None:
        """Note that a token is sent now."""
        self._sent_s.append(time.monotonic())

    def timings(self) -> Timings:
        """Return the engine's own clock."""
        ended_s = time.monotonic()
        first_s = self._sent_s[0] if self._sent_s else ended_s
        return Timings(first_s - self.started_s, ended_s - first_s)

    def log(self) -> None:
        """Write down what came when, if that is wanted."""
        if self._script.log is not None:
            row = {
                "started_s": self.started_s,
                "sent_s": self._sent_s,
                "prompt_tokens": self._prompt_tokens,
                "prefill_s": self.prefill_s,
            }
            with open(self._script.log, "a") as file:
                file.write(json.dumps(row) + "\n")


def _speak(
    request: GenerateRequest, prompt: _Prompt, answer: _Answer, schedule: _Schedule
) -> Iterator[Chunk]:
    if request.echo:
        if not schedule.reach(0):
            return
        yield _echo(request, prompt)
    text = StoppingText(lambda numbers: "".join(answer.pieces[n] for n in numbers), answer.stop)
    logprobs = _Logprobs(request.logprobs)
    said = 0
    for number, piece in enumerate(answer.pieces):
        if not schedule.reach(number):
            return
        said += 1
        logprobs.add(text.whole_chars, piece)
        if shown := text.feed(number):
            schedule.sent()
            yield Chunk(shown, logprobs=logprobs.before(text.shown_chars))
        if text.stopped:
            break
    is_ended = answer.is_whole and not text.stopped
    if is_ended:
        if not schedule.reach(said):
            return
        said += 1  # the end of the turn is a token too
    rest = text.rest()
    reason = FinishReason.STOP if is_ended or text.stopped else FinishReason.LENGTH
    usage = Usage(prompt.tokens, said)
    yield Chunk(
        rest,
        logprobs=logprobs.before(text.shown_chars),
        finish_reason=reason,
        usage=usage,
        timings=schedule.timings(),
    )


def _echo(request: GenerateRequest, prompt: _Prompt) -> Chunk:
    """Return the prompt itself; nothing is known of how likely its first token is."""
    if not request.logprobs:
        return Chunk(prompt.text)
    first, *rest = map(logprob_of, prompt.pieces)
    return Chunk(prompt.text, logprobs=(replace(first, logprob=None), *rest))


class _Logprobs:
    """Log-probabilities of tokens, given out with the text that they belong to."""

    def __init__(self, wanted: bool) -> None:
        self._wanted = wanted
        self._kept: list[tuple[int, TokenLogprob]] = []

    def add(self, start: int, piece: str) -> None:
        """Note the token whose text begins at character *start*."""
        if self._wanted:
            self._kept.append((start, logprob_of(piece)))

    def before(self, limit: int) -> tuple[TokenLogprob, ...]:
        """Give out those of tokens that begin before character *limit*."""
        ready = tuple(logprob for start, logprob in self._kept if start < limit)
        self._kept = self._kept[len(ready) :]
        return ready


def logprob_of(piece: str) -> TokenLogprob:
    """Return a token's log-probability: one bit for each of its bytes."""
    raw = piece.encode(errors="replace")
    return TokenLogprob(piece, len(raw) * _NATS_PER_BYTE, tuple(raw))


def _prompt(request: GenerateRequest, *, templated: bool) -> _Prompt:
    if request.messages is None:
        text, asked = request.prompt or "", request.prompt or ""
        return _bare(text, asked, is_chat=False)
    asked = request.messages[-1].content if request.messages else ""
    if not templated:
        return _bare("\n".join(turn.content for turn in request.messages), asked, is_chat=True)
    turns = [f"<|im_start|>{turn.role}\n{turn.content}<|im_end|>\n" for turn in request.messages]
    text = "".join(turns) + "<|im_start|>assistant\n"
    content = sum(len(scripted_text.pieces(turn.content)) for turn in request.messages)
    tokens = content + _TURN_TOKENS * len(turns) + _TURN_TOKENS - 1
    return _Prompt(text, asked, (), tokens, is_chat=True)


def _bare(text: str, asked: str, *, is_chat: bool) -> _Prompt:
    pieces = tuple(scripted_text.pieces(text))
    return _Prompt(text, asked, pieces, max(1, len(pieces)), is_chat)


def _ended(words: Iterator[str], least: int) -> Iterator[str]:
    return scripted_text.up_to_sentence(words, least)


def _torn(word: str) -> str:
    at = next(i for i, character in enumerate(word) if not character.isascii())
    return f"{word[:at]}\N{REPLACEMENT CHARACTER}{word[at + 1 :]}"


def _mix(mine: list[str], others: list[str]) -> None:
    """Exchange all but the beginnings of two answers."""
    length = min(len(mine), len(others))
    rest = slice(length // 4, length)
    mine[rest], others[rest] = others[rest], mine[rest]


class _Memory:
    """What the model holds, and what its requests do to that."""

    def __init__(self, script: ModelScript) -> None:
        self._script = script
        self._held = bytearray(b"x") * script.held_bytes  # each page is written to
        self._leaked: list[bytearray] = []
        self._blocks: list[bytearray] = []
        self._requests = 0
        self._noise = random.Random(script.noise_seed)  # noqa: S311 - no secret
        self._lock = threading.Lock()

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Take what a request takes, and give back what it gives back."""
        with self._lock:
            if self._script.defect == "leak":
                self._leaked.append(bytearray(b"x") * self._script.leak_bytes)
            if self._script.noise_seed is not None:
                self._churn()
            self._requests += 1
            if self._script.defect == "memory_hog" and self._requests == _HUNGRY:
                self._blocks.append(bytearray(b"x") * self._script.hog_bytes)
        yield

    def _churn(self) -> None:
        """Take a few blocks and give as many back, on average."""
        for _ in range(self._noise.randrange(4)):
            self._blocks.append(bytearray(b"x") * self._noise.randrange(200_000))
        while len(self._blocks) > self._noise.randrange(40):
            del self._blocks[self._noise.randrange(len(self._blocks))]

    def close(self) -> None:
        self._held = bytearray()
        self._leaked.clear()
        self._blocks.clear()


def _late(leave: Callable[[int], NoReturn], wait_s: float) -> Callable[[int], NoReturn]:
    def leave_late(code: int) -> NoReturn:
        threading.Event().wait(wait_s)
        leave(code)

    return leave_late


def _loads(weights: Path) -> int:
    """Count a load, and return how many there have been."""
    with (weights / "loads").open("a+") as file:
        file.write(".")
        file.flush()
        return file.tell()


def _leave_behind(size: int) -> None:
    """Leave a segment of shared memory that no process has and nobody removes, one for each parent."""
    (SHARED_MEMORY / f"{SEGMENT}{os.getppid()}").write_bytes(b"x" * size)
