"""Turns of a chat, and the tools that the model may call in it."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from inference.api.fields import Content, Strict
from inference.api.json_schema import check_schema
from inference.errors import InvalidRequestError
from inference.generation import Message, ToolCall

MAX_TOOLS = 128
MAX_TOOLS_BYTES = 256 * 1024
CHOICES = ("auto", "none", "required")

FunctionName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
CallId = Annotated[str, Field(min_length=1, max_length=200)]


class CalledFunction(Strict):
    """A function that was called; *arguments* is a JSON text, and may be what a model got wrong."""

    name: FunctionName
    arguments: str = ""


class CalledTool(Strict):
    """A call that an earlier turn of the assistant made."""

    id: CallId
    type: Literal["function"] = "function"
    function: CalledFunction

    def to_call(self) -> ToolCall:
        """Return the call as the engines know it."""
        return ToolCall(self.id, self.function.name, self.function.arguments or "{}")


class ChatMessage(Strict):
    """One turn; a turn of the assistant may be empty, as clients send back."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content | None = None
    tool_calls: Annotated[list[CalledTool], Field(max_length=MAX_TOOLS)] | None = None
    tool_call_id: CallId | None = None

    def to_message(self) -> Message:
        """Return the turn as the engines know it: a developer is a system."""
        role = "system" if self.role == "developer" else self.role
        calls = tuple(call.to_call() for call in self.tool_calls or ()) if role == "assistant" else ()
        return Message(role, self.content or "", calls, self.tool_call_id if role == "tool" else None)


class ToolFunction(Strict):
    """A function's name, what it is for, and the JSON schema of its arguments."""

    name: FunctionName
    description: Annotated[str, Field(max_length=16_384)] | None = None
    parameters: dict[str, Any] | None = None


class Tool(Strict):
    """A tool that the model may call: a function is the only kind."""

    type: Literal["function"]
    function: ToolFunction


class NamedFunction(Strict):
    """The name of a function."""

    name: FunctionName


class NamedTool(Strict):
    """The one tool that the model is to call."""

    type: Literal["function"]
    function: NamedFunction


def _choice(value: Any) -> Any:
    if isinstance(value, (str, dict, type(None))) and (not isinstance(value, str) or value in CHOICES):
        return value
    raise ValueError(
        'expected "auto", "none", "required" or {"type": "function", "function": {"name": "..."}}'
    )


def _same_name_once(tools: list[Tool]) -> list[Tool]:
    names = [tool.function.name for tool in tools]
    if len(set(names)) != len(names):
        raise ValueError("expected functions of different names")
    return tools


Tools = Annotated[list[Tool], Field(max_length=MAX_TOOLS), AfterValidator(_same_name_once)]
_AnyChoice = Literal["auto", "none", "required"] | NamedTool
ToolChoice = Annotated[_AnyChoice, BeforeValidator(_choice, json_schema_input_type=_AnyChoice)]


def request_tools(
    tools: list[Tool] | None, choice: str | NamedTool | None
) -> tuple[tuple[dict[str, Any], ...], str | None]:
    """Return tools and choice as `GenerateRequest` has them; no tools where none may be called.

    Raises:
        InvalidRequestError: a choice without its tool, or a schema that is none of an object.
        InvalidSchemaError: a schema beyond the bounds.
    """
    if choice == "none":
        return (), None
    if not tools:
        if choice in (None, "auto"):
            return (), None
        raise InvalidRequestError("tool_choice: there are no tools to choose from", param="tool_choice")
    found = tuple(_checked(at, tool) for at, tool in enumerate(tools))
    if len(json.dumps(found).encode()) > MAX_TOOLS_BYTES:
        raise InvalidRequestError(f"tools: expected at most {MAX_TOOLS_BYTES} bytes of JSON", param="tools")
    return found, _chosen(tools, choice)


def _checked(at: int, tool: Tool) -> dict[str, Any]:
    """Return the tool in OpenAI's form; a function without parameters takes none."""
    function, path = tool.function, f"tools.{at}.function"
    if function.name in CHOICES:
        raise InvalidRequestError(
            f"{path}.name: expected another name, {function.name!r} is a choice", param=f"{path}.name"
        )
    schema = function.parameters or {"type": "object", "properties": {}}
    if schema.get("type", "object") != "object" or not isinstance(schema.get("properties", {}), dict):
        raise InvalidRequestError(
            f'{path}.parameters: expected the JSON schema of an object, {{"type": "object", ...}}',
            param=f"{path}.parameters",
        )
    schema = check_schema({"type": "object", **schema}, f"{path}.parameters")
    described = {} if function.description is None else {"description": function.description}
    return {"type": "function", "function": {"name": function.name, **described, "parameters": schema}}


def _chosen(tools: list[Tool], choice: str | NamedTool | None) -> str:
    if not isinstance(choice, NamedTool):
        return choice or "auto"
    name = choice.function.name
    if name not in [tool.function.name for tool in tools]:
        raise InvalidRequestError(
            f"tool_choice: no tool is called {name!r}", param="tool_choice", hint="name one of tools"
        )
    return name
