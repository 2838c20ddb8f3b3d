"""The two ways to the same model that are compared: the bare engine, and HTTP through the daemon."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from inference.settings import worker_environment


@dataclass(frozen=True)
class Stream:
    """One generation as its reader saw it, on the monotonic clock."""

    first_s: float
    last_s: float
    tokens: int
    asked_s: float

    @property
    def ttft_s(self) -> float:
        """From the request to the first text."""
        return self.first_s - self.asked_s

    @property
    def decode_tokens_per_s(self) -> float:
        """Tokens after the first, over the time that they took."""
        return (self.tokens - 1) / (self.last_s - self.first_s)


def total_tokens_per_s(streams: list[Stream]) -> float:
    """Of concurrent streams: all tokens after each first one, over the time from first to last."""
    span_s = max(s.last_s for s in streams) - min(s.first_s for s in streams)
    return sum(s.tokens - 1 for s in streams) / span_s


class BareEngine:
    """benchmarks/bare_engine.py in a child process."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.bare_engine"],
            env=worker_environment() | {"PYTHONPATH": "."},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._ask(options)

    def _ask(self, command: Any) -> Any:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def run(self, prompts: list[str], max_tokens: int) -> list[Stream]:
        """Run the prompts at once."""
        streams = [{"prompt": prompt, "max_tokens": max_tokens} for prompt in prompts]
        return [
            Stream(first_s, last_s, int(tokens), asked_s)
            for first_s, last_s, tokens, asked_s in self._ask({"streams": streams})
        ]

    def __enter__(self) -> BareEngine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()


class HttpClient:
    """A client that costs little: one socket a stream, no parsing beyond the event's frame."""

    def __init__(self, port: int, model: str) -> None:
        self._port = port
        self._model = model

    def run(self, prompts: list[str], max_tokens: int) -> list[Stream]:
        """Run the prompts at once."""
        results: dict[int, Stream] = {}

        def one(index: int, prompt: str) -> None:
            results[index] = self._one(prompt, max_tokens)

        threads = [threading.Thread(target=one, args=item) for item in enumerate(prompts)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return [results[index] for index in range(len(prompts))]

    def _one(self, prompt: str, max_tokens: int) -> Stream:
        body = json.dumps(
            {
                "model": self._model,
                "messages": [{"role": "user", "content": prompt}],
                "max_tokens": max_tokens,
                "temperature": 0,
                "ignore_eos": True,
                "stream": True,
                "cache_prompt": False,
            }
        ).encode()
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        request = b"%sContent-Length: %d\r\n\r\n%s" % (head, len(body), body)
        times: list[float] = []
        with socket.create_connection(("127.0.0.1", self._port)) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            asked_s = time.monotonic()
            connection.sendall(request)
            tail = b""
            while b"[DONE]" not in tail:
                data = connection.recv(65536)
                if not data:
                    raise ConnectionError(f"the stream ended early: {tail!r}")
                now_s = time.monotonic()
                events, tail = _count(tail + data)
                times += [now_s] * events
        return Stream(times[0], times[-1], len(times), asked_s)


def _count(data: bytes) -> tuple[int, bytes]:
    """Count whole events with text; return what is left of the last one."""
    *events, tail = data.split(b"\n\n")
    marked = [event for event in events if b'"delta":{"content":"' in event]
    done = events[-1] if events and b"[DONE]" in events[-1] else tail
    return len(marked), done
