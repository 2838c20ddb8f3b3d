"""Tools with llama.cpp: whether a model's template shows them, calls that must be made, calls that were.

What was found (xllamacpp 2026.10, November 2026) and where it is answered here:

- a template that knows no tools leaves them out without a word: the prompt is rendered with and without;
- with "required" its grammar still lets any text come before the call, which a small model goes on with
  for ever: a call that must be made is a JSON schema of ours, and the grammar of the text from its start;
- a function of the caller's choice is not understood: it is the only one that our schema has.
"""

from __future__ import annotations

import dataclasses
import json
import secrets
from collections.abc import Callable, Mapping
from typing import Any

from inference.errors import InvalidRequestError, JetLLMError
from inference.generation import Chunk, FinishReason, GenerateRequest, ToolCall

ALIVE = Chunk(prefill=(1, 1))
"""Says nothing but that a call is being written."""

_PROBE = {
    "type": "function",
    "function": {"name": "probe", "description": "probe", "parameters": {"type": "object", "properties": {}}},
}


def renders_tools(ask: Callable[..., Any]) -> bool:
    """Whether the chat template of the server behind *ask* shows the model its tools."""
    messages = [{"role": "user", "content": "a"}]
    try:
        plain = ask("/apply-template", {"messages": messages})["prompt"]
        return bool(plain != ask("/apply-template", {"messages": messages, "tools": [_PROBE]})["prompt"])
    except JetLLMError:
        return False  # it has no template, or one that refuses this chat


def constrained(request: GenerateRequest) -> GenerateRequest:
    """Return *request*, in which a tool must be called, as one for the JSON text of a call.

    Raises:
        InvalidRequestError: there is no tool of the name that was chosen.
    """
    tools = [tool["function"] for tool in request.tools]
    if request.tool_choice != "required":
        tools = [tool for tool in tools if tool["name"] == request.tool_choice]
    if not tools:
        raise InvalidRequestError(
            f"tool_choice: no tool is called {request.tool_choice!r}", param="tool_choice"
        )
    calls = [_call_schema(tool, f"#/anyOf/{at}/properties/arguments") for at, tool in enumerate(tools)]
    return dataclasses.replace(request, tool_choice="none", json_schema={"anyOf": calls}, stop=())


def _call_schema(tool: Mapping[str, Any], path: str) -> dict[str, Any]:
    # What the schema leaves open a small model fills without end.
    arguments = {"additionalProperties": False, **_moved(tool.get("parameters") or {"type": "object"}, path)}
    return {
        "type": "object",
        "properties": {"name": {"const": tool["name"]}, "arguments": arguments},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


def _moved(node: Any, path: str) -> Any:
    """Return a schema with its references as they are once it lies at *path* of another."""
    if isinstance(node, list):
        return [_moved(item, path) for item in node]
    if not isinstance(node, dict):
        return node
    moved = {key: _moved(value, path) for key, value in node.items()}
    if isinstance(moved.get("$ref"), str):
        moved["$ref"] = path + moved["$ref"].removeprefix("#")
    return moved


def in_silence(emit: Callable[[Chunk], None]) -> Callable[[Chunk], None]:
    """Return what takes the chunks of a `constrained` request and gives *emit* the call at their end.

    A call that its token limit cut off is given as the text that it is.
    """
    texts: list[str] = []

    def take(chunk: Chunk) -> None:
        texts.append(chunk.text)
        if chunk.finish_reason is None:
            emit(dataclasses.replace(chunk, text="") if chunk.logprobs else ALIVE)
            return
        call = _parsed("".join(texts))
        if call is None:
            emit(dataclasses.replace(chunk, text="".join(texts)))
        else:
            emit(
                dataclasses.replace(chunk, text="", finish_reason=FinishReason.TOOL_CALLS, tool_calls=(call,))
            )

    return take


def _parsed(text: str) -> ToolCall | None:
    try:
        call = json.loads(text)
    except ValueError:
        return None
    return ToolCall(_new_id(), call["name"], json.dumps(call["arguments"], ensure_ascii=False))


def _new_id() -> str:
    return f"call_{secrets.token_hex(12)}"


class Calls:
    """Collects the calls that the server finds in what the model writes; they come in pieces."""

    def __init__(self) -> None:
        self._calls: dict[int, dict[str, str]] = {}

    def read(self, raw: Mapping[str, Any]) -> bool:
        """Take what one of the server's chunks has of calls; return whether it has any."""
        choices: Any = raw.get("choices") or [{}]
        pieces = (choices[0].get("delta") or {}).get("tool_calls") or ()
        for piece in pieces:
            call = self._calls.setdefault(piece["index"], {"id": "", "name": "", "arguments": ""})
            call["id"] += piece.get("id") or ""
            function = piece.get("function") or {}
            call["name"] += function.get("name") or ""
            call["arguments"] += function.get("arguments") or ""
        return bool(pieces)

    def whole(self) -> tuple[ToolCall, ...]:
        """Return the calls in their order."""
        calls = [call for _, call in sorted(self._calls.items())]
        return tuple(ToolCall(c["id"] or _new_id(), c["name"], c["arguments"] or "{}") for c in calls)
