"""A backend without a model: says what the prompt tells it to, on exact time, or misbehaves.

The weights file is JSON: ``{"load": "ok" | "fail" | "hang" | "crash", "slots": 4}``. A prompt is a
list of words, done in order: ``say:TEXT``, ``tokens:N``, ``wait:SECONDS`` (before each later
token), ``prefill:N`` (N prefill chunks, one wait apart), ``take:MIB`` (of memory, for good), and the
ways to die or stall: ``segv``, ``kill``, ``exit``, ``stop`` (SIGSTOP), ``hang``, ``garbage``, ``stray``,
``flood``, ``grandchild``, ``raise``.
"""

from __future__ import annotations

import json
import math
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from inference.backends import Capability, LoadOptions
from inference.backends._room import check_input
from inference.backends._tokens import check_ids
from inference.errors import InvalidRequestError, LoadFailedError
from inference.generation import Chunk, FinishReason, GenerateRequest, Timings, Usage

REQUIRES = ()
VOCABULARY_TOKENS = 1000


class Backend:
    """See the module."""

    capabilities: frozenset[Capability] = frozenset({"chat", "completion", "tokenize"})

    def __init__(self, options: LoadOptions) -> None:
        script = json.loads(options.weights.read_text())
        self.slots = script.get("slots", options.slots)
        self.context_tokens = options.context_tokens
        self.engine = "scripted 1"
        if options.embeds:
            self.capabilities = frozenset({"embed", "tokenize"})
        self._taken: list[bytearray] = []
        _LOADS[script.get("load", "ok")]()

    def generate(self, request: GenerateRequest, cancelled: Callable[[], bool]) -> Iterator[Chunk]:
        """Do what the prompt says."""
        prompt = self._prompt(request)
        waiting_s, said = 0.0, 0
        for word in prompt.split():
            verb, _, value = word.partition(":")
            if verb == "wait":
                waiting_s = float(value)
            elif verb == "take":
                self._taken.append(bytearray(b"x") * (int(value) * 2**20))
            elif verb in ("say", "tokens", "prefill"):
                for chunk in _chunks(verb, value):
                    if not _pause(waiting_s, cancelled):
                        return
                    said += chunk.prefill is None
                    yield chunk
            else:
                _MISDEEDS[verb]()
        yield Chunk(
            finish_reason=FinishReason.STOP,
            usage=Usage(len(prompt.split()), said),
            timings=Timings(0.0, waiting_s * said),
        )

    def tokenize(self, text: str) -> list[int]:
        """One token per word: its length."""
        return [len(word) for word in text.split()]

    def detokenize(self, ids: Sequence[int]) -> str:
        """One word of that length per token."""
        return " ".join("x" * check_ids([n], VOCABULARY_TOKENS, "tokens")[0] for n in ids)

    def prompt_tokens(self, request: GenerateRequest) -> list[int]:
        """The tokens of the last words that were said."""
        return self.tokenize(self._prompt(request))

    def embed(
        self, inputs: Sequence[str | Sequence[int]], cancelled: Callable[[], bool]
    ) -> tuple[list[list[float]], int]:
        """A direction in the plane: the further round, the longer the input; orders are carried out."""
        vectors: list[list[float]] = []
        tokens = 0
        for item in inputs:
            if isinstance(item, str) and item in _MISDEEDS:
                _MISDEEDS[item]()
            ids = (
                self.tokenize(item) if isinstance(item, str) else check_ids(item, VOCABULARY_TOKENS, "input")
            )
            check_input(len(vectors), len(ids), self.context_tokens)
            angle = sum(ids) / 100
            vectors.append([math.cos(angle), math.sin(angle)])
            tokens += len(ids)
        return vectors, tokens

    def _prompt(self, request: GenerateRequest) -> str:
        if request.prompt_ids is not None:
            return self.detokenize(request.prompt_ids)
        return request.prompt if request.prompt is not None else (request.messages or ())[-1].content

    def close(self) -> None:
        """Nothing to close."""


def _chunks(verb: str, value: str) -> Iterator[Chunk]:
    if verb == "say":
        yield Chunk(value)
    elif verb == "tokens":
        yield from (Chunk(f"t{n} ") for n in range(int(value)))
    else:
        yield from (Chunk(prefill=(n + 1, int(value))) for n in range(int(value)))


def _pause(seconds: float, cancelled: Callable[[], bool]) -> bool:
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        if cancelled():
            return False
        threading.Event().wait(min(0.01, max(0.0, end_s - time.monotonic())))
    return not cancelled()


def _hang() -> None:
    threading.Event().wait()


def _garbage() -> None:
    os.write(int(sys.argv[1]), b"\xff" * 64)
    _hang()


def _stray() -> None:
    body = json.dumps({"event": "chunk", "id": 999_999, "chunk": {"t": "not yours"}}).encode()
    os.write(int(sys.argv[1]), struct.pack("!I", len(body)) + body)


def _flood() -> None:
    line = b"noise " * 170 + b"\n"
    for _ in range(20_000):  # 20 MB
        os.write(2, line)


def _grandchild() -> None:
    subprocess.Popen(["sleep", "600"])


def _refuse() -> None:
    raise InvalidRequestError("told to refuse")


def _explode() -> None:
    raise RuntimeError("secret detail")


def _fail() -> None:
    raise LoadFailedError("told to fail")


def _die(sig: int) -> Callable[[], None]:
    def die() -> None:
        os.kill(os.getpid(), sig)
        _hang()  # the signal may reach another thread first

    return die


_LOADS: dict[str, Callable[[], None]] = {
    "ok": lambda: None,
    "fail": _fail,
    "hang": _hang,
    "crash": _die(signal.SIGSEGV),
}
_MISDEEDS: dict[str, Callable[[], None]] = {
    "segv": _die(signal.SIGSEGV),
    "kill": _die(signal.SIGKILL),
    "stop": _die(signal.SIGSTOP),
    "exit": lambda: os._exit(0),
    "hang": _hang,
    "garbage": _garbage,
    "stray": _stray,
    "flood": _flood,
    "grandchild": _grandchild,
    "refuse": _refuse,
    "raise": _explode,
}
