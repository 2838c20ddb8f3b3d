"""Ollama's request bodies: every field that is read, with its type and its bounds."""

from __future__ import annotations

import json
from collections import deque
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from inference.api.fields import Name, Penalty, Stop, Strict
from inference.api.json_schema import check_schema
from inference.api.keep_alive import KeepAlive
from inference.api.turns import CallId, FunctionName, Tools, request_tools
from inference.errors import InvalidRequestError
from inference.generation import EmbedRequest, GenerateRequest, Message, ToolCall

AUTO = "auto"
LATEST = "latest"
MAX_INPUTS = 2048


def _whole(value: Any) -> Any:
    """Take 128.0 for 128: clients whose only number is a float write it so."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _empty(what: str) -> BeforeValidator:
    """Return a check that refuses whatever is not empty; null, "", [] and false pass."""

    def check(value: Any) -> None:
        if value:
            raise ValueError(f"expected none: {what}")

    return BeforeValidator(check, json_schema_input_type=Any)


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


NoImages = Annotated[None, _empty("images cannot be read yet")]
NoThinking = Annotated[None, _empty("thinking cannot be told from the answer yet")]
NoSuffix = Annotated[None, _empty("filling in before a suffix is not supported")]
NoTemplate = Annotated[None, _empty("a request cannot bring its own template")]

Text = Annotated[str, Field(max_length=2**20)]
# Behind the bounds: in front of them, the document would have pydantic's words for them.
Whole = BeforeValidator(_whole)
Count = Annotated[int, Field(ge=-(2**31), lt=2**31), Whole]
Texts = Annotated[
    list[Text],
    BeforeValidator(_listed, json_schema_input_type=Text | list[Text]),
    Field(max_length=MAX_INPUTS),
]
Format = dict[str, Any] | Literal["", "json"] | None


class Options(Strict):
    """What Ollama calls options; those that are not here are accepted and ignored."""

    num_predict: Count | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=1000), Whole] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repeat_penalty: Annotated[float, Field(gt=0, le=2)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63), Whole] | None = None
    stop: Stop | None = None

    def values(self) -> dict[str, Any]:
        """Return the arguments of `GenerateRequest` that they set: below zero means "no limit"."""
        limit = self.num_predict if self.num_predict is not None and self.num_predict > 0 else None
        return {
            "max_tokens": limit,
            "temperature": self.temperature,
            "top_k": None if self.top_k is None else max(0, self.top_k),
            # 0 leaves the likeliest token only; the engines' own scale begins above it.
            "top_p": None if self.top_p is None else max(self.top_p, 1e-6),
            "min_p": self.min_p,
            "repetition_penalty": self.repeat_penalty,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
            "seed": None if self.seed is None or self.seed < 0 else self.seed % 2**32,
            "stop": tuple(self.stop or ()),
        }


class NamedBody(Strict):
    """A body that says which model; old clients call it *name*."""

    model: Name | None = None
    name: Name | None = None

    @property
    def asked(self) -> str:
        """The name as the client wrote it.

        Raises:
            InvalidRequestError: there is none.
        """
        name = self.model or self.name
        if name is None:
            raise InvalidRequestError("model: missing", param="model", hint="GET /api/tags lists the models")
        return name

    @property
    def choice(self) -> tuple[str, str | None]:
        """Model and variant: what follows a colon names a variant, except behind "auto".

        ``:latest``, which Ollama's clients append to every name without a tag, leaves the variant open.
        """
        name = self.asked.removesuffix(f":{LATEST}")
        model, _, variant = name.partition(":")
        return (name, None) if model == AUTO else (model, variant or None)

    @property
    def is_auto(self) -> bool:
        """Whether the model is left to the selector."""
        return self.asked.partition(":")[0] == AUTO


class _Prompted(NamedBody):
    """What chats and generations share."""

    stream: bool | None = None
    format: Format = None
    options: Options | None = None
    keep_alive: KeepAlive = None
    think: NoThinking = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    def _shared(self) -> dict[str, Any]:
        model, variant = self.choice
        return {
            "model": model,
            "variant": variant,
            "keep_alive_s": self.keep_alive,
            "json_schema": self._schema(),
            "logprobs": bool(self.logprobs),
            "top_logprobs": self.top_logprobs or 0,
            **(self.options or Options()).values(),
        }

    def _schema(self) -> dict[str, Any] | None:
        if not isinstance(self.format, dict):
            return {} if self.format == "json" else None
        return check_schema(self.format, "format")


class GenerateBody(_Prompted):
    """The body of ``POST /api/generate``; without a prompt it loads or unloads."""

    prompt: Text | None = None
    system: Text | None = None
    raw: bool | None = None
    suffix: NoSuffix = None
    template: NoTemplate = None
    images: NoImages = None

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to answer."""
        return not self.prompt

    def to_request(self, *, is_chat: bool) -> GenerateRequest:
        """Return what is to be generated.

        Args:
            is_chat: whether the model has a form for conversations; without one its text stands as it is.
        """
        values, prompt = self._shared(), self.prompt or ""
        if self.raw or not is_chat:
            system = "" if self.raw or not self.system else f"{self.system}\n\n"
            return GenerateRequest(prompt=system + prompt, **values)
        system_turn = (Message("system", self.system),) if self.system else ()
        return GenerateRequest(messages=(*system_turn, Message("user", prompt)), **values)


class FunctionCall(Strict):
    """Which function, and with what."""

    name: FunctionName
    arguments: dict[str, Any] = Field(default_factory=dict)


class Call(Strict):
    """A function that the model had called; older clients give it no id."""

    id: CallId | None = None
    function: FunctionCall


class ChatTurn(Strict):
    """One turn; a tool's turn names the function, or the call, that it answers."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str | None = None
    images: NoImages = None
    tool_calls: Annotated[list[Call], Field(max_length=128)] | None = None
    tool_name: str | None = None
    tool_call_id: CallId | None = None


class ChatBody(_Prompted):
    """The body of ``POST /api/chat``; without messages it loads or unloads."""

    messages: Annotated[list[ChatTurn], Field(max_length=4096)] | None = None
    tools: Tools | None = None
    truncate: bool | None = None

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to answer."""
        return not self.messages

    def to_request(self) -> GenerateRequest:
        """Return what is to be generated: as Ollama does, the oldest turns leave a context that is full."""
        tools, tool_choice = request_tools(self.tools, None)
        if tools and self.format:
            raise InvalidRequestError(
                "format and tools both constrain the text; expected one", param="format"
            )
        return GenerateRequest(
            messages=tuple(_turns(self.messages or [])),
            tools=tools,
            tool_choice=tool_choice,
            context_overflow="error" if self.truncate is False else "slide",
            **self._shared(),
        )


class EmbedBody(NamedBody):
    """The body of ``POST /api/embed``; without input it loads."""

    input: Texts | None = None
    dimensions: Annotated[int, Field(ge=0, le=2**20), Whole] | None = None
    keep_alive: KeepAlive = None

    @property
    def inputs(self) -> tuple[str, ...]:
        """The texts; an only one that is empty is none."""
        return () if self.input in (None, [""]) else tuple(self.input or ())

    def to_request(self) -> EmbedRequest:
        """Return what is to be embedded."""
        model, variant = self.choice
        return EmbedRequest(
            self.inputs, model=None if self.is_auto else model, variant=variant, keep_alive_s=self.keep_alive
        )


class OldEmbedBody(NamedBody):
    """The body of ``POST /api/embeddings``: one text."""

    prompt: Text | None = None
    keep_alive: KeepAlive = None

    def to_embed(self) -> EmbedBody:
        """Return the same as `EmbedBody`."""
        return EmbedBody(model=self.asked, input=[self.prompt or ""], keep_alive=self.keep_alive)


class PullBody(NamedBody):
    """The body of ``POST /api/pull``."""

    stream: bool | None = None


def _turns(turns: list[ChatTurn]) -> list[Message]:
    """Return the turns as the engines know them.

    Ollama's tools answer by their name or just in order: every call gets an id, and every answer that of
    the first call which it may be for.
    """
    open_calls: deque[ToolCall] = deque()
    found: list[Message] = []
    for turn in turns:
        calls = tuple(
            ToolCall(call.id or f"call_{len(found)}_{index}", call.function.name, _text(call))
            for index, call in enumerate(turn.tool_calls or ())
        )
        open_calls.extend(calls)
        answers = _answered(turn, open_calls) if turn.role == "tool" else None
        found.append(Message(turn.role, turn.content or "", calls, answers))
    return found


def _text(call: Call) -> str:
    return json.dumps(call.function.arguments, ensure_ascii=False)


def _answered(turn: ChatTurn, open_calls: deque[ToolCall]) -> str | None:
    """Take the call that *turn* answers out of those that wait, and return its id."""
    named = turn.tool_name is not None or turn.tool_call_id is not None
    for call in open_calls:
        if not named or turn.tool_name == call.name or turn.tool_call_id == call.id:
            open_calls.remove(call)
            return call.id
    return turn.tool_call_id
