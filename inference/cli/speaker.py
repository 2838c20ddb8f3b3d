"""Speakers: who answers a conversation for the command line, a running daemon or this process."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from inference.cli.bring import built, pulled
from inference.client import Client
from inference.console import build_bar, download_bar
from inference.errors import ModelNotBuiltError, ModelNotPulledError

T = TypeVar("T")
Turn = Mapping[str, str]
"""``role`` and ``content``."""


@dataclass(frozen=True)
class Told:
    """What an answer was; ``None`` is unknown.

    Args:
        ttft_s: from the question to the first text, as it was seen here.
        tokens_per_s: after the first text, as it was seen here.
    """

    model: str
    variant: str | None
    finish_reason: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    ttft_s: float | None
    tokens_per_s: float | None
    dropped_turns: int | None


class Speaker(Protocol):
    """Answers turns; *told* is about the last answer that came to its end."""

    told: Told | None

    def say(self, turns: Sequence[Turn], options: Mapping[str, Any]) -> Generator[str, None, None]:
        """Yield the answer's text as it comes; closing the iterator stops the computation."""

    def whole(self, turns: Sequence[Turn], options: Mapping[str, Any]) -> dict[str, Any]:
        """Return the answer as one JSON value."""

    def model(self, name: str) -> str:
        """Return the registered name that *name* means.

        Raises:
            ModelNotFoundError: there is none.
        """


class DaemonSpeaker:
    """Has the daemon answer."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.told: Told | None = None

    def say(self, turns: Sequence[Turn], options: Mapping[str, Any]) -> Generator[str, None, None]:
        """See `Speaker`."""
        body = {**options, "messages": list(turns), "stream_options": {"include_usage": True}}
        watch = _Watch()
        last: dict[str, Any] = {}
        with closing(self._chunks(body)) as chunks:
            for chunk in chunks:
                last |= {key: value for key, value in chunk.items() if value not in (None, [])}
                for choice in chunk["choices"]:
                    last["finish_reason"] = choice.get("finish_reason")
                    if text := choice["delta"].get("content"):
                        watch.note()
                        yield text
        usage = last.get("usage") or {}
        self.told = watch.told(
            str(last.get("model")),
            last.get("variant"),
            last.get("finish_reason"),
            usage.get("prompt_tokens"),
            usage.get("completion_tokens"),
            (last.get("jetllm") or {}).get("dropped_turns"),
        )

    def whole(self, turns: Sequence[Turn], options: Mapping[str, Any]) -> dict[str, Any]:
        """See `Speaker`."""
        body = {**options, "messages": list(turns)}
        answer: dict[str, Any] = self._provided(lambda: self._client.post("/v1/chat/completions", body), body)
        return answer

    def model(self, name: str) -> str:
        """See `Speaker`."""
        return str(self._client.get(f"/v1/models/{name}")["id"])

    def _chunks(self, body: Mapping[str, Any]) -> Generator[dict[str, Any], None, None]:
        def first() -> tuple[dict[str, Any] | None, Generator[dict[str, Any], None, None]]:
            chunks = self._client.chat(body)
            return next(chunks, None), chunks

        chunk, rest = self._provided(first, body)
        with closing(rest):
            if chunk is not None:
                yield chunk
                yield from rest

    def _provided(self, work: Callable[[], T], body: Mapping[str, Any]) -> T:
        """Return what *work* returns, with what it lacks of a named model brought by the daemon first."""
        model, variant = body.get("model"), body.get("variant")
        try:
            return work()
        except ModelNotPulledError as error:
            if model is None or str(model).partition(":")[0] == "auto":
                raise
            if isinstance(error, ModelNotBuiltError):
                built(self._client, None, model, variant or error.details.get("variant"))
            else:
                pulled(self._client, None, model, variant or error.details.get("variant"))
        return work()


class OwnSpeaker:
    """Answers in this process."""

    def __init__(self, service: Any) -> None:
        self._service = service
        self.told: Told | None = None

    def say(self, turns: Sequence[Turn], options: Mapping[str, Any]) -> Generator[str, None, None]:
        """See `Speaker`."""
        watch = _Watch()
        with self._started(turns, options) as stream:
            for chunk in stream:
                if chunk.text:
                    watch.note()
                    yield chunk.text
        result = stream.result
        self.told = watch.told(
            result.model,
            result.variant,
            result.finish_reason.value,
            result.usage.prompt_tokens,
            result.usage.completion_tokens,
            result.dropped_turns,
        )

    def whole(self, turns: Sequence[Turn], options: Mapping[str, Any]) -> dict[str, Any]:
        """See `Speaker`."""
        from inference.inference_engine import as_dict

        with self._started(turns, options) as stream:
            for _ in stream:
                pass
        return as_dict(stream.result)

    def model(self, name: str) -> str:
        """See `Speaker`."""
        return str(self._service.model(name)["id"])

    def _started(self, turns: Sequence[Turn], options: Mapping[str, Any]) -> Any:
        """Start generating; what a named model lacks is brought and built first."""
        from inference.generation import GenerateRequest, Message
        from inference.provision import provided

        messages = tuple(Message(turn["role"], turn["content"]) for turn in turns)
        request = GenerateRequest(messages=messages, **options)
        model = request.model
        if model is None or model.partition(":")[0] == "auto":
            return self._service.generate(request)
        return provided(
            lambda: self._service.generate(request),
            self._service,
            model,
            request.variant,
            pulling=lambda: download_bar(model),
            building=lambda: build_bar(model),
        )


class _Watch:
    """Times an answer as its reader sees it."""

    def __init__(self) -> None:
        self._began_s = time.monotonic()
        self._first_s: float | None = None
        self._last_s = self._began_s

    def note(self) -> None:
        """Some text came."""
        self._last_s = time.monotonic()
        self._first_s = self._first_s or self._last_s

    def told(
        self,
        model: str,
        variant: str | None,
        finish_reason: str | None,
        prompt_tokens: int | None,
        completion_tokens: int | None,
        dropped_turns: int | None,
    ) -> Told:
        """Return what is known at the answer's end."""
        ttft_s = None if self._first_s is None else self._first_s - self._began_s
        took_s = self._last_s - (self._first_s or self._last_s)
        many = completion_tokens is not None and completion_tokens > 1 and took_s > 0
        rate = (completion_tokens - 1) / took_s if many and completion_tokens else None
        return Told(
            model, variant, finish_reason, prompt_tokens, completion_tokens, ttft_s, rate, dropped_turns
        )
