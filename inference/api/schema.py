"""Request bodies: every field that is read, with its type and its bounds."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal

from pydantic import Field

from inference.api.fields import (
    MAX_PROMPTS,
    Bias,
    ChoiceCount,
    Grammar,
    Name,
    Penalty,
    Prompt,
    Prompts,
    Stop,
    Strict,
    TaskName,
    TokenCount,
    TokenCountOrNone,
    TokenId,
    read,
)
from inference.api.json_schema import check_schema
from inference.api.keep_alive import KeepAlive
from inference.api.turns import ChatMessage, ToolChoice, Tools, request_tools
from inference.errors import InvalidRequestError
from inference.generation import GenerateRequest

__all__ = [
    "BuildBody",
    "ChatBody",
    "CompletionBody",
    "LoadBody",
    "PullBody",
    "SelectBody",
    "UnloadBody",
    "read",
]


class StreamOptions(Strict):
    """What a stream carries beside its text."""

    include_usage: bool | None = None


class NamedSchema(Strict):
    """OpenAI's wrapper around a JSON schema."""

    name: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")


class ResponseFormat(Strict):
    """The form that the text must have."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None


class Sampling(Strict):
    """The fields that chats and completions share."""

    model: Name | None = None
    variant: Name | None = None
    task: TaskName | None = None
    speed: Literal["fast", "balanced", "quality"] | None = None
    max_tokens: TokenCount | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=1000)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=2)] | None = None
    logit_bias: Annotated[dict[TokenId, Bias], Field(max_length=1024)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Stop | None = None
    n: ChoiceCount | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    grammar: Grammar | None = None
    context_overflow: Literal["error", "slide"] | None = None
    ignore_eos: bool | None = None
    cache_prompt: bool | None = None
    keep_alive: KeepAlive = None

    @property
    def include_usage(self) -> bool:
        """Whether the stream ends with a chunk of token counts."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def _shared(self) -> dict[str, Any]:
        """Return the arguments of `GenerateRequest` that both endpoints fill alike."""
        return {
            "model": None if self.model == "auto" else self.model,
            "variant": self.variant,
            "task": self.task,
            "speed": self.speed,
            "context_overflow": self.context_overflow,
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "min_p": self.min_p,
            "frequency_penalty": self.frequency_penalty,
            "presence_penalty": self.presence_penalty,
            "repetition_penalty": self.repetition_penalty,
            "logit_bias": {int(token): bias for token, bias in (self.logit_bias or {}).items()},
            "seed": None if self.seed is None else self.seed % 2**32,
            "stop": tuple(self.stop or ()),
            "json_schema": self._json_schema(),
            "grammar": self.grammar,
            "ignore_eos": bool(self.ignore_eos),
            "cache_prompt": self.cache_prompt is not False,
            "keep_alive_s": self.keep_alive,
        }

    def _json_schema(self) -> dict[str, Any] | None:
        wanted = self.response_format
        if wanted is None or wanted.type == "text":
            return None
        if self.grammar is not None:
            raise InvalidRequestError(
                "grammar and response_format both constrain the text; expected one of them", param="grammar"
            )
        if wanted.type == "json_object":
            return {}
        if wanted.json_schema is None:
            raise InvalidRequestError(
                'response_format: expected {"type": "json_schema", "json_schema": {"schema": {...}}}',
                param="response_format.json_schema",
            )
        return check_schema(wanted.json_schema.schema_, "response_format.json_schema.schema")


class ChatBody(Sampling):
    """The body of ``POST /v1/chat/completions``."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=4096)]
    max_completion_tokens: TokenCount | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: Tools | None = None
    functions: list[Any] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None

    def to_requests(self) -> list[GenerateRequest]:
        """Return what is to be generated, a request for each choice.

        Raises:
            InvalidRequestError: fields that contradict each other or are not served.
        """
        return _repeated(self.to_request(), self.n or 1)

    def to_request(self) -> GenerateRequest:
        """Return the request of the first choice; see `to_requests`."""
        if self.functions and self.tool_choice != "none":
            raise InvalidRequestError(
                "functions: the old form of tools is not served", param="functions", hint="send tools"
            )
        if self.top_logprobs and not self.logprobs:
            raise InvalidRequestError('top_logprobs needs "logprobs": true', param="top_logprobs")
        values = self._shared()
        values["max_tokens"] = self.max_completion_tokens or self.max_tokens
        values["messages"] = tuple(message.to_message() for message in self.messages)
        values["logprobs"] = bool(self.logprobs)
        values["top_logprobs"] = self.top_logprobs or 0
        values["tools"], values["tool_choice"] = request_tools(self.tools, self.tool_choice)
        constraint = next((name for name in ("grammar", "json_schema") if values[name] is not None), None)
        if values["tools"] and constraint is not None:
            name = "grammar" if constraint == "grammar" else "response_format"
            raise InvalidRequestError(f"{name} and tools both constrain the text; expected one", param=name)
        return GenerateRequest(**values)


class CompletionBody(Sampling):
    """The body of ``POST /v1/completions``."""

    prompt: Prompts
    max_tokens: TokenCountOrNone | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    best_of: ChoiceCount | None = None
    echo: bool | None = None
    suffix: str | None = None

    def to_requests(self) -> list[GenerateRequest]:
        """Return what is to be generated: for each prompt in its order, a request for each choice.

        Raises:
            InvalidRequestError: fields that contradict each other or are not served.
        """
        first, count = self.to_request(), self.n or 1
        if len(self.prompt) * count > MAX_PROMPTS:
            raise InvalidRequestError(f"n: expected at most {MAX_PROMPTS} choices in all", param="n")
        prompts = [dataclasses.replace(first, **_prompt(prompt)) for prompt in self.prompt]
        return [request for prompt in prompts for request in _repeated(prompt, count)]

    def to_request(self) -> GenerateRequest:
        """Return the request of the first choice; see `to_requests`."""
        if self.suffix:
            raise InvalidRequestError("suffix is not supported yet", param="suffix", hint="leave out suffix")
        if self.best_of not in (None, self.n or 1):
            raise InvalidRequestError(
                f"best_of: expected n, which is {self.n or 1}, found {self.best_of}",
                param="best_of",
                hint="every completion is given; leave out best_of",
            )
        values = self._shared() | _prompt(self.prompt[0])
        values["logprobs"] = self.logprobs is not None
        values["top_logprobs"] = self.logprobs or 0
        values["echo"] = bool(self.echo)
        return GenerateRequest(**values)


def _prompt(prompt: str | list[int]) -> dict[str, Any]:
    if isinstance(prompt, str):
        return {"prompt": prompt, "prompt_ids": None}
    return {"prompt": None, "prompt_ids": tuple(prompt)}


def _repeated(request: GenerateRequest, count: int) -> list[GenerateRequest]:
    """Return *request* as often as asked; a seed goes on by one, or all would be the same text."""
    if request.seed is None:
        return [request] * count
    return [dataclasses.replace(request, seed=(request.seed + n) % 2**32) for n in range(count)]


class SelectBody(Strict):
    """The body of ``POST /jetllm/v1/select``: a request as far as the choice depends on it."""

    model: Name | None = None
    variant: Name | None = None
    task: TaskName | None = None
    speed: Literal["fast", "balanced", "quality"] | None = None
    prompt: Prompt | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=4096)] | None = None
    context_tokens: TokenCount | None = None

    def to_request(self) -> GenerateRequest:
        """Return the request that is to be chosen for.

        Raises:
            InvalidRequestError: it has both a prompt and messages.
        """
        if self.prompt is not None and self.messages is not None:
            raise InvalidRequestError("expected a prompt or messages, not both", param="messages")
        return GenerateRequest(
            model=None if self.model == "auto" else self.model,
            variant=self.variant,
            task=self.task,
            speed=self.speed,
            prompt=self.prompt,
            messages=None if self.messages is None else tuple(m.to_message() for m in self.messages),
        )


class LoadBody(Strict):
    """The body of ``POST /jetllm/v1/models/load``."""

    model: Name
    variant: Name | None = None
    pin: bool | None = None
    keep_alive: KeepAlive = None
    stream: bool | None = None


class UnloadBody(Strict):
    """The body of ``POST /jetllm/v1/models/unload``."""

    model: Name


class PullBody(Strict):
    """The body of ``POST /jetllm/v1/models/<id>/pull``; with *stream* false the answer is the job."""

    variant: Name | None = None
    stream: bool | None = None


class BuildBody(Strict):
    """The body of ``POST /jetllm/v1/models/<id>/build``; with *stream* false the answer is the job."""

    variant: Name | None = None
    force: bool | None = None
    stream: bool | None = None
