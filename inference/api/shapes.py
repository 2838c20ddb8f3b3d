"""OpenAI's response shapes: bodies and server-sent events, as bytes and plain values."""

from __future__ import annotations

import codecs
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from json.encoder import encode_basestring
from typing import Any

from inference.generation import Chunk, FinishReason, Generation, Timings, TokenLogprob, ToolCall, Usage

_UTF8 = codecs.getincrementaldecoder("utf-8")
_DONE = b"data: [DONE]\n\n"
# Stands for the text in the constant part of an event. No model name can hold it.
_SLOT = "\x00"


def to_bytes(value: Any) -> bytes:
    """Encode as JSON that is valid UTF-8 whatever an engine put into its text."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def event(value: Any) -> bytes:
    """Return one server-sent event."""
    return b"data: " + to_bytes(value) + b"\n\n"


def usage_of(usage: Usage) -> dict[str, Any]:
    """Return OpenAI's usage object."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


def timings_of(timings: Timings | None, usage: Usage) -> dict[str, Any]:
    """Return ``{"timings": ...}`` as llama.cpp's clients read it; empty when the engine kept no time."""
    if timings is None:
        return {}
    prompt_n = usage.prompt_tokens - usage.cached_tokens
    return {
        "timings": {
            "cache_n": usage.cached_tokens,
            "prompt_n": prompt_n,
            "prompt_ms": timings.prefill_s * 1000,
            "prompt_per_second": _rate(prompt_n, timings.prefill_s),
            "predicted_n": usage.completion_tokens,
            "predicted_ms": timings.decode_s * 1000,
            "predicted_per_second": _rate(usage.completion_tokens, timings.decode_s),
        }
    }


def _rate(count: int, seconds: float) -> float | None:
    return count / seconds if seconds > 0 else None


class Shape(ABC):
    """How one choice of an answer is told to its client.

    The constant part of an event is encoded once; a token then costs one JSON string.

    Args:
        index: which choice it is.
        extras: what the body, or the last event of a stream, has besides OpenAI's fields.
    """

    body_object: str
    chunk_object: str

    def __init__(
        self,
        *,
        completion_id: str,
        created: int,
        model: str,
        fingerprint: str,
        logprobs: bool,
        include_usage: bool,
        index: int = 0,
        extras: Mapping[str, Any] | None = None,
    ) -> None:
        self._common = {
            "id": completion_id,
            "created": created,
            "model": model,
            "system_fingerprint": fingerprint,
        }
        self._index = index
        self._extras = dict(extras or {})
        self._logprobs = logprobs
        self._include_usage = include_usage
        head, tail = event(self._chunk([self._text_choice(_SLOT)])).split(json.dumps(_SLOT).encode())
        self._head, self._tail = head, tail

    @abstractmethod
    def opening(self) -> bytes:
        """Return what comes before the choice's first text."""

    def piece(self, chunk: Chunk) -> bytes:
        """Return the event of one chunk's text."""
        if self._logprobs:
            return event(self._chunk([self._text_choice(chunk.text) | self._logprobs_of(chunk.logprobs)]))
        return self._head + encode_basestring(chunk.text).encode("utf-8", "replace") + self._tail

    def ending(self, chunk: Chunk) -> bytes:
        """Return the event that ends the choice: the calls of tools, if any, and the reason."""
        timings = timings_of(chunk.timings, chunk.usage or Usage(0, 0))
        end = self._chunk([self._end_choice(chunk.finish_reason)]) | timings | self._extras
        return self._calls(chunk.tool_calls) + event(end)

    def closing(self, usage: Usage) -> bytes:
        """Return the events that end a stream well: the usage of all choices if asked for, then [DONE]."""
        counts = event(self._chunk([]) | {"usage": usage_of(usage)}) if self._include_usage else b""
        return counts + _DONE

    def choice(self, generation: Generation) -> dict[str, Any]:
        """Return the whole choice, for an answer that is not streamed."""
        return {
            "index": self._index,
            **self._whole(generation),
            **self._logprobs_of(generation.logprobs),
            "finish_reason": generation.finish_reason.value,
        }

    def body(self, choices: list[dict[str, Any]], usage: Usage, timings: Timings | None) -> bytes:
        """Return the body of an answer that is not streamed."""
        return to_bytes(
            {
                "object": self.body_object,
                **self._common,
                "choices": choices,
                "usage": usage_of(usage),
                **timings_of(timings, usage),
                **self._extras,
            }
        )

    @abstractmethod
    def _delta(self, text: str | None) -> dict[str, Any]:
        """Return a choice's part with *text*, or with none at the end."""

    @abstractmethod
    def _whole(self, generation: Generation) -> dict[str, Any]:
        """Return a choice's part with the whole text."""

    def _calls(self, calls: Sequence[ToolCall]) -> bytes:
        """Return the event with the calls of tools; nothing where there are none."""
        return b""

    @abstractmethod
    def _logprobs_value(self, items: Iterable[TokenLogprob]) -> dict[str, Any]:
        """Return the value of a choice's logprobs."""

    def _logprobs_of(self, items: Iterable[TokenLogprob]) -> dict[str, Any]:
        return {"logprobs": self._logprobs_value(items) if self._logprobs else None}

    def _text_choice(self, text: str) -> dict[str, Any]:
        return {"index": self._index, **self._delta(text), "logprobs": None, "finish_reason": None}

    def _end_choice(self, reason: FinishReason | None) -> dict[str, Any]:
        value = None if reason is None else reason.value
        return {"index": self._index, **self._delta(None), "logprobs": None, "finish_reason": value}

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        usage = {"usage": None} if self._include_usage else {}
        return {"object": self.chunk_object, **self._common, "choices": choices, **usage}


class ChatShape(Shape):
    """``/v1/chat/completions``."""

    body_object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def opening(self) -> bytes:
        """Return the event that carries the role."""
        choice = self._text_choice("") | {"delta": {"role": "assistant", "content": ""}}
        return event(self._chunk([choice]))

    def _delta(self, text: str | None) -> dict[str, Any]:
        return {"delta": {} if text is None else {"content": text}}

    def _whole(self, generation: Generation) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": generation.text, "refusal": None}
        if generation.tool_calls:
            message |= {"content": generation.text or None, "tool_calls": _calls_of(generation.tool_calls)}
        return {"message": message}

    def _calls(self, calls: Sequence[ToolCall]) -> bytes:
        if not calls:
            return b""
        listed = [{"index": at, **call} for at, call in enumerate(_calls_of(calls))]
        return event(self._chunk([self._text_choice("") | {"delta": {"tool_calls": listed}}]))

    def _logprobs_value(self, items: Iterable[TokenLogprob]) -> dict[str, Any]:
        content = [{**_token(item), "top_logprobs": [_token(other) for other in item.top]} for item in items]
        return {"content": content, "refusal": None}


class CompletionShape(Shape):
    """``/v1/completions``; *text_offset* counts characters from the start of the text, echo and all."""

    body_object = "text_completion"
    chunk_object = "text_completion"

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        self._offset = 0
        self._characters = _UTF8("replace")

    def opening(self) -> bytes:
        """Return nothing: there is no role."""
        return b""

    def _delta(self, text: str | None) -> dict[str, Any]:
        return {"text": text or ""}

    def _whole(self, generation: Generation) -> dict[str, Any]:
        return {"text": generation.text}

    def _logprobs_value(self, items: Iterable[TokenLogprob]) -> dict[str, Any]:
        offsets, tokens = [], list(items)
        for item in tokens:
            offsets.append(self._offset)
            self._offset += self._length(item)
        return {
            "tokens": [item.token for item in tokens],
            "token_logprobs": [item.logprob for item in tokens],
            "top_logprobs": [_alternatives(item) for item in tokens],
            "text_offset": offsets,
        }

    def _length(self, item: TokenLogprob) -> int:
        """Return the characters that *item* ends; one that is cut over tokens belongs to the last of them."""
        if item.token_bytes is None:
            return len(item.token)
        return len(self._characters.decode(bytes(item.token_bytes)))


def _calls_of(calls: Sequence[ToolCall]) -> list[dict[str, Any]]:
    return [
        {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        for call in calls
    ]


def _alternatives(item: TokenLogprob) -> dict[str, float | None] | None:
    if item.logprob is None:
        return None
    return {other.token: other.logprob for other in item.top}


def _token(item: TokenLogprob) -> dict[str, Any]:
    raw = item.token.encode("utf-8", "replace") if item.token_bytes is None else item.token_bytes
    return {"token": item.token, "logprob": item.logprob, "bytes": list(raw)}
