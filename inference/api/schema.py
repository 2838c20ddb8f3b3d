"""Request bodies: every field that is read, with its type and its bounds."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from inference.api.json_schema import check_schema
from inference.errors import InvalidRequestError
from inference.generation import GenerateRequest, Message

MAX_TOKENS = 1_048_576
MAX_GRAMMAR_BYTES = 64 * 1024
_Body = TypeVar("_Body", bound="_Strict")


def _text_of(content: Any) -> Any:
    """Join text parts; a string stays as it is, and what is neither is left to the type check."""
    if not isinstance(content, list):
        return content
    texts = []
    for part in content:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise ValueError('expected a string or parts of {"type": "text", "text": "..."}')
        texts.append(part["text"])
    return "".join(texts)


def _single(prompt: Any) -> Any:
    if isinstance(prompt, list):
        if len(prompt) != 1 or not isinstance(prompt[0], str):
            raise ValueError("expected one string; send one request per prompt")
        return prompt[0]
    return prompt


def _listed(stop: Any) -> Any:
    return [stop] if isinstance(stop, str) else stop


def _only_one(count: int | None) -> int | None:
    if count not in (None, 1):
        raise ValueError("expected 1; send one request per completion")
    return count


def _grammar(text: str) -> str:
    if len(text.encode()) > MAX_GRAMMAR_BYTES:
        raise ValueError(f"expected at most {MAX_GRAMMAR_BYTES} bytes of GBNF")
    return text


Name = Annotated[str, Field(min_length=1, max_length=200)]
Content = Annotated[str, BeforeValidator(_text_of)]
Stop = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=256)]], BeforeValidator(_listed), Field(max_length=16)
]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Bias = Annotated[float, Field(ge=-100, le=100)]
TokenId = Annotated[str, Field(pattern=r"^[0-9]{1,7}$")]
TaskName = Annotated[str, Field(pattern=r"^[a-z_]{1,40}$")]
TokenCount = Annotated[int, Field(ge=1, le=MAX_TOKENS)]
TokenCountOrNone = Annotated[int, Field(ge=0, le=MAX_TOKENS)]
One = Annotated[int | None, AfterValidator(_only_one)]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)


class ChatMessage(_Strict):
    """One turn; a turn of the assistant may be empty, as clients send back."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content | None = None

    def to_message(self) -> Message:
        """Return the turn as the engines know it: a developer is a system."""
        role = "system" if self.role == "developer" else self.role
        return Message(role, self.content or "")


class StreamOptions(_Strict):
    """What a stream carries beside its text."""

    include_usage: bool | None = None


class NamedSchema(_Strict):
    """OpenAI's wrapper around a JSON schema."""

    name: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")


class ResponseFormat(_Strict):
    """The form that the text must have."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None


class Sampling(_Strict):
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
    n: One = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    grammar: Annotated[str, Field(min_length=1), AfterValidator(_grammar)] | None = None
    ignore_eos: bool | None = None
    cache_prompt: bool | None = None

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
    tools: list[Any] | None = None
    functions: list[Any] | None = None
    tool_choice: Any = None

    def to_request(self) -> GenerateRequest:
        """Return what is to be generated.

        Raises:
            InvalidRequestError: fields that contradict each other or are not served.
        """
        self._check_tools()
        if self.top_logprobs and not self.logprobs:
            raise InvalidRequestError('top_logprobs needs "logprobs": true', param="top_logprobs")
        values = self._shared()
        values["max_tokens"] = self.max_completion_tokens or self.max_tokens
        values["messages"] = tuple(message.to_message() for message in self.messages)
        values["logprobs"] = bool(self.logprobs)
        values["top_logprobs"] = self.top_logprobs or 0
        return GenerateRequest(**values)

    def _check_tools(self) -> None:
        if self.tool_choice == "none":
            return
        asked = next((name for name in ("tools", "functions") if getattr(self, name)), None)
        if asked is None and self.tool_choice not in (None, "auto"):
            asked = "tool_choice"
        if asked is not None:
            raise InvalidRequestError(
                f"{asked}: calling tools is not supported yet",
                param=asked,
                hint=f'leave out {asked}, or send "tool_choice": "none"',
            )


class CompletionBody(Sampling):
    """The body of ``POST /v1/completions``."""

    prompt: Annotated[str, BeforeValidator(_single), Field(min_length=1)]
    max_tokens: TokenCountOrNone | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    best_of: One = None
    echo: bool | None = None
    suffix: str | None = None

    def to_request(self) -> GenerateRequest:
        """Return what is to be generated.

        Raises:
            InvalidRequestError: fields that contradict each other or are not served.
        """
        if self.suffix:
            raise InvalidRequestError("suffix is not supported yet", param="suffix", hint="leave out suffix")
        values = self._shared()
        values["prompt"] = self.prompt
        values["logprobs"] = self.logprobs is not None
        values["top_logprobs"] = self.logprobs or 0
        values["echo"] = bool(self.echo)
        return GenerateRequest(**values)


class SelectBody(_Strict):
    """The body of ``POST /jetllm/v1/select``: a request as far as the choice depends on it."""

    model: Name | None = None
    variant: Name | None = None
    task: TaskName | None = None
    speed: Literal["fast", "balanced", "quality"] | None = None
    prompt: Annotated[str, BeforeValidator(_single)] | None = None
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


class LoadBody(_Strict):
    """The body of ``POST /jetllm/v1/models/load``."""

    model: Name
    variant: Name | None = None
    pin: bool | None = None


class UnloadBody(_Strict):
    """The body of ``POST /jetllm/v1/models/unload``."""

    model: Name


class PullBody(_Strict):
    """The body of ``POST /jetllm/v1/models/<id>/pull``."""

    variant: Name | None = None


class BuildBody(_Strict):
    """The body of ``POST /jetllm/v1/models/<id>/build``."""

    variant: Name | None = None
    force: bool | None = None


def read(cls: type[_Body], data: dict[str, Any]) -> _Body:
    """Check *data* against a body's fields.

    Raises:
        InvalidRequestError: the first field at fault is its *param*; texts are never quoted.
    """
    try:
        return cls.model_validate(data)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_context=False)[0]
    param = ".".join(str(part) for part in problem["loc"] if part != "[key]")[:200]
    wanted = problem["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    if problem["type"] == "missing":
        raise InvalidRequestError(f"{param}: missing", param=param, hint="docs/api.md lists the fields")
    verb = "" if wanted.startswith("expected") else "expected "
    raise InvalidRequestError(
        f"{param}: {verb}{wanted[0].lower()}{wanted[1:]}, found {_found(problem)}",
        param=param,
        hint="docs/api.md lists the fields and their bounds",
    )


def _found(problem: Any) -> str:
    value = problem["input"]
    if problem["type"] == "literal_error" and isinstance(value, str):
        return repr(value[:32])
    if isinstance(value, str):
        return f"a string of {len(value)} characters"
    if isinstance(value, (list, dict)):
        return f"{'a list' if isinstance(value, list) else 'an object'} of {len(value)}"
    return json.dumps(value)
