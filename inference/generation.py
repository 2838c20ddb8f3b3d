"""The vocabulary of generation that every layer shares: a request, its chunks, its result."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any


class FinishReason(str, Enum):
    """Why a generation ended: a stop string or end-of-turn token, a token limit, or a call of tools."""

    STOP = "stop"
    LENGTH = "length"
    TOOL_CALLS = "tool_calls"


@dataclass(frozen=True)
class ToolCall:
    """A function that the model wants called; *arguments* is a JSON text, as the model wrote it."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class Message:
    """One turn of a chat; *role* is system, user, assistant or tool.

    A turn of the assistant may have *tool_calls*, and a tool's turn answers the one of *tool_call_id*.
    """

    role: str
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None

    def to_list(self) -> list[Any]:
        """Return the compact JSON form that `from_list` reads back."""
        data: list[Any] = [self.role, self.content]
        if self.tool_calls or self.tool_call_id is not None:
            data += [[list(dataclasses.astuple(call)) for call in self.tool_calls], self.tool_call_id]
        return data

    @classmethod
    def from_list(cls, data: list[Any]) -> Message:
        """Rebuild a turn that crossed the wire."""
        role, content, calls, answered = data if len(data) == 4 else (*data, (), None)
        return cls(role, content, tuple(ToolCall(*call) for call in calls), answered)


@dataclass(frozen=True)
class GenerateRequest:
    """What to generate. Exactly one of *messages*, *prompt* and *prompt_ids* is set.

    ``None`` always means "the default of the model, its task or the engine".

    Args:
        model: a registry name or alias; ``None`` or "auto" lets the selector choose.
        variant: the name of one of the model's variants; ``None`` lets the selector choose.
        task: a task name that the caller states, instead of having it guessed.
        speed: "fast", "balanced" or "quality".
        prompt: raw text, given to the model as it is.
        prompt_ids: a raw prompt in the model's own tokens, given to it as they are.
        max_tokens: upper limit of generated tokens; at least 1, and 0 with *echo*.
        temperature: 0 is greedy.
        seed: same seed, same text on the same machine and engine.
        stop: texts that end the generation and are not part of it.
        logprobs: whether chunks carry log-probabilities.
        top_logprobs: how many alternatives beside each token; 0 to 20.
        json_schema: the text must validate against this JSON schema; ``{}`` is any JSON object.
        grammar: the text must match this GBNF grammar; not together with *json_schema*.
        ignore_eos: go on to *max_tokens* whatever the model says (benchmarks).
        cache_prompt: whether the engine may reuse the KV cache of an earlier prompt.
        tools: functions that the model may call, each in OpenAI's form; with *messages* only.
        tool_choice: "auto", "none", "required", or the name of the function that is to be called.
        context_overflow: "error" refuses what the context has no room for; "slide" drops the oldest turns.
        keep_alive_s: how long the model stays after this request; -1 is for ever.
        echo: *prompt* comes first in the answer; with *logprobs* each of its tokens has its probability.
    """

    model: str | None = None
    variant: str | None = None
    task: str | None = None
    speed: str | None = None
    messages: tuple[Message, ...] | None = None
    prompt: str | None = None
    prompt_ids: tuple[int, ...] | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: bool = False
    top_logprobs: int = 0
    json_schema: Mapping[str, Any] | None = None
    grammar: str | None = None
    ignore_eos: bool = False
    cache_prompt: bool = True
    tools: tuple[Mapping[str, Any], ...] = ()
    tool_choice: str | None = None
    context_overflow: str | None = None
    keep_alive_s: float | None = None
    echo: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form that `from_dict` reads back; fields at their default are left out."""
        values = {f.name: (getattr(self, f.name), f.default) for f in dataclasses.fields(self)}
        # By identity: 0 is a temperature and a seed, and equals the False of a flag.
        data = {name: value for name, (value, default) in values.items() if value is not default}
        if not self.logit_bias:
            data.pop("logit_bias", None)
        if self.messages is not None:
            data["messages"] = [message.to_list() for message in self.messages]
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> GenerateRequest:
        """Rebuild a request that crossed the wire."""
        values = dict(data)
        if values.get("messages") is not None:
            values["messages"] = tuple(map(Message.from_list, values["messages"]))
        if values.get("prompt_ids") is not None:
            values["prompt_ids"] = tuple(values["prompt_ids"])
        values["tools"] = tuple(values.get("tools", ()))
        values["stop"] = tuple(values.get("stop", ()))
        values["logit_bias"] = {int(k): v for k, v in values.get("logit_bias", {}).items()}
        return cls(**values)


@dataclass(frozen=True)
class TokenLogprob:
    """A token's text, bytes and natural-log probability, with its likeliest alternatives.

    *logprob* is ``None`` of the first token of an echoed prompt: nothing comes before it. One that the
    model puts before every text has no text of its own.
    """

    token: str
    logprob: float | None
    token_bytes: tuple[int, ...] | None = None
    top: tuple[TokenLogprob, ...] = ()

    def to_list(self) -> list[Any]:
        """Return the compact JSON form that `from_list` reads back."""
        return [self.token, self.logprob, self.token_bytes, [t.to_list() for t in self.top]]

    @classmethod
    def from_list(cls, data: list[Any]) -> TokenLogprob:
        """Rebuild a value that crossed the wire."""
        token, logprob, raw, top = data
        raw = None if raw is None else tuple(raw)
        return cls(token, logprob, raw, tuple(cls.from_list(t) for t in top))


@dataclass(frozen=True)
class Usage:
    """Token counts of one generation, in the model's own tokens; an echoed prompt is not generated.

    *cached_tokens* of the prompt's tokens were found in the KV cache and not computed again.
    """

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0


@dataclass(frozen=True)
class Timings:
    """The engine's own clock for one generation, in seconds.

    *prefill_s* covers ``prompt_tokens - cached_tokens`` tokens, *decode_s* the generated ones.
    """

    prefill_s: float
    decode_s: float


@dataclass(frozen=True)
class Chunk:
    """A piece of generated text; the last one of a stream carries *finish_reason* and *usage*.

    *prefill* is (tokens processed, tokens in all) while the prompt is being read; such a chunk
    has no text. *tool_calls* come whole, all of them with the last chunk.
    """

    text: str = ""
    logprobs: tuple[TokenLogprob, ...] = ()
    prefill: tuple[int, int] | None = None
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    timings: Timings | None = None
    tool_calls: tuple[ToolCall, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the compact JSON form that `from_dict` reads back."""
        data: dict[str, Any] = {"t": self.text}
        if self.logprobs:
            data["l"] = [item.to_list() for item in self.logprobs]
        if self.prefill is not None:
            data["p"] = list(self.prefill)
        if self.finish_reason is not None:
            data["f"] = self.finish_reason.value
        if self.usage is not None:
            data["u"] = list(dataclasses.astuple(self.usage))
        if self.timings is not None:
            data["s"] = list(dataclasses.astuple(self.timings))
        if self.tool_calls:
            data["c"] = [list(dataclasses.astuple(call)) for call in self.tool_calls]
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Chunk:
        """Rebuild a chunk that crossed the wire."""
        return cls(
            text=data["t"],
            logprobs=tuple(TokenLogprob.from_list(item) for item in data.get("l", ())),
            prefill=tuple(data["p"]) if "p" in data else None,
            finish_reason=FinishReason(data["f"]) if "f" in data else None,
            usage=Usage(*data["u"]) if "u" in data else None,
            timings=Timings(*data["s"]) if "s" in data else None,
            tool_calls=tuple(ToolCall(*call) for call in data.get("c", ())),
        )


@dataclass(frozen=True)
class Generation:
    """A finished generation.

    *ttft_s* runs from the request to the first text, *total_s* to the last, on the caller's clock.
    *dropped_turns* were left out of the chat to make it fit.
    """

    text: str
    finish_reason: FinishReason
    usage: Usage
    timings: Timings | None
    logprobs: tuple[TokenLogprob, ...]
    model: str
    variant: str
    ttft_s: float
    total_s: float
    tool_calls: tuple[ToolCall, ...] = ()
    dropped_turns: int = 0


@dataclass(frozen=True)
class EmbedRequest:
    """What to embed: texts, or token lists of the model's own.

    Args:
        model: a registry name or alias; ``None`` lets the selector choose one for the task "embedding".
    """

    inputs: tuple[str | tuple[int, ...], ...]
    model: str | None = None
    variant: str | None = None
    keep_alive_s: float | None = None


@dataclass(frozen=True)
class Embeddings:
    """Vectors of unit length, one for each input and in its order."""

    vectors: tuple[tuple[float, ...], ...]
    prompt_tokens: int
    model: str
    variant: str
    total_s: float
