"""The thread that computes: it loads, then gives one token to every running request, round by round."""

from __future__ import annotations

import itertools
import json
import math
import os
import queue
import random
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..library import scripted
from . import model
from .config import EngineConfig


@dataclass
class Request:
    """A request inside the engine, and what it has so far."""

    request_id: str
    prompt: list[int]
    config: dict[str, Any]
    answer: list[int] = field(default_factory=list)
    prefilled_tokens: int = 0
    cached_tokens: int = 0
    shown: str = ""

    def __post_init__(self) -> None:
        self.random = random.Random(self.config["seed"])  # noqa: S311
        wanted = self.config["response_format"] or {}
        forced = wanted.get("type") == "json_object"
        self.script: list[int] | None = (
            list(self.config["script"].encode()) if self.config["script"] else None
        )
        self.schema = wanted if forced else None


class Loop:
    """What the thread runs; *emit* gets (request id, text, logprob, finish reason, usage)."""

    def __init__(
        self, directory: Path, library: Path, config: EngineConfig, emit: Callable[..., None]
    ) -> None:
        self._directory, self._library, self._config, self._emit = directory, library, config, emit
        script = directory / "fake.json"
        self.script: dict[str, Any] = json.loads(script.read_text()) if script.exists() else scripted(library)
        self.inbox: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self.loaded = threading.Event()
        self.callback_failed = threading.Event()
        self._live: list[Request] = []
        self._waiting: list[Request] = []
        self._cache: list[int] = []
        self._given_tokens = 0

    def run(self) -> None:
        """Load, then work until told to exit; an exception ends the thread, as it does the real one."""
        self._load()
        self.loaded.set()
        while True:
            busy = bool(self._live or self._waiting)
            while not busy or not self.inbox.empty():
                kind, value = self.inbox.get()
                if kind == "exit":
                    return
                self._take(kind, value)
                busy = bool(self._live or self._waiting)
            self._step()

    def _load(self) -> None:
        how = self.script.get("load")
        if how == "exit":
            os._exit(9)
        if how == "hang":
            os.write(2, b"terminate called: Check failed: Cannot find parameter in cache: lm_head.q_weight\n")
        if how in ("hang", "silent"):
            threading.Event().wait()
        end_s = time.process_time() + self.script.get("load_cpu_s", 0)
        while time.process_time() < end_s:
            pass
        name = self.script.get("cache_name", "tensor-cache.json")
        path = self._directory / name
        if not path.exists():
            raise RuntimeError(f"Cannot find tensor cache file {name}")
        for shard in json.loads(path.read_text())["records"]:
            data = (self._directory / shard["dataPath"]).read_bytes()
            if len(data) != shard["nbytes"]:
                raise RuntimeError("Check failed: Encountered an corrupted parameter shard.")
        if how == "raise":
            raise RuntimeError(
                "InternalError: Insufficient GPU memory error: The available single GPU memory is 10.0 MB, "
                "which is less than the sum of model weight size (20.0 MB).\n1. You can set a larger value."
            )
        if b"whole" not in self._library.read_bytes():
            _die(signal.SIGBUS)

    def _take(self, kind: str, value: Any) -> None:
        if kind == "add":
            self._check(value)
            self._waiting.append(value)
        elif kind == "abort":
            self._live = [request for request in self._live if request.request_id != value]
            self._waiting = [request for request in self._waiting if request.request_id != value]
        elif kind == "reset":
            self._live, self._waiting, self._cache = [], [], []

    def _check(self, request: Request) -> None:
        """Die as the real engine does of what nobody has looked at before."""
        if any(not 0 <= token < model.VOCABULARY_TOKENS for token in request.prompt):
            raise RuntimeError("Check failed: token id is outside the vocabulary")
        if any(not 0 <= int(t) < model.VOCABULARY_TOKENS for t in request.config["logit_bias"] or {}):
            _die(signal.SIGSEGV)
        if (request.config["top_logprobs"] or 0) > 5:
            raise RuntimeError("Check failed: top_logprobs")
        if request.schema is not None:
            request.script = list(model.constrained_text(request.schema).encode())

    def _step(self) -> None:
        while self._waiting and self._has_room_for(self._waiting[0]):
            self._live.append(self._waiting.pop(0))
        if not self._live:
            time.sleep(0.001)  # who has no room waits, and nobody is told
        for request in list(self._live):
            if request.prefilled_tokens < len(request.prompt):
                self._prefill(request)
            else:
                self._decode(request)
                time.sleep(self.script.get("step_s", 0))

    def _has_room_for(self, request: Request) -> bool:
        """As the real one: 8 tokens of the cache are kept free for every sequence."""
        sequences = len(self._live) + 1
        used = sum(len(other.prompt) + len(other.answer) for other in self._live)
        room = self._config.max_total_sequence_length or 2048
        most = min(self._config.max_num_sequence or 4, self._config.prefill_chunk_size or 2048)
        return sequences <= most and used + len(request.prompt) + 8 * sequences <= room

    def _prefill(self, request: Request) -> None:
        if request.prefilled_tokens == 0 and self._config.prefix_cache_mode == "radix":
            same = (a == b for a, b in zip(self._cache, request.prompt[:-1], strict=False))
            request.cached_tokens = sum(itertools.takewhile(bool, same))
            request.prefilled_tokens = request.cached_tokens
        end_s = time.monotonic() + self.script.get("prefill_s", 0)
        while time.monotonic() < end_s:
            time.sleep(0 if self.script.get("prefill_cpu") else end_s - time.monotonic())
        request.prefilled_tokens += self._config.prefill_chunk_size or 2048

    def _decode(self, request: Request) -> None:
        config = request.config
        if request.script is not None:
            at = len(request.answer)
            token = request.script[at] if at < len(request.script) else model.END
        else:
            token = model.next_token(request.prompt, request.answer, config, request.random)
        self._misbehave()
        logprob = self._logprob(request, token) if config["logprobs"] else None
        request.answer.append(token)
        reason = self._reason(request, token)
        # What is incomplete waits for its end, and is written as a replacement when there is none.
        held_back = "replace" if reason else "ignore"
        text = bytes(t for t in request.answer if t < model.END).decode(errors=held_back)
        stops = [text.index(stop) for stop in config["stop"] if stop in text]
        if stops:
            text, reason = text[: min(stops)], "stop"
        held = 0 if reason else _begun(text, config["stop"])
        shown = text[len(request.shown) : len(text) - held]
        request.shown += shown
        self._emit(request.request_id, shown, logprob, reason, None)
        if reason:
            self._finish(request)

    def _misbehave(self) -> None:
        self._given_tokens += 1
        if self._given_tokens == self.script.get("die_after_tokens"):
            if self.script.get("dies") == "callback":
                self.callback_failed.set()
                threading.Event().wait()
            raise RuntimeError("Check failed: (!std::isnan(prob)) is false: NaN in the logits")
        if self._given_tokens == self.script.get("signal_after_tokens"):
            _die(signal.Signals[self.script["signal"]])

    def _reason(self, request: Request, token: int) -> str | None:
        ends = token == model.END or token in request.config["stop_token_ids"]
        if ends and not request.config["ignore_eos"]:
            return "stop"
        used = len(request.prompt) + len(request.answer)
        full = used >= (self._config.max_single_sequence_length or 2048)
        # 0 is met by the first token, -1 never.
        limit = request.config["max_tokens"]
        return "length" if full or 0 <= limit <= len(request.answer) else None

    def _logprob(self, request: Request, token: int) -> dict[str, Any]:
        temperature = 1.0 if request.config["temperature"] is None else request.config["temperature"]
        scores = model.logits(request.prompt, request.answer)
        values = [0.0] * len(scores)
        if temperature > 0:
            values = model.logprobs([score / temperature for score in scores])
        order = sorted(range(len(values)), key=values.__getitem__, reverse=True)

        def one(index: int) -> dict[str, Any]:
            text = bytes([index % 256])
            return {"token": text.decode(errors="replace"), "logprob": values[index], "bytes": list(text)}

        top = [one(index) for index in order[: request.config["top_logprobs"] or 0]]
        assert all(math.isfinite(value) for value in values)
        return {**one(token), "top_logprobs": top}

    def _finish(self, request: Request) -> None:
        self._live.remove(request)
        self._cache = [*request.prompt, *request.answer]
        prompt, answer = len(request.prompt), len(request.answer)
        # A count of 0 has no key.
        extra = {"prefill_tokens": prompt - request.cached_tokens, "decode_tokens": answer - 1, "ttft_s": 9.0}
        usage = {
            "prompt_tokens": prompt,
            "completion_tokens": answer,
            "total_tokens": prompt + answer,
            "extra": {name: value for name, value in extra.items() if value},
        }
        self._emit(request.request_id, "", None, None, usage)


def _begun(text: str, stop: list[str]) -> int:
    sizes = [size for word in stop for size in range(1, len(word)) if text.endswith(word[:size])]
    return max(sizes, default=0)


def _die(number: signal.Signals) -> None:
    """End this process as a fault of this very thread would, which does not go on meanwhile."""
    signal.pthread_kill(threading.get_ident(), number)
    threading.Event().wait()
